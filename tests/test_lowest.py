"""The lowest versions that pyproject.toml allows: installed from the package index (`make nightly`), and of use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASKED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cluster"]]
TRIED = {
    "simulate": ["simulate", "params/mthp_64k.yaml", "--set", "memory_mib=2"],
    "report": ["report", "07_compare", "-p", "first=mthp_64k", "-p", "second=mthp_64k", "-o", "{}/page.html"],
    "sweep": ["sweep", "budget_and_thps", "-o", "{}/sweep", "--dry-run"],
    "tune": ["tune", "one_image", "--runs", "64", "--figure", "{}/front.png"],
}
EXPLORER = "import mmlab; mmlab.explore('mthp_64k')"


def lowest(requirement: str) -> str:
    """Return the lowest version that a requirement allows, as a pin."""
    found = re.match(r"([\w.-]+)>=([\w.]+)", requirement)
    assert found, f"{requirement}: no lower bound"
    return f"{found[1]}=={found[2]}"


def test_every_dependency_has_a_lower_bound() -> None:
    assert len({lowest(requirement) for requirement in ASKED}) == len(ASKED)


@pytest.mark.skipif("MMLAB_LOWEST" not in os.environ, reason="installs packages: MMLAB_LOWEST=1 (`make nightly`)")
def test_the_lowest_versions_work(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *map(lowest, ASKED), "--editable", ROOT], check=True)
    main = "from mmlab.cli import main; main()"
    commands = [["-c", main, *command] for command in TRIED.values()] + [["-c", EXPLORER]]
    for command in commands:
        filled = [argument.replace("{}", str(tmp_path)) for argument in command]
        done = subprocess.run([python, *filled], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "This report is incomplete" not in (tmp_path / "page.html").read_text(encoding="utf-8")
