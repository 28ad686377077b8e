"""Sweeps: thousands of scenarios into one folder, on all cores or a Dask cluster; may be killed at any time.

The folder holds Parquet part files with a row a scenario: its parameters, the metrics of its run or the error that it
ended with, and ``hash``, the SHA-256 of parameters, variant, costs and model. A scenario whose row is there is not run
again: a sweep resumes where it was stopped, and one that grows runs only what is new. All of ``folder/*.parquet`` is
one table, and every file in it is whole:

    duckdb -c "SELECT variant, avg(merge_rate) FROM 'folder/*.parquet' GROUP BY variant"

The samples of each run, if asked for, are in ``folder/_samples/<hash>.parquet``. Rows with an error are in files of
their own: remove ``folder/*-error.parquet`` to run these scenarios again. ``sweep.json`` names the last grid and model.
Nothing in a row depends on time, order or machine.

When a worker dies, the chunks of scenarios that were under way are submitted again to new workers. A scenario that was
under way each time is tried by itself, and becomes a row with its error after `DEATHS` times.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import mmlab
from mmlab.engine.costs import cost_set
from mmlab.errors import UserError
from mmlab.kernel.jit import warm_up
from mmlab.params import write_atomically
from mmlab.results.metrics import METRICS, UNSURE
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario, flat_fields
from mmlab.studies.grid import Grid, Point, varying
from mmlab.workers import cpus, executor, size

__all__ = ["Item", "Summary", "model_digest", "plan", "read_sweep", "sweep"]

FORMAT = 1
"""Version of the rows; part of each hash."""
MODEL = ("scenario.py", "variants.py", "kernel/*.py", "engine/*.py", "results/*.py")
"""The sources that decide the results of a run. Costs are data and not among them."""
MOST = 500
"""Scenarios in a chunk at most."""
SECONDS = 2.0
"""Time after which a worker returns the finished part of its chunk."""
DEATHS = 5
"""Deaths of workers after which a scenario that was under way is given up; before the last three it was alone."""
PATIENCE_S = 60
"""Time that a cluster may be without workers."""
MANIFEST = "sweep.json"
SAMPLES = "_samples"
"""A name that readers of whole folders of Parquet leave out."""
PARQUET: dict[str, Any] = {"compression": "zstd", "index": False}

Row = dict[str, Any]
Grids = Grid | str | Path | Iterable[Scenario | Mapping[str, Any]]


@dataclass(frozen=True)
class Item:
    """A scenario that has to run: its hash, its parameters, and whether its row is wanted, or only its samples."""

    hash: str
    values: Point
    row: bool = True


@dataclass
class Summary:
    """A sweep, planned or done.

    Attributes
    ----------
    scenarios
        Number of different scenarios.
    there
        Number of those that were in the folder before.
    failed
        Number of rows with an error.
    items
        Scenarios that have to run, or had to.
    invalid
        Rows of scenarios that are not possible and had no row in the folder.
    ran
        Number of scenarios that ran now.
    seconds, simulated_s
        Wall-clock time; and CPU time of the simulations and their metrics.
    """

    scenarios: int
    there: int
    failed: int
    items: list[Item]
    invalid: list[Row]
    ran: int = 0
    seconds: float = 0.0
    simulated_s: float = 0.0


@dataclass
class Result:
    """The result of a chunk: scenarios done, those that failed, CPU time of the simulations, files to write."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    files: dict[str, bytes] = field(default_factory=dict)


Work = Callable[[list[Item]], Result]


