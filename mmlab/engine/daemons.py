"""What goes on beside ksmd, each by its own clock: guests, khugepaged, memory pressure, migration, and programs that
write to their memory.

A timer acts at its time, also in the middle of ksmd's sleep, but never inside a batch: what falls into one happens
after it, as often as it was due. A sample follows each action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmlab.kernel import memory
from mmlab.kernel.huge_memory import deferred_split_scan
from mmlab.kernel.khugepaged import khugepaged_do_scan
from mmlab.kernel.migrate import migrate_pages
from mmlab.kernel.state import ANON, PMD_HUGE_ZP, PMD_NONE, ZP_CLEAN, ZP_KSM
from mmlab.kernel.timer import schedule_timeout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmlab.engine.clock import Simulation

__all__ = ["FOREVER", "SECOND", "Timer", "timers"]

SECOND = 1_000_000_000
FOREVER = 1 << 62
WRITTEN = 1 << 40
"""Contents that activity writes are multiples of this, plus a number of their own below it."""
TICKS_PER_SECOND, TICKS_PER_PERIOD = 20, 100
"""Most steps in which the pages of a period are written; more of them would cost time and change little."""
CHOICE, HOT, WARM, CONTENT, MIGRATION, BALLOON = range(2, 8)  # streams of random numbers; 0 and 1 are the workload's


@dataclass
class Timer:
    """Something that acts at `next_ns`; `act` returns when it acts again (FOREVER: never)."""

    next_ns: int
    act: Callable[[], int]


def timers(s: Simulation) -> list[Timer]:
    """All timers of a run but a policy's. Of those that are due at the same time the first of the list acts first."""
    asked = s.scenario
    found = [Guests(s).timer()]
    if asked.ksm_start_seconds:
        found.append(Timer(round(asked.ksm_start_seconds * SECOND), lambda: _start_ksm(s)))
    found.append(s.khugepaged)
    if asked.khugepaged:
        s.khugepaged.next_ns = schedule_timeout(s.m, 0, asked.khugepaged_scan_sleep_millisecs)
    if asked.pressure_rate:
        found.append(_each_second(asked.pressure_rate, lambda folios: deferred_split_scan(s.m, folios)))
    if asked.migration_rate:
        found.append(Migration(s).timer())
    if asked.hot_fraction or asked.warm_fraction:
        found += Writes(s).timers()
    return [timer for timer in found if timer.next_ns < FOREVER or timer is s.khugepaged]


def _start_ksm(s: Simulation) -> int:
    s.set_knob("run", 1)
    return FOREVER


def _each_second(rate: float, act: Callable[[int], None]) -> Timer:
    """Does `rate` of something each second; fractions add up, and a second in which there is nothing to do is left out.

    After k seconds floor(rate × k) have been done.
    """
    second = done = 0

    def turn() -> int:
        nonlocal second, done
        if second:
            act(int(rate * second) - done)
            done = int(rate * second)
        second = max(second + 1, int((done + 1) / rate))
        while int(rate * second) == done:
            second += 1
        return second * SECOND

    return Timer(turn(), turn)


# --- khugepaged -----------------------------------------------------------------------------------------------------


def khugepaged(s: Simulation) -> Timer:
    """khugepaged (K1): one burst, then a sleep of khugepaged_scan_sleep_millisecs in whole ticks, at least one.

    It runs beside ksmd, so its bursts take it time, but not ksmd. At the start of a run a sleep begins.
    """

    def burst() -> int:
        state = s.m.state[0]
        pages = min(int(state["khugepaged_pages_to_scan"]), len(s.m.page))
        s.reserve(2 * pages + (2 << s.order))
        cpu_ns = int(khugepaged_do_scan(s.m))
        return int(schedule_timeout(s.m, s.now + cpu_ns, state["khugepaged_scan_sleep_millisecs"]))

    return Timer(FOREVER, burst)


# --- guests ---------------------------------------------------------------------------------------------------------


class Guests:
    """Processes that boot, give memory back and exit: one timer for all of them."""

    def __init__(self, s: Simulation) -> None:
        self.s = s
        asked, plan = s.scenario, []
        for i in range(len(s.images)):
            boots, exits = asked.boots_at(i), asked.exits_at(i)
            if exits is not None:
                plan.append((round(exits * SECOND), 0, i))
            if boots:
                plan.append((round(boots * SECOND), 1, i))
            if asked.balloon_fraction:
                plan.append((round((boots + asked.balloon_seconds) * SECOND), 2, i))
        self.plan = sorted(plan, reverse=True)  # the next one is the last

    def timer(self) -> Timer:
        return Timer(self._next(), self._act)

    def _next(self) -> int:
        return self.plan[-1][0] if self.plan else FOREVER

    def _act(self) -> int:
        _, what, process = self.plan.pop()
        if not self.s.m.mm[process + 1]["exited"]:
            (self.s.spaces.exit, self.s.boot, self._balloon)[what](process)
            self.s.spaces.publish()
        return self._next()

    def _balloon(self, process: int) -> int:
        """MADV_DONTNEED of a share of the process's 2 MiB blocks: those with most zero-filled pages, among equals at
        random. It does not write there again."""
        s, m = self.s, self.s.m
        mm, size = m.mm[process + 1], 1 << s.order
        base, blocks = int(mm["base"]), int(mm["pages"]) >> s.order
        pages = slice(base, base + blocks * size)
        kind, key = m.pte["kind"][pages], m.page["key"][pages]
        zero = (kind == ZP_CLEAN) | (kind == ZP_KSM) | ((kind == ANON) & (key == 0))
        luck = np.random.default_rng((s.scenario.seed, BALLOON, process)).random(blocks)
        order = np.lexsort((luck, -zero.reshape(blocks, size).sum(1)))
        chosen = np.zeros(blocks + 1, bool)
        chosen[order[: round(s.scenario.balloon_fraction * blocks)]] = True
        edges = np.flatnonzero(np.diff(chosen, prepend=False)).tolist()
        for first, end in zip(edges[::2], edges[1::2], strict=True):
            s.spaces.dontneed(process, first * size, end * size)
            s.given_back[base + first * size : base + end * size] = True
        return 0


