"""A study shows a finding, a figure and a table, and hands the data of the latter two to the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import pandas as pd
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from mmlab import Scenario
from mmlab.figures import figures as plots
from mmlab.figures import notebook as display
from mmlab.studies.study import SHOWN, SUMMED_UP, Answer, describe, expect, summary

RATES = pd.DataFrame({"rate (MiB/s)": [5.0, 0.2]}, index=pd.Index(["legacy", "mainline"], name="variant"))
ERRORS = pd.DataFrame({"rate (MiB/s)": [0.5, 0.0]}, index=RATES.index)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[dict[str, str], dict]]]:
    """What was displayed: data and metadata. Tables are saved as for a report."""
    outputs: list[tuple[dict[str, str], dict]] = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, metadata=None, raw=True: outputs.append((data, metadata))
    )
    monkeypatch.setenv(display.TABLES, str(tmp_path))
    yield outputs
    plt.close("all")


def test_shows_finding_figure_and_table(shown: list, tmp_path: Path) -> None:
    study = Answer(
        RATES,
        "Slower: mainline, 25 times",
        plots.bars(RATES, "rate (MiB/s)"),
        title="Rates",
        note="Means",
        errors=ERRORS,
        digits=2,
    )
    study._ipython_display_()
    (finding, _), (figure, about), (table, where) = shown
    assert finding["text/markdown"] == "**Slower:** mainline, 25 times"
    assert (figure["text/plain"], about["image/png"]["caption"]) == (
        "rate (MiB/s). Slower: mainline, 25 times",
        "Means",
    )
    assert "5.00\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.50" in table["text/html"]
    (drawn,), saved = about["image/png"]["tables"], where["text/html"]["tables"]
    assert drawn.startswith("01-")
    assert saved == ["02-rates"]
    assert list(pd.read_csv(tmp_path / "02-rates.csv")) == ["variant", "rate (MiB/s)", "se rate (MiB/s)"]
    assert pd.read_parquet(tmp_path / f"{drawn}.parquet")["rate (MiB/s)"].tolist() == [5.0, 0.2]


def test_without_figure_or_title(shown: list) -> None:
    """A long table is not shown, but drawn; a study of words alone shows these."""
    Answer(RATES, "They differ.")._ipython_display_()
    assert [data["text/plain"] for data, _ in shown] == ["They differ."]
    assert Answer(RATES).plot() is None


@pytest.mark.parametrize(
    ("value", "limits", "words"),
    [
        (3.0, {"least": 2.0}, "Holds: the factor is 3 times"),
        (2.0, {"least": 2.0, "most": 2.0}, "Holds: the factor is 2 times"),
        (0.2101, {"least": 2.0}, "Does not hold: the factor is 0.21 instead of ≥ 2 times"),
        (5.0, {"most": 2.0}, "Does not hold: the factor is 5 instead of ≤ 2 times"),
        (float("nan"), {"least": 2.0}, "Does not hold: the factor is nan instead of ≥ 2 times"),
        (float("nan"), {"most": 2.0}, "Does not hold: the factor is nan instead of ≤ 2 times"),
    ],
)
def test_expectations(value: float, limits: dict[str, float], words: str) -> None:
    found = expect("the factor is", value, unit="times", **limits)
    assert found == words


def test_describes_what_was_given(shown: list) -> None:
    describe(Scenario(memory_mib=1024, smart_scan=0))
    describe(Scenario())
    (given, _), (nothing, _) = shown
    assert given["text/markdown"] == "**Simulated on Linux 6.12:** `smart_scan=0`, `memory_mib=1024`."
    assert nothing["text/markdown"] == "**Simulated on Linux 6.12:** all parameters have their defaults."


def test_summary(shown: list) -> None:
    one, again = Answer(RATES, "One: 1"), Answer(RATES, "One: 1")
    summary("27 batches", "free 920 MiB", one, Answer(RATES), {SHOWN: {"Two": Answer(RATES, "Two"), "One: 1": again}})
    (headline, about), (lines, _) = shown
    assert about == {"text/html": {"headline": {"value": "27 batches", "words": "free 920 MiB"}}}
    assert headline["text/plain"] == "27 batches free 920 MiB"
    assert lines["text/markdown"] == '<div class="answer">\n\n- **One:** 1\n- Two\n\n</div>'


def test_a_long_summary_is_folded(shown: list) -> None:
    summary("27 batches", "free 920 MiB", *(Answer(RATES, f"Finding {n}") for n in range(SUMMED_UP + 2)))
    seen, fold, rest = shown[-1][0]["text/markdown"].partition("<details><summary>2 more findings</summary>\n\n")
    assert (seen.count("- Finding"), bool(fold)) == (SUMMED_UP, True)
    assert rest == f"- Finding {SUMMED_UP}\n- Finding {SUMMED_UP + 1}\n\n</details>\n\n</div>"


def test_a_notebook_knows_what_it_has_shown(shown: list, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(user_ns={})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    for study in (Answer(RATES, "One: 1"), Answer(RATES), Answer(RATES, "Two")):
        study._ipython_display_()
    summary("27 batches", "free 920 MiB", shell.user_ns)
    assert shown[-1][0]["text/markdown"] == '<div class="answer">\n\n- **One:** 1\n- Two\n\n</div>'
