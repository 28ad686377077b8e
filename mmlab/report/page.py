"""An executed notebook becomes one HTML page: what varies by run is taken out, the rest goes through our template.

The page loads nothing: style and images are inside, there is no script. Its ``<meta name="mmlab">`` says what the
index of reports needs to know (:class:`About`), so that the index is made from pages alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmlab.report.provenance import Exactness

if TYPE_CHECKING:
    from bs4 import BeautifulSoup
    from nbformat import NotebookNode

__all__ = ["TEMPLATES", "About", "headline", "normalise", "number_tables", "question", "render", "title"]

TEMPLATES = Path(__file__).parent / "templates"

#: Cells with one of these tags do not reach the page: widgets are dead in HTML, parameters are in its last section.
HIDDEN = {"remove_cell", "remove-cell", "parameters", "injected-parameters", "papermill-error-cell-tag"}


@dataclass(frozen=True)
class About:
    """What a page says about itself.

    Attributes
    ----------
    title, question, variant, changed
        Of the notebook; its parameter of that name, if it has one; the parameters that are not its defaults.
    headline
        ``(value, words)`` of :func:`mmlab.figures.figures.headline`; None if the notebook has none, or never got there.
    tables
        Names of the files beside the page, without their endings.
    error
        What went wrong, "" if nothing did.
    inputs
        SHA-256 of everything that the page depends on.
    """

    notebook: str
    title: str
    question: str
    variant: str
    changed: str
    headline: tuple[str, str] | None
    tables: tuple[str, ...]
    error: str
    inputs: str
    version: str
    exactness: Exactness

    @classmethod
    def read(cls, page: Path) -> About | None:
        """Of a page that mmlab wrote; None for anything else, also for one of another version's format."""
        from bs4 import BeautifulSoup

        try:
            head = BeautifulSoup(page.read_text(encoding="utf-8").partition("</head>")[0], "html.parser")
            about = json.loads(str(head.select("meta[name=mmlab]")[0]["content"]))
            pair = about["headline"]
            return cls(
                **about
                | {"headline": (pair[0], pair[1]) if pair else None, "tables": tuple(about["tables"])}
                | {"exactness": Exactness(**about["exactness"])}
            )
        except (OSError, ValueError, TypeError, LookupError):
            return None


def render(executed: NotebookNode, about: About, code: bool, **resources: Any) -> str:
    """The page of a notebook that :func:`normalise` has seen.

    Parameters
    ----------
    code : bool
        Show the code cells, too.
    **resources
        What else the template names: ``data``, ``yaml``, ``parameters``, ``provenance``, ``command``, ``digest``,
        ``trust``.
    """
    from nbconvert.exporters import HTMLExporter

    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])  # type: ignore[no-untyped-call]
    exporter.exclude_input = not code
    exporter.log.setLevel(logging.ERROR)
    meta = json.dumps(asdict(about), ensure_ascii=False)
    given = {"mmlab": {"about": about, "meta": meta, **resources}}
    return finish(exporter.from_notebook_node(executed, resources=given)[0])


