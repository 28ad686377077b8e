"""Settings to choose from: values of the knobs, who sets the pace, and the commands that make a kernel do so.

A *setting* is who sets ksmd's pace (`BY`: fixed pages_to_scan, the scan-time advisor, ksmtuned) and a value for each
knob that matters then. Knobs have *levels*, round numbers on a kernel's scale, so that what is found can be said in a
sentence and nothing is simulated twice for a difference that nobody would set.

>>> setting = Setting.of("fixed", {"pages_to_scan": 110, "sleep_millisecs": 20, "use_zero_pages": 1})
>>> print(setting)
pages_to_scan=110 sleep_millisecs=20 use_zero_pages=1
>>> setting.apply(Scenario())[0].pages_to_scan
110
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any

from mmlab.engine.policies import Ksmtuned, Policy
from mmlab.errors import UserError, unknown
from mmlab.scenario import Scenario
from mmlab.studies.tuning import commands as echo

__all__ = ["BY", "LEVELS", "Setting", "Space", "spaces"]

_TENS = (1, 2, 5)
_FINE = (10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 27, 30, 33, 36, 39, 43, 47, 51, 56, 62, 68, 75, 82, 91)


def _levels(low: float, high: float, digits: Sequence[int]) -> tuple[int, ...]:
    """Preferred numbers (`digits` of each decade) from low to high."""
    first = len(str(digits[0])) - 1
    scales = (10.0 ** (decade - first) for decade in range(math.floor(math.log10(low)), 12))
    numbers = sorted({round(digit * scale, 9) for scale in scales for digit in digits if digit * scale <= high})
    return tuple(int(number) for number in numbers if number >= low and float(number).is_integer())


LEVELS: dict[str, tuple[int, ...]] = {
    "pages_to_scan": _levels(10, 100_000, _FINE),
    "sleep_millisecs": _levels(10, 1000, _TENS),
    "use_zero_pages": (0, 1),
    "smart_scan": (0, 1),
    "max_ptes_none": (0, 64, 128, 256, 409, 511),
    "advisor_target_scan_time": _levels(1, 1000, _TENS),
    "advisor_max_cpu": (10, 15, 20, 30, 50, 70, 100),
    "advisor_min_pages_to_scan": _levels(10, 10_000, _TENS),
    "advisor_max_pages_to_scan": (1000, 3000, 10_000, 30_000, 100_000),
    "KSM_NPAGES_MAX": _levels(10, 100_000, (10, 15, 22, 33, 47, 68)),
    "KSM_SLEEP_MSEC": _levels(10, 1000, _TENS),
    "KSM_THRES_COEF": (10, 20, 30, 50, 80),
}
"""What each knob is tried at unless a goals file says otherwise: the kernel's names, and those of ksmtuned.conf. Levels
of pages are tried up to all pages of the workload in one batch."""

_BOTH = ("use_zero_pages", "smart_scan", "max_ptes_none")
BY: dict[str, tuple[str, ...]] = {
    "fixed": ("pages_to_scan", "sleep_millisecs", *_BOTH),
    "advisor": (
        "advisor_target_scan_time",
        "advisor_max_cpu",
        "advisor_min_pages_to_scan",
        "advisor_max_pages_to_scan",
        "sleep_millisecs",
        *_BOTH,
    ),
    "ksmtuned": ("KSM_NPAGES_MAX", "KSM_SLEEP_MSEC", "KSM_THRES_COEF", *_BOTH),
}
"""Who sets the pace → knobs that matter then."""
_CONF = tuple(f"KSM_{field.name.upper()}" for field in fields(Ksmtuned))


@dataclass(frozen=True)
class Setting:
    """Who sets the pace, and (knob, value) for each knob that is set."""

    by: str
    values: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, by: str, values: Mapping[str, int]) -> Setting:
        """Values that the kernel would not tell apart are one: a maximum below its minimum is that minimum."""
        new = dict(values)
        if "advisor_max_pages_to_scan" in new:
            least = new.get("advisor_min_pages_to_scan", 0)
            new["advisor_max_pages_to_scan"] = max(new["advisor_max_pages_to_scan"], least)
        return cls(by, tuple(new.items()))

    def __getitem__(self, knob: str) -> int:
        return dict(self.values)[knob]

    def __str__(self) -> str:
        who = {"fixed": "", "advisor": "advisor_mode=scan-time ", "ksmtuned": "ksmtuned: "}[self.by]
        return who + " ".join(f"{knob}={value}" for knob, value in self.values)

    @property
    def changed(self) -> int:
        """Knobs that are not as the kernel has them, or ksmtuned's published configuration."""
        usual = {name: field.default for name, field in Scenario.model_fields.items()}
        usual |= {f"KSM_{field.name.upper()}": field.default for field in fields(Ksmtuned)}
        return sum(value != usual[knob] for knob, value in self.values)

    def _ksmtuned(self) -> Ksmtuned:
        own = {knob.removeprefix("KSM_").lower(): value for knob, value in self.values if knob in _CONF}
        least = min(own.get("npages_min", Ksmtuned.npages_min), own.get("npages_max", Ksmtuned.npages_max))
        return Ksmtuned(**own | {"npages_min": least})

    def apply(self, scenario: Scenario) -> tuple[Scenario, Policy | None]:
        """The scenario with these knobs, and who turns them while it runs."""
        knobs: dict[str, Any] = {knob: value for knob, value in self.values if knob not in _CONF}
        if self.by == "advisor":
            knobs["advisor_mode"] = "scan-time"
        if self.by != "ksmtuned":
            return scenario.replace(**knobs), None
        # ksmd is stopped until ksmtuned looks for the first time
        return scenario.replace(**knobs, run=0, ksm_start_seconds=0.0), self._ksmtuned().policy()

    def commands(self, scenario: Scenario) -> str:
        """Shell commands that make a kernel do that: sysfs of ksmd and khugepaged, and ksmtuned's configuration."""
        set_ = self.apply(scenario)[0]
        lines = echo(set_, set_.pages_to_scan).splitlines()
        if self.by != "fixed":  # they set the pace themselves
            lines = [line for line in lines if not line.endswith(("/pages_to_scan", "/advisor_mode"))]
        if self.by == "advisor":
            lines = [line for line in lines if not line.endswith("/run")]
            knobs = [knob for knob, _ in self.values if knob.startswith("advisor_")]
            lines += [f"echo {self[knob]} > /sys/kernel/mm/ksm/{knob}" for knob in knobs]
            # the mode last: changing it sets pages_to_scan to advisor_min_pages_to_scan (ksm-scan S29)
            lines += [
                f"echo {value} > /sys/kernel/mm/ksm/{knob}"
                for knob, value in (("advisor_mode", "none"), ("advisor_mode", "scan-time"), ("run", 1))
            ]
        if "max_ptes_none" in dict(self.values):
            path = "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none"
            lines.insert(0, f"echo {self['max_ptes_none']} > {path}")
        if self.by == "ksmtuned":
            own = "/run", "/sleep_millisecs"
            lines = [line for line in lines if not line.endswith(own)]
            lines += ["cat > /etc/ksmtuned.conf <<END", *self._ksmtuned().conf().splitlines(), "END"]
            lines += ["systemctl restart ksmtuned"]
        return "\n".join(lines)


