"""The explorer without a browser: controls, pictures, tables, files, and the loop that computes the latest."""

from __future__ import annotations

import ast
import asyncio
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
from hypothesis import given
from hypothesis import strategies as st
from ipywidgets import ToggleButton
from PIL import Image

import mmlab
from conftest import ROOT
from mmlab import VARIANTS, Scenario, SplitContext, simulate
from mmlab.errors import UserError
from mmlab.explorer import comparison
from mmlab.explorer.comparison import CELLS, Figures, Frame
from mmlab.explorer.debounce import Debounce, Dropped, Job
from mmlab.explorer.explorer import CONTROLS, Explorer, Runs, flat_presets
from mmlab.explorer.widgets import Number, control, explained
from mmlab.figures import canvas
from mmlab.params import find_params, save_new
from mmlab.results.metrics import Metrics
from mmlab.results.run import Run
from mmlab.scenario import flat_fields

SMALL: dict[str, Any] = {"memory_mib": 16, "pages_to_scan": 100, "horizon_seconds": 20.0}


@pytest.fixture
def explorer() -> Explorer:
    """What a notebook shows, with little memory, computed."""
    made = mmlab.explore(**SMALL)
    made.update()
    return made


def text(html: str) -> str:
    return BeautifulSoup(html, "html.parser").get_text(" ", strip=True)


# --- controls -------------------------------------------------------------------------------------------------------


def test_controls_are_the_scenario_models() -> None:
    fields = flat_fields()
    for name in fields:
        made = control(fields[name], fields[name].default)
        assert made.value == fields[name].default
        tooltip = made.box.tooltip if isinstance(made, Number) else made.tooltip
        assert fields[name].help in tooltip
        assert fields[name].allowed in tooltip
        if isinstance(made, Number) and made.slider:
            low, high = fields[name].slider or (0, 0)
            ends = made.slider.min, made.slider.max
            log = fields[name].log and low > 0
            assert ends == pytest.approx((np.log10(low), np.log10(high)) if log else (low, high))
            assert (fields[name].low or 0) <= low < high <= (fields[name].high or 0)
            assert low <= fields[name].default <= high, "the default can be seen on the slider"
    assert explained(fields["pages_to_scan"]).endswith("(pages). Allowed: 0 … 4294967295")
    assert isinstance(control(fields["smart_scan"], 1), ToggleButton)
    assert control(fields["layout"], "random").options == tuple((c, c) for c in fields["layout"].choices)


@given(st.sampled_from([*CONTROLS, "processes", "migration_rate", "migration_huge_share"]), st.floats(0, 1))
def test_every_place_of_a_slider_is_allowed(name: str, share: float) -> None:
    """Wherever a slider stands, its value is one that the scenario takes, and it looks round."""
    about = flat_fields()[name]
    made = control(about, about.default)
    if isinstance(made, Number):
        assert made.slider is not None
        low, high = made.slider.min, made.slider.max
        at = low + share * (high - low)
        made.slider.value = 10**at if about.log and (about.slider or (0,))[0] > 0 else at
        assert (about.low or 0) <= made.value <= (about.high or 0)
        assert len(f"{made.value:g}".replace(".", "").strip("0")) <= 4
        Scenario(**{"horizon_seconds": 10.0, name: made.value})


def test_box_and_slider_follow_each_other() -> None:
    made = control(flat_fields()["memory_mib"], 1024)
    heard: list[float] = []
    made.observe(lambda change: heard.append(change["new"]), "value")
    made.slider.value = 333.3
    assert (made.value, made.box.value) == (330, 330)
    made.box.value = 20_001
    assert (made.value, made.slider.value) == (20_001, pytest.approx(4096)), "beyond the slider, as typed"
    made.value = 64
    assert (made.box.value, made.slider.value) == (64, pytest.approx(64))
    assert heard == [330, 20_001, 64]


def test_a_browser_that_rounds_to_the_slider_s_steps_changes_nothing() -> None:
    share = control(flat_fields()["zero_fraction"], 460 / 512)
    share.slider.value = 0.9
    assert share.value == 460 / 512
    share.slider.value = 0.91
    assert share.value == 0.91
    budget = control(flat_fields()["pages_to_scan"], 777)
    budget.slider.value = 10**2.9
    assert budget.value == 777


# --- what is shown --------------------------------------------------------------------------------------------------


