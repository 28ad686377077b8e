"""What several tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "mmlab" / "recordings"
RECORDED = Path(os.environ.get("MMLAB_TRACES") or ROOT.parent / "shared" / "traces")
"""More traces, where there are some."""

settings.register_profile("mmlab", deadline=None, print_blob=True)
settings.load_profile("mmlab")


@pytest.fixture(scope="session")
def root() -> Path:
    """Top of the repository."""
    return ROOT


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium, headless; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian, Ubuntu: apt install chromium)")
    from playwright.sync_api import sync_playwright

    quiet = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"
    with sync_playwright() as playwright:
        sandbox = os.geteuid() != 0
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet.split(), chromium_sandbox=sandbox)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Where tests leave screenshots to be looked at; not in git."""
    folder = ROOT / "tests" / "artefacts"
    folder.mkdir(exist_ok=True)
    return folder
