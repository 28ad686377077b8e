"""Find a rule of the specification: its text, the code that implements it, and what shows that it holds.

A rule is named by its file and number (`ksm-merge M5d`); the number alone will do, since no two files use the same
letter. A rule's home is every function or class of mmlab whose docstring cites it. Two files beside this one say more:
`shown.yaml` says what shows a rule, and is written by `tests/evidence.py`, which follows the reference model through
the recordings and worked examples; `notes.yaml` is kept by hand and says why a rule has no home, and what a home
leaves out.

>>> print(rule("M5d"))  # doctest: +ELLIPSIS
ksm-merge M5d (2.1 Decision sequence)
...
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from mmlab.errors import UserError, unknown
from mmlab.params import read_yaml

HERE = Path(__file__).parent
FILES = ("ksm-scan", "ksm-merge", "thp-split", "khugepaged", "mthp", "fix-variants", "tuners", "kernel-7")
"""The files that state rules. The others explain: costs, trace-format, thread, worked-examples, README."""
NUMBER = r"(?:[A-Z]\d+(?:\.\d+|[a-z])?|\d\.\d+(?:\.\d+)?)"
CITATION = re.compile(rf"(?:\b({'|'.join(FILES)})(?:\.md)? |(?<![\w.-]))({NUMBER}(?:(?:, | and | to ){NUMBER})*)(?!\w)")
SECTION = re.compile(r"(?ms)^##? ((\S+)[^\n]*)\n(.*?)(?=^##? |\Z)")
"""Title, number and body of a section."""
STATED = {
    r"fix-variants 5\.[1-47]|kernel-7 7\.\d+": re.compile(r"(?s)\A()(.*)"),
    r"fix-variants 5\.5": re.compile(r"(?ms)^(\d+)\. (.*?)(?=^\d+\. |\Z)"),
    r".*": re.compile(r"(?ms)^([A-Z]\d+)\. (.*?)(?=^[A-Z]\d+\. |^#|\Z)"),
}
"""How rules are stated, by a pattern of file and section: as a section, or as the items of one, whose numbers follow
that of the section; anywhere as paragraphs that begin with their number."""
NEWER = re.compile(r"(?m)^\*\*((?:[A-Z]\d+[\w.]* )+).*(?:\n +.*)*")
"""A paragraph of kernel-7: the rules that it is about."""


@dataclass(frozen=True)
class Rule:
    """One rule, or a part of one.

    Attributes
    ----------
    file, number, section
        Where it stands: ``ksm-merge``, ``M5d``, ``2.1 Decision sequence``.
    text
        Markdown, as in the specification.
    whole
        Number of the rule that it is, or belongs to: homes and evidence are kept for whole rules.
    kernel
        Kernel functions that it names.
    note
        `follows`: why it has no home of its own; `leaves_out`: what its home does not model.
    shown
        What shows it: `recordings` (a few names), `of` (how many there are), `examples`, `tests`.
    """

    file: str
    number: str
    section: str
    text: str
    whole: str
    kernel: tuple[str, ...]
    note: dict[str, str]
    shown: dict[str, Any]

    @property
    def name(self) -> str:
        """File and number of the whole rule."""
        return f"{self.file} {self.whole}"

    @property
    def homes(self) -> list[str]:
        """``file:line function`` of each function and class of mmlab whose docstring cites the rule."""
        return _homes().get(self.name, [])

    def facts(self) -> dict[str, str]:
        """Everything beside the text, by its title; what kernel-7 says of the rule is how kernels after 6.12 differ."""
        paragraphs = NEWER.finditer((HERE / "kernel-7.md").read_text(encoding="utf-8"))
        newer = "\n".join(p[0].strip() for p in paragraphs if re.search(rf"\b{self.whole}(?!\d)", p[1]))
        versions = {*re.findall(r"\b[67]\.\d{1,2}(?:\.\d+)?\b", f"{self.text} {newer}")}
        told = ", ".join(sorted(versions, key=lambda v: [*map(int, v.split("."))]))
        shown, note = self.shown, self.note
        named = shown.get("recordings", ())
        more = f" and {shown['of'] - len(named):,} more" if shown.get("of", 0) > len(named) else ""
        found = {
            "kernel": ", ".join(self.kernel),
            "versions": told or "6.12.117; no difference known",
            "after 6.12": newer,
            "mmlab": "\n".join(self.homes) or note.get("follows", ""),
            "not modelled": note.get("leaves_out", ""),
            "recordings": ", ".join(named) + more,
            "examples": ", ".join(shown.get("examples", ())),
            "tests": "\n".join(shown.get("tests", ())),
        }
        return {title: text for title, text in found.items() if text}

    def __str__(self) -> str:
        facts = [f"{title:13}{text.replace(chr(10), chr(10) + ' ' * 13)}" for title, text in self.facts().items()]
        return "\n".join([f"{self.file} {self.number} ({self.section})", "", self.text, "", *facts])

    def _repr_markdown_(self) -> str:
        facts = "\n".join(f"| {title} | {text.replace(chr(10), '<br>')} |" for title, text in self.facts().items())
        return f"**{self.file} {self.number}** ({self.section})\n\n{self.text}\n\n| | |\n|---|---|\n{facts}\n"


@cache
def rules() -> dict[str, Rule]:
    """Return every whole rule by its file and number, in the order of the specification."""
    notes, shown = (read_yaml(HERE / f"{name}.yaml") for name in ("notes", "shown"))
    out = {}
    for file in FILES:
        for title, number, text in _stated(file):
            kernel = re.findall(r"\(`([a-z_]\w*_\w+)", text) + re.findall(r"`([a-z_]\w*_\w+)", title)
            words = re.sub(r"\s*\(?`[^`]*`[^)]*\)?,?", "", title).strip()
            name = f"{file} {number}"
            about = notes.get(name, {}), shown.get(name, {})
            out[name] = Rule(file, number, words, text.strip(), number, tuple(dict.fromkeys(kernel)), *about)
    return out


def _stated(file: str) -> Iterator[tuple[str, str, str]]:
    """Yield (title of the section, number, text) of each rule of a file."""
    for title, section, body in SECTION.findall((HERE / f"{file}.md").read_text(encoding="utf-8")):
        for place, stated in STATED.items():
            if re.fullmatch(place, f"{file} {section}"):
                for number, text in stated.findall(body):
                    yield title, number if number[:1].isalpha() else f"{section}.{number}".strip("."), text


def resolve(citation: str) -> Rule | None:
    """Return the rule, or the part of a rule, that a citation such as ``ksm-merge M5d`` or ``M5d`` names, if any."""
    match = re.fullmatch(rf"(?:({'|'.join(FILES)})(?:\.md)? )?({NUMBER})", citation.strip())
    if not match:
        return None
    file, number = match.groups()
    by_number = {r.number: r for r in rules().values() if file in (None, r.file)}
    whole, part = re.findall(r"(.*?)\.?(\d+|[a-z])$", number)[0]
    found = by_number.get(whole)
    if number in by_number or not found:
        return by_number.get(number)
    item = re.search(rf"(?ms)^( *){part}\. .*?(?=^\1(?:\d+|[a-z])\. |\Z)|^\| {part} \| [^\n]*", found.text)
    text = item[0].strip() if item else found.text
    return replace(found, number=number, text=text) if item or f"({part})" in text else None


def rule(citation: str) -> Rule:
    """Return a rule of the specification, or a part of one.

    Parameters
    ----------
    citation
        ``ksm-merge M5d``, or the number alone.

    Raises
    ------
    UserError
        There is no such rule.
    """
    found = resolve(citation)
    if found is None:
        known = [name for r in rules().values() for name in (r.number, r.name)]
        raise unknown("rule", citation, known, "`mmlab rule --list` lists all.")
    return found


def search(words: str) -> list[Rule]:
    """Return the rules whose text or section has these words, whatever their case.

    Raises
    ------
    UserError
        None has.
    """
    found = [r for r in rules().values() if words.lower() in f"{r.section} {r.text} {' '.join(r.kernel)}".lower()]
    if not found:
        raise UserError("no rule has these words", parameter="rule", value=words, hint="`mmlab rule --list` lists all.")
    return found


def citations(text: str) -> Iterator[tuple[str, str]]:
    """Yield (file or "", number) of everything in a text that reads like a citation of a rule or a section."""
    letters = {r.number[0] for r in rules().values() if r.number[0].isalpha()}
    for file, numbers in CITATION.findall(" ".join(text.split())):
        for number in re.findall(NUMBER, numbers):
            if file or number[0] in letters:
                yield file, number


def homes_in(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield (qualified name, line, docstring) of the module (whose name is empty), its functions and classes."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, int, str]]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield name, getattr(node, "lineno", 1), text
        for child in ast.iter_child_nodes(node):
            own = child.name if isinstance(child, ast.ClassDef | ast.FunctionDef) else ""
            yield from walk(child, ".".join(filter(None, (name, own))))

    yield from walk(ast.parse(source), "")


@cache
def _homes() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted({*HERE.parent.rglob("*.py")} - {*HERE.glob("*.py"), HERE.parent / "cli.py"}):
        for name, line, text in homes_in(path.read_text(encoding="utf-8")):
            cited = [resolve(" ".join(filter(None, pair))) for pair in citations(text) if name]
            for rule_name in dict.fromkeys(rule.name for rule in cited if rule):
                found.setdefault(rule_name, []).append(f"{path.relative_to(HERE.parents[1])}:{line} {name}")
    return found
