"""What ksmd's and khugepaged's steps cost, in ns of their CPU time.

The model counts steps (`mmlab.kernel.state`); a cost set turns them into simulated time. Costs never change what
happens, only when: the order of batches and events stays the same unless an event is tied to seconds.
"""

from __future__ import annotations

from difflib import get_close_matches

import numpy as np

from mmlab.errors import UserError

__all__ = ["COST_SETS", "STEPS", "cost_table"]

STEPS: dict[str, str] = {
    "visit": "visit and checksum of a small page",
    "visit_thp": "visit and checksum of a page of a large folio",
    "visit_ksm": "visit of a KSM page",
    "skip": "page skipped by smart scan",
    "pass_over": "entry passed over (zeropage, hole)",
    "tree_level": "one level of a search in either tree",
    "tree_cold": "… more for a level below the first 2^10 nodes",
    "merge": "item attached to a KSM page",
    "merge_zero": "page replaced by the shared zeropage",
    "split": "folio that is split",
    "split_page": "… and each of its pages",
    "remap": "… and that page remapped to the shared zeropage",
    "end_of_pass": "end of a full scan, LRU drain of the next",
    "wake_up": "begin of a batch",
    "khugepaged_pte": "khugepaged looks at an entry",
    "khugepaged_copy": "… and copies or clears a page of a collapse",
}
"""Step names in the order of the model's counters, and what each is."""

COST_SETS: dict[str, dict[str, int]] = {
    # Linux 6.18.44, 2-core AMD EPYC virtual machine, ksmd's schedstat over recorded batches; single batches scatter
    # by 25 %. Estimated, not measured: skip (a visit without its checksum), khugepaged_pte (a warm page table entry)
    # and khugepaged_copy (4 KiB at 8 GB/s).
    "epyc-6.18": {
        "visit": 1000,
        "visit_thp": 770,
        "visit_ksm": 340,
        "skip": 150,
        "pass_over": 25,
        "tree_level": 220,
        "tree_cold": 0,
        "merge": 1700,
        "merge_zero": 1700,
        "split": 0,
        "split_page": 590,
        "remap": 500,
        "end_of_pass": 32_000,
        "wake_up": 3_000,
        "khugepaged_pte": 10,
        "khugepaged_copy": 500,
    },
    "free": dict.fromkeys(STEPS, 0),
}
"""Cost sets by name; "free" lets time pass in ksmd's sleeps only."""


def cost_table(name: str) -> np.ndarray:
    """int64[len(STEPS)], ns a step.

    Raises
    ------
    UserError
        There is no such cost set.
    """
    if name not in COST_SETS:
        near = get_close_matches(name, COST_SETS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"costs: {name!r} is not known{hint or '.'} Choose one of {', '.join(COST_SETS)}.")
    return np.array([COST_SETS[name][step] for step in STEPS], np.int64)
