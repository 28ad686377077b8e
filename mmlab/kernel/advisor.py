"""The scan-time advisor, which sets pages_to_scan (mm/ksm.c; ksm-scan S29 to S32)."""

from mmlab.kernel.decisions import Decision, emit
from mmlab.kernel.jit import compiled, entry
from mmlab.kernel.state import *
from mmlab.kernel.timer import cpu_ns


def set_advisor(m: Machine, mode: int) -> None:
    """Write advisor_mode: a change clears the history and resets pages_to_scan (`set_advisor_defaults`, ksm-scan S29).

    Parameters
    ----------
    mode
        Index of `ADVISOR_MODES`.
    """
    s = m.state[0]
    if mode == s["advisor_mode"] or not s["advisor_exists"]:
        return
    s["advisor_mode"] = mode
    s["pages_to_scan"] = s["advisor_min_pages_to_scan"] if mode else 100
    for name in ("advisor_scan_time", "advisor_change", "advisor_cpu_ns", "advisor_start_ns"):
        s[name] = 0


@compiled
def _now_ns(m):
    """Return the time within a batch, ns."""
    return m.stat[0].time_ns + cpu_ns(m, 0, NR_KSMD_STEPS) - m.state[0].batch_cpu_ns


@compiled
def advisor_start_scan(m):
    """Note when a full scan starts (ksm-scan S10.1)."""
    if m.state[0].advisor_mode:
        m.state[0].advisor_start_ns = _now_ns(m)


@entry
def advised_pages(pages, scan_ms, cpu_ms, target, max_cpu, max_pages, last_seconds, last_change):
    """Compute the next pages_to_scan in the kernel's integer arithmetic (`scan_time_advisor`; ksm-scan S31, S32).

    The minimum CPU time, 10 %, and the weight of the newest change, 30 %, are fixed (S30).

    Parameters
    ----------
    pages
        Current pages_to_scan.
    scan_ms, cpu_ms
        Duration of the full scan, and ksmd's CPU time since the last one, ms.
    target, max_cpu, max_pages
        Knobs: s, %, pages.
    last_seconds, last_change
        History: the last two values that the previous call returned; 0, 0 at first.

    Returns
    -------
    tuple
        pages_to_scan, duration of the full scan (s), smoothed change (%).
    """
    seconds = max(1, scan_ms // 1000)
    cpu_percent = max(1, cpu_ms * 100 // (seconds * 1000))
    factor = max(1, target * 100 // seconds)
    change = max(1, seconds * 100 // (last_seconds if last_seconds > 0 else seconds))
    change = (70 * last_change + 30 * change) // 100
    per_percent = max(1, pages // cpu_percent)
    wanted = pages * 100 // factor * change // 100
    return min(max(min(wanted, per_percent * max_cpu), per_percent * 10), max_pages), seconds, change


@compiled
def advisor_stop_scan(m):
    """Set pages_to_scan at the end of a full scan, so that the next ones take the target time (ksm-scan S31).

    The first time after advisor_mode was set, all CPU time that ksmd has used since the boot counts.
    """
    s = m.state[0]
    if not s.advisor_mode:
        return
    used_ns = s.ksmd_cpu_before_ns + cpu_ns(m, 0, NR_KSMD_STEPS)
    cpu_ms = (used_ns - s.advisor_cpu_ns) // 1_000_000
    s.pages_to_scan, s.advisor_scan_time, s.advisor_change = advised_pages(
        s.pages_to_scan,
        (_now_ns(m) - s.advisor_start_ns) // 1_000_000,
        cpu_ms,
        s.advisor_target_scan_time,
        s.advisor_max_cpu,
        s.advisor_max_pages_to_scan,
        s.advisor_scan_time,
        s.advisor_change,
    )
    s.advisor_cpu_ns = used_ns
    percent = max(1, cpu_ms * 100 // (s.advisor_scan_time * 1000))
    emit(m, Decision.ADVISOR, -1, 1, -1, s.pages_to_scan | s.advisor_scan_time << 26 | percent << 44)
