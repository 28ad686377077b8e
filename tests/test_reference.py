"""The reference model against the worked examples of the specification and against recorded kernel traces."""

from __future__ import annotations

import gzip
import json
import pathlib
import re

import pytest

import reference
import worked_examples

TRACES = sorted((pathlib.Path(__file__).parents[1] / "mmlab" / "recordings").glob("*.json.gz"))
EXAMPLES = worked_examples.examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_worked_example(example: worked_examples.Example) -> None:
    prediction = reference.predict(example.trace)
    assert worked_examples.measure(prediction, list(example.rows[0])) == example.rows


@pytest.mark.parametrize("path", TRACES, ids=[path.name for path in TRACES])
def test_recorded_trace(path: pathlib.Path) -> None:
    with gzip.open(path, "rt") as file:
        recorded = json.load(file)
    operations = {event["op"] for event in recorded["scenario"]["events"]}
    assert operations <= reference.OPERATIONS, "a trace whose events the reference does not know"
    predicted = reference.predict(recorded)
    assert differences(recorded, predicted) == []
    assert predicted["scenario"]["events"] == [
        event | {"sample": mine["sample"]}
        for event, mine in zip(recorded["scenario"]["events"], predicted["scenario"]["events"], strict=True)
    ]


def differences(recorded: dict, predicted: dict) -> list[str]:
    """What is not the same integer or letter, but for fields that only the recording kernel was fitted with, or that
    something else on it has moved.
    """
    mine = dict(zip(places(predicted), predicted["samples"], strict=True))
    fields = {f: n for n, f in enumerate(predicted["fields"])}
    found = []
    for place, row in zip(places(recorded), recorded["samples"], strict=True):
        for field, value in zip(recorded["fields"], row, strict=True):
            left_out = field.startswith("lab_") or field in recorded.get("moved", ())
            if not left_out and value != mine[place][fields[field]]:
                found.append(f"{place} {field}: recorded {value}, predicted {mine[place][fields[field]]}")
    fold = not recorded["kernel"].startswith("6.12")  # these maps do not tell h from H
    maps = {(m["batch"], m["rank"], m["process"]): m["pages"] for m in predicted["maps"]}
    for m in recorded["maps"]:
        place = m["batch"], m["rank"], m["process"]
        if letters(m["pages"], fold) != letters(maps[place], fold):
            found.append(f"{place} map: recorded {m['pages']}, predicted {maps[place]}")
    frames = {(f["batch"], f["rank"]): (f["frames"], f["ksm_frames"]) for f in predicted["frames"]}
    for f in recorded["frames"]:
        place = f["batch"], f["rank"]
        if (f["frames"], f["ksm_frames"]) != frames[place]:
            found.append(f"{place} frames: recorded {f['frames']}, {f['ksm_frames']}, predicted {frames[place]}")
    return found


def places(trace: dict) -> list[tuple[int, int]]:
    """(batch, rank within the batch) of each sample."""
    batches = [row[trace["fields"].index("batch")] for row in trace["samples"]]
    return [(batch, n - batches.index(batch)) for n, batch in enumerate(batches)]


def letters(pages: str, fold: bool) -> str:
    plain = re.sub(r"([A-Za-z])(\d+)", lambda m: m[1] * int(m[2]), pages)
    return plain.replace("h", "H") if fold else plain
