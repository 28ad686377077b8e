"""Daemons: what acts beside ksmd, each by its own clock: guests, khugepaged, memory pressure, migration, programs that
write to their memory, and a policy that turns knobs.

A daemon is a generator: it yields the time at which it acts next (ns), and acts when it is resumed. It acts at that
time also in the middle of ksmd's sleep, but never inside a batch: what falls into one happens after it, as often as it
was due. A sample follows each action.
"""

from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmlab.engine.system import FOREVER, GIVEN_BACK, SECOND, System, Timer
from mmlab.errors import located
from mmlab.kernel.huge_memory import deferred_split_scan
from mmlab.kernel.khugepaged import khugepaged_do_scan
from mmlab.kernel.migrate import migrate_pages
from mmlab.kernel.state import ADVISOR_MODES, ANON, KNOBS, PMD_HUGE_ZP, PMD_NONE, ZP_CLEAN, ZP_KSM
from mmlab.kernel.timer import schedule_timeout
from mmlab.policies import Policy, View, scaled_pace
from mmlab.scenario import check_knob

WRITTEN = 1 << 40
"""Contents that programs write are a multiple of this plus a number of their own below it."""
TICKS_PER_SECOND, TICKS_PER_PERIOD = 20, 100
"""Most steps in which the pages of a period are written; more of them would cost time and change little."""
CHOICE, HOT, WARM, CONTENT, MIGRATION, BALLOON = range(2, 8)  # streams of random numbers; 0 and 1 are the workload's


def timers(s: System) -> dict[str, Timer]:
    """Return the timers of all daemons of a scenario by name; of those due at the same time the first acts first."""
    daemons = {"guests": guests(s), "ksm_start": ksm_start(s), "khugepaged": khugepaged(s)}
    daemons |= {"pressure": pressure(s), "migration": migration(s)}
    if s.scenario.hot_fraction or s.scenario.warm_fraction:
        daemons |= writes(s)
    found = {name: Timer(daemon) for name, daemon in daemons.items()}
    return {name: timer for name, timer in found.items() if timer.next_ns < FOREVER or name == "khugepaged"}


def _each_second(rate: float, act: Callable[[int], None]) -> Iterator[int]:
    """Do `rate` of something each second: after k seconds floor(rate × k) in all.

    A second in which there is nothing to do is left out.
    """
    second = done = 0
    while rate:
        second = max(second + 1, int((done + 1) / rate))
        if more := int(rate * second) - done:
            yield second * SECOND
            act(more)
            done += more


def ksm_start(s: System) -> Iterator[int]:
    """Set run to 1 after ksm_start_seconds."""
    if s.scenario.ksm_start_seconds:
        yield round(s.scenario.ksm_start_seconds * SECOND)
        s.set_knob("run", 1)


def pressure(s: System) -> Iterator[int]:
    """Let the shrinker scan `pressure_rate` folios of the deferred split queue a second (thp-split Q3)."""
    return _each_second(s.scenario.pressure_rate, lambda folios: deferred_split_scan(s.m, folios))


# --- who turns knobs ------------------------------------------------------------------------------------------------


def tuner(s: System, policy: Policy) -> Iterator[int]:
    """Call a policy at its times and set its knobs.

    On a host that is simulated smaller, the policy sees and sets the knobs of the real one, and ksmd's pace is scaled
    down (tuners N9).
    """
    asked, own, real = s.scenario, dict[str, Any](), dict[str, int | str]()
    boots = sorted(asked.boots_at(process) for process in range(len(s.images)))
    for calls, seconds in enumerate(policy.moments(boots)):
        yield round(seconds * SECOND)
        view = _view(s, calls, own, real)
        knobs = dict(policy.decide(view))
        for knob, value in knobs.items():
            with located(f"policy {policy.name} at {view.time_s:g} s"):
                check_knob(knob, value)
        if asked.host_scale > 1:
            real |= {**view.knobs, **knobs}
            pages, sleep = int(real["pages_to_scan"]), int(real["sleep_millisecs"])
            pages, sleep, _ = scaled_pace(pages, sleep, len(s.m.page), asked.host_scale, asked.hz)
            knobs |= {"pages_to_scan": pages, "sleep_millisecs": sleep}
        now = _knobs(s)
        for knob, value in knobs.items():
            if now.get(knob) != value:
                s.set_knob(knob, value)