def test_shows_what_simulate_gives(explorer: Explorer) -> None:
    """Label → run; every metric of both and the difference in the table; a sentence for each."""
    scenario = Scenario.load(find_params("regression_uzp1")).replace(**SMALL)
    assert list(explorer.runs) == ["mainline", "ksm-opt-out"]
    for name, run in explorer.runs.items():
        expected = simulate(scenario, variant=name)
        assert run.metrics == expected.metrics
        assert f"{name} gives back {expected.metrics.freed_mib:,.0f} of 16 MiB" in text(explorer.summary.value)
    rows = {
        row.th.get_text(): [cell.get_text() for cell in row.find_all("td")]
        for row in BeautifulSoup(explorer.table.value, "html.parser").select("tbody tr")
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
    for name in CELLS:
        size = Image.open(io.BytesIO(explorer.images[name].value)).size
        assert size == (canvas.WIDTH, canvas.HEIGHT) or "map" in name
        assert explorer.heads[name].value


def test_pictures_tell_the_same_again() -> None:
    """What is drawn does not depend on what was drawn before, but for how quickly."""
    scenario = Scenario(zero_fraction=0.5, duplicate_fraction=0.5, use_zero_pages=1, layout="random", **SMALL)
    one = {v: simulate(scenario, variant=v) for v in ("mainline", "legacy")}
    other = {v: simulate(scenario.replace(pages_to_scan=600, swap_mib=8), variant=v) for v in ("v1-series", "mainline")}
    figures = Figures()
    first = figures.draw(one, 20.0)
    assert figures.draw(other, 20.0) != first
    assert figures.draw(one, 20.0) == first
    assert Figures().draw(other, 20.0) == figures.draw(other, 20.0)
    assert figures.draw(one, 10.0) != first


# --- page maps through time -----------------------------------------------------------------------------------------


def frames_of(explorer: Explorer) -> list[Frame]:
    return explorer._frames(Job(explorer._frames, print))


def test_frames_are_the_page_maps_of_their_time(explorer: Explorer) -> None:
    runs = list(explorer.runs.values())
    every = [simulate(run.scenario, variant=run.variant, maps_at="all") for run in runs]
    frames = frames_of(explorer)
    times = [frame.time_s for frame in frames]
    assert times == sorted(times)
    assert 20 < len(times) <= comparison.MOMENTS + 1
    for frame in frames[:-1]:
        for run, batch, picture, pages in zip(every, frame.batches, frame.pictures, frame.pages, strict=True):
            (row,) = np.flatnonzero((run.rows["batch"] == batch) & (run.rows["rank"] == 0))
            later = run.rows["time_ns"][row + 1] / 1e9 if row + 1 < len(run.rows) else np.inf
            assert run.rows["time_ns"][row] / 1e9 <= frame.time_s < later
            letters = run.maps[batch, 0]
            assert picture == canvas.page_map_image(letters, 512)
            assert sum(pages.values()) == 16 * 256
            assert pages["H"] == (letters[0] == ord("H")).sum()
    assert frames[-1] == comparison.last_frame(explorer.runs)
    split = [len({frame.pages[0]["H"] for frame in frames}), len({frame.pages[1]["H"] for frame in frames})]
    assert min(split) >= 3, "most moments are where most happens"


def test_frames_are_fewer_where_memory_is_large(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MAP_BYTES", 5 * 16 * 256)
    assert len(frames_of(explorer)) == 6


def test_play_control(explorer: Explorer) -> None:
    """Disabled with the last page map until there are more; then each moment has its pictures and words."""
    assert (explorer.play.disabled, explorer.moment.max) == (True, 0)
    last = explorer.images["map 0"].value
    explorer.show_frames(frames_of(explorer))
    assert (explorer.play.disabled, explorer.moment.disabled) == (False, False)
    assert explorer.moment.value == explorer.moment.max == explorer.play.max
    assert explorer.images["map 0"].value == last
    explorer.moment.value = 0
    assert explorer.images["map 0"].value == explorer.frames[0].pictures[0] != last
    assert "Pages after 0.000 s" in text(explorer.caption.value)
    assert "after batch 0 0" in text(explorer.caption.value)
    assert "THP 4,096 4,096" in text(explorer.caption.value)
    explorer.controls["zero_fraction"].value = 0.5
    assert explorer.play.disabled, "these page maps are of another scenario"


# --- what a user does -----------------------------------------------------------------------------------------------


def seen(explorer: Explorer) -> dict[str, object]:
    """All that changes with a run."""
    return {name: image.value for name, image in explorer.images.items()} | {
        "table": explorer.table.value,
        "summary": explorer.summary.value,
        "code": explorer.code.value,
    }


def test_a_control_that_moves_changes_everything(explorer: Explorer) -> None:
    before = seen(explorer)
    explorer.controls["zero_fraction"].slider.value = 0.5
    assert explorer.scenario.zero_fraction == 0.5
    after = seen(explorer)
    assert [name for name in before if before[name] == after[name]] in ([], ["cpu"])
    assert {run.scenario.zero_fraction for run in explorer.runs.values()} == {0.5}


def test_mistakes_are_explained_where_the_figures_are(explorer: Explorer) -> None:
    shown = explorer.images["memory 0"].value
    explorer.controls["memory_mib"].box.value = 33
    assert text(explorer.error.value) == "memory_mib = 33 is not whole THPs of 2 MiB: it must be even, e.g. 34."
    assert "mmlab-old" in explorer.view._dom_classes
    assert "mmlab-wrong" in explorer.controls["memory_mib"]._dom_classes
    assert explorer.images["memory 0"].value == shown, "nothing goes, nothing jumps"
    with pytest.raises(UserError):
        _ = explorer.scenario
    explorer.controls["memory_mib"].box.value = 34
    assert explorer.error.value == ""
    assert "mmlab-old" not in explorer.view._dom_classes
    assert "mmlab-wrong" not in explorer.controls["memory_mib"]._dom_classes
    explorer.controls["memory_mib"].box.value = 2**24
    assert "GiB of simulated memory need" in text(explorer.error.value)
    explorer.controls["memory_mib"].box.value = 16
    explorer.controls["pages_to_scan"].box.value = 0
    explorer.controls["horizon_seconds"].box.value = 0.0
    assert "the run would never end" in text(explorer.error.value)


def test_an_error_inside_is_shown_too(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Run:
        raise ZeroDivisionError("somewhere")

    monkeypatch.setattr("mmlab.explorer.explorer.simulate", broken)
    explorer.controls["pages_to_scan"].value = 123
    assert text(explorer.error.value) == "ZeroDivisionError: somewhere"


@pytest.mark.parametrize("name", flat_presets())
def test_presets(name: str) -> None:
    """A preset sets the controls, and brings along what has none."""
    made = mmlab.explore(Scenario(memory_mib=2, horizon_seconds=1.0))
    asked: list[Job] = []
    made.requests._now = asked.append  # type: ignore[method-assign]
    made.preset.value = name
    assert asked
    loaded = Scenario.load(find_params(name))
    assert made.scenario == loaded
    assert made.controls["compare"].value != loaded.variant
    for field in loaded.changed().keys() - {*CONTROLS, "name", "variant"}:
        assert f"{field} =" in text(made.explained.value)


def test_reset_undoes_all() -> None:
    own = mmlab.explore("no_thp", "v1-series", memory_mib=2, horizon_seconds=1.0, seed=3)
    start = own.scenario
    own.preset.value = "bimodal"
    assert own.scenario.seed == 1
    own.controls["compare"].value = "legacy"
    own.controls["memory_mib"].value = 4
    own.reset.click()
    assert (own.scenario, own.controls["compare"].value, own.preset.value) == (start, "v1-series", "")
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
    assert ("never: Never.", "never") in own.controls["variant"].options
    assert "never : Never. (you; your own code)" in text(own.explained.value)


def test_the_same_variant_twice(explorer: Explorer) -> None:
    explorer.controls["compare"].value = "mainline"
    assert list(explorer.runs) == ["mainline", "mainline again"]
    assert explorer.images["memory 0"].value == explorer.images["memory 1"].value


def test_fields_of_your_choice() -> None:
    made = mmlab.explore(controls=("migration_rate", "migration_huge_share"), memory_mib=2, horizon_seconds=1.0)
    assert list(made.controls) == ["migration_rate", "migration_huge_share", "variant", "compare"]
    with pytest.raises(UserError, match="did you mean"):
        mmlab.explore(controls=("migration_rat",))
    with pytest.raises(UserError, match="unknown variant"):
        mmlab.explore(compare="nobody's")
    with pytest.raises(UserError, match="regression_uzp1"):
        mmlab.explore("regression")


def test_explains_the_variants(explorer: Explorer) -> None:
    explorer.controls["compare"].value = "v1-series"
    variant = VARIANTS["v1-series"]
    for words in (variant.summary, variant.who, variant.where):
        assert words in text(explorer.explained.value)


# --- taking it along ------------------------------------------------------------------------------------------------


def test_saves_a_params_file_once(explorer: Explorer, tmp_path: Path) -> None:
    explorer.use(Scenario.load(find_params("guests_activity")).replace(memory_mib=2), "legacy")
    path = tmp_path / "mine.yaml"
    explorer.path.value = str(path)
    explorer.save.click()
    assert text(explorer.message.value) == f"Saved as {path}"
    assert Scenario.load(path) == explorer.scenario
    content = path.read_text()
    assert "pages_to_scan: 1000 " in content
    explorer.controls["pages_to_scan"].value = 5
    explorer.save.click()
    assert text(explorer.message.value) == f"Not saved: {path}: it exists and was left alone. Name another file."
    assert path.read_text() == content
    explorer.path.value = str(tmp_path / "nowhere" / "mine.yaml")
    explorer.save.click()
    assert text(explorer.message.value).endswith("cannot be written: No such file or directory. Name another file.")
    explorer.path.value = str(tmp_path / "wrong.yaml")
    explorer.controls["memory_mib"].value = 3
    explorer.save.click()
    assert text(explorer.message.value).startswith("Not saved: memory_mib = 3")
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
    explorer.controls["layout"].value = "random"
    code = BeautifulSoup(explorer.code.value, "html.parser").pre
    assert code is not None
    assert code.get_text() == explorer.shown.code
    exec(code.get_text(), {})
    said = capsys.readouterr().out
    for name, run in explorer.runs.items():
        assert f"{name}\n{run.summary()}\n" in said


# --- the latest of what is asked ------------------------------------------------------------------------------------


class Work:
    """Jobs that take a number of steps, and what became of them. Requests are made by a job's own progress.

    A step lasts 10 ms at least; nothing depends on how much longer it lasts.
    """

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.dropped: list[str] = []
        self.started: list[str] = []
        self.shares: list[float] = []
        self.errors: list[Exception] = []
        self.latest = Debounce(lambda job: self.shares.append(-1 if job is None else job.share), self.errors.append)

    def job(self, name: str, steps: float, **how: Any) -> Job:
        """Return a job; without an end if `steps` is infinite."""

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

        return Job(work, self.shown.append, **how)

    async def done(self) -> None:
        assert self.latest.task is not None
        await asyncio.wait_for(self.latest.task, 60)


async def until(true: Callable[[], object]) -> None:
    """Wait for a state."""

    async def poll() -> None:
        while not true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), 60)


def test_while_a_slider_moves_there_is_something_to_see() -> None:
    """Requests never stop, and yet some are answered; at the end the last is, and each at most once, in order."""
    work, asked = Work(), 0

    async def drag() -> None:
        nonlocal asked
        while len(work.shown) < 3:
            asked += 1
            work.latest.ask(work.job(f"{asked:09}", 5, patience=60))
            await asyncio.sleep(0.01)
        await work.done()

    asyncio.run(asyncio.wait_for(drag(), 60))
    assert work.shown[-1] == f"{asked:09}"
    assert work.shown == sorted(set(work.shown))
    assert work.started == work.shown, "one at a time"


def test_what_takes_long_is_dropped_for_something_newer() -> None:
    work = Work()

    async def ask() -> None:
        work.latest.ask(work.job("endless", np.inf, patience=0.1), work.job("after it", 1))
        await until(lambda: work.started)
        work.latest.ask(work.job("newer", 1))
        await work.done()
        await until(lambda: work.dropped)

    asyncio.run(ask())
    assert (work.shown, work.dropped, work.errors) == (["newer"], ["endless"], [])


def test_a_job_has_its_patience() -> None:
    """What was asked before is shown once more, if that does not take too long; nothing follows it."""
    work = Work()

    async def ask() -> None:
        work.latest.ask(work.job("first", 20, patience=60), work.job("after it", 1))
        await until(lambda: work.started)
        work.latest.ask(work.job("newer", 1))
        await work.done()

    asyncio.run(ask())
    assert (work.shown, work.dropped) == (["first", "newer"], [])


def test_a_mistake_ends_what_was_asked_before() -> None:
    """Nothing is shown any more that belongs to older values."""
    work = Work()

    async def ask() -> None:
        work.latest.ask(work.job("endless", np.inf, patience=60))
        await until(lambda: work.started)
        work.latest.ask()
        await work.done()
        await until(lambda: work.dropped)

    asyncio.run(ask())
    assert (work.started, work.shown, work.shares[-1]) == (["endless"], [], -1)


def test_the_loop_goes_on_listening() -> None:
    """While a job works in its thread, the event loop runs other tasks."""
    work, heard = Work(), threading.Event()

    async def ask() -> None:
        def long(job: Job) -> str:
            for step in range(3):
                job.report("all", step / 3)
                assert heard.wait(60), "only the event loop's thread sets it"
                heard.clear()
            return "long"

        work.latest.ask(Job(long, work.shown.append))
        task = work.latest.task
        while task and not task.done():
            await asyncio.sleep(0.001)
            heard.set()

    asyncio.run(ask())
    assert work.shown == ["long"]
    assert work.shares == [*sorted(work.shares[:-1]), -1], "progress grows, and ends"


def test_jobs_follow_each_other_when_it_is_quiet() -> None:
    work = Work()

    async def ask() -> None:
        work.latest.ask(work.job("first", 1), work.job("then", 1, idle=3600))
        await until(lambda: work.shown)
        work.latest.ask(work.job("second", 1), work.job("then 2", 1, idle=0.1))
        await work.done()

    asyncio.run(ask())
    assert work.shown == ["first", "second", "then 2"]


def test_errors_are_shown_and_the_next_request_is_answered() -> None:
    work = Work()

    async def ask() -> None:
        def broken(_: Job) -> None:
            raise ValueError("no")

        work.latest.ask(Job(broken, print))
        await work.done()
        work.latest.ask(work.job("next", 1))
        await work.done()

    asyncio.run(ask())
    assert [str(error) for error in work.errors] == ["no"]
    assert work.shown == ["next"]


def test_without_an_event_loop_the_first_job_is_done_at_once() -> None:
    work = Work()
    work.latest.ask(work.job("first", 1), work.job("then", 1))
    assert (work.shown, work.latest.task) == (["first"], None)


def test_in_a_notebook_s_loop(explorer: Explorer) -> None:
    """A moving slider there: the last value is shown, then its page maps, and a mistake ends all of it."""

    async def drag() -> None:
        start = explorer.controls["zero_fraction"].value
        for i in range(20):
            explorer.controls["zero_fraction"].slider.value = start - 0.03 * (i + 1)
            await asyncio.sleep(0.01)
        last = explorer.scenario
        while explorer.play.disabled or explorer.shown is None or explorer.runs["mainline"].scenario != last:
            await asyncio.sleep(0.01)
        explorer.controls["memory_mib"].value = 18
        explorer.controls["memory_mib"].value = 19
        assert explorer.requests.task is not None
        await explorer.requests.task

    asyncio.run(asyncio.wait_for(drag(), 60))
    assert "19 is not whole THPs" in explorer.error.value
    assert explorer.runs["mainline"].scenario.memory_mib == 16
    assert threading.active_count() < 20


def test_progress_is_shown_of_what_takes_long(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmlab.explorer.layout.PROGRESS", 0.0)
    seen = []
    job = Job(print, print, note="")
    job.shares = {"a": 1.0, "b": 0.5}
    explorer.show_status(job)
    seen.append((explorer.bar.layout.visibility, explorer.bar.value, explorer.status.value))
    explorer.show_status(None)
    assert seen == [("visible", 0.75, "simulating …")]
    assert explorer.bar.layout.visibility == "hidden"
    assert explorer.status.value.startswith("simulated twice in")


def test_runs_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmlab.explorer.explorer.KEPT_PAGES", 3 * 512)
    runs, variant = Runs(), VARIANTS["mainline"]
    made = [runs.get(Scenario(memory_mib=2, horizon_seconds=0.1, seed=i), variant, lambda _: None) for i in range(4)]
    assert len(runs.kept) == 3
    again = runs.get(Scenario(memory_mib=2, horizon_seconds=0.1, seed=3, variant="legacy", name="x"), variant, print)
    assert again is made[3], "the variant asked for counts, not the scenario's own"
    assert runs.get(Scenario(memory_mib=2, horizon_seconds=0.1, seed=0), variant, lambda _: None) is not made[0]


def test_the_notebooks_cell_runs_by_itself() -> None:
    """Before the parameters cell above it has run, and with what it sets afterwards."""
    cells = json.loads((ROOT / "notebooks" / "00_explore.ipynb").read_text(encoding="utf-8"))["cells"]
    parameters, explorer = (
        next("".join(cell["source"]) for cell in cells if tag in cell["metadata"].get("tags", ()))
        for tag in ("parameters", "nbval-ignore-output")
    )
    *setting, last = ast.parse(explorer).body
    code = compile(ast.Module(setting, []), "cell", "exec")
    shown = compile(ast.Expression(last.value), "cell", "eval")  # type: ignore[attr-defined]
    alone: dict[str, Any] = {}
    exec(code, alone)
    assert eval(shown, alone).scenario == Scenario.load(find_params("regression_uzp1"))
    after: dict[str, Any] = {}
    exec(f"{parameters}\nmemory_mib = 16", after)
    exec(code, after)
    assert eval(shown, after).scenario.memory_mib == 16
