"""Carry out a plan (`mmlab.host.record.plan`) on the running kernel: one file that needs only the standard library.

    python runner.py PLAN.json

Progress, and at last the recording or why there is none, are lines of JSON on stdout. The *recorder* takes the lock,
saves every knob in the file of the lock, and starts the *workers*: the processes of the scenario, which hold that file
open, so that whoever gets the lock knows that none is left. It puts everything back when it ends, also because its
parent was killed. If it is killed itself, its parent does so (`recover`); if both are, whoever takes the lock next.

Each worker has one region of memory between two PROT_NONE neighbours, so that it is a VMA of its own, and obeys ops
that come over a socket. Between batches `run` is 0. A batch is one write of 1 to `run`, upon which ksmd wakes from its
untimed sleep and makes one batch; then it sleeps in its timed wait, `run` becomes 0 again, and a change of
sleep_millisecs sends it back to the untimed sleep. After populating and after each event the per-CPU LRU batches are
drained, by a MADV_COLLAPSE of an empty range. khugepaged sleeps until an event wakes it. DAMON, which would take
accessed bits away at moments of its own (and with them what khugepaged decides), is off meanwhile.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NoReturn

KSM, THP, VM = Path("/sys/kernel/mm/ksm"), Path("/sys/kernel/mm/transparent_hugepage"), Path("/proc/sys/vm")
KHUGEPAGED, VMSTAT_FILE = THP / "khugepaged", Path("/proc/vmstat")
DEBUGFS, TRACEFS = Path("/sys/kernel/debug"), Path("/sys/kernel/tracing")
SPLIT, TRACE = DEBUGFS / "split_huge_pages", TRACEFS / "instances/mmlab"
DAMON = "kernel/mm/damon/admin/kdamonds/*/state", "module/damon_*/parameters/enabled"
"""Files of /sys that say whether DAMON looks for accessed memory, which takes the accessed bits from it."""
STATE = Path("/run/mmlab-record")
"""The file of the lock; it holds the saved knobs while a recording runs."""

PAGE, BLOCK = 4096, 2 << 20
QUIET = 10**9
"""A sleep that does not end, ms."""
BETWEEN = 0.1
"""Seconds between samples of a ksmd that runs freely."""
MADVISE = {"dontneed": 4, "free": 8, "mergeable": 12, "unmergeable": 13, "hugepage": 14, "nohugepage": 15, "cold": 20}
MADVISE |= {"pageout": 21, "populate_write": 23, "collapse": 25, "memory_failure": 100}
MAP_ANON, MAP_FIXED, MAP_POPULATE, MREMAP_MAYMOVE, MREMAP_FIXED = 0x22, 0x10, 0x8000, 1, 2
SYS_IO_URING_SETUP, SYS_IO_URING_REGISTER, IORING_REGISTER_BUFFERS, IORING_UNREGISTER_BUFFERS = 425, 427, 0, 1
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_MEMORY_MERGE = 1, 36, 67
SYS_USERFAULTFD, UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER = 323, 0xC018AA3F, 0xC020AA00, 0x8010AA01
UFFDIO_REGISTER_MODE_WP = 2
PROBES: dict[str, tuple[Any, ...]] = {"uffd": ("syscall", SYS_USERFAULTFD, os.O_CLOEXEC)}
PROBES["merge_any"] = ("prctl", PR_SET_MEMORY_MERGE, 0, 0, 0, 0)
"""Calls that succeed where the ops can be done."""

COUNTERS = """full_scans pages_scanned pages_skipped pages_shared pages_sharing pages_unshared pages_volatile
    ksm_zero_pages stable_node_chains stable_node_dups general_profit pages_to_scan""".split()
SINCE_START = "pages_scanned pages_skipped lab_ksmd_cpu_ns lab_time_ns".split()
SMAPS = "Rss Anonymous AnonHugePages KSM Swap".split()
KSM_STAT = "ksm_rmap_items ksm_zero_pages ksm_merging_pages ksm_process_profit".split()
VMSTAT = """thp_split_page thp_split_page_failed thp_split_pmd thp_underused_split_page thp_deferred_split_page
    thp_fault_alloc thp_collapse_alloc ksm_swpin_copy cow_ksm pswpout pswpin""".split()
SIZES = [4 << order for order in range(2, 10)]
"""Sizes of folios, kB."""
MTHP = "split split_failed split_deferred nr_anon nr_anon_partially_mapped".split()
ALONE = {
    "split_all": "splits huge pages of every process",
    "compact": "compacts all memory",
    "memory_failure": "takes a page of the machine out of use",
}
"""Events that reach beyond the scenario's processes: in a virtual machine of their own only (option `alone`)."""
OPS = {*MADVISE, *ALONE} | set(
    """write read pin unpin mmap mremap mlock munlock munmap mprotect merge_any uffd fork exit shrink split khugepaged
    set sleep""".split()
)
OPTIONS: dict[str, Any] = {"mode": "stepped", "seconds": 0, "times": 2, "alone": False}
OPTIONS |= {"tracepoints": [], "owner_running": [], "key_offset": 0}
KNOBS = """use_zero_pages pages_to_scan smart_scan max_page_sharing merge_across_nodes advisor_mode shrink_underused
    stable_node_chains_prune_millisecs max_ptes_none max_ptes_swap max_ptes_shared khugepaged_pages_to_scan""".split()
"""Knobs of a scenario that a kernel may have, or not."""
EVERYTHING: dict[str, Any] = {"options": {"tracepoints": ["ksm"]}}
EVERYTHING["scenario"] = {
    "knobs": {"swap_mib": 1, "hugepages_enabled": SIZES},
    "events": [*({"op": op} for op in (*OPS, "migrate")), *({"op": "set", "knob": knob} for knob in KNOBS)],
}
"""What of a plan needs anything of the machine."""


class RefusedError(Exception):
    """The recorder must not, or cannot, record here."""


# -- small things of /proc and /sys ---------------------------------------------------------------------------------


def get(path: Path) -> str:
    """Return a knob's value; of a list of choices the one in brackets."""
    return re.sub(r".*\[(.+)\].*", r"\1", path.read_text().strip())


