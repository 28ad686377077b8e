"""Settings of ksmd: the values a search may choose from, and the commands that set them on a real kernel.

A *setting* says who sets ksmd's pace (`BY`: a fixed pages_to_scan, the scan-time advisor, or a tuner) and gives a value
for each knob that matters then. A knob has *levels* (`settings.yaml`): round numbers, so that a result is easy to
quote and no run is spent on a difference that nobody would set.

>>> setting = Setting.of("fixed", {"pages_to_scan": 110, "sleep_millisecs": 20, "use_zero_pages": 1})
>>> print(setting)
pages_to_scan=110 sleep_millisecs=20 use_zero_pages=1
>>> setting.apply(Scenario())[0].pages_to_scan
110
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmlab.errors import UserError, located, unknown
from mmlab.kernel.versions import flags
from mmlab.params import read_yaml
from mmlab.policies import CONF, TUNERS, Policy, Tuner
from mmlab.scenario import Scenario, check_value

Levels = Mapping[str, Sequence[int]]
"""Values to choose from, by knob."""


_LISTED = read_yaml(Path(__file__).with_suffix(".yaml"))
LEVELS: Levels = _LISTED["levels"]
"""Default levels, by the names of the kernel, of ksmtuned.conf, and of other tuners' parameters. Levels above the
workload's size are left out."""
BY: dict[str, list[str]] = _LISTED["by"]
"""Who sets the pace → the knobs that matter then: first those for pages and for sleeps, whose ratio matters most."""


@dataclass(frozen=True)
class Setting:
    """Who sets the pace, and (knob, value) for each knob that is set."""

    by: str
    values: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, by: str, values: Mapping[str, int]) -> Setting:
        """Return a setting; advisor_max_pages_to_scan is raised to the minimum, as the kernel treats it."""
        least = values.get("advisor_min_pages_to_scan", 0)
        return cls(by, tuple((k, max(v, least) if k == "advisor_max_pages_to_scan" else v) for k, v in values.items()))

    @classmethod
    def at(cls, by: str, levels: Levels, places: Iterable[float]) -> Setting:
        """Return the setting at a place on each knob's levels, counted from 0."""
        return cls.of(by, {knob: levels[knob][int(place)] for knob, place in zip(levels, places, strict=True)})

    def neighbours(self, levels: Levels) -> Iterator[Setting]:
        """Yield settings that differ by 1, 2, 4 … levels of one knob; a step of the sleep keeps the pace."""
        own, (pages, sleep) = dict(self.values), BY[self.by][:2]
        for knob, values in levels.items():
            at = int(np.argmin(np.abs(np.subtract(values, own[knob]))))
            places = (at + step * way for step in (1, 2, 4, 8, 16) for way in (1, -1))
            for place in (place for place in places if 0 <= place < len(values)):
                new = own | {knob: values[place]}
                if knob == sleep and "sleep" in knob.lower():
                    wanted = max(1, own[pages]) * max(1, values[place]) / max(1, own[sleep])
                    distances = abs(np.log(np.maximum(1, levels[pages]) / wanted))
                    new[pages] = levels[pages][int(distances.argmin())]
                yield Setting.of(self.by, new)

    def __str__(self) -> str:
        who = {"fixed": "", "advisor": "advisor_mode=scan-time "}.get(self.by, f"{self.by}: ")
        return who + " ".join(f"{knob}={value}" for knob, value in self.values)

    @property
    def changed(self) -> int:
        """The number of knobs that differ from the kernel's defaults or from the tuner's published configuration."""
        usual = Scenario.model_fields | (TUNERS[self.by].model_fields if self.by in TUNERS else {})
        return sum(value != usual[CONF.get(knob, knob)].default for knob, value in self.values)

    def tuner(self) -> Tuner | None:
        """Return the tuner with these parameters, if one sets the pace.

        Its fewest pages are lowered to its most where they are above.

        Raises
        ------
        UserError
            It does not take a value.
        """
        if self.by not in TUNERS:
            return None
        own = {CONF.get(knob, knob): value for knob, value in self.values if knob not in Scenario.model_fields}
        check_value("policy", {"name": self.by, **own})
        tuned = TUNERS[self.by](**own)
        ends = ((f"{name}_min", f"{name}_max") for name in ("npages", "pages") if hasattr(tuned, f"{name}_max"))
        return tuned.model_copy(update={a: min(getattr(tuned, a), getattr(tuned, b)) for a, b in ends})

    def apply(self, scenario: Scenario) -> tuple[Scenario, Policy | None]:
        """Return the scenario with these knobs, and the policy that turns them during the run."""
        scenario = scenario.replace(**{knob: v for knob, v in self.values if knob in Scenario.model_fields})
        if tuner := self.tuner():  # ksmd is stopped until the tuner checks for the first time
            return scenario.replace(run=0, ksm_start_seconds=0.0), tuner.policy()
        return scenario.replace(advisor_mode="scan-time" if self.by == "advisor" else "none"), None

    def commands(self, scenario: Scenario) -> str:
        """Return shell commands that set a kernel's sysfs knobs, and the tuner's parameters, to this.

        advisor_mode comes before pages_to_scan, which a change of the mode resets, and once more at the end to start
        the advisor from its minimum (ksm-scan S29).
        """
        s, tuner = self.apply(scenario)[0].replace(run=1), self.tuner()
        by = "tuner" if tuner else self.by
        knobs = [("advisor_mode", "none"), *((name, getattr(s, name)) for name in _LISTED["written"][by])]
        has = flags(s.kernel)
        there = {"advisor_mode": has["advisor_exists"], "smart_scan": has["smart_scan_exists"]}
        lines = [f"echo {value} > /sys/kernel/mm/ksm/{name}" for name, value in knobs if there.get(name, True)]
        if "max_ptes_none" in dict(self.values):
            lines.insert(0, f"echo {s.max_ptes_none} > /sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none")
        if tuner and self.by in _LISTED["told"]:
            more = {"conf": getattr(tuner, "conf", str)(), "share": getattr(tuner, "free_percent", 0) / 100}
            lines.append(_LISTED["told"][self.by].format(**more, **tuner.model_dump()))
        return "\n".join(lines)


