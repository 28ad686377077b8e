"""What is done to a workload before the verdict asks its questions.

A scene takes the base scenario (memory, knobs, rates) and returns the scenario that is run; `scenes.yaml` has all.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mmlab.params import find_params, read_yaml
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario
from mmlab.studies import pingpong
from mmlab.variants import VARIANTS, AnyVariant, resolve

Scene = Callable[[Scenario], Scenario]

LISTED = read_yaml(Path(__file__).with_suffix(".yaml"))
BASE: dict[str, Any] = read_yaml(find_params("other_splits"))
"""The default base: 16 THPs, three quarters zero-filled, and a ksmd so slow that other things happen before it comes. A
full scan of 9 s stands for the minutes that it takes on a host."""
DECIDED: dict[str, Any] = LISTED["decided"]
"""What every scene decides by itself; everything else is the base's."""
CODES: dict[str, list[str]] = LISTED["codes"]
"""The number of each variant in the discussion, and the short name of its column."""
SECONDS_BEFORE = 0.5
"""When one-time events happen: before ksmd, khugepaged or the shrinker has done anything."""


def described(name: str) -> str:
    """Return what a scene does to the base, in one sentence without a full stop."""
    return str(LISTED["scenes"][name]["what"])


def each_block(s: Scenario, *ops: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return one event a 2 MiB block, the operations in turn; their `page` counts from the start of the block.

    Page -1 is the last page of the block; count -1 is all pages but one, count 0 all.
    """
    size = s.pages_per_thp
    places = [(i, block * size) for i, spec in enumerate(s.specs) for block in range(s.pages_of(spec) // size)]
    return tuple(
        {"after": {"seconds": SECONDS_BEFORE}, "process": process, **op, "page": first + op["page"] % size}
        | ({"count": (op["count"] - 1) % size + 1} if "count" in op else {})
        for number, (process, first) in enumerate(places)
        for op in [ops[number % len(ops)]]
    )


def build(name: str, s: Scenario) -> Scenario:
    """Return the scenario of an entry of `scenes.yaml`, which explains its fields."""
    scene = LISTED["scenes"][name]
    scan, turn, thps = pingpong.scan_seconds(s), pingpong.turn_seconds(s), s.total_pages // s.pages_per_thp
    known = {**dict(s), "scan": scan, "turn": turn, "thps": thps}
    computed = {field: eval(formula, known) for field, formula in scene.get("compute", {}).items()}
    lasts = round(eval(str(scene["lasts"]), known), 2)
    events = each_block(s, *scene["each_block"]) if "each_block" in scene else ()
    return s.replace(**{**DECIDED, "horizon_seconds": lasts, **scene.get("set", {}), **computed, "events": events})


SCENES: dict[str, Scene] = {name: partial(build, name) for name in LISTED["scenes"]}


def numbered(variant: str) -> str:
    """Return a variant's number in the discussion and its name; the name alone of one that has no number."""
    return " ".join([*CODES.get(variant, [])[:1], variant])


def scene_runs(
    name: str, base: Scenario, variants: Iterable[AnyVariant] = tuple(VARIANTS), **changes: Any
) -> dict[str, Run]:
    """Return the runs of a scene under several variants, by their names; `changes` are made to the base first."""
    scenario = SCENES[name](base.replace(**changes))
    return {v.name: simulate(scenario, variant=v) for v in map(resolve, variants)}
