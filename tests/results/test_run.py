"""Metrics, computed a second time from their definitions and from rows alone."""

from __future__ import annotations

import signal
import subprocess
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmlab.errors import KSM_COUNTERS
from mmlab.host.dump import parse
from mmlab.kernel.state import ANON, PMD_HUGE
from mmlab.results.baseline import born
from mmlab.results.metrics import METRICS, Metrics
from mmlab.results.run import Interrupted, Run, defer_ctrl_c, simulate
from mmlab.scenario import Scenario


def scenario(*events: dict[str, Any], **fields: Any) -> Scenario:
    """4 MiB, half of it zero-filled."""
    setting = {"memory_mib": 4, "zero_fraction": 0.5, "horizon_seconds": 1.0, "costs": "free"}
    return Scenario(**{**setting, **fields}, events=events)  # type: ignore[arg-type]


def metrics_of_rows(run: Run) -> dict[str, Any]:
    """The metrics from their definitions, of rows that were not thinned out; events must not set run to 2."""
    rows, pages_per_mib = run.rows, 256
    merged = rows["pages_sharing"] + rows["ksm_zero_pages"]
    end = len(rows) - 1
    passes = [i for i in range(1, len(rows)) if rows["full_scans"][i] > rows["full_scans"][i - 1]]
    state = np.stack(
        [
            rows[name]
            for name in (
                "frames",
                "pages_shared",
                "pages_sharing",
                "ksm_zero_pages",
                "thp_split_page",
                "changed_checksums",
            )
        ]
    )
    settled = None
    for before, now in pairwise(passes):
        if (state[:, before] != state[:, now]).any():
            settled = None
        elif settled is None and rows["pages_skipped"][before] == rows["pages_skipped"][now]:
            settled = now
    if passes and (state[:, passes[-1]] != state[:, end]).any():
        settled = None
    until, first = settled or end, passes[0] if passes else end
    frames = rows["frames"] - born(run)[0]
    seconds = (rows["time_ns"][until] - rows["time_ns"][first]) / 1e9
    rates = (
        [None, None]
        if seconds == 0
        else [
            (merged[until] - merged[first]) / pages_per_mib / seconds,
            (frames[first] - frames[until]) / pages_per_mib / seconds,
        ]
    )
    freed = frames[0] - frames[end]
    by_batch = [
        rows["frames"][i - 1] - rows["frames"][i] for i in range(1, end + 1) if rows["batch"][i] > rows["batch"][i - 1]
    ]
    most, last = max([0, *by_batch]), rows[end]
    return {
        "merge_rate": rates[0],
        "freed_rate": rates[1],
        "freed_mib": freed / pages_per_mib,
        "freed_unseen_pages": max(0, freed - (merged[end] - merged[0])),
        "most_freed_by_batch": most,
        "most_freed_per_budget": most / run.scenario.pages_to_scan,
        "wasted_visits_share": 100 * last["wasted_visits"] / max(1, last["pages_scanned"]),
        "ksmd_cpu_ms": last["ksmd_cpu_ns"] / 1e6,
        "ksmd_cpu_percent": 100 * last["ksmd_cpu_ns"] / last["time_ns"],
        "thps_left": (run.machine.block["pmd"] == PMD_HUGE).sum(),
        "thps_split": last["thp_split_page"],
        "failed_splits": last["thp_split_page_failed"],
        "zero_pages_left": len(
            {
                int(f)
                for f, key, kind in zip(
                    run.machine.page["frame"], run.machine.page["key"], run.machine.pte["kind"], strict=True
                )
                if kind == ANON and key == 0
            }
        ),
        "full_scans": len(passes),
        "settled_s": None if settled is None else rows["time_ns"][settled] / 1e9,
        "settled_full_scans": None if settled is None else passes.index(settled) + 1,
        "thps_split_per_hour": last["thp_split_page"] * 3600e9 / last["time_ns"],
        "collapses_per_hour": last["pages_collapsed"] * 3600e9 / last["time_ns"],
        "pages_collapsed": last["pages_collapsed"],
        "memory_swing_mib": np.ptp(rows["frames"][passes[0] :]) / pages_per_mib if passes else None,
        "khugepaged_cpu_ms": last["khugepaged_cpu_ns"] / 1e6,
        "thps_lost_per_mib": last["thp_split_page"] / (merged[end] / pages_per_mib) if merged[end] else None,
        "zeropages_by_ksm": last["zeropages_by_ksm"],
        "zeropages_by_shrinker": last["zeropages_by_shrinker"],
        "zeropages_by_other": last["zeropages_by_other"],
        "swapped_out_mib": last["pswpout"] / pages_per_mib,
        "thps_split_per_gib_scanned": (
            last["thp_split_page"] / (last["pages_scanned"] / 2**18) if last["pages_scanned"] else None
        ),
    }


