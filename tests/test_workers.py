"""Workers: results in order, and nothing that goes on running after its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mmlab import workers
from mmlab.errors import UserError


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order_with_progress(jobs: int) -> None:
    seen: list[tuple[float, float, str]] = []
    found = list(workers.each(abs, [-3, 2, -1], jobs, lambda *step: seen.append(step)))
    assert found == [3, 2, 1]
    assert seen == [(0, 3, "-3"), (1, 3, "2"), (2, 3, "-1"), (3, 3, "")]


def test_one_item_or_one_job_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "executor", None)
    assert list(workers.each(os.path.basename, ["a/b"], jobs=8)) == ["b"]
    assert list(workers.each(os.path.basename, ["a/b", "c"], jobs=1)) == ["b", "c"]
    assert list(workers.each(os.path.basename, [], jobs=8)) == []


def test_leaving_the_executor_ends_workers_in_the_middle_of_their_work() -> None:
    with suppress(KeyboardInterrupt), workers.executor(2) as pool:
        pids = [psutil.Process(pool.submit(os.getpid).result())]
        pool.submit(time.sleep, 3600)
        raise KeyboardInterrupt
    assert not psutil.wait_procs(pids, timeout=60)[1]


def test_a_worker_that_dies_breaks_the_executor() -> None:
    with pytest.raises(BrokenExecutor), workers.executor(2) as pool:
        pool.submit(_die, 0).result()


def test_a_worker_that_dies_is_one_message_to_the_user() -> None:
    with pytest.raises(UserError, match="a worker process was killed") as found:
        list(workers.each(_die, [1, 2], jobs=2))
    assert (found.value.parameter, found.value.value) == ("jobs", 2)
    assert "fewer jobs" in found.value.hint


PARENT = """
import os, time
from mmlab.workers import executor
if __name__ == "__main__":
    with executor(2) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 3600).result()
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert children
        assert not psutil.wait_procs(children, timeout=60)[1]


@pytest.mark.parametrize("address", ["foo://x", "tcp://127.0.0.1:1"])
def test_a_scheduler_that_does_not_answer(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ANSWER_S", 1)
    with pytest.raises(UserError) as found, workers.executor(1, address):
        pass
    assert (found.value.parameter, found.value.value) == ("scheduler", address)
    assert "dask scheduler" in found.value.hint


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(workers, "ANSWER_S", 1)
    with LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(UserError) as found, workers.executor(1, address):
            pass
    assert (found.value.parameter, found.value.value) == ("scheduler", address)
    assert f"dask worker {address}" in found.value.hint
