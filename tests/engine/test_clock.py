"""The clock, horizons, samples and metrics: what `simulate` adds to the kernel layer; conservation after many runs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conservation
import randomscenario
from conftest import ROOT
from mmlab.engine.costs import STEPS, cost_set
from mmlab.engine.events import act
from mmlab.engine.system import System
from mmlab.errors import UserError
from mmlab.kernel.mmap import AddressSpaces
from mmlab.results.run import Run, simulate
from mmlab.results.trace import scenario_of
from mmlab.scenario import EVENTS, RangeEvent, Scenario
from mmlab.variants import VARIANTS
from mmlab.workers import keep_freed_memory

SECOND = 1_000_000_000
NS = dict(zip(STEPS, cost_set("epyc-6.18").table.tolist(), strict=True))
FIRST_BATCH_NS = 100 * NS["visit_thp"] + NS["wake_up"]
"""With `scenario`: visits of pages of a THP."""


def scenario(*events: dict[str, Any], **fields: Any) -> Scenario:
    """4 MiB, half of it zero-filled; a tick is 4 ms and a sleep of 20 ms lasts 24 ms at most."""
    setting = {"memory_mib": 4, "zero_fraction": 0.5, "horizon_seconds": 1.0, "costs": "free"}
    return Scenario(**{**setting, **fields}, events=events)  # type: ignore[arg-type]


def at(seconds: float, op: str, **fields: Any) -> dict[str, Any]:
    return {"after": {"seconds": seconds}, "op": op, **fields}


def put(seconds: float, knob: str, value: int | str) -> dict[str, Any]:
    return at(seconds, "set", knob=knob, value=value)


def begins(run: Run) -> list[int]:
    """When each batch began, ns: its row is taken at its end."""
    ends = run.rows[(run.rows["rank"] == 0) & (np.diff(run.rows["batch"], prepend=0) > 0)]
    return (ends["time_ns"] - np.diff(ends["ksmd_cpu_ns"], prepend=0)).tolist()


def ms(*times: float) -> list[int]:
    return [round(t * 1_000_000) for t in times]


# --- the clock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sleep", [1, 20, 21, 1000])
@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_ksmd_wakes_at_a_tick(hz: int, sleep: int) -> None:
    """ksm-scan S3: asleep at t, awake at (floor(t·hz) + n + 1) / hz, n the sleep in ticks, rounded up."""
    run = simulate(scenario(costs="epyc-6.18", hz=hz, sleep_millisecs=sleep, horizon_seconds=0.0, horizon_batches=50))
    ends, ticks = run.rows["time_ns"].tolist(), -(-sleep * hz // 1000)
    assert begins(run) == [0] + [(t * hz // SECOND + ticks + 1) * SECOND // hz for t in ends[1:-1]]


def test_the_longest_sleep() -> None:
    """49.7 days at 1000 Hz: nothing overflows."""
    run = simulate(scenario(hz=1000, sleep_millisecs=2**32 - 1, horizon_seconds=0.0, horizon_batches=6))
    assert begins(run) == [n * 2**32 * 1_000_000 for n in range(6)]


def test_no_sleep() -> None:
    run = simulate(scenario(costs="epyc-6.18", sleep_millisecs=0, horizon_batches=50, horizon_seconds=0.0))
    assert begins(run) == run.rows["time_ns"][:-1].tolist()


def test_batch_takes_its_cpu_time() -> None:
    run = simulate(scenario(costs="epyc-6.18", horizon_batches=50))
    assert (np.diff(run.rows["ksmd_cpu_ns"][:-1]) > 0).all()
    assert run.rows["ksmd_cpu_ns"][1] == FIRST_BATCH_NS


def test_enabled_late() -> None:
    """ksm-scan S4: a write of 1 to run wakes ksmd at once; before it nothing was scanned."""
    run = simulate(scenario(put(0.1001, "run", 1), run=0))
    assert begins(run)[:3] == ms(100.1, 124, 148)
    before = run.rows[run.rows["time_ns"] < ms(100.1)[0]]
    assert before["pages_scanned"].max() == before["batch"].max() == 0
    assert run.rows["pages_scanned"][-1] > 0


def test_first_registration_wakes_ksmd() -> None:
    """ksm-scan S4: so does registering the first process while ksmd's list is empty; time never goes back."""
    run = simulate(scenario(at(0.1001, "mergeable", page=0, count=1024), late=True))
    assert begins(run)[:3] == ms(100.1, 124, 148)
    assert (np.diff(run.rows["time_ns"]) >= 0).all()


