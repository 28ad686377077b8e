"""A JSON schema of params files, so that editors complete, explain and check them (``mmlab schema``).

It is made from the scenario model and says what can be said of one value or of one event. Rules that join several
fields (ranges within a process, a run that would never end) are :class:`mmlab.scenario.Scenario`'s alone. Draft 7,
because every editor knows it.
"""

from __future__ import annotations

import json
from typing import Any

from mmlab.engine.costs import cost_sets
from mmlab.scenario import EVENT_FIELDS, OPTIONAL, SETTABLE, WORKLOAD_FIELDS, Scenario
from mmlab.variants import VARIANTS

__all__ = ["schema", "text"]

OPS = {
    "write": "each page gets the content `key`; null rewrites what is there: read, then written",
    "read": "each page is read",
    "dontneed": "MADV_DONTNEED",
    "free": "MADV_FREE",
    "cold": "MADV_COLD",
    "pageout": "MADV_PAGEOUT",
    "collapse": "MADV_COLLAPSE",
    "mergeable": "MADV_MERGEABLE",
    "unmergeable": "MADV_UNMERGEABLE",
    "hugepage": "MADV_HUGEPAGE",
    "nohugepage": "MADV_NOHUGEPAGE",
    "mlock": "mlock",
    "munlock": "munlock",
    "munmap": "munmap",
    "mprotect": "mprotect",
    "split": "debugfs split_huge_pages for a range",
    "split_all": "debugfs split_huge_pages for all memory",
    "fork": "a child process; processes are numbered in order of birth",
    "exit": "the process is killed and reaped",
    "shrink": "the deferred split queue's shrinker is asked to scan `count` folios",
    "khugepaged": "khugepaged makes that many full scans",
    "compact": "all memory is compacted",
    "set": "a sysfs knob is written, or another variant booted",
    "sleep": "time passes",
    "migrate": "pages are migrated, to `node`; `huge` 1 (default): a huge page can be had for a huge page",
    "merge_any": "prctl PR_SET_MEMORY_MERGE: `value` 1 on, 0 off",
    "uffd": "userfaultfd: `value` 1 registers the range, 0 unregisters it",
    "memory_failure": "the hardware poisons the page",
}
"""What each op of an event is."""

WORDS = {
    "after": "when it happens",
    "batch": "after this many batches; 0: before ksmd starts",
    "full_scan": "after the batch that completes this full scan",
    "seconds": "at this simulated time (s)",
    "every": "and again every so many seconds (s)",
    "op": "what happens",
    "process": "number of the process, from 0",
    "page": "first page of the range, from 0 within the process",
    "count": "how many pages (shrink: folios)",
    "key": "content: equal keys are equal pages, their order is memcmp's, 0 is the zero page; null: what is there",
    "prot": "1: read only, 3: read and write",
    "knob": "which knob",
    "value": "its new value; merge_any and uffd: 1 on, 0 off",
    "node": "NUMA node; left out: the folio stays on its node",
    "huge": "1: a huge page can be had to migrate to",
    "full_scans": "how many",
    "millisecs": "how long (ms)",
    "pages": "size in pages; goes with contents",
    "contents": "[[first key, count, step], …], a key a page: 0 is the zero page; goes with pages",
    "nohugepage_after_populate": "the ranges of `thp` get MADV_NOHUGEPAGE once they are populated",
}
"""What fields are that have no words in the model."""