# --- migration ------------------------------------------------------------------------------------------------------


class Migration:
    """Random 2 MiB blocks are migrated within their node, so many MiB a second; migration_huge_share says how often
    there is a huge page to move to (thp-split 3.6, G1)."""

    def __init__(self, s: Simulation) -> None:
        self.s = s
        self.rng = np.random.default_rng((s.scenario.seed, MIGRATION))

    def timer(self) -> Timer:
        return _each_second(self.s.scenario.migration_rate * 256 / (1 << self.s.order), self._migrate)

    def _migrate(self, blocks: int) -> None:
        m, size = self.s.m, 1 << self.s.order
        pmd = m.block["pmd"]
        there = np.flatnonzero((pmd != PMD_NONE) & (pmd != PMD_HUGE_ZP))
        chosen = self.rng.choice(there, min(blocks, len(there)), replace=False)
        huge = self.rng.random(len(chosen)) < self.s.scenario.migration_huge_share
        for block, whole in zip(chosen.tolist(), huge.tolist(), strict=True):
            self.s.reserve(2 * size)
            migrate_pages(m, block * size, (block + 1) * size, -1, int(whole))


# --- programs that write --------------------------------------------------------------------------------------------


class Writes:
    """Programs that write to their hot and warm pages: each page once in every period, with new content.

    Hot and warm pages are a random share of the pages of each process that are not zero-filled at the start; the others
    nobody writes. A period has up to 20 ticks a second and 100 in all; each tick writes an equal part of the pages, in
    random order over addresses and processes. Pages outside of writable VMAs, or given back by a balloon, are passed
    over.

    New contents are never equal to each other nor to any content of a generated workload: key = r × 2^40 + n, where n
    counts all writes of the run and r is random in 1 … 2^23 - 1 for each tick. In memcmp order they come after the
    contents of the start (explicit keys and keys of events should stay below 2^40), and the ticks' batches of pages lie
    in random order among each other, as pages do whose first bytes have changed.
    """

    def __init__(self, s: Simulation) -> None:
        self.s, self.written = s, 0
        asked = s.scenario
        self.rng = np.random.default_rng((asked.seed, CONTENT))
        hot, warm = [], []
        for i, image in enumerate(s.images):
            used = np.flatnonzero(image.keys) + int(s.m.mm[i + 1]["base"])
            dealt = np.random.default_rng((asked.seed, CHOICE, i)).permutation(used)
            n = [round(share * len(used)) for share in (asked.hot_fraction, asked.hot_fraction + asked.warm_fraction)]
            hot.append(dealt[: n[0]])
            warm.append(dealt[n[0] : n[1]])
        self.hot, self.warm = np.concatenate(hot), np.concatenate(warm)

    def timers(self) -> list[Timer]:
        asked = self.s.scenario
        return [
            self._timer(HOT, self.hot, asked.hot_period_seconds),
            self._timer(WARM, self.warm, asked.warm_period_seconds),
        ]

    def _timer(self, stream: int, pages: NDArray[np.int64], period: float) -> Timer:
        n, period_ns = len(pages), round(period * SECOND)
        if n == 0:
            return Timer(FOREVER, lambda: FOREVER)
        order = np.random.default_rng((self.s.scenario.seed, stream)).permutation(pages).astype(np.int32)
        ticks = max(1, min(int(TICKS_PER_SECOND * period), TICKS_PER_PERIOD, n))
        count = 0

        def tick() -> int:
            nonlocal count
            at = count % ticks
            self._write(order[at * n // ticks : (at + 1) * n // ticks])
            count += 1
            return (count + 1) * period_ns // ticks

        return Timer(period_ns // ticks, tick)

    def _write(self, pages: NDArray[np.int32]) -> None:
        s, m = self.s, self.s.m
        pages = pages[~s.given_back[pages]]
        pmd = m.block["pmd"][pages >> s.order]
        births = int(((pmd == PMD_NONE) | (pmd == PMD_HUGE_ZP)).sum())  # each fault there may bring a huge page
        s.reserve(len(pages) + (births << s.order) + (2 << s.order))
        m.listed = pages
        key = int(self.rng.integers(1, 1 << 23)) * WRITTEN + self.written
        memory.write_listed_pages(m, len(pages), np.uint64(key))
        self.written += len(pages)
