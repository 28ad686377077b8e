"""The wheel and the source archive: built without a network, complete, and of use where there is no clone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest

from conftest import ROOT, SHIPPED
from mmlab import __version__
from mmlab.params import params_files
from mmlab.report.provenance import source_digest

SHARE = "mmlab/shipped/"


def build(target: str, source: Path, folder: Path) -> Path:
    """`python -m hatchling build`: what a build frontend calls, with the hatchling that is there."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a command of an environment that has this wheel, and the packages of this one; returns what it prints."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(own, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "VIRTUAL", "JUPYTER"))}
    home = folder / "home"
    home.mkdir()
    environment = kept | {"HOME": str(home), "JUPYTER_PATH": f"{sys.prefix}/share/jupyter"}

    def run(*command: object) -> str:
        program, *arguments = map(str, command)
        done = subprocess.run(
            [folder / "bin" / program, *arguments],
            cwd=home,
            env=environment,
            text=True,
            capture_output=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def names(folder: Path) -> set[str]:
    """What belongs to a folder of the clone, by its path: nothing hidden, nothing compiled."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts[:-1])
    }


def test_the_wheel_has_everything_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        content = set(archive.namelist())
        about = Parser().parsestr(archive.read(f"mmlab-{__version__}.dist-info/METADATA").decode())
    code = {name for name in content if name.startswith("mmlab/") and not name.startswith(SHARE)}
    shared = {name.removeprefix(SHARE) for name in content if name.startswith(SHARE)}
    assert code == names(ROOT / "mmlab")
    assert {"mmlab/py.typed", "mmlab/report/templates/report/style.css", "mmlab/kernel/ksm.py"} <= code
    assert len([name for name in code if name.endswith(".json.gz")]) == len(list(SHIPPED.glob("*.json.gz"))) > 200
    assert shared == names(ROOT / "notebooks") | names(ROOT / "params")
    assert {"notebooks/01_regression.ipynb", "params/all_zero.yaml", "params/scenario.schema.json"} <= shared
    assert (about["Version"], about["License-Expression"]) == (__version__, "MIT")
    assert f"mmlab-{__version__}.dist-info/licenses/LICENSE" in content


def test_the_source_archive_is_the_clone(wheel: Path, tmp_path: Path) -> None:
    """Every file under version control is in it, and the wheel that it makes is the clone's, byte by byte."""
    archive = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    source = tmp_path / f"mmlab-{__version__}"
    assert (source / "PKG-INFO").is_file()
    again = build("wheel", source, tmp_path / "wheel")
    assert again.read_bytes() == wheel.read_bytes()
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git, or no clone: its files cannot be listed")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not [name for name in listed.split("\0") if (ROOT / name).is_file() and not (source / name).is_file()]


def test_it_is_what_runs(installed: Callable[..., str]) -> None:
    assert installed("mmlab", "--version") == f"mmlab {__version__}\n"
    where = installed("python", "-c", "import mmlab, sys; print(mmlab.__file__); print(sys.prefix)").split()
    assert where[0].startswith(where[1])
    assert "pages_to_scan: 100 pages" in installed("mmlab", "params", "pages_to_scan")
    assert json.loads(installed("mmlab", "schema")) == json.loads((ROOT / "params/scenario.schema.json").read_text())


def test_a_target_folder_with_a_package_of_that_name(wheel: Path, tmp_path: Path) -> None:
    """`pip install --target`: what ships is found, not a foreign package `params` or a folder `notebooks` beside it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path), str(wheel)], check=True, timeout=120)
    for folder, file in (("params", "all_zero.yaml"), ("notebooks", "00_explore.ipynb")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("not ours")
    code = """
from mmlab.params import find_params, params_files, shipped_folder
from mmlab.report.provenance import source_digest
print(find_params("all_zero").read_text()[:4] != "not ", len(params_files("goals")), source_digest())
print(shipped_folder("notebooks"))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found, notebooks = done.stdout.splitlines()
    assert found == f"True {len(params_files('goals'))} {source_digest()}"
    assert notebooks == str(tmp_path / "mmlab/shipped/notebooks")


def test_the_lab_copies_what_ships(wheel: Path, installed: Callable[..., str], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    with zipfile.ZipFile(wheel) as archive:
        ships = [name for name in archive.namelist() if re.fullmatch(rf"{SHARE}(notebooks/[^/]+|params/.+)", name)]
        assert installed("mmlab", "lab", "--copy-only", mine) == f"{mine}: {len(ships)} files copied\n"
        for name in ships:
            assert (mine / name.removeprefix(SHARE)).read_bytes() == archive.read(name)
    assert installed("mmlab", "lab", "--copy-only", mine) == ""


def test_it_simulates_and_is_exact(installed: Callable[..., str]) -> None:
    """A params file by its name, and a recording, after a compilation of its own."""
    preset = installed("python", "-c", "from mmlab.params import find_params; print(find_params('mthp_64k'))").strip()
    assert preset.endswith("mmlab/shipped/params/mthp_64k.yaml")
    assert "thps_split" in installed("mmlab", "simulate", preset, "--set", "memory_mib=2")
    code = "import mmlab; print(mmlab.__path__[0])"
    recording = Path(installed("python", "-c", code).strip(), "recordings", sorted(SHIPPED.glob("act-*"))[0].name)
    assert installed("mmlab", "compare", "--quiet", recording).startswith("traces exact 1/1")


def test_it_reports(installed: Callable[..., str]) -> None:
    """A notebook by its name, with a params file by its name and one of one's own, into the folder one is in."""
    preset = installed("python", "-c", "from mmlab.params import find_params; print(find_params('mthp_64k'))").strip()
    home = Path(installed("python", "-c", "import os; print(os.getcwd())").strip())
    (home / "mine.yaml").write_text(Path(preset).read_text() + "seed: 9\n")
    printed = installed(
        "mmlab", "report", "07_compare", "-p", "first=mthp_64k", "-p", "second=mine.yaml", "-o", "two.html"
    )
    assert printed == "two.html\n"
    page = (home / "two.html").read_text()
    assert re.search(r"<h1[^>]*>Two scenarios beside each other", page)
    assert "② mine, mainline" in page
    assert "This report is incomplete" not in page
    assert list((home / "two.data").glob("*.csv"))
