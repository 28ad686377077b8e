"""The explorer's widgets, their layout, and how results are shown in them. The words are in ``explorer.html.j2``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from mmlab.errors import UserError
from mmlab.explorer.comparison import CELLS, SIGNS, Comparison, Frame, template
from mmlab.explorer.debounce import Job
from mmlab.explorer.widgets import STYLE, choice
from mmlab.scenario import flat_fields
from mmlab.variants import Variant

__all__ = ["Layout"]

KINDS = {"knob": "Kernel knobs", "workload": "Memory", "machine": "Machine", "horizon": "Run"}
PROGRESS = 1.0
"""Seconds after which a job's progress is shown."""


class Layout:
    """All widgets of an explorer.

    Attributes
    ----------
    box : widget
        The whole explorer, to display.
    controls : dict
        By the scenario's field, and ``variant`` and ``compare``: widgets with a ``value``.
    images, heads : dict
        A picture and the words above it for each of `comparison.CELLS`.
    shown : Comparison
        The comparison on display; None before the first one.
    seconds : tuple
        Time that its simulations took, and the whole update.
    """

    def __init__(self, controls: dict[str, Any], presets: Sequence[str]) -> None:
        self.controls, self.timing = controls, ""
        self.frames: list[Frame] = []
        self.shown: Comparison | None = None
        self.seconds = 0.0, 0.0
        self.words = template().module
        html, button = widgets.HTML, widgets.Button
        self.summary, self.status, self.table, self.error = html(), html(), html(), html()
        self.explained, self.message, self.code, self.caption = html(), html(), html(), html()
        self.heads = {name: html() for name in CELLS}
        self.images = {name: widgets.Image(format="png") for name in CELLS}
        self.bar = widgets.FloatProgress(min=0, max=1, layout={"visibility": "hidden"})
        options = [("as started", ""), *((name, name) for name in presets)]
        self.preset = choice("preset", options, "", "a file of params/ to start from")
        self.reset = button(description="Reset", tooltip="all controls as they were at the start", icon="undo")
        self.path = widgets.Text("my_scenario.yaml", description="file", style=STYLE)
        about = "a params file for `mmlab simulate` and `mmlab report`"
        self.save = button(description="Save as YAML", tooltip=about, icon="save")
        about = "time axes until the end of the run, not only until the last change"
        self.whole = widgets.ToggleButton(description="whole run", tooltip=about)
        self.play = widgets.Play(max=0, interval=150, disabled=True, show_repeat=False)
        self.moment = widgets.IntSlider(max=0, description="moment", readout=False, disabled=True)
        widgets.jslink((self.play, "value"), (self.moment, "value"))
        self.moment.observe(self.show_moment, "value")
        self.view = self._view()
        self.box = _box("explore", html(str(self.words.style())), _box("sides", self._side(), self.view))

    def _side(self) -> Any:
        """Return the controls in groups; in each of them switches come last."""
        kinds = {name: about.kind for name, about in flat_fields().items() if name != "variant"}
        code, path = self.code.add_class("mmlab-code"), self.path.add_class("mmlab-path")
        variants = self.controls["variant"], self.controls["compare"]
        groups = {"Scenario and fix": [_box("row", self.preset, self.reset), *variants, self.explained]}
        for kind, title in KINDS.items():
            group = [control for name, control in self.controls.items() if kinds.get(name) == kind]
            groups[title] = sorted(group, key=lambda control: isinstance(control, widgets.ToggleButton))
        groups[KINDS["horizon"]].append(self.whole.add_class("mmlab-switch"))
        groups["Keep it"] = [path, _box("row", self.save, code), self.message]
        boxes = [
            _box("group", widgets.HTML(self.words.title(title)), *group) for title, group in groups.items() if group
        ]
        return _box("controls", *boxes)

    def _view(self) -> Any:
        """Return the results."""
        cells = [_box(name.split()[0], self.heads[name], self.images[name]) for name in CELLS]
        player = _box("player", self.caption, _box("play", self.play, self.moment))
        status, grid = _box("status", self.status, self.bar), _box("grid", *cells[:-2], player, *cells[-2:])
        summary, error = self.summary.add_class("mmlab-summary"), self.error.add_class("mmlab-error")
        return _box("view", summary, status, grid, self.table, error)

    def show(self, found: Comparison) -> None:
        """Show two runs, and the time that the simulations and the whole update took."""
        self.shown = found
        for name, head in found.heads.items():
            self.heads[name].value = head
        for name, picture in found.pictures.items():
            self.images[name].value = picture
        self.summary.value, self.table.value, self.code.value = found.summary, found.table, self.words.code(found.code)
        self.status.value = self.timing = self.words.status(self.seconds)
        self.error.value = ""
        self.view.remove_class("mmlab-old")
        self.show_frames([found.last])

    def show_frames(self, frames: list[Frame]) -> None:
        """Take page maps for the player, and show the last one."""
        self.frames, last = frames, len(frames) - 1
        for player in (self.play, self.moment):
            player.max, player.value, player.disabled = last, last, not last
        self.show_moment()

    def show_moment(self, _: Any = None) -> None:
        """Show the page maps at the player's position."""
        if self.moment.value < len(self.frames):
            frame = self.frames[self.moment.value]
            self.caption.value = self.words.caption(frame)
            for number, picture in enumerate(frame.pictures):
                self.images[f"map {number}"].value = picture

    def show_status(self, job: Job | None) -> None:
        """Show the progress of a job that takes long; None means that it has ended."""
        long = job is not None and job.age > PROGRESS
        self.bar.layout.visibility = "visible" if long else "hidden"
        if job is None:
            self.status.value = self.timing
        elif long:
            self.bar.value, self.status.value = job.share, escape(job.note or "simulating …")

    def show_error(self, error: Exception) -> None:
        """Show in red what is wrong, and fade the figures: they no longer belong to the controls."""
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.error.value = self.words.error(words)
        self.view.add_class("mmlab-old")
        if (name := getattr(error, "parameter", "")) in self.controls:
            self.controls[name].add_class("mmlab-wrong")

    def explain(self, variants: Sequence[Variant], others: Mapping[str, object]) -> None:
        """Describe the variants, and the fields that differ from their defaults without a control; clear errors."""
        self.explained.value = self.words.explained(list(zip(SIGNS, variants, strict=True)), others)
        for control in self.controls.values():
            control.remove_class("mmlab-wrong")


def _box(name: str, *children: Any) -> Any:
    """Return a box whose layout is in the style sheet."""
    return widgets.Box(children).add_class(f"mmlab-{name}")
