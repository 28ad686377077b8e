"""The explorer as a user meets it, in a real browser: its front end alone, in JupyterLab, and as a page of its own.

The front end alone is ``explorer.js`` with a model that a test plays: nothing of Jupyter takes part, so that each value
on the line can be held back. Every test waits for states, and none for a time.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mmlab
from conftest import ROOT
from mmlab import Scenario
from mmlab.explorer.explorer import Explorer
from mmlab.explorer.requests import Job
from mmlab.scenario import flat_fields

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.filterwarnings("default")  # of the browser's driver

FRONT = Path(mmlab.__file__).parent / "explorer"
SIZES = ((1280, 720), (1366, 768), (1920, 1080), (390, 844))
"""Common windows, px: two laptops, a desk, a phone."""
PLAY = """async ([code, css, state]) => {
  const view = text => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
  const bytes = value => value?.bytes != null ? view(value.bytes)
    : value && typeof value === "object" ? Array.isArray(value) ? value.map(bytes)
    : Object.fromEntries(Object.entries(value).map(([key, part]) => [key, bytes(part)])) : value;
  const heard = {}, model = {
    state: bytes(state), sent: [],
    get: name => model.state[name],
    set: (name, value) => { model.state[name] = value; },
    save_changes: () => model.sent.push(structuredClone(model.state.asked)),
    send: message => model.sent.push(message),
    on: (name, act) => { heard[name] = act; },
    off: () => {},
    tell: (name, value) => { model.state[name] = bytes(value); heard[`change:${name}`](); },
  };
  window.model = model;
  document.head.append(Object.assign(document.createElement("style"), {textContent: css}));
  const front = await import("data:text/javascript;base64," + code);
  document.body.style.margin = 0;
  document.body.replaceChildren();
  front.default.render({model, el: document.body});
}"""
BOXES = """() => Object.fromEntries(["view", "controls", "cpu", "batches", "memory", "map", "metrics"].map(name => {
  const {left, top, right, bottom} = document.querySelector(`.mmlab-${name}`).getBoundingClientRect();
  return [name, {left, top, right, bottom}];
}))"""
TRACKS = "all => Math.min(...all.map(slider => slider.getBoundingClientRect().width))"


def as_json(value: Any) -> Any:
    """Return data with bytes in base64."""
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {key: as_json(part) for key, part in value.items()}
    return [as_json(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    made = mmlab.explore(memory_mib=64, horizon_seconds=30.0)
    made.update()
    return made


@pytest.fixture
def front(browser: Browser, explorer: Explorer) -> Iterator[Page]:
    """The front end with what the explorer tells it."""
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_content('<!DOCTYPE html><html lang="en"><head><title>explorer</title></head><body></body></html>')
    code = base64.b64encode((FRONT / "explorer.js").read_bytes()).decode()
    state = {name: getattr(explorer, name) for name in ("about", "asked", "given", "told", "shown", "busy")}
    page.evaluate(PLAY, [code, (FRONT / "explorer.css").read_text(), as_json(state)])
    yield page
    page.close()


def told(page: Page, name: str, value: object) -> None:
    """Let Python tell something."""
    page.evaluate("([name, value]) => model.tell(name, value)", [name, as_json(value)])


def last(page: Page) -> Any:
    """Return what the browser sent last."""
    return page.evaluate("model.sent.at(-1)")


# --- the front end alone ----------------------------------------------------------------------------------------------


def test_every_control_says_its_name_value_and_unit(front: Page, explorer: Explorer) -> None:
    for name, value in explorer.chosen.items():
        field = flat_fields().get(name)
        if field and field.slider and (field.type is float or (field.low, field.high) != (0, 1)):
            slider = front.get_by_role("slider", name=name, exact=True)
            words = slider.get_attribute("aria-valuetext") or ""
            assert float(words.split()[0].replace(",", "")) == pytest.approx(value, rel=1e-3)
            assert words.endswith(field.unit)
            exact = front.get_by_role("spinbutton", name=f"{name}, exact value" + f" ({field.unit})" * bool(field.unit))
            assert float(exact.input_value()) == value
        else:
            role = "combobox" if name in ("variant", "compare", "layout") else "checkbox"
            assert front.get_by_role(role, name="whole run" if name == "whole" else name, exact=True).count() == 1


def test_arrow_keys_move_a_slider_by_a_step_and_every_place_is_allowed(front: Page, explorer: Explorer) -> None:
    slider, box = (
        front.get_by_role("slider", name="zero_fraction"),
        front.get_by_role("spinbutton", name="zero_fraction"),
    )
    slider.press("ArrowLeft")
    assert float(box.input_value()) == 0.89
    assert last(front) == {"serial": 1, "values": {"zero_fraction": 0.89}}
    slider.press("ArrowRight")
    assert float(box.input_value()) == 0.9
    assert slider.get_attribute("aria-valuetext") == "0.9"
    places = front.locator("input[type=range]").evaluate_all(
        """all => all.map(slider => Array.from({length: 1 + +slider.max}, (_, place) => {
             slider.value = place;
             slider.dispatchEvent(new Event("input"));
             return slider.parentNode.querySelector("input[type=number]").valueAsNumber;
           }))"""
    )
    names = [name for name in explorer.about["fields"] if front.get_by_role("slider", name=name, exact=True).count()]
    for name, values in zip(sorted(names, key=_order), places, strict=True):
        low, high = flat_fields()[name].slider or (0, 0)
        assert (values[0], values[-1]) == (low, high), name
        assert values == sorted(set(values))
        for value in {*values[:3], *values[-3:], *values[:: len(values) // 10 + 1]}:
            Scenario(**{"horizon_seconds": 10.0, name: flat_fields()[name].type(value)})


def _order(name: str) -> int:
    return ["knob", "workload", "machine", "horizon"].index(flat_fields()[name].kind)


def test_the_newest_value_wins_on_a_slow_line(front: Page, explorer: Explorer) -> None:
    """An answer to an older value, on its way while something newer is typed, overwrites nothing."""
    slider, box = front.get_by_role("slider", name="memory_mib"), front.get_by_role("spinbutton", name="memory_mib")
    slider.press("ArrowRight")
    moved = float(box.input_value())
    box.fill("33")
    box.press("Enter")
    assert last(front) == {"serial": 2, "values": {"memory_mib": 33}}
    told(front, "given", {"after": 1, "values": explorer.chosen | {"memory_mib": moved}})
    assert float(box.input_value()) == 33, "what answers the slider comes late"
    told(front, "given", {"after": 1, "values": explorer.chosen | {"memory_mib": 8, "pages_to_scan": 7}})
    assert front.get_by_role("spinbutton", name="pages_to_scan").input_value() == "7", "a preset sets the others"
    told(front, "given", {"after": 2, "values": explorer.chosen | {"memory_mib": 33}})
    front.get_by_role("checkbox", name="smart_scan").click()
    assert last(front) == {"serial": 3, "values": {"smart_scan": 0}}, "what was acknowledged is not sent again"
    told(front, "given", {"after": 3, "values": explorer.chosen | {"memory_mib": 64}})
    assert float(box.input_value()) == 64, "a reset sets it again"


def test_a_mistake_is_explained_beside_its_control(front: Page) -> None:
    lines = "() => [...document.querySelectorAll('.mmlab-grid path')].map(path => path.getAttribute('d')).join()"
    picture = front.evaluate(lines)
    told(front, "told", {"wrong": {"memory_mib": "memory_mib = 33 is not whole THPs"}})
    row = front.locator(".mmlab-number", has=front.get_by_label("memory_mib", exact=True))
    alert = row.get_by_role("alert")
    assert alert.inner_text() == "memory_mib = 33 is not whole THPs"
    box = front.get_by_role("spinbutton", name="memory_mib")
    assert box.get_attribute("aria-describedby") == alert.get_attribute("id")
    assert box.get_attribute("aria-invalid") is not None
    assert front.evaluate(lines) == picture, "the last picture stays"
    told(front, "told", {})
    assert alert.inner_text() == ""


def test_old_figures_are_marked_and_a_bar_shows_how_far_it_is(front: Page) -> None:
    told(front, "busy", {"share": 0.4, "note": ""})
    assert front.locator(".mmlab-grid").evaluate("e => getComputedStyle(e).opacity") == "0.4"
    assert front.locator(".mmlab-status").inner_text() == "These figures are old: simulating …"
    assert front.get_by_role("progressbar").evaluate("e => e.value") == 0.4
    told(front, "busy", {})
    assert front.locator(".mmlab-grid").evaluate("e => getComputedStyle(e).opacity") == "1"


def test_hovering_tells_values(front: Page, explorer: Explorer) -> None:
    """Time, MiB and pages in figures; process, page and state on a page map."""
    tip = front.locator(".mmlab-tip")
    run = explorer.runs["mainline"]
    front.locator(".mmlab-memory svg[role=img]").first.hover(position={"x": 45, "y": 60})
    lines = tip.inner_text().split("\n")
    assert re.fullmatch(r"0\.\d+ s", lines[0])
    assert "allocated: 64 MiB" in lines
    assert "THP: 64 MiB" in lines
    front.locator(".mmlab-batches svg[role=img]").hover()
    assert re.search(r"mainline: [\d,]+ pages at [\d.]+ s", tip.inner_text())
    front.wait_for_function("document.querySelector('.mmlab-map canvas').width === 512")
    canvas = front.locator(".mmlab-map canvas").first
    box = canvas.bounding_box()
    assert box is not None
    for row, column in ((0, 0.5), (31, 0.99)):
        canvas.hover(position={"x": column * box["width"], "y": (row + 0.5) / 32 * box["height"]})
        place, block, state, _ = tip.inner_text().split("\n")
        page = int(place.removeprefix("process 0, page ").replace(",", ""))
        assert block == f"block {row}"
        assert page // 512 == row
        assert state == mmlab.figures.theme.LETTERS[chr(run.page_map()[page])][0]
    front.mouse.move(0, 0)
    assert tip.is_hidden()


def test_a_click_on_a_page_map_tells_why(front: Page, explorer: Explorer) -> None:
    """The browser names the page; Python's answer is below the figures, until something newer is shown."""
    front.wait_for_function("document.querySelector('.mmlab-map canvas').width === 512")
    box = front.locator(".mmlab-map canvas").nth(1).bounding_box()
    assert box is not None
    front.mouse.click(box["x"] + 7.5 / 512 * box["width"], box["y"] + 1.5 / 32 * box["height"])
    asked = last(front)
    assert (asked["why"]["run"], asked["why"]["process"]) == (1, 0)
    assert asked["why"]["page"] == pytest.approx(519, abs=1)
    assert int(front.get_by_label("page", exact=True).input_value()) == asked["why"]["page"]
    before = explorer.told
    explorer._show_history(explorer._history(Job(), run=1, page=519, process=0))
    told(front, "told", explorer.told)
    explorer.told = before
    shown = front.locator(".mmlab-history")
    history = mmlab.simulate(explorer.runs["ksm-opt-out"].scenario, variant="ksm-opt-out", events=True).why(519)
    assert shown.inner_text().split("\n") == str(history).split("\n")
    assert "merged with the shared zeropage (M3b)" in " ".join(shown.inner_text().split())
    told(front, "told", before)
    assert shown.is_hidden()