def sweep(
    grid: Grids,
    folder: str | Path,
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    samples: bool = False,
    progress: Callable[[float, float, str], object] | None = None,
) -> Summary:
    """Run every scenario whose row is not in the folder yet.

    Parameters
    ----------
    grid
        A `Grid` or its file, or an iterable of scenarios.
    folder
        Where rows go; created if missing. One sweep at a time writes there.
    jobs
        Worker processes on this machine; default: one a core. In a script, the call must stand below
        ``if __name__ == "__main__":``, as `concurrent.futures` requires.
    scheduler
        Address of a Dask scheduler, tcp://host:port, whose workers are used instead. They need the same mmlab, but no
        access to the folder.
    samples
        Keep the table of samples of each run, too.
    progress
        Called with the scenarios done (first with those that were there), all scenarios, and a remark on errors.

    Returns
    -------
    Summary
        `failed` counts the rows with an error: impossible parameters, an exception, or workers that died.

    Raises
    ------
    UserError
        The grid is wrong, none of its scenarios is possible, or there is no folder, scheduler or worker to be had.
    """
    began, folder = time.perf_counter(), Path(folder)
    with _locked(folder):
        grid = Grid.load(grid) if isinstance(grid, (str, Path)) else grid
        summary = plan(grid, folder, samples=samples)
        said = grid.model_dump(mode="json") if isinstance(grid, Grid) else None
        about = {"mmlab": mmlab.__version__, "model": model_digest(), "grid": said}
        _write(folder, {MANIFEST: f"{json.dumps(about, indent=1)}\n".encode()} | _part(summary.invalid, "-error"))
        if summary.items and not scheduler:
            warm_up()  # otherwise every worker would compile
        run = partial(_run, samples=samples, model=model_digest())
        for result in chain([Result()], _drive(run, summary.items, jobs or cpus(), scheduler)):
            _write(folder, result.files)
            summary.ran += result.done
            summary.failed += result.failed
            summary.simulated_s += result.seconds
            if progress:
                done = summary.scenarios - len(summary.items) + summary.ran
                progress(done, summary.scenarios, f"{summary.failed} with errors")
    summary.seconds = time.perf_counter() - began
    return summary


def read_sweep(folder: str | Path, *, all_models: bool = False) -> pd.DataFrame:
    """Return all rows of a sweep's folder, in order of their parameters.

    Parameters
    ----------
    folder
        The folder of `sweep`.
    all_models
        Include the rows of models other than the last one that wrote there; see column ``model``.

    Raises
    ------
    UserError
        There is no sweep, or a file is damaged.
    """
    folder = Path(folder)
    try:
        model = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError):
        hint = "Name the folder of `mmlab sweep -o`."
        raise UserError(f"there is no sweep in it (no {MANIFEST})", parameter=str(folder), hint=hint) from None
    rows = pa.concat_tables([_schema().empty_table(), *_read(folder)], promote_options="default").to_pandas()
    rows = rows if all_models else rows[rows["model"] == model]
    return rows.drop_duplicates("hash").sort_values([*varying(), "hash"], ignore_index=True)


def plan(grid: Grids, folder: str | Path, *, samples: bool = False) -> Summary:
    """Return the work that `sweep` would do; run and write nothing."""
    folder, costs = Path(folder), dict[str, str]()
    there: dict[str, str | None] = {}
    for table in _read(folder, ["hash", "error"]):
        there.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    sampled = {path.stem for path in (folder / SAMPLES).glob("*.parquet")}
    items: dict[str, Item] = {}
    invalid: dict[str, Row] = {}
    seen: set[str] = set()
    for values in _scenarios(grid):
        hash_, error = _identify(values, costs)
        seen.add(hash_)
        if hash_ not in there and error is not None:
            invalid[hash_] = _row(hash_, values, error=error)
        elif hash_ not in there or (samples and hash_ not in sampled and there[hash_] is None):
            items[hash_] = Item(hash_, values, hash_ not in there)
    if invalid and len(invalid) == len(seen):
        raise UserError(f"none of these scenarios is possible. The first: {next(iter(invalid.values()))['error']}")
    failed = len(invalid) + sum(there.get(hash_) is not None for hash_ in seen)
    return Summary(len(seen), len(seen) - len(items) - len(invalid), failed, [*items.values()], [*invalid.values()])