def put(path: Path, value: object) -> int:
    """Write a knob; return 0 or the errno."""
    try:
        path.write_text(str(value))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def must(path: Path, value: object) -> None:
    if code := put(path, value):
        raise RefusedError(f"{path} cannot be set to {value}: {os.strerror(code)}")


def table(path: Path) -> dict[str, str]:
    """Return a file of lines `name value` or `name: value`."""
    rows = (re.split(r"[:\s]+", line, maxsplit=1) for line in path.read_text().splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


def vmas(process: Path) -> Iterator[tuple[int, int, str]]:
    """Yield the VMAs of a process, by its folder in /proc: start, end and what smaps says of each."""
    parts = re.split(r"^([0-9a-f]+)-([0-9a-f]+) .*\n", (process / "smaps").read_text(), flags=re.M)
    for start, end, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        yield int(start, 16), int(end, 16), text


def thread(name: str) -> Path:
    """Return the folder in /proc of the kernel thread of that name."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == name and table(path.with_name("status"))["PPid"] == "2":
                return path.parent
    raise RefusedError(f"there is no {name} here")


def knob_file(name: str) -> Path:
    """Return the file of a knob, by its name in a scenario."""
    if name.startswith(("max_ptes_", "khugepaged_")):
        return KHUGEPAGED / name.removeprefix("khugepaged_")
    return (THP if name == "shrink_underused" else KSM) / name


LIB = ctypes.CDLL(None, use_errno=True)
for function in (LIB.mmap, LIB.mremap, LIB.syscall, LIB.pread, LIB.pwrite):
    function.restype = ctypes.c_long


def result(name: str, *args: Any) -> int:
    """Return what a function of the C library returns."""
    longs = (ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args)
    return getattr(LIB, name)(*longs)  # type: ignore[no-any-return]


def libc(name: str, *args: Any) -> int:
    """Make a system call by its name in the C library; return 0 or the errno."""
    return ctypes.get_errno() if result(name, *args) < 0 else 0


def region(size: int) -> int:
    """Return the address of a new VMA, 2 MiB aligned, between PROT_NONE neighbours."""
    at = (result("mmap", None, size + 2 * BLOCK, 0, MAP_ANON, -1, 0) // BLOCK + 1) * BLOCK
    return result("mmap", at, size, 3, MAP_ANON | MAP_FIXED, -1, 0)


# -- the machine: what it can do, who uses it, and everything put back ------------------------------------------------


USES = {"mg": "that is mergeable", "hg": "with MADV_HUGEPAGE, on which khugepaged spends its time"}
"""What memory is used for that has these flags of smaps."""


def in_use(ours: set[int], flag: str = "mg") -> str:
    """Return who else has memory with a flag of smaps (`USES`), or ""."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(path.name) in ours or (flag == "mg" and table(path / "ksm_stat").get("ksm_mergeable") == "no"):
                continue
            flagged = re.compile(rf"^VmFlags:.* {flag}\b", re.M)
            if size := sum(end - start for start, end, text in vmas(path) if flagged.search(text)):
                return f"process {path.name} ({get(path / 'comm')}) has {size / 2**20:,.1f} MiB {USES[flag]}"
    return ""


def why_not(path: Path) -> str:
    """Return why a file cannot be written to, or ""."""
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        locked = Path("/sys/kernel/security/lockdown")
        reason = f", lockdown is {get(locked)}" if locked.exists() and get(locked) != "none" else ""
        return f"{path}: {error.strerror}{reason}"
    return ""


@contextlib.contextmanager
def mounted() -> Iterator[list[Path]]:
    """Mount debugfs and tracefs for the time being, where they are not; yield where they were not."""
    kinds = {DEBUGFS: b"debugfs", TRACEFS: b"tracefs"}
    ours = [at for at, kind in kinds.items() if not (at.is_mount() or libc("mount", kind, bytes(at), kind, 0, None))]
    try:
        yield ours
    finally:
        for at in ours:
            libc("umount2", bytes(at), 0)


def zram() -> Path | None:
    """Return a zram device that is not used, or None."""
    free = (path for path in sorted(Path("/sys/block").glob("zram*")) if get(path / "disksize") == "0")
    return next(free, None)


def damon() -> list[Path]:
    """Return the files by which DAMON is switched on now."""
    return [path for pattern in DAMON for path in Path("/sys").glob(pattern) if get(path) in ("on", "Y")]


def swap_off(device: Path) -> None:
    """Swap to a zram device no longer."""
    libc("swapoff", f"/dev/{device.name}".encode())
    put(device / "reset", 1)


def survey(plan: dict[str, Any] = EVERYTHING) -> Iterator[tuple[str, str, str]]:
    """Yield what a plan needs of this machine: its name, what is there, and why that does not do, or "" (`mounted`)."""
    asked, options = plan["scenario"], OPTIONS | plan.get("options", {})
    ops = {event["op"] for event in asked["events"]}
    knobs = {event["knob"] for event in asked["events"] if "knob" in event}
    yield "root", "", "recording needs root" * bool(os.geteuid())
    if not (KSM.exists() and THP.exists()):
        yield "KSM and THP", "", "this kernel has no KSM, or no transparent huge pages"
        return
    running = f"KSM is running here ({KSM / 'run'} is 1), and recording needs it stopped" * (get(KSM / "run") == "1")
    yield "KSM that nobody uses", "", running or in_use(set())
    for path in damon():
        yield "DAMON", f"{path}: off while mmlab records", ""
    if "khugepaged_scan_sleep_millisecs" in knobs:
        yield "khugepaged that nobody uses", "", in_use(set(), "hg")
    files = {f"knob {name}": knob_file(name) for name in sorted(knobs)}
    for kb in asked["knobs"].get("hugepages_enabled", {}):
        files[f"huge pages of {kb} kB"] = THP / f"hugepages-{kb}kB"
    for what, path in files.items():
        yield what, get(path) if path.is_file() else "", f"this kernel has no {what}" * (not path.exists())
    if swap := asked["knobs"].get("swap_mib"):
        device = str(zram() or "")
        yield "swap_mib", device, "swap_mib needs a zram device that is not used (modprobe zram)" * (not device)
    if (swap or "pageout" in ops) and len(Path("/proc/swaps").read_text().splitlines()) > 1:
        problem = "this machine swaps to a device of its own, which the scenario does not have: swapoff it first"
        yield "no other swap", "", problem
    if options["tracepoints"]:
        missing = why_not(TRACEFS / "trace_clock")
        yield "tracepoints", "", f"tracepoints need tracefs: {missing}" if missing else ""
    for op in sorted(ops):
        problem = ""
        if op in ALONE and not options["alone"]:
            problem = f"{ALONE[op]}: `mmlab vm` records it in a machine of its own"
        elif op not in OPS:
            problem = "cannot be done from outside the kernel"
        elif op in ("split", "split_all"):
            problem = f"needs debugfs: {missing}" if (missing := why_not(SPLIT)) else ""
        elif op in PROBES and result(*PROBES[op]) < 0:
            problem = f"is refused here: {os.strerror(ctypes.get_errno())}"
        yield f"op {op}", "", f"op {op} {problem}" if problem else ""


def lacking(plan: dict[str, Any]) -> list[str]:
    """Return everything that this machine lacks for a plan, or that forbids it now."""
    return [problem for *_, problem in survey(plan) if problem]


def save(ours: Sequence[Path] = ()) -> dict[str, Any]:
    """Return every knob of KSM and THP, and what else a recording changes; `ours` are mounted for it only."""
    files = [path for top in (KSM, THP) for path in top.glob("**/*") if path.is_file() and path.stat().st_mode & 0o200]
    files += damon()
    ksmd = int(thread("ksmd").name)
    return {
        "knobs": {str(path): get(path) for path in [*files, VM / "page-cluster"]},
        "nice": [ksmd, os.getpriority(os.PRIO_PROCESS, ksmd)],
        "cpus": [ksmd, sorted(os.sched_getaffinity(ksmd))],
        "zram": str(zram() or ""),
        "mounted": [str(path) for path in (DEBUGFS, TRACEFS) if path.is_mount() and path not in ours],
    }


def restore(state: dict[str, Any]) -> None:
    """Put everything back as it was; that may be done twice."""
    put(KSM / "run", 2)
    put(KSM / "run", 0)
    put(KSM / "advisor_mode", "none")  # or pages_to_scan cannot be written
    if state["zram"]:
        swap_off(Path(state["zram"]))
    for path, value in sorted(state["knobs"].items(), key=lambda item: item[0].endswith(("advisor_mode", "/run"))):
        if Path(path).exists() and get(Path(path)) != value:
            put(Path(path), value)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, *state["nice"])
        os.sched_setaffinity(*state["cpus"])
        if TRACE.exists():
            TRACE.rmdir()
    for path in (DEBUGFS, TRACEFS):
        if str(path) not in state["mounted"]:
            libc("umount2", bytes(path), 0)


