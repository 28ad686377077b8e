"""Kernel traces: what a real kernel did with a scenario, and what the model predicts, in one format.

A trace is one gzip-compressed JSON object: the scenario, a table of samples (one before the start, one after every
batch, one after every event), page maps and frame counts. Batch and rank name a sample: rank 0 is the sample after the
batch, rank k the one after its k-th event.

A prediction is made from the question alone: `predict` reads a recording's scenario (without the results and sample
numbers of its events), its variant and kernel, and *where* it has maps and frames. `compare` then holds both against
each other, integer for integer.

>>> runs(letters("Z2AK")), letters("Z2AK").size
('Z2AK', 4)
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, StrictInt, ValidationError

from mmlab import __version__
from mmlab.engine.outcome import Place
from mmlab.engine.workload import Image, build
from mmlab.errors import UserError, located
from mmlab.kernel.mmap import equal_runs
from mmlab.params import reading, write_atomically, writing
from mmlab.results.run import Run, simulate
from mmlab.scenario import SETTABLE, ProcessSpec, Scenario
from mmlab.variants import AnyVariant

Trace = dict[str, Any]

FORMAT = "kernel-trace-1"
ENDING = ".json.gz"
COUNTERS = """
    batch full_scans pages_scanned pages_skipped pages_shared pages_sharing pages_unshared pages_volatile
    ksm_zero_pages stable_node_chains stable_node_dups general_profit
    rss_kb anonymous_kb anonhugepages_kb ksm_kb swap_kb
    proc_ksm_rmap_items proc_ksm_zero_pages proc_ksm_merging_pages proc_ksm_process_profit
    thp_split_page thp_split_page_failed thp_split_pmd thp_underused_split_page thp_deferred_split_page
    thp_fault_alloc thp_collapse_alloc ksm_swpin_copy cow_ksm pswpout pswpin deferred_queue_len pages_to_scan
""".split()
"""Fields of every predicted sample: those that traces of every kernel series have, and the advisor's choice."""
CLOCKS = """
    khugepaged policy pressure_rate migration_rate hot_fraction warm_fraction balloon_fraction boot_interval_seconds
    lifetime_seconds ksm_start_seconds merge_any
""".split()
"""Fields of a scenario that the trace format cannot express."""


# -- files --------------------------------------------------------------------------------------------------------


class _Where(BaseModel):
    batch: StrictInt
    rank: StrictInt


class _MapWhere(_Where):
    process: StrictInt


class _Asked(BaseModel):
    knobs: dict[str, Any]
    processes: list[dict[str, Any]]
    events: list[dict[str, Any]]
    batches: StrictInt


class _Question(BaseModel):
    """What must be whole in a trace. Answers (samples, pages of maps, counts) are only looked at by `compare`."""

    format: Literal["kernel-trace-1"]
    kernel: str
    variant: str
    scenario: _Asked
    fields: list[Any]
    samples: list[Any]
    maps: list[_MapWhere]
    frames: list[_Where]


def find(where: str | Path = "") -> list[Path]:
    """Return trace files by a folder, a file, or a pattern such as ``recorded/act-*``; "" stands for those of mmlab.

    Raises
    ------
    UserError
        There is none.

    Examples
    --------
    >>> {path.name.partition("_")[0] for path in find()} >= {"base", "act-compact"}
    True
    """
    place = Path(where or Path(__file__).parents[1] / "recordings").expanduser()
    like = place / "*" if place.is_dir() else place
    found = sorted(path for path in like.parent.glob(like.name) if path.name.endswith(ENDING))
    if not found:
        hint = "Name a folder, a file, or a pattern such as recorded/act-*."
        raise UserError(f"no trace (*{ENDING}) is there, relative to {Path.cwd()}", where=str(where), hint=hint)
    return found


