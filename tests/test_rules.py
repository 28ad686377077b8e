"""Where each rule of the specification lives, and that none is without a home.

A rule's home is a function or a class whose docstring names it, by file and number (`ksm-merge F4`) or by the number
alone (`F4`), since no two files of the specification use the same letter. A part of a rule may be named too (`M5d`,
`M7.5`). Rules of fix-variants have no letter and are named with the file. What docstrings of modules name is checked,
but is no home: a rule is found where it acts.

`python tests/test_rules.py` prints the table, `python tests/test_rules.py F4 E9` these rows of it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

RULES = {
    "ksm-scan": "S1–S32",
    "ksm-merge": "M1–M15 D1–D9 T1–T7 U1–U4 B1 C1–C5 R1–R4 F1–F8",
    "thp-split": "H1–H13 Z1–Z5 Q1–Q5 G1–G3 W1–W7",
    "khugepaged": "K1–K11 P1–P7",
    "mthp": "E1–E18",
    "fix-variants": "5.1–5.4 5.5.1–5.5.7",
}
PARTS = """
    S1.1–S1.4 S7.1–S7.3 S10.1–S10.5 S25.1–S25.6 M1a–M1c M2a–M2b M3a–M3b M4a–M4d M5a–M5d M7.1–M7.7 U2.1–U2.5
    H8.1–H8.5 Z1.1–Z1.7 Q1a–Q1b Q3.1–Q3.4
