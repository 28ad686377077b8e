"""What this process may use of the computer: CPUs and memory within the limits of its control groups.

A container, a batch job or a systemd slice often has less than the machine: a CPU quota and a memory limit, set on the
process's control group or on one above it, in version 2 (``cpu.max``, ``memory.max``, ``memory.high``) or 1
(``cpu.cfs_quota_us``, ``memory.limit_in_bytes``). Systems without control groups (macOS) have none of these files, and
no limit from here. As a script (the Makefile has no other Python yet) this module prints the number of CPUs.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

__all__ = ["cpus", "free_memory"]

ROOT = Path("/")
"""Where /proc and /sys are; tests put their own there."""


def cpus() -> int:
    """Return the number of CPUs that this process may use: its affinity, within the quotas of its control groups."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        quota = _numbers(group / "cpu.max") or _numbers(group / "cpu.cfs_quota_us", "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0:  # version 1 writes -1 for no quota
            found = min(found, max(1, quota[0] // quota[1]))
    return found


def free_memory() -> int | None:
    """Return the bytes of memory that this process may still take, or None where the system does not tell.

    That is the machine's MemAvailable, or what the limit of a control group leaves if that is less. A group's inactive
    file pages count as free: the kernel drops them before it kills.
    """
    found = [1024 * kib for kib in _labelled(ROOT / "proc/meminfo", "MemAvailable:")]
    for group in _groups("memory"):
        names = ("memory.max", "memory.high", "memory.limit_in_bytes")
        limits = [number for name in names for number in _numbers(group / name)]
        used = _numbers(group / "memory.current") or _numbers(group / "memory.usage_in_bytes")
        if limits and used:
            dropped = [*_labelled(group / "memory.stat", "(?:total_)?inactive_file"), 0]
            found.append(max(0, min(limits) - used[0] + max(dropped)))
    return min(found, default=None)


def _groups(controller: str) -> list[Path]:
    """Return the folders of the control groups that this process is in, and of all groups above them.

    A container sees its own group at the top, but may read its path as the host does: folders that do not exist are
    returned, too.
    """
    found, top = [], ROOT / "sys/fs/cgroup"
    for line in _lines(ROOT / "proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):
            below = PurePosixPath(path.lstrip("/"))
            mounts = [top / names, top / controller] if names else [top, top / "unified"]
            found += [mount / group for mount in mounts for group in (below, *below.parents)]
    return found


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; none if it cannot be read."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _numbers(path: Path, *others: str) -> list[int]:
    """Return the numbers in a file, and in others beside it; none if one is missing or says "max"."""
    words = [word for each in (path, *map(path.with_name, others)) for word in " ".join(_lines(each)).split()]
    return [int(word) for word in words] if all(re.fullmatch(r"-?\d+", word) for word in words) else []


def _labelled(path: Path, label: str) -> list[int]:
    """Return the number behind a label (a regular expression) of a file."""
    return [int(match[1]) for line in _lines(path) if (match := re.match(rf"{label}\s+(\d+)", line))]


if __name__ == "__main__":
    print(cpus())
