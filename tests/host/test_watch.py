"""`mmlab watch`: what it counts, how it shows that, and that no sample is lost."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import mmap
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from mmlab.errors import UserError
from mmlab.host import dump, watch
from mmlab.host.pagemap import ksm_stat

NO_KSM = not (watch.KSM / "run").exists() and "this kernel has no KSM"
NOT_ROOT = (os.geteuid() != 0 or not ksm_stat(os.getpid())) and "page tables of other processes need root"
needs_ksm = pytest.mark.skipif(bool(NO_KSM), reason=str(NO_KSM))
needs_root = pytest.mark.skipif(bool(NO_KSM or NOT_ROOT), reason=str(NO_KSM or NOT_ROOT))
SECOND = 10**9


def sample(number: int, **more: int) -> watch.Sample:
    """A host that merges 256 pages a second."""
    counters = {"pages_shared": 10, "pages_sharing": 256 * number, "pages_unshared": 1000, "full_scans": number}
    return {"time_ns": 1_700_000_000 * SECOND + number * SECOND, "advisor_mode": "none"} | counters | more


def test_rates_and_levels() -> None:
    history = [sample(0, ksm_zero_pages=0), sample(1, ksm_zero_pages=256), sample(3, ksm_zero_pages=256)]
    assert watch.values(history, watch.ROWS["saved by KSM (MiB)"]) == [0, 2, 4]
    assert watch.values(history, {"counter": ["full_scans"], "rate": True})[1:] == [1, 1]
    unseen = watch.ROWS["zeropage outside KSM's counters (MiB)"]
    assert math.isnan(watch.values(history, unseen)[0]), "not read"
    assert watch.values([sample(0, zeropage_entries=512, zeropages_by_ksm=256)], unseen) == [1]
    again = [sample(0, ksmd_cpu_ns=5), sample(1, ksmd_cpu_ns=0)]
    assert math.isnan(watch.values(again, {"counter": ["ksmd_cpu_ns"], "rate": True})[1]), "a new thread is no rate"


def test_every_row_is_a_counter() -> None:
    """Rows name what samples have; no row is empty because its name is wrong."""
    if NO_KSM:
        pytest.skip(NO_KSM)
    known = {*watch.Sampler()(), "ksmd_cpu_ns", "khugepaged_cpu_ns", "zeropage_entries", "zeropages_by_ksm"}
    named = {name.removeprefix("-") for row in watch.ROWS.values() for name in row["counter"]}
    assert named <= known


KILLED = """
import os, pathlib, sys
from mmlab.host import watch
with watch.keeping(pathlib.Path({path!r})) as add:
    for sample in {samples!r}:
        add(sample)
    print("added", flush=True)
    sys.stdin.readline() if {wait} else os.kill(os.getpid(), 9)
