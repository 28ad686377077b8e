"""What stands around the library: the READMEs, CITATION.cff, CHANGELOG.md, and what a CI machine runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import bench
import mmlab
from conftest import ROOT
from mmlab.cli import cli
from mmlab.params import find_params
from mmlab.scenario import flat_fields

PARAMS = sorted((ROOT / "params").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# -- README ---------------------------------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 160
    headings = {
        re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.removeprefix("#") in headings if target.startswith("#") else (ROOT / target).exists(), target


def test_the_readme_has_every_notebook() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+\?) \|$", README, re.MULTILINE))
    assert set(rows) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert len(set(rows.values())) == len(rows)


@pytest.mark.parametrize("line", re.findall(r"^    (m[a-z]+ .+)$", README, re.MULTILINE))
def test_the_readmes_commands_exist(line: str) -> None:
    """Their subcommands, targets, options, files, parameters and goals."""
    program, name, *words = shlex.split(line, comments=True)
    if program == "make":
        assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    command = cli.commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    for word, value in zip(words, [*words[1:], ""], strict=True):
        assert not word.startswith("-") or word in known, word
        assert "/" not in word or (ROOT / word).exists(), word
        if word in ("--set", "-p"):
            assert value.partition("=")[0] in flat_fields(), value
        if word == "-f":
            find_params(value)


def test_the_readmes_python_runs() -> None:
    (code,) = re.findall(r"^```python\n(.+?)^```$", README, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["run"].samples) > 100
    assert names["run"].metrics.freed_rate > 0


def test_benchmarks_are_written_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part replaces its own section and leaves the others; columns become code, tables of Markdown stay."""
    monkeypatch.setattr(bench, "WRITTEN", tmp_path / "benchmarks.md")
    bench.write("tune", "one")
    bench.write("model", "two")
    bench.write("tune", bench.as_markdown("name    s\nrun     2\n\n| a | b |\n|---|---|\n"))
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["model", "tune"]
    assert text.startswith(bench.HEAD)
    assert "one" not in text.removeprefix(bench.HEAD)
    assert "```\nname    s\nrun     2\n```\n\n| a | b |" in text
    assert re.search(r" CPUs, Python 3\.\d+\.\d+, \d{4}-\d\d-\d\d, commit \w+", bench.about())
    there = (ROOT / "reports" / "benchmarks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\w+)$", there, re.MULTILINE)) <= bench.PARTS.keys()


# -- params ---------------------------------------------------------------------------------------------------------


def test_the_readme_of_params_explains_every_file() -> None:
    text = (ROOT / "params" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", text, re.MULTILINE))
    assert set(rows) == {path.name for path in PARAMS}
    assert all(len(words) > 15 for words in rows.values())
    assert len(set(rows.values())) == len(rows)
    for command in re.findall(r"^    (?:mmlab|papermill) .+$", text, re.MULTILINE):
        for path in re.findall(r"(?:notebooks|params)/[\w./]+", command):
            assert (ROOT / path).is_file(), command


@pytest.mark.parametrize("path", [*PARAMS, *(ROOT / "params" / "upgrade").glob("*.yaml")], ids=lambda path: path.stem)
def test_every_params_file_says_what_to_watch(path: Path) -> None:
    """Below the line for editors: a title, a blank line, a text, and in it what to watch."""
    header = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("#"):
            break
        header.append(line[1:].strip())
    title, blank, *text = header
    assert title.endswith((".", "?")) or re.search(r"[.?*)]$", title), title
    assert blank == ""
    assert re.search(r"^Watch: \S", "\n".join(text), re.MULTILINE)


# -- citation and changelog -----------------------------------------------------------------------------------------

CFF_KEYS = set(
    """abstract authors cff-version commit contact date-released doi identifiers keywords license license-url message
    preferred-citation references repository repository-artifact repository-code title type url version""".split()
)
"""All that version 1.2.0 of the Citation File Format knows."""


def test_citation() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"authors", "cff-version", "message", "title", "abstract", "keywords"} <= set(cited) <= CFF_KEYS
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["version"] == mmlab.__version__
    assert cited["license"] == PROJECT["license"] == "MIT"
    assert cited["authors"] == PROJECT["authors"] == [{"name": "mmlab developers"}]
    assert all(isinstance(cited[key], str) and cited[key] for key in ("title", "message", "abstract"))
    assert len(cited["keywords"]) == len(set(cited["keywords"])) > 0


def test_changelog_has_this_version() -> None:
    """Keep a Changelog: newest first, a date or "unreleased" each, and only its kinds of changes."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)", head) for head in heads]
    assert heads
    assert all(versions), heads
    found = [(match[1], match[2]) for match in versions if match]
    assert found[0][0] == mmlab.__version__
    assert all(when != "unreleased" for _, when in found[1:])
    dates = [date.fromisoformat(when) for _, when in found if when != "unreleased"]
    assert dates == sorted(dates, reverse=True)
    kinds = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    section = text.split("\n## ")[1]
    assert len(re.findall(r"^- ", section, re.MULTILINE)) >= 5


# -- what a CI machine runs -----------------------------------------------------------------------------------------


def test_ci_runs_the_readmes_test_command(tmp_path: Path) -> None:
    """Chromium is installed where it is missing and can be; without it the tests are run all the same."""
    assert "    make test " in (ROOT / "README.md").read_text(encoding="utf-8")

    def run(present: str, user: int, apt: int | None) -> tuple[list[str], str]:
        """Under stand-ins for the commands: what was called in order, and what was said."""
        folder = tmp_path / f"{present}-{user}-{apt}"
        folder.mkdir()
        for name in ("bash", "dirname"):
            (folder / name).symlink_to(shutil.which(name) or "")
        log = f'echo "${{0##*/}} $*" >> "{folder}/log"\n'
        stubs = {"make": log, "id": f"echo {user}\n", present: ""} | (
            {} if apt is None else {"apt-get": log + f"exit {apt}\n"}
        )
        for name, body in stubs.items():
            (folder / name).write_text(f"#!{shutil.which('bash')}\n{body}")
            (folder / name).chmod(0o755)
        environment = {"PATH": str(folder), "HOME": str(tmp_path)}
        done = subprocess.run(
            [ROOT / ".ci" / "run"], cwd="/", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return (folder / "log").read_text().splitlines(), done.stderr

    install = ["apt-get -qq update", "apt-get -qq install --no-install-recommends chromium"]
    assert run("other", 0, 0) == ([*install, "make test"], "")
    for present in ("chromium", "chromium-browser", "google-chrome"):
        assert run(present, 0, 0) == (["make test"], ""), "there is one"
    assert run("other", 1000, 0) == (["make test"], ""), "who is not root cannot"
    for apt in (100, None):
        calls, said = run("other", 0, apt)
        assert calls[-1] == "make test"
        assert "the browser tests will be skipped" in said
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# -- what a new machine installs ------------------------------------------------------------------------------------


def test_the_oldest_python_named_can_install_every_pin() -> None:
    """Every pinned package that is installed here admits the oldest Python of `requires-python`."""
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert oldest == "3.11"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    refused, absent = {}, []
    for name, version in pins.items():
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        assert about["Version"] == version, name
        if not SpecifierSet(about.get("Requires-Python", "")).contains(f"{oldest}.0"):
            refused[name] = about["Requires-Python"]
    assert not refused
    assert len(absent) < len(pins) / 10, absent
