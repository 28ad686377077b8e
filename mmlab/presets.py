"""The scenarios of `params/`, by name, wherever mmlab was installed."""

from __future__ import annotations

import sys
from pathlib import Path

from mmlab.errors import UserError, unknown

__all__ = ["find", "folder", "presets"]


def folder(name: str = "params") -> Path:
    """Where ``params`` or ``notebooks`` are: beside the library in a clone, under ``share/mmlab`` of an installation.

    Raises
    ------
    UserError
        They are in none of these places.
    """
    here = Path(__file__)
    prefixes = [Path(sys.prefix), *here.parents[4:5]]  # the latter is above lib/python3.X/site-packages/mmlab
    places = (here.parents[1] / name, *(prefix / "share" / "mmlab" / name for prefix in prefixes))
    for place in places:
        if place.is_dir():
            return place
    raise UserError(f"{name}: the folder is in none of {', '.join(map(str, places))}: install mmlab anew")


KINDS = {"": "params file", "grids": "grid", "goals": "goals file", "fleets": "fleet file"}
"""Folders within ``params/``, and what to call a file of each."""


def presets(kind: str = "") -> dict[str, Path]:
    """Every file of ``params/``, or of one of its folders (:data:`KINDS`), by its name without the ending."""
    return {path.stem: path for path in sorted((folder() / kind).glob("*.yaml"))}


def find(name: str | Path, kind: str = "") -> Path:
    """A file by its path, or one of :func:`presets` by its name.

    Raises
    ------
    UserError
        There is neither.

    Examples
    --------
    >>> find("all_zero").name, find("one_image", "goals").name
    ('all_zero.yaml', 'one_image.yaml')
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = presets(kind)
    if str(name) in shipped:
        return shipped[str(name)]
    where = f"params/{kind}/" if kind else "params/"
    raise UserError(unknown(KINDS[kind], name, shipped, f"Name a file, or one of {where} without its ending."))
