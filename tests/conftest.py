"""Fixtures, folders and the scheduling that several tests share."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from filecmp import cmp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from mmlab.report import index as reports

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "mmlab" / "recordings"
TOGETHER = {
    "test_report_browser": "reports",
    "test_reports_same": "reports",
    "test_explorer_browser": "explorer",
    "test_lab": "lab",
    "test_page": "page",
    "test_record": "running kernel",
    "test_sweep": "sweep",
    "test_wheel": "wheel",
}
"""Files of tests that share something that is slow to make (all reports, a server, an installation), and its name."""


class Scheduling(LoadScopeScheduling):
    """Give each test to the next free process, but those of a group of `TOGETHER` to one; the largest group first.

    xdist's own groups by marks have no effect with pytest 9.2, which no longer lets a test's name be changed.
    """

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(Path(nodeid.partition("::")[0]).stem, nodeid)


SLOW = {
    *TOGETHER,
    *map("test_{}".format, "capture execute index jit notebooks property schema tune vm watch workers".split()),
    "test_a_page_of_ones_own_host",
    "test_interrupted_keeps_what_is_finished",
    "test_jobs_do_not_matter",
    "test_thirty_guests_that_grow_are_few_lines_and_some_seconds",
    "test_types_of_a_users_script",
}
"""Files of tests, and single tests, that `pytest -m quick` leaves out: exactness and unit tests remain."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test quick that is not slow; slow ones come first, so that none is left to the end alone."""
    slow = {item for item in items if not SLOW.isdisjoint((item.path.stem, item.name.partition("[")[0]))}
    items.sort(key=lambda item: item not in slow)
    for item in items:
        if item not in slow:
            item.add_marker(pytest.mark.quick)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for garbage neither while tests are collected nor, later, in all that was: it stays to the end.

    Models make objects by the million, and to search a hundred imported libraries again and again took a fifth of the
    time of recordings.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


TRACES = [str(ROOT.parent / "shared" / name) for name in ("traces", "traces-7", "traces-live")]
RECORDED = [
    path
    for folder in (os.environ.get("MMLAB_TRACES") or os.pathsep.join(TRACES)).split(os.pathsep)
    for path in sorted(Path(folder).glob("*.json.gz"))
    if not (SHIPPED / path.name).exists() or not cmp(SHIPPED / path.name, path, shallow=False)
]
"""More recordings than ship, if there are any: of the folders that MMLAB_TRACES names, separated as in PATH."""

settings.register_profile("mmlab", deadline=None, print_blob=True)
settings.load_profile("mmlab")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the top of the repository."""
    return ROOT


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium, headless; skip the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian, Ubuntu: apt install chromium)")
    from playwright.sync_api import sync_playwright

    quiet = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"
    quiet += " --no-proxy-server"
    with sync_playwright() as playwright:
        sandbox = os.geteuid() != 0
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet.split(), chromium_sandbox=sandbox)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Return the folder for screenshots to be looked at; it is not in git."""
    folder = ROOT / "tests" / "artefacts"
    folder.mkdir(exist_ok=True)
    return folder


EXECUTED = "executed"
ANOTHER_DAY = "import time\n_now = time.time\ntime.time = lambda: _now() + 400 * 86400\n"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Make all standard reports with everything different that can differ between machines: another folder, number of
    processes, time zone, day and hash seed, an ASCII locale, a home that cannot be written, and the user's own settings
    of matplotlib.

    The folder `EXECUTED` beside that of the reports has their executed notebooks. The reports of a usual run are in
    git, by their digests. If those were made with other versions, or with MMLAB_TWICE=1 (`make nightly`), a usual run
    is made here, too, and is the second of the list.
    """
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there") / "an other folder"
    for folder in (there, there / "lib", there / EXECUTED):
        folder.mkdir()
    (there / "lib" / "sitecustomize.py").write_text(ANOTHER_DAY)
    (there / "matplotlibrc").write_text("axes.facecolor: red\n")
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    usual |= {"PYTHONPATH": str(ROOT)}
    other = usual | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(there / "lib")]),
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "TZ": "Asia/Kolkata",
        "PYTHONHASHSEED": "4711",
        "MATPLOTLIBRC": str(there),
        "HOME": str(there / "matplotlibrc" / "home"),
        "OMP_NUM_THREADS": "3",
        "MMLAB_EXECUTED": str(there / EXECUTED),
    }
    command = [sys.executable, "-c", "from mmlab.cli import main; main()", "report", "--all", "-o", "reports", "--jobs"]
    runs = [("2", there, other)]
    with (ROOT / "reports" / reports.SUMS).open() as file:
        if os.environ.get("MMLAB_TWICE") or json.loads(file.readline().removeprefix("# ")) != reports.made_with():
            runs.append(("1", here, usual))
    started = [
        subprocess.Popen([*command, jobs], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for jobs, cwd, env in runs
    ]
    for done, (_, err) in [(process, process.communicate()) for process in started]:
        assert done.returncode == 0, err
    return [cwd / "reports" for _, cwd, _ in runs]
