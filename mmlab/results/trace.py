"""Kernel traces: what a real kernel did with a scenario, and what the model predicts, in one format.

A trace is one gzip-compressed JSON object: the scenario, a table of samples (one before the start, one after every
batch, one after every event), page maps and frame counts. Batch and rank name a sample: rank 0 is the sample after the
batch, rank k the one after its k-th event.

A prediction is made from the question alone: :func:`predict` reads a recording's scenario (without the results and
sample numbers of its events), its variant and kernel, and *where* it has maps and frames. :func:`compare` then holds
both against each other, integer for integer.

>>> runs(letters("Z2AK")), letters("Z2AK").size
('Z2AK', 4)
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmlab import __version__
from mmlab.engine.workload import build
from mmlab.errors import UserError, located
from mmlab.results.run import Run, simulate
from mmlab.scenario import SETTABLE, Scenario
from mmlab.variants import Predicate, Variant

Trace = dict[str, Any]
Place = tuple[int, int]

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
"""Fields of every predicted sample: all that a kernel of any series has in its traces, and the advisor's choice."""
CLOCKS = (
    "khugepaged",
    "policy",
    "pressure_rate",
    "migration_rate",
    "hot_fraction",
    "warm_fraction",
    "balloon_fraction",
    "boot_interval_seconds",
    "lifetime_seconds",
    "ksm_start_seconds",
    "merge_any",
)
"""Fields of a scenario that a trace can't tell."""
MTHP_COUNTERS = [
    f"mthp_{4 << order}kB_{name}"
    for order in range(2, 10)
    for name in ("split", "split_failed", "split_deferred", "nr_anon", "nr_anon_partially_mapped")
]
"""Fields that are added where a process has folios of several orders."""

_TOP = {
    "format": str,
    "kernel": str,
    "variant": str,
    "scenario": dict,
    "fields": list,
    "samples": list,
    "maps": list,
    "frames": list,
}
_SCENARIO = {"knobs": dict, "processes": list, "events": list, "batches": int}


