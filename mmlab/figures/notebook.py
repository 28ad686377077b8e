"""Output of notebooks: figures with alternative text, tables, findings and one headline, each with its data.

If the environment variable ``MMLAB_TABLES`` names a folder, :func:`show` and :func:`table` also save what they show
there, as Parquet and CSV. Only the maker of reports sets it. The table of a figure is the one that its function passed
to :func:`remember`.
"""

from __future__ import annotations

import base64
import io
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from mmlab.figures.theme import figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Drawn: TypeAlias = Axes | Sequence[Axes] | Figure


DPI = 144
"""Resolution of the images that :func:`show` makes: one and a half pixels to a CSS pixel."""
TABLES = "MMLAB_TABLES"

_drawn: WeakKeyDictionary[Axes, list[tuple[str, pd.DataFrame]]] = WeakKeyDictionary()


def remember(ax: Axes, data: pd.DataFrame, name: str) -> Axes:
    """Note the table that was just drawn into ``ax``; every figure function ends with this.

    Parameters
    ----------
    name : str
        Name of the table's files: the function's name.
    """
    _drawn.setdefault(ax, []).append((name, data))
    return ax


def tables_of(figure: Figure) -> dict[str, pd.DataFrame]:
    """Return the tables that a figure was drawn from, by name.

    Tables of one name become one; its column ``panel`` contains the titles of their Axes.
    """
    found: dict[str, dict[int, tuple[str, pd.DataFrame]]] = {}
    for number, ax in enumerate(figure.axes, start=1):
        title = ax.get_title("left") or ax.get_title() or f"panel {number}"
        for name, data in _drawn.get(ax, ()):
            found.setdefault(name, {}).setdefault(id(data), (title, _plain(data)))  # one drawn twice is one
    tables = {name: pd.concat(dict(parts.values()), names=["panel"]) for name, parts in found.items()}
    return {name: table.reset_index("panel", drop=len(found[name]) == 1) for name, table in tables.items()}


def _plain(data: pd.DataFrame) -> pd.DataFrame:
    """Return the table as a file can hold it: index as columns (unless it only counts), unique names, simple types."""
    unnamed = data.index.name is None and pd.api.types.is_integer_dtype(data.index)
    index = [name or "name" for name in data.index.names]
    out = data.reset_index(drop=True) if unnamed else data.reset_index(names=index, allow_duplicates=True)
    words = (" ".join(map(str, name if isinstance(name, tuple) else [name])) for name in out)
    names = pd.Series([" ".join(each.split()) for each in words], dtype=str)
    again = names.groupby(names).cumcount() + 1
    out = out.set_axis(names.where(again == 1, names + " #" + again.astype(str)), axis=1).infer_objects()
    mixed = [name for name in out if out[name].dtype == object]
    return out.assign(**{name: out[name].map(str, na_action="ignore").astype("str") for name in mixed})


def _save(tables: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
    """Save tables if the maker of reports wants them; return the names of the files, for the output's metadata."""
    if not os.environ.get(TABLES):
        return {}
    folder, names = Path(os.environ[TABLES]), []
    for number, (name, data) in enumerate(tables.items(), start=1 + len(list(folder.glob("*.csv")))):
        words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))  # what every file system and shell accepts
        names.append(f"{number:02}-{textwrap.shorten(words, 40, placeholder='').replace(' ', '-') or 'table'}")
        data.to_csv(folder / f"{names[-1]}.csv", index=False, lineterminator="\n")
        data.to_parquet(folder / f"{names[-1]}.parquet", index=False)
    return {"tables": names}


def png(drawn: Drawn) -> bytes:
    """Return the figure as a PNG of at most 256 colours; the same figure always gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure = figure_of(drawn)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)  # the pixels of savefig, which would lay the figure out twice
    canvas.draw()  # type: ignore[no-untyped-call]
    image, out = Image.fromarray(np.asarray(canvas.buffer_rgba())), io.BytesIO()  # type: ignore[no-untyped-call]
    image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, "PNG")
    return out.getvalue()


def show(drawn: Drawn, alt: str, caption: str = "") -> None:
    """Display a figure in a notebook with its alternative text.

    The text is also the output's plain form: a comparison of notebook outputs compares it, and not the pixels.

    Parameters
    ----------
    alt : str
        Content of the figure, for those who cannot see it.
    caption : str
        A line below it.
    """
    _display(*as_output(drawn, alt, caption))


def as_output(drawn: Drawn, alt: str, caption: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data and metadata of what `show` displays."""
    figure = figure_of(drawn)
    about = {"alt": alt, "caption": caption, "width": round(figure.get_figwidth() * 96), **_save(tables_of(figure))}
    return {"image/png": base64.b64encode(png(drawn)).decode(), "text/plain": alt}, {"image/png": about}


def table(
    data: pd.DataFrame, caption: str = "", digits: Mapping[str, int] | int = 1, errors: pd.DataFrame | None = None
) -> None:
    """Display a table in a notebook: thousands separated, ``digits`` decimals for fractions, "–" for NaN.

    Parameters
    ----------
    errors : DataFrame, optional
        Standard errors of some of the columns, in the same rows: shown behind ±, with as many decimals as they need.
        The table's files have them in columns of their own.
    """
    from jinja2 import Environment, PackageLoader

    columns = []
    for number, column in enumerate(data):
        places = digits if isinstance(digits, int) else digits.get(str(column), 1)
        sigma = errors[column] if errors is not None and column in errors else np.zeros(len(data))
        columns.append([_cell(*pair, places) for pair in zip(data.iloc[:, number], sigma, strict=True)])
    text = pd.DataFrame(zip(*columns, strict=True), data.index, data.columns)
    left = [not pd.api.types.is_numeric_dtype(kind) for kind in data.dtypes]
    template = Environment(autoescape=True, trim_blocks=True, loader=PackageLoader("mmlab", "figures"))
    html = template.get_template("table.html.j2").render(caption=caption, cells=text, rows=text.to_numpy(), left=left)
    _display(
        {"text/html": html, "text/plain": f"{caption}\n{text.to_string()}".strip()},
        {"text/html": {"caption": caption, **_save({caption: _plain(with_errors(data, errors))})}},
    )


def _cell(value: object, error: float, places: int) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return "∞" if np.isinf(value) else sure(float(value), error, places)
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def sure(value: float, error: float, places: int = 1) -> str:
    """Format a number with its standard error, if that is above 0.01 % of it, and with the decimals that it needs.

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
    """Return the table with each column's errors beside it, in a column ``se …``."""
    out = data.copy()
    if errors is not None:
        for column in errors:
            out.insert(out.columns.get_loc(column) + 1, f"se {column}", errors[column])
    return out


def say(markdown: str) -> None:
    """Display findings that were computed, as Markdown."""
    _display({"text/markdown": markdown, "text/plain": markdown})


def headline(value: str, words: str) -> None:
    """Display the result of a notebook, large; the index of reports shows it, too.

    Parameters
    ----------
    value : str
        The number with its unit, such as ``27 batches``. Short: it is a heading.
    words : str
        What was measured, such as ``free 920 MiB on mainline``.
    """
    html = f'<p style="font-size:1.1em"><strong style="font-size:2em">{escape(value)}</strong> {escape(words)}</p>'
    about = {"text/html": {"headline": {"value": value, "words": words}}}
    _display({"text/html": html, "text/plain": f"{value} {words}"}, about)


def _display(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    from IPython.display import display

    display(data, metadata=metadata, raw=True)  # type: ignore[no-untyped-call]
