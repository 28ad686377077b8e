"""The fast model equals the reference model, after every batch and every event, on random scenarios.

`MMLAB_SCENARIOS` says how many (150; `make nightly` sets 2,000). The run counts what occurred in them and requires that
each of OCCURRENCES did often enough to be tested.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

import randomscenario
import reference
from mmlab.engine.costs import STEPS
from mmlab.results import trace

SCENARIOS = int(os.environ.get("MMLAB_SCENARIOS", "150"))
OCCURRENCES = (
    "dead root",
    "dead leaf",
    "erase above a dead node",
    "same-THP split",
    "chain made",
    "chain reordered",
    "chain dissolved",
    "restart after a stale node",
    "fork in mid-scan",
    "exit at the cursor",
    "underused split",
    "folio judged used",
    "partially mapped split by the shrinker",
    "collapse",
    "collapse failed at isolation",
    "KSM page collapsed",
    "ZP_KSM collapsed",
    "page swapped out",
    "zero-filled page swapped",
    "swapped in",
    "lazy page discarded",
    "merged again after the stable tree",
    "collapse to order 2",
    "collapse to order 3",
    "collapse to order 4 or more",
    "fault takes a size",
    "refused split",
    "budget ended within a range",
    "lazy huge PMD cleared",
    "shared page made lazy",
    "page of a large folio written in place",
    "mlocked THP dropped by the shrinker",
    "stable node moved aside",
    "stable node linked in another tree",
    "stable node joins equal ones in another tree",
    "zero-only merge",
    "huge page left alone",
    "pinned page copied at fork",
    "entry moved",
    "event with a stride",
    "hole",
    "blocks left out",
    "first touch",
    "first touch of a page that a folio brought",
)
AT_LEAST = 20


def check(seed: int) -> Counter[str]:
    """Hold the two models against each other on one scenario; returns what occurred in it."""
    asked = randomscenario.scenario(seed)
    expected = reference.predict(asked, every_map=True)
    run, got = trace.rerun({**asked, "maps": expected["maps"], "frames": expected["frames"]})
    outcome = trace.compare(expected, got)
    assert outcome.exact, f"seed {seed}: {outcome.differences[0]}"
    assert len(got["samples"]) == len(expected["samples"]), f"seed {seed}: another number of samples"
    assert results(got) == results(expected), f"seed {seed}: an event ends otherwise"
    steps = dict(zip(STEPS, run.machine.steps.tolist(), strict=True))
    assert {step: steps[step] for step in expected["steps"]} == expected["steps"], f"seed {seed}: steps"
    return Counter(expected["seen"] | {"blocks left out": sum(map(len, run.scenario.gaps))})


def results(prediction: dict) -> list[int | None]:
    """The errno of each event; None for one that never came."""
    return [event["result"] for event in prediction["scenario"]["events"]]


def test_fast_model_equals_reference(capsys: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()
    for seed in range(SCENARIOS):
        seen.update(check(seed))
    with capsys.disabled():
        occurred = ", ".join(f"{name} {seen[name]}" for name in OCCURRENCES)
        print(f"\n{SCENARIOS} random scenarios, no difference. Occurred: {occurred}")
    rare = {name: seen[name] for name in OCCURRENCES if seen[name] < AT_LEAST}
    assert not rare, f"too few in {SCENARIOS} scenarios, at least {AT_LEAST} needed: {rare}"
