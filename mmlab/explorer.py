"""The explorer: sliders for a scenario's parameters, and beside them what two fix variants make of it.

    >>> import mmlab
    >>> explorer = mmlab.explore("all_zero", compare="ksm-opt-out", memory_mib=16)
    >>> explorer.update()
    >>> explorer.controls["pages_to_scan"].value = 100
    >>> [int(run.rows["thp_split_page"][-1]) for run in explorer.runs.values()]
    [8, 8]

As the last line of a notebook's cell it shows itself: sliders, figures, a page map and a table. A slider that moves has
the scenario simulated again, in threads, so that the kernel goes on listening: figures follow the slider as fast as
they can, and what takes long is given up as soon as there is something newer. Without a running event loop, such as in
a script, each change is computed at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import ipywidgets as widgets
import yaml

from mmlab import comparison, panels, presets
from mmlab.comparison import CELLS
from mmlab.controls import Switch, control, variants
from mmlab.errors import UserError, unknown
from mmlab.kernel.compile import announced
from mmlab.latest import Job, Latest
from mmlab.run import Run
from mmlab.scenario import Scenario, flat_fields, read_yaml
from mmlab.simulation import simulate
from mmlab.variants import VARIANTS, Predicate, Variant, resolve

__all__ = ["CONTROLS", "Explorer", "explore"]

CONTROLS = (
    "pages_to_scan", "sleep_millisecs", "max_ptes_none", "use_zero_pages", "smart_scan", "shrink_underused",
    "khugepaged", "memory_mib", "thp_coverage", "zero_fraction", "duplicate_fraction", "duplicate_groups", "layout",
    "pressure_rate", "horizon_seconds",
)  # fmt: skip
"""Fields of the scenario that have a control unless told otherwise."""
KINDS = {"knob": "Kernel knobs", "workload": "Memory", "machine": "Machine", "horizon": "Run"}
START = "regression_uzp1"
PROGRESS = 1.0
"""Seconds after which a simulation shows how far it is."""
KEPT_PAGES = 2_000_000
"""Runs are kept for up to so many simulated pages in all, 160 MB."""


def explore(
    scenario: Scenario | str | Path | None = None,
    compare: str | Variant | Predicate = "ksm-opt-out",
    *,
    variant: str | Variant | Predicate | None = None,
    controls: Sequence[str] = CONTROLS,
    **changes: Any,
) -> Explorer:
    """Sliders for a scenario, and what two variants make of it; the value of a notebook's cell.

    Parameters
    ----------
    scenario
        What to start from: a scenario, a params file, or the name of one of ``params/``. Default: 1 GiB of THPs, 460 of
        512 pages zero-filled.
    compare
        The variant beside the scenario's own: a name, a `Variant`, or a predicate of your own.
    variant
        Another one than the scenario's, such as a predicate of your own.
    controls
        Fields of the scenario that get a control, in this order.
    **changes
        Fields of the scenario to change.

    Raises
    ------
    UserError
        A name is unknown, or a value out of range.
    """
    if not isinstance(scenario, Scenario):
        scenario = Scenario.load(presets.find(START if scenario is None else scenario))
    return Explorer(scenario.replace(**changes), resolve(variant or scenario.variant), resolve(compare), controls)


@dataclass
class Result:
    """What a job has come to: all that is shown."""

    runs: dict[str, Run]
    end: float
    pictures: dict[str, bytes]
    heads: dict[str, str]
    summary: str
    table: str
    frame: comparison.Frame
    seconds: tuple[float, float]
    """Wall-clock time of the simulations and of the whole."""


class Runs:
    """The latest runs, by scenario and variant."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[Scenario, Variant], Run] = OrderedDict()
        self.lock = Lock()

    def get(self, scenario: Scenario, variant: Variant, progress: Callable[[float], None]) -> Run:
        """A run, simulated unless it is here; with its table and its metrics, which take time, too."""
        key = (scenario.replace(name="", variant="mainline"), variant)
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        run = simulate(scenario, variant=variant, progress=progress)
        _ = run.samples, run.metrics
        with self.lock:
            self.kept[key] = run
            while len(self.kept) > 2 and sum(kept.total_pages for kept, _ in self.kept) > KEPT_PAGES:
                self.kept.popitem(last=False)
        return run