def write(batch: int, key: int = 3) -> dict[str, Any]:
    return {"after": {"batch": batch}, "op": "write", "page": 0, "count": 600, "key": key}


MEASURED = {
    "unsettled": scenario(horizon_seconds=0.5),
    "settled": scenario(until_settled=True),
    "goes on after": scenario(horizon_seconds=20.0, costs="epyc-6.18"),
    "legacy": scenario(horizon_seconds=9.0, variant="legacy"),
    "zero pages": scenario(horizon_seconds=9.0, variant="legacy", use_zero_pages=1),
    "duplicates": scenario(horizon_seconds=9.0, duplicate_fraction=0.7, duplicate_groups=30, layout="random"),
    "disturbed": scenario(write(100), write(300, 0), horizon_seconds=20.0, smart_scan=0),
    "disturbed at the end": scenario(write(399), horizon_batches=402, horizon_seconds=0.0, smart_scan=0),
    "unmapped in pass 1": scenario(
        {"after": {"batch": 2}, "op": "dontneed", "page": 512, "count": 512}, horizon_seconds=9.0
    ),
    "khugepaged": scenario(horizon_seconds=9.0, khugepaged=1, khugepaged_scan_sleep_millisecs=500, use_zero_pages=1),
    "pressure and migration": scenario(
        horizon_seconds=9.0,
        pressure_rate=0.4,
        migration_rate=2.0,
        max_ptes_none=0,
        migration_huge_share=0.0,
        run=0,
        shrink_underused=1,
        memory_mib=16,
    ),
    "swapped": scenario(
        {"after": {"batch": 60}, "op": "pageout", "page": 0, "count": 1024},
        swap_mib=16,
        duplicate_fraction=0.1,
        horizon_seconds=9.0,
    ),
    "guests": scenario(
        processes=3,
        boot_interval_seconds=2.0,
        lifetime_seconds=3.5,
        horizon_seconds=9.0,
        balloon_fraction=0.5,
        balloon_seconds=1.0,
        hot_fraction=0.2,
        smart_scan=0,
    ),
    "without a pass": scenario(horizon_seconds=0.1),
    "forked": scenario({"after": {"batch": 20}, "op": "fork"}, horizon_seconds=9.0, variant="v1-series"),
}


@pytest.mark.parametrize("name", MEASURED)
def test_metrics_are_what_they_say(name: str) -> None:
    run = simulate(MEASURED[name])
    got = run.metrics.as_dict()
    for metric, expected in metrics_of_rows(run).items():
        assert got.pop(metric) == (None if expected is None else pytest.approx(expected, rel=1e-12)), metric
    assert not got


def test_metrics_of_all_kinds() -> None:
    """The cases above have some of each."""
    metrics = {name: simulate(asked).metrics for name, asked in MEASURED.items()}
    assert metrics["khugepaged"].pages_collapsed > 0 and metrics["khugepaged"].zeropages_by_ksm > 0
    assert metrics["pressure and migration"].zeropages_by_shrinker > 0
    assert metrics["pressure and migration"].zeropages_by_other > 0
    assert metrics["swapped"].swapped_out_mib > 0
    assert (metrics["guests"].memory_swing_mib or 0) > 4
    assert metrics["without a pass"].memory_swing_mib is None


