"""Small pictures that are drawn again and again, each within a few milliseconds: the explorer's.

A :class:`Canvas` keeps its Axes. The figure functions draw into it as into any other Axes, but an axis with its grid,
ticks and label is drawn once for each range and kept as a picture: only lines and areas are drawn anew, on a copy of
it. Titles and legends are not in the pictures but beside them, as HTML.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mmlab.figures.theme import palette, use_theme

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from PIL import Image

__all__ = ["HEIGHT", "MAP_ROWS", "WIDTH", "Canvas", "page_map_image", "swatch"]

WIDTH, HEIGHT = 540, 310
"""Pixels of a picture."""
DPI = 128
KEPT = 64
"""Pictures of axes that are kept, 0.7 MB each."""
MAP_ROWS = 1024
"""Most rows of the picture of a page map."""


class Canvas:
    """Axes that any figure function can draw into, again and again. Use it in one thread at a time."""

    kept: ClassVar[dict[tuple[object, ...], np.ndarray]] = {}
    """Pictures of single axes, the most recently used last."""

    swatches: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        use_theme()
        self.canvas: Any = FigureCanvasAgg(Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI))
        self.ax = self.canvas.figure.add_axes((0.155, 0.2, 0.81, 0.77))
        self.ax.xaxis.set_label_coords(0.5, -0.15)  # fixed: matplotlib would measure the ticks each time
        self.ax.yaxis.set_label_coords(-0.15, 0.5)

    def draw(self, figure: Callable[..., Any], *args: Any, **kwargs: Any) -> bytes:
        """Return a figure as a PNG.

        Parameters
        ----------
        figure : callable
            A figure function with the parameters ``ax`` and ``brief``; the others are passed on to it.
        """
        from PIL import Image

        for artist in self._drawn():
            artist.remove()
        figure(*args, ax=self.ax, brief=True, **kwargs)
        pixels = np.asarray(self.canvas.get_renderer().buffer_rgba())
        np.minimum(self._axis("x"), self._axis("y"), out=pixels)  # the darker of both
        for artist in self._drawn():
            self.ax.draw_artist(artist)
        image = (
            Image.fromarray(pixels).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        )
        image.putpalette([255 if value >= 247 else value for value in image.getpalette() or ()])  # white paper is white
        return _png(image)

    def legend(self) -> str:
        """Return the legend of what was drawn last, as HTML."""
        words = []
        for artist, label in zip(*self.ax.get_legend_handles_labels(), strict=True):
            names = ("color", "linestyle", "marker", "linewidth", "alpha", "facecolor", "hatch")
            look = str([getattr(artist, f"get_{name}")() for name in names if hasattr(artist, f"get_{name}")])
            if look not in self.swatches:
                self.swatches[look] = swatch(artist)
            words.append(f'<span class="mmlab-key">{self.swatches[look]}{escape(label)}</span>')
        return "".join(words)

    def _drawn(self) -> list[Artist]:
        """Return what a figure function has drawn, from the bottom up."""
        return [*self.ax.collections, *self.ax.patches, *self.ax.lines, *self.ax.texts]

    def _axis(self, name: Literal["x", "y"]) -> np.ndarray:
        """Return the picture of one axis on white: kept, or drawn now."""
        axis, side = getattr(self.ax, f"{name}axis"), {"x": "bottom", "y": "left"}[name]
        key = name, axis.get_scale(), axis.get_label_text(), *axis.get_view_interval().tolist()
        if (picture := self.kept.pop(key, None)) is None:
            self.ax.minorticks_off()
            if axis.get_scale() == "linear":
                self.ax.locator_params(axis=name, nbins=5)
            renderer = self.canvas.get_renderer()
            renderer.clear()
            for part in (self.canvas.figure.patch, axis, self.ax.spines[side]):
                part.draw(renderer)
            picture = np.array(self.canvas.buffer_rgba())
        self.kept[key] = picture
        while len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return picture


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)  # quick, and always the same bytes
    return out.getvalue()


def swatch(artist: Artist, width: int = 22, height: int = 12) -> str:
    """Return an HTML image that shows how a line or an area looks, for a legend beside a picture."""
    from matplotlib.figure import Figure

    figure, out = Figure(figsize=(width / 64, height / 64), dpi=DPI), io.BytesIO()  # two pixels to a CSS pixel
    size = {"handlelength": width / 64 * 7.2, "handleheight": height / 64 * 7.2, "fontsize": 10}
    figure.legend([artist], [""], loc="center", borderpad=0, handletextpad=0, frameon=False, **size)
    figure.savefig(out, format="png", transparent=True)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="" width="{width}" height="{height}" src="data:image/png;base64,{data}">'


def page_map_image(processes: Sequence[np.ndarray], pages_per_thp: int) -> bytes:
    """Return the page maps of processes, one below the other, as a PNG: a row a block, a pixel a page.

    Parameters
    ----------
    processes : sequence of array
        Letters, as :meth:`mmlab.Run.page_map` returns them. Of more than :data:`MAP_ROWS` blocks, evenly chosen ones
        are shown.
    """
    from PIL import Image

    filled = [np.pad(letters, (0, -len(letters) % pages_per_thp), constant_values=ord("N")) for letters in processes]
    blocks = np.concatenate(filled).reshape(-1, pages_per_thp)
    if len(blocks) > MAP_ROWS:
        blocks = blocks[np.linspace(0, len(blocks) - 1, MAP_ROWS).round().astype(int)]
    for axis in (0, 1):  # small maps are enlarged here: a browser would blur them
        blocks = np.repeat(blocks, max(1, HEIGHT // blocks.shape[axis]), axis=axis)
    picture = Image.fromarray(blocks).convert("P")
    picture.putpalette(palette().tobytes())
    return _png(picture)
