"""Many reports: the standard ones, or several that were asked for, on all cores, and the index over them.

Which reports are standard is declared in ``notebooks/reports.yaml``. A report that would be the same is not made again.
The index (``index.html``) is made from the pages alone: from what each page tells about itself (`About`).
``SHA256SUMS`` has the digest of every file that belongs to them, as ``sha256sum -c`` reads it; its first line tells
with which versions they were made.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mmlab.errors import UserError, located, unknown
from mmlab.params import find_params, read_yaml, shipped_folder, write_atomically
from mmlab.report.execute import Progress, Request, alone, make
from mmlab.report.page import TEMPLATES, About
from mmlab.report.provenance import provenance, versions
from mmlab.workers import each

__all__ = ["DECLARED", "INDEX", "SUMS", "made_with", "make_all", "standard", "to_make", "write_index"]

DECLARED = "reports.yaml"
"""In the folder of the notebooks: which notebook is run with which params files."""
OWN = "own"
INDEX, SUMS = "index.html", "SHA256SUMS"
OURS = re.compile(r"(?m)^[0-9a-f]{64}  ((?!\.)[^/\n]+(?:/(?!\.)[^/\n]+)?)$")
"""A line of SHA256SUMS: a file in its folder, or in a folder of that."""


def standard(out: Path = Path("reports")) -> list[Request]:
    """Return the requests for all standard reports, to be written into a folder.

    Raises
    ------
    UserError
        The declaration names a notebook or params file that does not exist.
    """
    folder = shipped_folder("notebooks")
    notebooks = {file.stem: file for file in sorted(folder.glob("*.ipynb"))}
    with located(folder / DECLARED):
        declared = read_yaml(folder / DECLARED)
        for name, files in declared.items():
            if name not in notebooks:
                raise unknown("notebook", name, notebooks)
            if not isinstance(files, list) or not files:
                allowed = f"a list of params files, such as [{OWN}, all_zero]"
                raise UserError(parameter=name, value=files, allowed=allowed)
        pairs = [(file, params) for name, file in notebooks.items() for params in declared.get(name, [OWN])]
        return [Request(file, () if params == OWN else (find_params(params),), out=out) for file, params in pairs]


def to_make(requests: Sequence[Request], again: bool = False) -> list[Request]:
    """Return those of the reports that must be made; with `again`, all of them.

    Raises
    ------
    UserError
        As `Request.check`; or two of them have the same page.
    """
    pages = [request.page.resolve() for request in requests]
    if twice := [page for page in pages if pages.count(page) > 1]:
        hint = "Make them one by one, each with its own -o."
        raise UserError("several reports have this page", parameter=str(twice[0]), hint=hint)
    for request in requests:
        request.check()
    return [request for request in requests if again or not request.is_made()]


def make_all(requests: Sequence[Request], jobs: int = 1, progress: Progress | None = None) -> Iterator[str]:
    """Make reports, `jobs` at a time, and yield for each, in order, what failed in its notebook, empty if nothing did.

    Parameters
    ----------
    progress : callable, optional
        Called with the reports done, all reports, and the name of the next one; of a single report, with its cells.
    """
    if not requests:
        return
    with tempfile.TemporaryDirectory(prefix="mmlab-", ignore_cleanup_errors=True) as scratch:
        one = partial(make, made_of=provenance(jobs), scratch=Path(scratch))
        if len(requests) == 1:
            yield one(requests[0], progress=progress)
        else:
            yield from each(one, requests, jobs, progress)


def write_index(folder: Path, requests: Iterable[Request]) -> Path:
    """Write the index of reports in a folder and the sums, and remove files that only the last sums list.

    Returns
    -------
    Path
        The index.
    """
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    with alone(folder):
        groups: dict[str, list[dict[str, Any]]] = {}
        files = [INDEX]
        for request in requests:
            about = About.read(request.page)
            if about is None:
                hint = "Make it again."
                raise UserError("is not a report of this version of mmlab", parameter=str(request.page), hint=hint)
            named = ", ".join(file.stem for file in request.params_files) or "its own parameters"
            groups.setdefault(about.notebook, []).append({"about": about, "request": request, "named": named})
            files += [request.page.name, *(f"{request.data.name}/{file}" for file in about.files)]
        text = templates.get_template("reports.html.j2").render(groups=groups)
        write_atomically(folder / INDEX, f"{text.rstrip()}\n".encode())

        before = (folder / SUMS).read_text(encoding="utf-8") if (folder / SUMS).is_file() else ""
        for stale in set(re.findall(OURS, before)) - set(files):
            (folder / stale).unlink(missing_ok=True)
            with suppress(OSError):  # its folder has other files
                (folder / stale).parent.rmdir()
        lines = [f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in sorted(files)]
        write_atomically(folder / SUMS, "".join([f"# {json.dumps(made_with())}\n", *lines]).encode())
    return folder / INDEX


def made_with() -> dict[str, str]:
    """Return all that can change the bytes of a report, besides mmlab: versions, and the kind of processor."""
    return {**versions(), "machine": platform.machine()}
