"""The clock: ksmd's batches, the scenario's events and the timers of daemons in one order of simulated time.

Simulated time is an integer of ns; wall-clock time never enters a result.
"""

import heapq
import operator
from collections.abc import Callable, Iterable

import numpy as np

from mmlab.engine import daemons
from mmlab.engine.costs import CostSet, cost_set
from mmlab.engine.events import happen
from mmlab.engine.outcome import Outcome, Places, Recorder
from mmlab.engine.system import FOREVER, SECOND, System, Timer
from mmlab.errors import UserError, located
from mmlab.kernel import ksm
from mmlab.kernel.state import LAST, SETTLED, mthp_t, stat_t
from mmlab.policies import Policy
from mmlab.scenario import Scenario
from mmlab.variants import Variant

CHUNK = 4096
"""Most batches that run in compiled code before Python looks again."""
CHUNK_PAGES = 1 << 19
"""Most pages that they visit: less than a second, so that progress and Ctrl-C need not wait long."""

Observer = Callable[[System], None]


class Clock:
    """Drives one scenario from its start to its horizon.

    Parameters
    ----------
    scenario, variant, policy
        What to run.
    costs
        What steps cost; by default what the scenario says (`mmlab.engine.costs.CostSet.of`).
    maps_at
        Where to keep page maps and frame counts; see `mmlab.results.run.simulate`.
    observe
        Called after every sample.
    samples_at
        Times (s) whose samples are not thinned out.

    Raises
    ------
    UserError
        The run would never end, or needs more memory than there is.
    """

    def __init__(
        self,
        scenario: Scenario,
        variant: Variant,
        policy: Policy | None = None,
        costs: CostSet | None = None,
        maps_at: Places = None,
        observe: Observer | None = None,
        samples_at: Iterable[float] = (),
    ) -> None:
        costs = costs or cost_set(scenario.costs).of(scenario)
        _check_end(scenario, policy, costs)
        self.scenario, self.variant, self.observe = scenario, variant, observe
        self.system = System(scenario, variant, costs)
        self.system.timers = daemons.timers(self.system)
        if policy is not None:
            self.system.timers["policy"] = Timer(daemons.tuner(self.system, policy))
        self.recorder = Recorder(self.system, maps_at, samples_at)
        ends = round(scenario.horizon_seconds * SECOND), scenario.horizon_batches, scenario.horizon_full_scans
        self.ends = [end or FOREVER for end in ends]
        """Time (ns), batches and full scans that end the run."""
        times = [(event.after.seconds, i) for i, event in enumerate(scenario.events)]
        self.timed = sorted((round(seconds * SECOND), i) for seconds, i in times if seconds is not None)
        """Events tied to seconds: when each happens next, and its number."""
        self.pending = [i for seconds, i in times if seconds is None]
        """The other events that have not happened yet."""
        self.results: list[int | None] = [None] * len(scenario.events)
        self.event_ids = [-1] * len(scenario.events)
        self._rows = np.zeros(CHUNK, stat_t)
        self._mthp = np.zeros((CHUNK if self.recorder.mthp else 0, 10), mthp_t)

    def run(
        self, progress: Callable[[float], None] | None = None, interrupted: Callable[[], bool] | None = None
    ) -> tuple[Outcome, bool]:
        """Run to the end; return the outcome, and whether `interrupted` ended it early.

        Parameters
        ----------
        progress
            Called now and then with the share of the run that is done, 0 to 1.
        interrupted
            Asked before each step whether to stop there.
        """
        m, stopped = self.system.m, False
        self._sample()
        self._catch_up()
        if self.scenario.stepped:
            m.state[0]["run"] = 1
        while not self._ended():
            stopped = interrupted is not None and interrupted()
            if stopped or not self._advance():
                break
            self._catch_up()
            if progress:
                progress(min(1.0, max(map(operator.truediv, self._reached(), self.ends))))
        if self.system.now > int(m.stat[0]["time_ns"]):  # time passed with nothing to do
            self._sample()
        outcome = self.recorder.finish(self.variant.name, self.results, self.event_ids)
        self.system.timers.clear()  # they refer to the system: a cycle would keep its memory
        return outcome, stopped

    # --- what happens -----------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        self.recorder.add_now()
        if self.observe:
            self.observe(self.system)

    def _catch_up(self) -> None:
        """Do what is due: first, in order of time, what has a time (at the same time events before timers); then, in
        list order, the events after this batch or full scan."""
        system, stat = self.system, self.system.m.stat[0]
        waiting = ((i, self.scenario.events[i].after) for i in self.pending)
        due = [i for i, a in waiting if stat["batch"] >= (a.batch or 0) and stat["full_scans"] >= (a.full_scan or 0)]
        while True:
            event_ns = self.timed[0][0] if self.timed else FOREVER
            timer = system.next_timer()
            if event_ns <= system.now and (timer is None or event_ns <= timer.next_ns):
                _, i = heapq.heappop(self.timed)
                if every := self.scenario.events[i].after.every:
                    heapq.heappush(self.timed, (event_ns + round(every * SECOND), i))
                self._event(i)
            elif timer is not None and timer.next_ns <= system.now and not self.scenario.stepped:
                stat["rank"], stat["time_ns"], stat["freed_by_batch"] = stat["rank"] + 1, system.now, 0
                timer.act()
                self._sample()
            elif due:
                i = due.pop(0)
                self.pending.remove(i)
                self._event(i)
            else:
                return

    def _event(self, i: int) -> None:
        stat = self.system.m.stat[0]
        stat["rank"], stat["time_ns"] = stat["rank"] + 1, self.system.now
        with located(f"events {i}"):
            self.results[i] = happen(self.system, self.scenario.events[i])
        self.event_ids[i] = self.recorder.total
        self._sample()

    # --- ksmd -------------------------------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Let ksmd run until something else is due, or time pass if it does not; False if nothing can ever happen."""
        s, system, (_, batch, full_scans) = self.scenario, self.system, self._reached()
        timer = None if s.stepped else system.next_timer()  # in a trace timers act during a sleep event
        events_ns = self.timed[0][0] if self.timed else FOREVER
        until = min(self.ends[0], events_ns, timer.next_ns if timer else FOREVER)
        waiting = [s.events[i].after for i in self.pending]
        batches = [max(after.batch, batch + 1) for after in waiting if after.batch is not None]
        scans = 1 if any(after.full_scan is not None for after in waiting) else self.ends[2] - full_scans
        if self._batches(until, min([*batches, self.ends[1]]) - batch, scans):
            return True
        if s.stepped and system.wake < until:
            self._idle_batch()
            return True
        if until < FOREVER:
            system.now = max(system.now, until)
        return until < FOREVER

    def _batches(self, until_ns: int, most: int, full_scans: int) -> bool:
        """Let ksmd run up to a time, a number of batches or of full scans; return False if it does not run.

        From an untimed sleep it wakes at once (ksm-scan S4).
        """
        system, m, stat = self.system, self.system.m, self.system.m.stat[0]
        system.reserve(ksm.batch_room(m))
        rank, stat["rank"] = int(stat["rank"]), 0
        places = self.recorder.maps_at
        if self.observe or places == "all":
            most = 1
        elif isinstance(places, set):
            batch = int(stat["batch"])
            most = min([most, *(place[0] - batch for place in places if place[0] > batch)])
        rows = self._rows[: min(most, CHUNK, 1 + CHUNK_PAGES // max(1, int(m.state[0]["pages_to_scan"])))]
        target = int(stat["full_scans"]) + full_scans
        wake = max(system.wake, system.now)
        done, system.wake = ksm.ksm_scan_thread(
            m, wake, len(rows), until_ns, target, self.scenario.until_settled, rows, self._mthp
        )
        if not done:
            stat["rank"] = rank
            return False
        system.now = int(stat["time_ns"])
        self.recorder.add(rows[:done], self._mthp[:done])
        if self.observe:
            self.observe(system)
        return True

    def _idle_batch(self) -> None:
        """Count a batch of a ksmd that has nothing to do, as a recorder does that steps it."""
        system, stat = self.system, self.system.m.stat[0]
        stat["rank"] = stat["freed_by_batch"] = 0
        stat["batch"] += 1
        system.wake = ksm.ksmd_wakes_at(system.m, system.now)
        system.now = system.wake
        self._sample()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _reached(self) -> tuple[int, int, int]:
        """Return the time (ns), the batches and the full scans up to now; the kernel's counter restarts with run=2."""
        m = self.system.m
        return self.system.now, int(m.stat[0]["batch"]), int(m.passes[LAST]["full_scan"])

    def _ended(self) -> bool:
        settled = self.scenario.until_settled and self.system.m.passes[SETTLED]["full_scan"] > 0
        return bool(settled) or any(map(operator.ge, self._reached(), self.ends))


def _check_end(scenario: Scenario, policy: Policy | None, costs: CostSet) -> None:
    """Raise UserError for a run whose end would never come."""
    if policy is not None and not policy.times and not scenario.horizon_seconds:
        problem = f"the run might never end with policy {policy.name}"
        raise UserError(problem, parameter="horizon_seconds", value=0.0, allowed="more than 0 s")
    no_time = not scenario.sleep_millisecs and not costs.table.any()
    scans = scenario.horizon_full_scans or scenario.until_settled
    if no_time and not scenario.horizon_batches and not (scans and scenario.pages_to_scan):
        problem = "with sleep_millisecs = 0 time would stand still"
        hint = "Choose another cost set, sleep_millisecs of at least 1, or end the run by horizon_batches."
        raise UserError(problem, parameter="costs", value=scenario.costs, hint=hint)
    scans = scenario.pages_to_scan or scenario.sets("pages_to_scan")
    if not (scans or scenario.horizon_seconds or scenario.horizon_batches):
        problem, hint = "no full scan ever ends, so the run would not end", "Or set horizon_seconds or horizon_batches."
        raise UserError(problem, parameter="pages_to_scan", value=0, allowed="at least 1", hint=hint)
