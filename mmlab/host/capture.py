"""Capture the memory of running processes as a workload: which pages there are, and which of them are equal.

No content is stored. A page's content is a rank: 0 is a page of zeroes, equal pages have equal ranks, and ranks are in
memcmp order over all processes of a file. A page that is not there is not read, since reading would make it, and
neither are pages in swap, of files, and of shared memory. The processes go on meanwhile, so pages are seen at different
times. Distinct pages are in a temporary file without a name, beside the result, until they are put in order; it takes
their size on the disk, and a quarter of it in memory.

The result is a Parquet file, a row a run of pages, sorted by process and page; what it says of processes is JSON in the
file's metadata (``mmlab``).

=====================  =============================================================================================
process                index into the metadata's list ``processes``
page, count            first page, from 0 within the process, and number of pages; places within 2 MiB blocks are those
                       of the process, and between two VMAs whole blocks are left out
kind                   anon; zeropage: maps the shared zeropage; swap; unread: could not be read; hole: is not there
rank, step             rank of the first page, and by how much it grows from page to page (0 or 1); -1: not known
order                  of the folio, if all of it is mapped here, in one piece and aligned; otherwise 0
mergeable              MADV_MERGEABLE or PR_SET_MEMORY_MERGE
hugepage, nohugepage   MADV_HUGEPAGE, MADV_NOHUGEPAGE
volatile               the content was another one when it was read again
=====================  =============================================================================================
"""

import hashlib
import io
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mmlab.errors import UserError
from mmlab.host.pagemap import PAGE, PRESENT, PROC, SWAPPED, ksm_stat, mergeable, open_pagemap, proc, processes, scan
from mmlab.kernel.mmap import equal_runs
from mmlab.params import check_folder, write_atomically, writing
from mmlab.results.table import text_table
from mmlab.workers import Progress

FORMAT = "mmlab-memory-image-1"
CONTENTS = "none: equal pages have equal ranks, which are in memcmp order; rank 0 is a page of zeroes"
KINDS = ["hole", "anon", "zeropage", "swap", "unread"]
HOLE, ANON, ZERO, SWAP, UNREAD = range(5)
WINDOW = 2048
"""Pages that are read at once: 8 MiB, whole blocks."""
PART = 512
"""Bytes of each page that are sorted at once."""
TAIL, ZERO_PAGE = 1 << 16, 1 << 24
"""Bits of /proc/kpageflags."""
SMAPS = re.compile(r"(?ms)^(\w+)-(\w+) ...(.) .*?^Rss: +(\d+).*?^Anonymous: +(\d+).*?^Swap: +(\d+).*?^VmFlags:([^\n]*)")
NOT_OWN = {"io", "pf", "ht"}
"""VmFlags of devices' memory and of hugetlbfs."""
FLAGS = {"mergeable": "mg", "hugepage": "hg", "nohugepage": "nh"}
TYPES = dict.fromkeys(["process", "page", "count", "rank"], "int64") | dict.fromkeys(["step", "order"], "int8")
TYPES |= dict.fromkeys(FLAGS, "bool")
"""Types of columns."""


# --- contents -------------------------------------------------------------------------------------------------------


@dataclass
class _Contents:
    """Every distinct content by its hash (128 bits of BLAKE2b), and the pages themselves in a temporary file."""

    file: IO[bytes]
    known: dict[bytes, int] = field(default_factory=dict)

    def number(self, page: memoryview) -> int:
        """Return the number of a content, from 1 in the order in which they are found."""
        digest = hashlib.blake2b(page, digest_size=16).digest()
        if digest not in self.known:
            self.file.write(page)
            self.known[digest] = len(self.known) + 1
        return self.known[digest]

    def ranks(self) -> np.ndarray:
        """Return the rank of each content by its number, in memcmp order; that of 0 is 0."""
        self.file.flush()
        order, parts = np.arange(len(self.known)), np.empty((len(self.known), PART), np.uint8)
        for at in reversed(range(0, PAGE, PART)):  # sorts that are stable, from the last part of pages to the first
            for number, part in zip(order, parts, strict=True):
                os.preadv(self.file.fileno(), [part.data], PAGE * int(number) + at)
            order = order[np.argsort(parts.view(f"S{PART}")[:, 0], kind="stable")]
        return np.concatenate([[0], 1 + np.argsort(order)])


# --- processes ------------------------------------------------------------------------------------------------------