def read(path: str | Path) -> Trace:
    """Return the trace of a file.

    Raises
    ------
    UserError
        The file is missing, cut short, no gzip, no JSON, or no kernel trace.
    """
    again = "Copy or record it again."
    with reading(path):
        try:
            with gzip.open(path, "rb") as file:
                trace: Trace = json.loads(file.read())
            _Question.model_validate(trace)
        except EOFError:
            raise UserError("this trace is cut short", hint=again) from None
        except gzip.BadGzipFile:
            raise UserError("this is not a gzip file; traces are gzip-compressed JSON (*.json.gz)") from None
        except ValidationError as error:
            first = error.errors()[0]
            parameter = " ".join(map(str, first["loc"]))
            raise UserError(f"this is not a kernel trace ({FORMAT}): {first['msg']}", parameter=parameter) from None
        except (zlib.error, ValueError, RecursionError) as error:
            raise UserError(f"this trace is damaged ({error})", hint=again) from None
    return trace


def scenario_of(trace: Trace, **overrides: Any) -> Scenario:
    """Return the scenario of a recording, as it was recorded: stepped batch by batch, ending after its last batch.

    `overrides` are fields that replace the recording's.

    Only `kernel` (a recording's begins with its release, a prediction's ends with the imitated one), `variant` and
    `scenario` are read, and of these nothing that is an answer. Knobs that a recording lacks have their defaults, but a
    recording without `sleep_millisecs` was made without sleeping.

    Raises
    ------
    UserError
        Something in it is not allowed.
    """
    asked, name = trace["scenario"], str(trace["kernel"]).rpartition(" as ")[2]
    release = re.match(r"(?:Linux )?(\d+\.\d+(?:\.\d+)?)", name)
    fixed = {"horizon_batches": asked["batches"], "horizon_seconds": 0.0, "run": 0, "stepped": True}
    fixed |= {"variant": trace["variant"], "process_list": asked["processes"], "events": _events(asked, "result")}
    fixed |= {"kernel": release[1] if release else name, "late": bool(asked.get("late", 0)), "sample_limit": 10**8}
    fixed |= {of: asked[of] for of in ("kernel_changes", "nodes", "pages_per_thp") if of in asked}
    return Scenario(**{"sleep_millisecs": 0} | asked["knobs"] | fixed | overrides)


def _events(asked: dict[str, Any], *answers: str) -> list[dict[str, Any]]:
    """Return the events of a question without these answers, and without the numbers of their samples."""
    return [{k: v for k, v in e.items() if k not in ("sample", *answers)} for e in asked.get("events", ())]


def load(path: str | Path, **overrides: Any) -> Scenario:
    """Return the scenario of a YAML file, or of a recording (``.json.gz``), which is named after its file.

    Parameters
    ----------
    path
        The file.
    **overrides
        Fields that replace the file's.

    Raises
    ------
    UserError
        The file can't be read, something in it is not allowed, or it needs more memory than there is.
    """
    name = Path(path).name
    if not name.endswith((ENDING, ".json")):
        return Scenario.load(path, **overrides)
    trace = read(path)
    with located(path):
        scenario = scenario_of(trace, **{"name": name.split(".")[0], **overrides})
        scenario.check_memory()
    return scenario


def write(path: str | Path, trace: Trace) -> None:
    """Write a trace atomically; the same trace gives the same bytes.

    Raises
    ------
    UserError
        The file can't be written there.
    """
    content = gzip.compress(json.dumps(trace, separators=(",", ":")).encode(), compresslevel=9, mtime=0)
    with writing(Path(path)):
        write_atomically(Path(path), content)


# -- page maps ----------------------------------------------------------------------------------------------------


def letters(text: str) -> NDArray[np.uint8]:
    """Return the letters of a page map such as ``Z460A52``, one for each page."""
    found = re.findall(r"([A-Za-z])(\d*)", text)
    codes = np.array([ord(letter) for letter, _ in found], dtype=np.uint8)
    return np.repeat(codes, [int(count or 1) for _, count in found]) if found else codes


def runs(pages: NDArray[np.uint8]) -> str:
    """Return a page map in the form ``Z460A52``."""
    found = ((chr(letter), end - start) for start, end, letter in equal_runs(pages))
    return "".join(f"{letter}{count if count > 1 else ''}" for letter, count in found)


# -- predictions --------------------------------------------------------------------------------------------------


