"""What a report was made of: the library's version and source, everything that computes and draws, and how exact it is.

Nothing of the day, the machine or the folder is in here: the same installation gives the same provenance anywhere.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import mmlab
from mmlab.params import shipped_folder

__all__ = [
    "Exactness",
    "Provenance",
    "exactness",
    "ingredients",
    "model_digest",
    "provenance",
    "source_digest",
    "versions",
]

PACKAGE = Path(__file__).parents[1]
RECORDINGS = PACKAGE / "recordings"
PARTS = """
    numba llvmlite numpy pandas pyarrow matplotlib seaborn pillow ipython papermill nbconvert Jinja2 mistune Pygments
    beautifulsoup4
""".split()
"""Packages that the bytes of a report depend on."""
IMPORT = re.compile(r"^(?:from (mmlab[\w.]*) import (\([^)]*\)|.*)|import (mmlab[\w.]*))", re.MULTILINE)
"""What a module of mmlab imports at its top level: a module, names from it; or a module alone."""


@dataclass(frozen=True)
class Exactness:
    """How many of the recorded traces that ship with mmlab it predicts, in full and in their parts."""

    traces: int
    traces_exact: int
    samples: int
    samples_exact: int
    maps: int
    maps_exact: int
    frames: int
    frames_exact: int

    def __str__(self) -> str:
        """
        Examples
        --------
        >>> print(Exactness(2, 2, 50, 50, 4, 4, 3, 3))
        2 of 2 traces predicted exactly: 50 of 50 samples, 4 of 4 page maps, 3 of 3 counts of frames
        """
        return (
            f"{self.traces_exact:,} of {self.traces:,} traces predicted exactly: {self.samples_exact:,} of "
            f"{self.samples:,} samples, {self.maps_exact:,} of {self.maps:,} page maps, {self.frames_exact:,} of "
            f"{self.frames:,} counts of frames"
        )


@dataclass(frozen=True)
class Provenance:
    """What the last section of a report says of the software; see :func:`provenance`."""

    version: str
    source: str
    versions: dict[str, str]
    exactness: Exactness


def provenance(jobs: int = 1) -> Provenance:
    """Of this installation; takes a few seconds: every shipped trace is predicted and compared, on ``jobs`` cores."""
    return Provenance(mmlab.__version__, source_digest(), versions(), exactness(jobs))


@cache
def exactness(jobs: int = 1) -> Exactness:
    """Predict every trace that ships with mmlab, with the library as it is now, and compare."""
    traces = sorted(RECORDINGS.glob("*.json.gz"))
    counts = [asdict(Exactness(*found)).values() for found in _compared(traces, jobs)]
    return Exactness(*map(sum, zip(*counts, strict=True)))


def _compared(traces: list[Path], jobs: int) -> Iterator[tuple[int, ...]]:
    if jobs == 1:
        yield from map(_compare, traces)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_compare, traces, chunksize=8)


def _compare(file: Path) -> tuple[int, ...]:
    """A trace's row of :class:`Exactness`."""
    from mmlab.results import trace

    recorded = trace.read(file)
    found = trace.compare(recorded, trace.predict(recorded))
    pairs = [(found.samples, found.samples_exact), (found.maps, found.maps_exact), (found.frames, found.frames_exact)]
    return (1, int(found.exact), *(count for pair in pairs for count in pair))


def versions() -> dict[str, str]:
    """Interpreter and packages that compute, draw and write a report."""
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in PARTS}}


def source_digest() -> str:
    """SHA-256 over the library's source files (name and bytes, in order of name)."""
    return digest(PACKAGE, (f for f in PACKAGE.rglob("*") if f.suffix in (".py", ".j2", ".css", ".json", ".yaml")))


@cache
def model_digest() -> str:
    """SHA-256 of what decides what a run comes to: simulation.py and all that it imports, and numpy, which draws what
    is random. Costs are data, and not in it."""
    found, todo = set(), ["mmlab.engine.clock"]
    while todo:
        module = todo.pop()
        file = PACKAGE.parent.joinpath(*module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if module in ("", "mmlab") or file in found or not file.exists():  # mmlab/__init__.py only says what is where
            continue
        found.add(file)
        for source, names, whole in IMPORT.findall(file.read_text(encoding="utf-8")):
            todo += [whole, source, *(f"{source}.{name}" for name in re.findall(r"\w+", names))]
    return hashlib.sha256(f"{digest(PACKAGE, found)} numpy {metadata.version('numpy')}".encode()).hexdigest()


@cache
def ingredients() -> str:
    """SHA-256 of everything that reports can depend on besides notebook and parameters: library, recordings, params."""
    folder = shipped_folder()
    parts = [source_digest(), digest(RECORDINGS, RECORDINGS.glob("*")), digest(folder, folder.glob("*.yaml"))]
    return hashlib.sha256(json.dumps([mmlab.__version__, versions(), parts]).encode()).hexdigest()


def digest(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of files by their names within the folder and their bytes, in order of name."""
    total = hashlib.sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        if "__pycache__" not in name:
            content = file.read_bytes()
            total.update(f"{name}\0{len(content)}\0".encode())
            total.update(content)
    return total.hexdigest()
