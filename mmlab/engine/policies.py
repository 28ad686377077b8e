"""Policies: programs that turn ksmd's knobs while a scenario runs, as ksmtuned does.

A policy is a function of a `View`; it is called at a fixed interval and returns the knobs to set:

>>> def gentle(view):
...     return {"run": int(view.free_mib < 1024)}
>>> gentle.interval = 10
>>> resolve(gentle).interval
10.0

`simulate(scenario, policy=gentle)`, or `policy=(gentle, 10)`, or the name of one of `POLICIES`. A knob that already has
the value is not written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from mmlab.engine.system import SECOND, System
from mmlab.errors import UserError, located, unknown
from mmlab.kernel.state import ADVISOR_MODES, KNOBS
from mmlab.scenario import check_knob

__all__ = ["POLICIES", "Ksmtuned", "Policy", "View", "daemon", "ksmtuned", "resolve", "schedule"]

Knobs = Mapping[str, int | str]
MIN_INTERVAL = 0.001


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
    free_mib, host_mib
        Free and total memory of the host, MiB. Free is what the scenario's processes do not hold in frames, at least 0.
    committed_mib
        Address space of all living processes, MiB.
    counters
        Current counters, under the names of the table of samples.
    """

    time_s: float
    calls: int
    knobs: Knobs
    free_mib: float
    committed_mib: float
    host_mib: int
    counters: Mapping[str, int]


@dataclass(frozen=True)
class Policy:
    """A named function `decide`, called every `interval` seconds, or only at `times` (s, ascending) if there are any.

    The first call comes after one interval.
    """

    name: str
    decide: Callable[[View], Knobs]
    interval: float = 60.0
    times: tuple[float, ...] = ()


PolicyLike = str | Policy | Callable[[View], Knobs] | tuple[Callable[[View], Knobs], float]


@dataclass(frozen=True)
class Ksmtuned:
    """ksmtuned with the values of ksmtuned.conf, by default as Proxmox and oVirt publish it (thread 3c).

    The threshold is `thres_coef` % of the host's memory, at least `thres_const` MiB. ksmd stops while more memory than
    the threshold is free, and the processes' address space leaves more than it uncommitted. Otherwise ksmd runs: each
    call adds `npages_boost` to its pages a batch while less than the threshold is free, else `npages_decay` (below 0),
    within `npages_min` … `npages_max`. It sleeps `sleep_msec` on a host of 16 GiB, less on a larger one but at
    least 10 ms.

    >>> Ksmtuned(npages_max=2000).conf().splitlines()[-4]
    'KSM_NPAGES_MAX=2000'
    """

    monitor_interval: int = 60
    npages_boost: int = 300
    npages_decay: int = -50
    npages_min: int = 64
    npages_max: int = 1250
    sleep_msec: int = 100
    thres_coef: int = 20
    thres_const: int = 2048

    def __call__(self, view: View) -> Knobs:
        threshold = max(self.thres_const, view.host_mib * self.thres_coef // 100)
        if view.committed_mib + threshold < view.host_mib and view.free_mib > threshold:
            return {"run": 0}
        more = self.npages_boost if view.free_mib < threshold else self.npages_decay
        pages = min(max(int(view.knobs["pages_to_scan"]) + more, self.npages_min), self.npages_max)
        sleep = max(10, self.sleep_msec * 16 * 1024 // view.host_mib)
        return {"pages_to_scan": pages, "sleep_millisecs": sleep, "run": 1}

    def policy(self) -> Policy:
        """Return these settings as a policy, called every `monitor_interval` seconds."""
        return Policy("ksmtuned", self, float(self.monitor_interval))

    def conf(self) -> str:
        """Return the lines of /etc/ksmtuned.conf that set these values."""
        return "\n".join(f"KSM_{name.upper()}={value}" for name, value in vars(self).items())


def ksmtuned(view: View) -> Knobs:
    """Decide as ksmtuned with its published values, every 60 s; see `Ksmtuned`."""
    return Ksmtuned()(view)


POLICIES = {"ksmtuned": Policy("ksmtuned", ksmtuned, 60.0)}
"""Built-in policies by name."""


def schedule(steps: Iterable[tuple[float, Knobs]]) -> Policy:
    """Return a policy that sets knobs at given times: [(seconds, {knob: value}), …].

    >>> schedule([(30, {"pages_to_scan": 1000}), (60, {"run": 0})]).times
    (30.0, 60.0)
    """
    ordered = sorted(((float(seconds), knobs) for seconds, knobs in steps), key=lambda step: step[0])
    if ordered and ordered[0][0] < 0:
        raise UserError(parameter="seconds", value=ordered[0][0], allowed="at least 0 (s)", where="schedule")
    return Policy("schedule", lambda view: ordered[view.calls][1], times=tuple(seconds for seconds, _ in ordered))


def resolve(policy: PolicyLike | None) -> Policy | None:
    """Return a policy from its name, a function with an attribute `interval` (s; 60 without), or (function, seconds).

    Raises
    ------
    UserError
        There is no such policy, or the interval is not a time.
    """
    if policy is None or policy == "none":
        return None
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise unknown("policy", policy, ["none", *POLICIES])
        return POLICIES[policy]
    if not isinstance(policy, Policy):
        decide, interval = policy if isinstance(policy, tuple) else (policy, getattr(policy, "interval", 60.0))
        policy = Policy(getattr(decide, "__name__", "policy"), decide, float(interval))
    if not policy.interval >= MIN_INTERVAL:
        allowed = f"at least {MIN_INTERVAL} (s)"
        raise UserError(parameter="interval", value=policy.interval, allowed=allowed, where=f"policy {policy.name}")
    return policy


def daemon(s: System, policy: Policy) -> Iterator[int]:
    """Call a policy at its times and set its knobs; see `mmlab.engine.daemons`."""
    for calls, seconds in enumerate(policy.times or (k * policy.interval for k in count(1))):
        yield round(seconds * SECOND)
        view = _view(s, calls)
        for knob, value in policy.decide(view).items():
            with located(f"policy {policy.name} at {view.time_s:g} s"):
                check_knob(knob, value)
            if view.knobs.get(knob) != value:
                s.set_knob(knob, value)


def _view(s: System, calls: int) -> View:
    state, stat, host = s.m.state[0], s.m.stat[0], s.scenario.host_mib
    knobs: dict[str, int | str] = {name: int(state[name]) for name in KNOBS}
    knobs["advisor_mode"] = ADVISOR_MODES[int(state["advisor_mode"])]
    counters = {name: int(stat[name]) for name in stat.dtype.names or ()} | {"time_ns": s.now}
    return View(
        time_s=s.now / SECOND,
        calls=calls,
        knobs=knobs,
        free_mib=max(0.0, host - counters["frames"] / 256),
        committed_mib=sum(v.end - v.start for vmas in s.spaces.vmas for v in vmas) / 256,
        host_mib=host,
        counters=counters,
    )
