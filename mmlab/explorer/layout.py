"""The explorer's widgets, their layout, and how results are shown in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from mmlab.errors import UserError
from mmlab.explorer.comparison import CELLS, SIGNS, Comparison, Frame
from mmlab.explorer.debounce import Job
from mmlab.explorer.widgets import Switch
from mmlab.scenario import flat_fields
from mmlab.variants import Variant

__all__ = ["Layout"]

STYLE = Path(__file__).with_name("explorer.css")
KINDS = {"knob": "Kernel knobs", "workload": "Memory", "machine": "Machine", "horizon": "Run"}
PROGRESS = 1.0
"""Seconds after which a job's progress is shown."""
COPY = """
this.nextElementSibling.hidden = false;
getSelection().selectAllChildren(this.nextElementSibling);
navigator.clipboard?.writeText(this.nextElementSibling.textContent).then(() => {this.textContent = "Copied"});
"""
"""Shows the code, selects it, and copies it where the browser allows that."""
NAMES = """
const root = this.closest(".mmlab-explore"), name = (part, words) => part?.setAttribute("aria-label", words);
root.querySelectorAll(".mmlab-number, .mmlab-play .widget-slider").forEach(
  row => name(row.querySelector(".noUi-handle"), row.querySelector("label").textContent));
root.querySelectorAll(".mmlab-play button").forEach((button, i) => name(button, ["play or pause", "stop"][i]));
root.querySelectorAll(".mmlab-grid img.widget-image").forEach(
  image => {image.alt = image.parentNode.querySelector(".mmlab-head").textContent});
"""
"""Sets what ipywidgets cannot: names of slider handles and player buttons, and the pictures' alternative texts."""
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
LABELLED: dict[str, Any] = {"style": {"description_width": "initial"}}


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
    """

    def __init__(self, controls: dict[str, Any], presets: Sequence[str]) -> None:
        self.controls = controls
        self.frames: list[Frame] = []
        self.timing = ""
        html = widgets.HTML
        self.summary, self.status, self.table, self.error = html(), html(), html(), html()
        self.explained, self.message, self.code, self.caption = html(), html(), html(), html()
        self.bar = widgets.FloatProgress(min=0, max=1, layout={"visibility": "hidden"})
        options = [("as started", ""), *((name, name) for name in presets)]
        self.preset = widgets.Dropdown(
            options=options, description="preset", tooltip="a file of params/ to start from", **LABELLED
        )
        self.reset = widgets.Button(description="Reset", tooltip="all controls as they were at the start", icon="undo")
        self.path = widgets.Text("my_scenario.yaml", description="file", **LABELLED)
        words = "a params file for `mmlab simulate` and `mmlab report`"
        self.save = widgets.Button(description="Save as YAML", tooltip=words, icon="save")
        words = "time axes until the end of the run, not only until the last change"
        self.whole = widgets.ToggleButton(description="whole run", tooltip=words)
        self.heads = {name: html() for name in CELLS}
        self.images = {name: widgets.Image(format="png") for name in CELLS}
        self.play = widgets.Play(max=0, interval=150, disabled=True, show_repeat=False)
        self.moment = widgets.IntSlider(max=0, description="moment", readout=False, disabled=True)
        widgets.jslink((self.play, "value"), (self.moment, "value"))
        self.moment.observe(self.show_moment, "value")
        self.view = self._view()
        self.box = _box(
            "explore", html(f"<style>{STYLE.read_text('utf-8')}</style>"), _box("sides", self._side(), self.view)
        )

    def _side(self) -> Any:
        """Return the controls."""
        first = [
            _title("Scenario and fix"),
            _box("row", self.preset, self.reset),
            self.controls["variant"],
            self.controls["compare"],
            self.explained,
        ]
        self.path.add_class("mmlab-path")
        self.code.add_class("mmlab-code")
        last = [_title("Keep it"), self.path, _box("row", self.save, self.code), self.message]
        return _box("controls", widgets.VBox(first), *self._groups(), widgets.VBox(last))

    def _groups(self) -> Iterator[Any]:
        """Yield the controls of the scenario's fields, under headings; in each group switches come last."""
        fields = flat_fields()
        for kind, title in KINDS.items():
            group = [control for name, control in self.controls.items() if name in fields and fields[name].kind == kind]
            switches = [control for control in group if isinstance(control, Switch)]
            others = [
                control for control in group if control not in switches and control is not self.controls["variant"]
            ]
            if kind == "horizon":
                self.whole.add_class("mmlab-switch")
                switches.append(self.whole)
            if others or switches:
                yield widgets.VBox([_title(title), *others, _box("switches", *switches)])

    def _view(self) -> Any:
        """Return the results."""
        cells = [_box(name.split()[0], self.heads[name], self.images[name]) for name in CELLS]
        player = _box("player", self.caption, _box("play", self.play, self.moment))
        self.summary.add_class("mmlab-summary")
        self.error.add_class("mmlab-error")
        grid = _box("grid", *cells[:-2], player, *cells[-2:])
        return _box("view", self.summary, _box("status", self.status, self.bar), grid, self.table, self.error)

    def show(self, found: Comparison, seconds: Sequence[float]) -> None:
        """Show two runs, and the time that the simulations and the whole update took."""
        for name in CELLS:
            self.heads[name].value = found.heads[name]
            if name in found.pictures:
                self.images[name].value = found.pictures[name]
        self.summary.value = f'<div role="status" aria-live="polite">{found.summary}</div>'
        self.table.value = f'<div class="mmlab-metrics">{found.table}</div>'
        self.code.value = (
            "<button class='jupyter-widgets jupyter-button widget-button' title='the same in a script' "
            f"onclick='{COPY}'>Copy as Python</button><pre hidden tabindex='0'>{escape(found.code)}</pre>"
            f"<img hidden alt='' src='{PIXEL}' onload='{NAMES}'>"
        )
        simulated, whole = (f"{1000 * s:,.0f} ms" for s in seconds)
        self.status.value = self.timing = f"simulated twice in {simulated}, shown after {whole}"
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
            self.caption.value = frame.caption()
            for number, picture in enumerate(frame.pictures):
                self.images[f"map {number}"].value = picture

    def show_status(self, job: Job | None) -> None:
        """Show the progress of a job that takes long; None means that it is done."""
        if job is None:
            self.status.value = self.timing
        elif job.age > PROGRESS:
            self.bar.value = job.share
            self.status.value = escape(job.note or "simulating …")
        self.bar.layout.visibility = "visible" if job and job.age > PROGRESS else "hidden"

    def show_error(self, error: Exception) -> None:
        """Show in red what is wrong, and fade the figures: they no longer belong to the controls."""
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.error.value = f'<p role="alert">{escape(words)}</p>'
        self.view.add_class("mmlab-old")
        if (name := getattr(error, "parameter", "")) in self.controls:
            self.controls[name].add_class("mmlab-wrong")

    def explain(self, variants: Sequence[Variant], others: Mapping[str, object]) -> None:
        """Describe the variants, and the fields that differ from their defaults without a control; clear errors."""
        lines = [
            f"{sign} <b>{escape(v.name)}</b>: {escape(v.summary)} <i>({escape(v.who)}; {escape(v.where)})</i>"
            for sign, v in zip(SIGNS, variants, strict=True)
        ]
        if others:
            said = (f"<code>{escape(name)} = {escape(str(value))}</code>" for name, value in others.items())
            lines.append(f"Without a control: {', '.join(said)}")
        self.explained.value = f'<div class="mmlab-note mmlab-explained" tabindex="0">{"<br>".join(lines)}</div>'
        for control in self.controls.values():
            control.remove_class("mmlab-wrong")

    def note(self, words: str) -> None:
        """Show a line below the buttons."""
        self.message.value = f'<div class="mmlab-note" role="status">{escape(words)}</div>'


def _title(words: str) -> Any:
    return widgets.HTML(f'<div class="mmlab-title">{words}</div>')


def _box(name: str, *children: Any) -> Any:
    """Return a box whose layout is in the style sheet."""
    box = widgets.Box(children)
    box.add_class(f"mmlab-{name}")
    return box
