"""The parameter model: what it accepts, what it refuses, and with which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, SHIPPED
from mmlab import scenario as module
from mmlab.errors import UserError
from mmlab.results.trace import read
from mmlab.scenario import EVENT_FIELDS, SETTABLE, Scenario, flat_fields

FLAT = sorted(
    p for p in (ROOT / "params").glob("*.yaml") if not {"process_list", "events"} & set(yaml.safe_load(p.read_text()))
)
GUESTS = ROOT / "params" / "qemu_guests.yaml"

BAD: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"pages_to_scna": 3}, ("pages_to_scna", 'did you mean "pages_to_scan"')),
    ({"pages_to_scan": -1}, ("pages_to_scan = -1", "at least 0", "pages")),
    ({"pages_to_scan": 2**32}, ("pages_to_scan = 4294967296", "0 … 4294967295")),
    ({"pages_to_scan": "many"}, ("pages_to_scan = 'many'", "whole number")),
    ({"pages_to_scan": 1.5}, ("pages_to_scan = 1.5", "whole number")),
    ({"zero_fraction": 1.5}, ("zero_fraction = 1.5", "0 … 1")),
    ({"zero_fraction": float("nan")}, ("zero_fraction = nan", "0 … 1")),
    ({"max_page_sharing": 1}, ("max_page_sharing = 1", "at least 2")),
    ({"use_zero_pages": 2}, ("use_zero_pages = 2", "0 … 1")),
    ({"merge_across_nodes": 2}, ("merge_across_nodes = 2", "0 … 1")),
    ({"layout": "spiral"}, ("layout = 'spiral'", "zero-first", "bimodal")),
    ({"kernel": "5.4"}, ("kernel = '5.4'", "6.12")),
    ({"hz": 60}, ("hz = 60", "100, 250, 300, 1000")),
    ({"memory_mib": 3}, ("memory_mib = 3", "even", "4")),
    ({"memory_mib": 0}, ("memory_mib = 0", "at least 1")),
    ({"pages_per_thp": 12}, ("pages_per_thp = 12", "power of two")),
    ({"horizon_seconds": 0}, ("never end", "horizon_batches")),
    ({"seed": "x"}, ("seed = 'x'",)),
    ({"events": [{"after": {"batch": 1}, "op": "wirte"}]}, ("events 0", "wirte", '"write"')),
    ({"events": [{"after": {"batch": 1}, "op": "write", "page": 0}]}, ("events 0", "needs count, key", "null")),
    ({"events": [{"after": {"batch": 1}, "op": "fork", "page": 0}]}, ("events 0", "takes process", "remove page")),
    ({"events": [{"after": {}, "op": "split_all"}]}, ("events 0 after", "exactly one")),
    ({"events": [{"after": {"batch": 1, "seconds": 2}, "op": "split_all"}]}, ("events 0 after", "exactly one")),
    ({"events": [{"after": {"bacth": 1}, "op": "split_all"}]}, ("events 0 after", "bacth", '"batch"')),
    ({"events": [{"op": "split_all"}]}, ("events 0 after", "missing")),
    ({"events": [{"after": {"batch": 1}, "op": "set", "knob": "runn", "value": 1}]}, ("runn", '"run"')),
    ({"events": [{"after": {"batch": 1}, "op": "set", "knob": "run", "value": 3}]}, ("run = 3", "0 … 2")),
    ({"events": [{"after": {"batch": 1}, "op": "mprotect", "page": 0, "count": 1, "prot": 2}]}, ("prot",)),
    ({"events": [{"after": {"batch": 1}, "op": "exit", "process": 1}]}, ("events 0", "process = 1", "0 … 0")),
    ({"memory_mib": 2, "events": [{"after": {"batch": 1}, "op": "read", "page": 500, "count": 13}]}, ("512 pages",)),
    ({"process_list": [{"pages": 8}]}, ("process_list 0", "pages and contents")),
    ({"process_list": [{"pages": 8, "contents": [[0, 7, 0]]}]}, ("7 pages long", "pages = 8")),
    ({"process_list": [{"pages": 8, "contents": [[3, 8, -1]]}]}, ("keys must stay within",)),
    ({"process_list": [{"pages": 8, "contents": [[3, 8, 1]], "layout": "random"}]}, ("remove layout",)),
    ({"process_list": [{"pages": 8, "contents": [[3, 8, 1]], "thp": [[4, 8]]}]}, ("thp [4, 8]", "8 pages")),
    ({"process_list": [{"memory_mib": 2, "orders": [[0, 512, 1]]}]}, ("orders [0, 512, 1]", "order 0 or 2")),
    ({"process_list": [{"memory_mib": 2, "orders": [[0, 256, 4]]}]}, ("256 of 512",)),
    ({"events": [{"after": {"batch": 1, "every": 2}, "op": "split_all"}]}, ("events 0 after", "every goes")),
    ({"events": [{"after": {"seconds": 1, "every": 0}, "op": "split_all"}]}, ("events 0 after every = 0", "0.001")),
    ({"events": [{"after": {"batch": 1}, "op": "migrate", "page": 0, "count": 1, "node": 1}]}, ("node = 1", "0 … 0")),
    ({"events": [{"after": {"batch": 1}, "op": "migrate", "page": 0, "count": 1, "huge": 2}]}, ("huge = 2",)),
    ({"events": [{"after": {"batch": 1}, "op": "migrate", "page": 0}]}, ("migrate needs count",)),
    ({"events": [{"after": {"batch": 1}, "op": "merge_any", "value": 2}]}, ("value = 2", "1 (on) or 0 (off)")),
    ({"events": [{"after": {"batch": 1}, "op": "merge_any"}]}, ("merge_any needs value",)),
    ({"events": [{"after": {"batch": 1}, "op": "uffd", "page": 0, "count": 1, "value": "on"}]}, ("value = 'on'",)),
    ({"memory_mib": 2, "events": [{"after": {"batch": 1}, "op": "memory_failure", "page": 512}]}, ("512 + 1", "512")),
    (
        {"events": [{"after": {"batch": 1}, "op": "set", "knob": "advisor_mode", "value": "fast"}]},
        ("advisor_mode = 'fast'", "none, scan-time"),
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "set", "knob": "merge_across_nodes", "value": 2}]},
        ("merge_across_nodes = 2", "0 … 1"),
    ),
    ({"events": [{"after": {"batch": 1}, "op": "set", "knob": "variant", "value": 2}]}, ("name of a variant",)),
    ({"advisor_mode": "fast"}, ("advisor_mode = 'fast'", "none, scan-time")),
    ({"advisor_max_cpu": 101}, ("advisor_max_cpu = 101", "0 … 100", "%")),
    ({"folio_order": 1}, ("folio_order = 1", "0, 2, 3")),
    ({"folio_order": 4, "pages_per_thp": 8}, ("folio_order = 4", "2 … 3")),
    ({"process_list": [{"memory_mib": 2, "folio_order": 1}]}, ("process_list 0", "folio_order = 1", "2 … 9")),
    ({"process_list": [{"memory_mib": 2, "node": 1}]}, ("process_list 0", "node = 1", "0 … 0")),
    ({"process_list": [{"memory_mib": 2, "boots_at_seconds": 5, "exits_at_seconds": 5}]}, ("5 is not after its boot",)),
    ({"nodes": 9}, ("nodes = 9", "1 … 8")),
    ({"policy": "tuned"}, ("policy = 'tuned'", "none, ksmtuned")),
    ({"hot_fraction": 0.7, "warm_fraction": 0.4}, ("hot_fraction = 0.7", "at most 1")),
    ({"hot_period_seconds": 0}, ("hot_period_seconds = 0", "at least 0.05", "s")),
    ({"pressure_rate": -1}, ("pressure_rate = -1", "at least 0", "folios/s")),
    ({"migration_huge_share": 1.1}, ("migration_huge_share = 1.1", "0 … 1")),
    ({"ksm_start_seconds": 5, "run": 0}, ("ksm_start_seconds = 5", "run = 0")),
    ({"khugepaged": 1, "horizon_seconds": 0, "horizon_full_scans": 1}, ("horizon_seconds = 0 with khugepaged",)),
    (
        {
            "events": [{"after": {"seconds": 1, "every": 1}, "op": "split_all"}],
            "horizon_seconds": 0,
            "until_settled": True,
        },
        ("horizon_seconds = 0 with an event with every",),
    ),
    ({"process_list": [{"memroy_mib": 2}]}, ("process_list 0", "memroy_mib", '"memory_mib"')),
]


@pytest.mark.parametrize(("given", "words"), BAD, ids=[str(sorted(g)) + str(i) for i, (g, _) in enumerate(BAD)])
def test_refuses_with_name_value_range_and_way_out(given: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        Scenario(**given)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "pydantic" not in str(error.value)


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(UserError) as error:
        Scenario(zero_fraction=2, thp_coverage=-1)
    assert "zero_fraction = 2" in str(error.value)
    assert "thp_coverage = -1" in str(error.value)


def test_defaults_are_the_kernels() -> None:
    s = Scenario()
    assert (s.use_zero_pages, s.pages_to_scan, s.sleep_millisecs, s.smart_scan) == (0, 100, 20, 1)
    assert s.max_page_sharing == 256
    assert (s.stable_node_chains_prune_millisecs, s.merge_across_nodes, s.max_ptes_none) == (2000, 1, 511)
    assert s.shrink_underused == 1


def test_every_flat_field_says_what_it_is() -> None:
    for name, p in flat_fields().items():
        assert p.help, name
        assert p.default is not None, name
        assert p.low is None or p.low <= p.default <= p.high  # type: ignore[operator]
        assert isinstance(p.default, (int, float, str, bool)), name
    rich = set(Scenario.model_fields) - set(flat_fields())
    assert rich == {"process_list", "late", "events", "stepped"}


def test_is_frozen_and_replace_validates() -> None:
    s = Scenario(memory_mib=64)
    with pytest.raises(Exception, match="frozen"):
        s.memory_mib = 2  # type: ignore[misc]
    assert s.replace(zero_fraction=0.5).memory_mib == 64
    with pytest.raises(UserError, match="memory_mib = 5"):
        s.replace(memory_mib=5)
    with pytest.raises(UserError, match="unknown key"):
        s.replace(memroy=5)


@pytest.mark.parametrize("path", FLAT, ids=lambda p: p.stem)
def test_flat_params_are_plain_scalars(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    assert set(data) <= set(flat_fields())
    assert all(isinstance(v, (int, float, str, bool)) for v in data.values())
    assert Scenario.load(path) == Scenario(**data)


def test_shipped_regressions_are_the_threads_load() -> None:
    for n in (0, 1):
        s = Scenario.load(ROOT / "params" / f"regression_uzp{n}.yaml")
        assert (s.use_zero_pages, s.memory_mib, s.thp_coverage, s.zero_fraction * 512) == (n, 1024, 1.0, 460)
        assert (s.pages_to_scan, s.sleep_millisecs, s.horizon_seconds) == (1000, 20, 120)


def test_rich_file() -> None:
    s = Scenario.load(GUESTS, seed=9)
    assert s.seed == 9
    assert len(s.specs) == 4
    assert [spec.zero_fraction for spec in s.specs] == [0.6, 0.3, 0.6, 0.9]
    assert any(e.op == "set" and e.knob == "run" and e.after.seconds == 60 for e in s.events)


def test_trace_scenario() -> None:
    path = next(SHIPPED.glob("base_mainline*.json.gz"))
    s = Scenario.load(path)
    assert s.stepped
    assert s.sleep_millisecs == 0
    assert s.horizon_seconds == 0
    assert s.horizon_batches > 0
    assert s.kernel == "6.12.117"
    assert s.run == 0
    assert Scenario.load(path, pages_to_scan=7).pages_to_scan == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pages_to_scan: [1", ("not YAML",)),
        ("- 1\n- 2\n", ("name: value",)),
        ("seed: 1\nseed: 2\n", ('"seed" is given twice', "line 2")),
        ("zero_fraction: 7\n", ("zero_fraction = 7", "0 … 1")),
        ("pages_to_scan: \xff\n", ("pages_to_scan",)),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        Scenario.load(path)
    assert str(error.value).startswith(str(path))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Scenario.load(tmp_path / "none.yaml")


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing but a comment\n")
    assert Scenario.load(path) == Scenario()


def test_too_large_for_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_mem_available", lambda: 2**30)
    Scenario(memory_mib=1024).check_memory()
    with pytest.raises(UserError) as error:
        Scenario(memory_mib=1024, processes=80).check_memory()
    assert "memory_mib" in str(error.value)
    assert "only 1.0 GiB" in str(error.value)
    monkeypatch.setattr(module, "_mem_available", lambda: None)
    Scenario(memory_mib=2**20).check_memory()


def test_every_op_is_strict() -> None:
    good = {
        "page": 0,
        "count": 1,
        "key": 5,
        "prot": 1,
        "knob": "run",
        "value": 1,
        "full_scans": 1,
        "millisecs": 1,
        "node": 0,
        "huge": 1,
    }
    for op, fields in EVENT_FIELDS.items():
        event = {"after": {"batch": 1}, "op": op} | {k: v for k, v in good.items() if k in fields}
        Scenario(memory_mib=2, events=[event])
        for name in set(good) - set(fields):
            with pytest.raises(UserError, match=name):
                Scenario(memory_mib=2, events=[event | {name: good[name]}])


def test_knobs_that_events_may_set() -> None:
    assert {"run", "variant", "pages_to_scan", "use_zero_pages"} <= set(SETTABLE)
    for knob, value in {
        "variant": "legacy",
        "advisor_mode": "scan-time",
        "merge_across_nodes": 0,
        "khugepaged": 1,
        "khugepaged_scan_sleep_millisecs": 0,
        "max_ptes_swap": 511,
    }.items():
        Scenario(events=[{"after": {"full_scan": 2}, "op": "set", "knob": knob, "value": value}])
    assert SETTABLE["advisor_mode"] == ("none", "scan-time")
    assert "swap_mib" not in SETTABLE


def test_processes_boot_one_after_another() -> None:
    s = Scenario(processes=3, boot_interval_seconds=7, lifetime_seconds=10)
    assert [(s.boots_at(i), s.exits_at(i)) for i in range(3)] == [(0, 10), (7, 17), (14, 24)]
    own = Scenario(process_list=[{"boots_at_seconds": 3}, {"exits_at_seconds": 9}], boot_interval_seconds=1)
    assert [(own.boots_at(i), own.exits_at(i)) for i in range(2)] == [(3, None), (1, 9)]


def test_trace_with_newer_knobs() -> None:
    """Knobs that older traces lack are the defaults; a trace that has them is read."""
    trace = read(next(SHIPPED.glob("base_mainline*.json.gz")))
    old = Scenario.from_trace(trace)
    assert (old.advisor_mode, old.khugepaged, old.max_ptes_shared, old.nodes) == ("none", 0, 256, 1)
    trace["scenario"]["knobs"] |= {"advisor_mode": "scan-time", "khugepaged": 1, "max_ptes_shared": 7, "nodes": 2}
    trace["scenario"]["processes"][0] |= {"node": 1, "merge_any": 1, "forbids_zeropages": 1}
    new = Scenario.from_trace(trace)
    assert (new.advisor_mode, new.khugepaged, new.max_ptes_shared, new.nodes) == ("scan-time", 1, 7, 2)
    assert (new.specs[0].node, new.specs[0].merge_any, new.specs[0].forbids_zeropages) == (1, 1, 1)


@given(st.sampled_from(sorted(flat_fields())), st.one_of(st.integers(), st.floats(), st.text(max_size=9), st.none()))
def test_any_value_is_either_accepted_or_explained(name: str, value: object) -> None:
    message = ""
    try:
        Scenario(**{name: value})
    except UserError as error:
        message = str(error)
    assert not message or name in message or "never end" in message


def test_parameter_is_plain_data() -> None:
    p = flat_fields()["pages_to_scan"]
    assert dataclasses.asdict(p)["unit"] == "pages"
    assert p.log
    assert p.allowed == "0 … 4294967295"
    assert flat_fields()["layout"].choices[0] == "zero-first"
