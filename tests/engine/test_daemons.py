"""Timers: when each acts, what it does, and that a run with all of them is the same again."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest

import conservation
from conftest import ROOT
from mmlab.engine.daemons import WRITTEN
from mmlab.errors import UserError
from mmlab.kernel.state import ANON, NONE
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario

SECOND = 1_000_000_000


def scenario(*events: dict[str, Any], **fields: Any) -> Scenario:
    """4 MiB of two THPs, half of each zero-filled; ksmd does not run, a tick is 4 ms, steps cost no time."""
    setting = {"memory_mib": 4, "zero_fraction": 0.5, "horizon_seconds": 10.0, "costs": "free", "run": 0}
    return Scenario(**{**setting, **fields}, events=events)  # type: ignore[arg-type]


def put(seconds: float, knob: str, value: int | str) -> dict[str, Any]:
    return {"after": {"seconds": seconds}, "op": "set", "knob": knob, "value": value}


def ms(*times: float) -> list[int]:
    return [round(t * 1_000_000) for t in times]


def acted(run: Run) -> list[int]:
    """When something happened, ns: the rows but the start's and the end's."""
    return run.rows["time_ns"][1:-1].tolist()


# --- khugepaged -----------------------------------------------------------------------------------------------------


def test_khugepaged_sleeps_whole_ticks() -> None:
    """A burst after each sleep: 100 ms are 25 ticks, and it wakes at the next one."""
    run = simulate(scenario(khugepaged=1, khugepaged_scan_sleep_millisecs=100, horizon_seconds=0.5))
    assert acted(run) == ms(104, 208, 312, 416)
    run = simulate(scenario(khugepaged=1, khugepaged_scan_sleep_millisecs=0, horizon_seconds=0.02))
    assert acted(run) == ms(4, 8, 12, 16)


def test_khugepaged_bursts_take_it_time_but_not_ksmd() -> None:
    """8 ranges of 512 entries at 10 ns are 41 µs: a burst that begins at a tick sleeps from then."""
    fields = {"khugepaged": 1, "memory_mib": 16, "khugepaged_scan_sleep_millisecs": 4, "costs": "epyc-6.18"}
    split = {"after": {"seconds": 0.0}, "op": "split_all"}
    run = simulate(scenario(split, **fields, horizon_seconds=0.1))
    bursts = run.rows[1:][np.diff(run.rows["khugepaged_cpu_ns"]) > 0]
    assert run.rows["khugepaged_cpu_ns"][-1] > 0
    assert len(bursts) and (bursts["time_ns"] % ms(4)[0] == 0).all()
    assert (run.rows["ksmd_cpu_ns"] == 0).all()


def test_khugepaged_wakes_when_told() -> None:
    """A write to khugepaged or to its sleep wakes it at once, also one of the same value; 0 stops it."""
    sleep = "khugepaged_scan_sleep_millisecs"
    run = simulate(
        scenario(
            put(0.05, sleep, 200),
            put(0.1, "khugepaged", 1),
            put(0.15, sleep, 200),
            put(0.16, "pages_to_scan", 7),
            put(0.4, "khugepaged", 0),
        )
    )
    assert acted(run) == ms(50, 100, 100, 150, 150, 160, 352, 400)


def test_khugepaged_collapses_what_ksmd_split() -> None:
    fields = {"run": 1, "use_zero_pages": 1, "pages_to_scan": 1000, "horizon_seconds": 60.0}
    without, run = simulate(scenario(**fields)), simulate(scenario(**fields, khugepaged=1))
    assert without.rows["pages_collapsed"][-1] == 0
    assert run.metrics.pages_collapsed > 2 and run.metrics.thps_split > without.metrics.thps_split
    conservation.check(simulate(scenario(put(60, "run", 1), **fields, khugepaged=1)))


# --- pressure and migration -----------------------------------------------------------------------------------------


def test_pressure_adds_up_fractions() -> None:
    """Half a folio a second: one every two seconds leaves the queue of 8."""
    run = simulate(scenario(memory_mib=16, pressure_rate=0.5, max_ptes_none=0))
    assert acted(run) == [s * SECOND for s in (2, 4, 6, 8, 10)][: len(acted(run))]
    assert run.rows["deferred_queue_len"].tolist()[:5] == [8, 7, 6, 5, 4]
    assert run.rows["deferred_queue_len"][-1] == 3
    assert run.metrics.zeropages_by_shrinker == 5 * 256
    more = simulate(scenario(memory_mib=16, pressure_rate=2.5, max_ptes_none=0))
    assert more.rows["deferred_queue_len"].tolist()[:5] == [8, 6, 3, 1, 0]


@pytest.mark.parametrize("huge", [0.0, 1.0])
def test_migration(huge: float) -> None:
    """3 MiB/s are 1, 3, 4, 6, … blocks; without a huge page to move to, each THP is split once."""
    run = simulate(scenario(memory_mib=64, migration_rate=3.0, migration_huge_share=huge, horizon_seconds=4.0))
    assert acted(run) == [s * SECOND for s in (1, 2, 3, 4)][: len(acted(run))]
    if huge:
        assert run.rows["pgmigrate_success"].tolist()[:5] == [512 * n for n in (0, 1, 3, 4, 6)]
        assert run.metrics.thps_split == 0
    else:
        assert run.rows["thp_migration_split"][:3].tolist() == [0, 1, 3]
        assert run.metrics.thps_split == run.rows["thp_migration_split"][-1]
        assert run.metrics.zeropages_by_other == 256 * run.metrics.thps_split
    some = simulate(scenario(memory_mib=64, migration_rate=64.0, migration_huge_share=0.5, horizon_seconds=1.0))
    assert 0 < some.metrics.thps_split < 32


# --- programs that write --------------------------------------------------------------------------------------------


def test_each_hot_page_is_written_once_a_period() -> None:
    """20 ticks a second; after a period every page that was not zero-filled has new content, after half of it half."""
    for seconds, share in ((0.04, 0), (0.5, 0.5), (1.0, 1), (2.0, 1)):
        run = simulate(scenario(hot_fraction=1.0, horizon_seconds=seconds))
        key = run.machine.page["key"].reshape(2, 512)
        assert (key[:, :256] == 0).all(), "nobody writes to zero-filled pages"
        written = key[:, 256:][key[:, 256:] >= WRITTEN]
        assert len(written) == 512 * share and len(np.unique(written)) == len(written)
    ticks = simulate(scenario(hot_fraction=1.0, horizon_seconds=1.0))
    assert sorted({*acted(ticks), SECOND}) == ms(*range(50, 1001, 50))


def test_a_process_may_have_hot_pages_of_its_own() -> None:
    specs = [{"pages": 512, "contents": [[i * 1000 + 1, 512, 1]], "hot_fraction": i / 2} for i in range(3)]
    run = simulate(Scenario(process_list=specs, thp_coverage=0.0, hot_fraction=1.0, horizon_seconds=1.0, run=0))
    key, base = run.machine.page["key"], [int(run.machine.mm[i + 1]["base"]) for i in range(3)]
    assert [int((key[b : b + 512] >= WRITTEN).sum()) for b in base] == [0, 256, 512]


def test_hot_warm_and_cold() -> None:
    fields = {"hot_fraction": 0.25, "warm_fraction": 0.5, "hot_period_seconds": 0.1, "warm_period_seconds": 5.0}
    one = simulate(scenario(**fields, horizon_seconds=5.0)).machine.page["key"].copy()
    two = simulate(scenario(**fields, horizon_seconds=5.2)).machine.page["key"].copy()
    later = simulate(scenario(**fields, horizon_seconds=10.0)).machine.page["key"].copy()
    assert ((one < WRITTEN) & (one > 0)).sum() == 128 and (one >= WRITTEN).sum() == 384
    assert ((one != two) & (one < WRITTEN)).sum() == 0, "cold pages stay cold"
    assert 128 <= (one != two).sum() <= 128 + 256 * 5 // 100
    assert (one != later).sum() == 384


def test_written_pages_are_unique_and_break_up_merged_ones() -> None:
    fields = {"run": 1, "zero_fraction": 0.0, "duplicate_fraction": 1.0, "pages_to_scan": 2000, "thp_coverage": 0.0}
    cold = simulate(scenario(**fields))
    run = simulate(scenario(put(9.9, "run", 0), **fields, hot_fraction=0.5))
    assert cold.rows["cow_ksm"][-1] == 0 and run.rows["cow_ksm"][-1] > 0
    assert cold.rows["pages_sharing"][-1] > 1000 > 600 > run.rows["pages_sharing"][-1]
    conservation.check(run)


def test_writes_pass_over_what_is_not_there() -> None:
    gone = {"after": {"seconds": 0.0}, "op": "munmap", "page": 0, "count": 512}
    read_only = {"after": {"seconds": 0.0}, "op": "mprotect", "page": 512, "count": 256, "prot": 1}
    run = simulate(scenario(gone, read_only, hot_fraction=1.0, zero_fraction=0.0, horizon_seconds=1.0))
    key = run.machine.page["key"]
    assert (run.machine.pte["kind"][:512] == NONE).all()
    assert (key[512:768] < WRITTEN).all() and (key[768:] >= WRITTEN).all()


# --- guests ---------------------------------------------------------------------------------------------------------


def test_guests_boot_and_exit() -> None:
    """Before its boot a process has no memory and is not registered; after its end it has none any more."""
    run = simulate(scenario(processes=3, boot_interval_seconds=2.0, lifetime_seconds=5.0))
    assert acted(run) == [s * SECOND for s in (2, 4, 5, 7, 9)]
    assert run.rows["anon_pages"].tolist() == [1024, 2048, 3072, 2048, 1024, 0, 0]
    assert run.rows["thp_fault_alloc"].tolist() == [0, 2, 4, 4, 4, 4, 4]  # populating before the start does not count
    early = simulate(scenario(processes=3, boot_interval_seconds=2.0, horizon_seconds=1.0))
    assert early.machine.mm["registered"].tolist() == [0, 1, 0, 0] and not early.page_map(1).tobytes().strip(b"N")


def test_a_guest_that_boots_late_is_merged_as_others_are() -> None:
    fields = {"run": 1, "duplicate_fraction": 1.0, "pages_to_scan": 1000, "memory_mib": 4}
    run = simulate(scenario(put(0, "run", 1), processes=2, boot_interval_seconds=4.0, **fields))
    together = simulate(scenario(processes=2, **fields))
    assert run.rows["pages_sharing"][-1] == together.rows["pages_sharing"][-1] > 0
    assert run.rows["frames"][-1] == together.rows["frames"][-1]
    conservation.check(run)


def test_nobody_is_there_before_the_boot() -> None:
    """What is done to a process that has not booted fails with ESRCH."""
    events = [{"after": {"seconds": t}, "op": "write", "process": 1, "page": 0, "count": 9, "key": 5} for t in (1, 3)]
    run = simulate(scenario(*events, processes=2, boot_interval_seconds=2.0))
    assert run.results == [3, 0]
    assert run.machine.page["key"][1024:1033].tolist() == [5] * 9


def test_processes_with_times_of_their_own() -> None:
    specs = [{"memory_mib": 2, "exits_at_seconds": 3}, {"memory_mib": 4, "boots_at_seconds": 1.5}]
    run = simulate(scenario(process_list=specs))
    assert run.rows["anon_pages"].tolist() == [512, 1536, 1024, 1024]
    assert acted(run) == ms(1500, 3000)


def test_balloon_takes_the_blocks_with_most_zero_pages() -> None:
    """Blocks of 8 pages with 0, 1, … 7 zeros: half of them go, those with 4 to 7; nobody writes there again."""
    contents = [piece for n in range(8) for piece in ([0, n, 0], [100 * n + 1, 8 - n, 1])]
    spec = {"pages": 64, "contents": [piece for piece in contents if piece[1]], "thp": [[0, 64]]}
    run = simulate(
        scenario(
            {"after": {"seconds": 0}, "op": "read", "page": 0, "count": 1},
            process_list=[spec],
            pages_per_thp=8,
            balloon_fraction=0.5,
            balloon_seconds=3.0,
            hot_fraction=1.0,
        )
    )
    kind = run.machine.pte["kind"].reshape(8, 8)
    assert (kind[:4] == ANON).all() and (kind[4:] == NONE).all()
    assert run.rows["anon_pages"][-1] == 32
    conservation.check(run)


def test_balloon_of_single_pages() -> None:
    """Half of 64 pages, of which 28 are zero-filled: those, and 4 others; a THP that loses pages is not freed."""
    contents = [piece for n in range(8) for piece in ([0, n, 0], [100 * n + 1, 8 - n, 1])]
    spec = {"pages": 64, "contents": [piece for piece in contents if piece[1]], "thp": [[0, 32]]}
    setting = {"process_list": [spec], "pages_per_thp": 8, "balloon_fraction": 0.5, "balloon_seconds": 3.0}
    run = simulate(scenario(**setting, balloon_granularity="4K"))
    zero = np.repeat([key == 0 for key, *_ in spec["contents"]], [count for _, count, _ in spec["contents"]])
    gone = run.machine.pte["kind"] == NONE
    assert gone[zero].all() and gone.sum() == 32
    assert (run.rows["frames"][-1], run.rows["anon_pages"][-1], run.rows["huge_pmds"][-1]) == (
        64 - gone[32:].sum(),
        32,
        (~gone[:32].reshape(4, 8).any(axis=1)).sum(),
    )
    conservation.check(run)


# --- growth ---------------------------------------------------------------------------------------------------------

GROWS: dict[str, Any] = {"touched_fraction": 0.25, "growth_seconds": 8.0, "memory_mib": 8, "layout": "random"}


def test_growth_is_a_row_of_first_touches() -> None:
    """100 ticks in 8 s, each 15.36 pages: the same as events that touch as many pages at these times."""
    grown = simulate(scenario(**GROWS))
    assert acted(grown) == ms(*range(80, 8001, 80))
    times = [{"after": {"seconds": 0.08 * (k + 1)}, "op": "touch"} for k in range(100)]
    ranges = [(512 + 1536 * k // 100, 512 + 1536 * (k + 1) // 100) for k in range(100)]
    events = [{**at, "page": a, "count": b - a} for at, (a, b) in zip(times, ranges, strict=True)]
    touched = simulate(scenario(*events, **{**GROWS, "growth_seconds": 1e6}))
    assert grown.rows["anon_pages"].tolist() == touched.rows["anon_pages"].tolist()
    assert grown.page_map(0).tobytes() == touched.page_map(0).tobytes() == b"H" * 2048
    whole = simulate(scenario(memory_mib=8, layout="random"))
    assert (grown.machine.page["key"] == whole.machine.page["key"]).all()
    conservation.check(grown)


def test_first_touches_bring_what_a_fault_brings() -> None:
    """Half of 4 blocks are advised; the third and fourth come page by page."""
    run = simulate(scenario(**{**GROWS, "thp_coverage": 0.5}))
    pages = run.rows["anon_pages"].tolist()
    assert pages[:3] == [512, 1024, 1024] and pages[-1] == 2048
    assert (run.rows["huge_pmds"][-1], run.rows["thp_fault_alloc"][-1]) == (2, 1)
    assert max({b - a for a, b in pairwise(pages)} - {512}) == 16
    sizes = {"hugepages_enabled": {2048: "never", 64: "inherit"}, "kernel": "6.18"}
    run = simulate(scenario(**GROWS, **sizes))
    assert run.mthp is not None and run.mthp["anon_fault_alloc"][-1].tolist() == [0] * 4 + [96] + [0] * 5


def test_growth_begins_at_the_boot_and_ends_with_the_process() -> None:
    specs = [{"boots_at_seconds": 2, "growth_seconds": 1}, {"exits_at_seconds": 4}, {"touched_fraction": 0}]
    run = simulate(scenario(process_list=specs, **GROWS))
    time, pages = run.rows["time_ns"] / SECOND, run.rows["anon_pages"]
    assert pages[time < 2][-1] == 1024 + 512 and pages[-1] == 2 * 2048
    assert [int(pages[time <= at][-1]) for at in (2.0, 3.0, 3.99, 4.0)] == [2048, 4608, 4608, 3072]
    conservation.check(run)


def test_nobody_writes_to_what_is_not_touched_yet_or_was_given_back() -> None:
    hot = simulate(scenario(**{**GROWS, "growth_seconds": 1e6, "hot_fraction": 1.0}))
    assert hot.rows["anon_pages"].max() == 512
    taken = simulate(scenario(**GROWS, balloon_fraction=1.0, balloon_seconds=2.0))
    assert taken.rows["anon_pages"][-1] == 0 == (taken.machine.pte["kind"] != NONE).sum()


def test_start_of_ksm() -> None:
    """run becomes 1 then: the same as by an event."""
    by_field = simulate(scenario(run=1, ksm_start_seconds=3.0))
    by_event = simulate(scenario(put(3.0, "run", 1)))
    assert by_field.rows.tobytes() == by_event.rows.tobytes()
    assert by_field.rows["pages_scanned"][-1] > 0


def test_thirty_guests_that_grow_are_few_lines_and_some_seconds() -> None:
    path = ROOT / "params" / "growing_guests.yaml"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 25
    asked = Scenario.load(path)
    assert (asked.processes, asked.images, asked.memory_mib, asked.duplicate_layout) == (30, 2, 512, "clustered")
    assert asked.growth_seconds and asked.touched_fraction < 1
    start = process_time()
    run = simulate(asked)
    assert process_time() - start < 30  # 6 s when nothing else shares the CPU
    assert not any(run.results) and len(run.samples) > 1
    promised = asked.total_pages
    assert run.rows["anon_pages"].max() > 0.7 * promised > 0.7 * 0.35 * promised > run.rows["anon_pages"][0]


# --- order, determinism ---------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "processes": 3,
    "boot_interval_seconds": 3.0,
    "lifetime_seconds": 12.0,
    "balloon_fraction": 0.5,
    "balloon_seconds": 4.0,
    "khugepaged": 1,
    "khugepaged_scan_sleep_millisecs": 700,
    "pressure_rate": 0.7,
    "migration_rate": 8.0,
    "migration_huge_share": 0.5,
    "hot_fraction": 0.1,
    "warm_fraction": 0.3,
    "warm_period_seconds": 7.0,
    "ksm_start_seconds": 2.0,
    "policy": "ksmtuned",
    "host_mib": 64,
    "run": 1,
    "use_zero_pages": 1,
    "layout": "random",
    "duplicate_fraction": 0.5,
    "duplicate_groups": 9,
    "memory_mib": 8,
    "max_ptes_none": 300,
    "horizon_seconds": 70.0,
    "costs": "epyc-6.18",
    "seed": 4,
}


def everything(**fields: Any) -> Run:
    write = {"after": {"seconds": 2.0, "every": 2.0}, "op": "write", "page": 7, "count": 300, "key": 0}
    return simulate(scenario(write, **{**EVERYTHING, **fields}))


def fingerprint() -> str:
    run = everything(horizon_seconds=14.0)
    maps = b"".join(run.page_map(n).tobytes() for n in range(run.processes))
    return sha256(run.rows.tobytes() + maps + repr(run.metrics).encode()).hexdigest()


def test_an_event_comes_before_timers_of_the_same_time() -> None:
    run = simulate(scenario(put(2.0, "max_ptes_none", 0), memory_mib=16, pressure_rate=0.5, horizon_seconds=3.0))
    assert run.rows["time_ns"].tolist() == [0, 2 * SECOND, 2 * SECOND, 3 * SECOND]
    assert run.rows["thp_underused_split_page"].tolist() == [0, 0, 1, 1]
    assert run.rows["rank"].tolist() == [0, 1, 2, 2]


def test_what_falls_into_a_batch_happens_after_it_in_order_of_time() -> None:
    """A batch of 1 s: 20 ticks and an event of its middle come at its end, none is lost."""
    slow = {"run": 1, "costs": "epyc-6.18", "pages_to_scan": 2_000_000, "memory_mib": 256, "zero_fraction": 0.0}
    event = {"after": {"seconds": 0.03}, "op": "read", "page": 0, "count": 1}
    run = simulate(scenario(event, **slow, hot_fraction=1.0, hot_period_seconds=0.05, horizon_batches=1))
    end = int(run.rows["time_ns"][run.rows["batch"] == 1][0])
    assert end > 50_000_000
    assert (run.rows["time_ns"][1:] == end).all()
    assert run.event_rows == [2]
    assert len(run.rows) == 1 + 1 + 1 + end // 50_000_000


def test_the_same_again() -> None:
    assert fingerprint() == fingerprint()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_same_in_another_process(threads: str) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    program = "import test_daemons; print(test_daemons.fingerprint())"
    environment = {**os.environ, "PYTHONHASHSEED": threads, "NUMBA_NUM_THREADS": threads, "PYTHONPATH": paths}
    got = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert got.stdout.strip() == fingerprint()


def test_another_seed_is_another_run() -> None:
    assert everything(seed=5).rows.tobytes() != everything().rows.tobytes()


@pytest.mark.parametrize("variant", ["mainline", "ksm-opt-out", "rfc-underused-only"])
def test_conservation(variant: str) -> None:
    for seconds in (2.5, 9.0, 14.3, 70.0):
        run = everything(variant=variant, horizon_seconds=seconds)
        conservation.check(run)
    assert run.rows["thp_migration_split"][-1] > 0 and run.metrics.pages_collapsed > 0


def test_thinned_rows_give_the_same_metrics() -> None:
    whole, thinned = everything(), everything(sample_limit=100)
    assert len(thinned.rows) <= 200 < len(whole.rows)
    assert whole.metrics == thinned.metrics


def test_a_run_that_might_never_end_is_refused() -> None:
    with pytest.raises(UserError, match="hot_fraction") as caught:
        scenario(hot_fraction=0.5, horizon_seconds=0.0, horizon_full_scans=3)
    assert caught.value.parameter == "horizon_seconds"
