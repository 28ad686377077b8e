"""The parameter model: what it accepts, what it refuses, and with which words."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, SHIPPED
from mmlab import scenario as module
from mmlab.errors import UserError
from mmlab.params import save_new
from mmlab.policies import Ksmtuned
from mmlab.results.trace import load, read, scenario_of
from mmlab.scenario import EVENTS, SETTABLE, Scenario, Set, flat_fields

FLAT = sorted(
    p for p in (ROOT / "params").glob("*.yaml") if not {"process_list", "events"} & set(yaml.safe_load(p.read_text()))
)
GUESTS = ROOT / "params" / "qemu_guests.yaml"

BAD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"pages_to_scna": 3}, {"parameter": "key", "value": "pages_to_scna"}),
    ({"pages_to_scan": -1}, {"parameter": "pages_to_scan", "value": -1, "allowed": "at least 0 (pages)"}),
    (
        {"pages_to_scan": 4294967296},
        {"parameter": "pages_to_scan", "value": 4294967296, "allowed": "0 … 4294967295 (pages)"},
    ),
    ({"pages_to_scan": "many"}, {"parameter": "pages_to_scan", "value": "many", "allowed": "0 … 4294967295 (pages)"}),
    ({"pages_to_scan": 1.5}, {"parameter": "pages_to_scan", "value": 1.5, "allowed": "0 … 4294967295 (pages)"}),
    ({"zero_fraction": 1.5}, {"parameter": "zero_fraction", "value": 1.5, "allowed": "0 … 1"}),
    ({"zero_fraction": float("nan")}, {"parameter": "zero_fraction", "allowed": "0 … 1"}),
    ({"max_page_sharing": 1}, {"parameter": "max_page_sharing", "value": 1, "allowed": "at least 2 (mappings)"}),
    ({"use_zero_pages": 2}, {"parameter": "use_zero_pages", "value": 2, "allowed": "0 … 1"}),
    ({"merge_across_nodes": 2}, {"parameter": "merge_across_nodes", "value": 2, "allowed": "0 … 1"}),
    (
        {"layout": "spiral"},
        {
            "parameter": "layout",
            "value": "spiral",
            "allowed": "one of zero-first, zero-last, interleaved, random, bimodal",
        },
    ),
    ({"kernel": "5.4"}, {"parameter": "kernel", "value": "5.4"}),
    ({"kernel_changes": {"advisor_exits": 1}}, {"parameter": "kernel_changes", "value": "advisor_exits"}),
    ({"kernel_changes": {"advisor_exists": 2}}, {"parameter": "kernel_changes advisor_exists", "value": 2}),
    ({"hz": 60}, {"parameter": "hz", "value": 60, "allowed": "one of 100, 250, 300, 1000 (1/s)"}),
    ({"memory_mib": 3}, {"parameter": "memory_mib", "value": 3, "allowed": "even, e.g. 4"}),
    ({"memory_mib": 0}, {"parameter": "memory_mib", "value": 0, "allowed": "at least 1 (MiB)"}),
    (
        {"pages_per_thp": 12},
        {"parameter": "pages_per_thp", "value": 12, "allowed": "one of 4, 8, 16, 32, 64, 128, 256, 512 (pages)"},
    ),
    ({"horizon_seconds": 0}, {"parameter": "horizon_seconds", "value": 0}),
    ({"seed": "x"}, {"parameter": "seed", "value": "x", "allowed": "0 … 9223372036854775807"}),
    ({"events": [{"after": {"batch": 1}, "op": "wirte"}]}, {"where": "events 0", "parameter": "op", "value": "wirte"}),
    ({"events": [{"after": {"batch": 1}, "op": "write", "page": 0}]}, {"where": "events 0", "parameter": "count"}),
    (
        {"events": [{"after": {"batch": 1}, "op": "fork", "page": 0}]},
        {"where": "events 0", "parameter": "key", "value": "page", "allowed": "one of after, op, process"},
    ),
    ({"events": [{"after": {}, "op": "split_all"}]}, {"where": "events 0 after"}),
    ({"events": [{"after": {"batch": 1, "seconds": 2}, "op": "split_all"}]}, {"where": "events 0 after"}),
    (
        {"events": [{"after": {"bacth": 1}, "op": "split_all"}]},
        {"where": "events 0 after", "parameter": "key", "value": "bacth"},
    ),
    ({"events": [{"op": "split_all"}]}, {"where": "events 0", "parameter": "after"}),
    (
        {"events": [{"after": {"batch": 1}, "op": "set", "knob": "runn", "value": 1}]},
        {"where": "events 0", "parameter": "knob", "value": "runn"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "set", "knob": "run", "value": 3}]},
        {"where": "events 0", "parameter": "run", "value": 3, "allowed": "0 … 2"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "mprotect", "page": 0, "count": 1, "prot": 2}]},
        {"where": "events 0", "parameter": "prot", "value": 2, "allowed": "1 or 3"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "exit", "process": 1}]},
        {"where": "events 0", "parameter": "process", "value": 1, "allowed": "0"},
    ),
    (
        {"memory_mib": 2, "events": [{"after": {"batch": 1}, "op": "read", "page": 500, "count": 13}]},
        {"where": "events 0", "parameter": "page", "value": 500, "allowed": "0 … 499"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "read", "page": 0, "count": 9, "every_nth": 0}]},
        {"where": "events 0", "parameter": "every_nth", "value": 0, "allowed": "greater than or equal to 1"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "read", "page": 0, "count": 9, "share": 1.5}]},
        {"where": "events 0", "parameter": "share", "value": 1.5, "allowed": "less than or equal to 1"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "read", "page": 0, "count": 9, "granularity": "1G"}]},
        {"where": "events 0", "parameter": "granularity", "value": "1G", "allowed": "'4K' or '2M'"},
    ),
    (
        {"process_list": [{"pages": 8, "contents": [["hol", 8, 0]]}]},
        {"where": "process_list 0", "parameter": "contents 0 0", "value": "hol"},
    ),
    (
        {"process_list": [{"pages": 8, "contents": [["hole", 7, 0]]}]},
        {"where": "process_list 0", "parameter": "pages", "value": 8, "allowed": "7, the length of contents"},
    ),
    ({"touched_fraction": 1.5}, {"parameter": "touched_fraction", "value": 1.5, "allowed": "0 … 1"}),
    ({"growth_seconds": -1}, {"parameter": "growth_seconds", "value": -1, "allowed": "at least 0 (s)"}),
    ({"balloon_granularity": "64K"}, {"parameter": "balloon_granularity", "allowed": "one of 4K, 2M"}),
    ({"process_list": [{"pages": 8}]}, {"where": "process_list 0"}),
    (
        {"process_list": [{"pages": 8, "contents": [[0, 7, 0]]}]},
        {"where": "process_list 0", "parameter": "pages", "value": 8},
    ),
    (
        {"process_list": [{"pages": 8, "contents": [[3, 8, -1]]}]},
        {"where": "process_list 0", "parameter": "contents", "value": [3, 8, -1]},
    ),
    ({"process_list": [{"pages": 8, "contents": [[3, 8, 1]], "layout": "random"}]}, {"where": "process_list 0"}),
    (
        {"process_list": [{"pages": 8, "contents": [[3, 8, 1]], "thp": [[4, 8]]}]},
        {"where": "process_list 0", "parameter": "thp", "value": [4, 8]},
    ),
    (
        {"process_list": [{"memory_mib": 2, "orders": [[0, 512, 1]]}]},
        {"where": "process_list 0", "parameter": "orders", "value": [0, 512, 1]},
    ),
    (
        {"process_list": [{"memory_mib": 2, "orders": [[0, 256, 4]]}]},
        {"where": "process_list 0", "parameter": "orders"},
    ),
    (
        {"events": [{"after": {"batch": 1, "every": 2}, "op": "split_all"}]},
        {"where": "events 0 after", "parameter": "every", "value": 2.0},
    ),
    (
        {"events": [{"after": {"seconds": 1, "every": 0}, "op": "split_all"}]},
        {"where": "events 0 after", "parameter": "every", "value": 0, "allowed": "greater than or equal to 0.001"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "migrate", "page": 0, "count": 1, "node": 1}]},
        {"where": "events 0", "parameter": "node", "value": 1, "allowed": "0"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "migrate", "page": 0, "count": 1, "huge": 2}]},
        {"where": "events 0", "parameter": "huge", "value": 2, "allowed": "less than or equal to 1"},
    ),
    ({"events": [{"after": {"batch": 1}, "op": "migrate", "page": 0}]}, {"where": "events 0", "parameter": "count"}),
    (
        {"events": [{"after": {"batch": 1}, "op": "merge_any", "value": 2}]},
        {"where": "events 0", "parameter": "value", "value": 2, "allowed": "less than or equal to 1"},
    ),
    ({"events": [{"after": {"batch": 1}, "op": "merge_any"}]}, {"where": "events 0", "parameter": "value"}),
    (
        {"events": [{"after": {"batch": 1}, "op": "uffd", "page": 0, "count": 1, "value": "on"}]},
        {
            "where": "events 0",
            "parameter": "value",
            "value": "on",
            "allowed": "a valid integer",
        },
    ),
    (
        {"memory_mib": 2, "events": [{"after": {"batch": 1}, "op": "memory_failure", "page": 512}]},
        {"where": "events 0", "parameter": "page", "value": 512, "allowed": "0 … 511"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "set", "knob": "advisor_mode", "value": "fast"}]},
        {"where": "events 0", "parameter": "advisor_mode", "value": "fast", "allowed": "one of none, scan-time"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "set", "knob": "merge_across_nodes", "value": 2}]},
        {"where": "events 0", "parameter": "merge_across_nodes", "value": 2, "allowed": "0 … 1"},
    ),
    (
        {"events": [{"after": {"batch": 1}, "op": "set", "knob": "variant", "value": 2}]},
        {"where": "events 0", "parameter": "variant", "value": 2},
    ),
    ({"advisor_mode": "fast"}, {"parameter": "advisor_mode", "value": "fast", "allowed": "one of none, scan-time"}),
    ({"advisor_max_cpu": 101}, {"parameter": "advisor_max_cpu", "value": 101, "allowed": "0 … 100 (%)"}),
    ({"folio_order": 1}, {"parameter": "folio_order", "value": 1, "allowed": "one of 0, 2, 3, 4, 5, 6, 7, 8, 9"}),
    ({"folio_order": 4, "pages_per_thp": 8}, {"parameter": "folio_order", "value": 4, "allowed": "one of 0, 2, 3, 9"}),
    (
        {"process_list": [{"memory_mib": 2, "folio_order": 1}]},
        {
            "where": "process_list 0",
            "parameter": "folio_order",
            "value": 1,
            "allowed": "one of 0, 2, 3, 4, 5, 6, 7, 8, 9",
        },
    ),
    (
        {"process_list": [{"memory_mib": 2, "node": 1}]},
        {"where": "process_list 0", "parameter": "node", "value": 1, "allowed": "0"},
    ),
    (
        {"process_list": [{"memory_mib": 2, "boots_at_seconds": 5, "exits_at_seconds": 5}]},
        {"where": "process_list 0", "parameter": "exits_at_seconds", "value": 5.0},
    ),
    ({"nodes": 9}, {"parameter": "nodes", "value": 9, "allowed": "1 … 8"}),
    (
        {"policy": "tuned"},
        {"parameter": "policy", "value": "tuned", "allowed": "one of none, ksmtuned, proxmox, kubevirt, mom, kata"},
    ),
    ({"policy": {"name": "mom", "pages_max": -1}}, {"where": "policy", "parameter": "pages_max", "value": -1}),
    ({"policy": {"name": "mum"}}, {"where": "policy", "parameter": "policy", "value": "mum"}),
    ({"policy": {"pages_max": 1}}, {"where": "policy", "parameter": "name"}),
    (
        {"hot_fraction": 0.7, "warm_fraction": 0.4},
        {"parameter": "hot_fraction", "value": 0.7, "allowed": "at most 0.6"},
    ),
    ({"hot_period_seconds": 0}, {"parameter": "hot_period_seconds", "value": 0, "allowed": "at least 0.05 (s)"}),
    ({"pressure_rate": -1}, {"parameter": "pressure_rate", "value": -1, "allowed": "at least 0 (folios/s)"}),
    ({"migration_huge_share": 1.1}, {"parameter": "migration_huge_share", "value": 1.1, "allowed": "0 … 1"}),
    ({"ksm_start_seconds": 5, "run": 0}, {"parameter": "ksm_start_seconds", "value": 5.0}),
    (
        {"khugepaged": 1, "horizon_seconds": 0, "horizon_full_scans": 1},
        {"parameter": "horizon_seconds", "value": 0, "allowed": "above 0"},
    ),
    (
        {
            "events": [{"after": {"seconds": 1, "every": 1}, "op": "split_all"}],
            "horizon_seconds": 0,
            "until_settled": True,
        },
        {"parameter": "horizon_seconds", "value": 0, "allowed": "above 0"},
    ),
    ({"process_list": [{"memroy_mib": 2}]}, {"where": "process_list 0", "parameter": "key", "value": "memroy_mib"}),
]


@pytest.mark.parametrize(("given", "fields"), BAD, ids=[str(sorted(g)) + str(i) for i, (g, _) in enumerate(BAD)])
def test_refuses_with_place_parameter_value_and_range(given: dict[str, Any], fields: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        Scenario(**given)
    assert {name: getattr(error.value, name) for name in fields} == fields
    assert "pydantic" not in str(error.value)


def test_several_mistakes_are_all_named() -> None:
    with pytest.raises(UserError) as error:
        Scenario(zero_fraction=2, thp_coverage=-1)
    found = [error.value, *error.value.others]
    assert [(e.parameter, e.value) for e in found] == [("thp_coverage", -1), ("zero_fraction", 2)]
    assert len(str(error.value).splitlines()) == 2


def test_defaults_are_the_kernels() -> None:
    s = Scenario()
    assert (s.use_zero_pages, s.pages_to_scan, s.sleep_millisecs, s.smart_scan) == (0, 100, 20, 1)
    assert s.max_page_sharing == 256
    assert (s.stable_node_chains_prune_millisecs, s.merge_across_nodes, s.max_ptes_none) == (2000, 1, 511)
    assert s.shrink_underused == 1


def test_equal_scenarios_have_equal_hashes() -> None:
    names = ["advisor_exists", "smart_scan_exists"]
    one, other = (Scenario(kernel_changes=dict.fromkeys(order, 1)) for order in (names, names[::-1]))
    assert one == other and hash(one) == hash(other) != hash(Scenario())
    sizes = Scenario(hugepages_enabled={64: "always"})
    assert len({one, other, Scenario(), Scenario(seed=1), Scenario(kernel_changes={names[0]: 1}), sizes}) == 5


def test_every_flat_field_says_what_it_is() -> None:
    for name, p in flat_fields().items():
        assert p.help, name
        assert p.default is not None, name
        assert p.low is None or p.low <= p.default <= p.high  # type: ignore[operator]
        assert isinstance(p.default, (int, float, str, bool)), name
    rich = set(Scenario.model_fields) - set(flat_fields())
    assert rich == {"kernel_changes", "hugepages_enabled", "process_list", "late", "events", "stepped"}


def test_is_frozen_and_replace_validates() -> None:
    s = Scenario(memory_mib=64)
    with pytest.raises(Exception, match="frozen"):
        s.memory_mib = 2  # type: ignore[misc]
    assert s.replace(zero_fraction=0.5).memory_mib == 64
    with pytest.raises(UserError) as error:
        s.replace(memory_mib=5)
    assert (error.value.parameter, error.value.value) == ("memory_mib", 5)
    with pytest.raises(UserError) as error:
        s.replace(memroy=5)
    assert error.value.value == "memroy"


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
    assert any(isinstance(e, Set) and e.sets("run") and e.after.seconds == 60 for e in s.events)


def test_trace_scenario() -> None:
    path = next(SHIPPED.glob("base_mainline*.json.gz"))
    s = load(path)
    assert s.stepped
    assert s.sleep_millisecs == 0
    assert s.horizon_seconds == 0
    assert s.horizon_batches > 0
    assert s.kernel == "6.12.117"
    assert s.run == 0
    assert load(path, pages_to_scan=7).pages_to_scan == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pages_to_scan: [1", "YAML"),
        ("- 1\n- 2\n", "name: value"),
        ("seed: 1\nseed: 2\n", "line 2"),
        ("zero_fraction: 7\n", "zero_fraction"),
        ("pages_to_scan: \xff\n", "pages_to_scan"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        Scenario.load(path)
    assert error.value.where == str(path)
    assert words in str(error.value)


def test_numbers_with_units_and_exponents(tmp_path: Path) -> None:
    """In every place of a file, each in the unit of its field."""
    text = """
        {memory_mib: 4G, processes: 1e1, sleep_millisecs: 0.1 s, pages_to_scan: 64M, horizon_seconds: 2h,
        swap_mib: 1024,
        hot_period_seconds: 500ms, migration_rate: 1.5G, equal_bytes: 2K, name: 1x3,
        kernel: '6.10', ksmd_cpu_before_seconds: 1 d,
        policy: {name: ksmtuned, monitor_interval: 5m, sleep_msec: 1s, thres_const: 2M},
        process_list: [{memory_mib: 512 MiB, boots_at_seconds: 2 min}, {pages: 1e3, contents: [[0, 1000, 0]]}],
        events: [{after: {seconds: 1m, every: 100ms}, op: set, knob: sleep_millisecs, value: 2s},
                 {after: {batch: 1e2}, op: free, page: 2M, count: 4M}, {after: {batch: 1}, op: sleep, millisecs: 3s}]}
    """
    path = tmp_path / "units.yaml"
    path.write_text(text)
    s = Scenario.load(path)
    assert (s.memory_mib, s.processes, s.sleep_millisecs, s.pages_to_scan, s.horizon_seconds, s.swap_mib) == (
        *(4096, 10, 100, 16384),
        *(7200, 1024),
    )
    assert (s.hot_period_seconds, s.migration_rate, s.equal_bytes) == (0.5, 1536, 2048)
    assert (s.kernel, s.ksmd_cpu_before_seconds) == ("6.10", 86_400)
    assert s.policy == Ksmtuned(monitor_interval=300, sleep_msec=1000, thres_const=2048)
    assert (s.specs[0].memory_mib, s.specs[0].boots_at_seconds, s.specs[1].pages) == (512, 120, 1000)
    first, second, third = (event.model_dump() for event in s.events)
    assert (first["after"]["seconds"], first["after"]["every"], first["value"]) == (60, 0.1, 2000)
    assert (second["after"]["batch"], second["page"], second["count"], third["millisecs"]) == (100, 512, 1024, 3000)
    assert Scenario(**s.changed()) == s, "written in plain numbers"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"memory_mib": "4s"},
            "memory_mib = '4s' is not a whole number: it must be 1 … 16777216 (MiB). Write it in MiB",
        ),
        ({"memory_mib": "64T"}, "memory_mib = 67108864 is out of range"),
        ({"pages_to_scan": "8K"}, "Write it in pages, or as 1e3"),
        ({"horizon_seconds": "2y"}, "Write it in s, or as 30s, 5m or 2h."),
        ({"zero_fraction": "1M"}, "zero_fraction = '1M' is not a number"),
        ({"process_list": [{"memory_mib": "1h"}]}, "process_list 0: memory_mib = '1h'"),
        ({"policy": {"name": "mom", "monitor_interval": "1K"}}, "policy: monitor_interval = '1K'"),
        ({"process_list": [{"pages_sharing": 1}]}, "pages_sharing is a counter, not a parameter. `mmlab host`"),
        ({"events": [{"after": {"seconds": 1}, "op": "set", "knob": "general_profit", "value": 1}]}, "is a counter"),
    ],
    ids=lambda given: "-".join(map(str, given)) if isinstance(given, dict) else "",
)
def test_a_wrong_unit_or_a_counter_is_explained(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        Scenario(**given)
    assert words in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        Scenario.load(tmp_path / "none.yaml")
    assert error.value.where == str(tmp_path / "none.yaml")


def test_saves_new_files_only(tmp_path: Path) -> None:
    path = save_new(tmp_path / "new.yaml", Scenario(memory_mib=64).as_yaml())
    assert Scenario.load(path).memory_mib == 64
    for place in (path, path / "below a file" / "new.yaml"):
        with pytest.raises(UserError, match=re.escape(f"{place}: ")):
            save_new(place, "")
    assert path.stat().st_size


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing but a comment\n")
    assert Scenario.load(path) == Scenario()


def test_too_large_for_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: 2**30)
    Scenario(memory_mib=1024).check_memory()
    with pytest.raises(UserError) as error:
        Scenario(memory_mib=1024, processes=80).check_memory()
    assert (error.value.parameter, error.value.value) == ("memory_mib", 1024)
    assert error.value.allowed == "at most 936 MiB a process"
    monkeypatch.setattr(module, "free_memory", lambda: None)
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
        "to": 0,
    }
    for op, event_class in EVENTS.items():
        fields = event_class.model_fields
        event = {"after": {"batch": 1}, "op": op} | {k: v for k, v in good.items() if k in fields}
        Scenario(memory_mib=2, events=[event])
        for name in set(good) - set(fields):
            with pytest.raises(UserError) as error:
                Scenario(memory_mib=2, events=[event | {name: good[name]}])
            assert (error.value.where, error.value.value) == ("events 0", name)


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
    old = scenario_of(trace)
    assert (old.advisor_mode, old.khugepaged, old.max_ptes_shared, old.nodes) == ("none", 0, 256, 1)
    trace["scenario"]["knobs"] |= {"advisor_mode": "scan-time", "khugepaged": 1, "max_ptes_shared": 7, "nodes": 2}
    trace["scenario"]["processes"][0] |= {"node": 1, "merge_any": 1, "forbids_zeropages": 1}
    new = scenario_of(trace)
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
