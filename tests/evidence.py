"""Write mmlab/spec/shown.yaml: what exercises each rule (recordings, worked examples), and the tests that cite it.

The reference model cites each rule where it acts. A recording (or a worked example) exercises a rule if predicting it
executes a line that cites the rule, or the first statement of a function or class whose docstring does. The smallest
recordings are named, and how many there are is counted. Predicting all of them takes some minutes:

    python tests/evidence.py
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coverage
import yaml

import reference
import worked_examples
from mmlab.spec.rules import HERE, citations, homes_in, resolve, rules

TESTS = Path(__file__).parent
RECORDINGS = sorted(TESTS.parent.glob("mmlab/recordings/*.json.gz"), key=lambda path: (path.stat().st_size, path.name))
NAMED = 3


def cited(text: str) -> set[str]:
    """Return the names of the whole rules that a text cites."""
    found = (resolve(" ".join(filter(None, pair))) for pair in citations(text))
    return {rule.name for rule in found if rule}


def citing_lines(source: str) -> dict[int, set[str]]:
    """Return {line that executes: rules} of a module: comments count for the code on or below them."""
    statements = sorted(node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt))
    lines: defaultdict[int, set[str]] = defaultdict(set)

    def below(line: int) -> int:
        return next((at for at in statements if at >= line), line)

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own = token.line.strip().startswith("#")
            lines[below(token.start[0]) if own else token.start[0]] |= cited(token.string)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            bodies = (
                [node]
                if isinstance(node, ast.FunctionDef)
                else [c for c in node.body if isinstance(c, ast.FunctionDef)]
            )
            for body in bodies:
                real = [s for s in body.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
                if real:
                    lines[real[0].lineno] |= cited(text)
    return lines


def exercised(lines: dict[int, set[str]], run: Callable[[], Any]) -> set[str]:
    """Return the rules whose citing lines are executed by `run`."""
    measured = coverage.Coverage(data_file=None, include=[reference.__file__], config_file=False)
    measured.start()
    try:
        run()
    finally:
        measured.stop()
    executed = set(measured.get_data().lines(reference.__file__) or ())
    return {rule for line in executed & lines.keys() for rule in lines[line]}


def tests_that_cite() -> Iterator[tuple[str, str]]:
    """Yield (rule, ``file::test``) for each test function whose docstring cites a rule."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for name, _, text in homes_in(path.read_text(encoding="utf-8")):
            if name.startswith("test_"):
                yield from ((rule, f"{path.relative_to(TESTS)}::{name}") for rule in cited(text))


def main() -> None:
    lines = citing_lines(Path(reference.__file__).read_text(encoding="utf-8"))
    recordings, examples, tests = (defaultdict[str, list[str]](list) for _ in range(3))
    for example in worked_examples.examples():
        name = example.name.split()[0].split("-")[0]
        for rule in exercised(lines, lambda example=example: reference.predict(example.trace)):
            if name not in examples[rule]:
                examples[rule].append(name)
    for number, path in enumerate(RECORDINGS, start=1):
        recorded = json.loads(gzip.decompress(path.read_bytes()))
        for rule in exercised(lines, lambda recorded=recorded: reference.predict(recorded)):
            recordings[rule].append(path.name.removesuffix(".json.gz"))
        print(f"\r{number} of {len(RECORDINGS)} recordings", end="", file=sys.stderr)
    for rule, test in tests_that_cite():
        tests[rule].append(test)
    notes = yaml.safe_load((HERE / "notes.yaml").read_text(encoding="utf-8"))
    found = {}
    for name in rules():
        by_hand = notes.get(name, {}).get("shown", [])
        own = {
            "recordings": [*(what for what in by_hand if what.startswith("recordings/")), *recordings[name][:NAMED]],
            "of": len(recordings[name]),
            "examples": list(dict.fromkeys([*(what for what in by_hand if what.isalnum()), *examples[name]])),
            "tests": list(dict.fromkeys([*(what for what in by_hand if "::" in what), *tests[name]])),
        }
        if kept := {key: value for key, value in own.items() if value}:
            found[name] = kept
    text = yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=120)
    (HERE / "shown.yaml").write_text(f"# Written by tests/evidence.py.\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