def test_keys_that_a_control_uses_are_not_heard_around_it(front: Page) -> None:
    """VS Code would move on to the next cell."""
    front.evaluate("window.keys = []; addEventListener('keydown', event => keys.push(event.key))")
    for key in ("ArrowUp", "PageDown", "Home", "End", "Enter", "Escape"):
        front.get_by_role("slider", name="zero_fraction").press(key)
    assert front.evaluate("keys") == ["Escape"]


def test_the_keyboard_asks_why_too(front: Page) -> None:
    """Boxes for a page and its process, and a button a run, follow each other in the tab order."""
    page = front.get_by_label("page", exact=True)
    page.fill("519")
    for key in ("Tab", "Tab", "Tab", "Enter"):
        page.page.keyboard.press(key)
    assert last(front) == {"why": {"run": 1, "page": 519, "process": 0}}
    assert front.evaluate("document.activeElement.textContent") == "■ why?"


def test_one_legend_for_two_neighbours(front: Page, explorer: Explorer) -> None:
    """Of both memory figures and of both page maps: every kind that occurs in one of them, once."""
    layers = [layer for i in (0, 1) for layer in explorer.shown["charts"][f"memory {i}"]["layers"]]
    words = front.locator(".mmlab-memory .mmlab-key").all_inner_texts()
    assert sorted(words) == sorted({layer["label"] for layer in layers})
    assert len(set(front.locator(".mmlab-map .mmlab-key").all_inner_texts())) >= 2


