"""The mailing list's questions, asked of every variant: a matrix of questions and variants, one number a cell.

A question (`questions.yaml`) has a scene (`scenes`), which turns the base into the scenario that is run, and a measure,
which reads one number from the run. `verdict` runs each scene under every variant:

>>> v = verdict(Scenario(**{**BASE, "memory_mib": 4}), ["legacy", "mainline"], ["c3"])
>>> v.cells.loc["c3"].to_dict()
{'legacy': 0.0, 'mainline': 3.0}
>>> print(v.text(legend=False))
question                V-1    V0
                        leg  main
----------------------------------
c3 … freed, KSM off       0-  3.0+

The sign beside a number compares it with its row: `+` is among the best, `-` among the worst, and `=` means that all
are the same. The legend says which end of a row is good.
"""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from mmlab.errors import UserError, unknown
from mmlab.figures.figures import axes, verdict_table
from mmlab.params import read_yaml
from mmlab.results.uncertainty import one_digit
from mmlab.scenario import Scenario
from mmlab.studies.pingpong import scan_seconds
from mmlab.studies.runs import measured
from mmlab.studies.scenes import BASE, CODES, DECIDED, described, scene_runs
from mmlab.studies.study import Answer
from mmlab.variants import VARIANTS, AnyVariant, resolve
from mmlab.workers import Progress, each

LABEL, CELL, WIDTH = 22, 6, 76
"""Characters of a row's label, of a cell, and of a line of the legend."""
NEAR, SAME = 0.02, 0.05
"""Part of a row's range that still counts as its best or worst; rows that differ by less than 5 % are all the same."""


_LISTED = read_yaml(Path(__file__).with_name("questions.yaml"))
QUESTIONS = {key: SimpleNamespace(key=key, **values) for key, values in _LISTED.items()}
"""The rows of the matrix; the file explains their fields."""


