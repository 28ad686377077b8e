"""Traces: every recording is predicted exactly, from its question alone; broken files are refused by name."""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import RECORDED, ROOT, SHIPPED
from mmlab.errors import UserError
from mmlab.kernel.versions import RELEASES
from mmlab.results import trace as traces
from mmlab.results.run import simulate
from mmlab.scenario import Scenario
from mmlab.variants import VARIANTS

REFEREE = ROOT.parent / "shared" / "tools" / "compare_traces.py"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json.gz"))


def group(path: Path) -> str:
    """`act-fork_before_mainline…` and `act-fork_mid_legacy…` are both of `act-fork`, `soup-134_…` is of `soup`, and
    `k73-cow-same-ss0` of `k73`.
    """
    aimed = re.match(r"(k\d+|lazy|misc|sp2?|step)-", path.name)
    return aimed[1] if aimed else re.split(r"[_\d]|-r?\d", path.name)[0].rstrip("-")


def small(count: int) -> list[Path]:
    """Some shipped traces, of different groups."""
    by_group = {group(path): path for path in files(SHIPPED)}
    return list(by_group.values())[:: max(1, len(by_group) // count)]


# -- exactness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", files(SHIPPED), ids=lambda p: p.name.removesuffix(".json.gz"))
def test_shipped_trace_is_predicted_exactly(path: Path) -> None:
    recorded = traces.read(path)
    found = traces.compare(recorded, traces.predict(recorded))
    assert found.exact, f"mmlab compare {path.relative_to(ROOT)}\n{found}"


@pytest.mark.skipif(not RECORDED, reason="no more traces are here: MMLAB_TRACES names their folders")
@pytest.mark.parametrize("name", sorted({group(path) for path in RECORDED}))
def test_recorded_group_is_predicted_exactly(name: str) -> None:
    wrong, done = [], 0
    for path in (p for p in RECORDED if group(p) == name):
        recorded = traces.read(path)
        done += 1
        found = traces.compare(recorded, traces.predict(recorded))
        if not found.exact:
            wrong.append(f"{path.name}: {found}")
    assert not wrong, "\n".join([f"{len(wrong)} of {done} differ", *wrong])


def test_shipped_traces_cover_every_group_variant_and_kernel_and_are_small() -> None:
    shipped = files(SHIPPED)
    assert len(shipped) >= 60
    assert sum(path.stat().st_size for path in shipped) <= 1.5 * 2**20
    assert {traces.read(path)["variant"] for path in shipped} == set(VARIANTS)
    assert {traces.read(path)["kernel"] for path in shipped} == {*RELEASES.values(), "6.18.15"}
    assert {*map(group, RECORDED)} <= {*map(group, shipped)}


# -- what a prediction may read -----------------------------------------------------------------------------------


def scrambled(trace: traces.Trace, seed: int) -> traces.Trace:
    """The same question with every answer replaced by nonsense."""
    rng = random.Random(seed)
    out = copy.deepcopy(trace)
    out["name"], out["how"] = "scrambled", "by a test"
    out["fields"] = rng.sample(out["fields"], len(out["fields"]))
    out["samples"] = [[rng.randrange(10**9) for _ in row] for row in out["samples"]][: rng.randrange(1, 9)]
    for event in out["scenario"]["events"]:
        event["result"], event["sample"] = rng.randrange(40), rng.randrange(99)
    for entry in out["maps"]:
        entry["pages"], entry["sample"] = "".join(rng.choices("ZHKAN", k=9)), rng.randrange(99)
    for entry in out["frames"]:
        entry["frames"], entry["ksm_frames"], entry["sample"] = (rng.randrange(10**6) for _ in range(3))
    return out


@pytest.mark.parametrize("path", small(12), ids=lambda p: p.name.removesuffix(".json.gz"))
def test_scrambling_the_answers_changes_nothing(path: Path) -> None:
    recorded = traces.read(path)
    expected = traces.predict(recorded)
    assert traces.predict(scrambled(recorded, seed=1)) == expected
    assert traces.predict(scrambled(recorded, seed=2)) == expected


def test_a_prediction_is_a_question_again() -> None:
    for path in small(5):
        recorded = traces.read(path)
        prediction = traces.predict(recorded)
        assert traces.predict(prediction) == prediction
        assert prediction["kernel"].startswith("mmlab ")


def test_overrides_are_part_of_the_predicted_question() -> None:
    recorded = traces.read(next(SHIPPED.glob("base_mainline-su1_uzp0*.json.gz")))
    prediction = traces.predict(recorded, variant="legacy", overrides={"use_zero_pages": 1, "horizon_batches": 3})
    assert prediction["variant"] == "legacy"
    assert prediction["scenario"]["knobs"]["use_zero_pages"] == 1
    assert prediction["scenario"]["batches"] == 3
    assert prediction["samples"][-1][prediction["fields"].index("batch")] == 3
    assert not traces.compare(recorded, prediction).exact
    with pytest.raises(UserError, match=r"can't be changed") as caught:
        traces.predict(recorded, overrides={"zero_fraction": 0.5})
    assert (caught.value.parameter, caught.value.value) == ("zero_fraction", 0.5)


def test_a_variant_of_your_own_is_predicted() -> None:
    """Another name is another question; what it does is compared sample by sample."""
    recorded = traces.read(SHIPPED / "act-splitall_late_ksm-opt-out_uzp1.json.gz")
    run, predicted = traces.rerun(recorded, lambda split: split.caller != "ksm")
    assert (run.variant, predicted["variant"]) == ("<lambda>", "<lambda>")
    assert predicted["samples"] == traces.predict(recorded)["samples"]
    found = traces.compare(recorded, predicted)
    assert not found.exact
    assert found.samples_exact == found.samples
    refused = traces.compare(recorded, traces.predict(recorded, lambda _: False))
    assert refused.samples_exact < refused.samples


def test_find(tmp_path: Path) -> None:
    assert traces.find() == files(SHIPPED)
    assert traces.find(SHIPPED) == traces.find(f"{SHIPPED}/*") == files(SHIPPED)
    assert {group(path) for path in traces.find(f"{SHIPPED}/chain-r*")} == {"chain"}
    assert traces.find(files(SHIPPED)[3]) == [files(SHIPPED)[3]]
    for nothing in (tmp_path, tmp_path / "nowhere" / "x*", SHIPPED / "README.md"):
        with pytest.raises(UserError, match="no trace"):
            traces.find(nothing)


def test_a_run_becomes_a_trace_that_predicts_itself() -> None:
    events = [
        {"after": {"batch": 3}, "op": "write", "page": 5, "count": 2, "key": None},
        {"after": {"seconds": 0.3}, "op": "split", "page": 0, "count": 600},
        {"after": {"full_scan": 2}, "op": "fork"},
    ]
    scenario = Scenario(
        memory_mib=4,
        zero_fraction=0.9,
        layout="interleaved",
        horizon_seconds=2,
        processes=2,
        pages_to_scan=300,
        events=events,
        use_zero_pages=1,
    )
    trace = traces.from_run(simulate(scenario, maps_at="end"))
    again = traces.predict(trace)
    assert again["samples"] == trace["samples"]
    assert again["maps"] == trace["maps"]
    assert len(trace["maps"]) == 3
    assert traces.compare(trace, again).exact


# -- comparison ---------------------------------------------------------------------------------------------------


def perturbed(trace: traces.Trace, rng: random.Random) -> traces.Trace:
    out = copy.deepcopy(trace)
    for _ in range(rng.randrange(3)):
        row = rng.choice(out["samples"])
        row[rng.randrange(1, len(row))] += rng.choice((1, -1, 0.5))
    if out["maps"] and rng.random() < 0.5:
        entry = rng.choice(out["maps"])
        entry["pages"] = rng.choice((entry["pages"][:-1], "Z5" + entry["pages"], entry["pages"].replace("A", "K"), ""))
    if out["frames"] and rng.random() < 0.5:
        rng.choice(out["frames"])["ksm_frames"] += 1
    for key in ("maps", "samples", "frames"):
        if out[key] and rng.random() < 0.2:
            out[key].pop()
    if rng.random() < 0.2:
        out["scenario"]["knobs"]["pages_to_scan"] += 1
    if rng.random() < 0.2 and out["scenario"]["events"]:
        out["scenario"]["events"][0]["result"] = 77
    if rng.random() < 0.1:
        out["variant"] = "none"
    return out


def test_lab_fields_and_event_sample_numbers_do_not_count() -> None:
    recorded = traces.read(next(SHIPPED.glob("act-write*.json.gz")))
    other = copy.deepcopy(recorded)
    lab = [i for i, name in enumerate(other["fields"]) if name.startswith("lab_")]
    assert lab
    for row in other["samples"]:
        row[lab[0]] += 1
    for event in other["scenario"]["events"]:
        event["sample"] = None
    assert traces.compare(recorded, other).exact


def test_each_kind_of_difference_is_found() -> None:
    recorded = traces.read(next(SHIPPED.glob("act-write*.json.gz")))
    assert traces.compare(recorded, recorded).exact
    column = recorded["fields"].index("pages_shared")

    def change(action: Any) -> str:
        other = copy.deepcopy(recorded)
        action(other)
        found = traces.compare(recorded, other)
        assert not found.exact
        return str(found)

    assert "pages_shared: recorded 0, predicted 9" in change(lambda t: t["samples"][0].__setitem__(column, 9))
    assert "predicted nothing" in change(lambda t: t["fields"].__setitem__(column, "x"))
    assert "predicted 0.0" in change(lambda t: t["samples"][0].__setitem__(column, 0.0))
    assert "samples: none is predicted" in change(lambda t: t["samples"].pop())
    assert "page 0: recorded" in change(lambda t: t["maps"][0].__setitem__("pages", "N9"))
    assert "maps: none is predicted" in change(lambda t: t["maps"].pop())
    assert "frames: recorded" in change(lambda t: t["frames"][0].__setitem__("frames", -1))
    assert "another scenario" in change(lambda t: t["scenario"].__setitem__("batches", 1))
    assert "another scenario" in change(lambda t: t.__setitem__("variant", "x"))


@pytest.mark.skipif(not REFEREE.exists(), reason=f"{REFEREE} is not here")
def test_agrees_with_the_referee() -> None:
    spec = importlib.util.spec_from_file_location("referee", REFEREE)
    assert spec
    assert spec.loader
    referee = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(referee)
    rng = random.Random(0)
    verdicts = Counter[bool]()
    for path in files(SHIPPED):
        recorded = traces.read(path)
        other = perturbed(recorded, rng)
        found = traces.compare(recorded, other)
        *counts, differences = referee.compare(recorded, other)
        assert [found.samples_exact, found.samples, found.maps_exact, found.maps] == counts, path.name
        assert [(d.batch, d.rank) for d in found.differences] == [d[:2] for d in differences], path.name
        verdicts[found.exact] += 1
    assert min(verdicts.values()) > 5


# -- files --------------------------------------------------------------------------------------------------------


def test_write_and_read_give_the_same_trace_and_the_same_bytes(tmp_path: Path) -> None:
    recorded = traces.read(files(SHIPPED)[0])
    for name in ("a", "b"):
        traces.write(tmp_path / "new" / f"{name}.json.gz", recorded)
    a, b = ((tmp_path / "new" / f"{name}.json.gz").read_bytes() for name in ("a", "b"))
    assert a == b
    assert traces.read(tmp_path / "new" / "a.json.gz") == recorded
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "x.json.gz"
    path.write_bytes(b"as it was")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match=r"x\.json\.gz: cannot be written \(No space left"):
        traces.write(path, {})
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"as it was"]


