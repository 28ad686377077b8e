"""`mmlab capture`: memory that is known, captured exactly; processes that change, exit, or may not be read."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmlab.errors import UserError
from mmlab.host import capture as capturing
from mmlab.host import runner
from mmlab.host.capture import capture
from mmlab.host.pagemap import PAGE, PRESENT, open_pagemap, scan
from mmlab.results.run import simulate
from mmlab.scenario import Scenario


def why_not() -> str:
    """Why this machine cannot capture, or ""."""
    if os.geteuid():
        return "capturing needs root"
    try:
        with open_pagemap(os.getpid()) as pagemap:
            scan(pagemap.fileno(), 0, PAGE, PRESENT, 1)
        Path("/proc/kpageflags").open("rb").close()
    except (UserError, OSError) as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

OWNER = r"""
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, BLOCK = 4096, 2 << 20
FIXED, NONE, RW = 0x32, 0, 3
base = (libc.mmap(None, 8 * BLOCK, NONE, 0x22, -1, 0) // BLOCK + 1) * BLOCK
libc.mmap(base, 3 * BLOCK, RW, FIXED, -1, 0)
libc.madvise(base, 2 * BLOCK, 14)               # hugepage
libc.madvise(base + 2 * BLOCK, BLOCK, 15)       # nohugepage
def put(page, text, at=0):
    ctypes.memmove(base + page * PAGE + at, text, len(text))
for page in range(512):                         # all different, downwards
    put(page, (10_000 - page).to_bytes(8, "big"))
for page in range(512, 1024):                   # equal in pairs, but for eight that stay zeroes
    put(page, b"\0" if page % 64 == 0 else (20_000 + page // 2).to_bytes(8, "big"))
put(1024, b"b"); put(1025, b"b"); put(1026, b"\0")
ctypes.string_at(base + 1027 * PAGE, 1)         # the zeropage; 1028 and 1029 are not there
for page in range(1030, 1040):                  # different in the last byte only
    put(page, bytes([page % 7]), PAGE - 1)
put(1040, b"\xff" * PAGE); put(1041, b"\x7f" * PAGE)
second = base + 4 * BLOCK + 3 * PAGE            # another VMA, beside one of a file
libc.mmap(second, 4 * PAGE, RW, FIXED, -1, 0)
put(4 * 512 + 3, b"b")
file = os.open(sys.argv[1], os.O_RDWR)
libc.mmap(second + 4 * PAGE, 4 * PAGE, RW, 0x12, file, 0)
ctypes.string_at(second + 4 * PAGE, 1)          # of the file
put(4 * 512 + 8, b"own")                        # a copy of its own
print(base // PAGE, flush=True)
for line in sys.stdin:
    page, text = line.split()
    if text == "mergeable":
        for start, size in ((base, 3 * BLOCK), (second, 4 * PAGE)):
            libc.madvise(start, size, 12)
    else:
        put(int(page), text.encode())
    print("done", flush=True)
"""


@pytest.fixture
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    file = tmp_path_factory.mktemp("mapped") / "file"
    file.write_bytes(b"file" * 1024 * 4)
    command = [sys.executable, "-c", OWNER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def base_of(owner: subprocess.Popen[str]) -> int:
    assert owner.stdout
    return int(owner.stdout.readline())


def tell(owner: subprocess.Popen[str], page: int, text: str) -> None:
    assert owner.stdin
    assert owner.stdout
    owner.stdin.write(f"{page} {text}\n")
    owner.stdin.flush()
    owner.stdout.readline()


def pages(path: Path, pid: int, base: int) -> pd.DataFrame:
    """The rows of a file as pages, by their number from `base` on."""
    rows = pq.read_table(path).to_pandas()
    out = rows.loc[rows.index.repeat(rows["count"])]
    within = out.groupby(level=0).cumcount()
    out = out.assign(page=out.page + within, rank=out["rank"] + within * out.step)
    (vmas,) = [capturing._Process(pid).vmas]
    vma = vmas.iloc[np.searchsorted(vmas.page, out.page, "right") - 1]
    address = out.page.to_numpy() - vma.page.to_numpy() + vma.start.to_numpy()
    return out.set_index(address - base).loc[0:]


def contents(pid: int, base: int, numbers: list[int]) -> list[bytes]:
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        return [os.pread(memory.fileno(), PAGE, (base + number) * PAGE) for number in numbers]


def huge_kb(pid: int, base: int) -> int:
    vma = Path(f"/proc/{pid}/smaps").read_text().partition(f"{base * PAGE:x}-")[2]
    return int(vma.partition("AnonHugePages:")[2].split()[0])


def test_known_memory_is_captured_exactly(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    base, out, huge = base_of(owner), tmp_path / "image.parquet", -1
    while huge != (huge := huge_kb(owner.pid, base)):  # somebody else may split huge pages
        told = capture([owner.pid], out)
    found = pages(out, owner.pid, base)
    kind = found.kind.reindex(range(2062)).astype(object).fillna("-")
    assert (kind[:1027] == "anon").all()
    assert kind[1027:1030].tolist() == ["zeropage", "hole", "hole"]
    assert (kind[1030:1042] == "anon").all()
    assert (kind[1042:1536] == "hole").all()
    assert kind[2051:2055].tolist() == ["anon", "hole", "hole", "hole"]
    assert kind[2055:2059].tolist() == ["hole", "anon", "hole", "hole"], "pages of the file are left out"
    anon = found[found.kind == "anon"]
    real = contents(owner.pid, base, anon.index.tolist())
    assert np.array_equal(np.unique(anon["rank"], return_inverse=True)[1], np.unique(real, return_inverse=True)[1])
    assert (anon["rank"] == 0).tolist() == [not any(content) for content in real]
    assert " distinct contents" in told
    assert (found.order.loc[:1023] == 9).sum() * 4 == huge, "4 MiB where there are huge pages"
    assert set(found.order.loc[:1023]) <= {0, 9}
    assert not found.order.loc[1024:].any()
    assert found.hugepage.loc[:1023].all()
    assert not found.hugepage.loc[1024:].any()
    assert found.nohugepage.loc[1024:1535].all()
    assert not found.mergeable.any()
    assert found.volatile.isna().all()
    assert (found.page % 512 == (found.index + base) % 512).all(), "places within 2 MiB blocks are kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["image.parquet"]
    about = json.loads(pq.read_schema(out).metadata[b"mmlab"])
    assert about["contents"].startswith("none")
    assert about["processes"] == [{"pid": owner.pid, "name": "python", "ksm_zero_pages": 0}]


def test_volatile_pages(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    base, out, halves = base_of(owner), tmp_path / "image.parquet", []

    def change(done: float, total: float, _: str) -> None:
        if done >= total / 2 and not halves:  # all was read once
            halves.append(done)
            tell(owner, 7, "new")
            tell(owner, 512, "new")
            tell(owner, 1028, "there")

    told = capture([owner.pid], out, again=0, progress=change)
    found = pages(out, owner.pid, base).loc[:1535]
    assert found.index[found.volatile.fillna(False).astype(bool)].tolist() == [7, 512]
    assert re.search(r"Volatile: \d\.\d % of the pages had another content", told)


def test_process_that_exits(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    """What was read before is kept, and the summary says what happened."""
    base_of(owner)
    out = tmp_path / "image.parquet"

    def end(*_: object) -> None:
        owner.kill()
        owner.wait()

    told = capture([owner.pid, os.getpid()], out, rate=1e12, progress=end)
    assert f"{owner.pid} python exited while it was read." in told
    assert set(pq.read_table(out)["process"].to_pylist()) == {0, 1}


def test_pages_that_cannot_be_read(
    owner: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are marked, and their neighbours are captured."""
    base, real = base_of(owner), os.preadv

    def bad(handle: int, buffers: list[memoryview], at: int) -> int:
        first, size, poisoned = at // PAGE, buffers[0].nbytes // PAGE, base + 1035
        if not first <= poisoned < first + size or size == 1 < buffers[0].nbytes // 8 == 1:
            return real(handle, buffers, at)
        if poisoned == first:
            raise OSError(5, "Input/output error")
        return real(handle, [buffers[0][: poisoned - first]], at)

    monkeypatch.setattr(os, "preadv", bad)
    capture([owner.pid], tmp_path / "image.parquet")
    found = pages(tmp_path / "image.parquet", owner.pid, base)
    assert found.kind.loc[1030:1041].tolist() == ["anon"] * 5 + ["unread"] + ["anon"] * 6
    assert found["rank"].loc[1035] == -1


def test_order_of_contents(tmp_path: Path) -> None:
    """Ranks are in memcmp order, wherever pages differ, and whichever bytes those are."""
    rng = np.random.default_rng(1)
    made = np.zeros((600, PAGE), np.uint8)
    made[:, :3] = rng.integers(0, 2, (600, 3)) * 255
    made[np.arange(600), rng.integers(0, PAGE, 600)] = rng.integers(0, 256, 600)
    distinct = [*{page.tobytes() for page in made}]
    with (tmp_path / "pages").open("w+b") as file:
        store = capturing._Contents(file)
        assert [store.number(memoryview(page)) for page in distinct] == [*range(1, len(distinct) + 1)]
        assert store.number(memoryview(distinct[5])) == 6
        assert store.ranks().tolist() == [0, *(1 + sorted(distinct).index(page) for page in distinct)]


def test_rate(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    base_of(owner)
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capturing.time, "sleep", slept.append)
        capture([owner.pid], tmp_path / "image.parquet", rate=1 << 20)
    assert max(slept) > 3, "4 MiB and more, at 1 MiB a second"


# -- as a workload --------------------------------------------------------------------------------------------------

COUNTERS = ("pages_shared", "pages_sharing", "pages_unshared", "ksm_zero_pages")


@pytest.fixture
def ksm() -> Iterator[Path]:
    """KSM of this machine, for one test alone; afterwards everything is as it was."""
    if os.geteuid() or not runner.KSM.exists():
        pytest.skip("it needs root and a kernel with KSM")
    handle = runner.lock(60)
    try:
        if lacks := [*runner.lacking({"scenario": {"processes": [], "events": [], "knobs": {}}})]:
            pytest.skip("; ".join(lacks))
        state = runner.save()
        os.pwrite(handle, json.dumps(state).encode(), 0)  # restored by the next one if this process is killed
        try:
            yield runner.KSM
        finally:
            runner.restore(state)
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_ksmd_on_the_same_process(ksm: Path, owner: subprocess.Popen[str], tmp_path: Path, use_zero_pages: int) -> None:
    """What the model says of the captured memory is what the running kernel does with the real one."""
    base_of(owner)
    tell(owner, 0, "mergeable")
    capture([owner.pid], tmp_path / "image.parquet")
    knobs = {"use_zero_pages": use_zero_pages, "smart_scan": 0, "pages_to_scan": 1000, "sleep_millisecs": 1}
    for name, value in {**knobs, "run": 1}.items():
        runner.must(ksm / name, value)
    history: list[dict[str, int]] = []
    scans = int(runner.get(ksm / "full_scans"))
    while len(history) < 6 or history[-1] != history[-4]:
        while int(runner.get(ksm / "full_scans")) == scans:
            time.sleep(0.001)
        scans = int(runner.get(ksm / "full_scans"))
        history.append({name: int(runner.get(ksm / name)) for name in COUNTERS})
    (tmp_path / "scenario.yaml").write_text("process_list: [{workload: image.parquet}]")
    release = ".".join(platform.release().split(".")[:2])
    scenario = Scenario.load(tmp_path / "scenario.yaml", kernel=release, until_settled=True, **knobs)
    assert history[-1] == {name: int(simulate(scenario).rows[-1][name]) for name in COUNTERS}
    assert history[-1]["pages_sharing"] > 200


def written(path: Path, rows: list[tuple[object, ...]], **about: object) -> Path:
    names = "process page count kind rank step order mergeable hugepage nohugepage".split()
    table = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    processes = [{"ksm_zero_pages": 0} | about, {"ksm_zero_pages": 0}]
    told = {"thp_enabled": "always [madvise] never", "processes": processes}
    pq.write_table(table.replace_schema_metadata({"mmlab": json.dumps(told)}), path)
    return path


ROWS = [
    (0, 0, 512, "anon", 7, 1, 9, True, True, False),
    (0, 512, 2, "anon", 0, 0, 0, True, False, True),
    (0, 514, 3, "zeropage", 0, 0, 0, True, False, True),
    (0, 517, 1, "swap", -1, 0, 0, True, False, True),
    (0, 518, 6, "hole", -1, 0, 0, False, False, False),
    (1, 0, 4, "anon", 7, 0, 2, False, False, False),
]
KEY = 1 << 36


def test_file_as_processes(tmp_path: Path) -> None:
    image = str(written(tmp_path / "image.parquet", ROWS))
    again = str(written(tmp_path / "again.parquet", ROWS, ksm_zero_pages=3))
    listed = [{"workload": image, "count": 2, "merge_any": 0}, {"workload": again}, {"memory_mib": 2}]
    processes = Scenario(process_list=listed).process_list
    assert len(processes) == 7
    first, second = processes[:2]
    assert (first.pages, first.merge_any) == (524, 0)
    assert first.contents == ((KEY + 7, 512, 1), (0, 2, 0), ("hole", 3, 0), ("hole", 1, 0), ("hole", 6, 0))
    assert first.thp == ((0, 512),)
    assert first.mergeable == ((0, 518),)
    assert first.orders == ((0, 512, 9), (512, 12, 0))
    assert (second.contents, second.orders, second.mergeable) == (((KEY + 7, 4, 0),), ((0, 4, 2),), ())
    assert processes[2:4] == (first, second)
    other = processes[4].contents
    assert other is not None
    assert other[:3] == ((2 * KEY + 7, 512, 1), (0, 2, 0), (0, 3, 0)), "contents of two files are different ones"


@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_workload_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "image.parquet").write_bytes(content)
    (tmp_path / "scenario.yaml").write_text("process_list: [{workload: image.parquet}]")
    problem = "No such file" if content is None else "is no file of `mmlab capture`"
    with pytest.raises(UserError, match=problem) as raised:
        Scenario.load(tmp_path / "scenario.yaml")
    assert str(tmp_path / "image.parquet") in str(raised.value)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pid", "message"), [(2**22 - 1, "there is no such process"), (2, "is a thread of the kernel")]
)
def test_no_process_of_that_number(pid: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        capture([pid], tmp_path / "image.parquet")
    assert not [*tmp_path.iterdir()]


def test_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "mergeable", lambda pid: pid == os.getpid())
    assert capturing.find([7], all_mergeable=True) == [7, os.getpid()]
    monkeypatch.setattr(capturing, "mergeable", lambda _: False)
    for asked in ({"all_mergeable": True}, {}):
        with pytest.raises(UserError, match=r"there is no .*process.* to capture.* --all-mergeable"):
            capturing.find([], **asked)


def test_process_that_may_not_be_read(
    owner: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without root, or from a user namespace that is not that of the process."""

    def denied(pid: int) -> None:
        raise PermissionError(13, "Permission denied", f"/proc/{pid}/pagemap")

    base_of(owner)
    monkeypatch.setattr(capturing, "open_pagemap", denied)
    monkeypatch.setattr(capturing, "mergeable", denied)
    with pytest.raises(UserError, match=r"/proc/\d+/pagemap may not be read \(Permission denied\)\. It needs root"):
        capture([owner.pid], tmp_path / "image.parquet")
    with pytest.raises(UserError, match="It needs root"):
        capturing.find([], all_mergeable=True)
    assert not [*tmp_path.iterdir()]


def command(*args: str, **more: object) -> subprocess.CompletedProcess[str]:
    code = f"from mmlab.cli import main; main(['capture', *{args!r}])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload, no-any-return]


def test_full_disk_leaves_nothing(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    base_of(owner)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = command(str(owner.pid), "-o", str(tmp_path / "image.parquet"), preexec_fn=limit)
    assert done.returncode == 2
    assert "image.parquet: cannot be written (File too large)." in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_rate_that_is_none(tmp_path: Path) -> None:
    done = command("1", "-o", str(tmp_path / "image.parquet"), "--rate", "fast")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--rate = 'fast' is not allowed" in done.stderr
