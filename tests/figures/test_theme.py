"""What all figures are drawn with: lines that stay the same when thinned, round axes, looks that differ in grey."""

import matplotlib as mpl
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

mpl.use("Agg")

import matplotlib.pyplot as plt

from mmlab.figures import theme


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=300).map(sorted),
    st.integers(0, 1000),
    st.floats(1, 120),
    st.integers(1, 20),
)
def test_thinned_lines_show_the_same(times: list[float], seed: int, end: float, columns: int) -> None:
    """Each column of a picture keeps its first, last, smallest and largest value; nothing after the end."""
    time, values = np.array(times), np.random.default_rng(seed).integers(0, 5, len(times))
    keep = theme.thin(time, values, end, columns)
    shown = time <= end
    assert (np.diff(keep) > 0).all()
    assert shown[keep].all()
    column = np.floor(time * (columns / end))
    for each in np.unique(column[shown]):
        every, kept = (np.flatnonzero(shown & (column == each)), keep[column[keep] == each])
        assert (every[0], every[-1]) == (kept[0], kept[-1])
        assert (values[every].min(), values[every].max()) == (values[kept].min(), values[kept].max())
        assert len(kept) <= 4 or len(keep) == shown.sum() <= 4 * columns


def test_axes_end_at_round_numbers() -> None:
    ends = [theme.round_up(v) for v in (0, 0.7, 1, 1.01, 46, 51, 99, 460)]
    assert ends == [1, 0.8, 1, 1.5, 50, 80, 100, 500]
    assert [theme.short(v) for v in (0, 0.5, 1500, 10_000, 2_500_000)] == ["0", "0.5", "1,500", "10k", "2.5M"]


def test_step_lines_hold_their_values_and_have_markers() -> None:
    x, y, look = theme.step_line(np.array([0.0, 4.0]), np.array([1.0, 3.0]), 10.0)
    assert (y[x < 4] == 1).all()
    assert (y[x > 4] == 3).all()
    assert (x[0], x[-1]) == (0, 10)
    assert len(look["markevery"]) == theme.MARKS


def test_lines_differ_in_grey() -> None:
    looks = [theme.style(number) for number in range(9)]
    assert len({str(look["linestyle"]) for look in looks}) == len({look["marker"] for look in looks}) == 9
    assert len({part["hatch"] for part in theme.PARTS}) == len(theme.PARTS)


def test_one_legend_below_all() -> None:
    panels = theme.axes(2)
    for ax, label in zip(panels, ("one", "other"), strict=True):
        ax.plot([0, 1], [0, 1], label="both")
        ax.plot([0, 1], [1, 0], label=label)
    panels[0].legend()
    theme.legend_below(panels)
    (legend,) = theme.figure_of(panels).legends
    assert [text.get_text() for text in legend.get_texts()] == ["both", "one", "other"]
    assert not any(ax.get_legend() for ax in panels)
    plt.close("all")


def test_the_users_own_settings_do_not_show() -> None:
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 40}):
        ax = theme.axes()[0]
    assert ax.get_facecolor() == (1, 1, 1, 1)
    assert ax.title.get_fontsize() == 11