@contextmanager
def _permitted() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        problem = f"{error.filename} may not be read ({error.strerror})"
        raise UserError(problem, hint="It needs root, in the user namespace of the process.") from None


@_permitted()
def find(pids: Sequence[int], qemu: bool = False, all_mergeable: bool = False) -> list[int]:
    """Return the processes that are asked for, each once: those given, QEMUs, and those with mergeable memory.

    Raises
    ------
    UserError
        There are none.
    """
    found = [*pids, *(pid for pid in processes() if qemu and re.match("qemu|kvm$", proc(pid, "comm")))]
    found += filter(mergeable, processes() if all_mergeable else ())
    if not found:
        kind = "QEMU" if qemu else "process with mergeable memory" if all_mergeable else "process"
        raise UserError(f"there is no {kind} to capture", hint="Name PIDs, or use --qemu or --all-mergeable.")
    return [*dict.fromkeys(found)]


class _Process:
    """A process and its own memory.

    Attributes
    ----------
    vmas
        Columns vma, start, end (pages, by address), page (the first one within the image), mergeable, hugepage,
        nohugepage.
    own, others
        Its anonymous pages; those of files and of shared memory.
    """

    def __init__(self, pid: int) -> None:
        if not (PROC / str(pid)).exists():
            raise UserError("there is no such process", parameter="PID", value=pid)
        self.pid, self.name, self.own, self.others = pid, proc(pid, "comm").strip(), 0, 0
        vmas, page, before = list[list[int]](), 0, 0
        for low, high, share, rss, anonymous, swap, text in SMAPS.findall(proc(pid, "smaps")):
            flags, start, end = set(text.split()), int(low, 16) // PAGE, int(high, 16) // PAGE
            private = share == "p" and not flags & NOT_OWN
            own = int(anonymous) * private
            self.own, self.others = self.own + own // 4, self.others + (int(rss) - own) // 4
            if private and (own or int(swap) or "mg" in flags):
                page += (start - before) % 512
                vmas.append([len(vmas), start, end, page, *(flag in flags for flag in FLAGS.values())])
                page, before = page + end - start, end
        if not vmas:
            raise UserError("is a thread of the kernel, or has no memory of its own", parameter="PID", value=pid)
        self.ksm_zero_pages = ksm_stat(pid).get("ksm_zero_pages", 0)
        self.vmas = pd.DataFrame(vmas, columns=["vma", "start", "end", "page", *FLAGS])


