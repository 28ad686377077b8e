"""The kernel's own tracepoints of KSM, held against the model's decisions: the same events in the same order.

A recording of `mmlab record --tracepoints` has what tracefs said in each batch and each event. The kernel prints hashed
pointers in place of processes and pages, so these are compared as names: each stands for one process or page of the
model, as long as ksmd remembers the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mmlab.results import trace
from mmlab.results.decisions import described
from mmlab.results.run import Run
from mmlab.results.trace import Comparison, Difference

__all__ = ["compare_file"]

LINE = re.compile(r"^ *.*-\d+ +\[\d+\] +\S+ +[\d.]+: (ksm_\w+): (?:ksm scan time|ksm )?(.*)$")
NAMED = re.compile(r"(seq|rmap size|rmap_item|mm|error|pages_to_scan) ([-\w]+)")


def compare_file(path: Path) -> Comparison:
    """Predict a recording and compare (`mmlab.results.trace.compare`), its tracepoints too if it has any."""
    recorded = trace.read(path)
    run, predicted = trace.rerun(recorded, events="tracepoints" in recorded)
    found = trace.compare(recorded, predicted)
    if "tracepoints" in recorded:
        _compare(recorded["tracepoints"]["windows"], run, found)
    return found


def _compare(windows: list[dict[str, Any]], run: Run, found: Comparison) -> None:
    """Add what differs, the first event of a sample each, to a comparison."""
    kinds = [name for name, event in described()["events"].items() if event.get("kernel") and name.startswith("ksm_")]
    rows = run.events[run.events["event"].isin([*kinds, "item_freed"])]
    ours: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows.to_dict("records"):
        each = [row | {"page": row["page"] + i} for i in range(row["count"])]
        ours.setdefault((row["batch"], row["rank"]), []).extend(each)
    theirs = {(window["batch"], window["rank"]): _parse(window["lines"]) for window in windows}
    found.tracepoints += sum(map(len, theirs.values()))
    names: dict[str, tuple[int, int]] = {}
    for batch, rank in sorted({*ours, *theirs}):
        kernel, text = iter(theirs.get((batch, rank), [])), ""
        for model in ours.get((batch, rank), []):
            here = model["process"], model["page"]
            if model["event"] == "item_freed":
                names = {name: meant for name, meant in names.items() if meant != here}
            elif text := _difference(next(kernel, {"event": "nothing more"}), model, names):
                break
            else:
                found.tracepoints_exact += 1
        if not text and (more := next(kernel, None)):
            text = f"{more['event']}, of which the model has no more"
        if text:
            found.differences.append(Difference(batch, rank, f"tracepoints: {text}"))


def _parse(lines: list[str]) -> list[dict[str, Any]]:
    """Return the events of KSM among lines of tracefs, with their fields."""
    matches = filter(None, map(LINE.match, lines))
    return [{"event": match[1], **dict(NAMED.findall(match[2]))} for match in matches]


def _difference(kernel: dict[str, Any], model: dict[str, Any], names: dict[str, tuple[int, int]]) -> str:
    """Return how an event of the kernel and one of the model differ, or ""."""
    if kernel["event"] != model["event"]:
        return f"{kernel['event']}, predicted {model['event']}"
    numbers = {"seq": model["full_scan"] - 1, "rmap size": model["value"], "error": model["value"]}
    wrong = [name for name, number in numbers.items() if kernel.get(name, str(number)) != str(number)]
    for field, meant in (("mm", (model["process"], -1)), ("rmap_item", (model["process"], model["page"]))):
        if field in kernel and names.setdefault(kernel[field], meant) != meant:
            wrong.append(f"{field} is that of {names[kernel[field]]}, predicted {meant}")
    return "; ".join([f"{kernel['event']} {kernel}"] * bool(wrong) + wrong)
