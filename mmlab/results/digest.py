"""Digests of files: of the model's source code, by which stored results are known to be this model's."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

__all__ = ["PACKAGE", "digest", "model_digest"]

PACKAGE = Path(__file__).parents[1]


@cache
def model_digest() -> str:
    """Return the SHA-256 of everything that decides a run's results, except for costs, which are data.

    These are the module of `simulate`, every module that it imports, directly or not, when it is loaded, and the
    version of numpy, whose generator draws the random numbers.
    """
    found, todo = set(), ["mmlab.engine.clock", "mmlab.results.run"]
    while todo:
        module = todo.pop()
        file = PACKAGE.parent.joinpath(*module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if module.startswith("mmlab.") and file.is_file() and file not in found:
            found.add(file)
            for node in ast.parse(file.read_bytes()).body:
                if isinstance(node, ast.Import):
                    todo += [name.name for name in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    todo += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return hashlib.sha256(f"{digest(PACKAGE, found)} numpy {metadata.version('numpy')}".encode()).hexdigest()


def digest(folder: Path, files: Iterable[Path]) -> str:
    """Return the SHA-256 of files: their paths within the folder and their bytes, in order of path."""
    total = hashlib.sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        if "__pycache__" not in name:
            content = file.read_bytes()
            total.update(f"{name}\0{len(content)}\0".encode())
            total.update(content)
    return total.hexdigest()