def test_stopped_and_started_again_within_a_sleep() -> None:
    """ksm-scan S3: a sleep that has begun is cut short by a change of sleep_millisecs only."""
    run = simulate(scenario(put(0.030, "run", 0), put(0.031, "run", 1)))
    assert begins(run)[:4] == ms(0, 24, 48, 72)


def test_stopped_for_longer_than_a_sleep() -> None:
    run = simulate(scenario(put(0.030, "run", 0), put(0.1001, "run", 1)))
    assert begins(run)[:4] == ms(0, 24, 100.1, 124)


def test_change_of_sleep_cuts_the_sleep() -> None:
    sleeps = [put(seconds, "sleep_millisecs", 100) for seconds in (0.030, 0.050)]  # the second changes nothing
    run = simulate(scenario(*sleeps, put(0.060, "run", 1)))  # nor does that
    assert begins(run)[:4] == ms(0, 24, 30, 132)


@pytest.mark.parametrize("costs", ["free", "epyc-6.18"])
def test_events_happen_at_their_time(costs: str) -> None:
    times = [0.0, 0.01, 0.0123456, 0.5, 0.5, 0.999999999]
    run = simulate(scenario(*(at(t, "read", page=0, count=1) for t in times), costs=costs))
    rows = run.rows[run.event_rows]
    assert rows["time_ns"].tolist() == [round(t * SECOND) for t in times]
    assert rows["rank"].tolist() == [1, 1, 2, 1, 2, 1]


def test_event_during_a_batch_waits_for_its_end() -> None:
    run = simulate(scenario(at(0.00001, "read", page=0, count=1), costs="epyc-6.18"))
    assert run.rows[run.event_rows[0]]["time_ns"] == FIRST_BATCH_NS
    assert run.rows["batch"][:3].tolist() == [0, 1, 1]


def test_event_after_a_batch_and_after_a_full_scan() -> None:
    after_batch = {"after": {"batch": 5}, "op": "read", "page": 0, "count": 1}
    after_pass = {"after": {"full_scan": 2}, "op": "read", "page": 0, "count": 1}
    never = {"after": {"batch": 10_000}, "op": "read", "page": 0, "count": 1}
    run = simulate(scenario(after_batch, after_pass, never))
    first, second, none = run.event_rows
    assert run.rows[first]["batch"] == 5 and none is None and run.results == [0, 0, None]
    assert run.rows[second]["full_scans"] == 2 and run.rows[second - 2]["full_scans"] == 1


def test_sleep_event_lets_time_pass() -> None:
    run = simulate(scenario(at(0.030, "sleep", millisecs=100)))
    assert begins(run)[:4] == ms(0, 24, 130, 152)
    assert run.rows[run.event_rows[0]]["time_ns"] == ms(130)[0]


def test_recurring_event() -> None:
    """At `seconds`, then every so often; what falls into a batch or a sleep event happens after it, each time."""
    every = {"after": {"seconds": 0.1, "every": 0.25}, "op": "read", "page": 0, "count": 1}
    rows = simulate(scenario(every, put(0.35, "run", 0))).rows
    times = rows["time_ns"][rows["rank"] > 0].tolist()[:-1]  # the last row is the end
    assert times == ms(100, 350, 350, 600, 850)
    run = simulate(scenario(every, at(0.2, "sleep", millisecs=500), run=0))
    assert run.rows["time_ns"].tolist() == ms(0, 100, 700, 700, 700, 850, 1000)
    assert run.rows[run.event_rows]["time_ns"].tolist() == ms(850, 700) and run.results == [0, 0]


