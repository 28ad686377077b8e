"""Studies, which notebooks are made of. A study answers one question with a table, a figure and one finding.

A function of this package takes a scenario and returns an `Answer`. As the last line of a notebook's cell it shows
finding, figure and table; a report saves the data of the latter two beside its page.

>>> rates = pd.DataFrame({"MiB/s": [5.3, 0.21]}, ["legacy", "mainline"])
>>> study = Answer(rates, expect("mainline frees", 0.21, least=2.0, unit="MiB/s"), title="Rates")
>>> study.finding
'Does not hold: mainline frees 0.21 instead of ≥ 2 MiB/s'
>>> float(study.table().loc["legacy", "MiB/s"])
5.3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import pandas as pd

from mmlab.figures import notebook as display
from mmlab.figures.theme import figure_of
from mmlab.scenario import Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SHOWN = "_studies"
"""Name in a notebook's namespace of the studies that its cells have shown, by their findings."""
SUMMED_UP = 10
"""Findings that a summary shows; more are behind a fold."""


@dataclass(frozen=True, repr=False)
class Answer:
    """A study: data, what was found, and a figure.

    Attributes
    ----------
    data : DataFrame
        The study's numbers.
    finding : str
        What was found, computed: one line of Markdown. Words up to the first colon are shown in bold.
    figure : Axes, sequence of Axes or None
        What was drawn.
    title : str
        Caption of the table, whose files are named after it. A table without a title is not shown: then the figure has
        all of it.
    note : str
        Caption of the figure.
    alt : str
        The figure's content for those who cannot see it; by default its axes and the finding, or note.
    errors : DataFrame or None
        Standard errors of some of the table's columns, in the same rows.
    digits : int or mapping
        Decimals of the table's fractions, or of those of each column.
    """

    data: pd.DataFrame
    finding: str = ""
    figure: Axes | Sequence[Axes] | None = None
    title: str = ""
    note: str = ""
    alt: str = ""
    errors: pd.DataFrame | None = None
    digits: Mapping[str, int] | int = 1

    def table(self) -> pd.DataFrame:
        """Return the study's numbers."""
        return self.data

    def plot(self) -> Figure | None:
        """Return the study's figure; None if it has none."""
        return None if self.figure is None else figure_of(self.figure)

    def found(self, finding: str, figure: Axes | Sequence[Axes] | None = None, **parts: Any) -> Answer:
        """Return the study with a finding, and with other parts that follow from its numbers."""
        return replace(self, finding=finding, figure=figure or self.figure, **parts)

    def _ipython_display_(self) -> None:
        from IPython import get_ipython

        if self.finding and (shell := get_ipython()):  # type: ignore[no-untyped-call]
            shell.user_ns.setdefault(SHOWN, {})[self.finding] = self  # not Out, which nbval does not fill
        if self.finding:
            display.say(_lead_in_bold(self.finding))
        if (figure := self.plot()) is not None:
            axes = (" over ".join(filter(None, (ax.get_ylabel(), ax.get_xlabel()))) for ax in figure.axes)
            words = f"{'; '.join(filter(None, dict.fromkeys(axes)))}. {(self.finding or self.note).replace('`', '')}"
            display.show(figure, self.alt or words, self.note)
        if self.title:
            table = self.data.reset_index(level=[*range(1, self.data.index.nlevels)])
            errors = None if self.errors is None else self.errors.set_axis(table.index)
            display.table(table, self.title, self.digits, errors)


def expect(what: str, value: float, *, least: float | None = None, most: float | None = None, unit: str = "") -> str:
    """Return the finding about a value that is expected to be at least `least` and at most `most`.

    >>> expect("the share given back is", 99.6, least=99.0, unit="%")
    'Holds: the share given back is 99.6 %'
    """
    limit = "" if most is None or value <= most else f"≤ {most:,.3g}"
    limit = limit if least is None or value >= least else f"≥ {least:,.3g}"
    instead = f" instead of {limit}" if limit else ""
    return f"{'Does not hold' if limit else 'Holds'}: {what} {value:,.3g}{instead} {unit}".rstrip()


def describe(scenario: Scenario) -> None:
    """Display the scenario's kernel, and which other fields were given; of lists, their lengths."""
    fields = [name for name in type(scenario).model_fields if name in scenario.model_fields_set - {"kernel"}]
    given = {name: getattr(scenario, name) for name in fields}
    given |= {name: len(value) for name, value in given.items() if isinstance(value, tuple)}
    words = ", ".join(f"`{name}={value}`" for name, value in given.items())
    display.say(f"**Simulated on Linux {scenario.kernel}:** {words or 'all parameters have their defaults'}.")


def summary(value: str, words: str, *shown: object) -> None:
    """Display a notebook's headline, which the index of reports shows, too, and below it the findings of its studies.

    Parameters
    ----------
    value, words : str
        The number with its unit, and what was measured; see `mmlab.figures.notebook.headline`.
    *shown
        Studies, or the notebook's ``globals()``: all studies that its cells have shown so far.
    """
    display.headline(value, words)
    things = (list(each.get(SHOWN, {}).values()) if isinstance(each, Mapping) else [each] for each in shown)
    findings = dict.fromkeys(study.finding for study in chain.from_iterable(things) if study.finding)
    lines = [f"- {_lead_in_bold(finding)}" for finding in findings]
    if more := lines[SUMMED_UP:]:
        fold = f"<details><summary>{len(more)} more findings</summary>"
        lines = [*lines[:SUMMED_UP], "", fold, "", *more, "", "</details>"]
    display.say("\n".join(['<div class="answer">', "", *lines, "", "</div>"]))


def _lead_in_bold(finding: str) -> str:
    head, colon, rest = finding.partition(": ")
    return f"**{head}:** {rest}" if colon else finding
