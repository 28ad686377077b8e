"""ksmd: the worked examples of the specification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import worked_examples
from mmlab import Scenario, simulate
from mmlab.engine.costs import STEPS, cost_set
from mmlab.results import trace
from mmlab.results.run import Run

CLASSES = {  # of the full-size runs; the slow reference model does each for one variant only
    "X1": worked_examples.X,
    "X2": worked_examples.X + worked_examples.SKIP,
    "X3": worked_examples.Y,
    "X4": worked_examples.Y,
    "X5": worked_examples.SKIP,
}
EXAMPLES = [
    (name, variant, knob)
    for name, setting in worked_examples.SETTINGS.items()
    for variant, knob in CLASSES.get(name, setting.variants)
]


@pytest.mark.parametrize(("name", "variant", "knob"), EXAMPLES)
def test_worked_example(name: str, variant: str, knob: int) -> None:
    expected = worked_examples.rows_of(name)
    asked = worked_examples.trace_of(name, worked_examples.SETTINGS[name], variant, knob)
    assert worked_examples.measure(trace.predict(asked), list(expected[0])) == expected


# --- holes (ksm-scan S14) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "by_walk"), [(8, 7 + 7), (1 + 512, 7 + 512), (1 + 3 * 512 + 5, 7 + 3 + 5)])
def test_holes_cost_time_only(blocks: int, by_walk: int) -> None:
    """One page, then nothing: 7 entries of its page table, then a step for each block without one, and each 512 of
    those that an image leaves out; or a look-up of each page."""
    hole = 8 * blocks - 1
    process = {"pages": 8 * blocks, "contents": [[5, 1, 0], ["hole", hole, 0]]}
    asked = Scenario(process_list=[process], pages_per_thp=8, horizon_full_scans=4, smart_scan=0, costs="free")
    steps = list(STEPS).index("pass_over")
    for kernel, entries in (("6.12", by_walk), ("6.17", hole), ("6.1", hole), ("6.18", by_walk)):
        run = simulate(asked.replace(kernel=kernel))
        assert (run.rows["pages_scanned"][-1], run.machine.steps[steps]) == (4, 4 * entries), kernel
    assert len(run.machine.page) == 2 * 8 and len(run.page_map(0)) == 8 * blocks


# --- walks of chains (costs, dup_walk) --------------------------------------------------------------------------------


def walked(run: Run) -> int:
    return int(run.machine.steps[list(STEPS).index("dup_walk")])


def chain(full_scans: int, equal: int, **fields: Any) -> Run:
    """2 MiB of small pages: equal ones, the others unique; 16 mappings of a KSM page."""
    process = {"pages": 512, "contents": [[2**32, equal, 0], [2**40, 512 - equal, 1]]}
    asked = {"process_list": [process], "smart_scan": 0, "max_page_sharing": 16, "pages_to_scan": 512, "costs": "free"}
    return simulate(Scenario(**asked | {"horizon_full_scans": full_scans} | fields))


@pytest.mark.parametrize("prune_millisecs", [0, 2000])
def test_a_chain_without_room_is_walked_by_each_search(prune_millisecs: int) -> None:
    """256 equal pages fill 16 KSM pages: 256 unique pages walk 16 dups each, whether the walk is a full one or not."""
    before, after = (chain(n, 256, stable_node_chains_prune_millisecs=prune_millisecs) for n in (4, 5))
    assert after.rows["stable_node_dups"][-1] == 16 == after.rows["pages_shared"][-1]
    assert walked(after) - walked(before) == 256 * 16


def test_a_search_stops_at_the_first_dup_with_room() -> None:
    """Two pages less leave one of the KSM pages with room; it was made last, so it is the first of the list."""
    before, after = (chain(n, 254) for n in (4, 5))
    assert after.rows["stable_node_dups"][-1] == 16
    assert walked(after) - walked(before) == 258
    before, after = (chain(n, 254, stable_node_chains_prune_millisecs=0) for n in (4, 5))
    assert walked(after) - walked(before) == 258 * 16


def test_reference_load_costs_as_much_as_measured() -> None:
    """costs: at the default max_page_sharing ksmd took 5.6 to 6.7 times the CPU time predicted without these walks."""
    load = {"memory_mib": 1024, "zero_fraction": 460 / 512, "smart_scan": 0, "pages_to_scan": 10**6}
    run = simulate(Scenario(**load, variant="ksm-opt-out", horizon_seconds=0, horizon_full_scans=5))
    costs = cost_set("epyc-6.18").table
    ends = run.rows[np.searchsorted(run.rows["full_scans"], [4, 5])]
    with_walks = int(np.diff(ends["ksmd_cpu_ns"])[0])
    walks = 512 * 52 * 920 * int(costs[list(STEPS).index("dup_walk")])
    assert run.rows["stable_node_dups"][-1] == 920
    assert 5.6 < with_walks / (with_walks - walks) < 7.1


def test_small_max_page_sharing_ranks_the_variants_anew() -> None:
    """Variants that keep zero pages for ksmd pay for their chains; what mainline remaps is in none."""
    load = Scenario(memory_mib=64, zero_fraction=460 / 512, pages_to_scan=1000, max_page_sharing=2, horizon_seconds=60)
    costs = cost_set("epyc-6.18")
    free = replace(costs, ns=costs.ns * [step != "dup_walk" for step in STEPS])
    cpu = {
        (variant, known): simulate(load, variant=variant, costs=known).metrics.ksmd_cpu_ms
        for variant in ("mainline", "ksm-opt-out")
        for known in (costs, free)
    }
    assert cpu["ksm-opt-out", free] < cpu["mainline", free] < cpu["ksm-opt-out", costs]