def find(where: str | Path = "") -> list[Path]:
    """Trace files by a folder, a file, or a pattern such as ``recorded/act-*``; "" stands for those shipped with mmlab.

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
        raise UserError(
            f"{where}: no trace (*{ENDING}) is there, seen from {Path.cwd()}: name a folder, a file, or a "
            "pattern such as recorded/act-*"
        )
    return found


def read(path: str | Path) -> Trace:
    """Read a trace.

    Raises
    ------
    UserError
        When the file is missing, cut short, no gzip, no JSON, or no kernel trace; the message begins with its name.
    """
    try:
        with gzip.open(path, "rb") as file:
            trace = json.loads(file.read())
    except EOFError:
        raise UserError(f"{path}: this trace is cut short: copy or record it again") from None
    except gzip.BadGzipFile:
        raise UserError(f"{path}: this is not a gzip file; traces are gzip-compressed JSON (*.json.gz)") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"{path}: this trace is damaged ({error}): copy or record it again") from None
    _check(trace, path)
    return trace  # type: ignore[no-any-return]


def _check(trace: Any, path: str | Path) -> None:
    """The question must be whole; answers (samples, maps' pages, counts) are only looked at by :func:`compare`."""
    if not isinstance(trace, dict) or trace.get("format") != FORMAT:
        given = trace.get("format") if isinstance(trace, dict) else type(trace).__name__
        raise UserError(f'{path}: this is not a kernel trace: format = {given!r}, it must be "{FORMAT}"')
    for where, holder, wanted in (("", trace, _TOP), ("scenario ", trace.get("scenario"), _SCENARIO)):
        for key, kind in wanted.items():
            value = holder.get(key) if isinstance(holder, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                what = "is missing" if value is None else f"is a {type(value).__name__}"
                raise UserError(f"{path}: {where}{key} {what}; a kernel trace has a {kind.__name__} there")
    events = trace["scenario"]["events"] + trace["scenario"]["processes"]
    if not all(isinstance(e, dict) for e in events):
        raise UserError(f"{path}: scenario events and processes must be lists of objects")
    for name, keys in (("maps", ("batch", "rank", "process")), ("frames", ("batch", "rank"))):
        for item in trace[name]:
            if not isinstance(item, dict) or not all(type(item.get(key)) is int for key in keys):
                raise UserError(f"{path}: an entry of {name} has no {', '.join(keys)}")


def scenario_of(trace: Trace) -> Scenario:
    """Return the scenario of a recording, as it was recorded: stepped batch by batch, ending after its last batch.

    Only `kernel` (a prediction's ends with the imitated one), `variant` and `scenario` are read, and of these nothing
    that is an answer. Knobs that a recording lacks have their defaults, but a recording without `sleep_millisecs` was
    made without sleeping.

    Raises
    ------
    UserError
        Something in it is not allowed.
    """
    asked = trace["scenario"]
    events = [{k: v for k, v in e.items() if k not in ("result", "sample")} for e in asked.get("events", ())]
    fixed = {"horizon_batches": asked["batches"], "horizon_seconds": 0.0, "run": 0, "stepped": True}
    return Scenario(
        **{"sleep_millisecs": 0, "nodes": asked.get("nodes", 1)}
        | asked["knobs"]
        | fixed
        | {
            "kernel": str(trace["kernel"]).rpartition(" ")[2],
            "variant": trace["variant"],
            "process_list": asked["processes"],
            "late": bool(asked.get("late", 0)),
            "events": events,
            "sample_limit": 10**8,
            "pages_per_thp": asked.get("pages_per_thp", 512),
        }
    )


def load_scenario(path: str | Path, **overrides: Any) -> Scenario:
    """Return the scenario of a recording in a file, named after the file.

    Parameters
    ----------
    path
        A ``.json.gz`` file.
    **overrides
        Fields that replace the recording's.

    Raises
    ------
    UserError
        The file can't be read, something in it is not allowed, or it needs more memory than there is.
    """
    trace = read(path)
    with located(path):
        scenario = scenario_of(trace).replace(**{"name": Path(path).name.split(".")[0], **overrides})
        scenario.check_memory()
    return scenario


def load(path: str | Path, **overrides: Any) -> Scenario:
    """Return the scenario of a YAML file (`Scenario.load`) or of a recording (`load_scenario`)."""
    recorded = Path(path).name.endswith((ENDING, ".json"))
    return load_scenario(path, **overrides) if recorded else Scenario.load(path, **overrides)


def write(path: str | Path, trace: Trace) -> None:
    """Write a trace; the same trace gives the same bytes, and the file appears whole or not at all.

    Raises
    ------
    UserError
        When it can't be written there.
    """
    path = Path(path)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(json.dumps(trace, separators=(",", ":")).encode())
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as part:
            temporary = part.name
            part.write(buffer.getvalue())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# -- page maps ----------------------------------------------------------------------------------------------------


def letters(text: str) -> NDArray[np.uint8]:
    """The letters of a page map, one a page, from ``Z460A52``."""
    found = re.findall(r"([A-Za-z])(\d*)", text)
    codes = np.array([ord(letter) for letter, _ in found], dtype=np.uint8)
    return np.repeat(codes, [int(count or 1) for _, count in found]) if found else codes


def runs(pages: NDArray[np.uint8]) -> str:
    """A page map as ``Z460A52``."""
    if not pages.size:
        return ""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(pages)) + 1))
    counts = np.diff(np.append(starts, pages.size))
    return "".join(f"{chr(c)}{n if n > 1 else ''}" for c, n in zip(pages[starts], counts, strict=True))


# -- predictions --------------------------------------------------------------------------------------------------


def predict(
    trace: Trace,
    variant: str | Variant | Predicate | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[..., Any] | None = None,
) -> Trace:
    """What the model says to the question of a trace.

    Parameters
    ----------
    trace
        A recording, or another prediction. Only the question in it is read.
    variant
        Another variant than the recording's: a name, or one of your own.
    overrides
        Knobs to be changed, and ``horizon_batches``.
    progress
        Passed on to :func:`mmlab.simulate`.

    Raises
    ------
    UserError
        When the scenario asks for something that is not allowed or not modelled.
    """
    return rerun(trace, variant, overrides, progress)[1]