"""
"""Parts of rules that have numbers or letters of their own."""
SECTIONS = {
    "ksm-scan": "1.1–1.7",
    "ksm-merge": "2.1–2.12",
    "thp-split": "3.1–3.11",
    "mthp": "6.1–6.4",
    "fix-variants": "5.5–5.6",
}
"""Sections may be named, where a table without a number says it all (thp-split 3.6)."""

# What has no function of its own: why, and what shows it (worked examples, tests, recordings)
LEFT_OUT = {
    "ksm-scan S8": ("follows from S7 and S18", "W6 X1"),
    "ksm-scan S24": ("follows from S20 and S21: an item belongs to an address", "test_rules.py::test_items_outlive"),
    "ksm-scan S26": ("follows from S25", "W12"),
    "ksm-scan S27": ("follows from S25", "W12 X1"),
    "ksm-merge M6": ("follows from M5 and H7", "W2 test_variants.py::test_regression_2"),
    "ksm-merge M11": ("follows from M3 to M5, M7 and Z1", "W1 W2 W9 W10 test_variants.py::test_split_by_ksmd"),
    "ksm-merge M12": ("follows from Z3", "test_variants.py::test_regression_1"),
    "ksm-merge D4": ("follows from D2 and U1", "W7 W11 test_kernel.py::test_rbtree_has_the_reference_shape"),
    "ksm-merge D5": ("follows from M5, D2 and Z1", "W2 X2"),
    "ksm-merge D6": ("the observation that D5 explains", "X2 test_variants.py::test_regression_2"),
    "ksm-merge D7": ("follows from M3, D2 and Z1", "W1 X1 test_variants.py::test_regression_1"),
    "ksm-merge D8": ("follows from M4", "W9"),
    "ksm-merge D9": ("follows from M5", "W10 test_variants.py::test_one_stray_zero_page_cures_the_pace"),
    "ksm-merge T7": ("follows from T3 to T6", "W5 X4 test_variants.py::test_regression_2"),
    "khugepaged P1": ("follows from K4 and Z1", "test_daemons.py::test_khugepaged_collapses_what_ksmd_split"),
    "khugepaged P2": ("follows from K4, K9 and M7", "recordings/live618-khugepaged-pingpong-*"),
    "khugepaged P3": ("follows from K1, S23 and S25", "recordings/live618-khugepaged-pingpong-*"),
    "khugepaged P4": ("follows from K4", "recordings/live618-khugepaged-none* recordings/live618-khugepaged-shared*"),
    "khugepaged P5": ("follows from K4 and Q4", "test_rules.py::test_shrinker_and_khugepaged_agree"),
    "khugepaged P6": ("follows from K6", "test_rules.py::test_collapse_of_zeropages_placed_by_ksmd"),
    "khugepaged P7": ("follows from K1", "test_daemons.py::test_khugepaged_sleeps_whole_ticks"),
    "mthp E2": ("not modelled: no scenario enables a size below the THP for faults", ""),
    "mthp E14": (
        "follows from E13, D5, D7 and D9",
        "recordings/mthp-all-zero-* recordings/mthp-rate-* recordings/mthp-stray-*",
    ),
    "mthp E15": ("follows from E12 and Z1", "recordings/mthp-dups-*"),
    "fix-variants 5.2": ("follows from 5.1", "test_variants.py::test_split_by_ksmd"),
    "fix-variants 5.3": (
        "what 5.1 comes to",
        "test_variants.py::test_regression_1 test_variants.py::test_regression_2",
    ),
    "fix-variants 5.4": (
        "follows from 5.1",
        "test_variants.py::test_predicate test_variants.py::test_split_from_outside",
    ),
    "fix-variants 5.5.1": ("a check", "test_variants.py::test_run_and_knob_are_read_at_the_split"),
    "fix-variants 5.5.2": ("a check", "test_variants.py::test_unmergeable_memory_is_remapped"),
    "fix-variants 5.5.3": ("a check", "test_rules.py::test_the_knob_at_queueing_and_at_the_split"),
    "fix-variants 5.5.4": ("a check", "test_rules.py::test_nothing_is_underused_by_default"),
    "fix-variants 5.5.5": ("a check", "test_variants.py::test_locked_memory_is_never_remapped"),
    "fix-variants 5.5.6": ("a check", "test_variants.py::test_split_of_forked_memory"),
    "fix-variants 5.5.7": ("a check", "test_variants.py::test_use_zero_pages_switched_off_in_mid_pass"),
}

NOT_MODELLED = {
    "ksm-scan S1": "memory hot-remove, the freezer",
    "ksm-scan S12": "exec",
    "ksm-scan S13": "VMAs that are not private and anonymous",
    "ksm-scan S16": "an allocation that fails",
    "ksm-merge M4": "a page that somebody else has locked",
    "ksm-merge M5": "an allocation that fails",
    "ksm-merge M7": "a page that somebody else has locked, file pages",
    "ksm-merge R2": "a signal",
    "ksm-merge R3": "mremap",
    "thp-split H1": "THPs without MADV_HUGEPAGE, use_zero_page=0",
    "thp-split H7": "writeback, an anon_vma that is gone",
    "thp-split Z1": "device memory",
    "thp-split Z2": "soft-dirty and uffd-wp bits of entries",
    "thp-split Q1": "a queue for each memory cgroup or NUMA node: there is one",
    "thp-split G1": "a full scan that comes into the middle of a migration",
    "khugepaged K2": "another order than that of birth",
    "khugepaged K3": "THPs without MADV_HUGEPAGE",
    "khugepaged K4": "entries with the uffd-wp mark, pages that somebody else has locked",
    "khugepaged K6": "an allocation that fails",
}
"""What a home leaves out of its rule."""


def ranged(text: str) -> Iterator[str]:
    """`S1–S3 B1 M5a–M5c` one by one."""
    for item in text.split():
        first, _, last = item.partition("–")
        head, tail = re.fullmatch(r"(.*?)(\d+|[a-z])", first).groups()  # type: ignore[union-attr]
        end = last.removeprefix(head) or tail
        if tail.isdigit():
            yield from (f"{head}{n}" for n in range(int(tail), int(end) + 1))
        else:
            yield from (f"{head}{chr(n)}" for n in range(ord(tail), ord(end) + 1))


FILE_OF = {number: file for file, text in RULES.items() for number in ranged(text)}
ALL = [f"{file} {number}" for number, file in FILE_OF.items()]
LETTERS = {file: {number[0] for number in ranged(text) if number[0].isalpha()} for file, text in RULES.items()}
KNOWN_PARTS = set(ranged(PARTS))
NUMBER = r"(?:[A-Z]\d+(?:\.\d+|[a-z])?|\d\.\d+(?:\.\d+)?)"
MENTION = re.compile(
    rf"(?:\b({'|'.join(RULES)})(?:\.md)? |(?<![\w.-]))({NUMBER}(?:(?:, | and | to ){NUMBER})*)(?!\w)",
)


def mentions(docstring: str) -> Iterator[tuple[str, str]]:
    """(file or "", number) of what reads like a rule or a section."""
    for file, numbers in MENTION.findall(" ".join(docstring.split())):
        for number in re.findall(NUMBER, numbers):
            if file or any(number[0] in letters for letters in LETTERS.values()):
                yield file, number


def rule_of(file: str, number: str) -> str | None:
    """The rule that is meant: "" for a section, None if there is no such thing."""
    if number in ranged(SECTIONS.get(file, "")):
        return ""
    whole = number if number in FILE_OF else re.sub(r"(?<=\d)(\.\d+|[a-z])$", "", number)
    if whole not in FILE_OF or (file and FILE_OF[whole] != file) or (number != whole and number not in KNOWN_PARTS):
        return None
    return f"{FILE_OF[whole]} {whole}"


def docstrings(source: str) -> Iterator[tuple[str, int, str]]:
    """(qualified name, line, docstring) of a module, whose name is empty, and of its functions and classes."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, int, str]]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield name, getattr(node, "lineno", 1), text
        for child in ast.iter_child_nodes(node):
            own = getattr(child, "name", None) if isinstance(child, ast.ClassDef | ast.FunctionDef) else None
            yield from walk(child, ".".join(filter(None, (name, own))))

    yield from walk(ast.parse(source), "")


