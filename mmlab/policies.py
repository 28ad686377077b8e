"""Policies: programs that turn ksmd's knobs while a scenario runs, as ksmtuned does.

A policy is a function of a `View`; it is called at a fixed interval and returns the knobs to set:

>>> def gentle(view):
...     return {"run": int(view.free_mib < 1024)}
>>> gentle.interval = 10
>>> resolve(gentle).interval
10.0

`simulate(scenario, policy=gentle)`, or `policy=(gentle, 10)`, or a *tuner*: one of the programs that hosts really run
(tuners N1–N5), by its name or with its parameters. A scenario's `policy` takes the same:
``policy: {name: ksmtuned, sleep_msec: 30}``. To add a tuner, add a class here. A knob that already has the value is not
written again.
"""

from __future__ import annotations

import math
import re
import shlex
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_serializer, model_validator

from mmlab.errors import UserError, located, unknown
from mmlab.params import in_units, reading

Knobs = Mapping[str, int | str]
MIN_INTERVAL = 0.001
BATCHES_A_SCAN = 100
"""Least number of batches in a full scan of a host that is simulated smaller."""


@dataclass(frozen=True)
class View:
    """The state of the host that a policy may look at.

    Attributes
    ----------
    time_s
        Simulated time, s.
    calls
        Number of earlier calls of the policy.
    knobs
        Current values in sysfs.
    total_kb
        Memory of the host (MemTotal), kB.
    free_kb
        What the processes hold no frames of, kB, at least 0: MemFree + Buffers + Cached, and MemAvailable as well.
    rss_kb, pss_kb
        Resident memory of all processes, kB; in the second, what several of them share counts once.
    booted_s
        Time of the latest boot of a process, s.
    counters
        Current counters, under the names of the table of samples.
    own
        What the policy keeps between its calls; empty at first.
    """

    time_s: float
    calls: int
    knobs: Knobs
    total_kb: int
    free_kb: int
    rss_kb: int
    pss_kb: int
    booted_s: float
    counters: Mapping[str, int]
    own: dict[str, Any]

    @property
    def free_mib(self) -> float:
        """Free memory of the host, MiB."""
        return self.free_kb / 1024


Decide = Callable[[View], Knobs]


@dataclass(frozen=True)
class Policy:
    """A named function `decide`, called every `interval` seconds from `first` on, which is by default one interval.

    If there are `times` (s, ascending, or a function of the times at which processes boot) it is called at these only.
    """

    name: str
    decide: Decide
    interval: float = 60.0
    times: tuple[float, ...] | Callable[[Sequence[float]], Iterable[float]] = ()
    first: float | None = None

    def moments(self, boots: Sequence[float]) -> Iterator[float]:
        """Yield the times of the calls, s; processes boot at `boots`."""
        if self.times:
            yield from self.times(boots) if callable(self.times) else self.times
        else:
            start = self.interval if self.first is None else self.first
            yield from (start + k * self.interval for k in count())


FINITE = ConfigDict(allow_inf_nan=False)


