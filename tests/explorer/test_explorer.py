"""The explorer without a browser: what it computes and tells the browser, files, and the latest of what is asked."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

import mmlab
from mmlab import VARIANTS, Scenario, SplitContext, simulate
from mmlab.errors import UserError
from mmlab.explorer import requests
from mmlab.explorer.comparison import CHARTS, MAP_ROWS, page_map_image
from mmlab.explorer.explorer import CONTROLS, Explorer, flat_presets
from mmlab.explorer.requests import Dropped, Job, Requests
from mmlab.figures import figures as plots
from mmlab.figures import theme
from mmlab.params import find_params, save_new
from mmlab.results.metrics import Metrics
from mmlab.results.run import Run

SMALL: dict[str, Any] = {"memory_mib": 16, "pages_to_scan": 100, "horizon_seconds": 20.0}
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def explorer() -> Explorer:
    """What a notebook shows, with little memory, computed."""
    made = mmlab.explore(**SMALL)
    made.update()
    return made


def text(html: str) -> str:
    return BeautifulSoup(html, "html.parser").get_text(" ", strip=True)


def numbers(part: bytes) -> np.ndarray:
    return np.frombuffer(part, "<f4")


# --- what is shown --------------------------------------------------------------------------------------------------


def test_shows_what_simulate_gives(explorer: Explorer) -> None:
    """Label → run; every metric of both and the difference in the table; a sentence for each."""
    scenario = Scenario.load(find_params("regression_uzp1")).replace(**SMALL)
    assert list(explorer.runs) == ["mainline", "ksm-opt-out"]
    for name, run in explorer.runs.items():
        expected = simulate(scenario, variant=name)
        assert run.metrics == expected.metrics
        assert f"{name} gives back {expected.metrics.freed_mib:,.0f} of 16 MiB" in text(explorer.shown["summary"])
    rows = {
        row.th.get_text(): [cell.get_text() for cell in row.find_all("td")]
        for row in BeautifulSoup(explorer.shown["table"], "html.parser").select("tbody tr")
    }
    assert [name.partition(" ")[0] for name in rows] == list(Metrics.describe())
    a, b = (run.metrics for run in explorer.runs.values())
    change = b.freed_unseen_pages - a.freed_unseen_pages
    assert rows["freed_unseen_pages"] == [
        f"{a.freed_unseen_pages:,}",
        f"{b.freed_unseen_pages}",
        f"{change:,}".replace("-", "−"),
    ]
    assert rows["most_freed_per_budget"][1].startswith("✓"), "which is better says mmlab.studies.compare"
    assert rows["thps_split"][2] == "="


def test_the_browser_draws_the_figures_of_reports(explorer: Explorer) -> None:
    """What it gets of each figure are the lines and areas that matplotlib draws of the same runs."""
    charts, end = explorer.shown["charts"], explorer.found and explorer.found.end
    assert list(charts) == list(CHARTS)
    for name, chart in charts.items():
        kind, _, place = name.partition(" ")
        shown: Any = list(explorer.runs.values())[int(place)] if place else explorer.runs
        ax = getattr(plots, kind)(shown, until=end)
        assert tuple(chart["x"]) == ax.get_xlim()
        assert tuple(chart["y"]) == pytest.approx(ax.get_ylim())
        assert chart["log"] == (ax.get_yscale() == "log")
        lines = [layer for layer in chart["layers"] if "low" not in layer]
        for layer, line in zip(lines, ax.lines, strict=True):
            assert numbers(layer["y"]).max(initial=0) == pytest.approx(np.max(line.get_ydata(), initial=0))
            assert {*numbers(layer["x"])} <= {*np.asarray(line.get_xdata()).astype("f4")}, "thinned more, not otherwise"
        labels = {layer["label"] for layer in chart["layers"] if layer.get("label")}
        assert labels == {*ax.get_legend_handles_labels()[1]} | {patch.get_label() for patch in ax.artists}
        assert chart["alt"].startswith(f"{chart['title']}. ")
    json.dumps([layer["look"] for chart in charts.values() for layer in chart["layers"]])  # as the browser gets it


def test_page_maps(explorer: Explorer) -> None:
    """A pixel a page, in the colour of its kind; many blocks are thinned evenly."""
    for told, run in zip(explorer.shown["maps"], explorer.runs.values(), strict=True):
        picture = np.asarray(Image.open(io.BytesIO(told["picture"])).convert("RGB"))
        assert (picture == theme.palette()[run.page_map()].reshape(8, 512, 3)).all()
        assert told["blocks"] == [8]
        kinds = plots.page_map_table(run.page_map())
        assert {kind for kind, _ in told["kinds"]} == {*kinds["kind"]}
        assert all(f"{kind} {pages:,}" in told["alt"] for kind, pages in kinds.itertuples(index=False))
    many = [np.full(512 * 1500, ord("A"), np.uint8), np.full(512 * 1000 + 7, ord("Z"), np.uint8)]
    picture = np.asarray(Image.open(io.BytesIO(page_map_image(many, 512))).convert("RGB"))
    assert picture.shape == (MAP_ROWS, 512, 3)
    share = (picture[:, 0] == theme.palette()[ord("A")]).all(axis=1).mean()
    assert share == pytest.approx(1500 / 2501, abs=0.001)


def test_stored_output_has_a_picture(explorer: Explorer) -> None:
    """The widget's output has a picture with its alternative text: for where there is no kernel."""
    data, about = explorer._repr_mimebundle_()
    assert data[WIDGET]["model_id"] == explorer.model_id
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.width < 1440, "a report is 960 px wide, an image has one and a half pixels to each"
    alt = about["image/png"]["alt"]
    assert data["text/plain"] == alt, "and no `Box(children=…`"
    for words in ("Memory: mainline", "Pages: ksm-opt-out", "CPU time of ksmd", "16 MiB are allocated at the start"):
        assert words in alt
    assert explorer._repr_mimebundle_()[0]["image/png"] == data["image/png"], "always the same bytes"


