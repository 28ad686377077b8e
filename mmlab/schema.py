"""A JSON schema of params files, with which editors complete, explain and check them (``mmlab schema``).

It is pydantic's schema of the scenario model in draft 7, which every editor knows. It covers what can be said of one
value or of one event. Rules that join several fields (ranges within a process, a run that would never end) are checked
by `mmlab.scenario.Scenario` alone.
"""

import json
from collections.abc import Iterable
from typing import Any

import mmlab.scenario as asked
from mmlab.kernel.versions import DIFFERENCES, PATTERN, SERIES
from mmlab.params import NUMBER, UNITS, units
from mmlab.policies import TUNERS
from mmlab.variants import KSMD_VARIANTS, VARIANTS

HIDDEN = {"title", "discriminator", "kind", "unit", "source", "step", "log", "slider", "choices"}
"""Keys of pydantic's schema that are not for editors."""


def text(costs: Iterable[str]) -> str:
    """Return `schema` as ``mmlab schema`` prints it and ``params/scenario.schema.json`` has it."""
    return json.dumps(schema(costs), indent=1, ensure_ascii=False) + "\n"


def schema(costs: Iterable[str]) -> dict[str, Any]:
    """Return the JSON schema of a params file, flat or rich; `costs` are the names of the cost sets."""
    raw = _plain(asked.Scenario.model_json_schema(ref_template="#/definitions/{model}"))
    models, fields = raw.pop("$defs"), raw["properties"]
    for name, field in asked.flat_fields().items():
        about = (field.help, f"({field.unit})" * bool(field.unit), f"[{field.source}]" * bool(field.source))
        fields[name]["description"] = " ".join(filter(None, about))
    known = VARIANTS | KSMD_VARIANTS
    both = {"type": "string", "pattern": rf"^({'|'.join(VARIANTS)})\+({'|'.join(KSMD_VARIANTS)})$"}
    variants = {"anyOf": [{"enum": list(known), "enumDescriptions": [v.summary for v in known.values()]}, both]}
    fields["variant"] |= variants
    fields["costs"] |= {"anyOf": [{"enum": list(costs)}, {"pattern": fields["costs"].pop("pattern").split("|")[1]}]}
    numbers = {"enum": sorted(map(float, {*SERIES} - {"6.10"}))}  # YAML reads 6.18 as a number, 6.10 as 6.1
    fields["kernel"]["anyOf"] = [{"type": fields["kernel"].pop("type"), "pattern": f"^{PATTERN}$"}, numbers]
    fields["kernel_changes"]["propertyNames"] = {"enum": list(DIFFERENCES)}
    fields["hugepages_enabled"]["propertyNames"] = {"enum": [str(4 << order) for order in range(2, 10)]}

    after, process, events = models["After"], models["ProcessSpec"], asked.EVENTS.values()
    after["oneOf"] = [{"required": [name]} for name in ("batch", "full_scan", "seconds")]
    after["dependencies"] = {"every": ["seconds"]}
    for name in asked.Workload.model_fields:
        words = f"{fields[name]['description']}; default: the scenario's"
        process["properties"][name] |= {"description": words}
    process["properties"]["count"] = {"type": "integer", "minimum": 1, "description": "how many such processes"}
    images = "memory of processes, a file of mmlab capture"
    process["properties"]["workload"] = {"type": "string", "description": images}
    without = {"required": ["pages"], "properties": dict.fromkeys(asked.WORKLOAD_FIELDS, False)}
    process["dependencies"] = {"pages": ["contents"], "contents": without}
    others: list[Any] = [asked.After, asked.ProcessSpec, *events, *TUNERS.values()]
    for cls, properties in [(asked.Scenario, fields), *((cls, models[cls.__name__]["properties"]) for cls in others)]:
        properties |= {name: _or_text(properties[name], unit) for name, unit in units(cls).items()}
    for event in events:
        models[event.__name__]["properties"]["op"]["description"] = models[event.__name__]["description"]
    models["Set"]["properties"]["knob"]["enum"] = list(asked.SETTABLE)
    models["Set"]["allOf"] = [
        {
            "if": {"properties": {"knob": {"const": knob}}, "required": ["knob"]},
            "then": {"properties": {"value": variants if knob == "variant" else _one_of(allowed, knob)}},
        }
        for knob, allowed in asked.SETTABLE.items()
    ]
    words = "Everything a run of mmlab depends on; what is left out has its default."
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "mmlab scenario", "description": words}
    return head | {"type": "object", "additionalProperties": False, "properties": fields, "definitions": models}


def _plain(node: Any) -> Any:
    """Return pydantic's schema in draft 7, without titles and without the null that stands for "not given"."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return int(node) if isinstance(node, float) and node.is_integer() else node
    out = {key: _plain(value) for key, value in node.items() if key not in HIDDEN}
    if isinstance(out.get("description"), str):
        out["description"] = " ".join(out["description"].split())
    if "prefixItems" in out:
        out |= {"items": out.pop("prefixItems"), "additionalItems": False}
    if "default" in out and out["default"] is None:
        del out["default"]
        out |= out.pop("anyOf")[0]
    return out


def _or_text(about: dict[str, Any], unit: str) -> dict[str, Any]:
    """Return the schema of a number that may also be written with a unit, as text (`mmlab.params.quantity`)."""
    if unit not in UNITS or about.get("type") not in ("integer", "number") or "enum" in about:
        return about
    suffixes = "|".join(dict.fromkeys([unit, *UNITS[unit][0]]))
    return about | {"type": [about["type"], "string"], "pattern": rf"^{NUMBER.pattern} ?({suffixes})?$"}


def _one_of(allowed: tuple[Any, ...], knob: str) -> dict[str, Any]:
    """Return the schema of the values that a knob may be set to (`SETTABLE`)."""
    if isinstance(allowed[0], str):
        return {"enum": list(allowed)}
    bounds = {"type": "integer", "minimum": allowed[0], "maximum": allowed[-1]}
    return _or_text(bounds, units(asked.Scenario).get(knob, ""))