def test_what_is_in_sight(front: Page, artefacts: Path) -> None:
    """Figures and page maps above the fold, with 120 px of JupyterLab around it; long tracks; nothing cut off."""
    for width, height in SIZES:
        front.set_viewport_size({"width": width - 120 if width > 800 else width, "height": height})
        front.wait_for_function("document.querySelector('.mmlab-cpu svg').viewBox.baseVal.width > 0")
        boxes = front.evaluate(BOXES)
        assert front.locator("input[type=range]").evaluate_all(TRACKS) >= 140
        assert front.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off at the right"
        if width > 800:
            assert boxes["controls"]["right"] <= boxes["view"]["left"] + 1
            assert max(boxes[name]["bottom"] for name in ("cpu", "batches", "memory", "map")) <= height - 120
            assert boxes["metrics"]["top"] >= boxes["cpu"]["bottom"]
        else:
            assert boxes["controls"]["bottom"] <= boxes["memory"]["top"], "controls above figures"
        if width == 1920:
            assert boxes["metrics"]["bottom"] <= height - 120, "all of it"
        front.screenshot(path=artefacts / f"explorer_front_{width}.png")


def test_presets_reset_and_saving_are_messages(front: Page, explorer: Explorer) -> None:
    front.get_by_label("preset", exact=True).select_option("bimodal")
    assert last(front) == {"preset": "bimodal", "serial": 0}
    front.get_by_role("button", name="Reset").click()
    assert last(front) == {"preset": "", "serial": 0}
    front.get_by_label("file to save the scenario in").fill("mine.yaml")
    front.get_by_role("button", name="Save as YAML").click()
    assert last(front) == {"save": "mine.yaml"}
    front.get_by_role("button", name="Copy as Python").click()
    assert front.locator("pre").inner_text().strip() == explorer.shown["code"].strip()