# --- what a user does -----------------------------------------------------------------------------------------------


def test_a_control_that_moves_changes_everything(explorer: Explorer) -> None:
    before = explorer.shown
    explorer.set(zero_fraction=0.5)
    assert explorer.scenario.zero_fraction == 0.5
    after = explorer.shown
    for name in CHARTS:
        assert before["charts"][name] != after["charts"][name] or name == "cpu"
    for name in ("summary", "table", "code", "maps"):
        assert before[name] != after[name]
    assert {run.scenario.zero_fraction for run in explorer.runs.values()} == {0.5}
    with pytest.raises(UserError, match="did you mean 'zero_fraction'"):
        explorer.set(zero_fractio=0.5)


def test_values_from_the_browser(explorer: Explorer) -> None:
    """JSON has no integers of its own; what is taken is told back, with the serial of the request."""
    explorer.asked = {"serial": 3, "values": {"zero_fraction": 1, "pages_to_scan": 50.0, "smart_scan": 0}}
    scenario = explorer.scenario
    assert (scenario.zero_fraction, scenario.pages_to_scan, scenario.smart_scan) == (1.0, 50, 0)
    assert explorer.given["after"] == 3
    assert explorer.given["values"]["pages_to_scan"] == 50
    assert explorer.shown["serial"] == 3
    for value in (12.5, None):
        explorer.asked = {"serial": 4, "values": {"pages_to_scan": value}}
        assert "pages_to_scan" in explorer.told["wrong"]["pages_to_scan"]
    assert explorer.runs["mainline"].scenario.pages_to_scan == 50


