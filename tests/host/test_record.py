"""Plans, the refusals of what cannot be recorded, and recordings of the running kernel, where that can be done."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import liverandom
from mmlab.errors import UserError
from mmlab.host import runner
from mmlab.host.calibrate import calibration_set, observe, read, record_one
from mmlab.host.record import check, plan, record
from mmlab.results.run import simulate
from mmlab.results.trace import Comparison, compare, from_run, predict, scenario_of, write
from mmlab.scenario import Scenario

SMALL: dict[str, Any] = {
    "name": "small",
    "memory_mib": 4,
    "zero_fraction": 0.9,
    "use_zero_pages": 1,
    "pages_to_scan": 500,
    "horizon_batches": 8,
    "horizon_seconds": 0,
}


def why_not() -> str:
    """Why this machine cannot record now, or ""."""
    if os.geteuid():
        return "recording needs root"
    return "; ".join(runner.lacking({"scenario": {"processes": [], "events": [], "knobs": {}}}))


@pytest.fixture
def live() -> dict[str, Any]:
    """Skip where the running kernel cannot be recorded; the knobs before."""
    if reason := why_not():
        pytest.skip(reason)
    return runner.save()


# -- plans ----------------------------------------------------------------------------------------------------------


def test_plan_is_the_question_of_a_trace() -> None:
    events = [
        {"after": {"batch": 3}, "op": "write", "page": 1, "count": 2, "key": 5},
        {"after": {"seconds": 0.05, "every": 0.05}, "op": "cold", "page": 0, "count": 512},
        {"after": {"full_scan": 1}, "op": "exit"},
    ]
    scenario = Scenario(**SMALL | {"horizon_seconds": 0.16}, events=events)
    made = plan(scenario, kernel="6.18.44-1-amd64")
    asked = made["scenario"]
    assert json.loads(json.dumps(made)) == made
    assert asked["processes"] == from_run(simulate(Scenario(**SMALL)))["scenario"]["processes"]
    assert [event["op"] for event in asked["events"]] == ["write", "exit", "cold", "cold", "cold"]
    assert [event["after"] for event in asked["events"][:2]] == [{"batch": 3}, {"full_scan": 1}]
    assert all(event["after"].keys() == {"batch"} for event in asked["events"][2:])
    assert "sleep_millisecs" not in asked["knobs"], "a stepped ksmd does not sleep"
    free = plan(scenario, kernel="6.18", mode="free")
    assert free["scenario"]["events"][2]["after"] == {"seconds": 0.05}
    assert free["options"]["seconds"] == pytest.approx(0.16, abs=0.03)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"variant": "ksm-opt-out"}, "variant = 'ksm-opt-out' is not what the running kernel does"),
        ({"pages_per_thp": 64, "memory_mib": 2}, "pages_per_thp = 64"),
        ({"nodes": 2}, "nodes = 2: cannot be recorded"),
        ({"hot_fraction": 0.1, "horizon_seconds": 1}, "hot_fraction"),
        ({"policy": "ksmtuned", "horizon_seconds": 1}, "policy"),
        ({"run": 0}, "run = 0: cannot be recorded"),
        ({"kernel_changes": {"queue_per_node": 1}}, "kernel_changes"),
        ({"process_list": [{"forbids_zeropages": 1}]}, "process_list 0: forbids_zeropages"),
        ({"events": [{"after": {"batch": 1}, "op": "shrink", "count": 1}]}, "count = 1"),
        ({"events": [{"after": {"batch": 1}, "op": "read", "page": 0, "count": 9, "share": 0.5}]}, "op read: share"),
        ({"touched_fraction": 0.5}, "touched_fraction"),
        ({"swap_mib": 1, "hugepages_enabled": {64: "always"}}, "hugepages_enabled: cannot be recorded beside swap_mib"),
    ],
)
def test_what_no_plan_can_have(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        plan(Scenario(**SMALL | fields), kernel="6.18.44")


def test_what_moves_with_strides_keeps_its_distance() -> None:
    event = {"after": {"batch": 1}, "op": "mremap", "page": 8, "count": 9, "to": 100, "every_nth": 4}
    (asked,) = plan(Scenario(**SMALL, events=[event]), kernel="6.18.44")["scenario"]["events"]
    assert [(part["page"], part["to"]) for part in asked["parts"]] == [(8, 100), (12, 104), (16, 108)]


def test_kernel_of_a_plan() -> None:
    assert plan(Scenario(**SMALL), kernel="6.18.44-cloud-amd64")["variant"] == "mainline"
    assert plan(Scenario(**SMALL), kernel="6.1.0-13-amd64", variant="legacy")["variant"] == "legacy"
    assert plan(Scenario(**SMALL), kernel="7.3.4", variant="ksm-opt-out")["variant"] == "ksm-opt-out"
    with pytest.raises(UserError, match=r"kernel = '9\.1\.0' is not a known kernel"):
        plan(Scenario(**SMALL), kernel="9.1.0")


# -- several recordings as one --------------------------------------------------------------------------------------


def trace(*rows: list[int], **more: Any) -> dict[str, Any]:
    return {"fields": ["batch", "pages_shared", "cow_ksm"], "samples": rows, "scenario": {}, "maps": [], "frames": []}


def test_machine_wide_counters_are_the_least_of_each_step() -> None:
    quiet = trace([0, 1, 0], [1, 2, 3], [2, 2, 3])
    first = trace([0, 1, 0], [1, 2, 5], [2, 2, 5])
    last = trace([0, 1, 0], [1, 2, 3], [2, 2, 7])
    merged, moved, different = runner.merged([quiet, first, last], ["cow_ksm"], 2)
    assert (merged["samples"], moved, different) == ([[0, 1, 0], [1, 2, 3], [2, 2, 3]], [], "")
    _, moved, _ = runner.merged([quiet, first], ["cow_ksm"], 2)
    assert moved == ["cow_ksm"]


def test_recordings_that_differ_are_not_kept() -> None:
    *_, different = runner.merged([trace([0, 1, 0]), trace([0, 2, 0])], ["cow_ksm"], 2)
    assert different == "batch 0: pages_shared 2 or 1"


def test_compare_passes_over_what_others_moved() -> None:
    ours = from_run(simulate(Scenario(**SMALL), maps_at="end"))
    theirs = json.loads(json.dumps(ours)) | {"kernel": "6.18.44"}
    theirs["samples"][-1][theirs["fields"].index("thp_fault_alloc")] += 1
    assert not compare(theirs, ours).exact
    assert compare(theirs | {"moved": ["thp_fault_alloc"]}, ours).exact


# -- the running kernel ---------------------------------------------------------------------------------------------


def test_check_says_what_this_machine_can_do() -> None:
    if not runner.KSM.exists():
        pytest.skip("this kernel has no KSM")
    table = check()
    assert "knob use_zero_pages" in table
    assert "op split_all" in table


def test_recorded_equals_predicted(live: dict[str, Any]) -> None:
    events = [
        {"after": {"batch": 2}, "op": "write", "page": 5, "count": 20, "key": 9},
        {"after": {"batch": 3}, "op": "fork"},
        {"after": {"batch": 3}, "op": "write", "page": 500, "count": 20, "key": 9, "process": 1},
        {"after": {"batch": 4}, "op": "exit"},
        {"after": {"batch": 4}, "op": "exit"},
        {"after": {"batch": 5}, "op": "fork"},
    ]
    told: list[float] = []
    recording = record(Scenario(**SMALL, events=events), lambda share, *_: told.append(share))
    assert compare(recording, predict(recording)).exact
    assert told == sorted(told)
    results = [event["result"] for event in recording["scenario"]["events"]]
    assert results == [0, 0, 0, 0, errno.ESRCH, errno.ESRCH], "a process that has exited can do nothing"
    assert runner.save() == live


def test_splits_that_fail_at_a_pin_are_not_compared_after_shrink(live: dict[str, Any]) -> None:
    """drop_caches goes on while it frees something, so others decide how often the shrinker tries a pinned folio."""
    events = [
        {"after": {"batch": 2}, "op": "pin", "page": 0, "count": 512},
        {"after": {"batch": 2}, "op": "dontneed", "page": 0, "count": 9},
        {"after": {"batch": 2}, "op": "shrink", "count": 9},
    ]
    recording = record(plan(Scenario(**SMALL, events=events), times=1))
    assert "thp_split_page_failed" in recording["moved"]
    found = compare(recording, predict(recording))
    assert found.exact or busy(recording, found)
    assert runner.save() == live


def test_an_owner_that_runs_beside_ksmd(live: dict[str, Any], tmp_path: Path) -> None:
    """A scenario of `mmlab calibrate --record`; ksmd may use every CPU again afterwards."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is no second CPU")
    scenario = next(s for s in calibration_set() if s.name == "same-running")
    path = tmp_path / "same-running.json.gz"
    write(path, record_one(scenario.replace(memory_mib=4, horizon_batches=4, equal_bytes=64)))
    ((again, samples),) = read(path)
    assert (again.owner_running_fraction, again.equal_bytes) == (1, 64)
    seen = observe(again, samples)
    assert seen.differs == "" and seen.cpu_ns.min() > 0
    assert runner.save() == live


