"""Reports in a real browser: nothing is loaded, and everyone can read them: light, dark, on a phone and on paper."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe

from mmlab.report.execute import make_all
from mmlab.report.provenance import versions
from mmlab.report.request import Request

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = ["index.html", "00_tour.html", "01_regression.html"]
VIEWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
EVERYTHING = """\
import sys
import pandas as pd
from IPython.display import SVG, display
from mmlab.figures import figures as plots
print("to stdout, " * 30)
print("to stderr", file=sys.stderr)
display(SVG("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><title>A dot</title></svg>"),
        metadata={"image/svg+xml": {"alt": "A dot"}})
line = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 2.0], "which": "a"})
plots.headline("2 MiB", "of it")
plots.show(plots.steps(line, "x", "y", "which"), "A step", "A caption")
for _ in range(2):
    plots.table(line, "The same caption twice")
plots.say("> A quotation\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |\\n\\n```\\n" + "code " * 60 + "\\n```")
display(line.style)  # with a comment
{"plain": object()}
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def opened(browser: Browser, request: pytest.FixtureRequest):
    """Return a function that opens a file without a network; in the end no request may have left this machine."""
    contexts, asked = [], []

    def open_page(file: Path, **options: object) -> Page:
        context = browser.new_context(offline=True, **options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda sent: asked.append(sent.url))
        page.on("pageerror", lambda error: pytest.fail(str(error)))
        page.goto(file.as_uri(), wait_until="load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a report with all that a page can have, such as code and an error; its exactness is not computed."""
    made_of = {
        "version": "1",
        "source": "f" * 64,
        "versions": versions(),
        "exactness": "3 of 3 recordings predicted exactly",
    }
    folder = tmp_path_factory.mktemp("everything")
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# All\n\n**Question.** Of what?\n\n## One\n\n### Two"),
        v4.new_code_cell("n: int = 1  # n"),
    ]
    cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(v4.new_notebook(cells=[*cells, *map(v4.new_code_cell, (EVERYTHING, "1 / 0"))]), folder / "all.ipynb")
    wanted = Request(folder / "all.ipynb", overrides={"n": 2}, out=folder / "all.html", show_code=True)
    with patch("mmlab.report.execute.software", lambda _: made_of):
        assert "ZeroDivisionError" in next(make_all([wanted]))
    return folder / "all.html"


@pytest.mark.parametrize("view", VIEWS)
def test_everything_is_accessible(opened, everything: Path, artefacts: Path, view: str) -> None:
    page = opened(everything, **VIEWS[view])
    page.screenshot(path=artefacts / f"report-everything-{view}.png", full_page=True)
    found = Axe().run(page)
    assert not found.violations_count, found.generate_report()
    assert page.locator("img").count() == 2
    assert page.locator(".failed, .code, .headline, .warning, .error, blockquote, .html table").count() >= 10
    assert page.evaluate(OVERFLOW) <= 0


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", PAGES)
def test_looks_and_accessibility(opened, built: list[Path], artefacts: Path, name: str, view: str) -> None:
    page = opened(built[0] / name, **VIEWS[view])
    page.screenshot(path=artefacts / f"report-{Path(name).stem}-{view}.png", full_page=view == "narrow")
    found = Axe().run(page)
    assert not found.violations_count, found.generate_report()
    images = page.locator("img")
    assert images.count() or name == "index.html"
    assert all(alt.strip() for alt in images.evaluate_all("images => images.map(image => image.alt)"))
    assert page.evaluate(OVERFLOW) <= 0, "the page never scrolls sideways, its tables do"


@pytest.mark.parametrize("name", PAGES)
def test_contents_and_keyboard(opened, built: list[Path], name: str) -> None:
    """Every heading is in the contents and every link leads to it; the first TAB offers to skip them."""
    page = opened(built[0] / name, reduced_motion="reduce", **VIEWS["light"])
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text().startswith("Skip to the report")
    links = page.locator("#contents a")
    assert links.count() == page.locator("h2" if name == "index.html" else ":is(h2, h3):not(.no-toc)").count() > 2
    for link in links.all():
        link.click()
        target = page.locator(":target")
        assert target.inner_text().removesuffix("¶").strip() == link.inner_text()
        assert target.evaluate("heading => heading.getBoundingClientRect().top") < 900, "it is in view"


def test_all_reports_fit_on_paper(opened, built: list[Path]) -> None:
    """On A4 the contents are gone, figures are whole, and nothing is wider than the sheet."""
    for file in sorted(built[0].glob("*.html")):
        page = opened(file, viewport={"width": 680, "height": 1009})  # A4 without its margins
        page.emulate_media(media="print")
        assert not page.locator("#contents").is_visible()
        assert page.evaluate(OVERFLOW) <= 0, file.name
        high = page.locator("img").evaluate_all("images => images.map(image => image.getBoundingClientRect().height)")
        assert max(high, default=0) < 1009, file.name


def test_printed_pdf_has_every_heading(opened, built: list[Path], artefacts: Path) -> None:
    page = opened(built[0] / PAGES[1], viewport={"width": 680, "height": 1009})
    file = artefacts / f"report-{Path(PAGES[1]).stem}.pdf"
    page.pdf(path=file, prefer_css_page_size=True, format="A4")
    if not shutil.which("pdftotext"):
        pytest.skip("the PDF was made, but not read (Debian, Ubuntu: apt install poppler-utils)")
    printed = subprocess.run(["pdftotext", file, "-"], capture_output=True, text=True, check=True).stdout
    words = "".join(printed.split())  # blanks come and go where lines are broken
    for heading in page.locator(":is(main, footer) :is(h1, h2, h3)").all_inner_texts():
        assert "".join(heading.removesuffix("¶").split()) in words


def test_index_leads_to_each_report_and_its_data(opened, built: list[Path]) -> None:
    page = opened(built[0] / "index.html", **VIEWS["light"])
    cards = page.locator(".cards > li")
    names = {page.stem for page in built[0].glob("*.html")} - {"index"}
    assert cards.count() == len(names)
    card = cards.first
    card.click(position={"x": 60, "y": 60})  # anywhere on it
    assert Path(page.url).stem in names
    page.go_back()
    card.locator(".data a").click()
    assert page.url.endswith(".data/"), "not hidden below the card's link"
