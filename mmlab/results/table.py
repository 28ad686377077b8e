"""Text tables of the command line.

>>> print(text_table({"variant": ["legacy", "mainline"], "THPs": [1024, 7], "MiB": [0.5, None]}))
variant    THPs   MiB
legacy    1,024  0.50
mainline      7     -
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


NUMBER = re.compile(r"([-+−±] ?)?\d|-?$")


def number(value: object, digits: int = 2) -> str:
    """Return a value as text: thousands separated, fractions with this number of digits, "-" for a missing value.

    >>> number(1234), number(1234.5), number(None), number("text")
    ('1,234', '1,234.50', '-', 'text')
    """
    if value is None or value != value:  # NaN is not equal to itself
        return "-"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if isinstance(value, float | np.floating) else str(value)


def text_table(
    table: pd.DataFrame | Mapping[str, Iterable[object]], *, digits: int = 2, header: bool = True, indent: int = 0
) -> str:
    """Return a table as text, a line for each row; columns of numbers are aligned to the right, others to the left.

    Parameters
    ----------
    table
        Columns by their headings: a DataFrame (its index is not shown) or a mapping. Texts that begin like a number,
        e.g. "12 %", count as numbers.
    digits
        Digits of fractions.
    header
        Show the headings.
    indent
        Blanks before each line.
    """
    columns = []
    for heading, values in table.items():
        cells = [number(value, digits) for value in values]
        right = all(map(NUMBER.match, cells))
        cells = [str(heading), *cells] if header else cells
        width = max(map(len, cells), default=0)
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    return "\n".join(" " * indent + "  ".join(row).rstrip() for row in zip(*columns, strict=True))
