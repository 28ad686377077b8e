"""Reports in a real browser: nothing is loaded, everyone can read them, light, dark, on a phone and on paper."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from mmlab.report.execute import ReportFailed, report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = ["index.html", "01_regression_regression_uzp1.html", "02_other_splits.html"]
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
    """Opens a file in a new context without a network; afterwards, nothing may have been asked of anyone else."""
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
    """A report with all that a page can have: also code, and an error."""
    folder = tmp_path_factory.mktemp("everything")
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# All\n\n**Question.** Of what?\n\n## One\n\n### Two"),
        v4.new_code_cell("n: int = 1  # n"),
    ]
    cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(v4.new_notebook(cells=[*cells, *map(v4.new_code_cell, (EVERYTHING, "1 / 0"))]), folder / "all.ipynb")
    with pytest.raises(ReportFailed):
        report(folder / "all.ipynb", overrides={"n": 2}, out=folder / "all.html", show_code=True, progress=False)
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
    page.screenshot(path=artefacts / f"report-{Path(name).stem}-{view}.png", full_page=view != "dark")
    found = Axe().run(page)
    assert not found.violations_count, found.generate_report()
    images = page.locator("img")
    assert images.count()
    for image in images.all():
        image.scroll_into_view_if_needed()
        assert (image.get_attribute("alt") or "").strip()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0, "it is there"
    assert page.evaluate(OVERFLOW) <= 0, "the page never scrolls sideways, its tables do"


@pytest.mark.parametrize("name", PAGES)
def test_contents_lead_to_their_headings(opened, built: list[Path], name: str) -> None:
    page = opened(built[0] / name, reduced_motion="reduce", **VIEWS["light"])
    links = page.locator("#contents a")
    assert links.count() == page.locator("h2" if name == "index.html" else ":is(h2, h3):not(.no-toc)").count() > 2
    for link in links.all():
        link.click()
        target = page.locator(":target")
        assert target.inner_text().removesuffix("¶").strip() == link.inner_text()
        assert target.evaluate("heading => heading.getBoundingClientRect().top") < 900, "it is in view"


def test_with_the_keyboard(opened, built: list[Path]) -> None:
    page = opened(built[0] / PAGES[1], **VIEWS["light"])
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the report"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("main :focus").count() == 1, "past the contents"


def test_tables_of_all_reports_fit_on_paper(opened, built: list[Path]) -> None:
    for file in sorted(built[0].glob("*.html")):
        page = opened(file, viewport={"width": 680, "height": 1009})
        page.emulate_media(media="print")
        assert page.evaluate(OVERFLOW) <= 0, file.name


@pytest.mark.parametrize("name", PAGES)
def test_print(opened, built: list[Path], artefacts: Path, name: str) -> None:
    """On A4 all is there but the contents, figures are whole, nothing overflows; the sheets are among the artefacts."""
    page = opened(built[0] / name, viewport={"width": 680, "height": 1009})  # A4 without its margins
    page.emulate_media(media="print")
    assert not page.locator("#contents").is_visible()
    assert page.evaluate(OVERFLOW) <= 0
    high = page.locator("img").evaluate_all("images => images.map(image => image.getBoundingClientRect().height)")
    assert max(high) < 1009
    file = artefacts / f"report-{Path(name).stem}.pdf"
    page.pdf(path=file, prefer_css_page_size=True, format="A4")
    if not shutil.which("pdftotext"):
        pytest.skip("the PDF was made, not looked into (Debian, Ubuntu: apt install poppler-utils)")
    printed = subprocess.run(["pdftotext", file, "-"], capture_output=True, text=True, check=True).stdout
    words = "".join(printed.split())  # blanks come and go where lines are broken
    for heading in page.locator(":is(main, footer) :is(h1, h2, h3)").all_inner_texts():
        assert "".join(heading.removesuffix("¶").split()) in words
    for old in artefacts.glob(f"{file.stem}-*.png"):
        if old.stem.rpartition("-")[2].isdigit():
            old.unlink()
    subprocess.run(["pdftoppm", "-r", "50", "-gray", "-png", file, file.with_suffix("")], check=True)
    sheets = [old for old in artefacts.glob(f"{file.stem}-*.png") if old.stem.rpartition("-")[2].isdigit()]
    assert len(sheets) == printed.count("\f")
    for sheet in sheets:
        with Image.open(sheet) as picture:
            assert picture.convert("L").getextrema()[0] < 128, f"{sheet.name} is blank"


def test_index_leads_to_each_report_and_its_data(opened, built: list[Path]) -> None:
    page = opened(built[0] / "index.html", **VIEWS["light"])
    cards = page.locator(".cards > li")
    names = {page.stem for page in built[0].glob("*.html")} - {"index"}
    assert cards.count() == len(names)
    card = cards.first
    card.click(position={"x": 60, "y": 90})  # anywhere on it
    assert Path(page.url).stem in names
    page.go_back()
    card.locator(".data a").click()
    assert page.url.endswith(".data/"), "not hidden below the card's link"
