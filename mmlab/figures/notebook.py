"""Into a notebook: figures with their alternative text, tables, words, and one headline; each with its data.

:func:`show` and :func:`table` keep what they show as a table, too, as Parquet and CSV, in the folder that the
environment variable ``MMLAB_TABLES`` names. Only the maker of reports sets it: elsewhere nothing is written. A figure's
table is the one that its function gave to :func:`remember`.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure_of", "headline", "png", "remember", "say", "show", "sure", "table", "tables_of", "with_errors"]

DPI = 144
"""Of the images that :func:`show` makes: one and a half pixels to a CSS pixel."""
TABLES = "MMLAB_TABLES"

_drawn: WeakKeyDictionary[Axes, list[tuple[str, pd.DataFrame]]] = WeakKeyDictionary()


def remember(ax: Axes, data: pd.DataFrame, name: str) -> Axes:
    """Note that ``data`` is what was just drawn into ``ax``; every function that draws a figure ends with this.

    Parameters
    ----------
    name : str
        What the table's files will be called: the function's name.
    """
    _drawn.setdefault(ax, []).append((name, data))
    return ax


def figure_of(drawn: Axes | Sequence[Axes]) -> Figure:
    """The figure that these Axes are in."""
    first = drawn[0] if isinstance(drawn, Sequence) else drawn
    figure = first.get_figure(root=True)
    assert figure is not None
    return figure


def tables_of(figure: Figure) -> dict[str, pd.DataFrame]:
    """What a figure was drawn from, by name. Panels of a kind are one table; its column ``panel`` has their titles."""
    parts: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for number, ax in enumerate(figure.axes, start=1):
        title = ax.get_title("left") or ax.get_title() or f"panel {number}"
        for name, data in _drawn.get(ax, ()):
            if not any(data is other for _, other in parts.get(name, ())):
                parts.setdefault(name, []).append((title, data))
    return {
        name: plain(found[0][1])
        if len(found) == 1
        else pd.concat({title: plain(data) for title, data in found}, names=["panel"]).reset_index("panel")
        for name, found in parts.items()
    }


def plain(data: pd.DataFrame) -> pd.DataFrame:
    """As a file can hold it: the index as a column unless it only counts; each column with a type and a name."""
    unnamed = data.index.name is None and pd.api.types.is_integer_dtype(data.index)
    index = [name or "name" for name in data.index.names]
    out = data.reset_index(drop=True) if unnamed else data.reset_index(names=index, allow_duplicates=True)
    names: list[str] = []
    for column in out:
        name = " ".join(" ".join(map(str, column if isinstance(column, tuple) else [column])).split())
        again = sum(other.partition(" #")[0] == name for other in names)
        names.append(f"{name} #{again + 1}" if again else name)
    out = out.set_axis(pd.Index(names), axis=1).infer_objects()
    mixed = [name for name in names if out[name].dtype == object]
    return out.assign(**{name: out[name].map(str, na_action="ignore").astype("str") for name in mixed})


def keep(tables: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
    """Save tables where the maker of reports wants them; for the output's metadata, the names of the files."""
    if not os.environ.get(TABLES):
        return {}
    folder, names = Path(os.environ[TABLES]), []
    for name, data in tables.items():
        names.append(f"{len(list(folder.glob('*.csv'))) + 1:02}-{_file_name(name)}")
        data.to_csv(folder / f"{names[-1]}.csv", index=False, lineterminator="\n")
        data.to_parquet(folder / f"{names[-1]}.parquet", index=False)
    return {"tables": names}


def _file_name(words: str) -> str:
    """The first words, in letters that every file system and shell takes."""
    name = "-".join(re.findall(r"[a-z0-9]+", words.lower()))
    return (name if len(name) <= 40 else name[:41].rpartition("-")[0]) or "table"