def test_settled_is_not_always() -> None:
    """The cases above are of both kinds."""
    settled = {name: simulate(asked).metrics.settled_s is not None for name, asked in MEASURED.items()}
    assert {settled["settled"], settled["goes on after"], settled["disturbed"]} == {True}
    assert {settled["unsettled"], settled["without a pass"], settled["disturbed at the end"]} == {False}


def test_every_metric_is_described() -> None:
    run = simulate(MEASURED["settled"])
    assert list(Metrics.describe()) == list(run.metrics.as_dict())
    assert all(what for _, what in Metrics.describe().values())
    lines = run.summary().partition("\n\n")[2].splitlines()
    hourly = {"thps_split_per_hour", "collapses_per_hour"}
    assert [line.split()[0] for line in lines] == [name for name in Metrics.describe() if name not in hourly]
    long = simulate(Scenario(memory_mib=2, horizon_seconds=600.0)).summary()
    assert hourly < {line.partition(" ")[0] for line in long.splitlines()}
    assert lines[2].split() == ["freed_mib", f"{run.metrics.freed_mib:,.2f}", "MiB"]
    unsettled = [line.split() for line in simulate(MEASURED["unsettled"]).summary().splitlines()]
    assert ["settled_full_scans", "-", "full", "scans"] in unsettled


def test_counters_come_first_and_leave_out_the_time_without_ksm() -> None:
    """KSM runs for 3 of 10 s; a full scan of 1,536 pages takes 15 or 16 batches of 24 ms and ksmd's CPU time."""
    events = [{"after": {"seconds": at}, "op": "set", "knob": "run", "value": value} for at, value in ((5, 1), (8, 0))]
    asked = Scenario(memory_mib=6, duplicate_fraction=0.5, run=0, smart_scan=0, horizon_seconds=10.0, events=events)
    run = simulate(asked)
    last = run.samples.iloc[-1]
    assert last.run_ns == pytest.approx(3e9, abs=3e7)
    said = {line[:18].strip(): line[18:].split() for line in run.summary().partition("\n\n")[0].splitlines()}
    assert said["simulated time"] == ["10.00", "s"]
    assert said["full_scans"] == [str(last.full_scans)]
    assert float(said["last full scan"][0]) == pytest.approx(15.4 * 0.024, rel=0.1)
    assert said["pages_sharing"] == [f"{last.pages_sharing:,}", "pages", f"{last.pages_sharing / 256:.2f}", "MiB"]
    assert said["general_profit"][:2] == [f"{last.general_profit:,}", "bytes"]
    assert said["AnonHugePages"][:2] == [f"{last.anonhugepages_kb:,}", "kB"]
    assert said["ksmd's CPU"][0] == f"{100 * last.ksmd_cpu_ns / last.run_ns:.2f}"
    assert set(said) > KSM_COUNTERS
    never = simulate(asked.replace(events=())).counters().splitlines()
    assert never[-1].split()[:3] == ["ksmd's", "CPU", "-"]


def test_samples_have_the_knobs_as_they_were() -> None:
    """Set by events, by the clock and by the advisor; also where rows are thinned out."""
    values = {"sleep_millisecs": 40, "use_zero_pages": 1, "smart_scan": 0, "advisor_mode": "scan-time"}
    events = [
        {"after": {"seconds": 10 + i}, "op": "set", "knob": knob, "value": value}
        for i, (knob, value) in enumerate(values.items())
    ]
    whole = Scenario(memory_mib=4, ksm_start_seconds=5.0, horizon_seconds=400.0, events=events)
    for asked in (whole, whole.replace(sample_limit=100)):
        samples = simulate(asked).samples
        time = samples["time_s"]
        assert {"run", "pages_to_scan", "max_page_sharing", "merge_across_nodes", *values} < set(samples)
        assert (samples["run"] == (time >= 5)).mean() > 0.98
        for i, (knob, value) in enumerate(values.items()):
            assert (samples[knob][time < 10 + i] == getattr(asked, knob)).all()
            assert (samples[knob][time > 10 + i] == value).all()
        assert samples["pages_to_scan"].nunique() > 1, "the advisor's"
    assert len(samples) == 100