def _knobs(s: System) -> dict[str, int | str]:
    state = s.m.state[0]
    return {name: int(state[name]) for name in KNOBS} | {"advisor_mode": ADVISOR_MODES[int(state["advisor_mode"])]}


def _view(s: System, calls: int, own: dict[str, Any], real: dict[str, int | str]) -> View:
    asked, stat = s.scenario, s.m.stat[0]
    knobs = _knobs(s)
    knobs["pages_to_scan"] = round(int(knobs["pages_to_scan"]) * asked.host_scale)
    counters = {name: int(stat[name]) for name in stat.dtype.names or ()} | {"time_ns": s.now}
    total, held = asked.host_mib * 1024, int(counters["frames"] * 4 * asked.host_scale)
    boots = (asked.boots_at(process) for process in range(len(asked.specs)))
    return View(
        time_s=s.now / SECOND,
        calls=calls,
        knobs=knobs | real,
        total_kb=total,
        free_kb=max(0, total - held),
        rss_kb=int(counters["anon_pages"] * 4 * asked.host_scale),
        pss_kb=held,
        booted_s=max((boot for boot in boots if boot * SECOND <= s.now), default=0.0),
        counters=counters,
        own=own,
    )


# --- khugepaged -----------------------------------------------------------------------------------------------------


def khugepaged(s: System) -> Iterator[int]:
    """Run khugepaged (khugepaged K1): one burst, then a sleep of khugepaged_scan_sleep_millisecs.

    The sleep lasts whole ticks, at least one; a run starts with one. khugepaged runs beside ksmd, whose time its bursts
    do not take.
    """
    state = s.m.state[0]
    first = int(schedule_timeout(s.m, 0, state["khugepaged_scan_sleep_millisecs"]))
    yield first if s.scenario.khugepaged else FOREVER  # until the knob is set
    while True:
        pages = min(int(state["khugepaged_pages_to_scan"]), len(s.m.page))
        s.reserve(2 * pages + (2 << s.order))
        cpu_ns = int(khugepaged_do_scan(s.m))
        yield int(schedule_timeout(s.m, s.now + cpu_ns, state["khugepaged_scan_sleep_millisecs"]))


# --- guests ---------------------------------------------------------------------------------------------------------