# --- in Jupyter -------------------------------------------------------------------------------------------------------


@contextmanager
def serving(folder: Path, *command: str) -> Iterator[str]:
    """Run a command that serves until it is interrupted, with Jupyter's own files in a folder; yield the address."""
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    server = subprocess.Popen(
        [sys.executable, "-c", "from mmlab.cli import main; main()", *command, "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | own | {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(ROOT)},
    )
    assert server.stdout is not None
    try:
        yield next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
    finally:
        server.terminate()
        server.communicate(timeout=60)


def follows(page: Page) -> None:
    """Move a slider by a key, and wait until figures, sentences and table are those of its new value."""
    root = page.locator(".mmlab-explore")
    root.locator(".mmlab-metrics table").first.wait_for(timeout=600_000)  # it may have to compile
    before = root.locator(".mmlab-summary").inner_text()
    assert "gives back 920 of 1,024 MiB" in before
    shown = int(root.get_attribute("data-shown") or 0)
    page.get_by_role("slider", name="zero_fraction").press("ArrowLeft")
    page.wait_for_function(
        "shown => +document.querySelector('.mmlab-explore').dataset.shown > shown", arg=shown, timeout=120_000
    )
    assert "gives back 911 of 1,024 MiB" in root.locator(".mmlab-summary").inner_text()


def test_in_jupyterlab(browser: Browser, tmp_path: Path, artefacts: Path) -> None:
    """`mmlab lab` opens the notebook with its cells run, in sight at common sizes, and a slider moves the figures."""
    with serving(tmp_path, "lab", "mine") as address:
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(address)
        follows(page)
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            page.locator(".mmlab-explore").evaluate("e => e.scrollIntoView()")
            if width > 800:
                page.wait_for_function(
                    "bottom => document.querySelector('.mmlab-cpu').getBoundingClientRect().bottom <= bottom",
                    arg=height - 30,
                )
                assert page.locator("input[type=range]").evaluate_all(TRACKS) >= 140
            page.screenshot(path=artefacts / f"explorer_{width}.png")
        page.close()
    cells = json.loads((tmp_path / "mine" / "notebooks" / "00_explore.ipynb").read_text(encoding="utf-8"))
    assert cells == json.loads((ROOT / "notebooks" / "00_explore.ipynb").read_text(encoding="utf-8")), "not saved"


def test_as_a_page_of_its_own(browser: Browser, tmp_path: Path, artefacts: Path) -> None:
    """`mmlab explore`: nothing but the explorer, accessible; it saves where the command was given."""
    from axe_playwright_python.sync_playwright import Axe

    with serving(tmp_path, "explore", "regression_uzp1", "--variant", "mainline") as address:
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        page.goto(address)
        follows(page)
        assert not any(each.is_visible() for each in page.locator(".jp-CodeCell .jp-InputArea, .jp-Toolbar").all()), (
            "no code"
        )
        root = page.locator(".mmlab-explore").bounding_box()
        assert root is not None
        assert root["width"] == 1366
        found = Axe().run(page).response["violations"]
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
        page.get_by_role("button", name="Save as YAML").click()
        page.get_by_text("Saved as").wait_for()
        assert Scenario.load(tmp_path / "my_scenario.yaml").zero_fraction == 0.89
        page.screenshot(path=artefacts / "explorer_page.png")
        page.close()
