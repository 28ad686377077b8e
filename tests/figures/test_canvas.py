"""Pictures that are drawn again and again: axes are kept, page maps show the letters."""

import io

import numpy as np
import pytest
from PIL import Image

from mmlab import Scenario, simulate
from mmlab.figures import canvas, figures
from mmlab.figures.theme import LETTERS

SCENARIO = Scenario(memory_mib=16, zero_fraction=0.5, use_zero_pages=1, pages_to_scan=100, horizon_seconds=20.0)


def test_axes_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same axis is drawn once for all canvases."""
    monkeypatch.setattr(canvas, "KEPT", 3)
    monkeypatch.setattr(canvas.Canvas, "kept", {})
    run = simulate(SCENARIO)
    one, other = canvas.Canvas(), canvas.Canvas()
    for end in (5.0, 8.0, 10.0, 5.0):
        one.draw(figures.memory, run, until=end)
    assert [key[-1] for key in canvas.Canvas.kept if key[0] == "x"] == [10.0, 5.0]
    kept = list(canvas.Canvas.kept.values())
    other.draw(figures.memory, run, until=5.0)
    assert [id(each) for each in canvas.Canvas.kept.values()] == [id(each) for each in kept]


def test_pictures_do_not_depend_on_what_was_drawn_before() -> None:
    runs = {name: simulate(SCENARIO, variant=name) for name in ("mainline", "legacy")}
    used = canvas.Canvas()
    for draw, data in ((figures.memory, runs["mainline"]), (figures.counters, runs), (figures.cpu, runs)):
        picture = used.draw(draw, data, until=10.0)
        assert picture == canvas.Canvas().draw(draw, data, until=10.0) == used.draw(draw, data, until=10.0)
        assert Image.open(io.BytesIO(picture)).size == (canvas.WIDTH, canvas.HEIGHT)


def test_end_of_changes() -> None:
    run = simulate(SCENARIO)
    last = run.rows["time_ns"][1:][np.diff(run.rows["frames"]) != 0].max() / 1e9
    assert last < figures.end_of_changes([run]) < min(1.7 * last, 20)
    still = simulate(SCENARIO.replace(thp_coverage=0.0, zero_fraction=0.0))
    assert figures.end_of_changes([still]) == pytest.approx(20, abs=0.1), "nothing changes"


def test_page_map_is_a_picture_of_the_letters() -> None:
    letters = np.frombuffer(b"HHHHAZKNHHHH", np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(canvas.page_map_image([letters, letters[:4]], 4))).convert("RGB"))
    down, right = canvas.HEIGHT // 4, canvas.HEIGHT // 4
    assert picture.shape == (4 * down, 4 * right, 3)
    seen = [f"#{bytes(pixel.tolist()).hex().upper()}" for pixel in picture[::down, ::right].reshape(-1, 3)]
    assert seen == [LETTERS[chr(letter)][1] for letter in [*letters, *letters[:4]]]
    many = canvas.page_map_image([np.full(5000 * 512, ord("H"), np.uint8)], 512)
    assert Image.open(io.BytesIO(many)).size == (512, canvas.MAP_ROWS)