def guests(s: System) -> Iterator[int]:
    """Let processes boot, grow, give memory back and exit.

    A process that grows touches the rest of its memory in up to 20 ticks a second and 100 in all, each an equal part of
    the addresses. Pages that were given back are skipped, and those outside of writable VMAs.
    """
    asked = s.scenario
    acts: tuple[Callable[..., object], ...] = (s.spaces.exit, s.boot, lambda process: _balloon(s, process), s.touch)
    plan: list[tuple[int, ...]] = []  # when, what (index of `acts`), process, for `touch` first and end
    for process in range(len(s.images)):
        boots, exits = asked.boots_at(process), asked.exits_at(process)
        moments = exits, boots or None, boots + asked.balloon_seconds if asked.balloon_fraction else None
        plan += [(round(when * SECOND), what, process) for what, when in enumerate(moments) if when is not None]
        if seconds := asked.specs[process].growth_seconds:
            first, end = int(np.argmin(s.images[process].touched)), int(s.m.mm[process + 1]["pages"])
            ticks = max(1, min(int(TICKS_PER_SECOND * seconds), TICKS_PER_PERIOD))
            ends = [first + (end - first) * tick // ticks for tick in range(ticks + 1)]
            times = [round((boots + seconds * (tick + 1) / ticks) * SECOND) for tick in range(ticks)]
            plan += [(when, 3, process, *part) for when, part in zip(times, pairwise(ends), strict=True)]
    for when, what, process, *pages in sorted(plan):
        yield when
        if not s.m.mm[process + 1]["exited"]:
            acts[what](process, *pages)
            s.spaces.publish()


def _balloon(s: System, process: int) -> None:
    """Give back a share of a process's 2 MiB blocks, or pages, by MADV_DONTNEED; it does not write there again.

    Those with most zero-filled pages go first, among equals at random.
    """
    m, size = s.m, 1 if s.scenario.balloon_granularity == "4K" else 1 << s.order
    base, units = int(m.mm[process + 1]["base"]), int(m.mm[process + 1]["pages"]) // size
    pages = slice(base, base + units * size)
    kind, key = m.pte["kind"][pages], m.page["key"][pages]
    zero = (kind == ZP_CLEAN) | (kind == ZP_KSM) | ((kind == ANON) & (key == 0))
    luck = np.random.default_rng((s.scenario.seed, BALLOON, process)).random(units)
    order = np.lexsort((luck, -zero.reshape(units, size).sum(1)))
    for first in np.sort(order[: round(s.scenario.balloon_fraction * units)] * size).tolist():
        s.spaces.dontneed(process, first, first + size)
        s.away[base + first : base + first + size] = GIVEN_BACK


# --- migration ------------------------------------------------------------------------------------------------------


def migration(s: System) -> Iterator[int]:
    """Migrate random 2 MiB blocks within their node, `migration_rate` MiB a second.

    `migration_huge_share` is the share of them for which there is a huge page to move to (thp-split 3.6, G1).
    """
    rng, size = np.random.default_rng((s.scenario.seed, MIGRATION)), 1 << s.order

    def migrate(blocks: int) -> None:
        pmd = s.m.block["pmd"]
        mapped = np.flatnonzero((pmd != PMD_NONE) & (pmd != PMD_HUGE_ZP))
        chosen = rng.choice(mapped, min(blocks, len(mapped)), replace=False)
        huge = rng.random(len(chosen)) < s.scenario.migration_huge_share
        for block, whole in zip(chosen.tolist(), huge.tolist(), strict=True):
            s.reserve(2 * size)
            migrate_pages(s.m, block * size, (block + 1) * size, -1, int(whole))

    return _each_second(s.scenario.migration_rate * 256 / size, migrate)


# --- programs that write --------------------------------------------------------------------------------------------


def writes(s: System) -> dict[str, Iterator[int]]:
    """Return daemons that write to the hot and the warm pages of programs: each page once a period, with new content.

    Hot and warm pages are a random share of those pages of each process that are not zero-filled at the start; nobody
    writes the others. A period has up to 20 ticks a second and 100 in all; each tick writes an equal part of the pages,
    in random order over addresses and processes. Pages outside of writable VMAs, not touched yet, or given back by a
    balloon are skipped.

    New contents never equal each other or any content of a generated workload: key = r × 2^40 + n, where n counts all
    writes of the run and r is random in 1 … 2^23 - 1 for each tick. In memcmp order they come after the contents of the
    start (explicit keys and keys of events should stay below 2^40), and the batches of pages of different ticks lie in
    random order among each other, as pages do whose first bytes have changed.
    """
    asked = s.scenario
    rng = np.random.default_rng((asked.seed, CONTENT))
    parts, written = [], 0
    for i, image in enumerate(s.images):
        used = np.flatnonzero(image.keys) + s.spaces.base(i)
        dealt = np.random.default_rng((asked.seed, CHOICE, i)).permutation(used)
        share = asked.specs[i].hot_fraction or 0.0
        parts.append(np.split(dealt, [round(part * len(used)) for part in (share, share + asked.warm_fraction)])[:2])
    hot, warm = map(np.concatenate, zip(*parts, strict=True))

    def write(pages: NDArray[np.int32]) -> None:
        nonlocal written
        pages = pages[s.away[pages] == 0]
        key = int(rng.integers(1, 1 << 23)) * WRITTEN + written
        s.write(pages, np.uint64(key) + np.arange(len(pages), dtype=np.uint64))
        written += len(pages)

    def daemon(stream: int, pages: NDArray[np.int64], period: float) -> Iterator[int]:
        n, period_ns = len(pages), round(period * SECOND)
        order = np.random.default_rng((asked.seed, stream)).permutation(pages).astype(np.int32)
        ticks = max(1, min(int(TICKS_PER_SECOND * period), TICKS_PER_PERIOD, n))
        for tick in count() if n else ():
            yield (tick + 1) * period_ns // ticks
            at = tick % ticks
            write(order[at * n // ticks : (at + 1) * n // ticks])

    return {
        "hot": daemon(HOT, hot, asked.hot_period_seconds),
        "warm": daemon(WARM, warm, asked.warm_period_seconds),
    }
