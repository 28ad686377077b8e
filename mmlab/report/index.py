"""Many reports: the standard ones, or several that were asked for, on all cores, and the index over them.

Which reports are standard is declared in ``notebooks/reports.yaml``. A report that would come out the same is not made
again. The index (``index.html``, with ``thumbnails/``) is made from the pages alone: what a page says about itself
(:class:`.page.About`) and its first figure. ``SHA256SUMS`` has the digest of every file that belongs to them, as
``sha256sum -c`` reads it; its first line says with which versions they were made.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlab.errors import UserError, unknown
from mmlab.params import find_params, read_yaml, shipped_folder, write_atomically
from mmlab.report.execute import ReportFailed, Request, make
from mmlab.report.page import TEMPLATES, About
from mmlab.report.provenance import Exactness, Provenance, provenance, versions

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

__all__ = ["DECLARED", "Made", "made_with", "make_all", "standard", "to_make", "write_index"]

DECLARED = "reports.yaml"
"""In the folder of the notebooks: which notebook is run with which params files."""
OWN = "own"
INDEX, SUMS, THUMBNAILS = "index.html", "SHA256SUMS", "thumbnails"
WIDTH, HEIGHT = 480, 270
"""Of thumbnails, in pixels; a higher figure is cut off below."""


@dataclass(frozen=True)
class Made:
    """A report, and what went wrong in its notebook: "" if nothing did."""

    request: Request
    error: str = ""


def standard(out: Path = Path("reports")) -> list[Request]:
    """All standard reports, to be written into ``out``.

    Raises
    ------
    UserError
        The declaration names a notebook or params file that there is not.
    """

    folder = shipped_folder("notebooks")
    notebooks = {file.stem: file for file in sorted(folder.glob("*.ipynb"))}
    declared = read_yaml(folder / DECLARED)
    for name, files in declared.items():
        if name not in notebooks:
            raise UserError(f"{folder / DECLARED}: {unknown('notebook', name, notebooks)}")
        if not isinstance(files, list) or not files:
            raise UserError(f"{folder / DECLARED}: {name} must be a list of params files, such as [{OWN}, all_zero]")
    pairs = [(file, params) for name, file in notebooks.items() for params in declared.get(name, [OWN])]
    return [Request(file, () if params == OWN else (find_params(params),)).inside(out) for file, params in pairs]


def to_make(requests: Sequence[Request], again: bool = False) -> list[Request]:
    """Those of the reports that are not there already as they would come out; with ``again`` all of them.

    Raises
    ------
    UserError
        One of the requests cannot be met, or two would write one file.
    """
    pages = [request.page.resolve() for request in requests]
    if twice := [page for page in pages if pages.count(page) > 1]:
        raise UserError(f"{twice[0]}: several reports would be written there: make them one by one, each with its -o")
    for request in requests:
        request.check()
    return [request for request in requests if again or not request.is_made()]


def make_all(requests: Sequence[Request], jobs: int = 1, bars: bool = False) -> Iterator[Made]:
    """Make reports, ``jobs`` at a time, and yield what became of each, in order. Their bytes do not depend on ``jobs``.

    Parameters
    ----------
    bars : bool
        Progress bars on stderr: over the reports, and over the cells of each one that is being made.
    """
    from tqdm import tqdm

    if not requests:
        return
    one = partial(_make, made_of=provenance(jobs), bars=bars)
    with tqdm(total=len(requests), unit="report", disable=not bars or len(requests) < 2, leave=False) as bar:
        if jobs < 2 or len(requests) < 2:
            for request in requests:
                yield one(request)
                bar.update()
            return
        context = get_context("spawn")
        tqdm.set_lock(context.RLock())
        rows: Queue[int] = context.Queue()
        for row in range(1, jobs + 1):
            rows.put(row)
        pool = ProcessPoolExecutor(jobs, context, _take_row, (rows, tqdm.get_lock()))
        try:
            for made in pool.map(one, requests):
                yield made
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


_row = 0


def _take_row(rows: Queue[int], lock: Any) -> None:
    """Each process that makes reports has a row of the terminal for its bar."""
    from tqdm import tqdm

    global _row
    _row = rows.get()
    tqdm.set_lock(lock)


def _make(request: Request, made_of: Provenance, bars: bool) -> Made:
    try:
        make(request, made_of, {"desc": request.page.stem, "position": _row, "leave": False} if bars else None)
    except ReportFailed as failed:
        return Made(request, failed.reason)
    return Made(request)


def write_index(folder: Path, requests: Iterable[Request]) -> Path:
    """Write the index of reports in ``folder``, its thumbnails and the sums, and remove what the last sums list beside.

    Returns
    -------
    Path
        The index.
    """
    from jinja2 import Environment, FileSystemLoader

    (folder / THUMBNAILS).mkdir(exist_ok=True)
    groups: dict[str, list[dict[str, Any]]] = {}
    files, exactness = [INDEX], dict[tuple[str, Exactness], None]()
    for request in requests:
        about = About.read(request.page)
        if about is None:
            raise UserError(f"{request.page}: this is no report of this version of mmlab: make it again")
        exactness[about.version, about.exactness] = None
        first = _thumbnail(request.page, folder / THUMBNAILS / f"{request.page.stem}.png")
        with_ = ", ".join(file.stem for file in request.params_files) or "its own parameters"
        card = {"about": about, "page": request.page.name, "data": request.data.name, "with": with_, **first}
        groups.setdefault(about.notebook, []).append(card)
        tables = [f"{request.data.name}/{table}.{kind}" for table in about.tables for kind in ("csv", "parquet")]
        files += [request.page.name, *tables, *([first["thumbnail"]] if first else [])]
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = templates.get_template("reports.html.j2").render(groups=groups, exactness=exactness)
    write_atomically(folder / INDEX, f"{text.rstrip()}\n".encode())

    for stale in {folder / name for name in set(_listed(folder / SUMS)) - set(files)}:
        stale.unlink(missing_ok=True)
        if stale.parent.is_dir() and not any(stale.parent.iterdir()):
            stale.parent.rmdir()
    lines = [f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n" for file in sorted(files)]
    write_atomically(folder / SUMS, "".join([f"# {json.dumps(made_with())}\n", *lines]).encode())
    return folder / INDEX


def made_with() -> dict[str, str]:
    """Everything that may change the bytes of a report, besides mmlab: versions, and the kind of processor."""
    return {**versions(), "machine": platform.machine()}


def _listed(sums: Path) -> list[str]:
    """The files that are named in SHA256SUMS, all of them within its folder."""
    if not sums.is_file():
        return []
    names = [line.partition("  ")[2] for line in sums.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    return [name for name in names if name and not name.startswith("/") and ".." not in name]


def _thumbnail(page: Path, file: Path) -> dict[str, Any]:
    """Write a small image of the page's first figure; its size and alternative text, or nothing if there is none."""
    from bs4 import BeautifulSoup
    from PIL import Image

    found = re.search(r"<img [^>]*>", page.read_text(encoding="utf-8"))
    image = BeautifulSoup(found[0], "html.parser").img if found else None
    if image is None or not str(image["src"]).startswith("data:image/png;base64,"):
        return {}
    picture = Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition(",")[2]))).convert("RGB")
    height = round(picture.height * WIDTH / picture.width)
    small = picture.resize((WIDTH, height), Image.Resampling.LANCZOS).crop((0, 0, WIDTH, min(height, HEIGHT)))
    out = io.BytesIO()
    small.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    write_atomically(file, out.getvalue())
    return {"size": small.size, "alt": str(image["alt"]), "thumbnail": f"{THUMBNAILS}/{file.name}"}