def rerun(
    trace: Trace,
    variant: str | Variant | Predicate | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[..., Any] | None = None,
) -> tuple[Run, Trace]:
    """As :func:`predict`: the model's run, which knows more than a trace tells, and what it says to the question."""

    overrides = dict(overrides or {})
    scenario = scenario_of(trace)
    if stray := sorted(set(overrides) - set(SETTABLE) - {"horizon_batches", "sleep_millisecs", "costs", "hz"}):
        raise UserError(
            f"{', '.join(stray)} can't be changed in the scenario of a trace, which says page by page what "
            f"there is; allowed: {', '.join(sorted(SETTABLE))}, horizon_batches"
        )
    name, own = (variant, None) if isinstance(variant, str) else (None, variant)
    overrides["variant"] = name or overrides.get("variant") or scenario.variant
    changes = {name: value for name, value in overrides.items() if getattr(scenario, name) != value}
    scenario = scenario.replace(**changes) if changes else scenario

    asked = _question(trace)
    asked["knobs"].update({k: v for k, v in overrides.items() if k in SETTABLE and k not in ("variant", "run")})
    asked["batches"] = scenario.horizon_batches
    map_places = [(m["batch"], m["rank"], m["process"]) for m in trace["maps"]]
    frame_places = [(f["batch"], f["rank"]) for f in trace["frames"]]
    places = {place[:2] for place in map_places} | set(frame_places)
    run = simulate(scenario, variant=own, maps_at=places or "end", progress=progress)
    return run, _answer(run, asked, map_places, frame_places)


def from_run(run: Run) -> Trace:
    """A run of any scenario as a trace, with its maps as it has them; it can be predicted again.

    Simulated times of events become the batches after which they happened (the last batch, if they never did).

    Raises
    ------
    UserError
        When the run can't be told in the trace format: another number of pages a THP, or rows that were thinned out.
    """
    scenario = run.scenario
    batch = run.rows["batch"]
    if scenario.pages_per_thp != 512:
        raise UserError(f"pages_per_thp = {scenario.pages_per_thp}: traces are of machines with 512 pages a THP")
    if (np.diff(batch) > 1).any():
        raise UserError(
            f"sample_limit = {scenario.sample_limit}: rows were thinned out, and a trace has one a batch: "
            "raise sample_limit"
        )
    clocks = [n for n in CLOCKS if getattr(scenario, n) != Scenario.model_fields[n].default]
    if clocks and not scenario.stepped:
        raise UserError(f"{', '.join(clocks)}: a trace has events, but no clocks beside ksmd")
    knobs = {name: getattr(scenario, name) for name in (*SETTABLE, "swap_mib") if name not in ("variant", "run")}
    processes = []
    for image, spec in zip(build(scenario), scenario.specs, strict=True):
        one: dict[str, Any] = {"pages": int(image.keys.size)}
        born_huge = image.huge | (image.order == 9)
        one["thp"] = _ranges(born_huge)
        if spec.orders is not None:
            one["orders"] = [list(r) for r in spec.orders]
        elif any(0 < order < 9 for order in image.order):
            one["orders"] = _order_runs(image.order)
        for name in ("nohugepage_after_populate", "node", "merge_any", "forbids_zeropages"):
            if getattr(spec, name):
                one[name] = getattr(spec, name)
        one["mergeable"] = _ranges(image.mergeable)
        one["contents"] = _key_runs(image.keys)
        processes.append(one)
    events = []
    for event, row in zip(scenario.events, run.event_rows, strict=True):
        last = int(batch.max()) if row is None else int(batch[row])
        events.append(event.model_dump(mode="json", exclude_unset=True) | {"after": {"batch": last}})
    asked = {
        "knobs": knobs,
        "processes": processes,
        "late": int(scenario.late),
        "events": events,
        "batches": int(batch.max()),
    }
    if scenario.nodes > 1:
        asked["nodes"] = scenario.nodes
    return _answer(run, asked, None, None)


def _question(trace: Trace) -> dict[str, Any]:
    """A trace's scenario without what was answered; a copy but for the processes, whose contents may be long."""
    asked = trace["scenario"]
    events = [{k: v for k, v in event.items() if k not in ("result", "sample")} for event in asked["events"]]
    return {**asked, "knobs": dict(asked["knobs"]), "events": events}


