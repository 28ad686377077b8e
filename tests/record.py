"""Record on the running kernel what it does with a scenario, as a kernel trace.

    python tests/record.py --list                     the scenarios, a line each
    python tests/record.py uffd-collapse merge-any    record these, into mmlab/recordings/live618-NAME.json.gz
    python tests/record.py --all --out /tmp/traces    record all of them somewhere else

Needs root and a kernel with KSM and THP. A scenario is recorded twice (--times), and kept only if both recordings are
the same, because what happens elsewhere on the machine shows in /proc/vmstat too. All knobs are put back as they were.

How it works. Each process of a scenario is a child of the recorder with one region of memory between two PROT_NONE
neighbours, so that it is a VMA of its own; it obeys ops that come over a socket. Between batches `run` is 0. A batch is
one write of 1 to `run`, upon which ksmd wakes from its untimed sleep and makes one batch; then it sleeps in its timed
wait, `run` becomes 0 again and a change of sleep_millisecs sends it back to the untimed sleep. After populating and
after each event the per-CPU LRU batches are drained, as in the 6.12 traces, by a MADV_COLLAPSE of an empty range. Once
khugepaged has been woken, a `sleep` ends so many milliseconds after that or after the last one ended, so that what the
recorder does in between does not add up.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fnmatch
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KSM = Path("/sys/kernel/mm/ksm")
THP = Path("/sys/kernel/mm/transparent_hugepage")
VM = Path("/proc/sys/vm")
HERE = Path(__file__).resolve().parents[1] / "mmlab" / "recordings"

PAGE, BLOCK = 4096, 2 << 20
MADVISE = {
    "normal": 0,
    "dontneed": 4,
    "free": 8,
    "mergeable": 12,
    "unmergeable": 13,
    "hugepage": 14,
    "nohugepage": 15,
    "cold": 20,
    "pageout": 21,
    "collapse": 25,
    "hwpoison": 100,
    "soft_offline": 101,
}
PROT_RW, MAP_ANON, MAP_FIXED = 3, 0x22, 0x10
PR_SET_MEMORY_MERGE = 67
SYS_USERFAULTFD, UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER = 323, 0xC018AA3F, 0xC020AA00, 0x8010AA01
UFFDIO_REGISTER_MODE_WP = 2

COUNTERS = """full_scans pages_scanned pages_skipped pages_shared pages_sharing pages_unshared pages_volatile
    ksm_zero_pages stable_node_chains stable_node_dups general_profit""".split()
SMAPS = {
    "Rss": "rss_kb",
    "Anonymous": "anonymous_kb",
    "AnonHugePages": "anonhugepages_kb",
    "KSM": "ksm_kb",
    "Swap": "swap_kb",
}
KSM_STAT = "ksm_rmap_items ksm_zero_pages ksm_merging_pages ksm_process_profit".split()
VMSTAT = """thp_split_page thp_split_page_failed thp_split_pmd thp_underused_split_page thp_deferred_split_page
    thp_fault_alloc thp_collapse_alloc ksm_swpin_copy cow_ksm pswpout pswpin""".split()

QUIET = 10**9
"""A sleep that does not end, ms."""
KNOBS = {
    **{
        name: KSM / name
        for name in """use_zero_pages pages_to_scan smart_scan max_page_sharing merge_across_nodes
       stable_node_chains_prune_millisecs advisor_mode advisor_max_cpu advisor_min_pages_to_scan
       advisor_max_pages_to_scan advisor_target_scan_time""".split()
    },
    "shrink_underused": THP / "shrink_underused",
    **{name: THP / "khugepaged" / name for name in ("max_ptes_none", "max_ptes_swap", "max_ptes_shared")},
    **{
        f"khugepaged_{name}": THP / "khugepaged" / name
        for name in ("pages_to_scan", "scan_sleep_millisecs", "alloc_sleep_millisecs")
    },
}
ADVISOR = [name for name in KNOBS if name.startswith("advisor_")]
DEFAULTS = {
    "use_zero_pages": 0,
    "pages_to_scan": 500,
    "smart_scan": 0,
    "max_page_sharing": 256,
    "shrink_underused": 1,
    "max_ptes_none": 511,
    "stable_node_chains_prune_millisecs": 2000,
    "merge_across_nodes": 1,
    "swap_mib": 0,
}
SAVED = [KSM / "sleep_millisecs", *KNOBS.values(), VM / "page-cluster", THP / "enabled", THP / "defrag"]


class RefusedError(Exception):
    """The recorder must not, or cannot, record here."""


# -- small things of /proc and /sys ---------------------------------------------------------------------------------


def get(path: Path) -> str:
    """A knob's value; of a list of choices the one in brackets."""
    text = path.read_text().strip()
    chosen = re.search(r"\[(.+)\]", text)
    return chosen[1] if chosen else text


def put(path: Path, value: object) -> int:
    """Write a knob; 0 or the errno."""
    try:
        path.write_text(str(value))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def must(path: Path, value: object) -> None:
    if code := put(path, value):
        raise RefusedError(f"{path}: cannot be set to {value}: {os.strerror(code)}")


