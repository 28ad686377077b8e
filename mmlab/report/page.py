"""An executed notebook becomes one HTML page: what differs between runs is taken out, the rest goes into our template.

The page loads nothing: style and images are inside, there is no script. What it tells about itself is in its
``<meta name="mmlab">`` (`read_about`), so that the index of reports can be made from pages alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from nbformat import NotebookNode


TEMPLATES = Path(__file__).parent / "templates"

HIDDEN = {"remove_cell", "remove-cell", "parameters", "injected-parameters", "papermill-error-cell-tag"}
"""Cells with one of these tags are not on the page: widgets are dead in HTML, parameters are in its last section."""
ABOUT = re.compile(r'<meta content="([^"]*)" name="mmlab">')
SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "text/plain"]
"""Kinds of output that the template shows; of an output with several kinds, the first of these."""


def read_about(page: Path) -> dict[str, Any]:
    """Return what a page tells about itself, as `mmlab.report.execute.make` put it together; empty for another file.

    It has the notebook's name, `summary` and provenance, the parameters that are not the defaults (``changed``), the
    files beside the page and their digest (``files``, ``data``), what failed (``error``) and the digest of everything
    that the page depends on (``inputs``); and whether the page is as it was written (``whole``).
    """
    try:
        text = page.read_text(encoding="utf-8")
        about = json.loads(unquote(ABOUT.search(text)[1]))  # type: ignore[index]
        return {**about, "whole": about["page"] == sha256(ABOUT.sub("", text, 1).encode()).hexdigest()}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def arrange(notebook: NotebookNode) -> None:
    """Remove the cells that are not meant for a page, and move those tagged ``summary`` below the first cell."""
    shown = [cell for cell in notebook.cells if not HIDDEN.intersection(cell.metadata.get("tags", ()))]
    notebook.cells = shown[:1] + sorted(shown[1:], key=lambda cell: "summary" not in cell.metadata.get("tags", ()))


def render(executed: NotebookNode, about: Mapping[str, Any], **resources: object) -> str:
    """Return the page of a notebook; the template names the `resources`."""
    from nbconvert.exporters import HTMLExporter
    from traitlets.config import Config

    options = Config({"NbConvertBase": {"display_data_priority": SHOWN}})
    exporter = HTMLExporter(options, template_name="report", extra_template_basedirs=[str(TEMPLATES)])  # type: ignore[no-untyped-call]
    exporter.log.setLevel(logging.ERROR)
    text, _ = exporter.from_notebook_node(executed, {"mmlab": {"about": about, **resources}})
    text = re.sub(r"<th\b[^>]*>\s*</th>", "<td></td>", _independent(text))  # a table's empty corner is no heading
    headings = re.findall(r'<h([23]) id="([^"]+)">(.+?)(?:<a class="anchor-link"|</h)', text)
    contents = "".join(f'<li class="level-{level}"><a href="#{at}">{words}</a></li>\n' for level, at, words in headings)
    text = text.replace("<ol></ol>", f"<ol>\n{contents}</ol>", 1)
    told = quote(json.dumps({**about, "page": sha256(text.encode()).hexdigest()}))
    return text.replace("<title>", f'<meta content="{told}" name="mmlab"><title>', 1)


def _independent(text: str) -> str:
    """Return HTML without what differs between runs and machines: addresses, temporary files, folders, random ids."""
    text = re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", text)
    text = re.sub(r"(?<![^\s>\"])[^\s>\"]*ipykernel_\d+/\d+\.py", "&lt;cell&gt;", text)  # once a word: images are long
    for place, name in ((Path(__file__).parents[2], ""), (Path.cwd(), ""), (sys.prefix, "&lt;python&gt;/")):
        text = re.sub(rf"(?<![\w+/:.-]){re.escape(str(place))}{os.sep}", name, text)  # never within an image's base64
    ids: dict[str, str] = {}  # of the tables of pandas' Styler
    return re.sub(r"\bT_[0-9a-f]{5,32}(?=_|\b)", lambda found: ids.setdefault(found[0], f"T_{len(ids)}"), text)


def summary(notebook: NotebookNode, stem: str) -> dict[str, Any]:
    """Return what the index shows of a notebook: title, question (a paragraph that starts so) and headline."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")

    def first(pattern: str) -> str:
        """Return the first match in one line, without Markdown's marks."""
        words = " ".join((re.search(pattern, text) or ["", ""])[1].split())
        return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"[*`]", "", words))

    headlines = (about["headline"] for about in _metadata(notebook) if "headline" in about)
    return {
        "notebook": stem,
        "title": notebook.metadata.get("title") or first(r"(?m)^# +(.+)$") or stem,
        "question": first(r"\*\*Question\.?\*\*\s*((?:.+\n?)+)"),
        "headline": next(([found["value"], found["words"]] for found in headlines), []),
    }


def number_tables(notebook: NotebookNode, folder: Path) -> dict[str, bytes]:
    """Number the tables that were saved in a folder in the order of the page, and return their files."""
    files: dict[str, bytes] = {}
    for about in _metadata(notebook):
        for place, name in enumerate(about.get("tables", ())):
            new = about["tables"][place] = f"{len(files) // 2 + 1:02}-{name.partition('-')[2]}"
            files |= {f"{new}.{kind}": (folder / f"{name}.{kind}").read_bytes() for kind in ("csv", "parquet")}
    return files


def _metadata(notebook: NotebookNode) -> Iterator[Any]:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return (about for output in outputs for about in output.get("metadata", {}).values())