class Strict(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True, **FINITE):
    """A frozen model in which unknown keys are errors and the text below a field is its description.

    Numbers may be written with a unit (`mmlab.params.quantity`).
    """

    _in_units = model_validator(mode="before")(classmethod(in_units))  # type: ignore[arg-type]  # pydantic takes it

    def check(self) -> None:
        """Raise a `UserError` if the fields, each valid, do not fit together."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            self.check()
        except UserError as error:
            raise ValueError(error) from None  # pydantic adds the place
        return self


# --- the programs that hosts run ------------------------------------------------------------------------------------

TUNERS: dict[str, type[Tuner]] = {}
"""The class of each tuner by its name."""

Pages = Annotated[int, Field(ge=0, le=2**32 - 1)]
Delta = Annotated[int, Field(ge=-(2**31), le=2**31)]
Interval = Annotated[int, Field(ge=1, le=10**9)]


class Tuner(Strict):
    """A program that turns ksmd's knobs, with its parameters; its docstring says what it is and which rule it is.

    A public subclass is registered in `TUNERS`, under its name in small letters.
    """

    first: ClassVar[float | None] = None
    name: str = ""
    """which program"""

    def __init_subclass__(cls) -> None:
        if not cls.__name__.startswith("_"):
            cls.name = cls.__name__.lower()
            cls.__annotations__["name"] = Annotated[Literal[cls.name], Field(description="which program")]
            TUNERS[cls.name] = cls

    @model_serializer(mode="wrap")
    def _with_name(self, rest: Callable[[Tuner], dict[str, Any]]) -> dict[str, Any]:
        return {"name": self.name, **rest(self)}

    def decide(self, view: View) -> Knobs:
        """Return the knobs to set."""
        raise NotImplementedError

    def policy(self) -> Policy:
        """Return the tuner as a policy."""
        return Policy(self.name, self.decide, float(getattr(self, "monitor_interval", 60)), first=self.first)


class _Script(Tuner):
    """The shell script ksmtuned, with the parameters of ksmtuned.conf."""

    monitor_interval: Interval = 60
    """time between two decisions (s)"""
    npages_boost: Delta = 300
    """added to the pages a batch while less than the threshold is free"""
    npages_decay: Delta = -50
    """added otherwise"""
    npages_min: Pages = 64
    """fewest pages a batch"""
    npages_max: Pages = 1250
    """most pages a batch"""
    sleep_msec: Pages = 10
    """sleep between two batches on a host of 16 GiB (ms): less on a larger one, but at least 10"""
    thres_coef: Pages = 20
    """the threshold: this share of the host's memory (%)"""
    thres_const: Pages = 2048
    """least threshold; compared with kB, so it never matters on a real host (kB)"""

    def decide(self, view: View) -> Knobs:
        """Stop ksmd while memory is ample, else set its pages and its sleep (tuners N1)."""
        total, threshold = view.total_kb, max(view.total_kb * self.thres_coef // 100, self.thres_const)
        committed = view.pss_kb if self.name == "proxmox" else view.rss_kb
        if committed + threshold < total and view.free_kb > threshold:
            return {"run": 0}
        more = self.npages_boost if view.free_kb < threshold else self.npages_decay
        pages = view.own.get("npages", 0) + more
        pages = self.npages_min if pages < self.npages_min else min(pages, self.npages_max)
        view.own["npages"] = pages
        sleep = max(10, self.sleep_msec * 16 * 1024 * 1024 // total)
        return {"pages_to_scan": pages, "sleep_millisecs": sleep, "run": 1}

    def conf(self) -> str:
        """Return the lines of /etc/ksmtuned.conf that set these values.

        >>> Ksmtuned(npages_max=2000).conf().splitlines()[4]
        'KSM_NPAGES_MAX=2000'
        """
        return "\n".join(f"{name}={getattr(self, field)}" for name, field in CONF.items())


class Ksmtuned(_Script):
    """ksmtuned as upstream, RHEL and Debian ship it; committed memory is the processes' RSS (tuners N1)."""


class Proxmox(_Script):
    """Proxmox VE's ksmtuned; committed memory is the processes' PSS, which falls as pages are merged (tuners N2)."""

    sleep_msec: Pages = 100
    """sleep between two batches on a host of 16 GiB (ms): less on a larger one, but at least 10"""


CONF = {f"KSM_{field.upper()}": field for field in _Script.model_fields if field != "name"}
"""Name in ksmtuned.conf → field of `Ksmtuned`."""


class _Agent(Tuner):
    """A program of a cluster that turns ksmd's knobs as ksmtuned does, but from what is in sysfs."""

    pages_boost: Delta = 300
    """added to the pages a batch while memory is short"""
    pages_decay: Delta = -50
    """added otherwise"""
    pages_min: Pages = 64
    """fewest pages a batch"""
    pages_max: Pages = 1250
    """most pages a batch"""
    free_percent: Pages = 20
    """the threshold: this share of the host's memory (%)"""


class KubeVirt(_Agent):
    """KubeVirt's virt-handler: decides at once, then every 10 minutes (tuners N3)."""

    first: ClassVar[float | None] = 0.0
    monitor_interval: Interval = 600
    """time between two decisions (s)"""
    pages_init: Pages = 100
    """pages a batch when ksmd is started"""
    sleep_ms_baseline: Pages = 100
    """sleep while 16 GiB are in use (ms); at least 10"""

    def decide(self, view: View) -> Knobs:
        """Start, hurry, slow down or stop ksmd (tuners N3)."""
        total, available, pages = view.total_kb, view.free_kb, int(view.knobs["pages_to_scan"])
        running = view.knobs["run"] == 1
        if available * 100 > total * self.free_percent:
            if not running:
                return {}
            pages += self.pages_decay
            if pages < self.pages_min:
                return {"pages_to_scan": self.pages_min, "run": 0}
        else:
            pages = min(pages + self.pages_boost, self.pages_max) if running else self.pages_init
        sleep = max(self.sleep_ms_baseline * 16 * 1024 * 1024 // max(1, total - available), 10)
        return {"pages_to_scan": pages, "sleep_millisecs": sleep, "run": 1}


class Mom(_Agent):
    """oVirt's memory overcommitment manager (tuners N4)."""

    monitor_interval: Interval = 10
    """time between two decisions (s)"""
    sleep_ms_baseline: Pages = 10
    """sleep on a host of 16 GiB (ms): less on a larger one, from 160 GiB on none"""

    def decide(self, view: View) -> Knobs:
        """Stop ksmd while memory is ample, else set its pages and its sleep (tuners N4)."""
        total, threshold = view.total_kb, view.total_kb * self.free_percent // 100
        if view.rss_kb + threshold < total and view.free_kb > threshold:
            return {"run": 0}
        more = self.pages_boost if view.free_kb < threshold else self.pages_decay
        pages = min(max(int(view.knobs["pages_to_scan"]) + more, self.pages_min), self.pages_max)
        return {"pages_to_scan": pages, "sleep_millisecs": self.sleep_ms_baseline * 16 * 1024 * 1024 // total, "run": 1}


class Kata(Tuner):
    """The throttler of Kata and Clear Containers: fast when a container starts, then ever slower (tuners N5)."""

    PHASES: ClassVar = ((30, 10, 1), (150, 100, 10), (270, 500, 100))
    """end (s after the start), share of the anonymous pages a batch (one in …), sleep (ms)"""

    def decide(self, view: View) -> Knobs:
        """Set the pace of the phase since the latest start of a container (tuners N5)."""
        phase = bisect(self.PHASES, view.time_s - view.booted_s, key=lambda phase: phase[0])
        if phase == len(self.PHASES):
            return {"pages_to_scan": 100, "sleep_millisecs": 20, "run": 1}
        _, share, sleep = self.PHASES[phase]
        return {"pages_to_scan": view.pss_kb // 4 // share, "sleep_millisecs": sleep, "run": 1}

    def policy(self) -> Policy:
        """Return the tuner as a policy that acts when a container starts and when a phase ends."""
        ends = (0, *(end for end, *_ in self.PHASES))
        return Policy(self.name, self.decide, times=lambda boots: sorted({b + end for b in boots for end in ends}))


def _pairs(knobs: Any) -> Any:
    return tuple(knobs.items()) if isinstance(knobs, Mapping) else knobs


Pairs = Annotated[tuple[tuple[str, int | str], ...], BeforeValidator(_pairs), PlainSerializer(dict)]
Step = tuple[Annotated[float, Field(ge=0)], Pairs]


class Schedule(Tuner):
    """Knobs that are set at given times."""

    steps: tuple[Step, ...] = ()
    """[[seconds, {knob: value, …}], …]"""

    def policy(self) -> Policy:
        """Return the tuner as a policy that acts at its times."""
        ordered = sorted(self.steps, key=lambda step: step[0])
        return Policy(self.name, lambda view: dict(ordered[view.calls][1]), times=tuple(at for at, _ in ordered))


def schedule(steps: Iterable[tuple[float, Knobs]]) -> Policy:
    """Return a policy that sets knobs at given times: [(seconds, {knob: value}), …].

    >>> schedule([(30, {"pages_to_scan": 1000}), (60, {"run": 0})]).times
    (30.0, 60.0)
    """
    steps = [(float(seconds), knobs) for seconds, knobs in steps]
    if early := [seconds for seconds, _ in steps if not seconds >= 0]:
        raise UserError(parameter="seconds", value=early[0], allowed="at least 0 (s)", where="schedule")
    return Schedule(steps=tuple(steps)).policy()


def read_conf(path: str | Path) -> dict[str, int]:
    """Return the parameters of `Ksmtuned` that a ksmtuned.conf sets (tuners N7).

    Raises
    ------
    UserError
        The file cannot be read; a name is unknown, or a value is no number: each with its line.
    """
    with reading(path):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    found: dict[str, int] = {}
    wrong: list[UserError] = []
    for number, line in enumerate(lines, 1):
        try:
            with located(f"{path}, line {number}"):
                found |= _assigned(line)
        except UserError as error:
            wrong.append(error)
    if wrong:
        wrong[0].others = tuple(wrong[1:])
        raise wrong[0]
    return found


def _assigned(line: str) -> dict[str, int]:
    """Return what a line of a ksmtuned.conf, which is shell, assigns."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(f"this is not shell: {error}", parameter="line", value=line) from None
    found = {}
    for name, _, value in (word.partition("=") for word in words if word != "export"):
        if name in ("LOGFILE", "DEBUG"):
            continue
        if name not in CONF:
            raise unknown("name", name, CONF)
        if not re.fullmatch(r"[-+]?\d+", value):
            raise UserError("is not a number", parameter=name, value=value, allowed="a whole number")
        found[CONF[name]] = int(value)
    return found


PolicyLike = str | Policy | Tuner | Decide | tuple[Decide, float]


def resolve(policy: PolicyLike | None) -> Policy | None:
    """Return a policy from a tuner or its name, a function with an attribute `interval` (s; 60 without), or (function,
    seconds).

    Raises
    ------
    UserError
        There is no such policy, or the interval is not a time.
    """
    if policy is None or policy == "none":
        return None
    if isinstance(policy, str):
        if policy not in TUNERS:
            raise unknown("policy", policy, ["none", *TUNERS])
        policy = TUNERS[policy]()
    if isinstance(policy, Tuner):
        return policy.policy()
    if not isinstance(policy, Policy):
        decide, interval = policy if isinstance(policy, tuple) else (policy, getattr(policy, "interval", 60.0))
        policy = Policy(getattr(decide, "__name__", "policy"), decide, float(interval))
    if not policy.interval >= MIN_INTERVAL:
        allowed = f"at least {MIN_INTERVAL} (s)"
        raise UserError(parameter="interval", value=policy.interval, allowed=allowed, where=f"policy {policy.name}")
    return policy


def scaled_pace(pages: int, sleep_millisecs: int, memory: int, factor: float, hz: int) -> tuple[int, int, float]:
    """Return ksmd's pace where `factor` times less is simulated (tuners N9): a full scan takes as long as on the host.

    Parameters
    ----------
    pages, sleep_millisecs
        pages_to_scan and sleep_millisecs of the real host.
    memory
        Pages that are simulated.
    factor
        How much larger the real host is.
    hz
        Ticks per second: a sleep lasts whole ticks, and one more.

    Returns
    -------
    tuple
        pages_to_scan, sleep_millisecs, and how many times longer the time from batch to batch is.
    """
    fewer = min(pages, max(1, math.ceil(pages / factor), memory // BATCHES_A_SCAN))
    longer = factor * fewer / pages if pages else 1.0
    tick_seconds = (-(-sleep_millisecs * hz // 1000) + 1) / hz
    return fewer, round(1000 * (tick_seconds * longer - 1 / hz)) if sleep_millisecs else 0, longer
