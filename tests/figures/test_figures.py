"""Figures: every axis says its unit, what is drawn is in a table, and the bytes are always the same."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.resources import files

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from mmlab import Run, Scenario, simulate
from mmlab.figures import charts, theme
from mmlab.figures import figures as plots
from mmlab.figures.notebook import tables_of
from mmlab.figures.theme import CELLS, KINDS
from mmlab.results import trace
from mmlab.variants import possible, truth_table

SCENARIO = Scenario(
    memory_mib=8, zero_fraction=0.75, duplicate_fraction=0.2, pages_to_scan=300, horizon_seconds=60, until_settled=True
)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {name: simulate(SCENARIO, variant=name) for name in ("mainline", "ksm-opt-out")}


@pytest.fixture(scope="module")
def recorded() -> trace.Trace:
    return trace.read(str(files("mmlab") / "recordings" / "long_mainline-su1_uzp0_zf90_thp100_pts500.json.gz"))


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def legend_of(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def below(ax: Axes) -> list[str]:
    """The legend of the figure."""
    (legend,) = plots.figure_of(ax).legends
    return [text.get_text() for text in legend.get_texts()]


def labels(ax: Axes) -> tuple[str, str]:
    return ax.get_xlabel(), ax.get_ylabel()


def numbers(figure: charts.OverTime, run: Run) -> pd.DataFrame:
    """The table of a figure that ends after 10 s."""
    return pd.DataFrame(figure.describe({"": run}, 10.0, theme.COLUMNS).tables[""])


def test_memory(runs: dict[str, Run]) -> None:
    run = runs["ksm-opt-out"]
    table = numbers(plots.memory, run)
    assert table[list(KINDS)].sum(axis=1).to_numpy() == pytest.approx(8), "every page is of one kind"
    assert (table >= 0).all(axis=None)
    allocated = table[["THP", "small pages", "KSM pages"]].sum(axis=1)
    assert allocated.iloc[-1] == run.samples["frames"].iloc[-1] / 256
    ax = plots.memory(run, until=1000)
    assert labels(ax)[1] == "memory (MiB)"
    assert ax.lines[0].get_xydata()[-1].tolist() == [1000, allocated.iloc[-1]], "drawn on as the run was left"


def test_side_by_side(runs: dict[str, Run]) -> None:
    panels = plots.side_by_side(plots.memory, runs)
    assert [panel.get_title(loc="left") for panel in panels] == list(runs)
    assert len({panel.get_ylim() for panel in panels}) == 1, "on one scale"
    assert plots.figure_of(panels).legends, "with one legend"


def test_side_by_side_on_own_scales() -> None:
    """Amounts of two units, beside each other."""
    few, many = (pd.DataFrame({"x": [top]}, ["a"]) for top in (1.0, 1000.0))
    panels = plots.side_by_side(plots.bars, {"THPs": few, "MiB": many}, "", sharex=False)
    assert [panel.get_xlim()[1] > 10 for panel in panels] == [False, True]


def test_side_by_side_tables() -> None:
    """Any drawer, a panel a table, in rows, with one legend; logarithmic steps with a marked value."""
    table = pd.DataFrame({"time (s)": [0.0, 1.0], "MiB": [4.0, 0.5], "run": "a"})
    panels = plots.side_by_side(
        plots.steps, dict.fromkeys("wxyz", table), "time (s)", "MiB", "run", marks={1: "one"}, log=True
    )
    assert len(plots.figure_of(panels).axes) == 6, "two rows of three, the last two empty"
    assert {panel.get_yscale() for panel in panels} == {"log"}
    ((low, high),) = {panel.get_ylim() for panel in panels}
    assert 0.25 < low < 0.5 < 4 < high < 8
    assert [text.get_text() for text in panels[0].texts] == ["one"]
    assert below(panels[0]) == ["a"]


def test_batches(runs: dict[str, Run]) -> None:
    for run in runs.values():
        mine = numbers(plots.batches, run)["freed"]
        assert mine.sum() == run.samples["frames"].iloc[0] - run.samples["frames"].iloc[-1]
        assert mine.max() == run.metrics.most_freed_by_batch
    ax = plots.batches(runs)
    assert labels(ax)[1] == "pages freed by one batch"
    assert legend_of(ax) == [*runs, "pages_to_scan = 300"]
    (budget,) = (line for line in ax.lines if line.get_label() == "pages_to_scan = 300")
    assert set(np.asarray(budget.get_ydata())) == {300}


def test_batches_without_a_budget() -> None:
    """pages_to_scan=0: nothing is freed, and there is no line on a logarithmic axis."""
    stopped = simulate(SCENARIO.replace(pages_to_scan=0, until_settled=False, horizon_seconds=1))
    ax = plots.batches({"stopped": stopped})
    assert not any(len(np.asarray(line.get_xdata())) for line in ax.lines)
    assert not ax.get_legend()


def test_batches_against_a_budget_that_changes() -> None:
    """The advisor turns pages_to_scan: the line follows it."""
    advised = simulate(SCENARIO.replace(advisor_mode="scan-time", advisor_min_pages_to_scan=50, horizon_seconds=5))
    budget = advised.rows["pages_to_scan"]
    assert len(np.unique(budget)) > 1
    line = plots.batches({"advised": advised}).lines[-1]
    assert line.get_label() == "pages_to_scan, advised"
    assert set(np.asarray(line.get_ydata())) == set(budget)


def test_counters(runs: dict[str, Run]) -> None:
    for run in runs.values():
        last = numbers(plots.counters, run).iloc[-1]
        assert last["really freed"] == pytest.approx(run.metrics.freed_mib)
        unseen = last["really freed"] - last["KSM counters"]
        assert unseen * 256 == pytest.approx(run.metrics.freed_unseen_pages)
    ax = plots.counters(runs)
    assert labels(ax)[1] == "memory (MiB)"
    assert len(legend_of(ax)) == 4
    looks = {(line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in ax.lines}
    assert len(looks) == 4, "told apart in grey"


def test_cpu(runs: dict[str, Run]) -> None:
    for run in runs.values():
        table = numbers(plots.cpu, run)
        end = min(10.0, run.rows["time_ns"][-1] / 1e9)
        used = np.interp(end, run.rows["time_ns"] / 1e9, run.rows["ksmd_cpu_ns"] / 1e9)
        assert table["percent"].sum() / 100 * 10 / 60 == pytest.approx(used)
    ax = plots.cpu(runs)
    assert labels(ax)[1] == "CPU of ksmd (% of one)"
    assert legend_of(ax) == list(runs)


def test_bars() -> None:
    table = pd.DataFrame({"counters": [0.0, 60.0], "frames": [6.0, np.nan]}, index=["mainline", "legacy"])
    ax = plots.bars(table, "rate (MiB/s)")
    assert ax.get_xlabel() == "rate (MiB/s)"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["mainline", "legacy"]
    hatches = [bars[0].get_hatch() for bars in ax.containers]
    assert len(set(hatches)) == 2, "told apart in grey"


def test_bars_with_errors() -> None:
    table = pd.DataFrame({"counters": [1.0, 60.0], "frames": [6.0, np.nan]}, index=["mainline", "legacy"])
    ax = plots.bars(
        table,
        "rate (MiB/s)",
        errors=pd.DataFrame({"counters": [0.0, 2.5], "frames": [0.02, np.nan]}, index=table.index),
    )
    assert [text.get_text() for text in ax.texts] == ["1.0", "60.0\xa0±\xa02.5", "6.00\xa0±\xa00.02", "0.0"]
    lines = [line for bars in ax.collections for line in bars.get_segments() if len(line)]
    assert [(line[0][0], line[1][0]) for line in lines] == [(57.5, 62.5), (pytest.approx(5.98), pytest.approx(6.02))]


def test_time_axes_say_how_sure_they_are(runs: dict[str, Run]) -> None:
    for ax in (plots.batches(runs), plots.counters(runs)):
        assert ax.get_xlabel() == plots.time_label(runs.values())
    slow = simulate(Scenario(memory_mib=64, zero_fraction=0.5, sleep_millisecs=0, horizon_seconds=2.0))
    free = simulate(slow.scenario.replace(costs="free", sleep_millisecs=20))
    assert re.fullmatch(r"simulated time \(s\), ± 0\.\d+ at its end", plots.memory(slow).get_xlabel())
    assert plots.memory(free).get_xlabel() == "simulated time (s)"


def test_overlay(recorded: trace.Trace) -> None:
    """Above, the kernel's points on the model's line; below, the differences: none, or those of another variant."""
    kernel = plots.recorded_samples(recorded)
    columns = {"rss_kb": "KiB", "pages_unshared": "pages"}
    pairs = {}
    for variant in ("mainline", "legacy"):
        model = plots.recorded_samples(trace.predict(recorded, variant))
        pairs[variant, f"kernel, {variant}"] = model, kernel
    panels = plots.overlay(dict([*pairs.items()][:1]), columns, "A title")
    assert [labels(panel) for panel in panels] == [
        *[("", unit) for unit in columns.values()],
        *[("batch", f"diff. {unit}") for unit in columns.values()],
    ]
    assert [panel.get_title(loc="left") for panel in panels] == [*columns, "", ""]
    data = plots.figure_of(panels)
    for panel, (column, _) in zip(panels, columns.items(), strict=False):
        line, points = panel.lines
        assert [*line.get_ydata()] == kernel[column].tolist()
        assert [*points.get_ydata()] == kernel[column].tolist()
    assert all((panel.lines[0].get_ydata() == 0).all() for panel in panels[2:])
    assert data.get_suptitle() == "A title"
    both = plots.overlay(pairs, columns)
    assert len({line.get_marker() for line in both[2].lines}) == 2, "told apart in grey"
    assert len({line.get_linestyle() for line in both[0].lines[::2]}) == 2
    assert [(line.get_ydata() == 0).all() for line in both[2].lines] == [True, False]
    (table,) = tables_of(plots.figure_of(both)).values()
    assert {"panel", "of", "batch", "rank", "model", "recorded"} == {*table}


def test_curves_and_their_crossings() -> None:
    x = np.array([1.0, 10.0, 100.0, 1000.0])
    curves = {"as x": x, "nothing": x * np.nan, "infinite": [1, 3, np.inf, np.inf], "both ways": [30, 3, 2, 20]}
    table = pd.concat([pd.DataFrame({"budget (pages)": x, "factor": y, "which": name}) for name, y in curves.items()])
    found = plots.crossings(table, "budget (pages)", "factor", 10, "which")
    assert found["which"].tolist() == ["as x", "both ways", "both ways"]
    assert found["budget (pages)"].tolist() == pytest.approx([10, 10**0.4771, 10**2.699], rel=1e-3)
    ax = plots.curves(table, "budget (pages)", "factor", "which", {10: "tenfold"}, at=10, log=True)
    assert labels(ax) == ("budget (pages)", "factor")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("∞") == 2
    assert "tenfold" in texts


def test_stacked_bars() -> None:
    table = pd.DataFrame({"by KSM": [3.0, 0.0], "by others": [1.0, np.nan]}, index=["mainline", "legacy"])
    ax = plots.bars(table, "remapped (MiB)", stacked=True)
    assert ax.get_xlabel() == "remapped (MiB)"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["mainline", "legacy"]
    assert ax.get_ylim() == (1.5, -0.5), "the first row is on top"
    assert [bar.get_x() for bars in ax.containers for bar in bars] == [0, 0, 3, 0]
    assert len({bars[0].get_hatch() for bars in ax.containers}) == 2, "told apart in grey"
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["3", "1"], "only where there is room"


def test_steps() -> None:
    time = [0.0, 1.0, 5.0]
    table = pd.concat(pd.DataFrame({"time (s)": time, "MiB": [4, 2, 0], "run": run}) for run in "ab")
    ax = plots.steps(table, "time (s)", "MiB", "run", until=4.0)
    assert labels(ax) == ("time (s)", "MiB")
    assert ax.get_xlim() == (0, 4)
    a, b = ax.lines
    assert a.get_linewidth() > b.get_linewidth(), "equal lines show both"
    marks = []
    for line in (a, b):
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert set(zip(x[(x == 0) | (x == 1)], y[(x == 0) | (x == 1)], strict=True)) == {(0, 4), (1, 4), (1, 2)}
        assert (y[x > 1] == 2).all()
        assert x.max() == 4, "until the end of the axis, not until 5"
        marks.append({*x[line.get_markevery()]})
    assert not marks[0] & marks[1], "markers beside each other"
    assert len(marks[0]) == len(marks[1]) == theme.MARKS
    short = plots.steps(table[table["time (s)"] < 5], "time (s)", "MiB", "run", until=4.0)
    assert all(np.asarray(line.get_xdata()).max() == 1 for line in short.lines), "none goes beyond its last point"


def test_verdict_table() -> None:
    names = {"index": ["a1 (MiB)", "a2 (s)"], "columns": ["V0", "V1"]}
    marks = pd.DataFrame([["+", "-"], ["=", "="]], **names)
    words = pd.DataFrame([["24", "0"], ["1.0", "1.0"]], **names)
    ax = plots.verdict_table(marks, marks, words)
    assert [text.get_text() for text in ax.texts] == ["24 +", "0 −", "1.0", "1.0"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["V0", "V1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a1 (MiB)", "a2 (s)"]


def test_verdict_table_with_signs_of_your_own() -> None:
    one = pd.DataFrame([["+", "-"]], index=["a1"], columns=["V0", "V1"])
    ax = plots.verdict_table(one, one, one, signs={"+": "better", "-": "worse"})
    assert below(ax) == ["better", "worse"]


def test_truth_table() -> None:
    table = truth_table(["mainline", "ksm-opt-out"])
    ax = plots.truth_table(table, [possible(context) for context in table.index])
    codes = np.ma.filled(np.ma.asarray(ax.collections[0].get_array(), float), np.nan).ravel()
    names = ["never" if np.isnan(code) else list(CELLS)[int(code)] for code in codes]
    assert Counter(names) == {True: 28 + 24, False: 4, "never": 2 * 4}, "ksmd does not split while KSM is off"
    assert ax.patch.get_hatch(), "contexts that cannot happen are hatched"
    assert [label.get_text() for label in ax.get_yticklabels()][:2] == ["mainline", "ksm-opt-out"]
    flags = [tick.get_text() for tick in ax.get_xticklabels()]
    assert flags[0] == "○\n○\n○", "the first context: three times no"
    assert flags[-1] == "●\n●\n●"
    (kept,) = tables_of(plots.figure_of(ax)).values()
    assert kept["name"].iloc[-1] == "caller=other, mergeable=True, ksm_running=True, shrink_underused=True"


def test_truth_table_with_words_in_it() -> None:
    table = truth_table(["mainline"])
    can = [possible(context) for context in table.index]
    ax = plots.truth_table(table, can, text=table.map(lambda _: 7), words=("seen", "not seen"))
    assert [text.get_text() for text in ax.texts].count("7") == 28, "not where it cannot happen"
    assert below(ax) == ["seen", "not seen", "cannot happen"]


def test_says_and_truth() -> None:
    table = pd.DataFrame({"sample": [0, 1, 2], "model": [0, 0, 0], "truth": [0, 9, 9], "recorded": [0, np.nan, 0]})
    panels = plots.says_and_truth({name: table.copy() for name in "abcd"})
    assert [panel.get_title(loc="left") for panel in panels] == list("abcd")
    assert {labels(panel) for panel in panels} == {("sample", "pages")}
    band, line, dots = panels[0].lines
    assert band.get_linewidth() > line.get_linewidth()
    assert band.get_ydata()[-1] == 9
    assert dots.get_linestyle() == "None"
    assert len(plots.figure_of(panels).axes) == 6, "whole rows, the last two panels empty"
    assert [panel.axison for panel in plots.figure_of(panels).axes] == [True] * 4 + [False] * 2
    assert set(tables_of(plots.figure_of(panels))["says_and_truth"]["panel"]) == set("abcd")


def test_maps_compared() -> None:
    kernel = np.frombuffer(b"H" * 8 + b"ZKAA", np.uint8)
    model = np.frombuffer(b"H" * 8 + b"ZKSN", np.uint8)
    panels = plots.maps_compared({"one": (kernel, model), "same": (kernel, kernel)}, pages_per_thp=4)
    titles = [panel.get_title(loc="left") for panel in panels]
    assert titles[:3] == ["kernel, one", "model, one", "2 pages differ, one"]
    assert titles[5] == "0 pages differ, same"
    shown = panels[2].images[0].get_array()
    assert shown is not None
    assert (shown == 17).all(axis=2).astype(int).tolist() == [[0] * 4, [0] * 4, [0, 0, 1, 1]]
    (legend,) = plots.figure_of(panels).legends
    assert [text.get_text()[0] for text in legend.get_texts()] == list("HAKZSN=!"), "each kind once"


def test_page_map(runs: dict[str, Run]) -> None:
    letters = runs["mainline"].page_map()
    table = plots.page_map_table(letters)
    assert table["pages"].sum() == 8 * 256
    assert table.loc["Z", "pages"] == runs["mainline"].samples["zeropage_entries"].iloc[-1]
    ax = plots.page_map(letters)
    assert labels(ax) == ("page within its block (4 KiB each)", "2 MiB block")


@pytest.mark.parametrize("draw", [plots.batches, plots.counters])
def test_same_bytes(draw: Callable[..., Axes], runs: dict[str, Run]) -> None:
    assert plots.png(draw(runs)) == plots.png(draw(runs))


def test_show_keeps_the_alternative_text(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, object] = {}
    monkeypatch.setattr("IPython.display.display", lambda data, **about: shown.update(about, data=data))
    plots.show(plots.batches(runs), "What it says", "Below it")
    assert shown["metadata"] == {"image/png": {"alt": "What it says", "caption": "Below it", "width": 922}}
    assert isinstance(shown["data"], dict)
    assert shown["data"]["text/plain"] == "What it says"
    assert not plt.get_fignums(), "the figure is closed"


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, str] = {}
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.update(data))
    data = pd.DataFrame({"a & b": [1234567, 2], "c": [1.25, np.nan], "d": ["x", "<y>"]}, index=["r", "s"])
    plots.table(data, "A caption", digits={"c": 2})
    assert "1,234,567" in shown["text/html"]
    assert "<td>1.25</td>" in shown["text/html"]
    assert "<td>–</td>" in shown["text/html"]
    assert "a &amp; b" in shown["text/html"]
    assert "&lt;y&gt;" in shown["text/html"]
    assert "<caption>A caption</caption>" in shown["text/html"]


def test_tradeoff() -> None:
    x, y = "CPU time (%)", "time (s)"
    table = pd.DataFrame({x: [1.0, 10.0, 80.0, 5.0, 50.0], y: [40.0, 4.0, 1.0, np.nan, 9.0]})
    table = table.assign(which=[*"aaa", *"bb"], budget=[50, 500, 9000, 10, 20])
    ax = plots.tradeoff(table, x, y, "which", "budget", (20.0, 10.0))
    assert labels(ax) == (x, y)
    assert [text.get_text() for text in ax.texts] == ["50", "9,000", "20"], "every other point that has a time"
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "the goal"]
    corner = ax.collections[0].get_paths()[0].get_extents()
    assert (corner.x1, corner.y1) == (20, 10)
    assert len({(line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 2, "told apart in grey"
    nothing = plots.tradeoff(table.iloc[3:4], x, y, "which", "budget", (20.0, 10.0))
    assert not nothing.texts


def test_blocks() -> None:
    letters = np.full((3, 2, 4), ord("A"), np.uint8)
    letters[0] = ord("H")
    letters[1, 0, :3] = ord("Z")
    letters[2, 1] = ord("H")
    letters[2, 0] = [ord(c) for c in "HHHA"]
    time = np.array([0.0, 1.0, 4.0])
    table = plots.blocks_table(time, letters)
    assert table.to_numpy().tolist() == [["H", "H"], ["Z", "A"], ["A", "H"]], "a THP is whole or none"
    assert table.index.tolist() == [0, 1, 4]
    ax = plots.blocks((time, letters))
    assert labels(ax) == ("simulated time (s)", "2 MiB block")
    (again,) = ax.lines
    assert again.get_xydata().tolist() == [[4, 1.5]], "a triangle where a block has become huge again"
    legend = ax.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["collapsed", "H  THP", "A  mostly small page", "Z  mostly shared zeropage"]
    assert {text.get_text() for text in ax.texts} == {"H", "A", "Z"}, "letters, for a print in grey"
    plots.blocks((time[:1], letters[:1]))


def test_heat() -> None:
    """One scale over all panels, numbers in the fields, signs where there are differences, the tables remembered."""
    first = pd.DataFrame([[0.0, 10.0], [np.nan, 2.5]], [0.0, 1.0], [100, 1000])
    first = first.rename_axis("thp_coverage").rename_axis("pages_to_scan (pages)", axis=1)
    tables = {"one": first, "two": first / 2, "three": -first}
    panels = plots.heat(tables, "freed_rate (MiB/s)", signed=True)
    assert [panel.get_title("left") for panel in panels] == list(tables)
    assert [text.get_text() for text in panels[0].texts] == ["+0", "+10", "+2.5"]
    assert {panel.collections[0].get_clim() for panel in panels} == {(-10.0, 10.0)}
    assert panels[0].get_ylabel() == "thp_coverage"
    assert panels[2].get_xlabel() == "pages_to_scan (pages)"
    assert [tick.get_text() for tick in panels[2].get_xticklabels()] == ["100", "1000"]
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    assert "freed_rate (MiB/s)" in [ax.get_ylabel() for ax in figure.axes]
    (alone,) = plots.heat({"one": first}, "freed")
    assert alone.collections[0].get_clim() == (0.0, 10.0)
    assert [text.get_text() for text in alone.texts] == ["0", "10", "2.5"]
    (many,) = plots.heat({"many": 123.4 * first}, "freed", digits=4)
    assert [text.get_text() for text in many.texts] == ["0", "1,234", "308.5"]
    plots.heat({"nothing": first * 0}, "freed")
    plots.heat({"none": first * np.nan}, "freed")


def test_crossings_are_in_the_order_of_the_curves() -> None:
    """pandas' default sort is not stable, and differs between processors."""
    names = ["25 %", "50 %", "75 %", "90 %"]
    rows = [{"of": name, "x": x, "y": 30.0 / x} for name in names for x in (100, 50, 20, 10, 5, 2, 1)]
    assert plots.crossings(pd.DataFrame(rows), "x", "y", 10, "of")["of"].tolist() == names