def predict(trace: Trace, variant: AnyVariant | None = None, **how: Any) -> Trace:
    """Return what the model predicts for the question of a trace; see `rerun` for the parameters."""
    return rerun(trace, variant, **how)[1]


def rerun(
    trace: Trace, variant: AnyVariant | None = None, overrides: Mapping[str, Any] | None = None, **how: Any
) -> tuple[Run, Trace]:
    """Return the model's run of the question of a trace, and its prediction.

    Parameters
    ----------
    trace
        A recording, or another prediction. Only the question in it is read.
    variant
        Another variant than the recording's: a name, or one of your own.
    overrides
        Knobs to be changed, and ``horizon_batches``.
    **how
        Passed on to `mmlab.simulate`: `progress`, `events`.

    Raises
    ------
    UserError
        The scenario asks for something that is not allowed or not modelled.
    """
    overrides = dict(overrides or {})
    allowed = {*SETTABLE, "horizon_batches", "sleep_millisecs", "costs", "hz", "kernel", "kernel_changes"}
    for name in sorted(overrides.keys() - allowed):
        problem = "can't be changed in the scenario of a trace, which lists its memory page by page"
        raise UserError(problem, parameter=name, value=overrides[name], hint=f"Allowed: {', '.join(sorted(allowed))}.")
    if isinstance(variant, str):
        overrides["variant"], variant = variant, None
    scenario = scenario_of(trace, **overrides)

    knobs = {name: value for name, value in overrides.items() if name in SETTABLE and name not in ("variant", "run")}
    asked = dict(trace["scenario"])
    asked |= {"events": _events(asked, "result"), "knobs": asked["knobs"] | knobs, "batches": scenario.horizon_batches}
    if scenario.kernel_changes:
        asked["kernel_changes"] = dict(scenario.kernel_changes)
    maps = [(m["batch"], m["rank"], m["process"]) for m in trace["maps"]]
    frames = [(f["batch"], f["rank"]) for f in trace["frames"]]
    places = {place[:2] for place in maps} | set(frames)
    run = simulate(scenario, variant=variant, maps_at=places or "end", **how)
    return run, _answer(run, asked, maps, frames)


def from_run(run: Run) -> Trace:
    """Return a run of any scenario as a trace, with the maps that the run has; it can be predicted again.

    Simulated times of events become the batches after which they happened (the last batch, if they never did).

    Raises
    ------
    UserError
        The trace format cannot express the run: it has another number of pages a THP, rows that were thinned out, or
        clocks beside ksmd's.
    """
    scenario, batch = run.scenario, run.rows["batch"]
    if scenario.pages_per_thp != 512:
        allowed = "512 in a trace"
        raise UserError(parameter="pages_per_thp", value=scenario.pages_per_thp, allowed=allowed)
    if (np.diff(batch) > 1).any():
        problem = "rows were thinned out, and a trace has one a batch"
        raise UserError(problem, parameter="sample_limit", value=scenario.sample_limit, hint="Raise it.")
    changed, images = scenario.changed(), build(scenario)
    clocks = [name for name in CLOCKS if name in changed and not scenario.stepped]
    clocks += [] if all(image.touched.all() for image in images) else ["touched_fraction"]
    if clocks:
        problem = "a trace has events, but no clocks beside ksmd's and no memory that is touched later"
        raise UserError(problem, parameter=", ".join(clocks))
    end = int(batch.max())
    after = [{"after": {"batch": end if row is None else int(batch[row])}} for row in run.event_rows]
    events = [event.model_dump(mode="json", exclude_unset=True) for event in scenario.events]
    knobs: dict[str, Any] = {n: getattr(scenario, n) for n in (*SETTABLE, "swap_mib") if n not in ("variant", "run")}
    knobs |= {name: value for name, value in changed.items() if name == "hugepages_enabled"}
    processes = [_process(*of) for of in zip(images, scenario.specs, strict=True)]
    asked = {"knobs": knobs, "processes": processes, "late": int(scenario.late), "batches": end}
    asked["events"] = [event | when for event, when in zip(events, after, strict=True)]
    asked |= {name: value for name, value in changed.items() if name in ("nodes", "kernel_changes")}
    maps = [(*place, process) for place, pages in run.maps.items() for process in range(len(pages))]
    return _answer(run, asked, maps, run.frames)


