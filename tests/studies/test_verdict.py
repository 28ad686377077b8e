"""The matrix: cells that can be derived by hand, what its signs mean, and that the text is always the same."""

import json

import pandas as pd
import pytest

from mmlab.errors import UserError
from mmlab.figures.notebook import tables_of
from mmlab.params import find_params
from mmlab.results.uncertainty import one_digit
from mmlab.scenario import Scenario
from mmlab.studies import verdict as module
from mmlab.studies.scenes import BASE, SCENES
from mmlab.studies.verdict import CODES, QUESTIONS, Verdict, verdict
from mmlab.variants import VARIANTS, Predicate, SplitContext, possible, truth_table

SMALL = Scenario(**{**BASE, "memory_mib": 8, "zero_fraction": 460 / 512})  # 4 THPs
ZEROES = 4 * 460 / 256
"""MiB of zero-filled pages."""


@pytest.fixture(scope="module")
def matrix() -> Verdict:
    return verdict(SMALL, questions=[key for key in QUESTIONS if key != "i1"])


def row(matrix: Verdict, key: str) -> dict[str, float]:
    """Cells by the numbers of the discussion."""
    return {CODES[str(name)][0]: value for name, value in matrix.cells.loc[key].items()}


def made(variants: str, **cells: list[float | None]) -> Verdict:
    """A matrix with these rows; its variants have one letter each."""
    table = pd.DataFrame.from_dict(cells, orient="index", columns=list(variants)).astype(float)
    return Verdict(SMALL, table, 0 * table)


def test_every_question_is_answered_for_every_variant(matrix: Verdict) -> None:
    assert [q.key for q in matrix.questions] == [key for key in QUESTIONS if key != "i1"]
    assert list(matrix.cells) == list(matrix.errors) == list(VARIANTS)


@pytest.mark.parametrize(
    ("key", "frees"),
    [
        # at pressure, KSM on: none in mergeable memory under V3 and V5; V-1 splits and frees nothing
        ("c1", {"V0", "V1", "V1s", "V2", "V4", "V6"}),
        ("c3", {"V0", "V1", "V1s", "V2", "V3", "V4", "V5", "V6"}),
        ("c4", {"V0", "V1", "V2", "V3", "V4", "V5", "V6"}),
        # other splits while KSM runs
        ("i4", {"V0", "V2", "V4", "V6"}),
    ],
)
def test_what_a_split_gives_back(matrix: Verdict, key: str, frees: set[str]) -> None:
    """All zero-filled pages or none (fix-variants 5.4). What is poisoned or unmapped is not zero-filled here."""
    assert row(matrix, key) == {v: (ZEROES if v in frees else 0.0) for v in row(matrix, key)}


def test_zeroes_in_swap(matrix: Verdict) -> None:
    frees = {"V0", "V2", "V4", "V6"}
    assert row(matrix, "b2") == {v: (0.0 if v in frees else ZEROES) for v in row(matrix, "b2")}


def test_splits_before_the_shrinker(matrix: Verdict) -> None:
    """All is split at 0.5 s: zeroes are held for so long where other splits remap; until khugepaged (10 s) and the next
    second's pressure where only the shrinker does; and for ever under legacy."""
    found = row(matrix, "b1")
    horizon = SCENES["first"](SMALL).horizon_seconds
    early = {v: value for v, value in found.items() if v not in ("V-1", "V1", "V1s")}
    assert early == pytest.approx(dict.fromkeys(early, 0.5 * ZEROES))
    assert found["V1"] == found["V1s"] == pytest.approx(ZEROES * 11, rel=0.02)
    assert found["V-1"] == pytest.approx(ZEROES * horizon, rel=1e-6)


def test_ksm_enabled_late(matrix: Verdict) -> None:
    """V3 is as mainline before KSM runs, and remaps nothing afterwards."""
    before, since = row(matrix, "d1"), row(matrix, "d2")
    assert before["V0"] == before["V2"] == before["V3"] == before["V5"]
    assert (before["V0"] or 0) > 0
    assert before["V-1"] == before["V1"] == since["V1"] == since["V3"] == since["V5"] == 0