@pytest.mark.parametrize("seed", range(int(os.environ.get("MMLAB_LIVE", "10"))))
def test_random_scenario_recorded_equals_predicted(live: dict[str, Any], seed: int) -> None:
    """The model does what the kernel does; what that does only once may come from others, on a machine not calm."""
    seen: list[list[list[int]]] = []
    for _ in range(6):
        asked = plan(scenario_of(liverandom.scenario(seed, 20)), times=1)
        try:
            recording = record(asked)
        except UserError as error:  # no huge page is free, or somebody else began to use KSM
            pytest.skip(str(error))
        found = compare(recording, predict(recording))
        if found.exact or busy(recording, found):
            return
        fields = recording["fields"]
        own = [n for n, f in enumerate(fields) if not f.startswith("lab_") and f not in recording["machine_wide"]]
        seen.append([[row[n] for n in own] for row in recording["samples"]])
    assert all(seen.count(one) == 1 for one in seen), found
    pytest.skip("recordings of this scenario differ: the machine is not calm")


def busy(recording: dict[str, Any], found: Comparison) -> bool:
    """Whether only machine-wide counters differ: other processes moved them, in a scenario that was recorded once."""
    calm = compare(recording | {"moved": recording["machine_wide"]}, predict(recording))
    return calm.exact and found.maps_exact == found.maps


