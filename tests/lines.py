"""Count mmlab's lines of code, room by room, against their budgets: `make lines`.

A line of code is one that is left when blank lines, comments and docstrings are gone, as `ruff format` lays it out at
120 columns. Exit status 1 when a budget is exceeded.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = ("scenario.py", "variants.py", "policies.py", "kernel", "engine", "results")
BUDGETS = {"the model": 6350, "the shell": 3900, "host": 1800}
"""The model is scenario, variants, policies, kernel, engine and results; the shell is everything else but host."""
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Return the number of lines of code of a module."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "120", "--stdin-filename", "m.py", "-"],
        input=source,
        capture_output=True,
        text=True,
        check=True,
    )
    tokens = tokenize.generate_tokens(io.StringIO(done.stdout).readline)
    code = {line for t in tokens if t.type not in LAYOUT for line in range(t.start[0], t.end[0] + 1)}
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(ast.parse(done.stdout)) if isinstance(node, holders)]
    texts = [
        statement
        for body in bodies
        for statement in body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement.value.value, str)
    ]
    return len(code - {line for text in texts for line in range(text.lineno, (text.end_lineno or 0) + 1)})


def count() -> dict[str, dict[str, int]]:
    """Return {room: {module: lines of code}}, in the order of the folders."""
    rooms: dict[str, dict[str, int]] = {}
    for path in sorted((ROOT / "mmlab").rglob("*.py")):
        name = path.relative_to(ROOT / "mmlab")
        rooms.setdefault(name.parts[0], {})[name.as_posix()] = code_lines(path.read_text(encoding="utf-8"))
    return rooms


def totals(rooms: dict[str, dict[str, int]]) -> dict[str, int]:
    """Return the lines of each part that has a budget."""
    model = sum(sum(modules.values()) for room, modules in rooms.items() if room in MODEL)
    shell = sum(sum(modules.values()) for room, modules in rooms.items() if room not in (*MODEL, "host"))
    return {"the model": model, "the shell": shell, "host": sum(rooms["host"].values())}


def main() -> int:
    rooms = count()
    for room, modules in rooms.items():
        print(f"{room:34}{sum(modules.values()):7,}")
        for name, lines in modules.items() if len(modules) > 1 else ():
            print(f"  {name:32}{lines:7,}")
    print()
    found = totals(rooms)
    for part, lines in found.items():
        print(
            f"{part:34}{lines:7,} of at most {BUDGETS[part]:,}{'' if lines <= BUDGETS[part] else ': over the budget'}"
        )
    return int(any(lines > BUDGETS[part] for part, lines in found.items()))


if __name__ == "__main__":
    sys.exit(main())