def check_levels(levels: Levels) -> None:
    """Check the knobs and the values that a search is to choose from.

    Raises
    ------
    UserError
        A knob is unknown, or does not take a value.
    """
    known = {knob: by for by, knobs in BY.items() for knob in knobs}
    with located("levels"):
        for knob, values in levels.items():
            if knob not in known:
                raise unknown("knob", knob, sorted(known))
            for value in values:
                if knob in Scenario.model_fields:
                    check_value(knob, value)
                else:
                    Setting(known[knob], ((knob, value),)).tuner()


def spaces(scenario: Scenario, by: Sequence[str], levels: Levels) -> Mapping[str, Levels]:
    """Return the levels to choose from for each pace; `levels` replace those of `LEVELS`.

    max_ptes_none keeps its value where nothing collapses and nothing is underused; smart_scan and the advisor are left
    out where the kernel has none, a tuner where the run ends before it checks for the first time.

    Raises
    ------
    UserError
        Nothing is left to choose from.
    """
    has, size = flags(scenario.kernel), scenario.total_pages
    collapses = scenario.khugepaged or scenario.pressure_rate or scenario.sets("khugepaged")
    collapses = collapses or any(event.op in ("khugepaged", "shrink") for event in scenario.events)
    idle = {"smart_scan": not has["smart_scan_exists"], "max_ptes_none": not collapses}
    usual = {knob: values for knob, values in LEVELS.items() if not idle.get(knob)}
    for knob in (knob for knob in usual if "pages" in knob.lower()):
        usual[knob] = [value for value in usual[knob] if value <= size] or usual[knob][:1]
    chosen = {**usual, **levels}
    out, firsts = {}, {}
    for pace in by:
        found = {knob: chosen[knob] for knob in BY[pace] if knob in chosen}
        policy = Setting.of(pace, {knob: min(values) for knob, values in found.items()}).apply(scenario)[1]
        firsts[pace] = next(policy.moments([0.0])) if policy else 0.0
        if scenario.horizon_seconds > firsts[pace] and (pace != "advisor" or has["advisor_exists"]):
            out[pace] = found
    if not out:
        late = "".join(f"; {pace} first checks after {first:g} s" for pace, first in firsts.items() if first)
        hint = f"Linux before 6.8 has no advisor{late}."
        raise UserError(parameter="by", value=tuple(by), allowed="fixed, or within must be longer", hint=hint)
    return out