def _answer(
    run: Run,
    asked: dict[str, Any],
    map_places: Iterable[tuple[int, int, int]] | None,
    frame_places: Iterable[Place] | None,
) -> Trace:
    """Put a run's rows, maps and frames into the format; without places: all that the run has."""
    columns = run.columns()
    for event, result, row in zip(asked["events"], run.results, run.event_rows, strict=True):
        event["result"], event["sample"] = result, row
    index: dict[Place, int] = {}
    for i, place in enumerate(zip(columns["batch"].tolist(), columns["rank"].tolist(), strict=True)):
        index.setdefault(place, i)  # a last row, in which only time has passed, is no sample of a trace
    if map_places is None:
        map_places = [(b, r, p) for (b, r), pages in run.maps.items() for p in range(len(pages))]
    maps = []
    for batch, rank, process in map_places:
        pages = run.maps.get((batch, rank), ())
        if process < len(pages):
            maps.append(
                {
                    "batch": batch,
                    "rank": rank,
                    "sample": index.get((batch, rank)),
                    "process": process,
                    "pages": runs(pages[process]),
                }
            )
    frames = []
    for batch, rank in run.frames if frame_places is None else frame_places:
        if (batch, rank) in run.frames:
            total, ksm = run.frames[batch, rank]
            frames.append(
                {
                    "batch": batch,
                    "rank": rank,
                    "sample": index.get((batch, rank)),
                    "frames": int(total),
                    "ksm_frames": int(ksm),
                }
            )
    fields = COUNTERS + (MTHP_COUNTERS if any("orders" in p for p in asked["processes"]) else [])
    return {
        "format": FORMAT,
        "name": run.scenario.name,
        "kernel": f"mmlab {__version__} as {run.scenario.kernel}",
        "variant": run.variant,
        "how": "predicted by the model",
        "scenario": asked,
        "fields": fields,
        "samples": np.stack([columns[name] for name in fields], axis=1)[list(index.values())].tolist(),
        "maps": maps,
        "frames": frames,
    }


def _ranges(flags: NDArray[np.bool_]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0])))).reshape(-1, 2)
    return [[int(a), int(b - a)] for a, b in edges]


def _order_runs(order: NDArray[np.uint8]) -> list[list[int]]:
    """Orders as ``[[first page, count, order], …]``."""
    cuts = [0, *(np.flatnonzero(np.diff(order)) + 1).tolist(), order.size]
    return [[a, b - a, int(order[a])] for a, b in itertools.pairwise(cuts)]


def _key_runs(keys: NDArray[np.uint64]) -> list[list[int]]:
    """Keys as ``[[first, count, step], …]`` with steps 0 and 1."""
    steps = np.diff(keys)  # modulo 2^64: only 0 and 1 count as steps …
    steps[keys[1:] < keys[:-1]] = 2  # … and from the largest key to 0 is none
    ends = np.append(np.flatnonzero(steps[1:] != steps[:-1]) + 1, steps.size).tolist()
    out: list[list[int]] = []
    i = at = 0
    while i < keys.size:
        while at < len(ends) and ends[at] <= i:
            at += 1
        step = int(steps[i]) if i < steps.size else 2
        last = i if step > 1 else ends[at]  # pages i … last are a step apart
        out.append([int(keys[i]), last - i + 1, step if step <= 1 else 0])
        i = last + 1
    return out


# -- comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One sample, map or frame count that differs; ``text`` says how."""

    batch: int
    rank: int
    text: str

    def __str__(self) -> str:
        return f"batch {self.batch}.{self.rank}: {self.text}"


@dataclass
class Comparison:
    """What :func:`compare` found; ``exact`` is the verdict."""

    samples: int = 0
    samples_exact: int = 0
    maps: int = 0
    maps_exact: int = 0
    frames: int = 0
    frames_exact: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """No difference in the question, in any field of any sample, in any map or frame count."""
        return not self.differences

    def __str__(self) -> str:
        text = (
            f"samples exact {self.samples_exact}/{self.samples}, maps exact {self.maps_exact}/{self.maps}, "
            f"frame counts exact {self.frames_exact}/{self.frames}"
        )
        return text if self.exact else f"{text}; first: {str(self.differences[0])[:300]}"