@pytest.mark.parametrize("costs", ["free", "epyc-6.18"])
def test_timers_that_do_nothing_change_nothing(costs: str) -> None:
    """Batch by batch the same, however often ksmd's loop is left."""
    fields: dict[str, Any] = {**BUSY, "costs": costs, "pages_to_scan": 60, "horizon_seconds": 5.0}
    plain = simulate(scenario(**fields))
    read = {"after": {"seconds": 0.001, "every": 0.0137}, "op": "read", "page": 0, "count": 1}
    idle = {"shrink_underused": 0, "pressure_rate": 3.0}  # the deferred split queue is empty
    base = simulate(scenario(**fields, shrink_underused=0))
    for run, other in (
        (simulate(scenario(read, **fields)), plain),
        (simulate(scenario(**fields), policy=(lambda view: {}, 0.0071)), plain),
        (simulate(scenario(**fields, **idle)), base),
    ):
        assert len(run.rows) > len(other.rows)
        batches = run.rows[run.rows["rank"] == 0]
        assert batches.tobytes() == other.rows[: len(batches)].tobytes()
        assert run.rows["time_ns"][-1] == other.rows["time_ns"][-1]
        assert (np.diff(run.rows["time_ns"]) >= 0).all()
        conservation.check(run)


def test_processes_are_what_they_are_said_to_be() -> None:
    """NUMA nodes, PR_SET_MEMORY_MERGE and forbidden zeropages, of each process or of all."""
    specs = [{}, {"node": 2, "merge_any": 0}, {"forbids_zeropages": 1}]
    asked = scenario(process_list=specs, nodes=3, merge_any=1, late=True, pages_to_scan=5000)
    run = simulate(asked)
    mm = run.machine.mm[1:]
    assert mm["nid"].tolist() == [0, 2, 2] and mm["forbids_zeropages"].tolist() == [0, 0, 1]
    assert mm["merge_any"].tolist() == [1, 0, 1] and mm["registered"].tolist() == [1, 0, 1]
    letters = [run.page_map(i).tobytes() for i in range(3)]
    assert b"Z" in letters[0] and b"Z" not in letters[1] + letters[2]


def test_advisor_from_the_start() -> None:
    """ksm-scan S29: it begins with advisor_min_pages_to_scan, whatever pages_to_scan is."""
    run = simulate(scenario(advisor_mode="scan-time", advisor_min_pages_to_scan=70, horizon_batches=1))
    assert run.rows["pages_scanned"].tolist() == [0, 70]


def test_small_folios_have_their_statistics() -> None:
    run = simulate(scenario(folio_order=4, thp_coverage=0.5, use_zero_pages=1, pages_to_scan=3000))
    columns = run.columns()
    assert columns["mthp_64kB_nr_anon"][[0, -1]].tolist() == [32, 16] and run.rows["huge_pmds"].max() == 0
    assert columns["mthp_64kB_split"][-1] == 16
    assert simulate(scenario()).mthp is None


# --- horizons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.001, 0.5, 0.7777])
def test_horizon_in_seconds(seconds: float) -> None:
    run = simulate(scenario(costs="epyc-6.18", horizon_seconds=seconds))
    assert run.rows["time_ns"][-1] == round(seconds * SECOND)
    assert begins(run)[-1] < seconds * SECOND <= begins(run)[-1] + 24_000_000


def test_horizon_in_batches() -> None:
    run = simulate(scenario(horizon_batches=7))
    assert run.rows["batch"].tolist() == list(range(8))


def test_horizon_in_full_scans() -> None:
    run = simulate(scenario(horizon_full_scans=3, horizon_seconds=0.0))
    assert run.metrics.full_scans == run.rows["full_scans"][-1] == 3
    assert run.rows["full_scans"][-2] == 2


def test_full_scans_are_counted_across_unmerging() -> None:
    """run=2 begins the kernel's counter anew; the horizon counts on."""
    twice = ({"after": {"full_scan": 2}, "op": "set", "knob": "run", "value": value} for value in (2, 1))
    run = simulate(scenario(*twice, horizon_full_scans=5, horizon_seconds=0.0))
    assert (run.metrics.full_scans, run.rows["full_scans"][-1]) == (5, 3)


