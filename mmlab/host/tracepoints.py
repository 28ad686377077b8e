"""The kernel's own tracepoints of KSM and khugepaged, held against the model's decisions: the same events in one order.

A recording of `mmlab record --tracepoints` has what tracefs said in each batch and each event, the mm of each process,
and which pages mapped the frames that a collapse looked at last (`scan_pfn`). The kernel prints hashed pointers in
place of addresses that ksmd remembers: each is a name that stands for one page of the model, as long as ksmd remembers
it.

Every field is compared that a decision of the model has. It has none for `writable` (older kernels), `referenced` of
mm_collapse_huge_page_swapin, and a `scan_pfn` that belongs to a large folio, or that nothing mapped before the event. A
missing page table is `pmd_none` to the model, whatever level is missing.
"""

import re
from pathlib import Path
from typing import Any

from mmlab.results import trace
from mmlab.results.decisions import described, fields
from mmlab.results.run import Run
from mmlab.results.trace import Comparison, Difference

LINE = re.compile(r"^ *.*-\d+ +\[\d+\] +\S+ +[\d.]+: (\w+): (?:ksm scan time|ksm )?(.*)$")
NAMED = re.compile(r"(seq|rmap size|rmap_item|mm|error|pages_to_scan|\w+(?==))[ =]([-\w]+)")
NO_TABLE = {"pmd_null": "pmd_none", "no_pte_table": "pmd_none"}
"""What kernels say when there is no page table."""
NO_FRAME = "0xffffffffffffffff"


def compare_file(path: Path) -> Comparison:
    """Predict a recording and compare (`mmlab.results.trace.compare`), its tracepoints too if it has any."""
    recorded = trace.read(path)
    run, predicted = trace.rerun(recorded, events="tracepoints" in recorded)
    found = trace.compare(recorded, predicted)
    if "tracepoints" in recorded:
        _compare(recorded["tracepoints"], run, found)
    return found


def _compare(recorded: dict[str, Any], run: Run, found: Comparison) -> None:
    """Add what differs, the first event of a sample each, to a comparison."""
    mms = [process.get("mm", "") for process in recorded["processes"]]
    windows = {(window["batch"], window["rank"]): window for window in recorded["windows"]}
    theirs = {place: _parse(window["lines"]) for place, window in windows.items()}
    found.tracepoints += sum(map(len, theirs.values()))
    ours = _decisions(run, mms)
    names: dict[str, Any] = {}
    for place in sorted({*ours, *theirs}):
        kernel, text = iter(theirs.get(place, [])), ""
        pages = {NO_FRAME: []} | windows.get(place, {}).get("pages", {})
        for model in ours.get(place, []):
            if model["event"] == "item_freed":
                names = {name: page for name, page in names.items() if page != model["rmap_item"]}
            elif text := _difference(next(kernel, {"event": "nothing more"}), model, names, pages):
                break
            else:
                found.tracepoints_exact += 1
            if model["event"] == "mm_khugepaged_scan_pmd" and model["status"] == "succeeded":
                pages = _without(pages, model)
        if not text and (more := next(kernel, None)):
            text = f"{more['event']}, of which the model has no more"
        if text:
            found.differences.append(Difference(*place, f"tracepoints: {text}"))


def _decisions(run: Run, mms: list[str]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return by batch and rank the decisions that are tracepoints, their fields by the kernel's names."""
    kinds = [name for name, event in described()["events"].items() if event.get("kernel")]
    rows: dict[Any, dict[str, Any]] = {}
    for kind in (*kinds, "item_freed"):
        rows |= fields(run.events, kind).to_dict("index")
    out: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for _, row in sorted(rows.items()):
        row |= {"seq": row["full_scan"] - 1, "rmap size": row.get("rmap_entries"), "error": row.get("err")}
        row |= {"mm": mms[row["process"]], "isolated": int(row.get("status") == "succeeded")}
        row["scan_pfn"] = [row["other_process"], row["other_page"]]
        for i in range(1 if row["event"].startswith("mm_") else row["count"]):
            model = row | {"rmap_item": (row["process"], row["page"] + i)}
            out.setdefault((row["batch"], row["rank"]), []).append(model)
    return out


def _without(pages: dict[str, list[list[int]]], model: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Return which pages map a frame without those of a collapsed block: a frame that it freed may be used again."""
    block = [[model["process"], page] for page in range(model["page"], model["page"] + model["count"])]
    left = {pfn: [at for at in where if at not in block] for pfn, where in pages.items()}
    return {pfn: where for pfn, where in left.items() if where or pfn == NO_FRAME}


def _parse(lines: list[str]) -> list[dict[str, str]]:
    """Return the events among lines of tracefs, with their fields."""
    matches = filter(None, map(LINE.match, lines))
    return [{"event": match[1], **dict(NAMED.findall(match[2]))} for match in matches]


def _difference(
    kernel: dict[str, str], model: dict[str, Any], names: dict[str, Any], pages: dict[str, list[list[int]]]
) -> str:
    """Return how an event of the kernel and one of the model differ, or ""."""
    if kernel["event"] != model["event"]:
        return f"{kernel['event']}, predicted {model['event']}"
    wrong = []
    for name, theirs in kernel.items():
        ours: Any = model.get(name)
        if name == "rmap_item":
            exact = names.setdefault(theirs, ours) == ours
        elif name == "scan_pfn":
            exact = ours[1] < 0 or ours in pages.get(theirs, [ours])
        else:
            exact = ours is None or NO_TABLE.get(theirs, theirs) == str(ours)
        wrong += [] if exact else [f"{name} {names.get(theirs, pages.get(theirs, theirs))}, predicted {ours}"]
    return f"{kernel['event']}: {'; '.join(wrong)}" if wrong else ""
