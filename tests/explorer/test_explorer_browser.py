"""The explorer as a user meets it: JupyterLab in a real browser, every control moved, pictures looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ipywidgets import ToggleButton

from conftest import ROOT
from mmlab import Scenario
from mmlab.explorer.explorer import CONTROLS
from mmlab.explorer.widgets import Number, control
from mmlab.params import find_params
from mmlab.scenario import flat_fields

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.filterwarnings("default")  # of the browser's driver

SEEN = """async () => {
  const hash = async img => Array.from(new Uint8Array(await crypto.subtle.digest(
    "SHA-1", await (await fetch(img.src)).arrayBuffer()))).join();
  const all = selector => [...document.querySelectorAll(".mmlab-explore " + selector)];
  return {
    pictures: await Promise.all(all(".mmlab-grid img.widget-image").map(hash)),
    boxes: all(".mmlab-grid img.widget-image, .mmlab-metrics").map(e => JSON.stringify(e.getBoundingClientRect())),
    table: all(".mmlab-metrics")[0].innerText,
    summary: all(".mmlab-summary")[0].innerText,
    code: all(".mmlab-code pre")[0].textContent,
  };
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the notebooks and params, with Jupyter's own files beside them."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A running `mmlab lab`."""
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false"}')
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    server = subprocess.Popen(
        [sys.executable, "-c", "from mmlab.cli import main; main()", "lab", str(folder / "mine"), "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | own | {"IPYTHONDIR": str(folder / "ipython")},
    )
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://\S+", line):
            break
    with server.stdout:
        yield found[0]
    server.terminate()
    server.wait(20)


class Lab:
    """The page, and what a user does on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.root = page.locator(".mmlab-explore")

    def seen(self) -> dict[str, Any]:
        """Digests of the pictures, where they are, and the texts."""
        seen: dict[str, Any] = self.page.evaluate(SEEN)
        return seen

    def row(self, name: str) -> Locator:
        """A parameter's control."""
        return self.root.locator(".mmlab-number, .widget-dropdown", has=self.page.get_by_text(name, exact=True))

    def type(self, name: str, value: float) -> None:
        """An exact value, as from the keyboard."""
        box = self.row(name).locator("input[type=number]")
        box.fill(f"{value:.10g}")
        box.press("Enter")

    def value(self, name: str) -> float:
        """What a parameter's box says."""
        return float(self.row(name).locator("input[type=number]").input_value())

    @staticmethod
    def says(seen: dict[str, Any], name: str, value: float) -> bool:
        """What is seen is of this value."""
        found = re.search(rf"\b{name}=(.+),$", seen["code"], re.MULTILINE)
        return float(found[1] if found else flat_fields()[name].default) == value

    def until(self, true: Callable[[dict[str, Any]], bool], why: str = "", limit: float = 120) -> dict[str, Any]:
        """What is seen once something is true of it, and nothing changes any more."""
        end, before = time.monotonic() + limit, None
        while True:
            seen = self.seen()
            if seen == before and true(seen):
                return seen
            if time.monotonic() > end:
                pytest.fail(f"{why}: {self.root.locator('.mmlab-error').inner_text()} {seen}")
            before = seen
            self.page.wait_for_timeout(60)

    def changes(self, act: Callable[[], object], why: str = "", table: bool = True) -> dict[str, Any]:
        """What is seen after something was done that changes pictures and table."""
        before = self.seen()
        act()
        return self.until(
            lambda seen: seen["pictures"] != before["pictures"] and (not table or seen["table"] != before["table"]),
            why,
        )


@pytest.fixture(scope="module")
def lab(browser: Browser, address: str, artefacts: Path) -> Iterator[Lab]:
    """The explorer's notebook, its first cells run, with little memory."""
    context = browser.new_context(
        viewport={"width": 1440, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}"))
    page.goto(address)
    cell = page.locator(".jp-Notebook .jp-Cell").first
    cell.click(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.keyboard.press("Control+b")
    for _ in range(4):
        page.keyboard.press("Shift+Enter")
    lab = Lab(page)
    lab.root.locator(".mmlab-metrics table").first.wait_for(timeout=600_000)  # it may have to compile
    yield lab
    page.screenshot(path=artefacts / "explorer_last.png")
    assert not [error for error in errors if "@jupyter-widgets" in error]  # JupyterLab stumbles on its own, too
    context.close()


def test_shows_itself(lab: Lab, artefacts: Path) -> None:
    """Pictures, a table, a summary, and controls with a label each, in several sizes of the window."""
    seen = lab.until(lambda seen: len(set(seen["pictures"])) >= 6)
    assert "gives back 920 of 1,024 MiB" in seen["summary"]
    assert "freed_mib" in seen["table"]
    for name in (*CONTROLS, "variant", "compare", "preset"):
        about = flat_fields().get(name)
        made = control(about, about.default) if about else None
        role = "spinbutton" if isinstance(made, Number) else "button" if isinstance(made, ToggleButton) else "combobox"
        named = re.compile(rf"(^|\W){name}( = [01])?$")
        assert lab.root.get_by_role(role, name=named).count() == 1, f"{name} has a label that belongs to it"
    for width, height in ((1920, 1000), (1440, 900), (1024, 768), (700, 900)):
        lab.page.set_viewport_size({"width": width, "height": height})
        lab.page.evaluate("document.querySelector('.mmlab-explore').scrollIntoView()")
        lab.page.wait_for_timeout(300)
        lab.page.screenshot(path=artefacts / f"explorer_{width}.png")
        outer = lab.root.bounding_box()
        assert outer is not None
        for element in lab.root.locator("img, table, input, select, button").all():
            if inner := element.bounding_box():
                assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1, "nothing is cut off at the right"
    lab.page.set_viewport_size({"width": 1440, "height": 900})


def test_says_what_is_wrong_and_nothing_jumps(lab: Lab, artefacts: Path) -> None:
    """A value that is not allowed is explained in red where the figures are; the next one that is allowed is shown."""
    before = lab.seen()
    lab.type("memory_mib", 33)
    from playwright.sync_api import expect

    message = lab.root.locator(".mmlab-error p")
    message.wait_for()
    expect(message).to_be_in_viewport()
    assert message.inner_text() == "memory_mib = 33 is not whole THPs of 2 MiB: it must be even, e.g. 34."
    assert message.evaluate("e => getComputedStyle(e).color") == "rgb(140, 29, 19)"
    assert lab.root.locator(".mmlab-wrong").get_by_role("spinbutton", name="memory_mib").count() == 1
    lab.page.wait_for_function("getComputedStyle(document.querySelector('.mmlab-grid')).opacity < 0.5")
    lab.page.screenshot(path=artefacts / "explorer_error.png")
    assert lab.seen()["boxes"] == before["boxes"]
    after = lab.changes(lambda: lab.type("memory_mib", 64))
    assert message.count() == 0
    assert lab.root.locator(".mmlab-wrong").count() == 0
    assert after["boxes"] == before["boxes"]
    assert "of 64 MiB" in after["summary"]


START = {
    "memory_mib": 64,
    "horizon_seconds": 30,
    "duplicate_fraction": 0.5,
    "duplicate_groups": 300,
    "pressure_rate": 2,
    "max_ptes_none": 450,
    "pages_to_scan": 200,
}
"""Here every slider and every switch makes a difference."""
NUMBERS = [name for name in CONTROLS if isinstance(control(flat_fields()[name], flat_fields()[name].default), Number)]


def test_every_slider_moves_figures_and_table(lab: Lab) -> None:
    """By the keyboard, a step or a few; the box follows, and a value typed there moves the slider."""
    lab.page.get_by_role("button", name="whole run").click()
    for name, value in START.items():
        lab.type(name, value)
    lab.until(lambda seen: all(lab.says(seen, name, value) for name, value in START.items()))
    for name in NUMBERS:
        row = lab.row(name)
        handle, was = row.locator(".noUi-handle"), lab.value(name)
        step = "ArrowLeft" if was >= 0.9 * (flat_fields()[name].slider or (0, 0))[1] else "ArrowRight"
        handle.focus()

        def press(step: str = step) -> None:
            for _ in range(20):
                lab.page.keyboard.press(step)

        lab.changes(press, name)
        assert lab.value(name) != was, name
        lab.until(lambda seen, name=name: lab.says(seen, name, lab.value(name)), name)
        place = handle.get_attribute("aria-valuenow")
        lab.changes(lambda name=name, was=was: lab.type(name, was), name)
        assert handle.get_attribute("aria-valuenow") != place, name
        assert lab.value(name) == was


def test_every_switch_and_list_changes_figures_and_table(lab: Lab) -> None:
    for name in CONTROLS:
        if (button := lab.page.get_by_role("button", name=f"{name} =")).count():
            words = button.inner_text()
            if name == "khugepaged":  # so that it collapses what was split
                lab.changes(lambda: lab.type("max_ptes_none", 511), name)
            lab.changes(button.click, name)
            assert button.inner_text() != words
            lab.changes(button.click, name)
            assert button.inner_text() == words
    before = [lab.row(name).bounding_box() for name in CONTROLS if lab.row(name).count()]
    for name, value in (("layout", "random"), ("variant", "v1-series"), ("compare", "mainline")):
        option = lab.page.get_by_label(name, exact=True).locator("option", has_text=value).first
        lab.changes(
            lambda name=name, option=option: lab.page.get_by_label(name, exact=True).select_option(
                option.get_attribute("value")
            )
        )
    assert "v1-series" in lab.seen()["summary"]
    assert [lab.row(name).bounding_box() for name in CONTROLS if lab.row(name).count()] == before, "nothing jumps"
    assert "v1-mergeable and v1-shrinker-gate together" in lab.root.locator(".mmlab-note").first.inner_text()
    lab.changes(lab.page.get_by_role("button", name="whole run").click, table=False)


def test_figures_follow_a_slider_that_is_dragged(lab: Lab) -> None:
    """While it moves there are new pictures, and at its end those of the last value."""
    handle = lab.row("zero_fraction").locator(".noUi-handle")
    box = handle.bounding_box()
    assert box is not None
    lab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    lab.page.mouse.down()
    for step in range(1, 6):
        before = lab.seen()["summary"]
        for part in range(5):
            left = 10 * step + 2 * part
            lab.page.mouse.move(box["x"] + box["width"] / 2 - left, box["y"] + box["height"] / 2)
        lab.until(lambda seen, before=before: seen["summary"] != before, "the figures follow")
    lab.page.mouse.up()
    slider = lab.row("zero_fraction").locator(".noUi-target")
    value = round(slider.evaluate("e => e.noUiSlider.get(true)"), 10)  # the box follows when the kernel has answered
    lab.until(lambda seen: lab.says(seen, "zero_fraction", value) and lab.value("zero_fraction") == value)
    lab.page.wait_for_timeout(500)
    assert lab.says(lab.seen(), "zero_fraction", value), "nothing older comes after it"


CAPTIONS = """() => {
  const player = document.querySelector(".mmlab-player");
  window.captions = [];
  let before = player.querySelector("caption").textContent;
  new MutationObserver(() => {
    const caption = player.querySelector("caption")?.textContent;
    if (caption && caption !== before) captions.push(before = caption);
  }).observe(player, {childList: true, subtree: true, characterData: true});
}"""
"""Collects every new caption of the page maps."""


def seconds(caption: str) -> float:
    """The time in a caption."""
    return float(re.sub("[^0-9.]", "", caption))


def test_plays_the_page_map(lab: Lab, artefacts: Path) -> None:
    play = lab.root.locator(".jupyter-widgets.widget-play button").first
    caption = lab.root.locator(".mmlab-player caption")
    lab.page.wait_for_function(
        "!document.querySelector('.mmlab-explore .widget-play button').disabled", timeout=120_000
    )
    play.scroll_into_view_if_needed()
    before, last = lab.seen(), seconds(caption.inner_text())
    lab.page.evaluate(CAPTIONS)
    play.click()
    lab.page.wait_for_function("captions.length >= 12", timeout=60_000)
    lab.page.screenshot(path=artefacts / "explorer_play.png")
    times = list(map(seconds, lab.page.evaluate("captions")))
    assert times == sorted(times)
    assert times[0] < last / 2, "it begins anew"
    after = lab.seen()
    assert after["boxes"] == before["boxes"], "nothing jumps"


def test_presets_and_reset(lab: Lab) -> None:
    start = lab.changes(lab.page.get_by_role("button", name="Reset").click)
    assert "of 1,024 MiB" in start["summary"]
    values = [lab.value(name) for name in NUMBERS]
    shipped = Scenario.load(find_params("regression_uzp1"))
    assert values == [getattr(shipped, name) for name in NUMBERS]
    seen = lab.changes(lambda: lab.page.get_by_label("preset", exact=True).select_option("guests_activity"))
    assert "of 256 MiB" in seen["summary"]
    assert "hot_fraction = 0.05" in lab.root.locator(".mmlab-note").first.inner_text()
    assert "boot_interval_seconds=20.0," in seen["code"]
    again = lab.changes(lab.page.get_by_role("button", name="Reset").click)
    assert [lab.value(name) for name in NUMBERS] == values
    assert again["table"] == start["table"]
    assert again["pictures"] == start["pictures"]
    assert lab.page.get_by_label("preset", exact=True).input_value() == "as started"


def test_saves_and_copies(lab: Lab, folder: Path) -> None:
    """A params file that is never overwritten, and a script that runs; both say what the controls say."""
    lab.changes(lambda: lab.type("pages_to_scan", 777))
    path = lab.page.get_by_label("file", exact=True)
    path.fill("from_the_browser.yaml")
    path.press("Tab")
    save, note = lab.page.get_by_role("button", name="Save as YAML"), lab.root.locator(".mmlab-note[role=status]")
    save.click()
    saved = folder / "mine" / "notebooks" / "from_the_browser.yaml"
    note.get_by_text(f"Saved as {saved}").wait_for()
    scenario = Scenario.load(saved)
    assert scenario.pages_to_scan == 777
    content = saved.read_bytes()
    save.click()
    note.get_by_text("exists and was left alone. Name another file.").wait_for()
    assert saved.read_bytes() == content

    lab.page.get_by_role("button", name="Copy as Python").click()
    lab.page.get_by_role("button", name="Copied").wait_for()
    code = lab.page.evaluate("navigator.clipboard.readText()")
    assert code == lab.seen()["code"]
    assert lab.root.locator(".mmlab-code pre").is_visible()
    names: dict[str, Any] = {}
    exec(code.partition("for variant")[0], names)
    assert names["scenario"] == scenario.replace(name="")


def test_is_accessible(lab: Lab) -> None:
    """The automated rules; pictures say what they show, handles of sliders what they are."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(lab.page, context=".mmlab-explore").response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
    assert lab.page.get_by_role("slider", name="pages_to_scan").count() == 1
    assert lab.root.get_by_alt_text("1,024 MiB are allocated at the start").count() == 2


def test_dark_theme(lab: Lab, artefacts: Path) -> None:
    page = lab.page
    page.get_by_text("Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).hover()
    page.get_by_text("JupyterLab Dark", exact=True).click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.set_viewport_size({"width": 1920, "height": 1000})
    page.evaluate("document.querySelector('.mmlab-explore').scrollIntoView()")
    light = "s => getComputedStyle(document.querySelector(s)).color.match(/[0-9]+/g).slice(0, 3).every(c => c > 150)"
    for text in (".mmlab-summary", ".mmlab-head b", ".mmlab-metrics td", ".mmlab-number .widget-label"):
        page.wait_for_function(light, arg=f".mmlab-explore {text}")  # it is readable on dark
    page.screenshot(path=artefacts / "explorer_dark.png")
