"""The processes that make reports: nothing of them stays, whatever ends them, and two never make the same page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from conftest import ROOT
from mmlab.errors import UserError
from mmlab.report.execute import claimed, make_all, scratch_folder
from mmlab.report.request import Request

MADE_OF = {"version": "1", "source": "f" * 64, "versions": {}, "exactness": "3 of 3 recordings predicted exactly"}
SLOW = "from pathlib import Path\nimport time\nPath('started').touch()\ntime.sleep(3600)"


def notebook(path: Path, *cells: str) -> Path:
    v4 = nbformat.v4
    parameters = v4.new_code_cell("n: int = 1  # n", metadata={"tags": ["parameters"]})
    nbformat.write(v4.new_notebook(cells=[parameters, *map(v4.new_code_cell, cells)]), path)
    return path


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays(tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the middle of a cell: no process, one message at most, and no temporary file after the next."""
    notebook(tmp_path / "slow.ipynb", SLOW)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", "from mmlab.cli import main; main()", "report", "slow.ipynb", "-o", "out.html"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "started").exists() and process.poll() is None:
        time.sleep(0.1)
    others = psutil.Process(process.pid).children(recursive=True)
    assert len(others) >= 3, "the one that has everything loaded, the report's, the kernel"
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.send_signal(how)
    out, err = process.communicate(timeout=120)
    assert not psutil.wait_procs(others, timeout=120)[1]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    assert out == ""
    said = err.partition(" …\n")[2] or err  # without the notice of a compilation
    assert said == ("\ninterrupted; what was finished is kept\n" if how == signal.SIGINT else "")
    assert not (tmp_path / "out.html").exists()
    assert bool(list(temporary.iterdir())) == (how == signal.SIGKILL)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with scratch_folder() as own, scratch_folder() as another:
        assert {*temporary.iterdir()} == {own, another}, "those of the living stay"
    assert not list(temporary.iterdir())


def test_a_page_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    wanted = [Request(notebook(tmp_path / f"{name}.ipynb", "1"), out=tmp_path / "out") for name in "ab"]
    with claimed(wanted[:1]):
        with pytest.raises(UserError) as refused, claimed(wanted):
            pass
        assert refused.value.parameter == str(wanted[0].page)
        with claimed(wanted[1:]):
            pass
    with claimed(wanted):
        pass
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("code", "words"), [("os._exit(3)", "died"), ("os.kill(os.getppid(), 9)", "killed")])
def test_a_process_that_dies_is_told(tmp_path: Path, code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's death leaves its page up to there; that of the report's process does not."""
    request = Request(notebook(tmp_path / "dies.ipynb", "print('so far')", f"import os\n{code}"), out=tmp_path / "out")
    monkeypatch.setattr("mmlab.report.execute.software", lambda _: MADE_OF)
    try:
        (error,) = make_all([request])
        assert "so far" in request.page.read_text()
    except UserError as refused:
        error = str(refused)
        assert not request.page.exists()
    assert words in error
