// The explorer in the browser: controls, figures, and what the pointer tells. Python computes; see explorer.py.
//
// Traits: `about` (controls and presets) never changes. `asked` goes to Python: {serial, values} of the controls that were
// moved, until `given` of all controls says that it is of that serial or of a later one (`after`). So the newest value
// wins on a slow line, too: `given` sets no control that was moved after it. `told` is messages, `shown` what was
// computed, `busy` how far it is.

const SVG = "http://www.w3.org/2000/svg";
let unique = 0;

function make(name, about = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "rect", "circle", "pattern", "defs", "clipPath"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(about)) if (value !== false && value != null) node.setAttribute(key, value);
  node.append(...children.filter(child => child != null));
  return node;
}

const number = value => value.toLocaleString("en", {maximumSignificantDigits: Math.abs(value) < 1000 ? 4 : 7});

// --- controls ---------------------------------------------------------------------------------------------------------

function numberControl(about, moved) {
  const id = `mmlab-${++unique}`, unit = about.unit ? ` ${about.unit}` : "";
  const box = make("input", {type: "number", step: "any", title: about.help, "aria-describedby": `${id}-wrong`,
                             "aria-label": `${about.name}, exact value${about.unit ? ` (${about.unit})` : ""}`});
  const slider = about.stops.length && make("input", {type: "range", id, min: 0, max: about.stops.length - 1, step: 1,
                                                      title: about.help, "aria-describedby": `${id}-wrong`});
  const place = value => {
    if (!slider || Number.isNaN(value)) return;
    let at = about.stops.findIndex(stop => stop >= value);
    if (at < 0) at = about.stops.length - 1;
    if (at > 0 && value - about.stops[at - 1] < about.stops[at] - value) at -= 1;
    slider.value = at;
    slider.setAttribute("aria-valuetext", `${number(value)}${unit}`);
  };
  slider && slider.addEventListener("input", () => {
    box.value = about.stops[slider.valueAsNumber];
    slider.setAttribute("aria-valuetext", `${number(box.valueAsNumber)}${unit}`);
    moved(box.valueAsNumber);
  });
  box.addEventListener("change", () => {
    place(box.valueAsNumber);
    moved(Number.isNaN(box.valueAsNumber) ? null : box.valueAsNumber);
  });
  if (!slider) box.id = id;
  const label = make("label", {for: id, title: about.help}, about.name);
  return {row: make("div", {class: "mmlab-number"}, label, slider || make("span"), box), id, input: box,
          set: value => { box.value = value; place(value); }};
}

function switchControl(about, moved) {
  const id = `mmlab-${++unique}`;
  const input = make("input", {type: "checkbox", id, "aria-describedby": `${id}-wrong`});
  input.addEventListener("change", () => moved(Number(input.checked)));
  return {row: make("div", {class: "mmlab-switch", title: about.help}, input, make("label", {for: id}, about.name)), id, input,
          set: value => { input.checked = Boolean(value); }};
}

function choiceControl(about, moved) {
  const id = `mmlab-${++unique}`;
  const options = about.options.map(([words, value]) => make("option", {value}, words));
  const input = make("select", {id, title: about.help, "aria-describedby": `${id}-wrong`}, ...options);
  input.addEventListener("change", () => moved(input.value));
  return {row: make("div", {class: "mmlab-choice"}, make("label", {for: id}, about.name), input), id, input,
          set: value => { input.value = value; }};
}

function textControl(about, moved) {
  const id = `mmlab-${++unique}`, input = make("input", {id, title: about.help, "aria-describedby": `${id}-wrong`});
  input.addEventListener("change", () => moved(input.value));
  return {row: make("div", {class: "mmlab-choice"}, make("label", {for: id}, about.name), input), id, input,
          set: value => { input.value = value; }};
}