def test_mistakes_are_explained_beside_the_control(explorer: Explorer) -> None:
    shown = explorer.shown
    explorer.set(memory_mib=33)
    assert explorer.told["wrong"] == {
        "memory_mib": "memory_mib = 33 is not whole THPs of 2 MiB: it must be even, e.g. 34."
    }
    assert explorer.shown is shown, "the last picture stays"
    with pytest.raises(UserError):
        _ = explorer.scenario
    explorer.set(memory_mib=34)
    assert "wrong" not in explorer.told
    explorer.set(memory_mib=2**24)
    assert "GiB of simulated memory need" in str(explorer.told)
    explorer.set(memory_mib=16, pages_to_scan=0)
    explorer.set(horizon_seconds=0.0)
    assert "the run would never end" in str(explorer.told)


def test_an_error_inside_is_shown_too(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Run:
        raise ZeroDivisionError("somewhere")

    monkeypatch.setattr("mmlab.explorer.explorer.simulate", broken)
    explorer.set(pages_to_scan=123)
    assert explorer.told["error"] == "ZeroDivisionError: somewhere"


@pytest.mark.parametrize("name", flat_presets())
def test_presets(name: str) -> None:
    """A preset sets the controls, and brings along what has none."""
    made = mmlab.explore(Scenario(memory_mib=2, horizon_seconds=1.0))
    asked: list[object] = []
    made.requests.ask = lambda work, **_: asked.append(work)  # type: ignore[method-assign, assignment]
    made._told(None, {"preset": name, "serial": 5}, [])
    assert asked
    assert made.given["after"] == 5
    loaded = Scenario.load(find_params(name))
    assert made.scenario == loaded
    assert made.chosen["compare"] != loaded.variant
    for field in loaded.changed().keys() - {*CONTROLS, "name", "variant"}:
        assert f"{field} =" in text(made.told["explained"])


def test_reset_undoes_all() -> None:
    own = mmlab.explore("no_thp", "v1-series", memory_mib=2, horizon_seconds=1.0, seed=3)
    start = own.scenario
    own._told(None, {"preset": "bimodal"}, [])
    assert own.scenario.seed == 1
    own.set(compare="legacy", memory_mib=4)
    own._told(None, {"preset": ""}, [])
    assert (own.scenario, own.chosen["compare"]) == (start, "v1-series")
    assert own.scenario.seed == 3
    assert list(own.runs) == ["mainline", "v1-series"]


def test_a_variant_of_your_own() -> None:
    def never(c: SplitContext) -> bool:
        """Never."""
        return False

    own = mmlab.explore(variant=never, compare="legacy", **SMALL)
    own.update()
    first, second = own.runs.values()
    assert list(own.runs) == ["never", "legacy"]
    assert (first.rows == second.rows).all()
    assert own.about["variants"]["never"] == "never: Never."
    assert "never : Never. (you; your own code)" in text(own.told["explained"])


def test_the_same_variant_twice(explorer: Explorer) -> None:
    explorer.set(compare="mainline")
    assert list(explorer.runs) == ["mainline", "mainline again"]
    first, second = explorer.shown["maps"]
    assert first["picture"] == second["picture"]


def test_fields_of_your_choice() -> None:
    made = mmlab.explore(controls=("migration_rate", "migration_huge_share"), memory_mib=2, horizon_seconds=1.0)
    assert list(made.about["fields"]) == ["migration_rate", "migration_huge_share"]
    json.dumps(made.about)
    with pytest.raises(UserError, match="did you mean"):
        mmlab.explore(controls=("migration_rat",))
    with pytest.raises(UserError, match="unknown variant"):
        mmlab.explore(compare="nobody's")
    with pytest.raises(UserError, match="regression_uzp1"):
        mmlab.explore("regression")


def test_explains_the_variants(explorer: Explorer) -> None:
    explorer.set(compare="v1-series")
    variant = VARIANTS["v1-series"]
    for words in (variant.summary, variant.who, variant.where):
        assert words in text(explorer.told["explained"])


def test_tells_the_history_of_a_page(explorer: Explorer) -> None:
    """… of the run whose map was clicked, until a control moves."""
    explorer.set(compare="ksm-opt-out")
    explorer._told(None, {"why": {"run": 1, "page": 3, "process": 0}}, [])
    assert explorer.told["history"].startswith("page 3 of process 0 under ksm-opt-out; at the end: ")
    explorer._told(None, {"why": {"run": 0, "page": 10**6, "process": 0}}, [])
    assert "page = 1000000 is not allowed" in explorer.told["error"]
    explorer.set(pages_to_scan=700)
    assert "history" not in explorer.told and "error" not in explorer.told


# --- taking it along ------------------------------------------------------------------------------------------------


def test_saves_a_params_file_once(explorer: Explorer, tmp_path: Path) -> None:
    def save(path: Path) -> str:
        explorer._told(None, {"save": str(path)}, [])
        return str(explorer.told["message"])

    explorer.use(Scenario.load(find_params("guests_activity")).replace(memory_mib=2), "legacy")
    path = tmp_path / "mine.yaml"
    assert save(path) == f"Saved as {path}"
    assert Scenario.load(path) == explorer.scenario
    content = path.read_text()
    assert "pages_to_scan: 1000 " in content
    explorer.set(pages_to_scan=5)
    assert save(path) == f"Not done: {path}: it exists and was left alone. Name another file."
    assert path.read_text() == content
    assert "cannot be written" in save(path / "within" / "a file.yaml")
    explorer.set(memory_mib=3)
    assert save(tmp_path / "wrong.yaml").startswith("Not done: memory_mib = 3")
    assert list(tmp_path.iterdir()) == [path]


def test_rich_scenarios_and_variants_of_your_own_are_taken_along(tmp_path: Path) -> None:
    rich = Scenario.load(find_params("qemu_guests"))
    path = save_new(tmp_path / "rich.yaml", rich.as_yaml())
    assert Scenario.load(path) == rich
    names: dict[str, Any] = {}
    exec(rich.as_python([]).partition("for variant")[0], names)
    assert names["scenario"] == rich.replace(variant="mainline")
    with pytest.raises(UserError, match="cannot name a function of yours"):
        rich.replace(variant="mine").as_yaml()


def test_copied_python_does_the_same(explorer: Explorer, capsys: pytest.CaptureFixture[str]) -> None:
    explorer.set(layout="random")
    exec(explorer.shown["code"], {})
    said = capsys.readouterr().out
    for name, run in explorer.runs.items():
        assert f"{name}\n{run.summary()}\n" in said


# --- the latest of what is asked ------------------------------------------------------------------------------------


class Work:
    """Requests that take a number of steps, and what became of them.

    A step lasts 10 ms at least; nothing depends on how much longer it lasts.
    """

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.dropped: list[str] = []
        self.started: list[str] = []
        self.shares: list[float] = []
        self.errors: list[Exception] = []
        self.latest = Requests(
            self.shown.append, lambda job: self.shares.append(-1 if job is None else job.share), self.errors.append
        )

    def ask(self, name: str, steps: float) -> None:
        """Ask for work; without an end if `steps` is infinite."""

        def work(job: Job) -> str:
            job.report("all", 0.0)
            self.started.append(name)
            step = 0
            try:
                while step < steps:
                    job.report("all", step / steps)
                    time.sleep(0.01)
                    step += 1
            except Dropped:
                self.dropped.append(name)
                raise
            return name

        self.latest.ask(work)

    async def done(self) -> None:
        assert self.latest.task is not None
        await asyncio.wait_for(self.latest.task, 60)


async def until(true: Callable[[], object]) -> None:
    """Wait for a state."""

    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), 60)


