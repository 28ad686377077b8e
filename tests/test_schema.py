"""The JSON schema of params files: it ships, it takes what the scenario takes, and it refuses what that refuses."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

import randomscenario
from conftest import ROOT
from mmlab import cli
from mmlab.engine.costs import cost_set, cost_sets
from mmlab.errors import UserError
from mmlab.params import read_yaml
from mmlab.scenario import EVENTS, SETTABLE, Scenario, flat_fields
from mmlab.schema import schema, text
from mmlab.variants import resolve

PARAMS = sorted((ROOT / "params").glob("*.yaml"))
MODELINE = "# yaml-language-server: $schema=scenario.schema.json"
SCHEMA = schema(cost_sets())
CHECK = jsonschema.Draft7Validator(SCHEMA)

each_file = pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.stem)


def accepted(values: dict[str, Any]) -> bool:
    """By the scenario, its end made sure of, and by those who know the names in it."""
    try:
        scenario = Scenario(**{"horizon_seconds": 1.0, **values})
        cost_set(scenario.costs)
        resolve(scenario.variant)
    except UserError:
        return False
    return True


def test_ships_as_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["schema"])
    printed = capsys.readouterr().out
    again = "mmlab schema > params/scenario.schema.json"
    assert printed == (ROOT / "params" / "scenario.schema.json").read_text(encoding="utf-8"), f"to accept: {again}"
    assert json.loads(printed) == json.loads(text(cost_sets())) == SCHEMA


def test_is_a_schema_and_explains_everything() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert list(SCHEMA["properties"]) == list(Scenario.model_fields)
    for model in (SCHEMA, *SCHEMA["definitions"].values()):
        assert model["additionalProperties"] is False
        for name, field in model["properties"].items():
            assert field["description"], name
    for name, field in flat_fields().items():
        about = SCHEMA["properties"][name]
        assert field.help in about["description"]
        assert field.unit in about["description"]
        assert about["default"] == field.default
        assert (about.get("minimum"), about.get("maximum")) == (field.low, field.high)
    choices = [choice["$ref"].rpartition("/")[2] for choice in SCHEMA["properties"]["events"]["items"]["oneOf"]]
    assert [SCHEMA["definitions"][name]["properties"]["op"]["const"] for name in choices] == list(EVENTS)
    assert "null" not in {str(v) for v in SCHEMA["definitions"]["ProcessSpec"]["properties"].values()}


@each_file
def test_every_params_file_is_valid_and_names_it(path: Any) -> None:
    assert path.read_text(encoding="utf-8").splitlines()[0] == MODELINE
    CHECK.validate(read_yaml(path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"pages_to_scna": 100},
        {"pages_to_scan": -1},
        {"pages_to_scan": "many"},
        {"zero_fraction": 1.5},
        {"variant": "mainlin"},
        {"costs": "cheap"},
        {"kernel": "5.10"},
        {"kernel": "7.4"},
        {"kernel_changes": {"advisor_exits": 1}},
        {"kernel_changes": {"advisor_exists": 2}},
        {"hz": 200},
        {"layout": "zeroes-first"},
        {"memory_mib": 0},
        {"events": [{"after": {"seconds": 1}, "op": "splt", "page": 0, "count": 1}]},
        {"events": [{"op": "compact"}]},
        {"events": [{"after": {"seconds": 1, "batch": 1}, "op": "compact"}]},
        {"events": [{"after": {"batch": 1, "every": 5}, "op": "compact"}]},
        {"events": [{"after": {"seconds": 1}, "op": "set", "knob": "hz", "value": 100}]},
        {"process_list": [{"pages": 512}]},
        {"process_list": [{"pages": 512, "contents": [[0, 512, 0]], "memory_mib": 2}]},
        {"process_list": [{"pages": 512, "contents": [[0, 512]]}]},
        {"process_list": [{"memory": 2}]},
    ],
    ids=str,
)
def test_refuses(wrong: dict[str, Any]) -> None:
    assert not CHECK.is_valid(wrong)
    assert not accepted(wrong)


@pytest.mark.parametrize("name", flat_fields())
def test_bounds_are_the_scenarios(name: str) -> None:
    """At both ends of a range, just beyond them, and with another type."""
    field = flat_fields()[name]
    for value in field.choices or (v for v in (field.low, field.high) if v is not None):
        value = field.type(value)
        assert CHECK.is_valid({name: value}), value
    beyond = [b for b in (field.low and field.low - 1, field.high and field.high + 1) if b] if not field.choices else []
    for value in [*beyond, ["a list"], {"a": "mapping"}]:
        assert not CHECK.is_valid({name: value}), value
        assert not accepted({name: value}), value


SAMPLES = {
    "process": 0,
    "page": 0,
    "count": 1,
    "key": 7,
    "prot": 1,
    "knob": "run",
    "value": 1,
    "node": 0,
    "huge": 1,
    "full_scans": 1,
    "millisecs": 5,
    "to": 4,
    "every_nth": 2,
    "share": 0.5,
    "granularity": "2M",
}
"""A value for each field that some op takes."""


@pytest.mark.parametrize("op", EVENTS)
def test_events_take_what_their_op_takes(op: str) -> None:
    """Whole, without each field, and with each stray one: the schema and the scenario agree."""
    assert set(SAMPLES) == {name for event in EVENTS.values() for name in event.model_fields} - {"after", "op"}
    fields = EVENTS[op].model_fields.keys() - {"after", "op"}
    whole = {"after": {"seconds": 1.0}, "op": op} | {name: SAMPLES[name] for name in fields}
    tried = [whole, *({k: v for k, v in whole.items() if k != name} for name in whole)]
    tried += [whole | {name: value} for name, value in SAMPLES.items()]
    tried += [whole | {"value": 2}, whole | {"value": "on"}, whole | {"count": 0}, whole | {"page": -1}]
    verdicts = [(accepted({"memory_mib": 2, "events": [e]}), CHECK.is_valid({"events": [e]})) for e in tried]
    assert verdicts[0] == (True, True)
    assert not [(e, v) for e, v in zip(tried, verdicts, strict=True) if v[0] != v[1]]
    assert (False, False) in verdicts
    key = whole | {"key": None}
    assert accepted({"memory_mib": 2, "events": [key]}) == CHECK.is_valid({"events": [key]}) == (op == "write")


@pytest.mark.parametrize("knob", SETTABLE)
def test_knobs_take_what_they_take(knob: str) -> None:
    def agree(value: object) -> bool:
        values = {"events": [{"after": {"seconds": 1}, "op": "set", "knob": knob, "value": value}]}
        assert CHECK.is_valid(values) == accepted(values), value
        return CHECK.is_valid(values)

    values = [-1, 0, 1, 2, 3, 70, 512, 2**31, 2**32 - 1, 2**32, "none", "scan-time", "legacy", "other"]
    assert len({agree(value) for value in values}) == 2


def test_random_scenarios_are_valid() -> None:
    """What the property test draws, as a params file would say it: every event by the schema of its op, and whole
    scenarios with one event of each op, which no other op may take.
    """
    ops = {
        op: CHECK.evolve(schema=one)
        for op, one in zip(EVENTS, SCHEMA["properties"]["events"]["items"]["oneOf"], strict=True)
    }
    for seed in range(100):
        asked = json.loads(json.dumps(randomscenario.scenario(seed)["scenario"]))
        events = [{k: v for k, v in e.items() if k not in ("result", "sample")} for e in asked["events"]]
        for event in events:
            ops[event["op"]].validate(event)
        one_of_each = list({event["op"]: event for event in events}.values())
        CHECK.validate(asked["knobs"] | {"process_list": asked["processes"], "events": one_of_each})


def test_numbers_may_have_units() -> None:
    assert SCHEMA["properties"]["memory_mib"]["type"] == ["integer", "string"]
    for name, written, fits in [
        *(
            ("memory_mib", written, fits)
            for written, fits in {"4G": 1, "512 MiB": 1, "1e3": 1, "4h": 0, "G": 0}.items()
        ),
        *(("sleep_millisecs", written, fits) for written, fits in {"0.1s": 1, "20": 1, "1M": 0}.items()),
    ]:
        assert (CHECK.is_valid({name: written}), accepted({name: written})) == (fits, fits), written
        spec, when = {"memory_mib": written if name == "memory_mib" else 2}, {"seconds": 1}
        event = {"after": when, "op": "set", "knob": "sleep_millisecs", "value": written if name[0] == "s" else 1}
        values = {"process_list": [spec], "events": [event]}
        assert (CHECK.is_valid(values), accepted(values)) == (fits, fits), written


def test_yaml_needs_no_quotes() -> None:
    for kernel in ("6.1", "6.12", "6.18", "'6.18.44'", "'6.10'", "6.8", "7.0", "7.3", "'7.3.4'"):
        values = yaml.safe_load(f"kernel: {kernel}")
        assert CHECK.is_valid(values)
        assert accepted(values)
