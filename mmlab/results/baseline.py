"""The baseline: the same memory with KSM and khugepaged off, on a kernel whose splits remap nothing."""

import numpy as np

from mmlab.engine.clock import Clock
from mmlab.engine.outcome import Outcome
from mmlab.kernel.state import FIRST, SETTLED
from mmlab.scenario import After, Event, Scenario
from mmlab.variants import resolve

BY_THE_CLOCK = {"horizon_full_scans": 0, "horizon_batches": 0, "until_settled": False}
"""A run that ends after `horizon_seconds`, not when it happens to be done."""
_OFF = {"run": 0, "ksm_start_seconds": 0.0, "policy": "none", "advisor_mode": "none", "khugepaged": 0}


def baseline(scenario: Scenario) -> Outcome:
    """Simulate the same processes and events up to `horizon_seconds` without KSM and khugepaged.

    No split remaps, so memory that other splits give back counts as freed, too.
    """
    events = tuple(e for e in scenario.events if e.op != "khugepaged" and not any(map(e.sets, (*_OFF, "variant"))))
    alone = scenario.replace(**_OFF, **BY_THE_CLOCK, events=events)
    return Clock(alone, resolve("legacy")).run()[0]


def born(o: Outcome) -> tuple[np.ndarray, int, int]:
    """Return by how much the frames of a run's baseline have grown since the start.

    Without a second run where no memory is born, dies or is swapped, so that the number of pages that are mapped
    stays the same: there the baseline cannot change.

    Returns
    -------
    tuple
        int64[samples]: at each sample; then at the end of the first full scan, and of that in which the run settled.
    """
    rows, passes = o.rows, o.machine.passes["time_ns"]
    if not np.ptp(rows["anon_pages"] + rows["zeropage_entries"]):
        return np.zeros(len(rows), np.int64), 0, 0
    place = rows["batch"] << 32 | rows["rank"]
    if not o.kept:
        happened = ((e, row) for e, row in zip(o.scenario.events, o.event_rows, strict=True) if row is not None)
        events = tuple(_timed(e, int(rows["time_ns"][row])) for e, row in happened if e.op != "sleep")
        seconds = max(1, int(rows["time_ns"][-1])) / 1e9
        alone = baseline(o.scenario.replace(events=events, stepped=False, horizon_seconds=seconds)).rows
        at = np.searchsorted(alone["time_ns"], rows["time_ns"], side="right") - 1
        at_passes = np.searchsorted(alone["time_ns"], passes).clip(min=1) - 1
        o.kept["born"] = place, *(alone["frames"][i] - alone["frames"][0] for i in (at, at_passes))
    places, grown, at_passes = o.kept["born"]
    grown = grown[np.searchsorted(places, place)]
    return grown, int(at_passes[FIRST]), int(at_passes[SETTLED])


def _timed(event: Event, time_ns: int) -> Event:
    """Return an event as it happened in a run, tied to its time: the baseline has no batches."""
    timed = {"after": After(seconds=time_ns / 1e9)}
    return event if event.after.every else event.model_copy(update=timed)