def test_regressions(matrix: Verdict) -> None:
    """KSM's own splits are of two kinds only (fix-variants 5.2)."""
    bypass = {"V0", "V4", "V6"}
    unseen, over = row(matrix, "f2"), row(matrix, "f1")
    assert unseen == {v: (ZEROES if v in bypass else 0.0) for v in unseen}
    assert {v for v, value in over.items() if (value or 0) > 1} == bypass
    assert {v for v, value in row(matrix, "f3").items() if value} == {"V0", "V4"}, "V6 cures the poisoned tree only"
    slow = row(matrix, "f4")
    assert all((slow[v] or 1e9) > (slow["V2"] or 0) for v in bypass)


def test_switched_off(matrix: Verdict) -> None:
    """V4 and V5 ask the switch; V3 asks KSM, and V1 no switch but the shrinker, who does not come in this scene."""
    found = row(matrix, "k1")
    assert {v for v, value in found.items() if value == 0} == {"V-1", "V1", "V1s", "V3", "V4", "V5"}
    assert found["V0"] == found["V6"] == ZEROES


def test_all_the_same_where_no_variant_differs(matrix: Verdict) -> None:
    for key in ("g1", "h3", "i3"):
        assert set(matrix.marks.loc[key]) == {"="}, key


def test_marks() -> None:
    v = made(
        "abc",
        a1=[0.0, 10.0, 5.0],  # most is best
        a2=[0.0, 10.0, 0.1],  # least is best
        c2=[1.0, None, 2.0],
        f1=[1.0, 1.01, 1.0],
        f4=[None, None, None],
    )
    assert ["".join(v.marks.loc[key]) for key in v.cells.index] == ["-+ ", "+-+", "+- ", "===", "==="]
    assert v.text(legend=False).splitlines()[-3].split()[-3:] == ["1.0+", "inf-", "2.0"]


def test_text_fits_a_mail_and_is_always_the_same(matrix: Verdict) -> None:
    text = matrix.text()
    assert max(map(len, text.splitlines())) <= 76
    keys = [key for key in QUESTIONS if key[0] in "cf"]
    assert verdict(SMALL, questions=keys).text() == verdict(SMALL, questions=keys).text()
    assert json.dumps(matrix.as_json()) == json.dumps(json.loads(json.dumps(matrix.as_json())))
    for q in matrix.questions:
        assert f"\n{q.key} " in text
        assert f"{q.scene}:" in text
    assert text.count("*") >= 3, "what comes from the text only says so"
    assert matrix.cells.loc["c1", "mainline"] == ZEROES


def test_labels_fit() -> None:
    for q in QUESTIONS.values():
        assert len(f"{q.key} {q.label}") <= module.LABEL, q.key
        assert q.scene in SCENES


def test_an_own_variant() -> None:
    def mine(split: SplitContext) -> bool:
        return not split.mergeable

    found = verdict(SMALL, [mine, "mainline"], ["c1", "c3"])
    assert found.cells.to_dict("index") == {key: {"mine": 0.0, "mainline": ZEROES} for key in ("c1", "c3")}
    assert "mine" in found.text().splitlines()[1]


def test_truth_table() -> None:
    """The rows are those of the model's own table; v1-series asks all but the caller."""
    table = truth_table()
    assert {name: [int(x) for x in table[name]] for name in table} == {v.name: v.table() for v in VARIANTS.values()}
    v1 = {c: c.shrink_underused and not (c.mergeable and c.ksm_running) for c in table.index}
    assert table["v1-series"].to_dict() == v1
    assert [c for c in table.index if not possible(c)] == [
        SplitContext("ksm", mergeable, False, underused) for mergeable in (False, True) for underused in (False, True)
    ]


@pytest.mark.parametrize(
    ("predicate", "words"),
    [
        (lambda c: c.nodes > 1, "AttributeError.*may look at caller, mergeable, ksm_running, shrink_underused"),
        (lambda c: 1 / c.mergeable > 0, "caller='ksm', mergeable=False.*ZeroDivisionError"),
        (lambda _: None, "answer = None"),
        (lambda _: "no", "answer = 'no'"),
        (lambda _, calls=iter(range(64)): next(calls) % 2 == 0, "two answers"),  # noqa: B008
    ],
)
def test_a_predicate_that_cannot_be_one(predicate: Predicate, words: str) -> None:
    with pytest.raises(UserError, match=words):
        truth_table(["mainline", predicate])