def _process(image: Image, spec: ProcessSpec) -> dict[str, Any]:
    """Return a process as a trace describes it."""
    out: dict[str, Any] = {"pages": int(image.keys.size), "thp": _ranges(image.huge | (image.order == 9))}
    if spec.orders is not None or any(0 < order < 9 for order in image.order):
        own = ((start, end - start, order) for start, end, order in equal_runs(image.order))
        out["orders"] = [list(r) for r in (own if spec.orders is None else spec.orders)]
    for name in ("nohugepage_after_populate", "node", "merge_any", "forbids_zeropages"):
        if getattr(spec, name):
            out[name] = getattr(spec, name)
    return out | {"mergeable": _ranges(image.mergeable), "contents": _key_runs(image.keys)}


def _ranges(flags: NDArray[np.bool_]) -> list[list[int]]:
    return [[start, end - start] for start, end, flag in equal_runs(flags) if flag]


def _key_runs(keys: NDArray[np.uint64]) -> list[list[int]]:
    """Keys as ``[[first, count, step], …]`` with steps 0 and 1."""
    out: list[list[int]] = []
    for key in keys.tolist():
        first, count, step = out[-1] if out else (-1, 0, 0)
        step = int(key == first + 1) if count == 1 else step
        if count and key == first + count * step:
            out[-1] = [first, count + 1, step]
        else:
            out.append([key, 1, 0])
    return out


def _answer(run: Run, asked: dict[str, Any], maps: Iterable[tuple[int, int, int]], frames: Iterable[Place]) -> Trace:
    """Return a run's rows, and its maps and frames at these places, in the format of traces."""
    columns = run.columns()
    for event, result, row in zip(asked["events"], run.results, run.event_rows, strict=True):
        event["result"], event["sample"] = result, row
    index: dict[Place, int] = {}
    for i, place in enumerate(zip(columns["batch"].tolist(), columns["rank"].tolist(), strict=True)):
        index.setdefault(place, i)  # a last row, in which only time has passed, is no sample of a trace
    several_orders = any("orders" in process for process in asked["processes"]) or bool(run.scenario.hugepages_enabled)
    fields = COUNTERS + [name for name in columns if several_orders and name.startswith("mthp_")]

    def at(batch: int, rank: int, **what: Any) -> dict[str, Any]:
        return {"batch": batch, "rank": rank, "sample": index.get((batch, rank))} | what

    mapped = [(b, r, process) for b, r, process in maps if process < len(run.maps.get((b, r), ()))]
    counted = [(place, *run.frames[place]) for place in frames if place in run.frames]
    return {
        "format": FORMAT,
        "name": run.scenario.name,
        "kernel": f"mmlab {__version__} as {run.scenario.kernel}",
        "variant": run.variant,
        "how": "predicted by the model",
        "scenario": asked,
        "fields": fields,
        "samples": np.stack([columns[name] for name in fields], axis=1)[list(index.values())].tolist(),
        "maps": [at(b, r, process=process, pages=runs(run.maps[b, r][process])) for b, r, process in mapped],
        "frames": [at(*place, frames=used, ksm_frames=merged) for place, used, merged in counted],
    }


# -- comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One sample, map or frame count that differs; `text` describes how."""

    batch: int
    rank: int
    text: str

    def __str__(self) -> str:
        return f"batch {self.batch}.{self.rank}: {self.text}"


@dataclass
class Comparison:
    """The result of `compare`: how much was compared, how much of it is exact, and every difference."""

    samples: int = 0
    samples_exact: int = 0
    maps: int = 0
    maps_exact: int = 0
    frames: int = 0
    frames_exact: int = 0
    tracepoints: int = 0
    tracepoints_exact: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """No difference in the question, in any field of any sample, in any map or frame count."""
        return not self.differences

    def __str__(self) -> str:
        text = (
            f"samples exact {self.samples_exact}/{self.samples}, maps exact {self.maps_exact}/{self.maps}, "
            f"frame counts exact {self.frames_exact}/{self.frames}"
        ) + (f", tracepoints exact {self.tracepoints_exact}/{self.tracepoints}" if self.tracepoints else "")
        return text if self.exact else f"{text}; first: {str(self.differences[0])[:300]}"