def _scenarios(grid: Grids) -> list[Point]:
    """Return the parameters of each scenario, ordered by its memory."""
    grid = Grid.load(grid) if isinstance(grid, (str, Path)) else grid
    if isinstance(grid, Grid):
        found = [{**grid.base, **point} for point in grid.points()]
    else:
        found = [{n: getattr(s, n) for n in s.model_fields_set} if isinstance(s, Scenario) else dict(s) for s in grid]
    # Contents of equal memory are made once where such runs follow each other: half of the time of a small run.
    memory = [name for name, parameter in flat_fields().items() if parameter.kind == "workload"]
    return sorted(found, key=lambda values: [str(values.get(name)) for name in memory])


def _identify(values: Point, costs: dict[str, str]) -> tuple[str, str | None]:
    """Return a scenario's hash and its mistake, if any; `costs` keeps the digests of cost sets."""
    said: list[Any] = [values]
    try:
        scenario, error = Scenario(**values), None
        if scenario.costs not in costs:  # their numbers matter, not their name
            found = cost_set(scenario.costs)
            numbers = [found.ns.tolist(), found.estimated, found.covariance.tolist(), found.error]
            costs[scenario.costs] = _sha256(numbers)
        said = [costs[scenario.costs], scenario.model_dump_json(exclude={"name", "costs"})]
    except UserError as wrong:
        error = str(wrong)
    return _sha256([FORMAT, model_digest(), *said]), error


@cache
def model_digest() -> str:
    """Return the SHA-256 of the model's sources and of the version of numpy, which draws what is random."""
    package = Path(mmlab.__file__).parent
    files = sorted(path for pattern in MODEL for path in package.glob(pattern))
    return _sha256([np.__version__, *((path.name, path.read_text(encoding="utf-8")) for path in files)])


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


# --- files ----------------------------------------------------------------------------------------------------------


@cache
def _schema() -> pa.Schema:
    """Return the columns of a row: the same for every scenario, so that a folder is one table."""
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    parameters = {name: parameter.type for name, parameter in varying().items()}
    metrics = {name: metric.kind for name, metric in METRICS.items()}
    errors = {f"se_{name}": float for name in UNSURE}
    columns = {"hash": str, **parameters, **metrics, **errors, "error": str, "model": str}
    return pa.schema([(name, kinds[kind]) for name, kind in columns.items()])


def _row(hash_: str, values: Point, run: Run | None = None, error: str | None = None) -> Row:
    said = {name: p.type(values.get(name, p.default)) for name, p in varying().items()}
    found = run.metrics.as_dict() | {f"se_{name}": run.uncertainty.get(name, 0.0) for name in UNSURE} if run else {}
    return {"hash": hash_, **said, **found, "error": error, "model": model_digest()}


def _part(rows: list[Row], ending: str = "") -> dict[str, bytes]:
    """Return the name and the content of a part file with these rows, if there are any."""
    name = _sha256([row["hash"] for row in rows])[:32]
    table = pd.DataFrame(rows, columns=_schema().names)
    return {f"{name}{ending}.parquet": table.to_parquet(None, **PARQUET, schema=_schema())} if rows else {}