def normalise(notebook: NotebookNode) -> None:
    """Take out of an executed notebook what two equal runs may differ in, and the cells not meant for a page.

    Cells tagged ``summary`` (what the notebook concludes in the end) move to the top, below the first cell.
    """
    shown = [cell for cell in notebook.cells if not HIDDEN & set(cell.metadata.get("tags", ()))]
    summary = [cell for cell in shown if "summary" in cell.metadata.get("tags", ())]
    notebook.cells = shown[:1] + summary + [cell for cell in shown[1:] if cell not in summary]
    notebook.metadata = type(notebook.metadata)(
        {key: value for key, value in notebook.metadata.items() if key == "title"}
        | {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    )
    uuids: dict[str, str] = {}
    for number, cell in enumerate(notebook.cells, start=1):
        cell["id"] = f"cell-{number}"
        cell.metadata = type(cell.metadata)({k: v for k, v in cell.metadata.items() if k in ("tags", "alt")})
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = plain_text(output.text)
            elif output.output_type == "error":
                output.traceback = [plain_text(line) for line in output.traceback]
            else:
                for kind in list(output.data):
                    if kind.startswith(("application/vnd.jupyter.widget", "application/javascript")):
                        del output.data[kind]
                    elif kind == "text/html":
                        output.data[kind] = plain_html(output.data[kind], uuids)
                    elif kind == "text/plain":
                        output.data[kind] = plain_text(output.data[kind])


def plain_text(text: str) -> str:
    """Without memory addresses, numbered kernel folders, and the folders that this library and the caller are in."""
    text = re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", text)
    text = re.sub(r"\S*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    for place in (Path(__file__).parents[2], Path.cwd()):
        text = text.replace(f"{place}{os.sep}", "")
    return text.replace(sys.prefix, "<python>")


def plain_html(text: str, uuids: dict[str, str]) -> str:
    """With pandas' random Styler ids numbered in order of their appearance."""
    return re.sub(r"\bT_[0-9a-f]{5,32}(?=_|\b)", lambda m: uuids.setdefault(m[0], f"T_{len(uuids)}"), text)


def title(notebook: NotebookNode, fallback: str) -> str:
    """The notebook's own title: its metadata, or its first heading."""
    headings = (match[1] for text in _texts(notebook) for match in re.finditer(r"(?m)^# +(.+)$", text))
    return str(notebook.metadata.get("title") or _words(next(headings, fallback)))


def question(notebook: NotebookNode) -> str:
    """The paragraph that begins with **Question.**, as plain words; "" if there is none."""
    found = (re.search(r"(?s)\*\*Question\.?\*\*\s*(.+?)(?:\n\s*\n|$)", text) for text in _texts(notebook))
    return next((_words(" ".join(match[1].split())) for match in found if match), "")


def headline(notebook: NotebookNode) -> tuple[str, str] | None:
    """Value and words of the first headline among the outputs."""
    for about in _metadata(notebook):
        if "headline" in about:
            return about["headline"]["value"], about["headline"]["words"]
    return None


def number_tables(notebook: NotebookNode) -> dict[str, str]:
    """Number the saved tables of all outputs that reach the page in its order; {new name: name}."""
    names: dict[str, str] = {}
    for about in _metadata(notebook):
        for place, name in enumerate(about.get("tables", ())):
            about["tables"][place] = f"{len(names) + 1:02}-{name.partition('-')[2]}"
            names[about["tables"][place]] = name
    return names


def _metadata(notebook: NotebookNode) -> Iterator[Any]:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return (about for output in outputs for about in output.get("metadata", {}).values())


def _texts(notebook: NotebookNode) -> Iterator[str]:
    return (cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def _words(markdown: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", re.sub(r"[*`]", "", markdown))


def finish(text: str) -> str:
    """Fill ``<nav id="contents">`` from the headings, and make code and tables accessible, whoever made them."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup(text, "html.parser")
    _fill_contents(page)
    for block in page.select("main pre"):
        block["tabindex"] = "0"  # a long line scrolls: also without a mouse
    for cell in page.select("main th"):
        if not cell.get_text(strip=True):  # the corner of a table heads nothing
            cell.name = "td"
            del cell["scope"]
    labels: dict[str, int] = {}
    for region in page.select("main [role=region]"):
        label = str(region["aria-label"])
        labels[label] = labels.get(label, 0) + 1
        region["aria-label"] = label if labels[label] == 1 else f"{label} ({labels[label]})"
    return str(page)


def _fill_contents(page: BeautifulSoup) -> None:
    """With links to the headings of the second and third level."""
    nav = page.find(id="contents")
    assert nav is not None
    outer = page.new_tag("ol")
    last: Any = None
    inner: Any = None
    taken: set[str] = set()
    for heading in page.select(":is(main, footer) :is(h2, h3):not(.no-toc)"):
        words = heading.get_text().removesuffix("¶").strip()
        anchor = str(heading.get("id") or re.sub(r"\W+", "-", words).strip("-"))
        while anchor in taken:
            anchor += "-"
        taken.add(anchor)
        heading["id"] = anchor
        entry, link = page.new_tag("li"), page.new_tag("a", href=f"#{anchor}")
        link.string = words
        entry.append(link)
        if heading.name == "h2" or last is None:
            outer.append(entry)
            last, inner = entry, None
        else:
            if inner is None:
                inner = page.new_tag("ol")
                last.append(inner)
            inner.append(entry)
    nav.append(outer)
