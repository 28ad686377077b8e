"""Page tables of running processes: /proc/PID/pagemap, and which processes have mergeable memory."""

import contextlib
import errno
import fcntl
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmlab.errors import UserError

PRESENT, SWAPPED, ZEROPAGE = 1 << 3, 1 << 4, 1 << 5
"""Categories of pages of `scan`."""
PAGEMAP_SCAN = 0xC0606610
"""The number of the ioctl (Linux 6.7)."""
PROC = Path("/proc")
PAGE = 4096


def processes() -> Iterator[int]:
    """Yield the PIDs of all processes, ascending."""
    yield from sorted(int(path.name) for path in PROC.glob("[0-9]*"))


def proc(*where: int | str) -> str:
    """Return the text of a file of /proc; of a process that is gone, nothing."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return PROC.joinpath(*map(str, where)).read_text()
    return ""


def ksm_stat(pid: int) -> dict[str, int]:
    """Return what /proc/PID/ksm_stat counts, yes as 1 and no as 0; nothing if the process is gone."""
    rows = (line.split() for line in proc(pid, "ksm_stat").splitlines())
    return {name.rstrip(":"): int(value == "yes" if value in ("yes", "no") else value) for name, value in rows}


def mergeable(pid: int) -> bool:
    """Return whether a process has mergeable memory, or had some that ksmd still tracks."""
    found = ksm_stat(pid)
    return bool(found.get("ksm_mergeable") or found.get("ksm_rmap_items"))


def mapped(pid: int) -> tuple[int, int]:
    """Return where the first mapping of a process starts and the last one ends; x86's vsyscall page is the kernel's."""
    found = re.findall(r"(?m)^(\w+)-(\w+) (?!.*vsyscall)", proc(pid, "maps"))
    return (int(found[0][0], 16), int(found[-1][1], 16)) if found else (0, 0)


def open_pagemap(pid: int) -> BinaryIO:
    """Open /proc/PID/pagemap, without a buffer."""
    return (PROC / str(pid) / "pagemap").open("rb", buffering=0)


def scan(pagemap: int, start: int, end: int, anyof: int, most: int = 1 << 12) -> np.ndarray:
    """Return the first ranges of pages that are in any of the categories.

    Parameters
    ----------
    pagemap
        A descriptor of /proc/PID/pagemap.
    start, end
        Addresses between which to look.
    anyof
        `PRESENT`, `SWAPPED`, `ZEROPAGE`, or several of them.
    most
        Largest number of ranges; fewer than that: there are no more.

    Returns
    -------
    ndarray
        uint64[ranges, 2]: addresses of start and end.

    Raises
    ------
    UserError
        The kernel is older than Linux 6.7.
    """
    ranges = np.zeros((most, 3), np.uint64)
    request = bytearray(struct.pack("<12Q", 96, 0, start, end, 0, ranges.ctypes.data, most, 0, 0, 0, anyof, anyof))
    found = 0
    try:
        found = fcntl.ioctl(pagemap, PAGEMAP_SCAN, request)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            raise UserError("the kernel has no PAGEMAP_SCAN", hint="Linux has it since 6.7.") from None
        if error.errno != errno.ESRCH:  # the process is gone: it has no pages
            raise
    return ranges[:found, :2]