def find(sources: Mapping[str, str]) -> tuple[dict[str, list[str]], list[str]]:
    """{rule: its homes}, and a line for each mention of what does not exist; `sources` are {path: text}."""
    homes: dict[str, list[str]] = defaultdict(list)
    strays = []
    for path, source in sources.items():
        for name, line, text in docstrings(source):
            for file, number in mentions(text):
                rule = rule_of(file, number)
                home = f"{path}:{line} {name}".rstrip()
                if rule is None:
                    strays.append(f"{home}: there is no rule {f'{file} {number}'.strip()}")
                elif rule and name and home not in homes[rule]:
                    homes[rule].append(home)
    return homes, strays


def complaints(sources: Mapping[str, str], left_out: Mapping[str, tuple[str, str]]) -> list[str]:
    """A line for each rule that has no home, has one and is left out too, or does not exist."""
    homes, found = find(sources)
    found += [f"{rule}: left out, but there is no such rule" for rule in left_out if rule not in ALL]
    for rule in ALL:
        if rule in left_out and homes[rule]:
            found.append(f"{rule}: left out, but {', '.join(homes[rule])} names it")
        if rule not in left_out and not homes[rule]:
            found.append(f"{rule}: no docstring of a function or class names it")
    for rule, (reason, shown) in left_out.items():
        found += [f"{rule}: {what} is not there" for what in shown.split() if not exists(what)]
        if not (shown or reason.startswith("not modelled: ")):
            found.append(f"{rule}: left out, but nothing shows it")
    return found


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))


def exists(what: str) -> bool:
    """A worked example, `file.py::test` or the pattern of a recording's name."""
    import worked_examples

    if what.startswith("recordings/"):
        return any((ROOT / "mmlab").glob(what))
    file, _, name = what.partition("::")
    if not name:
        return what in worked_examples.SETTINGS
    return (ROOT / "tests" / file).exists() and name in functions(ROOT / "tests" / file)


def package() -> dict[str, str]:
    return {str(p.relative_to(ROOT)): p.read_text() for p in sorted((ROOT / "mmlab").rglob("*.py"))}


