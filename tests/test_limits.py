"""CPUs and memory: those of the control group that a process is in, of both versions, in a container or outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from mmlab import limits

MIB = 2**20
MEMINFO = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 16 CPUs and 4 GiB free; its files are in the folder that is returned."""
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    write(tmp_path, {"proc/meminfo": MEMINFO})
    return tmp_path


def write(machine: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (machine / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/a.slice/b\n", f"{V2}/a.slice/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/../../elsewhere\n", f"{V2}/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job\n0::/\n",
                f"{V2}/cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
                f"{V2}/cpu,cpuacct/job/cpu.cfs_period_us": "50000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/on/the/host\n",
                f"{V2}/cpu/cpu.cfs_quota_us": "-1\n",
                f"{V2}/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
    ],
)
def test_cpus(machine: Path, files: dict[str, str], expected: int) -> None:
    write(machine, files)
    assert limits.cpus() == expected


def test_cpus_without_an_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of macOS, where there are no files either."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert limits.cpus() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert limits.cpus() == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4096),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/memory.max": "max\n", f"{V2}/memory.current": "1\n"}, 4096),
        (
            {
                "proc/self/cgroup": "0::/pod/container\n",
                f"{V2}/pod/memory.max": f"{2048 * MIB}\n",
                f"{V2}/pod/memory.current": f"{1500 * MIB}\n",
                f"{V2}/pod/memory.stat": f"anon 5\ninactive_file {1000 * MIB}\nactive_file 3\n",
            },
            1548,
        ),
        (
            {
                "proc/self/cgroup": "7:memory:/docker/f00\n",
                f"{V1}/memory.limit_in_bytes": f"{1024 * MIB}\n",
                f"{V1}/memory.usage_in_bytes": f"{1000 * MIB}\n",
                f"{V1}/memory.stat": f"inactive_file 1\ntotal_inactive_file {40 * MIB}\n",
            },
            64,
        ),
        (
            {
                "proc/self/cgroup": "7:memory:/\n",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712\n",
                f"{V1}/memory.usage_in_bytes": "5\n",
            },
            4096,
        ),
    ],
)
def test_free_memory(machine: Path, files: dict[str, str], expected: int) -> None:
    write(machine, files)
    assert limits.free_memory() == expected * MIB


def test_free_memory_is_unknown_where_the_system_does_not_tell(machine: Path) -> None:
    (machine / "proc/meminfo").unlink()
    assert limits.free_memory() is None


def test_the_makefile_asks_with_any_python() -> None:
    """A Python without a single package, and none of mmlab's modules in the way of the standard library's."""
    command = [sys.executable, "-I", "-S", str(ROOT / "mmlab" / "limits.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 1 <= int(done.stdout) <= (os.cpu_count() or 1)
