"""What a report was made of: mmlab's version and source, the packages that compute and draw, and how exact mmlab is.

Nothing here depends on the day, the machine or the folder: the same installation gives the same provenance anywhere.
"""

import json
import platform
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import mmlab
from mmlab.params import read_yaml, shipped_folder
from mmlab.report.page import read_about

PACKAGE = Path(__file__).parents[1]
RECORDINGS = PACKAGE / "recordings"
DEPENDS = read_yaml(Path(__file__).with_name("report.yaml"))
"""What the bytes of a report depend on: the environment of its kernel, and packages."""


def software(folder: Path) -> dict[str, Any]:
    """Return what the last section of a report tells about the software.

    It has the version of mmlab, the digest of its source files, the versions of the interpreter and of the packages;
    and its `exactness`, if a page of the folder was made by the same software and has it.
    """
    own = {"version": mmlab.__version__, "source": source_digest(), "versions": versions(), "software": ingredients()}
    for about in map(read_about, folder.glob("*.html")):
        if about.get("software") == own["software"]:
            return own | {"exactness": about["exactness"]}
    return own


def exactness() -> str:
    """Predict every recording that ships with mmlab, and count what is exact, in words."""
    from mmlab.results import trace

    found = [trace.compare_file(file) for file in sorted(RECORDINGS.glob("*.json.gz"))]
    words = [f"{sum(one.exact for one in found):,} of {len(found):,} recordings predicted exactly:"]
    for name, what in {"samples": "samples,", "maps": "page maps,", "frames": "frame counts"}.items():
        exact, total = (sum(getattr(one, count) for one in found) for count in (f"{name}_exact", name))
        words.append(f"{exact:,} of {total:,} {what}")
    return " ".join(words)


def versions() -> dict[str, str]:
    """Return the versions of the interpreter and of the packages that compute, draw and write a report."""
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in DEPENDS["packages"]}}


def source_digest() -> str:
    """Return the SHA-256 of the library's source files."""
    kinds = (".py", ".j2", ".css", ".json", ".yaml", ".md")
    found = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*") if file.suffix in kinds}
    own = {name for name in found if "__pycache__" not in name and not name.startswith("shipped/")}
    return digest({name: found[name].read_bytes() for name in own})


@cache
def ingredients() -> str:
    """Return the SHA-256 of all that reports depend on but notebook and parameters: library, recordings, params."""
    data = {file.name: file.read_bytes() for file in [*RECORDINGS.glob("*"), *shipped_folder().rglob("*.[ty]*")]}
    return sha256(json.dumps([mmlab.__version__, versions(), source_digest(), digest(data)]).encode()).hexdigest()


def digest(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of files, by their names and contents."""
    sums = {name: sha256(content).hexdigest() for name, content in sorted(files.items())}
    return sha256(json.dumps(sums).encode()).hexdigest()
