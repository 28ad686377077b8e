"""How the model is compiled: in several threads and processes at once, and with a cache that is damaged or missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmlab.kernel.state import machine

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
print(sorted({str(event.data["dispatcher"]) for _, event in recorder.buffer}), ops == set(randomscenario.EVENT_WEIGHTS))
"""


def test_nothing_is_compiled_after_warm_up() -> None:
    done = python(EVERY_SHAPE)
    assert done.stdout == "[] True\n", done.stderr


def test_an_argument_of_another_type_is_refused() -> None:
    from mmlab.kernel.memory import populate

    with pytest.raises(TypeError):
        populate(machine(8, 1, 2), 1, np.zeros(8))


# --- the cache, with a small function in place of the model ---------------------------------------------------------

SMALL = """
from mmlab.kernel.jit import compiled, entry

@compiled
def twice(v):
    return 2 * v

@entry
def small(v):
    return twice(v) + 1
"""
CALL = "from small import small; print(small(20), small(True))"


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the small function in a new process; its cache is tmp_path/cache."""
    (tmp_path / "small.py").write_text(SMALL)

    def call(code: str = CALL, **environment: object) -> subprocess.CompletedProcess[str]:
        given = {"NUMBA_CACHE_DIR": tmp_path / "cache", **environment}
        done = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}", **given)
        assert (done.returncode, done.stdout) == (0, "41 3\n"), done.stderr
        return done

    return call


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(reversed(data)),
    "of a module that was renamed": lambda data: data.replace(b"mmlab.kernel.jit", b"mmlab.kernel.old"),
    "of a module that is missing": lambda _: b"cmmlab.missing\nThing\n.",
}


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(
    damage: str, suffix: str, small: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    small()
    (file,) = (tmp_path / "cache").rglob(f"*.{suffix}")
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    assert small().stderr == ""
    assert file.stat().st_size == len(whole)


def test_a_cache_that_cannot_be_read_is_not_used(
    small: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    small()
    (file,) = (tmp_path / "cache").rglob("*.nbi")
    file.unlink()
    file.mkdir()
    assert small().stderr.count("NUMBA_CACHE_DIR") == 1


def test_without_a_folder_that_can_be_written_it_is_compiled_each_time(
    small: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "__pycache__").write_text("not a folder")
    nowhere = tmp_path / "small.py" / "folder"
    assert small(NUMBA_CACHE_DIR="", HOME=nowhere, XDG_CACHE_HOME=nowhere).stderr.count("NUMBA_CACHE_DIR") == 1


def test_a_full_disk_is_no_reason_to_stop(small: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
    assert small(limit + CALL).stderr.count("NUMBA_CACHE_DIR") == 1
    assert small().stderr == ""


def test_two_processes_may_compile_at_once(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(SMALL)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{TESTS.parent}:{tmp_path}"}
    both = [subprocess.Popen([sys.executable, "-c", CALL], env=environment, stdout=subprocess.PIPE) for _ in "12"]
    assert [process.communicate()[0] for process in both] == [b"41 3\n"] * 2