def table(wanted: list[str]) -> str:
    """A line a rule: where it lives, or why it does not; all of them if none is asked for."""
    homes, _ = find(package())
    lines = []
    for rule in ALL:
        if not wanted or rule in wanted or rule.split()[1] in wanted:
            reason, shown = LEFT_OUT.get(rule, ("", ""))
            shown = ", ".join(f"worked example {what}" if what.isalnum() else what for what in shown.split())
            where = homes[rule] or [f"- {reason}" + f"; shown by {shown}" * bool(shown)]
            where += [f"- not modelled: {NOT_MODELLED[rule]}"] if rule in NOT_MODELLED else []
            lines.append(f"{rule:18} " + "\n".ljust(20).join(where))
    return "\n".join(lines)


# --- the tests ------------------------------------------------------------------------------------------------------


def test_every_rule_has_a_home() -> None:
    print(table([]))
    assert not complaints(package(), LEFT_OUT)
    assert set(NOT_MODELLED) <= set(ALL) - set(LEFT_OUT)


def test_no_letter_is_of_two_files() -> None:
    assert len(FILE_OF) == sum(1 for text in RULES.values() for _ in ranged(text)) == len(ALL)
    letters = [letter for found in LETTERS.values() for letter in found]
    assert len(letters) == len(set(letters))


def function(docstring: str, name: str = "f") -> str:
    return f'def {name}():\n    """{docstring}"""\n'