def lock(seconds: float) -> int:
    """Return the handle of the lock, once no recording runs and everything is put back that one has left behind."""
    handle = os.open(STATE, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(1 + int(50 * seconds)):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.02)
    else:
        os.close(handle)
        raise RefusedError("another recording is running on this machine")
    if left := os.pread(handle, 1 << 20, 0):
        restore(json.loads(left))
        os.ftruncate(handle, 0)
    return handle


def recover() -> None:
    """Put back what a recording left behind whose watcher was killed."""
    if STATE.exists():
        os.close(lock(30))


# -- the processes of a scenario ------------------------------------------------------------------------------------


class Worker:
    """What runs in a process of the scenario: it obeys until told to exit."""

    def __init__(self, address: bytes, pages: int, key_offset: int) -> None:
        self.address, self.pages, self.key_offset = address, pages, key_offset
        self.base, self.bytes = region(pages * PAGE), os.memfd_create("bytes")

    def connect(self) -> list[int]:
        """Begin as a new process, on a socket of its own; return what it first says there."""
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self.address)
            self.lines, self.fault_handle, self.rings = link.makefile("rw"), -1, list[int]()
        return [os.getpid(), self.base, self.pages]

    def serve(self) -> NoReturn:
        """Obey the recorder; a child never answers for its parent."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped at once
        answer: Any = self.connect()
        while True:
            print(json.dumps(answer), file=self.lines, flush=True)
            order = json.loads(self.lines.readline() or '{"op": "end"}')
            op, answer = order.pop("op"), 0
            if op == "end":
                os._exit(0)
            if op != "fork":
                answer = getattr(self, op)(**order) if hasattr(self, op) else self.call(op, **order)
            elif not os.fork():
                answer = self.connect()

    def call(self, op: str, page: int, count: int = 1, to: int = 0, **more: int) -> int:
        """Make the system call, or the madvise, of an operation."""
        at, size = self.base + page * PAGE, count * PAGE
        if op in MADVISE:
            return libc("madvise", at, size, MADVISE[op])
        new = (3, MAP_ANON | MAP_FIXED | MAP_POPULATE, -1, 0)
        moved = (size, MREMAP_MAYMOVE | MREMAP_FIXED, self.base + to * PAGE)
        return libc(op, at, size, *{"mmap": new, "mremap": moved}.get(op, more.values()))

    def pin(self, page: int, count: int) -> int:
        """Register the range as a fixed buffer of an io_uring of its own."""
        self.rings.append(result("syscall", SYS_IO_URING_SETUP, 1, bytes(120)))
        where = struct.pack("<2Q", self.base + page * PAGE, count * PAGE)
        return libc("syscall", SYS_IO_URING_REGISTER, self.rings[-1], IORING_REGISTER_BUFFERS, where, 1)

    def unpin(self) -> int:
        """Let go at once: a ring that is only closed does so later."""
        while self.rings:
            libc("syscall", SYS_IO_URING_REGISTER, self.rings[-1], IORING_UNREGISTER_BUFFERS, None, 0)
            os.close(self.rings.pop())
        return 0

    def move(self, call: str, page: int, size: int = 8) -> int:
        """Let the kernel write the bytes to a page (pread) or read them there: an errno takes the place of a signal."""
        return libc(call, self.bytes, self.base + page * PAGE + self.key_offset, size, 0)

    def populate(self, ranges: list[list[int]], contents: list[list[int]], huge: bool) -> int:
        """Write all pages of the ranges, with MADV_HUGEPAGE if they shall be huge."""
        keys = [first + i * step for first, count, step in contents for i in range(count)]
        for page, count in ranges:
            self.call("hugepage" if huge else "nohugepage", page, count)
            for at in range(page, page + count):
                self.write(at, 1, keys[at])
        return 0

    def write(self, page: int, count: int, key: int | None) -> int:
        if key is not None:
            os.pwrite(self.bytes, key.to_bytes(8, "big"), 0)
        codes = (
            (key is None and self.move("pwrite", at)) or self.move("pread", at) for at in range(page, page + count)
        )
        return next(filter(None, codes), 0)

    def read(self, page: int, count: int) -> int:
        return next(filter(None, (self.move("pwrite", at, 1) for at in range(page, page + count))), 0)

    def merge_any(self, value: int) -> int:
        return libc("prctl", PR_SET_MEMORY_MERGE, value, 0, 0, 0)

    def unmerge(self, ranges: list[tuple[int, int]]) -> int:
        """Take the interpreter's own memory out again."""
        return sum(libc("madvise", start, end - start, MADVISE["unmergeable"]) for start, end in ranges)

    def uffd(self, page: int, count: int, value: int) -> int:
        """Register a range in write-protect mode, without protecting anything: no fault is ever held up."""
        if self.fault_handle < 0:
            self.fault_handle = result("syscall", SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
            libc("ioctl", self.fault_handle, UFFDIO_API, ctypes.create_string_buffer(struct.pack("<3Q", 0xAA, 0, 0)))
        where = struct.pack("<4Q", self.base + page * PAGE, count * PAGE, UFFDIO_REGISTER_MODE_WP, 0)
        code = UFFDIO_REGISTER if value else UFFDIO_UNREGISTER
        return libc("ioctl", self.fault_handle, code, ctypes.create_string_buffer(where))

    def spin(self, cpus: list[int]) -> int:
        """Keep these CPUs busy in this address space, from now on."""

        def busy(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu})
            with contextlib.suppress(OSError):  # it runs whatever else does
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            while True:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)  # without the interpreter's lock

        for cpu in cpus:
            threading.Thread(target=busy, args=(cpu,), daemon=True).start()
        return 0