def test_while_a_slider_moves_there_is_something_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests never stop, and yet some are answered; at the end the last is, and each at most once, in order."""
    monkeypatch.setattr(requests, "PATIENCE", 60)
    work, asked = Work(), 0

    async def drag() -> None:
        nonlocal asked
        while len(work.shown) < 3:
            asked += 1
            work.ask(f"{asked:09}", 5)
            await asyncio.sleep(0.01)
        await work.done()

    asyncio.run(asyncio.wait_for(drag(), 60))
    assert work.shown[-1] == f"{asked:09}"
    assert work.shown == sorted(set(work.shown))
    assert work.started == work.shown, "one at a time"


def test_what_takes_long_is_dropped_for_something_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PATIENCE", 0.1)
    work = Work()

    async def ask() -> None:
        work.ask("endless", np.inf)
        await until(lambda: work.started)
        work.ask("newer", 1)
        await work.done()
        await until(lambda: work.dropped)

    asyncio.run(ask())
    assert (work.shown, work.dropped, work.errors) == (["newer"], ["endless"], [])


def test_a_mistake_ends_what_was_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is shown any more that belongs to older values."""
    monkeypatch.setattr(requests, "PATIENCE", 60)
    work = Work()

    async def ask() -> None:
        work.ask("endless", np.inf)
        await until(lambda: work.started)
        work.latest.ask(None)
        await work.done()
        await until(lambda: work.dropped)

    asyncio.run(ask())
    assert (work.started, work.shown, work.shares[-1]) == (["endless"], [], -1)