def png(drawn: Axes | Sequence[Axes]) -> bytes:
    """The figure as a PNG of at most 256 colours: the same bytes for the same figure (no date, no version inside)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = figure_of(drawn)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)  # the pixels of savefig, which would lay the figure out twice
    canvas.draw()  # type: ignore[no-untyped-call]
    image, out = Image.fromarray(np.asarray(canvas.buffer_rgba())), io.BytesIO()  # type: ignore[no-untyped-call]
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def show(drawn: Axes | Sequence[Axes], alt: str, caption: str = "") -> None:
    """Display a figure in a notebook with its alternative text, then close it.

    The text is the output's plain form, too, so a comparison of notebook outputs compares it (and not the pixels).

    Parameters
    ----------
    alt : str
        What the figure says, for those who cannot see it.
    caption : str
        A line below it.
    """
    import matplotlib.pyplot as plt

    figure = figure_of(drawn)
    about = {"alt": alt, "caption": caption, "width": round(figure.get_figwidth() * 96), **keep(tables_of(figure))}
    data = {"image/png": base64.b64encode(png(drawn)).decode(), "text/plain": alt}
    plt.close(figure)
    _display(data, {"image/png": about})


def table(
    data: pd.DataFrame,
    caption: str = "",
    digits: Mapping[str, int] | int = 1,
    errors: pd.DataFrame | None = None,
) -> None:
    """Display a table in a notebook: thousands separated, ``digits`` decimals for fractions, "–" for not a number.

    Parameters
    ----------
    errors : DataFrame, optional
        Standard errors of some of the columns, by the same names and rows: shown behind ±, with as many decimals as
        tell something. In the table's files they are columns of their own.
    """

    def words(value: object, places: int) -> str:
        if isinstance(value, (bool, np.bool_)):
            return "yes" if value else "no"
        if isinstance(value, (int, np.integer)):
            return f"{value:,}"
        if isinstance(value, (float, np.floating)):
            return "–" if np.isnan(value) else "∞" if np.isinf(value) else f"{value:,.{places}f}"
        return str(value)

    text = data.copy().astype(object)
    for column in text:
        places = digits if isinstance(digits, int) else digits.get(str(column), 1)
        text[column] = [words(value, places) for value in data[column]]
        if errors is not None and column in errors:
            parts = zip(data[column], errors[column], text[column], strict=True)
            text[column] = [sure(value, error, places) if error > 0 else word for value, error, word in parts]
    left = {column for column in data if not pd.api.types.is_numeric_dtype(data[column])}
    head = "".join(f'<th scope="col"{_class(c in left)}>{escape(str(c))}</th>' for c in data.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>'
        + "".join(f"<td{_class(c in left)}>{escape(row[c])}</td>" for c in data.columns)
        + "</tr>\n"
        for name, (_, row) in zip(data.index, text.iterrows(), strict=True)
    )
    html = (
        f"<table>\n<caption>{escape(caption)}</caption>\n"
        f'<thead><tr><th scope="col">{escape(str(data.index.name or ""))}</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table>"
    )
    _display(
        {"text/html": html, "text/plain": f"{caption}\n{text.to_string()}".strip()},
        {"text/html": {"caption": caption, **keep({caption: plain(with_errors(data, errors))})}},
    )


def sure(value: float, error: float, places: int = 1) -> str:
    """A number with its standard error, if that is more than 0.01 % of it, and more decimals where that needs them.

    >>> [sure(*each).replace("\\xa0", " ") for each in ((1234.56, 0.2), (3.0, 12.3), (3.0, 0.004), (3.0, 1e-6))]
    ['1,234.6 ± 0.2', '3.0 ± 12.3', '3.000 ± 0.004', '3.0']
    """
    if np.isnan(value):
        return "–"
    if not error > 1e-4 * abs(value):
        return f"{value:,.{places}f}"
    if error < 0.5 * 10.0**-places:
        places = int(np.ceil(-np.log10(error)))
    return f"{value:,.{places}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{error:,.{places}f}"


def with_errors(data: pd.DataFrame, errors: pd.DataFrame | None) -> pd.DataFrame:
    """The errors beside what they are of, in columns ``se …``."""
    if errors is None:
        return data
    out = data.copy()
    for column in errors:
        out.insert(out.columns.get_loc(column) + 1, f"se {column}", errors[column])
    return out


def _class(left: bool) -> str:
    return ' class="text"' if left else ""


def say(markdown: str) -> None:
    """Display words in a notebook: findings that were computed."""
    _display({"text/markdown": markdown, "text/plain": markdown})


def headline(value: str, words: str) -> None:
    """Display the one number that a notebook comes to, large; the index of reports shows it, too.

    Parameters
    ----------
    value : str
        The number with its unit, such as ``27 batches``. Short: it is a heading.
    words : str
        What it is, such as ``free 920 MiB on mainline``.
    """
    html = f'<p style="font-size:1.1em"><strong style="font-size:2em">{escape(value)}</strong> {escape(words)}</p>'
    about = {"text/html": {"headline": {"value": value, "words": words}}}
    _display({"text/html": html, "text/plain": f"{value} {words}"}, about)


def _display(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    from IPython.display import display

    display(data, metadata=metadata, raw=True)  # type: ignore[no-untyped-call]