def test_until_settled() -> None:
    run = simulate(scenario(until_settled=True, horizon_seconds=100.0))
    longer = simulate(scenario(horizon_seconds=100.0))
    assert run.metrics.settled_full_scans == run.metrics.full_scans == longer.metrics.settled_full_scans
    assert run.metrics.settled_s == run.rows["time_ns"][-1] / SECOND == longer.metrics.settled_s < 10


def test_no_pages_to_scan() -> None:
    run = simulate(scenario(pages_to_scan=0))
    assert run.rows["time_ns"][-1] == SECOND and run.rows["batch"][-1] == 42  # every 24 ms
    assert run.rows["pages_scanned"][-1] == run.rows["full_scans"][-1] == run.rows["rmap_items"][-1] == 0
    conservation.check(run)


@pytest.mark.parametrize("variant", ["mainline", "legacy"])
def test_any_number_of_pages_to_scan(variant: str) -> None:
    """2^32 - 1 as well: each batch is a whole pass."""
    run = simulate(scenario(pages_to_scan=2**32 - 1, use_zero_pages=1, variant=variant))
    assert run.rows["full_scans"].tolist()[:-1] == run.rows["batch"].tolist()[:-1]
    assert run.rows["anon_pages"][-1] == 512
    conservation.check(run)


def test_nothing_to_do_until_the_horizon() -> None:
    run = simulate(scenario(run=0))
    assert run.rows["time_ns"].tolist() == [0, SECOND]


# --- samples --------------------------------------------------------------------------------------------------------

THINNED = [
    {"horizon_seconds": 60.0},
    {"horizon_seconds": 60.0, "costs": "epyc-6.18", "variant": "legacy"},
    {"horizon_batches": 1234, "horizon_seconds": 0.0},
    {"horizon_batches": 300, "horizon_seconds": 0.0, "maps": "all"},
    {"until_settled": True, "horizon_seconds": 1000.0, "pages_to_scan": 3},
]


@pytest.mark.parametrize("limit", [100, 137])
@pytest.mark.parametrize("fields", THINNED, ids=str)
@pytest.mark.parametrize("late_event", [False, True])
def test_thinning(fields: dict[str, Any], limit: int, late_event: bool) -> None:
    fields = dict(fields)
    maps = fields.pop("maps", None)
    events = [{"after": {"batch": 240}, "op": "write", "page": 0, "count": 100, "key": 5}] if late_event else []
    whole = simulate(scenario(*events, **fields), maps_at=maps)
    run = simulate(scenario(*events, sample_limit=limit, **fields), maps_at=maps)
    assert len(whole.rows) > 2 * limit >= 2 * len(run.rows) > limit
    assert run.rows[0] == whole.rows[0] and run.rows[-1] == whole.rows[-1]
    index = {bytes(row): i for i, row in enumerate(whole.rows)}
    where = [index[bytes(row)] for row in run.rows]  # a KeyError: a row that never was
    assert np.diff(where).max() <= 4 * len(whole.rows) / limit, "not thinned evenly"
    assert run.metrics == whole.metrics
    conservation.check(run)
    for mine, event_row in zip(run.event_rows, whole.event_rows, strict=True):  # the first that was kept of those after
        assert mine is not None and event_row is not None and where[mine - 1] < event_row <= where[mine]


# --- determinism ----------------------------------------------------------------------------------------------------

BUSY = {
    "layout": "random",
    "duplicate_fraction": 0.5,
    "duplicate_groups": 7,
    "processes": 2,
    "max_page_sharing": 5,
    "variant": "ksm-opt-out",
    "use_zero_pages": 1,
    "seed": 5,
}


def fingerprint() -> str:
    run = simulate(scenario({"after": {"batch": 9}, "op": "fork"}, **BUSY))
    maps = b"".join(run.page_map(n).tobytes() for n in range(run.processes))
    return sha256(run.rows.tobytes() + maps + repr(run.metrics).encode()).hexdigest()


def test_the_same_again() -> None:
    assert fingerprint() == fingerprint()


@pytest.mark.parametrize("seed", ["0", "4711"])
def test_the_same_in_another_process(seed: str) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    program = "import test_clock; print(test_clock.fingerprint())"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    got = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert got.stdout.strip() == fingerprint()