def compare_file(path: str | Path) -> Comparison:
    """Predict a recording and compare; see `compare`."""
    recorded = read(path)
    return compare(recorded, predict(recorded))


def compare(recorded: Trace, predicted: Trace) -> Comparison:
    """Compare a prediction with a recording: every field but ``lab_*`` and ``moved`` ones, every map and frame count.

    A recorded sample is matched with the predicted one of the same batch and rank. Recordings of kernels other than
    6.12 do not distinguish ``h`` from ``H`` in maps.

    Raises
    ------
    UserError
        The rows of a trace don't fit its fields.
    """
    out = Comparison()
    if _asked(recorded) != _asked(predicted):
        out.differences.append(Difference(0, 0, "another scenario or variant was predicted, or events' results differ"))
    fold = not recorded["kernel"].startswith("6.12")
    answers = _answers(predicted)
    for kind, theirs in _answers(recorded).items():
        ours = dict(answers[kind])
        texts = [(place, _difference(kind, one, ours.get(place), fold)) for place, one in theirs]
        differences = [Difference(batch, rank, text) for (batch, rank, *_), text in texts if text]
        setattr(out, kind, len(theirs))
        setattr(out, f"{kind}_exact", len(theirs) - len(differences))
        out.differences += differences
    return out


def _asked(trace: Trace) -> tuple[str, dict[str, Any]]:
    """Return the question with the results of events, which must agree, but without their sample numbers."""
    return trace["variant"], trace["scenario"] | {"events": _events(trace["scenario"])}


def _answers(trace: Trace) -> dict[str, list[Any]]:
    """Return the samples, maps and frame counts of a trace, each after its place: batch, rank, and process of a map."""
    maps = [((m["batch"], m["rank"], m["process"]), m.get("pages", "")) for m in trace["maps"]]
    frames = [((f["batch"], f["rank"]), {n: f.get(n, 0) for n in ("frames", "ksm_frames")}) for f in trace["frames"]]
    samples: list[Any] = []
    last = rank = 0
    for number, values in enumerate(trace["samples"]):
        if not isinstance(values, list) or len(values) != len(trace["fields"]):
            problem = f"sample {number} has not one value for each of the {len(trace['fields'])} fields"
            raise UserError(problem, where=str(trace.get("name") or "trace"))
        row = {n: v for n, v in zip(trace["fields"], values, strict=True) if n not in trace.get("moved", ())}
        rank = rank + 1 if samples and row.get("batch", 0) == last else 0
        last = row.get("batch", 0)
        samples.append(((last, rank), row))
    named = [(place, {f"map of process {place[2]}": pages}) for place, pages in maps]
    return {"samples": samples, "maps": named, "frames": frames}


def _difference(kind: str, recorded: dict[str, Any], predicted: dict[str, Any] | None, fold: bool) -> str:
    """Return in which fields an answer differs, or "" if it is exact; `fold` takes h for H in maps."""
    if predicted is None:
        return f"{kind}: none is predicted here"
    wrong = []
    for name, theirs in recorded.items():
        ours = predicted.get(name, "nothing")
        if name.startswith("lab_") or (theirs == ours and not isinstance(ours, float)):
            continue
        if kind == "maps":
            a, b = (letters(text.replace("h", "H") if fold else text).tolist() for text in (theirs, ours))
            if a == b:
                continue
            page, pair = next((i, pair) for i, pair in enumerate(zip_longest(a, b)) if pair[0] != pair[1])
            name, (theirs, ours) = f"{name}, page {page}", (chr(code) if code else "none" for code in pair)
        wrong.append(f"{name}: recorded {theirs}, predicted {ours}")
    return "; ".join(wrong)