def text() -> str:
    """The schema as ``mmlab schema`` prints it and ``params/scenario.schema.json`` has it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of a params file, flat or rich."""
    raw = _plain(Scenario.model_json_schema(ref_template="#/definitions/{model}"))
    models: dict[str, Any] = raw.pop("$defs")
    fields: dict[str, Any] = raw["properties"]
    variants = {"enum": list(VARIANTS), "enumDescriptions": [v.summary for v in VARIANTS.values()]}
    fields["variant"] |= variants
    del fields["costs"]["pattern"]
    fields["costs"]["anyOf"] = [{"enum": cost_sets()}, {"pattern": r"\.ya?ml$"}]
    quoted = {"type": fields["kernel"].pop("type"), "pattern": fields["kernel"].pop("pattern")}
    fields["kernel"]["anyOf"] = [quoted, {"enum": [6.1, 6.12, 6.18]}]  # YAML takes 6.18 for a number

    after, event, process = (models[name] for name in ("After", "Event", "ProcessSpec"))
    after["oneOf"] = [{"required": [name]} for name in ("batch", "full_scan", "seconds")]
    after["dependencies"] = {"every": ["seconds"]}
    for name in WORKLOAD_FIELDS:
        words = f"{fields[name]['description']}; default: the scenario's"
        process["properties"][name] = {k: v for k, v in fields[name].items() if k != "default"} | {"description": words}
    process["dependencies"] = {
        "pages": ["contents"],
        "contents": {"required": ["pages"], "properties": dict.fromkeys(WORKLOAD_FIELDS, False)},
    }
    known = event["properties"]
    known["op"] |= {"enum": list(EVENT_FIELDS), "enumDescriptions": [OPS[op] for op in EVENT_FIELDS]}
    known["key"]["type"] = ["integer", "null"]
    known["knob"]["enum"] = list(SETTABLE)
    known["value"] = {"type": ["integer", "string"]}
    event["allOf"] = [
        *(_when("op", ops, _takes(names)) for names, ops in _alike().items()),
        *(_when("knob", [knob], {"properties": {"value": _of_knob(knob, variants)}}) for knob in SETTABLE),
    ]
    for model in models.values():
        del model["description"]  # of the class, for programmers
        for name, field in model["properties"].items():
            field["description"] = field.get("description") or WORDS[name]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mmlab scenario",
        "description": "Everything that a run of mmlab depends on; what is left out has its default.",
        "type": "object",
        "additionalProperties": False,
        "properties": fields,
        "definitions": models,
    }


def _plain(node: Any) -> Any:
    """Pydantic's schema in draft 7: unit and source go into the description, titles and null for "not given" go."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return int(node) if isinstance(node, float) and node.is_integer() else node
    out = {key: _plain(value) for key, value in node.items() if key != "title" and (key, value) != ("default", None)}
    if "kind" in out:  # a field of the scenario, with what sliders need
        unit, source, *_ = (out.pop(key, None) for key in ("unit", "source", "kind", "step", "log", "slider"))
        out["description"] += (f" ({unit})" if unit else "") + (f" [{source}]" if source else "")
    if "prefixItems" in out:
        out |= {"items": out.pop("prefixItems"), "additionalItems": False}
    if {"type": "null"} in out.get("anyOf", ()) and len(out["anyOf"]) == 2:
        out |= out.pop("anyOf")[0]
    return out


def _alike() -> dict[tuple[str, ...], list[str]]:
    """Ops by the fields that they take."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for op, names in EVENT_FIELDS.items():
        groups.setdefault(names, []).append(op)
    return groups


def _when(field: str, values: list[str], then: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {field: {"enum": values}}, "required": [field]}, "then": then}


def _takes(names: tuple[str, ...]) -> dict[str, Any]:
    """What an op needs, and that it takes nothing else."""
    out: dict[str, Any] = {"required": [name for name in names if name not in OPTIONAL]}
    out["propertyNames"] = {"enum": ["after", "op", *names]}
    if "value" in names and "knob" not in names:
        out["properties"] = {"value": {"enum": [0, 1]}}
    return out


def _of_knob(knob: str, variants: dict[str, Any]) -> dict[str, Any]:
    """The values that a knob may be set to."""
    if knob == "variant":
        return variants
    allowed = SETTABLE[knob]
    if isinstance(allowed[0], str):
        return {"enum": list(allowed)}
    return {"type": "integer", "minimum": allowed[0], "maximum": allowed[1]}