def compare(recorded: Trace, predicted: Trace) -> Comparison:
    """Hold a prediction against a recording: every field but ``lab_*``, every map, every frame count.

    A recorded sample is matched with the predicted one of the same batch and rank. Kernels other than 6.12 don't tell
    ``h`` from ``H`` in maps.

    Raises
    ------
    UserError
        When the rows of a trace don't fit its fields.
    """
    out = Comparison()
    if _asked(recorded) != _asked(predicted):
        out.differences.append(Difference(0, 0, "another scenario or variant was predicted, or events' results differ"))
    wanted = [name for name in recorded["fields"] if not name.startswith("lab_")]
    theirs, ours = _ranked(recorded), _ranked(predicted)
    out.samples = len(theirs)
    for place, row in theirs.items():
        mine = ours.get(place)
        if mine is None:
            out.differences.append(Difference(*place, "no such sample predicted"))
            continue
        wrong = [name for name in wanted if type(mine.get(name)) is not int or mine[name] != row[name]]
        if wrong:
            text = "; ".join(f"{n}: recorded {row[n]}, predicted {mine.get(n, 'nothing')}" for n in wrong)
            out.differences.append(Difference(*place, text))
        else:
            out.samples_exact += 1
    _compare_maps(recorded, predicted, out)
    counts = {(f["batch"], f["rank"]): (f.get("frames"), f.get("ksm_frames")) for f in predicted["frames"]}
    for f in recorded["frames"]:
        place, seen = (f["batch"], f["rank"]), (f["frames"], f["ksm_frames"])
        out.frames += 1
        if counts.get(place) == seen:
            out.frames_exact += 1
        else:
            text = f"frames, KSM frames: recorded {seen}, predicted {counts.get(place, 'nothing')}"
            out.differences.append(Difference(*place, text))
    return out


def _compare_maps(recorded: Trace, predicted: Trace, out: Comparison) -> None:
    fold = not recorded["kernel"].startswith("6.12")
    maps = {(m["batch"], m["rank"], m["process"]): m.get("pages", "") for m in predicted["maps"]}
    for m in recorded["maps"]:
        batch, rank, process = m["batch"], m["rank"], m["process"]
        told = maps.get((batch, rank, process), "")
        out.maps += 1
        if m["pages"] == told:  # nearly always: no need to unfold them
            out.maps_exact += 1
            continue
        theirs, ours = letters(m["pages"]), letters(told)
        if fold:
            theirs, ours = (np.where(x == ord("h"), np.uint8(ord("H")), x) for x in (theirs, ours))
        if np.array_equal(theirs, ours):
            out.maps_exact += 1
            continue
        n = min(theirs.size, ours.size)
        at = next(iter(np.flatnonzero(theirs[:n] != ours[:n])), n)
        a, b = (bytes(x[at : at + 1]).decode() or "none" for x in (theirs, ours))
        text = f"map of process {process}: page {at} recorded {a}, predicted {b}"
        out.differences.append(Difference(batch, rank, text))


def _asked(trace: Trace) -> tuple[str, dict[str, Any]]:
    """The question, with the results of events: they are answers that must agree, their sample numbers need not."""
    asked = trace["scenario"]
    events = [{k: v for k, v in event.items() if k != "sample"} for event in asked.get("events", ())]
    return trace["variant"], {**asked, "events": events}


def _ranked(trace: Trace) -> dict[Place, dict[str, Any]]:
    """Rows by batch and rank within the batch."""
    out: dict[Place, dict[str, Any]] = {}
    fields, last, rank = trace["fields"], None, 0
    for number, values in enumerate(trace["samples"]):
        if not isinstance(values, list) or len(values) != len(fields):
            name = trace.get("name") or "trace"
            raise UserError(f"{name}: sample {number} has not one value for each of the {len(fields)} fields")
        row = dict(zip(fields, values, strict=True))
        rank = rank + 1 if row.get("batch") == last else 0
        last = row.get("batch")
        out[last, rank] = row  # type: ignore[index]
    return out
