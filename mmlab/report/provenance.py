"""What a report was made of: mmlab's version and source, the packages that compute and draw, and how exact mmlab is.

Nothing here depends on the day, the machine or the folder: the same installation gives the same provenance anywhere.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import mmlab
from mmlab.params import shipped_folder
from mmlab.workers import each

__all__ = ["Provenance", "digest", "exactness", "ingredients", "provenance", "source_digest", "versions"]

PACKAGE = Path(__file__).parents[1]
RECORDINGS = PACKAGE / "recordings"
PARTS = """
    numba llvmlite numpy pandas pyarrow matplotlib seaborn pillow ipython papermill nbconvert Jinja2 mistune Pygments
    beautifulsoup4
""".split()
"""Packages that the bytes of a report depend on."""


@dataclass(frozen=True)
class Provenance:
    """What the last section of a report tells about the software.

    Attributes
    ----------
    version, source
        mmlab's version, and the SHA-256 of its source files.
    versions
        Versions of the interpreter and of `PARTS`.
    exactness
        How many recordings mmlab predicts exactly, in words.
    """

    version: str
    source: str
    versions: dict[str, str]
    exactness: str


def provenance(jobs: int = 1) -> Provenance:
    """Return the provenance of this installation; it predicts all shipped recordings, which takes seconds."""
    return Provenance(mmlab.__version__, source_digest(), versions(), exactness(jobs))


@cache
def exactness(jobs: int = 1) -> str:
    """Predict every recording that ships with mmlab, on `jobs` cores, and count what is exact, in words."""
    total = sum(each(_compare, sorted(RECORDINGS.glob("*.json.gz")), jobs), Counter[str]())
    parts = [
        f"{total[f'exact {name}']:,} of {total[name]:,} {name}" for name in ("samples", "page maps", "frame counts")
    ]
    return f"{total['exact']:,} of {total['recordings']:,} recordings predicted exactly: {', '.join(parts)}"


def _compare(file: Path) -> Counter[str]:
    """Predict one recording, and return how much of it there is, and how much of that is exact."""
    from mmlab.results import trace

    recorded = trace.read(file)
    found = trace.compare(recorded, trace.predict(recorded))
    return Counter(
        {"recordings": 1, "exact": int(found.exact)}
        | {"samples": found.samples, "exact samples": found.samples_exact}
        | {"page maps": found.maps, "exact page maps": found.maps_exact}
        | {"frame counts": found.frames, "exact frame counts": found.frames_exact}
    )


def versions() -> dict[str, str]:
    """Return the versions of the interpreter and of the packages that compute, draw and write a report."""
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in PARTS}}


def source_digest() -> str:
    """Return the SHA-256 of the library's source files."""
    kinds = (".py", ".j2", ".css", ".json", ".yaml")
    found = (file for file in PACKAGE.rglob("*") if file.suffix in kinds and file.parent.name != "__pycache__")
    return digest(PACKAGE, found)


@cache
def ingredients() -> str:
    """Return the SHA-256 of all that reports depend on but notebook and parameters: library, recordings, params."""
    params = shipped_folder()
    parts = [source_digest(), digest(RECORDINGS, RECORDINGS.glob("*")), digest(params, params.glob("*.yaml"))]
    return sha256(json.dumps([mmlab.__version__, versions(), parts]).encode()).hexdigest()


def digest(folder: Path, files: Iterable[Path]) -> str:
    """Return the SHA-256 of files: their paths within the folder and their bytes, in order of path."""
    total = sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        content = file.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()