// The values of a slider: whole steps, of two digits where it is logarithmic; none without a usual range.
function stops({slider, step, log, type}) {
  if (!slider) return [];
  const [low, high] = slider, least = step ?? (type === "int" ? 1 : 0.01), values = [];
  if (log && low > 0) {
    const count = Math.floor(50 * Math.log10(high / low));
    for (let i = 0; i <= count; i++) values.push(+(low * (high / low) ** (i / count)).toPrecision(2));
  } else {
    let each = least;
    while ((high - low) / each > 1000) each *= 10;
    for (let i = 0; low + i * each < high + each / 2; i++) values.push(low + i * each);
  }
  const whole = step || type === "int" ? values.map(value => Math.round(value / least) * least) : values;
  return [...new Set([...whole.map(value => +value.toPrecision(10)), high])].filter(value => low <= value && value <= high);
}

function control(field, moved) {
  const unit = field.unit ? ` (${field.unit})` : "", about = {...field, help: `${field.help}${unit}. Allowed: ${field.allowed}`};
  if (field.choices.length) return choiceControl({...about, options: field.choices.map(choice => [choice, choice])}, moved);
  if (field.type === "bool" || (field.type === "int" && field.low === 0 && field.high === 1)) return switchControl(about, moved);
  return field.type === "str" ? textControl(about, moved) : numberControl({...about, stops: stops(field)}, moved);
}

const GROUPS = {knob: "Kernel knobs", workload: "Memory", machine: "Machine", horizon: "Run"};

// --- figures ----------------------------------------------------------------------------------------------------------

const floats = view => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

function ticks(low, high, log, count) {
  if (log) return Array.from({length: Math.floor(Math.log10(high)) + 1}, (_, power) => 10 ** power);
  const rough = (high - low) / count, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find(factor => factor * unit >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, i) => (first + i) * step);
}

const short = value => Math.abs(value) >= 1e6 ? `${+(value / 1e6).toPrecision(4)}M`
  : Math.abs(value) >= 1e4 ? `${+(value / 1e3).toPrecision(4)}k` : `${+value.toPrecision(6)}`;

const HATCHES = {"/": "M0 6L6 0", "\\": "M0 0L6 6", "x": "M0 6L6 0M0 0L6 6", ".": "M2 3h1.4"};
const MARKERS = {o: "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0", s: "M-2.7 -2.7h5.4v5.4h-5.4z", "^": "M0 -3.4L3.2 2.6H-3.2z"};

function fill(look, defs) {
  if (!look.hatch) return look.facecolor;
  const id = `mmlab-hatch-${++unique}`;
  defs.append(make("pattern", {id, width: 6, height: 6, patternUnits: "userSpaceOnUse"},
    make("rect", {width: 6, height: 6, fill: look.facecolor}),
    make("path", {d: HATCHES[look.hatch[0]], stroke: "#555", "stroke-width": look.hatch[0] === "." ? 1.2 : 0.6})));
  return `url(#${id})`;
}

function stroke(look) {
  if (look.linestyle === "none") return {stroke: "none"};
  const width = 0.75 * (look.linewidth ?? 1.8);
  const dash = Array.isArray(look.linestyle) ? look.linestyle[1].map(part => part * width).join(" ") : false;
  return {stroke: look.color, "stroke-width": width, "stroke-dasharray": dash, opacity: look.alpha ?? 1};
}

const marker = (look, x, y) => make("path", {d: MARKERS[look.marker], transform: `translate(${x} ${y})`, fill: look.color,
  stroke: look.markeredgewidth === 0 ? "none" : "#fff", "stroke-width": 0.6, opacity: look.alpha ?? 1});

function swatch(layer) {
  const defs = make("defs"), svg = make("svg", {width: 24, height: 10, "aria-hidden": "true"}, defs), {look} = layer;
  if (layer.low) svg.append(make("rect", {x: 1, y: 0.5, width: 22, height: 9, fill: fill(look, defs), stroke: "#555", "stroke-width": 0.5}));
  else svg.append(make("path", {d: "M0 5H24", fill: "none", ...stroke(look)}), look.marker ? marker(look, 12, 5) : "");
  return svg;
}