def damaged(tmp_path: Path, change: Any) -> Path:
    trace = traces.read(files(SHIPPED)[0])
    change(trace)
    path = tmp_path / "bad.json.gz"
    traces.write(path, trace)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda good: good[: len(good) // 2], "cut short"),
        (lambda good: good[:-4], "cut short"),
        (lambda good: b"", "JSON|cut short|damaged"),
        (lambda good: b"not gzip at all", "not a gzip file"),
        (lambda good: good[:200] + bytes(60) + good[260:], "damaged"),
        (lambda good: gzip.compress(b'{"format": '), "damaged"),
        (lambda good: gzip.compress(b"[" * 100_000), "damaged"),
        (lambda good: gzip.compress(b"[1, 2]"), "not a kernel trace"),
        (lambda good: gzip.compress(b'{"format": "kernel-trace-9"}'), "format: this is not a kernel trace"),
        (lambda good: gzip.compress(b'{"format": "kernel-trace-1"}'), "kernel: this is not a kernel trace"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "bad.json.gz"
    path.write_bytes(content(files(SHIPPED)[0].read_bytes()))
    with pytest.raises(UserError, match=words) as error:
        traces.read(path)
    assert error.value.where == str(path)


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        (lambda t: t.pop("samples"), "samples"),
        (lambda t: t.update(maps={}), "maps"),
        (lambda t: t["scenario"].pop("knobs"), "scenario knobs"),
        (lambda t: t["scenario"].update(batches=True), "scenario batches"),
        (lambda t: t["scenario"].update(events=[3]), "scenario events 0"),
        (lambda t: t["maps"][0].pop("rank"), "maps 0 rank"),
        (lambda t: t["frames"].clear() or t["frames"].append(7), "frames 0"),
    ],
)
def test_incomplete_traces_are_named(tmp_path: Path, change: Any, parameter: str) -> None:
    path = damaged(tmp_path, change)
    with pytest.raises(UserError) as error:
        traces.read(path)
    assert (error.value.where, error.value.parameter) == (str(path), parameter)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["scenario"]["knobs"].update(pages_to_scna=1), "pages_to_scna"),
        (lambda t: t["scenario"]["knobs"].update(pages_to_scan=-1), "pages_to_scan = -1"),
        (lambda t: t["scenario"]["processes"][0].pop("contents"), "pages and contents"),
        (lambda t: t["scenario"].update(events=[{"after": {"batch": 1}, "op": "explode"}]), "explode"),
        (lambda t: t.update(kernel="2.6.32"), "2.6.32"),
    ],
)
def test_impossible_questions_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    path = damaged(tmp_path, change)
    with pytest.raises(UserError, match=words) as error:
        traces.load(path)
    assert str(error.value).startswith(str(path))


