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

__all__ = ["Number", "Switch", "choice", "control", "variants"]

STYLE = {"description_width": "initial"}


def control(about: Parameter, value: Any) -> Any:
    """Return the widget for a parameter."""
    if about.type is bool or (about.type is int and (about.low, about.high) == (0, 1)):
        return Switch(about, value)
    if about.type in (int, float) and not about.choices:
        return Number(about, value)
    if about.choices:
        return choice(about.name, [(str(option), option) for option in about.choices], value, explained(about))
    return widgets.Text(value=value, description=about.name, tooltip=explained(about), style=STYLE)


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
        self._following = False
        box = widgets.IntText if about.type is int else widgets.FloatText
        self.box = box(
            value,
            description=about.name,
            tooltip=explained(about),
            style=STYLE,
            **({"step": about.step} if about.step else {}),
        )
        self.slider = self._slider()
        super().__init__([self.box, self.slider] if self.slider else [self.box])
        self.add_class("mmlab-number")
        self.observe(self._set, "value")
        self.box.observe(self._typed, "value")
        self._typed({"new": value})
        if self.slider:
            self.slider.observe(self._slid, "value")

    def _slider(self) -> Any:
        if self.about.slider is None:
            return None
        (low, high), look = self.about.slider, {"readout": False, "continuous_update": True}
        if self.about.log and low > 0:
            return widgets.FloatLogSlider(min=log10(low), max=log10(high), step=0.02, value=low, **look)
        step = self.about.step or (1 if self.about.type is int else 0.01)
        return widgets.FloatSlider(min=low, max=high, step=step, value=low, **look)

    def rounded(self, value: float) -> float:
        """Return the parameter's value for a position of the slider."""
        if isinstance(self.slider, widgets.FloatLogSlider):
            value = float(f"{value:.2g}")
        if self.about.step:
            value = float(f"{round(value / self.about.step) * self.about.step:.10g}")
        return round(value) if self.about.type is int else value

    def _slid(self, change: Any) -> None:
        """Take over the slider's position, unless the browser has only moved it to the next of its steps."""
        was, now = self._clipped(self.value), change["new"]
        if isinstance(self.slider, widgets.FloatLogSlider):
            was, now = log10(was), log10(now)
        if not self._following and abs(now - was) > 0.51 * self.slider.step:
            self._following = True
            self.box.value = self.rounded(change["new"])
            self._following = False

    def _typed(self, change: Any) -> None:
        if self.slider and not self._following:
            self._following = True
            self.slider.value = self._clipped(change["new"])
            self._following = False
        self.value = change["new"]

    def _clipped(self, value: float) -> float:
        """Return the nearest value that the slider can show."""
        low, high = self.about.slider or (value, value)
        return min(max(value, low), high)

    def _set(self, change: Any) -> None:
        self.box.value = change["new"]


class Switch(widgets.ToggleButton):  # type: ignore[misc]
    """A button that is down for 1 and shows it: ``smart_scan = 1``."""

    def __init__(self, about: Parameter, value: int) -> None:
        super().__init__(value=bool(value), tooltip=explained(about))
        self.about = about
        self.add_class("mmlab-switch")
        self.observe(self._describe, "value")
        self._describe()

    def _describe(self, _: Any = None) -> None:
        self.description = f"{self.about.name} = {int(self.value)}"
        self.icon = "check" if self.value else ""


def choice(name: str, options: Any, value: Any, tooltip: str) -> Any:
    """Return a list to choose from; `options` are pairs of words and value."""
    return widgets.Dropdown(options=options, value=value, description=name, tooltip=tooltip, style=STYLE)


def variants(name: str, known: Mapping[str, Variant], value: str) -> Any:
    """Return a list of fix variants, each with its summary."""
    options = [(f"{v.name}: {v.summary}" if v.summary else v.name, v.name) for v in known.values()]
    return choice(name, options, value, "which kernel variant decides whether a split remaps zero-filled pages")