def test_the_loop_goes_on_listening() -> None:
    """While a request is computed in its thread, the event loop runs other tasks."""
    work, heard = Work(), threading.Event()

    async def ask() -> None:
        def long(job: Job) -> str:
            for step in range(3):
                job.report("all", step / 3)
                assert heard.wait(60), "only the event loop's thread sets it"
                heard.clear()
            return "long"

        work.latest.ask(long)
        task = work.latest.task
        while task and not task.done():
            await asyncio.sleep(0.001)
            heard.set()

    asyncio.run(ask())
    assert work.shown == ["long"]
    assert work.shares == [*sorted(work.shares[:-1]), -1], "progress grows, and ends"


def test_errors_are_shown_and_the_next_request_is_answered() -> None:
    work = Work()

    async def ask() -> None:
        def broken(_: Job) -> None:
            raise ValueError("no")

        work.latest.ask(broken)
        await work.done()
        work.ask("next", 1)
        await work.done()

    asyncio.run(ask())
    assert [str(error) for error in work.errors] == ["no"]
    assert work.shown == ["next"]


def test_without_an_event_loop_a_request_is_answered_at_once() -> None:
    work = Work()
    work.ask("first", 1)
    assert (work.shown, work.latest.task) == (["first"], None)


def test_in_a_notebook_s_loop(explorer: Explorer) -> None:
    """A moving slider there: the last value is shown, and a mistake ends all of it."""

    async def drag() -> None:
        for i in range(20):
            explorer.set(zero_fraction=0.9 - 0.03 * (i + 1))
            await asyncio.sleep(0.01)
        last = explorer.scenario
        while explorer.runs["mainline"].scenario != last:
            await asyncio.sleep(0.01)
        explorer.set(memory_mib=18)
        explorer.set(memory_mib=19)
        if explorer.requests.task:
            await explorer.requests.task

    asyncio.run(asyncio.wait_for(drag(), 60))
    assert "19 is not whole THPs" in explorer.told["wrong"]["memory_mib"]
    assert explorer.runs["mainline"].scenario.memory_mib == 16
    assert threading.active_count() < 20


def test_progress_of_what_takes_long(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job({"a": 1.0, "b": 0.5}, "compiling …")
    explorer._show_status(job)
    assert explorer.busy == {}, "not at once"
    monkeypatch.setattr("mmlab.explorer.explorer.PROGRESS", 0.0)
    explorer._show_status(job)
    assert explorer.busy == {"share": 0.75, "note": "compiling …"}
    explorer._show_status(None)
    assert explorer.busy == {}


def test_what_is_on_display_is_not_simulated_again(explorer: Explorer) -> None:
    before = explorer.runs["mainline"]
    explorer.set(compare="legacy")
    assert explorer.runs["mainline"] is before
    explorer.set(variant="legacy", compare="mainline")
    assert explorer.runs["mainline"] is before, "the variant that was simulated counts, not the scenario's"
    explorer.set(pages_to_scan=50)
    assert explorer.runs["mainline"] is not before