def test_another_seed_is_another_run() -> None:
    rows = [simulate(scenario(**{**BUSY, "seed": seed})).rows for seed in (5, 6)]
    assert rows[0].tobytes() != rows[1].tobytes()


# --- what is refused ------------------------------------------------------------------------------------------------


def test_every_event_is_modelled() -> None:
    own = {event for event in EVENTS.values() if act.dispatch(event) is not act.dispatch(object)}
    others = {op for op, event in EVENTS.items() if event not in own}
    assert len(own) > 10
    assert all(callable(getattr(System, op, None) or getattr(AddressSpaces, op)) for op in others)


def test_process_that_is_not_born_yet() -> None:
    too_early = scenario(at(0.1, "read", process=1, page=0, count=1), at(0.2, "fork"))
    with pytest.raises(UserError, match="op read") as caught:
        simulate(too_early)
    error = caught.value
    assert (error.where, error.parameter, error.value, error.allowed) == ("events 0", "process", 1, "0 … 0 by then")
    simulate(scenario(at(0.2, "fork"), at(0.2, "read", process=1, page=0, count=1)))


def test_costs_that_are_not_known() -> None:
    with pytest.raises(UserError, match=r"'epyc-6\.17': did you mean 'epyc-6\.18'\?"):
        simulate(scenario(costs="epyc-6.17"))


# --- conservation ---------------------------------------------------------------------------------------------------

MIXED = {
    "memory_mib": 6,
    "zero_fraction": 0.5,
    "layout": "random",
    "duplicate_fraction": 0.6,
    "duplicate_groups": 40,
    "max_page_sharing": 4,
    "stray_zero_pages": 3,
    "pages_to_scan": 300,
}


