"""Widgets for the scenario's parameters, built from what the scenario model says about each.

A number has a box, which takes every allowed value, and a slider over the usual range. A switch is a button that shows
its state, a choice is a list. All have a trait ``value`` to read, set and observe. None checks a value: the scenario
does, and its message says what is allowed.

>>> from mmlab.scenario import flat_fields
>>> budget = control(flat_fields()["pages_to_scan"], 1000)
>>> budget.slider.value = 1234.5
>>> budget.value
1200
>>> budget.box.value = 20_000
>>> budget.value, round(budget.slider.value)
(20000, 10000)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log10
from typing import Any

import ipywidgets as widgets
import traitlets

from mmlab.scenario import Parameter
from mmlab.variants import Variant

__all__ = ["STYLE", "Number", "choice", "control", "explained", "switch", "variants"]

STYLE = {"description_width": "initial"}


def control(about: Parameter, value: Any) -> Any:
    """Return the widget for a parameter."""
    if about.choices:
        return choice(about.name, [(str(option), option) for option in about.choices], value, explained(about))
    if about.type is bool or (about.type is int and (about.low, about.high) == (0, 1)):
        return switch(about, value)
    if about.type in (int, float):
        return Number(about, value)
    return widgets.Text(value=value, description=about.name, tooltip=explained(about), style=STYLE)


def choice(name: str, options: Any, value: Any, tooltip: str) -> Any:
    """Return a list to choose from; `options` are pairs of words and value."""
    return widgets.Dropdown(options=options, value=value, description=name, tooltip=tooltip, style=STYLE)


def variants(name: str, known: Mapping[str, Variant], value: str) -> Any:
    """Return a list of fix variants, each with its summary."""
    options = [(f"{v.name}: {v.summary}" if v.summary else v.name, v.name) for v in known.values()]
    return choice(name, options, value, "which kernel variant decides whether a split remaps zero-filled pages")


def switch(about: Parameter, value: int) -> Any:
    """Return a button that is down for 1 and shows it: ``smart_scan = 1``."""
    made = widgets.ToggleButton(value=bool(value), tooltip=explained(about)).add_class("mmlab-switch")
    traitlets.dlink((made, "value"), (made, "description"), lambda on: f"{about.name} = {int(on)}")
    traitlets.dlink((made, "value"), (made, "icon"), lambda on: "check" if on else "")
    return made


def explained(about: Parameter) -> str:
    """Return a tooltip: what a parameter means, its unit, what is allowed."""
    unit = f" ({about.unit})" if about.unit else ""
    return f"{about.help}{unit}. Allowed: {about.allowed}"


class Number(widgets.HBox):  # type: ignore[misc]
    """A labelled box, and a slider where there is a usual range. `value` is that of the box.

    The slider's value is rounded to whole steps, and to two digits where the slider is logarithmic.
    """

    value = traitlets.Union([traitlets.Int(), traitlets.Float()])

    def __init__(self, about: Parameter, value: float) -> None:
        self.about = about
        self.slider: Any = None
        box, step = (widgets.IntText, 1) if about.type is int else (widgets.FloatText, None)
        step = about.step or step  # type: ignore[assignment]
        self.box = box(value, step=step, description=about.name, tooltip=explained(about), style=STYLE)
        super().__init__([self.box])
        self.add_class("mmlab-number")
        traitlets.link((self.box, "value"), (self, "value"))
        if about.slider:
            low, high = about.slider
            if about.log and low > 0:
                self.slider = widgets.FloatLogSlider(low, min=log10(low), max=log10(high), step=0.02, readout=False)
            else:
                self.slider = widgets.FloatSlider(low, min=low, max=high, step=step or 0.01, readout=False)
            traitlets.link((self, "value"), (self.slider, "value"), transform=(self._clipped, self._slid))
            self.children = self.box, self.slider

    def _clipped(self, value: float) -> float:
        """Return the nearest value that the slider can show."""
        low, high = self.about.slider or (value, value)
        return min(max(value, low), high)

    def _slid(self, place: float) -> float:
        """Return the value for a position of the slider; the same if a browser only rounded it to the next step."""
        value: float = self.value
        was, now = self._clipped(value), place
        if isinstance(self.slider, widgets.FloatLogSlider):
            was, now, place = log10(was), log10(now), float(f"{place:.2g}")
        if abs(now - was) <= 0.51 * self.slider.step:
            return value
        if self.about.step:
            place = float(f"{round(place / self.about.step) * self.about.step:.10g}")
        return round(place) if self.about.type is int else place