def test_the_state_at_a_time_is_not_thinned_out() -> None:
    asked = Scenario(memory_mib=4, zero_fraction=0.5, horizon_seconds=60.0, pressure_rate=1.0)
    whole = simulate(asked)
    times = [0.5, 1.0, 7.77, 30.0, 59.99, 60.0]
    run = simulate(asked.replace(sample_limit=100), samples_at=times)
    assert len(run.rows) <= 100 + len(times) < len(whole.rows) / 10
    expected = [[row for row in whole.rows if row["time_ns"] <= at * 1e9][-1].tobytes() for at in times]
    assert [run.rows[i].tobytes() for i in run.rows_at(times)] == expected
    assert (np.diff(run.rows["time_ns"]) >= 0).all()
    assert [run.counters(at).count("full_scans") for at in (times, [*times, 2, 3])] == [1, 2], "beside each other"


@pytest.mark.parametrize(("kernel", "files"), [("6.1", 14), ("6.6", 17), ("6.18", 24)])
def test_sysfs_is_what_grep_prints(kernel: str, files: int) -> None:
    run = simulate(Scenario(memory_mib=4, zero_fraction=0.5, kernel=kernel, use_zero_pages=1, horizon_seconds=5.0))
    lines = run.sysfs().splitlines()
    assert len(lines) == files
    assert lines == sorted(lines, key=lambda line: line.partition(":")[0])
    assert ("/sys/kernel/mm/ksm/advisor_mode:[none] scan-time" in lines) == (kernel == "6.18")
    (dump,) = parse(run.sysfs())
    last = run.samples.iloc[-1]
    assert len(dump.values) == files
    assert dump.values == {name: last[name] for name in dump.values}


def test_sysfs_is_what_this_kernel_has() -> None:
    if not Path("/sys/kernel/mm/ksm/advisor_mode").is_file():
        pytest.skip("this kernel has no KSM, or is older than 6.8")
    done = subprocess.run("grep . /sys/kernel/mm/ksm/*", shell=True, capture_output=True, text=True, check=True)
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    run = simulate(Scenario(memory_mib=2, kernel="6.18", horizon_seconds=1.0))
    assert [line.partition(":")[0] for line in run.sysfs().splitlines()] == names


def test_ctrl_c_loses_nothing() -> None:
    """The run up to there comes with the exception, and the handler that was there before is there again."""
    asked = Scenario(memory_mib=64, pages_to_scan=16384, horizon_seconds=60.0)
    whole = simulate(asked)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    calls = []

    def progress(share: float) -> None:
        calls.append(share)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(Interrupted, match=r"stopped after [0-9.]+ s") as caught, defer_ctrl_c() as interrupted:
            simulate(asked, progress=progress, interrupted=interrupted)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    run = caught.value.run
    assert len(calls) == 2
    assert 1 < len(run.rows) < len(whole.rows)
    assert (run.rows == whole.rows[: len(run.rows)]).all()
    assert run.machine.stat["batch"][0] == run.rows["batch"][-1]


def test_what_is_known_of_a_metric() -> None:
    assert METRICS["freed_mib"].better == "more" and METRICS["ksmd_cpu_percent"].relative
    assert METRICS["most_freed_per_budget"].good_enough == 1.0
    assert {metric.better for metric in METRICS.values()} == {"more", "less", None}
    assert (METRICS["settled_s"].kind, METRICS["settled_full_scans"].kind, METRICS["thps_left"].kind) == (
        float,
        int,
        int,
    )
    for name, metric in METRICS.items():
        value = getattr(simulate(MEASURED["khugepaged"]).metrics, name)
        assert value is None or type(value) is metric.kind, name
    with pytest.raises(AttributeError, match="no metric 'freed'"):
        _ = simulate(MEASURED["settled"]).metrics.freed


def test_metrics_outlive_their_run_only_if_held() -> None:
    """A run holds no cycle: its memory goes with it."""
    run = simulate(MEASURED["settled"])
    assert run.metrics.freed_mib == run.metrics.freed_mib and run.uncertainty is not None
    machine = weakref.ref(run.machine)
    del run
    assert machine() is None
