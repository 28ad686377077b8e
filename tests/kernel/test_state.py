"""The tables and constants, and how the modules of the package take them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from mmlab.kernel import state

FOLDER = Path(state.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "state"))


OWN = {
    name
    for name, value in vars(state).items()
    if not name.startswith("_")
    and (isinstance(value, int | tuple | list | np.dtype) or getattr(value, "__module__", "") == state.__name__)
}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_redefines_a_constant(name: str) -> None:
    """`import *` would hide it, or be hidden, without a word."""
    module = import_module(f"mmlab.kernel.{name}")
    taken = {key for key in OWN if key in vars(module)}
    assert {key for key in taken if vars(module)[key] is not vars(state)[key]} == set()


def test_records_are_what_their_docstrings_list() -> None:
    assert state.pte_t.names == ("kind", "bits", "vm", "item", "age", "skips", "seq", "nid")
    assert state.pte_t.itemsize == 8  # what `words` needs
    assert state.page_t.names == ("key", "frame", "left", "right", "parent")
    assert [state.frame_t[name] for name in state.frame_t.names or ()] == [np.int32] * 3 + [np.uint16] * 2
    assert {"run", "shrinker_skips_mlocked", "hpage_order"} <= set(state.state_t.names or ())
