"""How the model is compiled: in several threads and processes at once, and with a cache that is damaged or missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mmlab.kernel.state import machine
from mmlab.report.provenance import DEPENDS

TESTS = Path(__file__).parents[1]
RACES = int(os.environ.get("MMLAB_RACES", "1"))
"""How often two threads race to compile the model, about 25 s each."""
OFFSETS = (2.0, 0.5, 3.0, 0.0, 1.0, 5.0, 8.0)
"""Delays of the second thread, s."""


def python(code: str, *args: object, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a new process."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    given = {**os.environ, "PYTHONPATH": paths, **{name: str(value) for name, value in environment.items()}}
    command = [sys.executable, "-X", "faulthandler", "-c", code, *map(str, args)]
    return subprocess.run(command, env=given, capture_output=True, text=True)


# --- the whole model ------------------------------------------------------------------------------------------------

RACE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from mmlab.results.run import simulate
from mmlab.kernel.jit import warm_up
from mmlab.scenario import Scenario

def first():
    return simulate(Scenario(memory_mib=2, horizon_full_scans=2), maps_at="end").rows["frames"][-1]

def second():
    time.sleep(float(sys.argv[1]))
    warm_up()

with ThreadPoolExecutor() as pool:
    for result in [pool.submit(first), pool.submit(second)]:
        print(result.result())
"""


@pytest.mark.parametrize("race", range(RACES))
def test_two_threads_may_compile_at_once(race: int, tmp_path: Path) -> None:
    done = python(RACE, OFFSETS[race % len(OFFSETS)], NUMBA_CACHE_DIR=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["512", "None"]), done.stderr


EVERY_SHAPE = """
import numba.core.event
from pathlib import Path
import randomscenario
from mmlab.results.run import simulate
from mmlab.kernel.jit import warm_up
from mmlab.params import find_params
from mmlab.results import trace
from mmlab.scenario import Scenario

warm_up()
ops = set()
with numba.core.event.install_recorder("numba:compile") as recorder:
    for seed in range(60):
        asked = randomscenario.scenario(seed)
        ops |= {event["op"] for event in asked["scenario"]["events"]}
        trace.predict({**asked, "maps": [], "frames": []})
    simulate(Scenario(pages_per_thp=8, memory_mib=2, hot_fraction=0.1, khugepaged=1, horizon_seconds=1), maps_at="end")
    simulate(Scenario.load(find_params("state_transitions")), maps_at="end")
    simulate(Scenario(memory_mib=2, advisor_mode="scan-time", ksm_start_seconds=1, horizon_seconds=3))
    trace.predict(trace.read(trace.find()[0]))
drawn = {*randomscenario.EVENT_WEIGHTS, "touch"}
print(sorted({str(event.data["dispatcher"]) for _, event in recorder.buffer}), ops == drawn)
"""


def test_nothing_is_compiled_after_warm_up() -> None:
    done = python(EVERY_SHAPE)
    assert done.stdout == "[] True\n", done.stderr


def test_an_argument_of_another_type_is_refused() -> None:
    from mmlab.kernel.memory import populate

    with pytest.raises(TypeError):
        populate(machine(8, 1, 2), 1, np.zeros(8))


# --- the cache, with small functions in place of the model ---------------------------------------------------------

SMALL = """
from mmlab.kernel.jit import compiled, entry

@compiled
def twice(v):
    return 2 * v
"""
ENTRY = """
@entry
def small{0}(m, v):
    return twice(v) + len(m.mm)
"""
CALL = """
import small
from mmlab.kernel.state import machine
from mmlab.report.provenance import DEPENDS
m = machine(8, 0, 2)
print([(f(m, 20), f(m, True)) for name, f in vars(small).items() if name.startswith("small")])
"""
DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda _: b"",
    lambda data: data[: len(data) // 2],
    lambda data: bytes(reversed(data)),
    lambda data: data.replace(b"mmlab.kernel.jit", b"mmlab.kernel.old"),  # a module that was renamed
    lambda _: b"cmmlab.missing\nThing\n.",
)


class Small:
    """A module with a function for each kind of damage; its cache is folder/cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        functions = [ENTRY.format(n) for n in range(2 * len(DAMAGES))]
        (folder / "small.py").write_text("".join([SMALL, *functions]))

    def call(self, code: str = "", **environment: object) -> str:
        """Call the functions in a new process, after `code`; return what it says on stderr."""
        given = {"NUMBA_CACHE_DIR": self.folder / "cache", **environment}
        done = python(f"import sys; sys.path.insert(0, {str(self.folder)!r}); {code}\n{CALL}", **given)
        assert (done.returncode, done.stdout) == (0, f"{[(41, 3)] * 2 * len(DAMAGES)}\n"), done.stderr
        return done.stderr

    def cached(self, pattern: str) -> list[Path]:
        return sorted((self.folder / "cache").rglob(pattern))


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


def test_a_damaged_cache_is_made_anew(small: Small) -> None:
    assert small.call() == ""
    files = small.cached("*.nbi")[::2] + small.cached("*.nbc")[1::2]
    damaged = [damage(file.read_bytes()) for file, damage in zip(files, DAMAGES * 2, strict=True)]
    for file, data in zip(files, damaged, strict=True):
        file.write_bytes(data)
    assert small.call() == ""
    assert all(file.read_bytes() != data for file, data in zip(files, damaged, strict=True))


def test_a_cache_that_cannot_be_read_is_not_used(small: Small) -> None:
    small.call()
    file = small.cached("*.nbi")[0]
    file.unlink()
    file.mkdir()
    assert small.call().count("NUMBA_CACHE_DIR") == 1


def test_without_a_folder_that_can_be_written_it_is_compiled_each_time(small: Small) -> None:
    (small.folder / "__pycache__").write_text("not a folder")
    nowhere = small.folder / "small.py" / "folder"
    assert small.call(NUMBA_CACHE_DIR="", HOME=nowhere, XDG_CACHE_HOME=nowhere).count("NUMBA_CACHE_DIR") == 1


def test_without_a_home_it_is_compiled_each_time(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    (small.folder / "__pycache__").write_text("not a folder")
    monkeypatch.delenv("HOME")
    unknown = f"import os, pwd; os.chdir({str(small.folder)!r}); pwd.getpwuid = {{}}.__getitem__"
    assert small.call(unknown, NUMBA_CACHE_DIR="").count("NUMBA_CACHE_DIR") == 1
    assert not (small.folder / "~").exists()


def test_a_full_disk_is_no_reason_to_stop(small: Small) -> None:
    limit = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); sys.dont_write_bytecode = True"
    )
    said = small.call(limit)
    assert said.count("NUMBA_CACHE_DIR") == 1
    assert "every start compiles it again" in said
    assert small.call(limit, **DEPENDS["environment"]) == "", "it would be on the page of a report"
    assert small.call() == ""


def test_two_processes_may_compile_at_once(small: Small) -> None:
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(small.call, ["", ""])) == ["", ""]