@pytest.mark.parametrize(
    ("docstring", "rules"),
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
def test_what_counts_as_a_mention(docstring: str, rules: list[str]) -> None:
    homes, strays = find({"m.py": function(docstring)})
    assert (sorted(homes), strays) == (sorted(rules), [])


@pytest.mark.parametrize(
    "wrong",
    ["F9", "ksm-scan F4", "ksm-merge L1", "M5e", "M7.8", "F4a", "S0", "fix-variants 5.9", "thp-split 3.12", "mthp 1.1"],
)
def test_a_rule_that_does_not_exist_is_reported(wrong: str) -> None:
    for text in (function(f"As there ({wrong})."), f'"""As there ({wrong})."""'):
        _, strays = find({"m.py": text})
        assert len(strays) == 1 and strays[0].endswith(f": there is no rule {wrong}")


def test_each_fault_is_reported() -> None:
    sources = {"m.py": function("\n".join(rule for rule in ALL if rule not in LEFT_OUT))}
    assert complaints(sources, LEFT_OUT) == []
    assert complaints({"m.py": sources["m.py"].replace("ksm-merge F4\n", "")}, LEFT_OUT) == [
        "ksm-merge F4: no docstring of a function or class names it"
    ]
    of_a_module = {"m.py": sources["m.py"].replace("ksm-merge F4\n", ""), "n.py": '"""Fork (ksm-merge F4)."""'}
    assert complaints(of_a_module, LEFT_OUT) == ["ksm-merge F4: no docstring of a function or class names it"]
    twice = sources | {"n.py": "class C:\n    " + function("(M6)").replace("\n", "\n    ")}
    assert complaints(twice, LEFT_OUT) == ["ksm-merge M6: left out, but n.py:2 C.f names it"]
    fakes = {
        "ksm-merge F99": ("why", "W1"),
        "ksm-merge M6": ("why", "W13 test_rules.py::test_nothing recordings/no-*"),
        "ksm-merge M12": ("why", ""),
    }
    assert complaints(sources, LEFT_OUT | fakes) == [
        "ksm-merge F99: left out, but there is no such rule",
        "ksm-merge M6: W13 is not there",
        "ksm-merge M6: test_rules.py::test_nothing is not there",
        "ksm-merge M6: recordings/no-* is not there",
        "ksm-merge M12: left out, but nothing shows it",
    ]


# --- rules that follow from others, and that no other test shows ------------------------------------------------------
# Two THPs of 8 pages, 6 of them zero-filled; ksmd's first full scan ends with batch 2, each further one takes two.


def two_thps(*events: dict[str, Any], **fields: Any) -> Any:
    import test_variants

    return test_variants.two_thps(*events, **fields)


def letters(run: Any) -> str:
    return str(run.page_map().tobytes().decode())


def part(op: str, **fields: Any) -> dict[str, Any]:
    return {"op": op, "page": 0, "count": 8} | fields


def knob(name: str, value: int | str) -> dict[str, Any]:
    return {"op": "set", "knob": name, "value": value}


def test_items_outlive() -> None:
    """ksm-scan S24: a split, a collapse, a migration, and swapping if the page is back before ksmd's next visit."""

    def ages(*events: dict[str, Any]) -> list[int]:
        unique = {"pages": 16, "contents": [[1, 16, 1]], "thp": [[0, 16]]}
        run = two_thps(*events, process_list=[unique], swap_mib=1, horizon_batches=6)
        assert run.results == [0] * len(events)
        return list(run.machine.pte["age"].tolist())

    assert ages() == [3] * 16
    assert ages(part("split"), part("collapse"), part("migrate"), part("split")) == [3] * 16
    out, back = part("pageout"), part("read")
    assert ages(out, back) == [3] * 16
    assert ages(out, back | {"after": {"batch": 4}}) == [1] * 8 + [4] * 8  # two short full scans without them


@pytest.mark.parametrize(("max_ptes_none", "split"), [(5, True), (6, False)])
def test_shrinker_and_khugepaged_agree(max_ptes_none: int, split: bool) -> None:
    """khugepaged P5: what one makes the other does not undo."""
    shrink, scan = {"op": "shrink", "count": 10}, {"op": "khugepaged", "full_scans": 1}
    fields = {"variant": "mainline", "max_ptes_none": max_ptes_none, "run": 0, "after": {"batch": 0}, "mergeable": []}
    shrunk = two_thps(shrink, scan, **fields)
    assert letters(shrunk) == ("ZZZZZZAA" if split else "HHHHHHHH") * 2
    collapsed = two_thps({"op": "split_all"}, scan, shrink, **fields)
    assert letters(collapsed) == ("ZZZZZZAA" if split else "HHHHHHHH") * 2


def test_collapse_of_zeropages_placed_by_ksmd() -> None:
    """khugepaged P6"""
    collapse = part("khugepaged", full_scans=1)
    del collapse["page"], collapse["count"]
    run = two_thps(collapse, variant="legacy", use_zero_pages=1, after={"batch": 3}, horizon_batches=3)
    before, after = run.rows[-2], run.rows[-1]
    assert (before["ksm_zero_pages"], after["ksm_zero_pages"]) == (12, 0)
    assert after["anon_pages"] - before["anon_pages"] == 12 and letters(run) == "H" * 16


@pytest.mark.parametrize(
    ("variant", "freed"),
    [("mainline", 12), ("ksm-opt-out", 12), ("v1-shrinker-gate", 0), ("v1-series", 0), ("legacy", 0)],
)
def test_the_knob_at_queueing_and_at_the_split(variant: str, freed: int) -> None:
    """fix-variants 5.5.3: THPs that were queued before `shrink_underused` was switched off are split all the same."""
    off = knob("shrink_underused", 0), knob("max_ptes_none", 0), {"op": "shrink", "count": 10}
    run = two_thps(*off, variant=variant, run=0, after={"batch": 0}, mergeable=[])
    assert run.rows["thp_underused_split_page"][-1] == 2
    assert 16 - run.rows["frames"][-1] == freed and letters(run) == ("ZZZZZZAA" if freed else "AAAAAAAA") * 2


@pytest.mark.parametrize("variant", ["legacy", "mainline", "rfc-underused-only", "v1-series"])
def test_nothing_is_underused_by_default(variant: str) -> None:
    """fix-variants 5.5.4"""
    run = two_thps({"op": "shrink", "count": 10}, variant=variant, run=0, after={"batch": 0}, mergeable=[])
    assert run.scenario.max_ptes_none == 511 and letters(run) == "H" * 16
    assert run.rows["thp_underused_split_page"][-1] == run.rows["deferred_queue_len"][-1] == 0


if __name__ == "__main__":
    print(table(sys.argv[1:]))