PACE = {
    "fixed": ("pages_to_scan", "sleep_millisecs"),
    "advisor": ("advisor_min_pages_to_scan", "sleep_millisecs"),
    "ksmtuned": ("KSM_NPAGES_MAX", "KSM_SLEEP_MSEC"),
}
"""Who sets the pace → its knobs for pages and for sleeps: their ratio decides more than either."""


@dataclass(frozen=True)
class Space:
    """All settings of one pace: {knob: levels}, without knobs that have no effect on the scenario.

    A search walks along `axes`: those of the knobs' levels, but the places of the pages count from where the sleep puts
    them. Another sleep then leaves the pace nearly as it was.
    """

    by: str
    levels: dict[str, tuple[int, ...]]

    @cached_property
    def axes(self) -> dict[str, int]:
        """{knob: places on its axis}."""
        places = {knob: len(levels) for knob, levels in self.levels.items()}
        pages, sleep = PACE[self.by]
        return {**places, pages: places[pages] + self._shift(self.levels[sleep][-1])}

    def _shift(self, sleep: int) -> int:
        """By how many levels there are more pages in a batch for the same pace, compared with the shortest sleep."""
        pages, sleeps = (self.levels[knob] for knob in PACE[self.by])
        decades = math.log10(pages[-1] / pages[0])
        return round((len(pages) - 1) * math.log10(sleep / sleeps[0]) / decades) if decades else 0

    def at(self, index: Sequence[int]) -> Setting:
        """The setting at a place on each axis; beyond the levels of pages, the first or the last."""
        places = dict(zip(self.axes, map(int, index), strict=True))
        pages, sleep = PACE[self.by]
        lift = self._shift(self.levels[sleep][places[sleep]]) - self._shift(self.levels[sleep][-1])
        places[pages] = min(max(0, places[pages] + lift), len(self.levels[pages]) - 1)
        return Setting.of(self.by, {knob: self.levels[knob][i] for knob, i in places.items()})

    def index(self, setting: Setting) -> list[int]:
        """The place of a setting, or of one with the nearest levels."""
        values = dict(setting.values)
        places = {
            knob: min(range(len(levels)), key=lambda i, levels=levels, value=values[knob]: abs(levels[i] - value))  # type: ignore[misc]
            for knob, levels in self.levels.items()
        }
        pages, sleep = PACE[self.by]
        places[pages] += self._shift(self.levels[sleep][-1]) - self._shift(self.levels[sleep][places[sleep]])
        return list(places.values())

    def grid(self, **levels: Sequence[int]) -> Iterator[Setting]:
        """Every setting, with other levels for the knobs that are named."""
        tried = {knob: tuple(levels.get(knob, own)) for knob, own in self.levels.items()}
        settings = (Setting.of(self.by, dict(zip(tried, values, strict=True))) for values in product(*tried.values()))
        yield from dict.fromkeys(settings)

    @property
    def size(self) -> int:
        return math.prod(map(len, self.levels.values()))