def _read(folder: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    for path in sorted(folder.glob("*.parquet")):
        try:
            yield pq.read_table(path, columns=columns, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            problem = f"this is no part of a sweep, or it is damaged ({str(error).splitlines()[0]})"
            raise UserError(problem, parameter=str(path), hint="Remove it, and its scenarios run again.") from None


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        try:
            write_atomically(folder / name, content, to_stay=True)
        except OSError as error:
            hint = "Earlier rows are kept; the same sweep goes on."
            raise UserError(error.strerror or str(error), parameter=str(folder / name), hint=hint) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create and lock the folder, and remove the temporary files of a killed sweep."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / ".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            problem = "another sweep is writing there" if isinstance(error, BlockingIOError) else str(error.strerror)
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # NFS, FUSE
                raise UserError(problem, parameter=str(folder), hint="Name another folder.") from None
            text = f"{folder} cannot be locked ({problem}): do not let two sweeps write there at once"
            warnings.warn(text, stacklevel=4)
        for left in (*folder.glob(".*.tmp"), *(folder / SAMPLES).glob(".*.tmp")):
            left.unlink()
        yield


# --- workers --------------------------------------------------------------------------------------------------------


def _run(items: list[Item], samples: bool, model: str) -> Result:
    """Run scenarios one after the other, in a worker, for about `SECONDS`."""
    if model_digest() != model:
        hint = "Install the same everywhere, restart the workers and start the sweep again: it goes on."
        raise UserError("a worker has another mmlab (or numpy) than this process", hint=hint)
    began, result = time.perf_counter(), Result()
    rows: list[Row] = []
    errors: list[Row] = []
    for item in items:
        cpu = time.thread_time()
        try:
            run = simulate(Scenario(**item.values))
            row = _row(item.hash, item.values, run)
        except Exception as error:  # whatever it is: a row with its error, not the end of the sweep
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            errors.append(_row(item.hash, item.values, error=text))
        else:
            result.seconds += time.thread_time() - cpu
            rows += [row] * item.row
            if samples:
                content = run.samples.assign(hash=item.hash).to_parquet(None, **PARQUET)
                result.files[f"{SAMPLES}/{item.hash}.parquet"] = content
        result.done += 1
        if time.perf_counter() - began > SECONDS:
            break
    result.failed = len(errors)
    result.files |= _part(rows) | _part(errors, "-error")
    return result


def _drive(run: Work, items: list[Item], jobs: int, scheduler: str | None) -> Iterator[Result]:
    """Yield the results of all chunks, from new workers whenever one has died."""
    todo, deaths, stillborn = deque(items), Counter[str](), 0
    while todo:
        busy: dict[Future[Result], list[Item]] = {}
        try:
            with executor(jobs, scheduler) as pool:
                stillborn += 1
                pool.submit(os.getpid).result()
                stillborn = 0
                yield from _keep_busy(pool, run, todo, busy, deaths)
        except BrokenExecutor:
            if stillborn == DEATHS:
                hint = 'In a script, what calls sweep() must be below `if __name__ == "__main__":`.'
                raise UserError("worker processes end as soon as they start", hint=hint) from None
            for item in chain.from_iterable(busy.values()):
                deaths[item.hash] += 1
                if deaths[item.hash] < DEATHS:
                    todo.appendleft(item)
                else:
                    row = _row(item.hash, item.values, error="its worker was killed, again and again: out of memory?")
                    yield Result(1, 1, files=_part([row], "-error"))


def _keep_busy(
    pool: Executor, run: Work, todo: deque[Item], busy: dict[Future[Result], list[Item]], deaths: Counter[str]
) -> Iterator[Result]:
    """Submit chunks of `todo` until all is done, and yield their results.

    Scenarios that saw a death stand first in `todo`. They are chunks of their own; after a second death they run alone.
    """
    while todo or busy:
        room = 2 * max(1, size(pool))
        while todo:
            alone = any(deaths[chunk[0].hash] > 1 for chunk in (todo, *busy.values()))
            if len(busy) >= (1 if alone else room):
                break
            most = 1 if deaths[todo[0].hash] else min(MOST, math.ceil(len(todo) / room))
            chunk = [todo.popleft() for _ in range(most)]
            busy[pool.submit(run, chunk)] = chunk
        done = wait(busy, timeout=PATIENCE_S, return_when=FIRST_COMPLETED).done
        if not done and not size(pool):
            hint = "Earlier rows are kept; the same sweep goes on once there are some."
            raise UserError(f"the cluster has had no workers for {PATIENCE_S} s", parameter="scheduler", hint=hint)
        for future in done:
            result = future.result()
            todo.extendleft(reversed(busy.pop(future)[result.done :]))
            yield result
