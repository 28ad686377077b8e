"""Many reports: the standard ones, or several that were asked for, on all cores, and the index over them.

Which reports are standard is declared in ``notebooks/reports.yaml``. A report that would be the same is not made again.
The index (``index.html``) is made from the pages alone: from what each page tells about itself (`read_about`).
``SHA256SUMS`` has the digest of every file that belongs to them, as ``sha256sum -c`` reads it; its first line tells
with which versions they were made.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path

from mmlab.errors import UserError, located
from mmlab.params import find_params, locked, read_yaml, shipped_folder, write_atomically
from mmlab.report.page import TEMPLATES, read_about
from mmlab.report.provenance import versions
from mmlab.report.request import Request, find_notebook, notebooks

DECLARED = "reports.yaml"
"""In the folder of the notebooks: which notebook is run with which params files."""
OWN = "own"
INDEX, SUMS = "index.html", "SHA256SUMS"


def standard(out: Path = Path("reports")) -> list[Request]:
    """Return the requests for all standard reports, to be written into a folder.

    Raises
    ------
    UserError
        The declaration names a notebook or params file that does not exist.
    """
    declaration, requests = shipped_folder("notebooks") / DECLARED, []
    with located(declaration):
        declared = read_yaml(declaration)
        names = sorted({**notebooks(), **declared}, key=lambda name: (name[:2], name not in declared, name))
        for name, files in ((name, declared.get(name, [OWN])) for name in names):
            if not isinstance(files, list) or not files:
                allowed = f"a list of params files, such as [{OWN}, all_zero]"
                raise UserError(parameter=name, value=files, allowed=allowed)
            given = [() if params == OWN else (find_params(params),) for params in files]
            requests += [Request(find_notebook(name), params, out=out) for params in given]
    return requests


def write_index(folder: Path, requests: Sequence[Request]) -> Path:
    """Write the index of reports in a folder, and the sums of what it lists.

    Returns
    -------
    Path
        The index.

    Raises
    ------
    UserError
        A page is not there any more.
    """
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    with locked(folder):
        pages = [read_about(request.page) | {"params": request.params_files} for request in requests]
        if lost := [request.page for request, about in zip(requests, pages, strict=True) if "name" not in about]:
            raise UserError("another process removed or changed it", parameter=str(lost[0]), hint="Make it again.")
        text = templates.get_template("reports.html.j2").render(pages=pages)
        write_atomically(folder / INDEX, f"{text.rstrip()}\n".encode())

        files = [INDEX, *(f"{about['name']}.html" for about in pages)]
        files += [f"{about['name']}.data/{file}" for about in pages for file in about["files"]]
        lines = [f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in sorted(files)]
        write_atomically(folder / SUMS, "".join([f"# {json.dumps(made_with())}\n", *lines]).encode())
    return folder / INDEX


def made_with() -> dict[str, str]:
    """Return all that can change the bytes of a report, besides mmlab: versions, and the kind of processor."""
    return {**versions(), "machine": platform.machine()}