def test_places_and_the_front() -> None:
    v = made(
        "abc",
        a1=[0.0, 10.0, 5.0],  # most is best
        a2=[0.0, 10.0, 2.5],  # least is best
        b1=[3.0, 3.0, 3.0],
        c2=[2.0, 1.0, None],  # least is best, and never is as 4: the worst, and that much more
    )
    assert v.places.to_dict("index") == {
        "a1": {"a": 0, "b": 1, "c": 0.5},
        "a2": {"a": 1, "b": 0, "c": 0.75},
        "c2": {"a": pytest.approx(2 / 3), "b": 1, "c": 0},
    }
    assert v.better("b", "a") == ["a1", "c2"]
    assert v.better("a", "b") == ["a2"]
    assert v.pareto() == {"a": [], "b": [], "c": []}


def test_what_is_equal_does_not_dominate() -> None:
    v = made("abcd", a1=[10.0, 10.0, 9.9, 0.0], a2=[1.0, 1.0, 1.0, 2.0])
    assert v.pareto() == {"a": [], "b": [], "c": [], "d": ["a", "b", "c"]}, "2 % of the range is no difference"
    alone = made("a", a1=[10.0], a2=[1.0])
    assert alone.places.empty
    assert alone.pareto() == {"a": []}


def test_weights() -> None:
    assert module.weights("") == dict.fromkeys(QUESTIONS, 1.0)
    assert module.weights(" f=2,f2 = 0.5 ", ["a1", "f1", "f2"]) == {"a1": 1, "f1": 2, "f2": 0.5}
    for text, words in (("f", "'f'"), ("f=much", "much"), ("f=-1", "at least 0"), ("z9=1", "z9"), ("f=nan", "nan")):
        with pytest.raises(UserError, match=words):
            module.weights(text)


def test_progress_counts_scenes() -> None:
    calls: list[tuple[float, float, str]] = []
    verdict(SMALL, ["legacy", "mainline"], ["c1", "c2", "c3"], lambda *call: calls.append(call))
    assert calls == [(0, 2, "pressure"), (1, 2, "pressure-off"), (2, 2, "")], "c1 and c2 share their runs"


def test_a_letter_stands_for_all_of_them() -> None:
    found = verdict(SMALL, ["mainline"], ["c", "a1"])
    assert [q.key for q in found.questions] == ["a1", "c1", "c2", "c3", "c4"]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"questions": ["z9"]}, "z9"),
        ({"variants": ["mainlien"]}, "mainline"),
        ({"base": Scenario(events=({"after": {"batch": 1}, "op": "split_all"},))}, "events"),
    ],
)
def test_mistakes(kwargs: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        verdict(**kwargs)


def test_says_how_sure_it_is() -> None:
    """CPU time has an error, what is counted none; a legend's row says the largest that matters."""
    v = verdict(SMALL, ["legacy", "mainline"], ["f1", "f4", "f5"])
    assert v.errors.loc["f1"].to_dict() == {"legacy": 0.0, "mainline": 0.0}
    assert 0 < v.errors.at["f5", "mainline"] < 0.5 * v.cells.at["f5", "mainline"]
    _, gone, spent = v.questions
    assert v.errors.at["f4", "mainline"] > 0
    assert v.sure(gone) == "", "its batches end before the next tick, whatever they cost"
    assert v.sure(spent) == f" ± {one_digit(v.errors.loc['f5'].max())}"
    assert f"(ms/MiB{v.sure(spent)}, least is best" in " ".join(v.legend().split())
    assert v.as_json()["questions"][2]["errors"] == v.errors.loc["f5"].to_dict()


def test_is_a_study() -> None:
    v = verdict(SMALL, ["mainline", "ksm-opt-out"], ["c1", "f2"])
    study = v.study()
    table = study.table()
    assert list(table) == ["V0\nmain", "V2\nopt"]
    assert list(table.index) == ["c1 pressure: freed (MiB)", "f2 in no KSM counter (MiB)"]
    assert table.to_numpy().tolist() == v.cells.to_numpy().tolist()
    assert study.finding == "Among the best of 2 questions: ksm-opt-out 1, mainline 0."
    figure = study.plot()
    assert figure is not None
    (drawn,) = tables_of(figure).values()
    assert drawn.shape == (2, 3)


def test_a_base_is_a_params_file() -> None:
    assert Scenario(**BASE) == Scenario.load(find_params("other_splits"))
