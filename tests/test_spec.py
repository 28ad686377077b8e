"""The specification that ships: every rule has a home or a reason, every citation resolves, everything named exists."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import mmlab
import worked_examples
from conftest import ROOT
from mmlab.cli import cli
from mmlab.errors import UserError
from mmlab.spec.rules import HERE, citations, homes_in, resolve, rule, rules, search

SECTIONS = {
    "ksm-scan": r"1\.[1-7]",
    "ksm-merge": r"2\.([1-9]|1[0-2])",
    "thp-split": r"3\.([1-9]|1[01])",
    "mthp": r"6\.[1-4]",
    "fix-variants": r"5\.[5-7]",
}
"""Sections may be cited, where a table without a number says it all (thp-split 3.6)."""
NOTES = yaml.safe_load((HERE / "notes.yaml").read_text(encoding="utf-8"))
SHOWN = yaml.safe_load((HERE / "shown.yaml").read_text(encoding="utf-8"))


def strays(text: str) -> list[str]:
    """What is cited but does not exist."""
    return [
        f"{file} {number}".strip()
        for file, number in citations(text)
        if not resolve(f"{file} {number}".strip()) and not re.fullmatch(SECTIONS.get(file, "-"), number)
    ]


def test_every_rule_has_a_home_or_a_reason() -> None:
    found = rules()
    assert len(found) == 194
    without = [name for name, r in found.items() if not r.homes and "follows" not in r.note]
    assert not without, "no docstring of a function or class cites these, and notes.yaml has no reason"
    both = [name for name, r in found.items() if r.homes and "follows" in r.note]
    assert not both, "notes.yaml says that these have no home"
    assert NOTES.keys() <= found.keys()
    assert SHOWN.keys() <= found.keys()
    modelled = [r for r in found.values() if not r.note.get("follows", "").startswith("not modelled")]
    unseen = [r.name for r in modelled if not r.shown]
    assert not unseen, "nothing shows these: run tests/evidence.py, or name a test in notes.yaml"


def test_every_citation_resolves() -> None:
    found = {}
    for path in [*sorted((ROOT / "mmlab").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]:
        for name, line, text in (
            homes_in(path.read_text(encoding="utf-8"))
            if path.name not in ("test_spec.py", "worked_examples.py")
            else ()
        ):
            if wrong := strays(text):
                found[f"{path.relative_to(ROOT)}:{line} {name}"] = wrong
    for path in [ROOT / "README.md", *sorted(HERE.glob("*.md")), *sorted((ROOT / "params").rglob("*.*"))]:
        named = [(file, number) for file, number in citations(path.read_text(encoding="utf-8")) if file]
        if wrong := [stray for file, number in named for stray in strays(f"{file} {number}")]:
            found[path.name] = wrong
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        named = [pair for cell in cells for pair in citations("".join(cell["source"])) if pair[0]]
        if wrong := [stray for file, number in named for stray in strays(f"{file} {number}")]:
            found[path.name] = wrong
    assert not found


@cache
def functions_of(name: str) -> frozenset[str]:
    paths = list((ROOT / "tests").rglob(Path(name).name))
    return frozenset(found for path in paths for found in re.findall(r"(?m)^def (test_\w+)", path.read_text()))


def test_what_shows_a_rule_exists() -> None:
    recordings = {path.name.removesuffix(".json.gz") for path in (ROOT / "mmlab" / "recordings").glob("*.json.gz")}
    for name, shown in SHOWN.items():
        for recording in shown.get("recordings", ()):
            pattern = recording.removeprefix("recordings/").replace("*", ".*")
            assert any(re.fullmatch(pattern, found) for found in recordings), (name, recording)
        assert set(shown.get("examples", ())) <= worked_examples.SETTINGS.keys(), name
        for test in shown.get("tests", ()):
            file, _, function = test.partition("::")
            assert function in functions_of(file), (name, test)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Fork (ksm-merge F4).", ["ksm-merge F4"]),
        ("As F4 and M5d have it; thp-split.md 3.6", ["ksm-merge F4", "ksm-merge M5"]),
        (
            "(ksm-scan S19, S22; thp-split H8.5,\n    Q1b and Z4, mthp E9)",
            ["ksm-scan S19", "ksm-scan S22", "thp-split H8", "thp-split Q1", "thp-split Z4", "mthp E9"],
        ),
        ("(fix-variants 5.1, 5.5.3)", ["fix-variants 5.1", "fix-variants 5.5.3"]),
        ("Linux 6.12, V0, Z460A52, X1, ab-F4, 5.1", []),
    ],
)
def test_what_counts_as_a_citation(text: str, names: list[str]) -> None:
    found = [resolve(f"{file} {number}".strip()) for file, number in citations(text)]
    assert [r.name for r in found if r] == names
    assert strays(text) == []


@pytest.mark.parametrize(
    "wrong",
    ["F9", "ksm-scan F4", "ksm-merge L1", "M5e", "M7.8", "F4a", "S0", "fix-variants 5.9", "thp-split 3.12", "mthp 1.1"],
)
def test_a_citation_of_nothing_is_found(wrong: str) -> None:
    assert strays(f"As there ({wrong}).") == [wrong]
    with pytest.raises(UserError) as error:
        rule(wrong)
    assert (error.value.parameter, error.value.value) == ("rule", wrong)


def test_a_part_of_a_rule() -> None:
    part, whole = rule("M5d"), rule("ksm-merge M5")
    assert part.text.startswith("d. **Same-THP rule.**")
    assert part.text in whole.text
    assert part.homes == whole.homes
    assert any("huge_memory.py" in home and home.endswith("deferred_split_scan") for home in rule("Q3.2").homes)
    assert rule("Z1.5").text.startswith("| 5 | this mm does not forbid zeropages")
    assert rule("khugepaged K1").text.startswith("One thread, nice 19.")


def test_in_a_notebook_and_on_the_command_line() -> None:
    shown = mmlab.rule("F2")
    assert "ksm-merge F2" in shown._repr_markdown_()
    assert "| mmlab | mmlab/kernel/memory.py:" in shown._repr_markdown_()
    run = CliRunner().invoke
    assert run(cli, ["rule", "M5d"]).output == f"{rule('M5d')}\n"
    assert run(cli, ["rule", "ksm-merge", "M5d"]).output == f"{rule('M5d')}\n"
    both = run(cli, ["rule", "F2", "thp-split", "Q4"]).output
    assert "ksm-merge F2 (" in both
    assert "thp-split Q4 (" in both
    listed = run(cli, ["rule", "--list"]).output.splitlines()
    assert len(listed) == 194
    assert [r.name for r in search("break_cow on both")] == ["ksm-merge M5"]
    assert run(cli, ["rule", "break_cow", "on", "both"]).output.startswith("ksm-merge M5 ")