def spaces(scenario: Scenario, by: Sequence[str], levels: Mapping[str, Sequence[int]] | None = None) -> list[Space]:
    """What there is to choose from for a scenario.

    max_ptes_none is left as it is where nothing collapses and nothing is underused, smart_scan and the advisor where
    the kernel has none, ksmtuned where the run ends before it looks for the first time.

    Raises
    ------
    UserError
        A knob of `levels` is not known or a level is not allowed, or nothing is left to choose from.
    """
    own = dict(levels or {})
    for knob, values in own.items():
        if knob not in LEVELS and knob not in _CONF:
            raise UserError(f"levels: {unknown('knob', knob, [*LEVELS, *_CONF])}")
        if not values or not all(isinstance(value, int) for value in values):
            raise UserError(f"levels: {knob} = {values!r}: it must be a list of whole numbers")
        if knob not in _CONF:
            for value in values:
                scenario.replace(**{knob: value})
    old = scenario.kernel.split(".")[1] == "1"
    collapses = (
        scenario.khugepaged
        or scenario.pressure_rate
        or any(event.op in ("khugepaged", "shrink") or event.sets("khugepaged") for event in scenario.events)
    )
    idle = {"smart_scan"} if old else set()
    idle |= set() if collapses else {"max_ptes_none"}
    out = []
    for who in by:
        looks = min(own.get("KSM_MONITOR_INTERVAL", (Ksmtuned.monitor_interval,)))
        if (who == "advisor" and old) or (who == "ksmtuned" and scenario.horizon_seconds <= looks):
            continue
        names = [*BY[who], *(knob for knob in own if who == "ksmtuned" and knob in _CONF and knob not in BY[who])]
        chosen = {}
        for name in names:
            if name in own:
                chosen[name] = tuple(own[name])
            elif name not in idle:
                paged = name in ("pages_to_scan", "KSM_NPAGES_MAX") or name.endswith("pages_to_scan")
                most = scenario.total_pages if paged else max(LEVELS[name])
                chosen[name] = tuple(v for v in LEVELS[name] if v <= most) or LEVELS[name][:1]
        out.append(Space(who, chosen))
    if not out:
        raise UserError(
            f"by = {', '.join(by)}: Linux 6.1 has no advisor, and ksmtuned first looks after "
            f"{Ksmtuned.monitor_interval} s (KSM_MONITOR_INTERVAL): choose fixed, or a longer within"
        )
    return out