def table(path: Path) -> dict[str, str]:
    """A file of lines `name value` or `name: value`."""
    rows = (re.split(r"[:\s]+", line, maxsplit=1) for line in path.read_text().splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


def comm(name: str) -> Path:
    """The folder in /proc of the kernel thread of that name."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == name:
                return path.parent
    raise RefusedError(f"there is no {name} here")


def check(idle: bool = True) -> None:
    """Refuse to record where it would disturb somebody, or somebody would disturb it."""
    if os.geteuid():
        raise RefusedError("recording needs root")
    if not KSM.exists() or not THP.exists():
        raise RefusedError("this kernel has no KSM, or no THP")
    if idle and get(KSM / "run") != "0":
        raise RefusedError(f"{KSM}/run is {get(KSM / 'run')}: somebody uses KSM; recording needs it stopped (0)")
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "comm").read_text().startswith("qemu"):
                raise RefusedError(f"process {path.name} is a qemu: its memory would be merged too")
            if table(path / "ksm_stat").get("ksm_rmap_items", "0") != "0":
                raise RefusedError(f"process {path.name} has KSM items of its own")


# -- the processes of a scenario ------------------------------------------------------------------------------------


class Libc:
    def __init__(self) -> None:
        self.lib = ctypes.CDLL(None, use_errno=True)
        self.lib.mmap.restype = ctypes.c_void_p
        self.lib.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.lib.syscall.restype = ctypes.c_long

    def __call__(self, name: str, address: int, size: int, *more: int) -> int:
        """0 or the errno of `name(address, size, …)`."""
        args = [ctypes.c_void_p(address), ctypes.c_size_t(size), *map(ctypes.c_int, more)]
        return ctypes.get_errno() if getattr(self.lib, name)(*args) < 0 else 0

    def region(self, size: int) -> int:
        """The address of a new VMA, 2 MiB aligned, between PROT_NONE neighbours."""
        free = self.lib.mmap(None, size + 2 * BLOCK, 0, MAP_ANON, -1, 0)
        at = (free // BLOCK + 1) * BLOCK
        return self.lib.mmap(at, size, PROT_RW, MAP_ANON | MAP_FIXED, -1, 0)  # type: ignore[no-any-return]


class Worker:
    """What runs in a process of the scenario: it obeys until told to exit."""

    def __init__(self, address: str, pages: int) -> None:
        self.libc, self.address, self.pages = Libc(), address, pages
        self.base = self.libc.region(pages * PAGE)
        self.uffd = -1
        self.any = False

    def connect(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped at once
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(self.address)
        self.lines = self.socket.makefile("rw")
        self.reply({"pid": os.getpid(), "base": self.base})

    def reply(self, answer: object) -> None:
        self.lines.write(json.dumps(answer) + "\n")
        self.lines.flush()

    def serve(self) -> None:
        self.connect()
        while line := self.lines.readline():
            order = json.loads(line)
            result = getattr(self, order.pop("op"), self.madvise)(**order)
            if self.any:
                self.unmerge_others()
            self.reply(result)
        os._exit(0)

    def put(self, page: int, key: int) -> None:
        head = key.to_bytes(8, "big") if key else bytes(8)
        ctypes.memmove(self.base + page * PAGE, head, 8)

    def populate(self, contents: list[list[int]], thp: list[list[int]]) -> int:
        self.libc("madvise", self.base, self.pages * PAGE, MADVISE["nohugepage"])
        for page, count in thp:
            self.libc("madvise", self.base + page * PAGE, count * PAGE, MADVISE["hugepage"])
        page = 0
        for first, count, step in contents:
            for i in range(count):
                self.put(page, first + i * step)
                page += 1
        return 0

    def write(self, page: int, count: int, key: int | None) -> int:
        for p in range(page, page + count):
            at = self.base + p * PAGE
            old = ctypes.string_at(at, 8) if key is None else key.to_bytes(8, "big")
            ctypes.memmove(at, old, 8)
        return 0

    def read(self, page: int, count: int) -> int:
        for p in range(page, page + count):
            ctypes.string_at(self.base + p * PAGE, 1)
        return 0

    def madvise(self, advice: str, page: int, count: int) -> int:
        return self.libc("madvise", self.base + page * PAGE, count * PAGE, MADVISE[advice])

    def mlock(self, page: int, count: int) -> int:
        return self.libc("mlock", self.base + page * PAGE, count * PAGE)

    def munlock(self, page: int, count: int) -> int:
        return self.libc("munlock", self.base + page * PAGE, count * PAGE)

    def munmap(self, page: int, count: int) -> int:
        return self.libc("munmap", self.base + page * PAGE, count * PAGE)

    def mprotect(self, page: int, count: int, prot: int) -> int:
        return self.libc("mprotect", self.base + page * PAGE, count * PAGE, prot)

    def merge_any(self, value: int) -> int:
        self.any = bool(value)
        return ctypes.get_errno() if self.libc.lib.prctl(PR_SET_MEMORY_MERGE, value, 0, 0, 0) < 0 else 0

    def unmerge_others(self) -> None:
        """MERGE_ANY is for all of a process: take the interpreter's own memory out again, also what this allocates."""
        mergeable = True
        while mergeable:
            mergeable, start, end = False, 0, 0
            for row in Path("/proc/self/smaps").read_text().splitlines():
                if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", row):
                    start, end = int(found[1], 16), int(found[2], 16)
                elif " mg" in row and not self.base <= start < self.base + self.pages * PAGE:
                    mergeable = True
                    self.libc("madvise", start, end - start, MADVISE["unmergeable"])

    def userfault(self, page: int, count: int, value: int) -> int:
        """Register a range in write-protect mode, without protecting anything: no fault is ever held up."""
        libc = ctypes.CDLL(None, use_errno=True)
        if self.uffd < 0:
            self.uffd = self.libc.lib.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
            api = ctypes.create_string_buffer(struct.pack("<3Q", 0xAA, 0, 0))
            if self.uffd < 0 or libc.ioctl(self.uffd, ctypes.c_ulong(UFFDIO_API), api) < 0:
                return ctypes.get_errno()
        where = struct.pack("<2Q", self.base + page * PAGE, count * PAGE)
        if value:
            code, where = UFFDIO_REGISTER, where + struct.pack("<2Q", UFFDIO_REGISTER_MODE_WP, 0)
        else:
            code = UFFDIO_UNREGISTER
        failed = libc.ioctl(self.uffd, ctypes.c_ulong(code), ctypes.create_string_buffer(where)) < 0
        return ctypes.get_errno() if failed else 0

    def fork(self) -> int:
        if not os.fork():
            self.uffd = -1
            self.connect()
            if self.any:
                self.unmerge_others()
        return 0


class Process:
    """A process of the scenario, as the recorder sees it."""

    def __init__(self, listener: socket.socket, pages: int) -> None:
        self.lines = listener.accept()[0].makefile("rw")
        hello = json.loads(self.lines.readline())
        self.pid, self.base, self.pages, self.alive = hello["pid"], hello["base"], pages, True
        self.proc = Path(f"/proc/{self.pid}")

    def do(self, op: str, **order: Any) -> int:
        if not self.alive:
            return errno.ESRCH
        self.lines.write(json.dumps({"op": op, **order}) + "\n")
        self.lines.flush()
        return json.loads(self.lines.readline())  # type: ignore[no-any-return]

    def exit(self) -> int:
        if not self.alive:
            return errno.ESRCH
        self.alive = False
        os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        while self.proc.exists() and table(self.proc / "status").get("State", "Z")[0] != "Z":
            time.sleep(0.001)
        return 0

    def smaps(self) -> Iterator[tuple[str, str]]:
        """The lines of the region's VMAs."""
        inside = False
        for row in (self.proc / "smaps").read_text().splitlines() if self.alive else ():
            if found := re.match(r"([0-9a-f]+)-[0-9a-f]+ ", row):
                inside = self.base <= int(found[1], 16) < self.base + self.pages * PAGE
            elif inside:
                name, _, value = row.partition(":")
                yield name, value

    def entries(self) -> list[tuple[str, int]]:
        """Letter and frame number of each page."""
        if not self.alive:
            return []
        with (self.proc / "pagemap").open("rb") as file:
            file.seek(self.base // PAGE * 8)
            entries = struct.unpack(f"<{self.pages}Q", file.read(8 * self.pages))
        out, flags_of = [], os.open("/proc/kpageflags", os.O_RDONLY)
        for entry in entries:
            frame = entry & (1 << 55) - 1
            if not entry >> 63:
                out.append(("S" if entry >> 62 & 1 else "N", 0))
                continue
            flags = struct.unpack("<Q", os.pread(flags_of, 8, frame * 8))[0]
            ksm, huge, zero = (flags >> bit & 1 for bit in (21, 22, 24))
            out.append(("Y" if zero and huge else "Z" if zero else "K" if ksm else "H" if huge else "A", frame))
        os.close(flags_of)
        return out


# -- recording ------------------------------------------------------------------------------------------------------


class Recorder:
    def __init__(self, scenario: dict[str, Any]) -> None:
        self.scenario = scenario
        self.knobs = DEFAULTS | scenario["knobs"]
        self.events: list[dict[str, Any]] = json.loads(json.dumps(scenario["events"]))
        self.ksmd, self.libc = comm("ksmd"), Libc()
        self.scratch, self.registered = self.libc.region(2 * BLOCK), self.libc.region(2 * BLOCK)
        for area in (self.scratch, self.registered):
            ctypes.memset(area + BLOCK, 1, 1)
        self.processes: list[Process] = []
        self.run, self.batch, self.rank, self.full_scans = 0, 0, 0, 0
        self.samples: list[list[int]] = []
        self.maps: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []
        self.batches: list[dict[str, Any]] = []  # what the advisor could see of each
        self.start: dict[str, int] = {}
        self.clock = 0.0  # when khugepaged was woken, and the sleeps since then
        self.advised = any(name in self.knobs for name in ADVISOR)
        self.fields: list[str] = []

    # ksmd, a batch at a time

    def _switches(self) -> int:
        return int(table(self.ksmd / "status")["voluntary_ctxt_switches"])

    def _settled(self, before: int, seconds: float) -> bool:
        """Wait until ksmd has run and sleeps again; False if it does not run at all."""
        deadline = time.monotonic() + seconds
        while True:
            state = table(self.ksmd / "status")
            if state["State"][0] == "S" and int(state["voluntary_ctxt_switches"]) > before:
                return True
            if time.monotonic() > deadline:
                if int(state["voluntary_ctxt_switches"]) == before and state["State"][0] == "S":
                    return False
                deadline += seconds

    def _cpu_ns(self) -> int:
        return int((self.ksmd / "schedstat").read_text().split()[0])

    def _cpu_ms(self) -> float:
        return self._cpu_ns() / 1e6

    def _park(self) -> None:
        """Stop ksmd, and send it into its untimed sleep."""
        if self.run != 2:
            must(KSM / "run", 0)
        before, value = self._switches(), int(get(KSM / "sleep_millisecs"))
        must(KSM / "sleep_millisecs", QUIET + 1 if value == QUIET else QUIET)
        self._settled(before, 0.2)

    def step(self) -> None:
        """One batch; none if ksmd is stopped or no mm is registered."""
        self.batch, self.rank = self.batch + 1, 0
        if self.run == 1:
            wall, cpu, before = time.monotonic(), self._cpu_ms(), self._switches()
            must(KSM / "run", 1)
            if self._settled(before, 0.5):
                self.batches.append(
                    {
                        "wall": [wall, time.monotonic()],
                        "cpu": [cpu, self._cpu_ms()],
                        "full_scans": int(get(KSM / "full_scans")),
                    }
                )
                self._park()
            else:
                must(KSM / "run", 0)
        self.sample()

    # looking

    def _row(self) -> dict[str, int]:
        row = {name: int(get(KSM / name)) for name in COUNTERS}
        vmstat = table(Path("/proc/vmstat"))
        row |= {name: int(vmstat.get(name, 0)) for name in VMSTAT}
        ours = [*SMAPS.values(), *(f"proc_{name}" for name in KSM_STAT), "lab_merge_any", "lab_mergeable"]
        row |= dict.fromkeys(ours, 0)
        for process in self.processes:
            for name, value in process.smaps():
                if name in SMAPS:
                    row[SMAPS[name]] += int(value.split()[0])
            if process.alive:
                stat = table(process.proc / "ksm_stat")
                for name in KSM_STAT:
                    row[f"proc_{name}"] += int(stat[name])
                for name in ("merge_any", "mergeable"):
                    row[f"lab_{name}"] += stat.get(f"ksm_{name}", "no") == "yes"
        row["lab_ksmd_cpu_ns"] = self._cpu_ns()
        if self.advised:
            row["pages_to_scan"] = int(get(KSM / "pages_to_scan"))
        return row

    def sample(self) -> int:
        """Take a sample; its index."""
        row = self._row()
        if not self.start:
            self.start = {name: row[name] for name in ("pages_scanned", "pages_skipped", "lab_ksmd_cpu_ns", *VMSTAT)}
            self.fields = ["batch", *row]
        self.full_scans = row["full_scans"]
        for name, value in self.start.items():
            row[name] -= value
        self.samples.append([self.batch, *row.values()])
        return len(self.samples) - 1

    def look(self) -> None:
        """Maps and counts of frames for the last sample."""
        where = {"batch": self.batch, "rank": self.rank, "sample": len(self.samples) - 1}
        entries = [process.entries() for process in self.processes]
        for i, one in enumerate(entries):
            if one:
                letters = "".join(letter for letter, _ in one)
                runs = ((m[1], len(m[0])) for m in re.finditer(r"(.)\1*", letters))
                self.maps.append({**where, "process": i, "pages": "".join(f"{a}{n if n > 1 else ''}" for a, n in runs)})
        frames = {frame: letter for one in entries for letter, frame in one if letter in "KHA"}
        self.frames.append({**where, "frames": len(frames), "ksm_frames": [*frames.values()].count("K")})

    # events

    def drain(self) -> None:
        """lru_add_drain_all: MADV_COLLAPSE begins with it, and an empty block is not collapsed."""
        self.libc("madvise", self.scratch, BLOCK, MADVISE["collapse"])

    def _quiet(self) -> None:
        """Let khugepaged sleep, in its timed sleep: it wakes at once for the first mm that registers, so have one."""
        must(KNOBS["max_ptes_none"], 0)  # what is registered is not collapsed
        must(KNOBS["khugepaged_scan_sleep_millisecs"], QUIET)
        self.libc("madvise", self.registered, 2 * BLOCK, MADVISE["hugepage"])
        time.sleep(0.1)
        self.libc("madvise", self.registered, 2 * BLOCK, MADVISE["nohugepage"])

    def happen(self) -> None:
        """Make the events that are due, each with its sample."""
        for event in self.events:
            after = event["after"]
            due = self.batch >= after["batch"] if "batch" in after else self.full_scans >= after["full_scan"]
            if "result" in event or not due:
                continue
            self.rank += 1
            order = {name: value for name, value in event.items() if name != "after"}
            if event.get("knob") == "khugepaged_scan_sleep_millisecs":  # khugepaged has not run yet in this sample
                event["sample"] = self.sample()
                event["result"] = self.do(**order)
                continue
            event["result"] = self.do(**order)
            self.drain()
            event["sample"] = self.sample()
            if event["op"] != "set":
                self.look()

    def do(self, op: str, process: int = 0, **what: Any) -> int:
        if op == "set":
            return self.set(what["knob"], what["value"])
        if op == "sleep":
            seconds = what["millisecs"] / 1000
            if self.clock:
                self.clock += seconds
                seconds = max(0.0, self.clock - time.monotonic())
            time.sleep(seconds)
            return 0
        if op == "shrink":  # the slab shrinkers until they free next to nothing: the whole queue
            return put(VM / "drop_caches", 2)
        target = self.processes[process]
        if op == "exit":
            return target.exit()
        if op == "fork":
            target.do("fork")
            self.processes.append(Process(self.listener, target.pages))
            return 0
        if op == "uffd":
            return target.do("userfault", **what)
        if op == "memory_failure":
            return target.do("madvise", advice="hwpoison", page=what["page"], count=1)
        if op in MADVISE:
            return target.do("madvise", advice=op, **what)
        return target.do(op, **what)

    def set(self, knob: str, value: object) -> int:
        if knob == "run":  # the real one is 0 between batches
            self.run = int(str(value))
            return put(KSM / "run", 0 if value == 1 else value)
        code = put(KNOBS[knob], value)
        if knob == "khugepaged_scan_sleep_millisecs":
            self.clock = time.monotonic()
        return code

    # all of it

    def _populate(self) -> None:
        for spec in self.scenario["processes"]:
            if not os.fork():
                with contextlib.suppress(Exception):
                    Worker(self.address, spec["pages"]).serve()
                os._exit(1)
            self.processes.append(Process(self.listener, spec["pages"]))
            process = self.processes[-1]
            process.do("populate", contents=spec["contents"], thp=spec["thp"])
            wanted = sum(count for _, count in spec["thp"]) * 4
            got = sum(int(value.split()[0]) for name, value in process.smaps() if name == "AnonHugePages")
            if wanted != got:
                raise RefusedError(f"the kernel gave {got} of {wanted} KiB as THPs: free memory is short or in pieces")
            if spec.get("nohugepage_after_populate"):
                process.do("madvise", advice="nohugepage", page=0, count=spec["pages"])
            for page, count in spec["mergeable"]:
                process.do("madvise", advice="mergeable", page=page, count=count)
        self.drain()

    def record(self) -> dict[str, Any]:
        """Record the scenario; the machine is as before afterwards, whatever happens."""
        self.address = f"\0mmlab-record-{os.getpid()}"
        with self._machine(), socket.socket(socket.AF_UNIX) as self.listener:
            self.listener.bind(self.address)
            self.listener.listen()
            try:
                self._populate()
                check(idle=True)
                self.sample()
                self.look()
                self.happen()
                self.run = self.run or 1
                while self.batch < self.scenario["batches"]:
                    self.step()
                    self.happen()
                    if 0 < self.scenario["full_scans"] <= self.full_scans:
                        self.scenario["batches"] = self.batch
                if self.frames[-1]["sample"] < len(self.samples) - 1:
                    self.look()
            finally:
                for process in self.processes:
                    process.exit()
        return self._trace()

    @contextlib.contextmanager
    def _machine(self) -> Iterator[None]:
        """The machine with the scenario's knobs, swap and debugfs; everything is put back."""
        saved = {path: get(path) for path in SAVED}
        swapped = False
        try:
            must(KSM / "run", 2)  # full_scans = 0, no stable node is left
            must(KSM / "run", 0)
            must(KSM / "advisor_mode", "none")
            must(KSM / "sleep_millisecs", QUIET)
            self._park()
            must(THP / "enabled", "madvise")
            must(THP / "defrag", "madvise")
            self._quiet()
            if any(event["op"] == "shrink" for event in self.events):
                must(VM / "drop_caches", 2)  # underused THPs of others are split now, not in the scenario
            for name, value in self.knobs.items():
                if name in KNOBS and name not in ("advisor_mode", "khugepaged_scan_sleep_millisecs"):
                    must(KNOBS[name], value)
            must(KSM / "advisor_mode", self.knobs.get("advisor_mode", "none"))
            if self.knobs.get("advisor_mode", "none") == "none":
                must(KSM / "pages_to_scan", self.knobs["pages_to_scan"])
            if self.knobs["swap_mib"]:
                swapped = True
                must(VM / "page-cluster", 0)
                must(Path("/sys/block/zram0/disksize"), self.knobs["swap_mib"] << 20)
                for command in ("mkswap", "swapon"):
                    subprocess.run([command, "/dev/zram0"], check=True, stdout=subprocess.DEVNULL)
            yield
        finally:
            put(KSM / "run", 2)
            put(KSM / "run", 0)
            if swapped:
                subprocess.run(["swapoff", "/dev/zram0"], check=False)
                put(Path("/sys/block/zram0/reset"), 1)
            put(KSM / "advisor_mode", "none")
            for path, value in saved.items():
                put(path, value)

    def _trace(self) -> dict[str, Any]:
        how = (
            "recorded on a running kernel, ksmd stepped a batch at a time by run 0 and 1, LRU batches drained after "
            "each event, no readahead"
        )
        trace = {
            "format": "kernel-trace-1",
            "name": self.scenario["name"],
            "kernel": re.match(r"[\d.]+", os.uname().release)[0],  # type: ignore[index]
            "variant": "mainline",
            "how": how + "".join(f"; {text}" for text in (self.scenario.get("how"),) if text),
            "scenario": {
                "knobs": self.knobs,
                "processes": self.scenario["processes"],
                "late": self.scenario["late"],
                "events": self.events,
                "batches": self.scenario["batches"],
            },
            "fields": self.fields,
            "samples": self.samples,
            "maps": self.maps,
            "frames": self.frames,
        }
        if self.advised:
            trace["advisor"] = self._advised()
        return trace

    def _advised(self) -> list[dict[str, Any]]:
        """For each full scan what bounds its elapsed time and ksmd's CPU time since the last one, ms."""
        out, first, cpu, scans = [], None, [0.0, 0.0], 0
        for batch in self.batches:
            first = first or batch["wall"]
            if batch["full_scans"] > scans:
                low = 0.0 if first is batch["wall"] else batch["wall"][0] - first[1]
                elapsed = [low * 1e3, (batch["wall"][1] - first[0]) * 1e3]
                used = [max(0.0, batch["cpu"][0] - cpu[1]), batch["cpu"][1] - cpu[0]]
                out.append(
                    {
                        "full_scan": batch["full_scans"],
                        "elapsed_ms": [round(x, 1) for x in elapsed],
                        "cpu_ms": [round(x, 2) for x in used],
                    }
                )
                first, cpu, scans = None, batch["cpu"], batch["full_scans"]
        return out


# -- scenarios ------------------------------------------------------------------------------------------------------

SCENARIOS: dict[str, dict[str, Any]] = {}


def process(*blocks: list[list[int]], thp: str = "", mergeable: bool = True, huge: bool = False) -> dict[str, Any]:
    """A process of 2 MiB blocks, each with its contents; `thp` has a letter a block, H = a THP."""
    pages = 512 * len(blocks)
    kinds = thp.ljust(len(blocks), "-")
    return {
        "pages": pages,
        "thp": [[512 * i, 512] for i, kind in enumerate(kinds) if kind == "H"],
        "mergeable": [[0, pages]] if mergeable else [],
        "nohugepage_after_populate": not huge,
        "contents": [run for block in blocks for run in block],
    }


def block(zero: int, unique: int = 0, same: int = 0, key: int = 0) -> list[list[int]]:
    """Contents of a block: zero-filled pages, then unique ones from `unique` on, in between `same` pages with `key`."""
    rest = 512 - zero - same
    return [run for run in ([0, zero, 0], [key, same, 0], [unique, rest, 1]) if run[1]]


def scenario(
    name: str,
    about: str,
    processes: list[dict[str, Any]],
    events: list[tuple[Any, str, dict[str, Any]]],
    batches: int,
    late: int = 0,
    how: str = "",
    folder: str = "",
    full_scans: int = 0,
    **knobs: Any,
) -> None:
    """Add a scenario. `folder`, of traces that are not predicted; `full_scans` end a recording early."""
    happen = [
        {"after": after if isinstance(after, dict) else {"batch": after}, "op": op, **what}
        for after, op, what in events
    ]
    SCENARIOS[name] = {
        "name": f"live618-{name}",
        "about": about,
        "processes": processes,
        "events": happen,
        "batches": batches,
        "knobs": knobs,
        "late": late,
        "how": how,
        "folder": folder,
        "full_scans": full_scans,
    }


def at(batch: int, op: str, *range_: int, **what: Any) -> tuple[int, str, dict[str, Any]]:
    """An event: `at(3, "read", page, count, process=1)`."""
    return batch, op, dict(zip(("page", "count"), range_, strict=False)) | what


OTHERS = "other memory of the process is MADV_UNMERGEABLE whenever ksmd may run"

scenario(
    "merge-any",
    "prctl(PR_SET_MEMORY_MERGE) 1 and 0: everything is merged, everything is given back",
    [process(block(300, 10_000), block(100, 20_000, same=200, key=7), thp="H", mergeable=False)],
    [
        at(0, "merge_any", process=0, value=1),
        at(5, "merge_any", process=0, value=0),
        at(7, "merge_any", process=0, value=1),
    ],
    11,
    late=1,
    how=OTHERS,
    use_zero_pages=1,
    pages_to_scan=1200,
)
scenario(
    "merge-any-fork",
    "a child inherits MERGE_ANY; the parent gives it up, then exits; the child writes",
    [process(block(300, 10_000), block(100, 20_000, same=200, key=7), thp="H", mergeable=False)],
    [
        at(0, "merge_any", process=0, value=1),
        at(3, "fork", process=0),
        at(6, "write", 600, 30, process=1, key=9),
        at(7, "merge_any", process=0, value=0),
        at(9, "fork", process=1),
        at(11, "exit", process=1),
    ],
    14,
    late=1,
    how=OTHERS,
    pages_to_scan=1500,
)
scenario(
    "merge-any-unmergeable",
    "S17 under MERGE_ANY: without a mergeable area the mm is dropped, but MERGE_ANY stays "
    "(a second prctl changes nothing, a child registers)",
    [process(block(100, 20_000, same=200, key=7), mergeable=False), process(block(0, 30_000, same=100, key=7))],
    [
        at(0, "merge_any", process=0, value=1),
        at(4, "unmergeable", 0, 512, process=0),
        at(7, "merge_any", process=0, value=1),
        at(9, "fork", process=0),
        at(11, "mergeable", 0, 256, process=0),
        at(11, "mergeable", 0, 512, process=2),
        at(14, "merge_any", process=0, value=0),
        at(16, "merge_any", process=0, value=1),
    ],
    19,
    how=OTHERS,
    pages_to_scan=1500,
)
scenario(
    "mergeable-dropped",
    "the same without MERGE_ANY: the mm is dropped, its child does not register",
    [process(block(100, 20_000, same=200, key=7)), process(block(0, 30_000, same=100, key=7))],
    [
        at(4, "unmergeable", 0, 512, process=0),
        at(7, "fork", process=0),
        at(9, "mergeable", 0, 256, process=0),
        at(9, "fork", process=0),
    ],
    14,
    pages_to_scan=1500,
)

scenario(
    "uffd-collapse",
    "a range armed by userfaultfd is collapsed only if no entry of it is none or a zeropage",
    [process(*(block(100, 1000 * i) for i in (1, 2, 3, 4)), huge=True)],
    [
        at(0, "hugepage", 0, 2048),
        at(3, "dontneed", 200, 10),
        at(3, "uffd", 0, 1024, process=0, value=1),
        at(3, "collapse", 0, 512),
        at(3, "collapse", 1024, 512),
        at(3, "read", 200, 10),
        at(3, "collapse", 0, 512),
        at(4, "write", 0, 100, key=5),
        at(4, "write", 200, 10, key=6),
        at(4, "collapse", 0, 512),
        at(5, "collapse", 512, 512),
        at(5, "uffd", 0, 1024, process=0, value=0),
        at(5, "collapse", 512, 1536),
    ],
    9,
    use_zero_pages=1,
    pages_to_scan=4000,
)
for uzp in (0, 1):
    scenario(
        f"uffd-split-uzp{uzp}",
        "ksmd and MADV_COLD split THPs armed by userfaultfd: zero-filled pages are remapped",
        [process(*(block(400, 1000 * i) for i in (1, 2, 3)), thp="HHH")],
        [
            at(0, "uffd", 0, 1024, process=0, value=1),
            at(1, "cold", 513, 510),
            at(1, "cold", 1024, 300),
            at(4, "fork", process=0),
        ],
        7,
        use_zero_pages=uzp,
        pages_to_scan=3000,
    )
scenario(
    "uffd-cut",
    "registration cuts a huge PMD where it makes a VMA border, and a cut block is not born huge again",
    [process(block(0, 1000), block(0, 2000), thp="HH", huge=True)],
    [
        at(0, "uffd", 100, 412, process=0, value=1),
        at(1, "dontneed", 0, 1024),
        at(1, "write", 5, 1, key=3),
        at(1, "write", 600, 1, key=4),
        at(2, "uffd", 0, 1024, process=0, value=0),
        at(2, "dontneed", 0, 1024),
        at(2, "write", 5, 1, key=3),
    ],
    4,
    pages_to_scan=3000,
)

CLOCK = {
    "khugepaged": 1,
    "khugepaged_scan_sleep_millisecs": QUIET,
    "khugepaged_alloc_sleep_millisecs": 60000,
    "max_ptes_swap": 64,
    "max_ptes_shared": 256,
}


def wake(batch: int, millisecs: int) -> tuple[int, str, dict[str, Any]]:
    return at(batch, "set", knob="khugepaged_scan_sleep_millisecs", value=millisecs)


scenario(
    "khugepaged-clock",
    "khugepaged collapses pages_to_scan / 512 ranges each time it wakes",
    [process(*(block(0, 1000 * i) for i in range(1, 13)), mergeable=False)],
    [
        at(0, "hugepage", 0, 6144),
        wake(0, 1000),
        at(0, "sleep", millisecs=500),
        *(at(0, "sleep", millisecs=1000) for _ in range(4)),
        at(0, "set", knob="khugepaged_pages_to_scan", value=512),
        at(0, "sleep", millisecs=1000),
        at(0, "sleep", millisecs=1000),
        at(0, "sleep", millisecs=1000),
    ],
    1,
    khugepaged_pages_to_scan=1024,
    **CLOCK,
)
scenario(
    "khugepaged-none",
    "khugepaged leaves ranges with more than max_ptes_none empty entries alone",
    [process(*(block(0, 1000 * i) for i in range(1, 8)), mergeable=False)],
    [
        at(0, "hugepage", 0, 3584),
        *(at(0, "dontneed", 512 * i, n) for i, n in ((1, 99), (2, 100), (3, 101), (4, 511))),
        at(0, "dontneed", 2560, 101),
        at(0, "read", 2560, 101),
        at(0, "dontneed", 3072, 512),
        wake(0, QUIET // 2),
        at(0, "sleep", millisecs=300),
        at(0, "set", knob="max_ptes_none", value=101),
        wake(0, QUIET // 2),
        at(0, "sleep", millisecs=300),
    ],
    1,
    khugepaged_pages_to_scan=8192,
    max_ptes_none=100,
    **CLOCK,
)
scenario(
    "khugepaged-shared",
    "khugepaged leaves ranges with more than max_ptes_shared shared pages alone",
    [process(*(block(0, 1000 * i) for i in range(1, 5)), mergeable=False)],
    [
        at(0, "fork", process=0),
        at(0, "hugepage", 0, 2048, process=0),
        at(0, "write", 512, 255, key=5),
        at(0, "write", 1024, 256, key=6),
        at(0, "write", 1536, 512, key=8),
        wake(0, QUIET // 2),
        at(0, "sleep", millisecs=300),
        at(0, "set", knob="max_ptes_shared", value=257),
        wake(0, QUIET // 2),
        at(0, "sleep", millisecs=300),
    ],  # a child's pages: whether accessed, DAMON may decide
    1,
    khugepaged_pages_to_scan=8192,
    **CLOCK,
)
for uzp in (0, 1):
    scenario(
        f"khugepaged-pingpong-uzp{uzp}",
        "ksmd splits, khugepaged collapses, ksmd splits again",
        [process(*(block(460, 1000 * i) for i in (1, 2, 3)), thp="HHH", huge=True)],
        [
            *(event for batch in (3, 6, 9) for event in (wake(batch, QUIET // 2), at(batch, "sleep", millisecs=300))),
            at(12, "set", knob="max_ptes_none", value=459),
            wake(12, QUIET // 2),
            at(12, "sleep", millisecs=300),
        ],
        14,
        use_zero_pages=uzp,
        pages_to_scan=2000,
        khugepaged_pages_to_scan=8192,
        **CLOCK,
    )

ADVISED = {
    "advisor_mode": "scan-time",
    "advisor_max_cpu": 70,
    "advisor_min_pages_to_scan": 500,
    "advisor_max_pages_to_scan": 30000,
    "advisor_target_scan_time": 200,
}


def knob(batch: int, name: str, value: Any) -> tuple[int, str, dict[str, Any]]:
    return at(batch, "set", knob=name, value=value)


scenario(
    "advisor-knobs",
    "a change of advisor_mode sets pages_to_scan, which can't be written in scan-time mode",
    [process(block(0, 1000))],
    [
        knob(0, "pages_to_scan", 700),
        knob(0, "advisor_mode", "scan-time"),
        knob(0, "pages_to_scan", 300),
        knob(0, "advisor_min_pages_to_scan", 40),
        knob(0, "advisor_mode", "scan-time"),
        knob(0, "advisor_mode", "none"),
        knob(0, "pages_to_scan", 300),
        knob(0, "advisor_mode", "none"),
        knob(0, "advisor_mode", "scan-time"),
        *(knob(0, f"advisor_{name}", 0) for name in ("min_pages_to_scan", "max_pages_to_scan", "max_cpu")),
        knob(0, "advisor_max_cpu", 100),
        knob(0, "advisor_mode", "none"),
    ],
    3,
    **ADVISED | {"advisor_mode": "none"},
    pages_to_scan=500,
)

scenario(
    "advisor-formula",
    "the scan-time advisor: its first results, history, and each of its four bounds",
    [process(block(0, 1000)) | {"mergeable": [[0, 64]]}],
    [
        at(34, "sleep", millisecs=6500),
        knob(37, "advisor_max_pages_to_scan", 100),
        knob(38, "advisor_mode", "none"),
        knob(38, "advisor_min_pages_to_scan", 4),
        knob(38, "advisor_max_cpu", 12),
        knob(38, "advisor_target_scan_time", 2),
        knob(38, "advisor_max_pages_to_scan", 30000),
        knob(38, "advisor_mode", "scan-time"),
        at(40, "sleep", millisecs=4300),
        knob(55, "advisor_target_scan_time", 1),
        at(56, "sleep", millisecs=12500),
    ],
    59,
    how="ksmd had used less than 10 ms of CPU since boot (a change of advisor_mode makes all of it count)",
    **ADVISED | {"advisor_min_pages_to_scan": 2, "advisor_target_scan_time": 1},
    pages_to_scan=2,
)
scenario(
    "advisor-heavy",
    "the scan-time advisor with ksmd busy: check its results by S31 within the bounds in `advisor`",
    [process([[1000, 131072, 1]]) | {"pages": 131072, "mergeable": [[0, 131072]]}],
    [
        knob(0, "advisor_mode", "none"),
        knob(0, "advisor_mode", "scan-time"),
        *(
            event
            for scan, target, cpu, top in (
                (3, 1, 70, 30000),
                (4, 5, 70, 30000),
                (6, 5, 30, 30000),
                (8, 1, 90, 60000),
                (9, 3, 90, 4000),
            )
            for event in (
                ({"full_scan": scan}, "set", {"knob": "advisor_target_scan_time", "value": target}),
                ({"full_scan": scan}, "set", {"knob": "advisor_max_cpu", "value": cpu}),
                ({"full_scan": scan}, "set", {"knob": "advisor_max_pages_to_scan", "value": top}),
            )
        ),
    ],
    500,
    how="depends on time: not for comparison",
    folder="advisor",
    full_scans=11,
    **ADVISED | {"advisor_min_pages_to_scan": 8000, "advisor_target_scan_time": 2},
    pages_to_scan=8000,
)

for uzp in (0, 1):
    scenario(
        f"split-before-run-uzp{uzp}",
        "THPs are split before KSM runs; run=2 and MADV_UNMERGEABLE do not give the remapped pages back",
        [process(*(block(400, 1000 * i, same=50, key=7) for i in (1, 2, 3)), block(0, 9000, same=100), thp="HHH-")],
        [
            at(0, "cold", 0, 511),
            at(0, "cold", 600, 1),
            knob(5, "run", 2),
            knob(6, "run", 1),
            at(9, "unmergeable", 0, 2048),
        ],
        11,
        use_zero_pages=uzp,
        pages_to_scan=1500,
    )
scenario(
    "dontneed-page-table",
    "MADV_DONTNEED of a whole block frees its page table: the next write there may get a THP",
    [process(*(block(0, 1000 * i) for i in range(1, 6)), thp="---HH", mergeable=False)],
    [
        at(0, "hugepage", 0, 2560),
        at(0, "dontneed", 0, 512),
        at(0, "dontneed", 512, 256),
        at(0, "dontneed", 768, 256),
        at(0, "dontneed", 1024, 511),
        at(0, "dontneed", 1536, 100),
        at(0, "dontneed", 1636, 412),
        at(0, "dontneed", 2048, 512),
        at(0, "write", 5, 1, key=1),
        at(0, "write", 517, 1, key=2),
        at(0, "write", 1029, 1, key=3),
        at(0, "write", 1541, 1, key=4),
        at(0, "write", 2053, 1, key=5),
        at(0, "dontneed", 512, 1536),
        at(0, "write", 517, 1, key=2),
        at(0, "read", 1029, 1),
        at(0, "write", 1541, 1, key=4),
        at(0, "dontneed", 1024, 512),
        at(0, "read", 1029, 1),
    ],
    1,
    late=1,
)
scenario(
    "unmergeable-split",
    "fix-variants 5.5.2: a THP of an area that is not mergeable any more is split and remapped",
    [process(*(block(400, 1000 * i) for i in (1, 2, 3)), thp="HHH")],
    [at(1, "unmergeable", 512, 512), at(1, "cold", 512, 511), at(2, "mergeable", 512, 512)],
    7,
    pages_to_scan=3000,
)
for uzp in (0, 1):
    scenario(
        f"mlock-split-uzp{uzp}",
        "fix-variants 5.5.5: a THP is split while mlocked; munlock does not remap it, ksmd "
        "merges its zero-filled pages",
        [process(*(block(400, 1000 * i) for i in (1, 2)), thp="HH")],
        [at(0, "mlock", 0, 512), at(3, "munlock", 0, 512), at(4, "mlock", 256, 512)],
        9,
        use_zero_pages=uzp,
        pages_to_scan=3000,
    )
for uzp in (0, 1):
    scenario(
        f"fork-split-uzp{uzp}",
        "fix-variants 5.5.6: ksmd splits forked THPs, both processes lose zero-filled pages",
        [process(*(block(400, 1000 * i) for i in (1, 2, 3)), thp="HHH")],
        [
            at(0, "fork", process=0),
            at(1, "write", 512, 1, process=1, key=5),
            at(3, "write", 0, 20, process=1, key=6),
            at(5, "exit", process=0),
        ],
        8,
        use_zero_pages=uzp,
        pages_to_scan=5000,
    )
scenario(
    "fork-unmergeable-split",
    "a THP shared with a child that is not mergeable: ksmd's split remaps it in both",
    [process(*(block(400, 1000 * i) for i in (1, 2)), thp="HH")],
    [at(0, "fork", process=0), at(0, "unmergeable", 0, 1024, process=1), at(0, "mlock", 512, 512, process=1)],
    5,
    use_zero_pages=1,
    pages_to_scan=3000,
)

SWAP = {"swap_mib": 64, "how": "swap on zram"}
scenario(
    "swap-thp",
    "W2 … W5: MADV_PAGEOUT of whole THPs, all-zero ones, and parts of THPs",
    [
        process(
            block(460, 1000),
            block(511, 2000),
            block(512),
            block(460, 4000),
            block(512),
            block(0, 6000),
            block(256, 7000),
            thp="HHHHH-H",
        )
    ],
    [
        at(0, "pageout", 0, 1536),
        at(1, "read", 0, 5),
        at(1, "read", 458, 4),
        at(1, "read", 1020, 4),
        at(1, "read", 1024, 3),
        at(1, "write", 1100, 2, key=9),
        at(1, "write", 480, 2, key=8),
        at(1, "pageout", 1600, 300),
        at(1, "pageout", 2100, 100),
        at(1, "pageout", 2560, 10),
        at(3, "pageout", 3072, 512),
        at(3, "read", 3070, 4),
        at(4, "read", 0, 3584),
    ],
    7,
    late=0,
    pages_to_scan=4000,
    use_zero_pages=0,
    **SWAP,
)
scenario(
    "swap-fork",
    "W7: swap entries duplicated by fork; faults in both processes, reads before writes and after",
    [process(block(20, 1000), mergeable=False)],
    [
        at(0, "pageout", 0, 200),
        at(0, "fork", process=0),
        at(0, "read", 0, 30, process=0),
        at(0, "read", 0, 30, process=1),
        at(0, "write", 20, 5, process=0, key=5),
        at(0, "write", 20, 5, process=1, key=6),
        at(0, "read", 40, 10, process=1),
        at(0, "write", 40, 10, process=1, key=7),
        at(0, "read", 40, 10, process=0),
        at(0, "write", 40, 10, process=0, key=8),
        at(0, "write", 60, 10, process=1, key=9),
        at(0, "write", 60, 10, process=0, key=4),
        at(0, "dontneed", 80, 10, process=1),
        at(0, "read", 80, 10, process=0),
        at(0, "write", 80, 10, process=0, key=3),
        at(0, "pageout", 0, 120, process=0),
        at(0, "exit", process=1),
        at(0, "write", 100, 20, process=0, key=None),
    ],
    1,
    late=1,
    **SWAP,
)
scenario(
    "swap-ksm",
    "F6: KSM pages are swapped out if mapped once, come back as ordinary pages, and merge again",
    [process(block(50, 1000, same=60, key=7)), process(block(50, 2000, same=60, key=7))],
    [
        at(3, "pageout", 0, 512, process=0),
        at(4, "dontneed", 50, 60, process=1),
        at(4, "dontneed", 51, 59, process=0),
        at(4, "pageout", 0, 512, process=0),
        at(5, "read", 50, 1, process=0),
        at(5, "read", 0, 10, process=0),
        at(6, "pageout", 200, 100, process=1),
        at(8, "read", 200, 100, process=1),
        at(9, "fork", process=0),
        at(9, "pageout", 300, 100, process=0),
        at(10, "read", 110, 300, process=0),
        at(10, "write", 110, 300, process=2, key=None),
    ],
    14,
    pages_to_scan=2000,
    **SWAP,
)
scenario(
    "swap-khugepaged",
    "K4, K10: swapped entries and max_ptes_swap; MADV_COLLAPSE swaps in whatever it finds",
    [process(*(block(0, 1000 * i) for i in range(1, 5)), mergeable=False)],
    [
        at(0, "hugepage", 0, 2048),
        at(0, "pageout", 0, 64),
        at(0, "pageout", 512, 65),
        at(0, "pageout", 1024, 512),
        at(0, "pageout", 1536, 300),
        wake(0, QUIET // 2),
        at(0, "sleep", millisecs=300),
        at(0, "collapse", 512, 1024),
        at(0, "set", knob="max_ptes_swap", value=511),
        wake(0, QUIET // 2),
        at(0, "sleep", millisecs=300),
        at(0, "read", 1600, 60),
        wake(0, QUIET // 2),
        at(0, "sleep", millisecs=300),
    ],
    1,
    khugepaged_pages_to_scan=8192,
    **CLOCK,
    **SWAP,
)
scenario(
    "swap-free-cold",
    "W5, W6: MADV_FREE and MADV_COLD of parts of THPs, then MADV_PAGEOUT",
    [process(*(block(256, 1000 * i) for i in range(1, 7)), thp="HHHH--")],
    [
        at(0, "free", 100, 300),
        at(0, "cold", 612, 300),
        at(0, "free", 1024, 512),
        at(0, "write", 1030, 1, key=5),
        at(0, "free", 1536, 512),
        at(0, "free", 2048, 512),
        at(0, "write", 2100, 10, key=None),
        at(1, "pageout", 0, 3072),
        at(2, "read", 0, 3072),
        at(2, "pageout", 2600, 300),
        at(2, "free", 2600, 100),
    ],
    4,
    pages_to_scan=4000,
    **SWAP,
)

for threshold in (255, 511, 0):
    scenario(
        f"shrink-none{threshold}",
        "drop_caches lets the deferred-split shrinker scan its queue: which THPs are split",
        [
            process(
                *(block(zero, 1000 * i) for i, zero in enumerate((0, 1, 255, 256, 257, 512, 300, 300, 300), 1)),
                thp="HHHHHHHHH",
                mergeable=False,
            )
        ],
        [
            at(0, "dontneed", 3500, 10, process=0),
            at(0, "mlock", 3584, 512, process=0),
            at(0, "fork", process=0),
            at(0, "dontneed", 4096, 100, process=0),
            at(0, "shrink", count=1000),
            at(0, "munlock", 3584, 512, process=0),
            at(0, "shrink", count=1000),
            at(0, "dontneed", 512, 1, process=0),
            at(0, "dontneed", 512, 1, process=1),
            at(0, "write", 1024, 300, process=0, key=0),
            at(0, "shrink", count=1000),
        ],
        1,
        late=1,
        max_ptes_none=threshold,
    )
scenario(
    "shrink-ksm",
    "the shrinker splits mergeable THPs between ksmd's batches: nodes of the unstable tree die",
    [process(block(300, 1000), block(100, 2000), block(400, 3000), thp="HHH")],
    [at(2, "shrink", count=1000), at(4, "shrink", count=1000)],
    7,
    max_ptes_none=255,
    pages_to_scan=900,
)
scenario(
    "shrink-knob",
    "fix-variants 5.5.3, 5.5.4: shrink_underused decides only whether new THPs are queued",
    [process(*(block(400, 1000 * i) for i in (1, 2)), thp="H-", mergeable=False, huge=True)],
    [
        at(0, "hugepage", 0, 1024, process=0),
        at(0, "set", knob="shrink_underused", value=0),
        at(0, "collapse", 512, 512, process=0),
        at(0, "set", knob="max_ptes_none", value=0),
        at(0, "shrink", count=1000),
        at(0, "set", knob="shrink_underused", value=1),
        at(0, "collapse", 0, 1024, process=0),
        at(0, "shrink", count=1000),
    ],
    1,
    late=1,
)


# -- by hand --------------------------------------------------------------------------------------------------------


def same(a: dict[str, Any], b: dict[str, Any]) -> str:
    """What differs between two recordings of one scenario, but for the advisor's times and lab_* fields."""
    wanted = [i for i, name in enumerate(a["fields"]) if not name.startswith("lab_")]
    for x, y in zip(a["samples"], b["samples"], strict=True):
        if wrong := [f"{a['fields'][i]} {x[i]} or {y[i]}" for i in wanted if x[i] != y[i]]:
            return f"batch {x[0]}: {', '.join(wrong)}"
    return next((part for part in ("scenario", "maps", "frames") if a[part] != b[part]), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios to record; * stands for anything")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--all", action="store_true", help="record all of them")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR", help="their folder (mmlab/recordings)")
    parser.add_argument("--times", type=int, default=2, metavar="N", help="equal recordings that are wanted (2)")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{name:22} {spec['about']}" for name, spec in SCENARIOS.items()))
        return
    names = [name for name in SCENARIOS if any(fnmatch.fnmatch(name, glob) for glob in args.names)]
    if stray := sorted(glob for glob in args.names if not fnmatch.filter(SCENARIOS, glob)):
        parser.error(f"no scenario {', '.join(stray)}: --list shows all")
    if not (args.names or args.all):
        parser.error("name scenarios, or give --all (--list shows them)")
    from mmlab.results.trace import write

    try:
        for name in SCENARIOS if args.all else names:
            seen: list[dict[str, Any]] = []
            for _ in range(args.times + 3):
                check()
                trace = Recorder(SCENARIOS[name]).record()
                equal = [one for one in seen if not (different := same(one, trace))]
                seen.append(trace)
                if len(equal) + 1 >= args.times or SCENARIOS[name]["folder"]:
                    path = args.out / SCENARIOS[name]["folder"] / f"live618-{name}.json.gz"
                    write(path, trace)
                    print(f"{path} {path.stat().st_size} bytes, {len(trace['samples'])} samples", flush=True)
                    break
            else:
                raise RefusedError(f"{name}: recordings differ, e.g. {different}: try again on a calm machine")
    except RefusedError as error:
        sys.exit(f"record.py: {error}")


if __name__ == "__main__":
    main()