@pytest.mark.parametrize("use_zero_pages", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_conservation_in_every_variant(variant: str, use_zero_pages: int) -> None:
    for batches in (9, 14, 60):
        run = simulate(scenario(**MIXED, variant=variant, use_zero_pages=use_zero_pages, horizon_batches=batches))
        conservation.check(run)
    assert run.metrics.freed_mib > 1


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_conservation_of_shipped_parameters(path: Any) -> None:
    """A 32nd of the memory, and of each event's pages, where it is a lot."""
    full = Scenario.load(path)
    if full.process_list or full.memory_mib < 64:
        conservation.check(simulate(full))
        return
    scaled = [
        e.model_copy(update={"page": e.page // 32, "count": max(1, e.count // 32)}) if isinstance(e, RangeEvent) else e
        for e in full.events
    ]
    run = simulate(full.replace(memory_mib=full.memory_mib // 32, events=tuple(scaled)))
    conservation.check(run)
    assert run.rows["full_scans"][-1] > 1 or full.policy != "none"  # ksmtuned finds enough memory free
    assert run.results == [0] * len(scaled)


@pytest.mark.parametrize("part", range(3))
def test_conservation_in_random_scenarios(part: int) -> None:
    for seed in range(part, 30, 3):
        asked = scenario_of(randomscenario.scenario(seed))
        for batches in (asked.horizon_batches, asked.horizon_batches * (seed + 1) // 31):
            systems: list[System] = []
            run = simulate(asked.replace(horizon_batches=max(1, batches)), observe=systems.append)
            conservation.check(run, [frame for _, frame in systems[-1].spaces.pins])


def test_arrays_grow_for_collapses() -> None:
    """Each turn of khugepaged needs new huge pages: the small ones that a split left are not contiguous."""
    turns = [
        at(0.1 * n + dt, op, **fields)
        for n in range(6)
        for dt, op, fields in ((0.01, "split_all", {}), (0.02, "khugepaged", {"full_scans": 1}))
    ]
    run = simulate(scenario(*turns, run=0, variant="legacy", memory_mib=16, horizon_seconds=1.0))
    assert run.rows["pages_collapsed"][-1] == 6 * 8
    assert run.machine.state[0]["top_frame"] > 2 * len(run.machine.page)
    conservation.check(run)


def test_arrays_grow() -> None:
    """Forks whose copies are all written need more frames, folios and nodes than there were at first."""
    forks = [{"after": {"batch": 0}, "op": "fork", "process": n} for n in range(7)]
    writes = [
        {"after": {"batch": 3 * n}, "op": "write", "process": n, "page": 0, "count": 1024, "key": n or None}
        for n in range(8)
    ]
    few = simulate(scenario(run=0, horizon_seconds=0.1)).machine
    run = simulate(scenario(*forks, *writes, variant="legacy", pages_to_scan=1_000_000))
    assert len(run.machine.frame) > 2 * len(run.machine.page) + 512 > len(few.frame)
    assert run.results == [0] * 15 and run.rows["anon_pages"][-1] == 8 * 1024
    conservation.check(run)


def test_conservation_notices() -> None:
    """Each counter that is off by one, and each link that is broken, breaks a law."""
    run = simulate(scenario(**MIXED, variant="legacy", horizon_batches=9))
    conservation.check(run)
    m = run.machine
    counters = """rmap_items pages_shared pages_sharing pages_unshared ksm_zero_pages stable_node_chains
        stable_node_dups proc_ksm_rmap_items proc_ksm_merging_pages anon_pages huge_pmds ksm_entries swap_entries
        zeropage_entries frames ksm_frames deferred_queue_len""".split()
    places = [(m.stat, name, 0) for name in counters]
    frame = int(m.page["frame"][0])
    places += [(m.frame, name, frame) for name in ("mapcount", "pins", "flags", "folio")]
    folio = int(m.frame["folio"][m.page["frame"][-1]])
    places += [(m.folio, name, folio) for name in ("mapcount", "entire", "nr_mapped", "pins", "next", "prev")]
    places += [(m.node, name, int(m.tree[0]["stable"])) for name in ("first", "left", "right", "parent")]
    places += [(m.mm, name, 1) for name in ("rmap_items", "merging_pages", "mergeable", "next")]
    for array, name, i in places:
        array[name][i] += 1
        with pytest.raises(AssertionError):
            conservation.check(run)
        array[name][i] -= 1
    conservation.check(run)
    m.occupied[0] = 0
    with pytest.raises(AssertionError, match="ksmd would not see a page"):
        conservation.check(run)


@pytest.mark.parametrize(
    ("parameter", "endless"),
    [
        ("costs", {"costs": "free", "sleep_millisecs": 0}),
        ("pages_to_scan", {"pages_to_scan": 0, "horizon_seconds": 0.0, "until_settled": True}),
        ("pages_to_scan", {"pages_to_scan": 0, "horizon_seconds": 0.0, "horizon_full_scans": 3}),
    ],
)
def test_a_run_that_would_never_end_is_refused(parameter: str, endless: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        simulate(Scenario(memory_mib=2, **endless))
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(("kernel", "rss_kb", "splits"), [("6.12.117", 4, 1), ("6.18.44", 2048, 0)])
def test_a_write_to_the_huge_zeropage(kernel: str, rss_kb: int, splits: int) -> None:
    """6.12 splits the PMD and gives one small page (ksm-merge F3); 6.18.44 gives a huge page, as seen there."""
    at = {"after": {"batch": 1}, "process": 0, "page": 0}
    events = [
        {**at, "op": "dontneed", "count": 512},
        {**at, "op": "read", "count": 1},
        {**at, "op": "write", "count": 1, "key": 7},
    ]
    run = simulate(Scenario(memory_mib=2, kernel=kernel, events=events, horizon_batches=1))
    assert run.columns()["rss_kb"].tolist()[-3:] == [0, 0, rss_kb]
    assert (run.rows["thp_split_pmd"][-1], run.rows["thp_fault_alloc"][-1]) == (splits, 1 - splits)


def test_memory_of_a_former_run_is_used_again() -> None:
    """Runs after the first take few pages anew from the kernel: each is a fault, and they were a tenth of the time."""
    scenario, pages = Scenario(memory_mib=64, horizon_full_scans=2), 64 * 256
    keep_freed_memory()
    simulate(scenario)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        simulate(scenario)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages * 54 / 4096, "less than one run's arrays"