@dataclass(frozen=True)
class Verdict:
    """The matrix of questions and variants.

    Attributes
    ----------
    scenario
        The base that the scenes changed.
    cells : DataFrame
        A row a question (index: its key), a column a variant; not a number where the thing never happened in the run.
    errors : DataFrame
        The cells' standard errors, as far as they come from the costs of ksmd's steps.
    """

    scenario: Scenario
    cells: pd.DataFrame
    errors: pd.DataFrame

    @property
    def questions(self) -> list[SimpleNamespace]:
        """The questions, in the order of the rows."""
        return [QUESTIONS[key] for key in self.cells.index]

    @property
    def labels(self) -> dict[str, str]:
        """The questions' words, units and errors by their keys."""
        return {q.key: f"{q.key} {q.label} ({q.unit}{self.sure(q)})" for q in self.questions}

    def study(self) -> Answer:
        """Return the cells under names that say what they are, the matrix as a figure, and who is best how often."""
        codes, tables = {n: "\n".join(CODES.get(n, [n])) for n in self.cells}, (self.cells, self.marks, self.words)
        table, marks, words = (t.rename(codes, axis=1).rename(self.labels) for t in tables)
        figure = verdict_table(table, marks, words, axes(width=10.6, height=0.9 + 0.29 * len(table))[0])
        best = (self.marks == "+").sum().sort_values(ascending=False, kind="stable")
        said = ", ".join(f"{variant} {questions}" for variant, questions in best.items())
        return Answer(table, f"Among the best of {len(table)} questions: {said}.", figure)

    def _ipython_display_(self) -> None:
        self.study()._ipython_display_()

    def _goodness(self) -> pd.DataFrame:
        """Return the numbers, the more the better: a column a question, a row a variant."""
        return self.cells.T * [1 if q.best == "most" else -1 for q in self.questions]

    @property
    def marks(self) -> pd.DataFrame:
        """The sign of each cell: `+` among the best of its row, `-` the worst, `=` all the same, or a blank.

        What never happens is the worst, whichever end of the row is good.
        """
        good = self._goodness()
        low, high, never = good.min(), good.max(), good.isna()
        room = NEAR * (high - low)
        same = never.all() | (~never.any() & (high - low <= SAME * good.abs().max()))
        worst = never | (~never.any() & (good <= low + room))
        signs = np.select([same, good >= high - room, worst], ["=", "+", "-"], " ")
        return pd.DataFrame(signs, good.index, good.columns).T

    @property
    def words(self) -> pd.DataFrame:
        """The number of each cell in at most five characters."""
        return self.cells.map(_word)

    @property
    def places(self) -> pd.DataFrame:
        """Where each variant stands in the rows in which they differ: 1 the best of its row, 0 the worst, by value.

        What never happens is worse than the worst number, by the row's range or that number, whichever is more.
        """
        good = self._goodness().loc[:, (self.marks != "=").any(axis=1)]
        low, span = good.min(), good.max() - good.min()
        good = good.fillna(low - np.maximum(span, low.abs()).clip(lower=1.0))
        return ((good - good.min()) / (good.max() - good.min())).T

    def better(self, one: str, other: str) -> list[str]:
        """Return the questions in which one variant is better than another, by more than 2 % of the row's range."""
        places = self.places
        return list(places.index[places[one] > places[other] + NEAR])

    def pareto(self) -> dict[str, list[str]]:
        """Return {variant: those that dominate it}: never worse, and better in something. None: it is on the front."""
        wins = {(a, b): self.better(a, b) for a, b in product(self.cells, repeat=2)}
        return {b: [a for a in self.cells if wins[a, b] and not wins[b, a]] for b in self.cells}

    def text(self, legend: bool = True) -> str:
        """Return the matrix as plain text of at most 76 columns (with nine variants), and what its rows mean."""
        codes = [CODES.get(name, ("", name[: CELL - 2])) for name in self.cells]
        rows = {"question": [f"{number} " for number, _ in codes], "": [f"{short} " for _, short in codes]}
        cells = self.words + self.marks
        rows |= {f"{q.key} {q.label}": list(cells.loc[q.key]) for q in self.questions}
        lines = [f"{label:{LABEL}}{''.join(f'{cell:>{CELL}}' for cell in row)}".rstrip() for label, row in rows.items()]
        lines.insert(2, "-" * (LABEL + CELL * len(codes)))
        return "\n".join([*lines, "", self.legend()] if legend else lines)

    def legend(self) -> str:
        """Return what was run, and what each row's number is."""
        s = self.scenario
        shown = [*BASE, *sorted(s.changed().keys() - BASE.keys() - DECIDED.keys())]
        values = ", ".join(f"{name}={getattr(s, name)}" for name in shown if not name.startswith("horizon_"))
        lines = [
            _wrapped("+ best of the row, - worst, = all the same (within 5 %); inf: never within the run."),
            *["* from the text only: no recorded kernel has shown it."] * any(q.who == "text" for q in self.questions),
            _wrapped(f"Asked of: {values}. A full scan takes {scan_seconds(s):g} s."),
            "",
        ]
        for q in self.questions:
            about = f"{q.ask} ({q.unit}{self.sure(q)}, {q.best} is best; {q.who}). Scene {q.scene}."
            lines.append(_wrapped(about, q.key))
        scenes = dict.fromkeys(q.scene for q in self.questions)
        return "\n".join([*lines, "", *(_wrapped(f"{described(name)}.", f"{name}:") for name in scenes)])

    def sure(self, question: SimpleNamespace) -> str:
        """Return a row's largest standard error, to stand behind its unit, if it is more than 0.01 % of its number."""
        errors = self.errors.loc[question.key]
        error = errors[errors > 1e-4 * self.cells.loc[question.key].abs().fillna(0)].max()
        return f" ± {one_digit(error)}" if error > 0 else ""

    def as_json(self) -> dict[str, Any]:
        """Return plain data: scenario, variants, questions, and the cells and their errors unrounded."""
        cells = self.cells.astype(object).where(self.cells.notna(), None)
        tables = {"cells": cells, "errors": self.errors, "marks": self.marks}
        questions = [
            {**vars(q), "scene_is": described(q.scene), "from_text_only": q.who == "text"}
            | {name: table.loc[q.key].to_dict() for name, table in tables.items()}
            for q in self.questions
        ]
        scenario = {name: getattr(self.scenario, name) for name in sorted(self.scenario.model_fields_set)}
        return {"scenario": scenario, "variants": list(self.cells), "questions": questions}


