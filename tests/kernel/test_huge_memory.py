"""The deferred split queue on several NUMA nodes."""

from __future__ import annotations

import pytest

from mmlab import Scenario, simulate


@pytest.mark.parametrize(("on", "split"), [(0, [1, 2]), (1, [2, 3])])
def test_each_node_has_a_queue(on: int, split: list[int]) -> None:
    """thp-split Q1, Q3: the shrinker is asked for one folio of each; two THPs are on node 0, one is on node 1."""
    process = {"pages": 512, "contents": [[0, 512, 0]], "thp": [[0, 512]]}
    processes = [process | {"node": node} for node in (0, 1, 0)]
    events = [{"op": "shrink", "count": n, "after": {"batch": 0}} for n in (1, 1)]
    fields = {"kernel": "7.3", "nodes": 2, "max_ptes_none": 0, "run": 0, "stepped": True, "horizon_batches": 1}
    changes = {"kernel_changes": {"queue_per_node": on}}
    done = simulate(Scenario(process_list=processes, events=events, **fields, **changes))
    seen = [int(done.rows["thp_underused_split_page"][row]) for row in done.event_rows if row is not None]
    assert seen == split