def family(pid: int) -> list[int]:
    """The descendants of a process, without itself."""
    out = [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return out + [below for child in out for below in family(child)]


KILLED = """
import sys
from mmlab.host.record import record
from mmlab.scenario import Scenario
record(Scenario(memory_mib=4, zero_fraction=0.5, swap_mib=8, pages_to_scan=7, processes=2, horizon_seconds=0,
       horizon_batches=1000, max_page_sharing=5, smart_scan=0, use_zero_pages=1))
"""


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_at_any_moment_the_machine_is_as_before(live: dict[str, Any], signal_: int) -> None:
    """mmlab, the recorder or a worker: one of them, drawn at random, gets SIGKILL at a random moment."""
    rng = random.Random(signal_)
    for _ in range(int(os.environ.get("MMLAB_KILLS", "2"))):
        mmlab = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while mmlab.poll() is None and runner.get(runner.KSM / "max_page_sharing") != "5":
            time.sleep(0.01)  # it begins to set knobs
        time.sleep(rng.random() / 2)
        all_of_it = [mmlab.pid, *family(mmlab.pid)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(all_of_it) if signal_ == signal.SIGKILL else mmlab.pid, signal_)
        mmlab.wait(30)
        os.close(runner.lock(30))  # once nobody holds it, none of the processes is left
        assert runner.save() == live
        assert not [pid for pid in all_of_it if Path(f"/proc/{pid}/exe").exists()]


def test_refusals(live: dict[str, Any]) -> None:
    """Whatever forbids a recording is named before anything is changed."""
    scenario = Scenario(**SMALL)
    with mergeable_process() as pid, pytest.raises(UserError, match=rf"process {pid} \(python.*\) has 2\.0 MiB"):
        record(scenario)
    handle = runner.lock(5)
    try:
        with pytest.raises(UserError, match="another recording is running"):
            record(scenario)
    finally:
        os.close(handle)
    with pytest.raises(UserError, match="op migrate cannot be done"):
        record(Scenario(**SMALL, events=[{"after": {"batch": 1}, "op": "migrate", "page": 0, "count": 1}]))
    with pytest.raises(UserError, match="op compact compacts all memory: `mmlab vm`"):
        record(Scenario(**SMALL, events=[{"after": {"batch": 1}, "op": "compact"}]))
    with pytest.raises(UserError, match=r"may need 1,.* MiB, and .* MiB are free here"):
        record(plan(scenario) | {"scenario": {"knobs": {}, "events": [], "processes": [{"pages": 1 << 28}]}})
    assert runner.save() == live


@contextlib.contextmanager
def mergeable_process() -> Iterator[int]:
    code = "import mmap; m = mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    code += "m.madvise(mmap.MADV_MERGEABLE); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.kill()