class Process:
    """A process of the scenario, as the recorder sees it."""

    def __init__(self, listener: socket.socket) -> None:
        self.lines = listener.accept()[0].makefile("rw")
        self.pid, self.base, self.pages = self.answer()
        self.alive, self.mm, self.any = True, "", False  # as tracepoints name it; MERGE_ANY
        self.proc, self.handle = Path(f"/proc/{self.pid}"), os.pidfd_open(self.pid)
        self.addresses = range(self.base, self.base + self.pages * PAGE)

    def answer(self) -> Any:
        line = self.lines.readline()
        if not line:
            raise RefusedError("a process of the scenario was killed from outside")
        return json.loads(line)

    def do(self, op: str, **order: Any) -> int:
        """Have it do an operation; MERGE_ANY is then only for the region: this asks until no other memory has it."""
        code = self._ask(op, **order)
        self.any = bool(order["value"]) if op == "merge_any" else self.any
        while self.any and (
            others := [vma[:2] for vma in vmas(self.proc) if " mg" in vma[2] and vma[0] not in self.addresses]
        ):
            self._ask("unmerge", ranges=others)
        return code

    def _ask(self, op: str, **order: Any) -> int:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"op": op, **order}), file=self.lines, flush=True)
        return self.answer()  # type: ignore[no-any-return]

    def exit(self) -> int:
        """Kill it and wait until it has given up its memory: its parent may have reaped it by then."""
        self.alive = False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        select.select([self.handle], [], [])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.handle)
        return 0

    def entries(self) -> list[tuple[str, int, int]]:
        """Return letter, frame number and flags of each page."""
        with (self.proc / "pagemap").open("rb") as file:
            file.seek(self.base // PAGE * 8)
            entries = struct.unpack(f"<{self.pages}Q", file.read(8 * self.pages))
        out = []
        with Path("/proc/kpageflags").open("rb", 0) as file:
            for entry in entries:
                frame, flags, letter = 0, 0, "S" if entry >> 62 & 1 else "N"
                if entry >> 63:
                    frame = entry & (1 << 55) - 1
                    flags = struct.unpack("<Q", os.pread(file.fileno(), 8, frame * 8))[0]
                    ksm, huge, zero = (flags >> bit & 1 for bit in (21, 22, 24))
                    letter = "Y" if zero and huge else "Z" if zero else "K" if ksm else "H" if huge else "A"
                out.append((letter, frame, flags))
        return out


def say(**what: Any) -> None:
    """Tell the parent."""
    print(json.dumps(what), flush=True)


# -- recording ------------------------------------------------------------------------------------------------------


class Recorder:
    """One recording of a plan."""

    def __init__(self, plan: dict[str, Any], done: float, share: float) -> None:
        self.plan, self.done, self.share, self.told = json.loads(json.dumps(plan)), done, share, 0.0
        self.asked: dict[str, Any] = self.plan["scenario"]
        self.knobs, self.events = self.asked["knobs"], self.asked["events"]
        self.options = OPTIONS | plan.get("options", {})
        self.free = self.options["mode"] == "free"
        self.ksmd, self.device = thread("ksmd"), zram() if self.knobs.get("swap_mib") else None
        self.scratch, self.registered = region(2 * BLOCK), region(2 * BLOCK)
        for area in (self.scratch, self.registered):
            ctypes.memset(area + BLOCK, 1, 1)
        self.processes: list[Process] = []
        self.run = self.batch = self.rank = self.scanned = self.full_scans = 0
        self.samples, self.maps, self.frames, self.lines = (list[dict[str, Any]]() for _ in range(4))
        self.opened: dict[str, int] = {}
        """Machine-wide counters when a batch or an event began: only what they count within these belongs to it."""
        self.enabled: set[str] = set()
        self.clock = 0.0  # when khugepaged was woken, and the sleeps since then
        several = any("orders" in spec for spec in self.asked["processes"]) or "hugepages_enabled" in self.knobs
        self.sizes = [size for size in SIZES if several and (THP / f"hugepages-{size}kB").exists()]
        self.wide = dict.fromkeys(self._machine_wide(), 0)
        """Machine-wide counters: what they counted within batches and events."""
        self.moved: set[str] = set()
        """Those of them that count for other processes, too, by what is known of the event."""

    def say(self, share: float, text: str) -> None:
        """Tell how much of this recording is done, not too often."""
        if time.monotonic() > self.told + 0.2:
            self.told = time.monotonic()
            say(progress=round(min(self.done + share * self.share, 1), 4), text=text)

    # ksmd, a batch at a time

    def _still(self, who: Path | None = None) -> tuple[str, int]:
        """Return state and voluntary switches of ksmd."""
        state = table((who or self.ksmd) / "status")
        return state["State"][0], int(state["voluntary_ctxt_switches"])

    def _wake(self, path: Path, value: int, who: Path | None = None) -> None:
        """Write a knob, upon which ksmd runs, and wait until it sleeps again; not for long if that does not wake it."""
        before = self._still(who)[1]
        must(path, value)
        deadline = time.monotonic() + 0.05
        while (now := self._still(who))[0] != "S" or now[1] == before:
            if now == ("S", before) and time.monotonic() > deadline:
                return

    def _park(self) -> None:
        """Stop ksmd, and send it into its untimed sleep."""
        if self.run != 2:
            must(KSM / "run", 0)
        self._wake(KSM / "sleep_millisecs", QUIET + (get(KSM / "sleep_millisecs") == str(QUIET)))

    def step(self) -> None:
        """Let ksmd make one batch; none if it is stopped or no mm is registered."""
        self.batch, self.rank = self.batch + 1, 0
        if self.run == 1:
            self.opened = self._machine_wide()
            self._wake(KSM / "run", 1)
            self._tally()
            self._park()
        self.sample()

    # looking

    def _machine_wide(self) -> dict[str, int]:
        vmstat = table(VMSTAT_FILE)
        out = {name: int(vmstat.get(name, 0)) for name in VMSTAT}
        for size in self.sizes:
            stats = THP / f"hugepages-{size}kB/stats"
            out |= {f"mthp_{size}kB_{name}": int(get(stats / name)) for name in MTHP if (stats / name).exists()}
        return out

    def _tally(self) -> None:
        """Add what was counted since `opened`, and keep what tracepoints said."""
        now = self._machine_wide()
        self.wide = {name: value + now[name] - self.opened[name] for name, value in self.wide.items()}
        self.opened = now
        if self.options["tracepoints"]:
            lines = self._lines()
            said = "".join(cpu.read_text() for cpu in TRACE.glob("per_cpu/*/stats"))
            if any(map(int, re.findall(r"(?:overrun|dropped events): (\d+)", said))):
                raise RefusedError("the kernel's tracepoints said more than their buffer holds: use smaller batches")
            if lines:
                named = re.findall(r"scan_pfn=(\w+)", str(lines))
                pages = {pfn: self.mapped[pfn] for pfn in named if pfn in self.mapped}
                self.lines.append({"batch": self.batch, "rank": self.rank, "lines": lines, "pages": pages})
            self._ask_names()

    def _lines(self) -> list[str]:
        """Return what tracepoints said of ksmd, and of collapses in the scenario's processes."""
        out, mm, mms = [], "", {process.mm for process in self.processes}
        for line in reversed((TRACE / "trace").read_text().splitlines()):
            mm = (re.findall(r": mm=(\w+)", line) or [mm])[0]  # an isolation has none: that of the collapse after it
            if ": ksm_" in line or (": mm_" in line and mm in mms):
                out.append(line)
        return out[::-1]

    def _ask_names(self) -> None:
        """Learn how tracepoints will name processes and pages.

        A process that collapses an empty block changes nothing, and a tracepoint tells its mm.
        """
        alive = [(i, process) for i, process in enumerate(self.processes) if process.alive]
        for _, process in alive:
            if not process.mm:
                process.do("collapse", page=(self.scratch - process.base) // PAGE, count=BLOCK // PAGE)
                process.mm = re.findall(rf"-{process.pid} .*: mm=(\w+)", (TRACE / "trace").read_text())[-1]
        put(TRACE / "trace", "")
        self.mapped: dict[str, list[list[int]]] = {}
        for i, process in alive:
            for page, (_, frame, _) in enumerate(process.entries()):
                self.mapped.setdefault(hex(frame), []).append([i, page])

    def _row(self) -> dict[str, int]:
        if self.free and self.samples:
            self._tally()
        row = {name: int(get(KSM / name)) for name in COUNTERS if (KSM / name).exists()} | self.wide
        alive = [process for process in self.processes if process.alive]
        said = "".join(text for one in alive for start, _, text in vmas(one.proc) if start in one.addresses)
        row |= {f"{name.lower()}_kb": sum(map(int, re.findall(rf"(?m)^{name}: +(\d+) kB", said))) for name in SMAPS}
        stats = [table(process.proc / "ksm_stat") for process in alive]
        row |= {f"proc_{name}": sum(int(stat.get(name, 0)) for stat in stats) for name in KSM_STAT}
        row["lab_ksmd_cpu_ns"] = int((self.ksmd / "schedstat").read_text().split()[0])
        return row | {"lab_time_ns": time.monotonic_ns()}

    def sample(self, again: bool = True) -> int:
        """Take a sample while ksmd sleeps, `again` if there is one of this batch; return the last one's index."""
        for _ in range(1000):
            before, row = self._still(), self._row()
            slept = before[0] == "S" and self._still() == before
            if slept and (not (self.free and self.samples) or self.count(row)):
                break
            time.sleep(0.001)
        else:
            raise RefusedError("ksmd never sleeps long enough for a sample: raise sleep_millisecs")
        if again or self.batch > self.samples[-1]["batch"]:
            self.scanned, self.full_scans = row["pages_scanned"], row["full_scans"]
            self.samples.append({"batch": self.batch} | row)
        return len(self.samples) - 1

    def count(self, row: dict[str, int] | None = None) -> bool:
        """Count the batches of a ksmd that runs freely since the last look; False if this is in the middle of one."""
        before = self._still()
        row = row or {name: int(get(KSM / name)) for name in ("pages_scanned", "full_scans", "pages_to_scan")}
        batches, rest = divmod(row["pages_scanned"] - self.scanned, row["pages_to_scan"])
        ended = row["full_scans"] - self.full_scans
        if before[0] != "S" or self._still() != before or (rest and not ended):
            return False
        if ended > 1 and batches:  # otherwise each scan was one batch
            raise RefusedError("several full scans ended between two looks: lower pages_to_scan, or record it stepped")
        self.batch, self.rank = self.batch + batches + ended, 0 if batches + ended else self.rank
        self.scanned, self.full_scans = row["pages_scanned"], row["full_scans"]
        return True

    def look(self) -> None:
        """Keep maps and counts of frames for the last sample."""
        where = {"batch": self.batch, "rank": self.rank, "sample": len(self.samples) - 1}
        if self.frames and self.frames[-1]["sample"] == where["sample"]:
            return
        entries = [process.entries() if process.alive else [] for process in self.processes]
        for i, one in enumerate(entries):
            if one:
                runs = ((m[1], len(m[0])) for m in re.finditer(r"(.)\1*", "".join(letter for letter, *_ in one)))
                self.maps.append({**where, "process": i, "pages": "".join(f"{a}{n if n > 1 else ''}" for a, n in runs)})
        frames = {frame: letter for one in entries for letter, frame, _ in one if letter in "KHA"}
        self.frames.append({**where, "frames": len(frames), "ksm_frames": [*frames.values()].count("K")})

    # events

    def _drain(self) -> None:
        """lru_add_drain_all: MADV_COLLAPSE begins with it, and an empty block is not collapsed."""
        libc("madvise", self.scratch, BLOCK, MADVISE["collapse"])

    def happen(self, elapsed: float = 0.0) -> None:
        """Make the events that are due, each with its sample; ksmd does not run meanwhile."""
        now = {"batch": self.batch, "full_scan": self.full_scans, "seconds": elapsed}  # run=2 sets full_scans to 0
        for event in self.events:
            after = event["after"]
            if "result" in event or not any(name in after and value >= after[name] for name, value in now.items()):
                continue
            if self.free:
                must(KSM / "run", 0)
                self.sample(again=False)
                event["after"] = {"batch": self.batch}
            self.rank += 1
            which = ("after", "op", "process", "parts", "every_nth", "granularity", "share")
            order = {name: value for name, value in event.items() if name not in which}
            waking = event.get("knob") == "khugepaged_scan_sleep_millisecs"  # khugepaged has not run yet in this sample
            sample = self.sample() if waking else None
            self.opened = self._machine_wide()
            parts = event.pop("parts", None) or [{}]
            results = [self.do(event["op"], event.get("process", 0), **order | part) for part in parts]
            event["result"] = next(filter(None, results), 0)
            self._drain()
            self._tally()
            event["sample"] = self.sample() if sample is None else sample
            if event["op"] != "set":
                self.look()
            if self.free and self.run == 1:
                must(KSM / "run", 1)

    def do(self, op: str, process: int, **what: Any) -> int:
        if op == "set":
            return self.set(what["knob"], what["value"])
        if op == "sleep":
            seconds = what["millisecs"] / 1000
            if self.clock:
                self.clock += seconds
                seconds = max(0.0, self.clock - time.monotonic())
            time.sleep(seconds)
            while self.clock and self._still(thread("khugepaged"))[0] != "S":
                time.sleep(0.01)  # nice 19: it may not have run yet
            return 0
        if op == "khugepaged":
            self._not_alone("thp_collapse_alloc")
            return self.collapse_all(what["full_scans"])
        if op == "shrink":  # the slab shrinkers until they free next to nothing: the whole queue
            self._not_alone("split")
            if any(other["op"] == "pin" and "result" in other for other in self.events):
                # how often they try a pinned folio again depends on what else of the machine they free
                self.moved |= {name for name in self.wide if name.endswith("_failed")}
            return put(VM / "drop_caches", 2)
        if op in ("compact", "split_all"):
            return put(SPLIT if op == "split_all" else VM / "compact_memory", 1)
        target = self.processes[process]
        if not target.alive:
            return errno.ESRCH
        if op == "exit":
            target.do("unpin")
            return target.exit()
        if op == "fork":
            code = target.do("fork")
            if not code:
                self.processes.append(Process(self.listener))
                self.processes[-1].do("merge_any", value=target.any)
            return code
        if op == "split":
            at = target.base + what["page"] * PAGE
            return put(SPLIT, f"{target.pid},{at:#x},{at + what['count'] * PAGE:#x}")
        return target.do(op, **what)

    def _not_alone(self, what: str) -> None:
        """Note that the event may count for other processes, too, in counters of this name, if they have such."""
        theirs = int(table(Path("/proc/meminfo"))["AnonHugePages"].split()[0]) > self.samples[-1]["anonhugepages_kb"]
        if theirs or in_use({os.getpid(), *(process.pid for process in self.processes)}, "hg"):
            self.moved |= {name for name in self.wide if name.startswith(("thp_", "mthp_2048")) and what in name}

    def set(self, knob: str, value: object) -> int:
        if knob == "run":  # the real one is 0 between batches
            self.run = int(str(value))
            value = 0 if value == 1 else value
        if knob == "khugepaged_scan_sleep_millisecs":
            self.clock = time.monotonic()
        return put(knob_file(knob), value)

    def collapse_all(self, full_scans: int) -> int:
        """Let khugepaged make full scans at once, whatever its budget is."""
        try:
            khugepaged, budget = thread("khugepaged"), get(KHUGEPAGED / "pages_to_scan")
        except RefusedError:  # no size is enabled for it
            return 0
        must(KHUGEPAGED / "pages_to_scan", 10**9)
        for _ in range(full_scans):
            self._wake(KHUGEPAGED / "scan_sleep_millisecs", QUIET, khugepaged)
        return put(KHUGEPAGED / "pages_to_scan", budget)

    # all of it

    def _sizes(self, enabled: dict[str, str]) -> None:
        """Enable sizes of folios, {kB: …}, for memory with MADV_HUGEPAGE, and no others; khugepaged sleeps, timed."""
        wanted = {f"hugepages-{kb}kB" for kb, how in enabled.items() if how != "never"}
        if self.enabled == wanted:
            return
        self.enabled = wanted
        for file in sorted(THP.glob("hugepages-*kB/enabled"), key=lambda file: file.parent.name not in wanted):
            must(file, "madvise" if file.parent.name in wanted else "never")
        # without any size there is no khugepaged; a new one wakes at once for the first mm that registers: have one
        must(KHUGEPAGED / "max_ptes_none", 0)  # what is registered is not collapsed
        must(KHUGEPAGED / "scan_sleep_millisecs", QUIET)
        libc("madvise", self.registered, 2 * BLOCK, MADVISE["hugepage"])
        time.sleep(0.1)
        libc("madvise", self.registered, 2 * BLOCK, MADVISE["nohugepage"])

    def _populate(self, spec: dict[str, Any]) -> None:
        address = self.listener.getsockname()
        if not os.fork():
            try:
                self.listener.close()  # or it would wait for an answer after the recorder's death
                Worker(address, spec["pages"], self.options["key_offset"]).serve()
            finally:
                os._exit(1)
        process = Process(self.listener)
        self.processes.append(process)
        orders = spec.get("orders") or layout(spec)
        for order in sorted({order for *_, order in orders}):
            if order:
                self._sizes({str(4 << order): "madvise"})
            ranges = [[page, count] for page, count, each in orders if each == order]
            process.do("populate", ranges=ranges, contents=spec["contents"], huge=order > 0)
            for page, count in ranges if order < 9 or spec.get("nohugepage_after_populate") else ():
                process.do("nohugepage", page=page, count=count)
        self._drain()
        entries = process.entries()
        for page, count, order in orders:
            if (name := f"mthp_{4 << order}kB_nr_anon") in self.wide:
                self.wide[name] += count >> order
            for at in range(page, page + count, 1 << order):
                head, frame = entries[at][2] >> 15 & 1, entries[at][1]
                if order and not (head and entries[at + (1 << order) - 1][1] == frame + (1 << order) - 1):
                    raise RefusedError(f"no folio of {4 << order} KiB for page {at}: free memory is short or in pieces")
        for page, count in () if self.asked.get("late") else spec["mergeable"]:
            process.do("mergeable", page=page, count=count)
        if spec.get("merge_any"):
            process.do("merge_any", value=1)
        if owner := self.options["owner_running"]:  # ksmd gets the other CPUs: beside it no owner runs
            os.sched_setaffinity(int(self.ksmd.name), os.sched_getaffinity(int(self.ksmd.name)) - {*owner})
            process.do("spin", cpus=owner)

    def record(self) -> dict[str, Any]:
        """Record the scenario once."""
        with socket.socket(socket.AF_UNIX) as self.listener:
            self.listener.bind(f"\0mmlab-record-{os.getpid()}")
            self.listener.listen()
            self.listener.settimeout(10)  # a process may be killed before it has connected
            try:
                self._prepare()
                for spec in self.asked["processes"]:
                    self._populate(spec)
                self._sizes({"2048": "madvise"} | self.knobs.get("hugepages_enabled", {}))
                if any(event["op"] == "khugepaged" for event in self.events):
                    self.collapse_all(1)  # one that was under way is at its end, and the next begins with the first mm
                put(KHUGEPAGED / "max_ptes_none", self.knobs.get("max_ptes_none", 511))
                self._drain()
                if self.options["tracepoints"]:
                    self._ask_names()
                self._alone()
                self._go()
                self._alone()
            finally:
                put(KSM / "run", 0)
                for process in self.processes:
                    if process.alive:
                        process.exit()
                if self.device:
                    swap_off(self.device)
        return self._trace()

    def _alone(self) -> None:
        if busy := in_use({process.pid for process in self.processes}):
            raise RefusedError(busy)

    def _prepare(self) -> None:
        """Give the machine the scenario's knobs and swap."""
        for path in damon():
            must(path, "off" if path.name == "state" else "N")
        must(KSM / "run", 2)  # full_scans = 0, no stable node is left
        must(KSM / "run", 0)
        put(KSM / "advisor_mode", "none")
        must(KSM / "sleep_millisecs", QUIET)
        self._park()
        must(THP / "enabled", "madvise")
        must(THP / "defrag", "madvise")
        self._sizes({"2048": "madvise"})
        if any(event["op"] == "shrink" for event in self.events):
            must(VM / "drop_caches", 2)  # underused THPs of others are split now, not in the scenario
        later = ("max_ptes_none", "khugepaged_scan_sleep_millisecs", "sleep_millisecs")
        for name, value in sorted(self.knobs.items(), key=lambda knob: knob[0] == "advisor_mode"):
            if name not in later and knob_file(name).exists():
                must(knob_file(name), value)
        if self.device:
            must(VM / "page-cluster", 0)
            must(self.device / "disksize", self.knobs["swap_mib"] << 20)
            node = Path("/dev") / self.device.name
            with node.open("r+b") as file:  # what mkswap writes
                file.write(b"\0" * 1024 + struct.pack("<3I", 1, (self.knobs["swap_mib"] << 8) - 1, 0))
                file.seek(PAGE - 10)
                file.write(b"SWAPSPACE2")
            if code := libc("swapon", str(node).encode(), 0):
                raise RefusedError(f"swapon {self.device}: {os.strerror(code)}")

    def _go(self) -> None:
        self.sample()
        self.opened = self._machine_wide()
        self.look()
        self.happen()
        self.run = self.run or 1
        batches = self.asked["batches"]
        if self.free:
            must(KSM / "sleep_millisecs", self.knobs.get("sleep_millisecs", 20))
            must(KSM / "run", self.run)
            start, length, due = time.monotonic(), self.options["seconds"], 0.0
            while (elapsed := time.monotonic() - start) < length and (not batches or self.batch < batches):
                time.sleep(max(0.001, int(get(KSM / "sleep_millisecs")) / 4000))
                self.say(elapsed / length, f"{elapsed:.0f} of {length:g} s, batch {self.batch}")
                if self.count() and elapsed >= due:
                    self.sample(again=False)
                    due = elapsed + BETWEEN
                self.happen(elapsed)
            must(KSM / "run", 0)
            self.sample(again=False)
            self.asked["batches"] = self.batch
        while not self.free and self.batch < batches:
            self.step()
            self.happen()
            self.say(self.batch / batches, f"batch {self.batch} of {batches}")
        self.look()

    def _trace(self) -> dict[str, Any]:
        for event in self.events:  # some never came
            event |= {"result": event.get("result"), "sample": event.get("sample")}
            event.pop("parts", None)
        start = {name: value for name, value in self.samples[0].items() if name in SINCE_START}
        how = "ksmd runs by its own clock" if self.free else "ksmd stepped a batch at a time by run 0 and 1"
        how = f"recorded on a running kernel, {how}, LRU batches drained after each event, no readahead"
        kernel, fields = re.sub(r"^([\d.]+\d).*", r"\1", os.uname().release), [*self.samples[0]]
        rows = [[n - start.get(name, 0) for name, n in row.items()] for row in self.samples]
        trace = {"format": "kernel-trace-1", "name": self.plan["name"], "variant": self.plan["variant"]}
        trace |= {"kernel": kernel, "how": how, "scenario": self.asked, "fields": fields, "samples": rows}
        trace |= {"maps": self.maps, "frames": self.frames}
        if self.frames[0]["ksm_frames"]:  # before ksmd has run: this kernel sets KPF_KSM for every anonymous page
            trace |= {"maps": [], "frames": [], "how": f"{trace['how']}; no page maps, as KPF_KSM is wrong here"}
        if self.options["tracepoints"]:
            at = [{"pid": process.pid, "base": process.base, "mm": process.mm} for process in self.processes]
            trace["tracepoints"] = {"processes": at, "windows": self.lines}
        return trace


def layout(spec: dict[str, Any]) -> list[list[int]]:
    """Return [[first page, count, order], …] of a process that says only where its THPs are."""
    out, at = [], 0
    for page, count in [*spec["thp"], [spec["pages"], 0]]:
        out += [[at, page - at, 0]] if page > at else []
        out += [[page, count, 9]] if count else []
        at = page + count
    return out


def merged(traces: list[dict[str, Any]], wide: list[str], times: int) -> tuple[dict[str, Any], list[str], str]:
    """Return recordings that agree as one, the machine-wide fields that others moved, and what differs if too few do.

    Of a machine-wide counter, each step is the least that was recorded, and at least two recordings must have it.
    """
    fields, different = traces[0]["fields"], ""
    exact = [i for i, name in enumerate(fields) if name not in wide and not name.startswith("lab_")]
    rows = [[{fields[i]: row[i] for i in exact} for row in trace["samples"]] for trace in traces]
    told = [(row, trace["scenario"], trace["maps"], trace["frames"]) for row, trace in zip(rows, traces, strict=True)]
    equal = [trace for trace, one in zip(traces, told, strict=True) if one == told[-1]]
    if len(equal) < times:
        other = next((one for one in told if one != told[-1]), told[-1])
        pairs = zip(rows[-1], other[0], strict=False)
        a, b = next((pair for pair in pairs if pair[0] != pair[1]), ({}, {}))
        wrong = [f"{name} {a[name]} or {b[name]}" for name in a if a[name] != b[name]]
        different = f"batch {a['batch']}: {', '.join(wrong)}" if wrong else "maps or results of events"
    out, moved = json.loads(json.dumps(equal[0])), set()
    for i in (i for i, name in enumerate(fields) if name in wide):
        counts = ([0, *(row[i] for row in trace["samples"])] for trace in equal)
        steps = [*zip(*([b - a for a, b in pairwise(one)] for one in counts), strict=True)]
        for row, total in zip(out["samples"], accumulate(map(min, steps)), strict=True):
            row[i] = total
        if len(equal) > 1 and any(step.count(min(step)) < 2 for step in steps):
            moved.add(fields[i])
    return out | {"machine_wide": wide}, sorted(moved), different


def record(plan: dict[str, Any]) -> dict[str, Any]:
    """Record a plan until enough recordings agree."""
    options, traces = OPTIONS | plan.get("options", {}), []
    free = options["mode"] == "free"
    times = 1 if free else options["times"]  # batches fall elsewhere each time
    most = times + 2 if times > 1 else 1
    for n in range(most):
        one = Recorder(plan, n / times, 1 / times)
        traces.append(one.record())
        trace, moved, different = merged(traces, list(one.wide), times)
        moved = sorted({*moved, *one.moved, *(one.wide if free else ())})
        if not different and not moved:
            break
    if different:
        raise RefusedError(f"{plan['name']}: {most} recordings differ ({different}): the machine is not calm enough")
    return trace | {"moved": moved}


def main(source: str) -> None:
    """Record a plan and put everything back."""
    stops = {signal.SIGINT, signal.SIGTERM}

    def stop(number: int, _: object) -> NoReturn:
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)
        sys.exit(128 + number)

    for number in stops:
        signal.signal(number, stop)
    libc("prctl", PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    libc("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    state, handle = None, -1
    with mounted() as ours:
        try:
            plan = json.loads(Path(source).read_text())
            handle = lock(0)
            if problems := lacking(plan):
                raise RefusedError("\n".join(problems))
            state = save(ours)
            os.pwrite(handle, json.dumps(state).encode(), 0)
            for name in plan.get("options", {}).get("tracepoints", ()):
                TRACE.mkdir(exist_ok=True)
                must(TRACE / "buffer_size_kb", 8192)
                must(TRACE / "trace_clock", "mono")
                must(TRACE / "events" / name / "enable", 1)
            say(recording=record(plan))
        except (RefusedError, OSError) as error:
            say(problem=str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, stops)
            if state:
                restore(state)
                os.ftruncate(handle, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
