"""Settings of ksmd: the values a search may choose from, and the commands that set them on a real kernel.

A *setting* says who sets ksmd's pace (`BY`: a fixed pages_to_scan, the scan-time advisor, or ksmtuned) and gives a
value for each knob that matters then. A knob has *levels*: round numbers, so that a result is easy to quote and no run
is spent on a difference that nobody would set.

>>> setting = Setting.of("fixed", {"pages_to_scan": 110, "sleep_millisecs": 20, "use_zero_pages": 1})
>>> print(setting)
pages_to_scan=110 sleep_millisecs=20 use_zero_pages=1
>>> setting.apply(Scenario())[0].pages_to_scan
110
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from mmlab.engine.policies import Ksmtuned, Policy
from mmlab.errors import UserError, located, unknown
from mmlab.scenario import Scenario

__all__ = ["BY", "LEVELS", "Setting", "Space", "spaces"]


def _levels(low: int, high: int, digits: Sequence[int]) -> tuple[int, ...]:
    """Return the preferred numbers from low to high: `digits` times the powers of ten."""
    return tuple(digit * 10**power for power in range(5) for digit in digits if low <= digit * 10**power <= high)


_FINE = (10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 27, 30, 33, 36, 39, 43, 47, 51, 56, 62, 68, 75, 82, 91)
LEVELS: dict[str, tuple[int, ...]] = {
    "pages_to_scan": _levels(10, 100_000, _FINE),
    "sleep_millisecs": _levels(10, 1000, (1, 2, 5)),
    "use_zero_pages": (0, 1),
    "smart_scan": (0, 1),
    "max_ptes_none": (0, 64, 128, 256, 409, 511),
    "advisor_target_scan_time": _levels(1, 1000, (1, 2, 5)),
    "advisor_max_cpu": (10, 15, 20, 30, 50, 70, 100),
    "advisor_min_pages_to_scan": _levels(10, 10_000, (1, 2, 5)),
    "advisor_max_pages_to_scan": (1000, 3000, 10_000, 30_000, 100_000),
    "KSM_NPAGES_MAX": _levels(10, 100_000, (10, 15, 22, 33, 47, 68)),
    "KSM_SLEEP_MSEC": _levels(10, 1000, (1, 2, 5)),
    "KSM_THRES_COEF": (10, 20, 30, 50, 80),
}
"""Default levels, by the kernel's names and those of ksmtuned.conf. Levels above the workload's size are left out."""

_BOTH = ("use_zero_pages", "smart_scan", "max_ptes_none")
BY: dict[str, tuple[str, ...]] = {
    "fixed": ("pages_to_scan", "sleep_millisecs", *_BOTH),
    "advisor": (
        "advisor_min_pages_to_scan",
        "sleep_millisecs",
        *(k for k in LEVELS if k.startswith("advisor_")),
        *_BOTH,
    ),
    "ksmtuned": ("KSM_NPAGES_MAX", "KSM_SLEEP_MSEC", "KSM_THRES_COEF", *_BOTH),
}
"""Who sets the pace → the knobs that matter then: first those for pages and for sleeps, whose ratio matters most."""
_CONF = {f"KSM_{field.name.upper()}": field for field in fields(Ksmtuned)}
_SYSFS = ("use_zero_pages", "smart_scan", "sleep_millisecs", "pages_to_scan")
_STEPS = (1, 2, 4, 8, 16)


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

    def __getitem__(self, knob: str) -> int:
        return dict(self.values)[knob]

    def __str__(self) -> str:
        who = {"fixed": "", "advisor": "advisor_mode=scan-time ", "ksmtuned": "ksmtuned: "}[self.by]
        return who + " ".join(f"{knob}={value}" for knob, value in self.values)

    @property
    def changed(self) -> int:
        """The number of knobs that differ from the kernel's defaults or from ksmtuned's published configuration."""
        usual = {name: (_CONF.get(name) or Scenario.model_fields[name]).default for name, _ in self.values}
        return sum(value != usual[knob] for knob, value in self.values)

    def ksmtuned(self) -> Ksmtuned:
        """Return ksmtuned with this configuration; its npages_min is lowered to npages_max where it is above."""
        own = {_CONF[knob].name: value for knob, value in self.values if knob in _CONF}
        most = own.get("npages_max", Ksmtuned.npages_max)
        return Ksmtuned(**own | {"npages_min": min(own.get("npages_min", Ksmtuned.npages_min), most)})

    def apply(self, scenario: Scenario) -> tuple[Scenario, Policy | None]:
        """Return the scenario with these knobs, and the policy that turns them during the run."""
        scenario = scenario.replace(**{knob: value for knob, value in self.values if knob not in _CONF})
        if self.by == "ksmtuned":  # ksmd is stopped until ksmtuned checks for the first time
            return scenario.replace(run=0, ksm_start_seconds=0.0), self.ksmtuned().policy()
        return scenario.replace(advisor_mode="scan-time" if self.by == "advisor" else "none"), None

    def commands(self, scenario: Scenario) -> str:
        """Return shell commands that set a kernel's sysfs knobs, and ksmtuned's configuration, to this.

        advisor_mode comes before pages_to_scan, which a change of the mode resets, and once more at the end to start
        the advisor from its minimum (ksm-scan S29).
        """
        s, own = self.apply(scenario)[0], dict(self.values)
        left_out = {"fixed": (), "advisor": ("pages_to_scan",), "ksmtuned": ("sleep_millisecs", "pages_to_scan", "run")}
        absent = ("advisor_mode", "smart_scan") if s.kernel == "6.1" else ()
        knobs = [("advisor_mode", "none"), *((name, getattr(s, name)) for name in _SYSFS), ("run", 1)]
        knobs = [(name, value) for name, value in knobs if name not in (*left_out[self.by], *absent)]
        if self.by == "advisor":
            knobs[-1:-1] = [item for item in self.values if item[0].startswith("advisor_")]
            knobs.insert(-1, ("advisor_mode", "scan-time"))
        lines = [f"echo {value} > /sys/kernel/mm/ksm/{name}" for name, value in knobs]
        if "max_ptes_none" in own:
            lines.insert(0, f"echo {s.max_ptes_none} > /sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none")
        if self.by == "ksmtuned":
            lines += ["cat > /etc/ksmtuned.conf <<END", self.ksmtuned().conf(), "END", "systemctl restart ksmtuned"]
        return "\n".join(lines)


@dataclass(frozen=True)
class Space:
    """All settings of one pace: {knob: levels}, without knobs that have no effect on the scenario."""

    by: str
    levels: Mapping[str, tuple[int, ...]]

    def at(self, places: Iterable[float]) -> Setting:
        """Return the setting at a place on each knob's levels; places are rounded, and limited to the levels."""
        nearest = {
            knob: levels[int(np.clip(np.rint(place), 0, len(levels) - 1))]
            for (knob, levels), place in zip(self.levels.items(), places, strict=True)
        }
        return Setting.of(self.by, nearest)

    def neighbours(self, setting: Setting) -> Iterator[Setting]:
        """Yield settings that differ by 1, 2, 4 … levels of one knob; a step of the sleep keeps the pace."""
        own, (pages, sleep) = dict(setting.values), BY[self.by][:2]
        for knob, levels in self.levels.items():
            at = int(np.argmin([abs(level - own[knob]) for level in levels]))
            for place in (at + sign * step for step in _STEPS for sign in (1, -1)):
                if 0 <= place < len(levels):
                    new = own | {knob: levels[place]}
                    if knob == sleep:
                        wanted = max(1, own[pages]) * max(1, levels[place]) / max(1, own[sleep])
                        nearest = np.argmin(abs(np.log(np.maximum(1, self.levels[pages]) / wanted)))
                        new[pages] = self.levels[pages][int(nearest)]
                    yield Setting.of(self.by, new)


