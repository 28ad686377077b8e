"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "tests" / "traces"
RECORDED = Path(os.environ.get("MMLAB_TRACES") or ROOT.parent / "shared" / "traces")
"""More traces, where there are some."""

settings.register_profile("mmlab", deadline=None, print_blob=True)
settings.load_profile("mmlab")


@pytest.fixture(scope="session")
def root() -> Path:
    """Top of the repository."""
    return ROOT