def test_rows_that_do_not_fit_the_fields() -> None:
    recorded = traces.read(files(SHIPPED)[0])
    other = copy.deepcopy(recorded)
    other["samples"][3].pop()
    with pytest.raises(UserError, match="sample 3"):
        traces.compare(other, recorded)


# -- maps and keys ------------------------------------------------------------------------------------------------


@given(st.text("ZYKHhASN", max_size=60))
def test_run_length_strings(text: str) -> None:
    pages = np.frombuffer(text.encode(), dtype=np.uint8)
    packed = traces.runs(pages)
    assert traces.letters(packed).tolist() == pages.tolist()
    assert len(packed) <= len(text)


def test_letters_count() -> None:
    assert bytes(traces.letters("Z3AH12")).decode() == "ZZZA" + "H" * 12
    assert traces.letters("").size == 0


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), min_size=1, max_size=50))
def test_runs_of_keys_are_the_keys(keys: list[int]) -> None:
    packed = traces._key_runs(np.array(keys, dtype=np.uint64))
    assert [first + i * step for first, count, step in packed for i in range(count)] == keys


def test_format_as_in_a_json_reader() -> None:
    """A written trace is plain JSON: no numpy types, no NaN."""
    recorded = traces.read(files(SHIPPED)[0])
    prediction = traces.predict(recorded)
    assert json.loads(json.dumps(prediction, allow_nan=False)) == prediction