def spaces(scenario: Scenario, by: Sequence[str], levels: Mapping[str, Sequence[int]] | None = None) -> list[Space]:
    """Return the settings to choose from, one space for each pace.

    max_ptes_none keeps its value where nothing collapses and nothing is underused; smart_scan and the advisor are left
    out where the kernel has none, ksmtuned where the run ends before it checks for the first time.

    Raises
    ------
    UserError
        A knob of `levels` is unknown, a level is not allowed, or nothing is left to choose from.
    """
    own, old = dict(levels or {}), scenario.kernel == "6.1"
    for knob, values in own.items():
        if knob not in LEVELS and knob not in _CONF:
            raise unknown("knob", knob, [*LEVELS, *_CONF])
        if not values or not all(isinstance(value, int) for value in values):
            raise UserError(parameter=knob, value=values, allowed="a list of whole numbers", where="levels")
        with located("levels"):
            for value in values if knob not in _CONF else ():
                scenario.replace(**{knob: value})
    collapses = scenario.khugepaged or scenario.pressure_rate or scenario.sets("khugepaged")
    collapses = collapses or any(event.op in ("khugepaged", "shrink") for event in scenario.events)
    idle = {"smart_scan"} if old else set()
    idle |= set() if collapses else {"max_ptes_none"}
    first = min(own.get("KSM_MONITOR_INTERVAL", (Ksmtuned.monitor_interval,)))
    out = []
    for who in by:
        if (who == "advisor" and old) or (who == "ksmtuned" and scenario.horizon_seconds <= first):
            continue
        usual = {knob: LEVELS[knob] for knob in BY[who] if knob not in idle}
        for knob, values in usual.items():
            if "pages" in knob.lower():
                usual[knob] = tuple(value for value in values if value <= scenario.total_pages) or values[:1]
        named = {knob: tuple(own[knob]) for knob in own if knob in BY[who] or (who == "ksmtuned" and knob in _CONF)}
        out.append(Space(who, usual | named))
    if not out:
        hint = f"Linux 6.1 has no advisor, and ksmtuned first checks after {first} s (KSM_MONITOR_INTERVAL)."
        raise UserError(parameter="by", value=tuple(by), allowed="fixed, or within must be longer", hint=hint)
    return out