function title(caption, words) {  // the sign of a run has its colour
  const run = "●■".indexOf(words[0]);
  caption.replaceChildren(...run < 0 ? [words] : [make("span", {class: `mmlab-run${run}`, "aria-hidden": "true"}, words[0]), words.slice(1)]);
}

const keys = entries => [...new Map(entries)].map(([words, picture]) => make("span", {class: "mmlab-key"}, picture(), words));

class Chart {
  constructor(name, tip) {
    this.caption = make("figcaption");
    this.svg = make("svg", {role: "img", tabindex: -1});
    this.legend = make("div", {class: "mmlab-legend"});
    this.node = make("figure", {class: `mmlab-chart mmlab-${name.split(" ")[0]}`}, this.caption, this.svg, this.legend);
    this.svg.addEventListener("pointermove", event => tip.show(event, this.tell(event)));
    this.svg.addEventListener("pointerleave", () => tip.hide());
    new ResizeObserver(() => this.paint()).observe(this.node);
  }

  show(chart) {
    this.data = {...chart, layers: chart.layers.map(layer => ({...layer, x: floats(layer.x), y: floats(layer.y),
                                                               low: layer.low && floats(layer.low)}))};
    title(this.caption, chart.title);
    this.svg.setAttribute("aria-label", chart.alt);
    this.paint();
  }

  static keys(charts) {
    const named = charts.flatMap(chart => chart.data.layers).filter(layer => layer.label);
    return keys(named.map(layer => [layer.label, () => swatch(layer)]));
  }

  paint() {
    const {width, height} = this.svg.getBoundingClientRect();
    if (!this.data || !width) return;
    const {x: [left, right], y: [low, high], log, layers} = this.data;
    const frame = this.frame = {left: 40, right: width - 12, top: 6, bottom: height - 30};
    const scale = value => log ? Math.log10(Math.max(value, 1e-9)) : value;
    const x = this.x = value => frame.left + (value - left) / (right - left) * (frame.right - frame.left);
    const y = this.y = value => frame.bottom - (scale(value) - scale(low)) / (scale(high) - scale(low)) * (frame.bottom - frame.top);
    const id = `mmlab-clip-${++unique}`, defs = make("defs", {}, make("clipPath", {id}, make("rect",
      {x: frame.left, y: 0, width: Math.max(0, frame.right - frame.left), height: frame.bottom})));
    const axes = make("g", {class: "mmlab-axes"}), drawn = make("g", {"clip-path": `url(#${id})`});
    for (const tick of ticks(left, right, false, Math.max(2, width / 70)))
      axes.append(make("line", {x1: x(tick), x2: x(tick), y1: frame.top, y2: frame.bottom}),
                  make("text", {x: x(tick), y: frame.bottom + 12, "text-anchor": "middle"}, short(tick)));
    for (const tick of ticks(low, high, log, Math.max(2, height / 32)))
      axes.append(make("line", {x1: frame.left, x2: frame.right, y1: y(tick), y2: y(tick)}),
                  make("text", {x: frame.left - 4, y: y(tick) + 3.5, "text-anchor": "end"}, short(tick)));
    const middle = (frame.top + frame.bottom) / 2;
    axes.append(make("text", {x: (frame.left + frame.right) / 2, y: height - 4, "text-anchor": "middle"}, "simulated time (s)"),
                make("text", {transform: `translate(9 ${middle}) rotate(-90)`, "text-anchor": "middle"}, this.data.quantity));
    for (const {look, ...layer} of layers) {
      const point = i => `${x(layer.x[i]).toFixed(1)} ${y(layer.y[i]).toFixed(1)}`;
      const every = Array.from(layer.x.keys());
      if (layer.low) {
        const back = every.toReversed().map(i => `${x(layer.x[i]).toFixed(1)} ${y(layer.low[i]).toFixed(1)}`);
        drawn.append(make("path", {d: `M${[...every.map(point), ...back].join("L")}z`, fill: fill(look, defs), stroke: "#555", "stroke-width": 0.3}));
      } else if (look.linestyle !== "none" && every.length)
        drawn.append(make("path", {d: `M${every.map(point).join("L")}`, fill: "none", ...stroke(look)}));
      for (const i of look.marker ? look.markevery ?? every : []) drawn.append(marker(look, x(layer.x[i]), y(layer.y[i])));
    }
    const spines = make("path", {class: "mmlab-spines", d: `M${frame.left} ${frame.top}V${frame.bottom}H${frame.right}`});
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(defs, axes, drawn, spines);
  }