def _word(value: float) -> str:
    if not abs(value) > 0:
        return "0" if value == 0 else "inf"
    digits = 2 if abs(value) < 0.095 else 1 if abs(value) < 9.95 else 0
    return f"{value:.{digits}f}" if abs(value) < 99_999.5 else f"{value / 1000:.0f}k"


def verdict(
    base: Scenario | None = None,
    variants: Iterable[AnyVariant] = tuple(VARIANTS),
    questions: Iterable[str] = tuple(QUESTIONS),
    progress: Progress = None,
) -> Verdict:
    """Ask the questions of every variant.

    Parameters
    ----------
    base
        Memory, knobs and rates; a scene changes what it is about. Default: `BASE`.
    variants
        Names, or variants of your own (a `Variant`, or a predicate).
    questions
        Keys of `QUESTIONS`; a letter alone stands for all that start with it.
    progress
        Called before each scene with (scenes done, scenes in all, its name).

    Raises
    ------
    UserError
        A question or a variant is not known, or the base has events or processes of its own.
    """
    base = Scenario(**BASE) if base is None else base
    if base.events or base.process_list:
        raise UserError("a verdict makes its own events and processes", parameter="base", hint="Give it plain values.")
    asked, chosen = _asked(questions), [*map(resolve, variants)]

    def answers(scene: str) -> Answer:
        measures = {q.key: q.measure for q in asked if q.scene == scene}
        return measured(scene_runs(scene, base, chosen), measures, "variant")

    parts = list(each(answers, dict.fromkeys(q.scene for q in asked), progress=progress))
    whole = (pd.concat(columns, axis=1) for columns in ([one.data for one in parts], [one.errors for one in parts]))
    tables = (table.rename_axis(None).reindex(columns=[q.key for q in asked]).T.astype(float) for table in whole)
    cells, errors = (table.map(partial(round, ndigits=9)) for table in tables)
    return Verdict(base, cells, errors.fillna(0.0))


def weights(text: str, questions: Iterable[str] = tuple(QUESTIONS)) -> dict[str, float]:
    """Return how much each question counts, from words such as ``"f=3, a1=0"``; what is not named counts 1.

    Raises
    ------
    UserError
        A question is not known, or a weight is not a number of at least 0.

    Examples
    --------
    >>> weights("f=3, f2=0", ["a1", "f1", "f2"])
    {'a1': 1.0, 'f1': 3.0, 'f2': 0.0}
    """
    out = dict.fromkeys(questions, 1.0)
    for part in filter(None, map(str.strip, text.split(","))):
        found = re.fullmatch(r"(\w+)\s*=\s*(\d*\.?\d+(?:e\d+)?)", part)
        if not found:
            allowed = "QUESTION=NUMBER, the number at least 0"
            raise UserError(parameter="weights", value=part, allowed=allowed, hint="Such as f=3, a1=0.")
        out |= {q.key: float(found[2]) for q in _asked([found[1]]) if q.key in out}
    return out


def _asked(keys: Iterable[str]) -> list[SimpleNamespace]:
    """Return the questions with these keys or first letters, in the order of the matrix."""
    keys = tuple(keys)
    for key in keys:
        if not any(known.startswith(key) for known in QUESTIONS):
            raise unknown("question", key, QUESTIONS, f"There are {', '.join(QUESTIONS)}.")
    return [q for key, q in QUESTIONS.items() if key.startswith(keys)]


def _wrapped(text: str, key: str = "") -> str:
    words = f"{key} {text}".strip()
    return textwrap.fill(words, WIDTH, subsequent_indent="   " if key else "", break_on_hyphens=False)
