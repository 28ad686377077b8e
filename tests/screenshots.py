"""The README's pictures, taken in Chromium: the explorer in JupyterLab, and a report. `make screenshots` runs this."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from conftest import ROOT
from explorer.test_explorer_browser import Lab, address, folder, lab  # noqa: F401 (fixtures)
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


def test_explorer(lab: Lab) -> None:  # noqa: F811
    lab.page.set_viewport_size({"width": 1920, "height": 1080})
    lab.until(lambda seen: len(set(seen["pictures"])) >= 6)
    lab.root.locator(".widget-play button:enabled").first.wait_for()
    slider = lab.root.locator(".mmlab-play .noUi-handle")
    slider.focus()
    for _ in range(20):  # a moment in the middle: page maps that differ
        slider.press("ArrowLeft")
    lab.page.evaluate("document.querySelector('.mmlab-explore').scrollIntoView()")
    lab.page.wait_for_timeout(1500)
    keep("explorer.png", lab.page.screenshot())


def test_report(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    request = Request(ROOT / "notebooks" / "01_regression.ipynb", out=tmp_path / "report.html")
    assert list(make_all([request])) == [""]
    page.goto(request.page.as_uri())
    page.wait_for_timeout(300)
    keep("report.png", page.screenshot())
    page.close()