class _Reader:
    """Reads processes at a limited rate: bytes a second."""

    def __init__(self, kpageflags: IO[bytes], contents: _Contents, rate: float, progress: Progress) -> None:
        self.kpageflags, self.contents, self.rate, self.progress = kpageflags, contents, rate, progress
        self.pages, self.total, self.start = 0, 0, time.monotonic()
        self.buffer = np.empty((WINDOW, PAGE), np.uint8)

    def read(self, asked: Sequence[_Process]) -> pd.DataFrame:
        """Return the pages that are there: process, page, vma, kind, order, content (0: zeroes; `_Contents.number`)."""
        found = [pd.DataFrame(columns=["process", "page", "vma", "kind", "order", "content"], dtype=int)]
        for i, process in enumerate(asked):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has exited
                found += [window.assign(process=i) for window in self._windows(process)]
        return pd.concat(found[len(found) > 1 :])

    def _windows(self, process: _Process) -> Iterator[pd.DataFrame]:
        self.pagemap, self.memory = open_pagemap(process.pid), (PROC / str(process.pid) / "mem").open("rb", 0)
        with self.pagemap, self.memory:
            for vma, at, end, page in process.vmas[["vma", "start", "end", "page"]].to_numpy().tolist():
                offset = page - at
                while len(ranges := scan(self.pagemap.fileno(), at * PAGE, end * PAGE, PRESENT | SWAPPED, 1)):
                    at = int(ranges[0, 0]) // PAGE
                    window = self._window(at, min(end, (at // WINDOW + 1) * WINDOW))
                    yield window.assign(page=window.index + at + offset, vma=vma)[window.kind > 0]
                    at += len(window)

    def _window(self, at: int, end: int) -> pd.DataFrame:
        entries = np.zeros(end - at, np.uint64)
        os.preadv(self.pagemap.fileno(), [entries.data], 8 * at)  # nothing, if the process has exited
        there, frame = entries >> 63 == 1, (entries & (1 << 55) - 1).astype(np.int64)
        if there.any() and not frame[there].any():
            raise PermissionError(0, "frame numbers are hidden", "pagemap")
        flags = np.zeros(len(entries), np.uint64)
        flags[there] = self._flags(frame[there])
        kind = np.where(there & (entries >> 61 & 1 == 0), ANON, HOLE)
        kind[flags & ZERO_PAGE > 0] = ZERO
        kind[entries >> 62 == 1] = SWAP
        order = self._orders(at, np.where(there, frame, -1 - 2 * np.arange(len(frame))), flags)
        content = self._contents(at, kind)
        order[(kind != ANON) | (UNREAD in kind)] = 0
        small = {"kind": kind.astype("u1"), "order": order.astype("u1"), "content": content.astype("i4")}
        return pd.DataFrame(small)

    def _flags(self, frames: np.ndarray) -> np.ndarray:
        """Return kpageflags of frames, read run by run."""
        runs, file = equal_runs(frames - np.arange(len(frames))), self.kpageflags.fileno()
        return np.frombuffer(b"".join(os.pread(file, 8 * (b - a), 8 * (a + off)) for a, b, off in runs), np.uint64)

    def _orders(self, at: int, frame: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """Return the order of each page's folio, 0 unless the whole folio is mapped here, aligned."""
        starts = np.flatnonzero(np.r_[True, (flags[1:] & TAIL == 0) | (np.diff(frame) != 1)])
        sizes = np.diff(starts, append=len(frame))
        whole = (sizes > 1) & (sizes & (sizes - 1) == 0) & ((at + starts) % sizes == 0)
        whole[whole] = self._flags((frame[starts] + sizes)[whole]) & TAIL == 0  # it does not go on behind
        return np.repeat(np.where(whole, np.log2(sizes), 0).astype(np.int64), sizes)

    def _contents(self, at: int, kind: np.ndarray) -> np.ndarray:
        """Return the content of each page; the kind of pages that cannot be read becomes UNREAD."""
        content, pages = np.zeros(len(kind), np.int64), int((kind == ANON).sum())
        for page, end, what in equal_runs(kind):
            while what == ANON and page < end:
                got = 0
                with suppress(OSError):
                    got = os.preadv(self.memory.fileno(), [self.buffer[page:end].data], (at + page) * PAGE) // PAGE
                kind[page + got : page + got + 1][: end - page - got] = UNREAD
                page += got + 1
        for number in np.flatnonzero((kind == ANON) & self.buffer[: len(kind)].view(np.uint64).any(axis=1)):
            content[number] = self.contents.number(self.buffer[number].data)
        self.pages += pages
        if self.progress:
            self.progress(self.pages / 256, max(self.pages, self.total) / 256, "MiB")
        time.sleep(max(0.0, self.start + self.pages * PAGE / self.rate - time.monotonic()))
        return content


# --- the file -------------------------------------------------------------------------------------------------------


def capture(
    pids: Sequence[int], out: Path, rate: float = 200 << 20, again: float | None = None, progress: Progress = None
) -> str:
    """Write the memory of processes into a Parquet file, without its contents; return a summary.

    Parameters
    ----------
    pids
        Processes, in the order in which the file has them.
    out
        The file.
    rate
        Bytes that are read a second, at most.
    again
        Read everything again this many seconds after the first time, and mark pages whose content is another one.
    progress
        Called with MiB read, MiB in all and the unit.

    Raises
    ------
    UserError
        There is no such process, it has no memory of its own, or it may not be read; the file cannot be written.
    """
    check_folder(out)
    with writing(out), TemporaryFile(dir=out.parent) as file, _permitted():
        contents, start, asked = _Contents(file), time.monotonic(), [_Process(pid) for pid in pids]
        with (PROC / "kpageflags").open("rb", 0) as kpageflags:
            reader = _Reader(kpageflags, contents, rate, progress)
            reader.total = sum(one.own for one in asked) * (1 if again is None else 2)
            pages = reader.read(asked)
            pages["volatile"] = -1
            if again is not None:
                time.sleep(max(0.0, start + again - time.monotonic()))
                both = pages.merge(reader.read(asked), "left", ["process", "page"], suffixes=("", "_later"))
                pages["volatile"] = (both.content != both.content_later).to_numpy(int)
        if pages.empty:
            raise UserError("there is nothing to capture: all of the processes have exited", parameter="PID")
        known = pages.kind.isin([ANON, ZERO])
        rows = _rows(pages.assign(rank=np.where(known, contents.ranks()[pages.content], -1)), asked)
        about = [{"pid": one.pid, "name": one.name, "ksm_zero_pages": one.ksm_zero_pages} for one in asked]
        thp = (Path("/sys/kernel/mm/transparent_hugepage") / "enabled").read_text()
        told = {"format": FORMAT, "contents": CONTENTS, "kernel": platform.release(), "thp_enabled": thp.strip()}
        table = pa.Table.from_pandas(rows, preserve_index=False)
        content = io.BytesIO()
        metadata = {"mmlab": json.dumps(told | {"captured": time.strftime("%F %T"), "processes": about})}
        pq.write_table(table.replace_schema_metadata(metadata), content, compression="zstd")
        write_atomically(out, content.getvalue())
    return _summary(rows, asked, len(contents.known))


def _rows(pages: pd.DataFrame, asked: Sequence[_Process]) -> pd.DataFrame:
    """Return pages as runs (see the module), with the holes of their VMAs."""
    same = pages[["process", "vma", "kind", "order", "volatile"]]
    alike = (same == same.shift()).all(axis=1) & (pages.page.diff() == 1)
    change = pages["rank"].diff()
    alike &= (change == 0) | ((change == 1) & (pages["rank"] > 1))  # zeroes are no part of a row that ascends
    step = change.where(alike, -1).to_numpy(int)
    starts = np.flatnonzero((step < 0) | np.r_[False, (step[1:] != step[:-1]) & (step[:-1] >= 0)])
    count = np.diff(starts, append=len(pages))
    second = np.minimum(starts + 1, len(step) - 1)
    rows = pages.iloc[starts].assign(count=count, step=np.where(count > 1, step[second], 0))
    keys = ["process", "vma"]
    vmas = pd.concat([one.vmas.assign(process=i) for i, one in enumerate(asked)])
    lead = pd.DataFrame({"process": range(len(asked)), "vma": -1, "page": 0})
    borders = pd.concat([lead, vmas, vmas.assign(page=vmas.page + vmas.end - vmas.start)])[[*keys, "page"]]
    rows = pd.concat([rows, borders.assign(count=0)]).sort_values([*keys, "page", "count"], kind="stable")
    end, again = rows.page + rows["count"], rows.shift(-1)
    holes = rows.assign(page=end, count=again.page - end, vma=rows.vma.where(rows.vma == again.vma, -1))
    empty = {"kind": HOLE, "order": 0, "rank": -1, "step": 0, "volatile": -1}
    rows = pd.concat([rows, holes[rows.process == again.process].assign(**empty)]).query("count > 0")
    rows = rows.sort_values(["process", "page"]).merge(vmas[[*keys, *FLAGS]], "left", keys)
    rows["kind"] = rows.kind.map(dict(enumerate(KINDS))).astype("category")
    rows["volatile"] = rows.volatile.map({0: False, 1: True}).astype("boolean")
    return rows.fillna(dict.fromkeys(FLAGS, False)).astype(TYPES)[[*TYPES, "kind", "volatile"]]


def _summary(rows: pd.DataFrame, asked: Sequence[_Process], contents: int) -> str:
    """Return what was captured, a row a process, MiB."""
    anon = rows.kind == "anon"
    parts = {"MiB": anon, "in THPs": anon & (rows.order == 9), "zero-filled": anon & (rows["rank"] == 0)}
    parts |= {"mergeable": anon & rows.mergeable} | {kind: rows.kind == kind for kind in KINDS[ZERO:]}
    parts |= {"volatile": rows.volatile.fillna(False)} if rows.volatile.notna().any() else {}
    table = pd.DataFrame(parts).mul(rows["count"] / 256, axis=0).groupby(rows.process).sum()
    table = table.reindex(range(len(asked)), fill_value=0.0).assign(files=[one.others / 256 for one in asked])
    table.insert(0, "process", [f"{one.pid} {one.name}" for one in asked])
    said = [f"MiB by process; {contents:,} distinct contents besides zeroes, of which the file has ranks only."]
    said += ["Not captured: pages of files and shared memory, in swap, and unread ones."]
    if "volatile" in table:
        share = 100 * table.volatile.sum() / table.MiB.sum()
        said += [f"Volatile: {share:.1f} % of the pages had another content when they were read again."]
    said += [f"{one.pid} {one.name} exited while it was read." for one in asked if not proc(one.pid, "maps")]
    return "\n".join([text_table(table, digits=1), "", *said])
