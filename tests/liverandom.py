"""Random scenarios that the running kernel can do: those of `randomscenario` with real THPs, without the rest.

python tests/liverandom.py 60 [FIRST] [BATCHES]    record seeds, hold the model against each, and print what differs
"""

from __future__ import annotations

import random
import sys
from typing import Any

import randomscenario
from mmlab.errors import UserError
from mmlab.host.record import plan, record, running_kernel
from mmlab.host.runner import ALONE, OPS
from mmlab.results.trace import Comparison, compare, predict, scenario_of


def scenario(seed: int, most: int = 60) -> dict[str, Any]:
    """A trace without answers: one to three processes with real THPs, at most this many batches."""
    draw = randomscenario.Draw(random.Random(seed))
    draw.thp, draw.clocked = 512, False
    draw.leave_holes = lambda spec: None  # type: ignore[method-assign]  # all of the memory is populated at the start
    trace = draw.trace(f"live-{seed}")
    asked, knobs = trace["scenario"], trace["scenario"]["knobs"]
    trace |= {"variant": "mainline", "kernel": running_kernel()}
    asked |= {"pages_per_thp": 512, "nodes": 1, "kernel_changes": {}, "batches": min(asked["batches"], most)}
    knobs |= {"merge_across_nodes": 1}
    knobs.pop("sleep_millisecs", None)
    knobs["swap_mib"] = 64 * (knobs["swap_mib"] > 0)  # which pages find the last slots is not modelled (thp-split W8)
    if knobs["stable_node_chains_prune_millisecs"]:
        knobs["stable_node_chains_prune_millisecs"] = 4294967  # never: how long a batch takes is not the kernel's
    if "hugepages_enabled" in knobs:
        knobs["swap_mib"] = 0  # pages may come back as large folios (mthp 6.5)
    for process in asked["processes"]:
        process.pop("forbids_zeropages", None)
    asked["events"] = [event for event in asked["events"] if possible(event)]
    for event in asked["events"]:
        event.pop("share", None)
        if event["op"] == "shrink":
            event["count"] = 10_000  # drop_caches scans the whole queue
        if event.get("knob") == "stable_node_chains_prune_millisecs":
            event["value"] = knobs["stable_node_chains_prune_millisecs"]
    return trace


def possible(event: dict[str, Any]) -> bool:
    """Whether the running kernel can do it, also where debugfs is locked."""
    barred = {*ALONE, "split", "migrate"}
    return event["op"] in OPS - barred and event.get("knob") not in ("variant", "merge_across_nodes")


def differs(seed: int, most: int = 60) -> tuple[Comparison, dict[str, Any]]:
    """Record a seed and compare."""
    recording = record(plan(scenario_of(scenario(seed, most))))
    return compare(recording, predict(recording)), recording


if __name__ == "__main__":
    count, first, most = [*map(int, sys.argv[1:]), *(60, 0, 300)[len(sys.argv) - 1 :]]
    for seed in range(first, first + count):
        try:
            found, recording = differs(seed, most)
            print(
                f"{seed}: {found}{'; moved ' if recording['moved'] else ''}{', '.join(recording['moved'])}", flush=True
            )
        except UserError as error:
            print(f"{seed}: {error}", flush=True)
