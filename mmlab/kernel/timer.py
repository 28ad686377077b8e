"""Time: jiffies, timed sleeps, and the CPU time of ksmd and khugepaged (kernel/time/timer.c)."""

from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.state import *


@compiled
def jiffies(m, ns):
    """Return the number of timer ticks up to a time in ns."""
    hz = m.state[0].hz
    return ns // 1_000_000_000 * hz + ns % 1_000_000_000 * hz // 1_000_000_000


@entry
def schedule_timeout(m, now_ns, millisecs):
    """Return the end of a sleep that starts now, ns: the tick after `millisecs` rounded up to ticks (ksm-scan S3)."""
    s = m.state[0]
    tick = jiffies(m, now_ns) + (millisecs * s.hz + 999) // 1000 + 1
    return tick // s.hz * 1_000_000_000 + tick % s.hz * 1_000_000_000 // s.hz


@compiled
def cpu_ns(m, first, end):
    """Return the CPU time of all steps so far whose numbers are in [first, end), ns: ksmd's come first."""
    total = 0
    for i in range(first, end):
        total += m.steps[i] * m.costs[i]
    return total
