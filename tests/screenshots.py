"""Pictures of the explorer at four sizes and of a report, taken in Chromium. `make screenshots` runs this."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from conftest import ROOT
from explorer.test_explorer_browser import SIZES, serving
from mmlab.report.execute import make_all
from mmlab.report.request import Request

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = ROOT / "notebooks" / "images"
LARGEST = 200_000
"""Bytes of a picture."""

pytestmark = pytest.mark.filterwarnings("default")  # of the browser's driver


def keep(name: str, shot: bytes) -> None:
    """Save a picture in at most 256 colours."""
    IMAGES.mkdir(exist_ok=True)
    out = io.BytesIO()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    assert len(out.getvalue()) <= LARGEST, f"{name}: {len(out.getvalue())} bytes"
    (IMAGES / name).write_bytes(out.getvalue())
    print(IMAGES / name)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_explorer(browser: Browser, tmp_path: Path, width: int, height: int) -> None:
    """The explorer in JupyterLab, on a phone as a page of its own, with memory that makes page maps differ."""
    with serving(tmp_path, *(["explore", "bimodal"] if width < 800 else ["lab", "mine"])) as address:
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(address)
        page.locator(".mmlab-metrics table").first.wait_for(timeout=600_000)
        if width > 800:
            page.get_by_label("preset", exact=True).select_option("bimodal")
            page.get_by_text("Without a control").wait_for()
            page.wait_for_function("document.querySelector('.mmlab-legend').innerText.includes('KSM pages')")
            page.locator(".mmlab-explore").evaluate("e => e.scrollIntoView()")
        page.get_by_text("simulated twice").wait_for()
        page.wait_for_function("document.querySelector('.mmlab-map canvas').width === 512")
        keep("explorer.png" if width == 1920 else f"explorer-{width}x{height}.png", page.screenshot())
        page.close()


def test_report(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    request = Request(ROOT / "notebooks" / "01_regression.ipynb", out=tmp_path / "report.html")
    assert list(make_all([request])) == [""]
    page.goto(request.page.as_uri())
    page.wait_for_timeout(300)
    keep("report.png", page.screenshot())
    page.close()