"""


def keeper(path: Path, first: int, wait: bool = False) -> subprocess.Popen[str]:
    """A process that keeps five samples and is killed, or waits for a line and ends."""
    samples = [sample(number) for number in range(first, first + 5)]
    code = KILLED.format(path=str(path), samples=samples, wait=wait)
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def numbers(path: Path) -> list[int]:
    found: list[int] = watch.read(path)["full_scans"].to_pylist()
    return found


def test_sigkill_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kept.parquet"
    keeper(path, 0).communicate()
    assert not path.exists(), "killed before it was written"
    assert numbers(path) == [*range(5)]
    with (tmp_path / "kept.parquet.journal").open("a") as journal:
        journal.write('{"time_ns": 17')  # a line that was torn
    keeper(path, 5).communicate()
    assert numbers(path) == [*range(10)]
    with watch.keeping(path) as add:
        add(sample(10, thp_split_page=3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.parquet"], "a watcher that ends leaves one file"
    assert numbers(path) == [*range(11)]
    assert watch.read(path)["thp_split_page"].to_pylist() == [None] * 10 + [3]
    first, last = dump.read([path])
    assert (first["full_scans"], last["full_scans"], last.pages) == (0, 10, 3570)
    assert any("10 full scans" in line for line in dump.rates(first, last))


def test_killed_between_file_and_journal(tmp_path: Path) -> None:
    """Samples that are in both are read once."""
    path = tmp_path / "kept.parquet"
    keeper(path, 0).communicate()
    journal = (tmp_path / "kept.parquet.journal").read_text()
    with watch.keeping(path):
        pass
    (tmp_path / "kept.parquet.journal").write_text(journal)
    assert numbers(path) == [*range(5)]


def test_long_watch_moves_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FOLDED", 2)
    path = tmp_path / "new" / "kept.parquet"
    with watch.keeping(path) as add:
        for number in range(5):
            add(sample(number))
        assert (path.with_name("kept.parquet.journal").read_text().count("\n"), numbers(path)) == (1, [*range(5)])


def test_one_watcher_a_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.parquet"
    other = keeper(path, 0, wait=True)
    assert other.stdout
    other.stdout.readline()
    with pytest.raises(UserError, match="another `mmlab watch` writes this file"), watch.keeping(path):
        pass
    other.communicate("\n")
    assert numbers(path) == [*range(5)]


@pytest.mark.parametrize("content", [b"", b"no Parquet at all"])
def test_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.parquet"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no Parquet file of `mmlab watch`"):
        dump.read([path])
    with pytest.raises(UserError, match="no Parquet file of `mmlab watch`"), watch.keeping(path) as add:
        add(sample(0))
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.parquet"]


def test_disk_that_is_full(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"), watch.keeping(Path("/dev/full/kept.parquet")):
        pass
    with pytest.raises(UserError, match="there is no such file"):
        dump.read([tmp_path / "missing.parquet"])


@needs_ksm
def test_lines_and_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmlab.cli", "watch", "--every", "0.2s", "--for", "0.5s", "-o", "kept.parquet"]
    code = f"import sys; from mmlab.cli import main; main({command[3:]!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(re.findall(r"(?m)^\d\d:\d\d:\d\d  saved \d.*  ksmd_% ", done.stdout)) == 3, done.stdout
    assert watch.read(tmp_path / "kept.parquet").num_rows == 3


@needs_ksm
def test_live_table_until_ctrl_c() -> None:
    ours, theirs = pty.openpty()
    code = "from mmlab.cli import main; main(['watch', '--every', '0.1s'])"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while shown.count(b"pages_unshared") < 3:
        shown += os.read(ours, 65536)
    child.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # nobody has the other end any more
        while more := os.read(ours, 65536):
            shown += more
    os.close(ours)
    assert child.wait() == 0
    text = shown.decode()
    assert "a second" in text
    assert "use_zero_pages=" in text
    assert "Traceback" not in text


@needs_ksm
def test_widget() -> None:
    async def notebook() -> None:
        widget = watch.watch(every=0.05)
        while "pages_unshared" not in widget.value:
            await asyncio.sleep(0.01)
        assert "<script" not in widget.value
        widget.close()
        await asyncio.wait({widget.task}, timeout=5)
        assert widget.task.cancelled()

    asyncio.run(notebook())
    with pytest.raises(UserError, match="is for notebooks"):
        watch.watch()


@needs_root
def test_zeropages_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are read before they are written map the zeropage, which no counter of KSM has."""
    monkeypatch.setattr(watch, "mergeable", lambda pid: pid == os.getpid())
    sampler = watch.Sampler()
    before = sampler()
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        assert not any(memory[page << 12] for page in range(0, 256, 2))
        monkeypatch.setattr(sampler, "_next_look", 0.0)
        after = sampler()
    assert after["zeropage_entries"] - before["zeropage_entries"] == 128
    assert after["zeropages_by_ksm"] == 0


@needs_ksm
def test_what_needs_root_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(watch, "mergeable", denied)
    sampler = watch.Sampler()
    assert "zeropage_entries" not in sampler()
    assert sampler.missing[-1] == "zeropage outside KSM's counters: needs root"
    assert "not shown: zeropage" in str(watch.table([sampler()], sampler.missing).caption)


@needs_ksm
def test_what_a_sample_costs() -> None:
    """A sample and its table take well below 1 % of a CPU at one a second."""
    from rich.console import Console

    console, sampler, history = Console(file=io.StringIO(), width=110), watch.Sampler(), deque[watch.Sample](maxlen=40)
    for _ in range(watch.SHOWN):
        history.append(sampler())
    start = time.thread_time()
    for _ in range(20):
        history.append(sampler())
        console.print(watch.table(history, sampler.missing))
    assert (time.thread_time() - start) / 20 < 0.03  # 3 times more than on a machine that is not busy