class Explorer:
    """What :func:`explore` returns.

    Attributes
    ----------
    controls : dict
        By the scenario's field, and ``variant`` and ``compare``: widgets with a ``value``.
    runs : dict
        Label → run, of what is shown.
    """

    def __init__(
        self, scenario: Scenario, variant: Variant, compare: Variant, controls: Sequence[str] = CONTROLS
    ) -> None:
        self.start = self.base = scenario.replace(variant=variant.name)
        self.started_with = compare.name
        self.known = {**VARIANTS, variant.name: variant, compare.name: compare}
        fields = flat_fields()
        for name in controls:
            if name not in fields:
                raise UserError(unknown("control", name, fields, "Plain fields of the scenario can have one."))
        self.controls = {name: control(fields[name], getattr(scenario, name)) for name in controls}
        self.controls["variant"] = variants("variant", self.known, variant.name)
        self.controls["compare"] = variants("compare", self.known, compare.name)
        self.board = comparison.Board()
        self.cache = Runs()
        self.latest = Latest(self._look, self._refuse)
        self.result: Result | None = None
        self.frames: list[comparison.Frame] = []
        self.timing = ""
        self._drawing = Lock()
        self._quiet = False
        self._build(controls)
        for widget in self.controls.values():
            widget.observe(self._changed, "value")

    # --- the widgets ------------------------------------------------------------------------------------------------

    def _build(self, names: Sequence[str]) -> None:
        self.summary, self.status, self.table = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.error, self.note, self.code = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.explained = widgets.HTML()
        self.bar = widgets.FloatProgress(min=0, max=1)
        self.bar.layout.visibility = "hidden"
        self.preset = widgets.Dropdown(
            options=[("as started", ""), *((name, name) for name in flat_presets())], description="preset",
            tooltip="a file of params/ to start from", style={"description_width": "initial"},
        )  # fmt: skip
        self.reset = widgets.Button(description="Reset", tooltip="all controls as they were at the start", icon="undo")
        self.path = widgets.Text("my_scenario.yaml", description="file", style={"description_width": "initial"})
        self.save = widgets.Button(
            description="Save as YAML", tooltip="a params file for `mmlab simulate`, `mmlab report`", icon="save"
        )
        self.whole = widgets.ToggleButton(False, description="whole run", tooltip="time axes until the end of the run")
        self.heads = {name: widgets.HTML() for name in CELLS}
        self.images = {name: widgets.Image(format="png") for name in CELLS}
        self.play = widgets.Play(min=0, max=0, interval=150, disabled=True, show_repeat=False)
        self.moment = widgets.IntSlider(min=0, max=0, description="moment", readout=False, disabled=True)
        self.caption = widgets.HTML()
        widgets.jslink((self.play, "value"), (self.moment, "value"))

        cells = {
            name: _classed(widgets.VBox([self.heads[name], self.images[name]]), "mmlab-" + name.split()[0])
            for name in CELLS
        }
        player = _classed(widgets.HBox([self.play, self.moment]), "mmlab-play")
        cells["player"] = _classed(widgets.VBox([self.caption, player]), "mmlab-player")
        order = ["memory 0", "memory 1", "batches", "counters", "cpu", "player", "map 0", "map 1"]
        grid = _classed(widgets.Box([cells[name] for name in order]), "mmlab-grid")
        status = _classed(widgets.HBox([self.status, self.bar]), "mmlab-status")
        self.view = _classed(
            widgets.VBox([
                _classed(self.summary, "mmlab-summary"), status, grid, _classed(self.table, "mmlab-table"),
                _classed(self.error, "mmlab-error"),
            ]), "mmlab-view",
        )  # fmt: skip
        files = [
            widgets.HTML("<h4>Keep it</h4>"),
            _classed(self.path, "mmlab-path"),
            _classed(widgets.HBox([self.save, _classed(self.code, "mmlab-code")]), "mmlab-row"), self.note,
        ]  # fmt: skip
        first = [
            widgets.HTML("<h4>Scenario and fix</h4>"), _classed(widgets.HBox([self.preset, self.reset]), "mmlab-row"),
            self.controls["variant"], self.controls["compare"], self.explained,
        ]  # fmt: skip
        side = _classed(widgets.Box([widgets.VBox(first), *self._groups(names), widgets.VBox(files)]), "mmlab-controls")
        style = widgets.HTML(
            f"<style>{(Path(__file__).parent / 'templates' / 'explorer.css').read_text('utf-8')}</style>"
        )
        self.box = _classed(
            widgets.VBox([style, _classed(widgets.Box([side, self.view]), "mmlab-sides")]), "mmlab-explore"
        )
        self.preset.observe(self._preset, "value")
        self.whole.observe(self._changed, "value")
        self.moment.observe(self._show_moment, "value")
        self.reset.on_click(self._reset)
        self.save.on_click(self._save)

    def _groups(self, names: Sequence[str]) -> Iterator[Any]:
        """The controls under headings; switches come last in each group."""
        fields = flat_fields()
        for kind, title in KINDS.items():
            group = [self.controls[name] for name in names if fields[name].kind == kind]
            switches = [widget for widget in group if isinstance(widget, Switch)]
            if kind == "horizon":
                switches.append(_classed(self.whole, "mmlab-switch"))
            if group or switches:
                others = [widget for widget in group if widget not in switches]
                rows = [*others, _classed(widgets.Box(switches), "mmlab-switches")]
                yield widgets.VBox([widgets.HTML(f"<h4>{title}</h4>"), *rows])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)  # type: ignore[no-untyped-call]
        self.update()

    # --- what the controls ask for ----------------------------------------------------------------------------------

    @property
    def scenario(self) -> Scenario:
        """What the controls say.

        Raises
        ------
        UserError
            They say something that is not allowed.
        """
        fields = flat_fields()
        values = {name: fields[name].type(self.controls[name].value) for name in self.controls if name in fields}
        return self.base.replace(**values)

    @property
    def runs(self) -> dict[str, Run]:
        """What is shown: label → run."""
        return self.result.runs if self.result else {}

    def use(self, scenario: Scenario, compare: str | None = None) -> None:
        """Set all controls to a scenario; its other fields are taken over, too."""
        other = compare or self.controls["compare"].value
        if other == scenario.variant and not compare:
            other = "ksm-opt-out" if other == "mainline" else "mainline"
        self.base, self._quiet = scenario, True
        try:
            for name, widget in self.controls.items():
                widget.value = other if name == "compare" else getattr(scenario, name)
        finally:
            self._quiet = False
        self._changed()

    def update(self) -> None:
        """Compute what the controls ask for and show it before this returns; then, in a notebook, the page maps."""
        if jobs := self._jobs():
            self.latest.now(jobs[0])
            if self.result and _looping():
                self.latest.ask(*jobs[1:])

    def _changed(self, _: Any = None) -> None:
        if not self._quiet:
            self.latest.ask(*self._jobs())

    def _reset(self, _: Any = None) -> None:
        self._quiet = True
        self.preset.value = ""
        self.use(self.start, self.started_with)

    def _preset(self, change: Any) -> None:
        if self._quiet:
            return
        try:
            self.use(Scenario.load(presets.find(change["new"])) if change["new"] else self.start)
        except UserError as error:
            self._refuse(error)

    def _jobs(self) -> list[Job]:
        """What to compute: the comparison, then the page maps in between. Nothing if something is wrong."""
        names = [self.controls[name].value for name in ("variant", "compare")]
        labels = names if names[0] != names[1] else [names[0], f"{names[1]} again"]
        chosen = dict(zip(labels, (self.known[name] for name in names), strict=True))
        self._say(*chosen.values())
        try:
            scenario = self.scenario
            scenario.check_memory()
        except UserError as error:
            self._refuse(error)
            return []
        whole = bool(self.whole.value)
        return [
            Job(lambda job: self._compute(job, scenario, chosen, whole), self._show),
            Job(self._compute_frames, self._show_frames, patience=0.0, idle=0.5, note="page maps through time …"),
        ]

    # --- computing, in threads --------------------------------------------------------------------------------------

    def _compute(self, job: Job, scenario: Scenario, chosen: Mapping[str, Variant], whole: bool) -> Result:
        reporters = {label: job.reporter(label) for label in chosen}

        def one(label: str) -> Run:
            return self.cache.get(scenario, chosen[label], reporters[label])

        with announced(lambda text: setattr(job, "note", text)), ThreadPoolExecutor(2) as pool:
            runs = dict(zip(chosen, pool.map(one, chosen), strict=True))
        simulated = job.age
        end = (
            max(float(run.rows["time_ns"][-1]) / 1e9 for run in runs.values()) if whole else panels.until(runs.values())
        )
        with self._drawing:
            reporters[next(iter(chosen))](1.0)  # nothing is drawn for a job that was dropped
            pictures = self.board.draw(runs, end)
        heads, summary, table = self.board.heads(runs), comparison.summary(runs), comparison.metrics_table(runs)
        frame = comparison.last_frame(list(runs.values()))
        return Result(runs, end, pictures, heads, summary, table, frame, (simulated, job.age))

    def _compute_frames(self, job: Job) -> list[comparison.Frame]:
        assert self.result is not None
        runs = self.result.runs

        def again(run: Run, where: set[tuple[int, int]]) -> Run:
            variant = self.known[run.variant]
            return simulate(run.scenario, variant=variant, maps_at=where, progress=job.reporter(run.variant))

        return comparison.frames(list(runs.values()), self.result.end, again)

    # --- showing ----------------------------------------------------------------------------------------------------

    def _show(self, result: Result) -> None:
        self.result = result
        for name, picture in result.pictures.items():
            self.images[name].value = picture
        for name, words in result.heads.items():
            self.heads[name].value = words
        self.summary.value = f'<div role="status" aria-live="polite">{result.summary}</div>'
        self.table.value = f'<div class="mmlab-metrics">{result.table}</div>'
        simulated, whole = result.seconds
        self.timing = f"simulated twice in {1000 * simulated:,.0f} ms, shown after {1000 * whole:,.0f} ms"
        self.status.value = self.timing
        self.code.value = (
            "<button class='jupyter-widgets jupyter-button widget-button' title='the same in a script' "
            f"onclick='{COPY}'>Copy as Python</button><pre hidden tabindex='0'>{escape(self.python())}</pre>"
        )
        self.view.remove_class("mmlab-old")
        self.error.value = ""
        self._show_frames([result.frame])

    def _show_frames(self, frames: list[comparison.Frame]) -> None:
        """The last one is what is seen already."""
        self.frames = frames
        last = len(frames) - 1
        for player in (self.play, self.moment):
            player.max, player.value, player.disabled = last, last, not last
        self._show_moment()

    def _show_moment(self, _: Any = None) -> None:
        if self.moment.value < len(self.frames):
            frame = self.frames[self.moment.value]
            self.caption.value = frame.caption(list(self.runs))
            for number, picture in enumerate(frame.pictures):
                self.images[f"map {number}"].value = picture

    def _look(self, job: Job | None) -> None:
        """How far a job is, once it takes long."""
        busy = job is not None and job.age > PROGRESS
        self.bar.layout.visibility = "visible" if busy else "hidden"
        if job is not None and busy:
            self.bar.value = job.share
            self.status.value = escape(job.note or "simulating …")
        elif job is None:
            self.status.value = self.timing

    def _refuse(self, error: Exception) -> None:
        """Say in red what is wrong, where the figures are; what is seen there is no longer what the controls say."""
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.error.value = f'<p role="alert">{escape(words)}</p>'
        self.view.add_class("mmlab-old")
        name = words.split(maxsplit=1)[0].rstrip(":")
        if name in self.controls:
            self.controls[name].add_class("mmlab-wrong")

    def _say(self, *chosen: Variant) -> None:
        """What the variants are, and what a preset brings along that has no control."""
        lines = [f"{sign} <b>{escape(v.name)}</b>: {escape(v.summary)} <i>({escape(v.who)}; {escape(v.where)})</i>"
                 for sign, v in zip(comparison.SIGNS, chosen, strict=True)]  # fmt: skip
        others = {n: v for n, v in changed(self.base).items() if n not in (*self.controls, "name")}
        if others:
            lines.append("Without a control: " + ", ".join(f"<code>{n} = {v}</code>" for n, v in others.items()))
        self.explained.value = f'<div class="mmlab-note">{"<br>".join(lines)}</div>'
        for widget in self.controls.values():
            widget.remove_class("mmlab-wrong")

    # --- taking it along --------------------------------------------------------------------------------------------

    def python(self) -> str:
        """What is shown, as a script."""
        scenario = changed(self.scenario)
        names = [self.controls[name].value for name in ("variant", "compare")]
        scenario.pop("variant", None)
        fields = "".join(f"    {name}={value!r},\n" for name, value in scenario.items())
        return (
            f"from mmlab import Scenario, simulate\n\nscenario = Scenario(\n{fields})\n"
            f"for variant in {names}:\n    run = simulate(scenario, variant=variant)\n"
            f'    print(variant, run.summary(), sep="\\n")\n'
        )

    def yaml(self) -> str:
        """The scenario as a params file."""
        scenario, fields = self.scenario, flat_fields()
        names = [name for name in fields if name in {*self.controls, *changed(scenario)}]
        lines = [yaml.safe_dump({name: getattr(scenario, name)}).strip() for name in names]
        about = (f"{fields[name].help}{f' ({fields[name].unit})' if fields[name].unit else ''}" for name in names)
        return (
            f"# Saved by mmlab's explorer, where it was compared with {self.controls['compare'].value}.\n\n"
            + "".join(f"{line:32}# {words}\n" for line, words in zip(lines, about, strict=True))
        )

    def _save(self, _: Any = None) -> None:
        """Write the params file, never over another one, and say where it is."""
        path = Path(self.path.value).expanduser().absolute()
        try:
            text = self.yaml()
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            words, mark = f"{path} exists and was left alone: name another file.", "mmlab-bad"
        except OSError as error:
            words, mark = f"{path} cannot be written: {error.strerror}. Name another file.", "mmlab-bad"
        except UserError as error:
            words, mark = f"Not saved: {error}", "mmlab-bad"
        else:
            words, mark = f"Saved as {path}", "mmlab-good"
        self.note.value = f'<div class="mmlab-note {mark}" role="status">{escape(words)}</div>'


def changed(scenario: Scenario) -> dict[str, Any]:
    """The plain fields that are not at their defaults."""
    return {n: getattr(scenario, n) for n, p in flat_fields().items() if getattr(scenario, n) != p.default}


def flat_presets() -> list[str]:
    """Names of the files of ``params/`` without lists of processes or events."""
    return [name for name, path in presets.presets().items() if not {"process_list", "events"} & read_yaml(path).keys()]


def _classed(widget: Any, name: str) -> Any:
    widget.add_class(name)
    return widget


def _looping() -> bool:
    """There is an event loop to come back to: a notebook's kernel."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


COPY = """
this.nextElementSibling.hidden = false;
getSelection().selectAllChildren(this.nextElementSibling);
navigator.clipboard?.writeText(this.nextElementSibling.textContent).then(() => {this.textContent = "Copied"});
"""
"""Shows the code and selects it; copies it where the browser allows that."""
