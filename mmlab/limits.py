"""What this process may use of the computer: CPUs and memory within the limits of its control groups.

A container, a batch job or a systemd slice often has less than the machine: a CPU quota and a memory limit, set on the
process's control group or on one above it, in version 2 (``cpu.max``, ``memory.max``, ``memory.high``) or 1
(``cpu.cfs_quota_us``, ``memory.limit_in_bytes``). Systems without control groups (macOS) have none of these files, and
no limit from here. As a script (the Makefile has no other Python yet) this module prints the number of CPUs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
"""Where /proc and /sys are; tests put their own there."""


def cpus() -> int:
    """Return the number of CPUs that this process may use: its affinity, within the quotas of its control groups."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        quota = _numbers(group / "cpu.max") or _numbers(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0:  # version 1 writes -1 for no quota
            found = min(found, max(1, quota[0] // quota[1]))
    return found


def free_memory() -> int | None:
    """Return the bytes of memory that this process may still take, or None where the system does not tell.

    That is the machine's MemAvailable, or what the limit of a control group leaves if that is less. A group's inactive
    file pages count as free: the kernel drops them before it kills.
    """
    found = [1024 * kib for kib in _numbers(ROOT / "proc/meminfo", like=r"^MemAvailable: +(\d+)")]
    for group in _groups("memory"):
        limits = _numbers(group / "memory.max", group / "memory.high", group / "memory.limit_in_bytes")
        used = _numbers(group / "memory.current") or _numbers(group / "memory.usage_in_bytes")
        dropped = [*_numbers(group / "memory.stat", like=r"^(?:total_)?inactive_file (\d+)"), 0]
        found += [max(0, limit - used[0] + max(dropped)) for limit in limits if used]
    return min(found, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in, and of all groups above them.

    A container sees its own group at the top, but may read its path as the host does: folders that do not exist are
    among them, too.
    """
    top = ROOT / "sys/fs/cgroup"
    for names, path in re.findall(r"(?m)^\d+:(.*?):/*(.*)$", _text(ROOT / "proc/self/cgroup")):
        if not names or controller in names.split(","):
            for mount in [top / names, top / controller] if names else [top, top / "unified"]:
                yield from (mount / group for group in (PurePosixPath(path), *PurePosixPath(path).parents))


def _numbers(*paths: Path, like: str = r"-?\d+") -> list[int]:
    """Return the numbers in files, or those that an expression finds there."""
    return [int(number) for path in paths for number in re.findall(f"(?m){like}", _text(path))]


def _text(path: Path) -> str:
    """Return the text of a file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    print(cpus())