  // What each layer shows at the pointer's time: lines hold their value, of points the nearest counts.
  tell(event) {
    if (!this.frame) return [];
    const {x: [left, right], layers, quantity} = this.data, box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - this.frame.left) / (this.frame.right - this.frame.left);
    const time = left + Math.min(1, Math.max(0, share)) * (right - left);
    const rows = layers.toReversed().filter(layer => layer.label && layer.x.length).map(layer => {
      let at = Math.max(0, layer.x.findLastIndex(each => each <= time));
      const apart = layer.look.linestyle === "none";
      if (apart && at + 1 < layer.x.length && layer.x[at + 1] - time < time - layer.x[at]) at += 1;
      const value = layer.y[at] - (layer.low ? layer.low[at] : 0);
      return `${layer.label}: ${number(+value.toFixed(2))} ${quantity}${apart ? ` at ${number(layer.x[at])} s` : ""}`;
    });
    return [`${number(+time.toPrecision(4))} s`, ...rows];
  }
}

class PageMap {
  constructor(name, tip, clicked) {
    this.caption = make("figcaption");
    this.canvas = make("canvas", {role: "img"});
    this.legend = make("div", {class: "mmlab-legend"});
    this.node = make("figure", {class: "mmlab-map"}, this.caption, this.canvas, this.legend);
    this.canvas.addEventListener("pointermove", event => tip.show(event, this.tell(event)));
    this.canvas.addEventListener("pointerleave", () => tip.hide());
    this.canvas.addEventListener("click", event => this.context && clicked(this.place(event)));
  }

  async show(map) {
    this.data = map;
    title(this.caption, map.title);
    this.canvas.setAttribute("aria-label", map.alt);
    const picture = await createImageBitmap(new Blob([map.picture], {type: "image/png"}));
    if (this.data !== map) return;  // a newer one has come meanwhile
    Object.assign(this.canvas, {width: picture.width, height: picture.height});
    this.canvas.style.imageRendering = picture.height < this.canvas.clientHeight ? "pixelated" : "auto";
    this.context = this.canvas.getContext("2d", {willReadFrequently: true});
    this.context.drawImage(picture, 0, 0);
  }

  static keys(maps) {
    return keys(maps.flatMap(map => map.data.kinds).map(([words, colour]) =>
      [words, () => make("span", {class: "mmlab-chip", style: `background:${colour}`})]));
  }

  // The page at the pointer, and its colour.
  place(event) {
    const box = this.canvas.getBoundingClientRect(), {width, height} = this.canvas, {blocks} = this.data;
    const place = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
    const column = place((event.clientX - box.left) / box.width, width);
    const row = place((event.clientY - box.top) / box.height, height);
    const colour = `#${[...this.context.getImageData(column, row, 1, 1).data].slice(0, 3)
      .map(part => part.toString(16).padStart(2, "0")).join("")}`;
    let block = Math.floor(row * blocks.reduce((sum, each) => sum + each) / height), process = 0;
    while (block >= blocks[process]) block -= blocks[process++];
    return {process, page: block * width + column, block, colour};
  }

  tell(event) {
    if (!this.context) return [];
    const {process, page, block, colour} = this.place(event);
    const [words] = this.data.kinds.find(([, each]) => each.toLowerCase() === colour) ?? ["not present"];
    return [`process ${process}, page ${page.toLocaleString("en")}`, `block ${block}`, words, "click: why?"];
  }
}

class Tip {
  constructor() { this.node = make("div", {class: "mmlab-tip", hidden: ""}); }
  hide() { this.node.hidden = true; }
  show(event, lines) {
    this.node.hidden = !lines.length;
    this.node.replaceChildren(...lines.map(line => make("div", {}, line)));
    const {width, height} = this.node.getBoundingClientRect();
    this.node.style.left = `${Math.max(0, Math.min(event.clientX + 14, innerWidth - width - 4))}px`;
    this.node.style.top = `${Math.max(0, event.clientY + 14 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 14)}px`;
  }
}

// --- all of it --------------------------------------------------------------------------------------------------------

function render({model, el}) {
  const root = make("div", {class: "mmlab-explore"}), tip = new Tip();
  const controls = {}, current = {}, pending = {}, touched = {};  // all by name
  let serial = model.get("given").after;

  const moved = name => value => {
    touched[name] = ++serial;
    pending[name] = current[name] = value;
    model.set("asked", {serial, values: {...pending}});
    model.save_changes();
  };
  const {fields, variants, presets} = model.get("about"), group = (title, ...rows) =>
    rows.length ? make("fieldset", {class: "mmlab-group"}, make("legend", {}, title), ...rows) : "";
  const row = (name, build) => {
    const made = controls[name] = build(moved(name));
    made.wrong = make("div", {class: "mmlab-wrong", id: `${made.id}-wrong`, role: "alert"});
    made.row.append(made.wrong);
    return made.row;
  };
  const choose = name => row(name, moved => choiceControl({name, options: Object.entries(variants).map(pair => pair.toReversed()),
    help: "which kernel variant decides whether a split remaps zero-filled pages"}, moved));
  const whole = () => row("whole", moved => switchControl({name: "whole run",
    help: "time axes until the end of the run, not only until the last change"}, moved));
  const groups = Object.entries(GROUPS).map(([kind, title]) => {
    const rows = Object.values(fields).filter(field => field.kind === kind).map(field => row(field.name, moved => control(field, moved)));
    const last = rows.filter(each => each.classList.contains("mmlab-switch"));
    return group(title, ...rows.filter(each => !last.includes(each)), ...last, ...kind === "horizon" ? [whole()] : []);
  });

  const button = (words, title, act) => {
    const node = make("button", {type: "button", title}, words);
    node.addEventListener("click", act);
    return node;
  };
  const preset = make("select", {id: `mmlab-${++unique}`, title: "a file of params/ to start from"},
    ...presets.map(name => make("option", {value: name}, name || "as started")));
  preset.addEventListener("change", () => model.send({preset: preset.value, serial}));
  const reset = button("Reset", "all controls as they were at the start", () => {
    preset.value = "";
    model.send({preset: "", serial});
  });
  const path = make("input", {type: "text", value: "my_scenario.yaml", "aria-label": "file to save the scenario in"});
  const save = button("Save as YAML", "a params file for mmlab simulate and mmlab report", () => model.send({save: path.value}));
  const code = make("pre", {tabindex: 0, "aria-label": "the same in Python", hidden: ""});
  const copy = button("Copy as Python", "the same comparison in a script", () => {
    code.hidden = false;
    getSelection().selectAllChildren(code);
    navigator.clipboard?.writeText(code.textContent);
  });
  const message = make("div", {class: "mmlab-note", role: "status"});
  const scene = group("Scenario and fix", choose("variant"), choose("compare"),
    make("div", {class: "mmlab-choice"}, make("label", {for: preset.id}, "preset"), preset, reset));
  const keep = group("Keep it", make("div", {class: "mmlab-buttons"}, path, save, copy), message, code);

  const summary = make("div", {class: "mmlab-summary", role: "status", "aria-live": "polite"});
  const bar = make("progress", {max: 1, "aria-label": "progress of the simulation"}), status = make("span");
  const charts = Object.fromEntries(["memory 0", "memory 1", "batches", "counters", "cpu"].map(name => [name, new Chart(name, tip)]));
  const at = Object.fromEntries(["page", "process"].map(name => [name, make("input", {type: "number", min: 0, value: 0})]));
  const why = run => model.send({why: {run, page: at.page.valueAsNumber || 0, process: at.process.valueAsNumber || 0}});
  const maps = [0, 1].map(run => new PageMap(`map ${run}`, tip, place => {
    for (const name in at) at[name].value = place[name];
    why(run);
  }));
  const asks = ["first", "second"].map((which, run) => button(`${"●■"[run]} why?`, `the page's history in the ${which} run`, () => why(run)));
  const place = make("div", {class: "mmlab-why", role: "group", "aria-label": "history of a page, as by a click on a page map"},
    make("label", {}, "page ", at.page), make("label", {}, "of process ", at.process), ...asks);
  const history = make("div", {class: "mmlab-note mmlab-history", role: "status", hidden: ""});
  const grid = make("div", {class: "mmlab-grid"}, charts["memory 0"].node, charts["memory 1"].node, ...maps.map(map => map.node),
    charts.batches.node, charts.counters.node, charts.cpu.node);
  const table = make("div", {class: "mmlab-metrics"}), explained = make("div", {class: "mmlab-note"});
  const error = make("div", {class: "mmlab-error", role: "alert"});
  const view = make("div", {class: "mmlab-view"}, summary, make("div", {class: "mmlab-status"}, status, bar), error, grid, place, history, explained, table);
  root.append(make("div", {class: "mmlab-controls"}, scene, ...groups, keep), view, tip.node);
  for (const each of root.querySelectorAll("input, select, button"))  // JupyterLab leaves their keys to them
    each.setAttribute("data-lm-suppress-shortcuts", "true");
  root.addEventListener("keydown", event => /^(Arrow|Page|Home|End|Enter)/.test(event.key) && event.stopPropagation());  // … and VS Code
  el.append(root);

  const on = {
    given() {
      const {values, after} = model.get("given");
      for (const [key, value] of Object.entries(values)) {
        if (!controls[key] || touched[key] > after) continue;
        delete pending[key];
        if (current[key] !== value) controls[key].set(current[key] = value);
      }
    },
    told() {
      const {wrong = {}, explained: words = "", message: said = "", error: problem = "", history: why = ""} = model.get("told");
      for (const [name, made] of Object.entries(controls)) {
        made.wrong.textContent = wrong[name] ?? "";
        made.input.toggleAttribute("aria-invalid", name in wrong);
      }
      explained.innerHTML = words;
      message.textContent = said;
      error.textContent = problem;
      history.textContent = why;
      history.hidden = !why;
    },
    shown() {
      const found = model.get("shown");
      if (!found.charts) return;
      Object.entries(found.charts).forEach(([name, chart]) => charts[name].show(chart));
      found.maps.forEach((map, i) => maps[i].show(map));
      for (const shared of [[charts["memory 0"], charts["memory 1"]], [charts.batches], [charts.counters], [charts.cpu], maps])
        shared[0].legend.replaceChildren(...shared[0].constructor.keys(shared));  // one legend for two neighbours
      summary.innerHTML = found.summary;
      table.innerHTML = found.table;
      code.textContent = found.code;
      root.dataset.shown = found.serial;
      on.busy();
    },
    busy() {
      const {share, note} = model.get("busy"), old = share != null;
      view.classList.toggle("mmlab-old", old);
      bar.value = share ?? 0;
      bar.classList.toggle("mmlab-idle", !old);
      const [simulated, drawn] = (model.get("shown").seconds ?? [0, 0]).map(seconds => Math.round(1000 * seconds).toLocaleString("en"));
      status.textContent = old ? `These figures are old: ${note || "simulating …"}` : `simulated twice in ${simulated} ms, shown after ${drawn} ms`;
    },
  };
  for (const [name, act] of Object.entries(on)) { act(); model.on(`change:${name}`, act); }
  return () => Object.entries(on).forEach(([name, act]) => model.off(`change:${name}`, act));
}

export default {render};
