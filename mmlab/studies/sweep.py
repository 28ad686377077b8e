"""Sweeps: thousands of scenarios into one folder, over all cores or a Dask cluster, that may be killed at any time.

The folder holds Parquet part files with a row a scenario: its parameters, the metrics of its run or the error that it
ended with, and ``hash``, the SHA-256 of parameters, variant, costs and model. A scenario whose row is there is not run
again, so that a sweep goes on where it was stopped, and one that grows runs only what is new. What is read as
``folder/*.parquet`` is all of it, and whole:

    duckdb -c "SELECT variant, avg(merge_rate) FROM 'folder/*.parquet' GROUP BY variant"

The samples of each run, if asked for, are in ``folder/_samples/<hash>.parquet``. A file is written beside its place,
then renamed. Rows with an error are in files of their own: remove ``folder/*-error.parquet`` to run these again.
``sweep.json`` says which grid and which model came last. Nothing in a row depends on time, order or machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import mmlab
from mmlab.engine.costs import cost_set
from mmlab.errors import UserError
from mmlab.params import write_atomically
from mmlab.report.provenance import model_digest
from mmlab.results.uncertainty import UNSURE
from mmlab.scenario import Parameter, Scenario, flat_fields
from mmlab.studies.crew import Cluster, Crew, Processes
from mmlab.studies.grid import Grid, Point

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mmlab.results.run import Run

__all__ = ["Plan", "Summary", "plan", "read_sweep", "sweep"]

FORMAT = 1
"""Of rows; part of each hash."""
MOST = 500
"""Scenarios that a worker is given at a time."""
SECONDS = 2.0
"""After which it returns what is done, and the rest of them."""
SAMPLE_BYTES = 1 << 26
"""… or after so many bytes of samples."""
MANIFEST = "sweep.json"
SAMPLES = "_samples"
"""A name that readers of whole folders of Parquet leave out."""

Row = dict[str, Any]
Grids = Grid | str | Path | Iterable[Scenario | Mapping[str, Any]]


@dataclass(frozen=True)
class Item:
    """A scenario of a sweep: its hash, what it says besides the base, and which of its results are wanted."""

    hash: str
    point: Point
    row: bool = True
    samples: bool = False


@dataclass(frozen=True)
class Plan:
    """What a sweep has to do.

    Attributes
    ----------
    base
        What all scenarios have.
    scenarios
        How many different ones there are.
    items
        Those to be run.
    invalid
        Rows of those that are not possible, which are not in the folder yet.
    failed
        How many have a row with an error there.
    """

    base: Point
    scenarios: int
    items: list[Item]
    invalid: list[Row]
    failed: int

    @property
    def there(self) -> int:
        """Scenarios that are in the folder."""
        return self.scenarios - len(self.items) - len(self.invalid)


@dataclass
class Summary:
    """What a sweep came to: scenarios in all, those that were there before, those that ran now; rows with errors."""

    scenarios: int
    there: int
    ran: int
    failed: int
    seconds: float = 0.0
    """Wall-clock time."""
    simulated_s: float = 0.0
    """CPU time of the simulations and their metrics."""


def sweep(
    grid: Grids,
    folder: str | Path,
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    samples: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Run every scenario whose row is not in the folder yet.

    Parameters
    ----------
    grid
        A `Grid` or its file, or scenarios one by one.
    folder
        Where rows go; made if need be. One sweep at a time writes there.
    jobs
        Worker processes on this machine; default: one a core. Like all of `concurrent.futures` they need a program
        whose top level is below ``if __name__ == "__main__":``.
    scheduler
        Address of a Dask scheduler, tcp://host:port, whose workers do it instead: with the same mmlab, and no need to
        see the folder.
    samples
        Keep also the table of samples of each run.
    progress
        Called with scenarios done and scenarios in all: first with those that were there.

    Returns
    -------
    Summary
        `failed` counts the scenarios whose row says an error: impossible parameters, an exception, or a worker that
        died `DEATHS` times of it.

    Raises
    ------
    UserError
        The grid is wrong, none of its scenarios is possible, or there is no folder, scheduler or worker to be had.
    """
    began, folder = time.perf_counter(), Path(folder)
    with _locked(folder), ExitStack() as ending:
        crew: Crew = Cluster(scheduler) if scheduler else Processes(jobs or len(os.sched_getaffinity(0)))
        ending.callback(crew.close)
        found = _plan(grid, folder, samples)  # while the workers begin
        _write(folder / MANIFEST, _manifest(grid))
        if found.invalid:
            _write(*_part(folder, found.invalid, "-error"))
        summary = Summary(found.scenarios, found.there, 0, found.failed + len(found.invalid))
        done = found.there + len(found.invalid)
        if progress:
            progress(done, found.scenarios)
        for result in _drive(crew, found.base, found.items):
            for name, content in result.files.items():
                _write(folder / name, content)
            summary.ran += result.done
            summary.failed += result.failed
            summary.simulated_s += result.seconds
            if progress:
                progress(done + summary.ran, found.scenarios)
    summary.seconds = time.perf_counter() - began
    return summary


def plan(grid: Grids, folder: str | Path, *, samples: bool = False) -> Plan:
    """What `sweep` would do; runs and writes nothing."""
    return _plan(grid, Path(folder), samples)


def read_sweep(folder: str | Path, *, all_models: bool = False) -> pd.DataFrame:
    """All rows of a sweep's folder, in order of their parameters.

    Parameters
    ----------
    folder
        What `sweep` wrote.
    all_models
        Also the rows of models other than the last one that wrote there; see column ``model``.

    Raises
    ------
    UserError
        There is no sweep, or a file is damaged.
    """
    import pyarrow as pa

    folder = Path(folder)
    try:
        model = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{folder}: there is no sweep in it (no {MANIFEST}): name the folder of `mmlab sweep -o`"
        ) from None
    tables = [table for _, table in _parts(folder)]
    if not tables:
        return _schema().empty_table().to_pandas()
    rows = pa.concat_tables(tables, promote_options="default").to_pandas()
    rows = rows if all_models else rows[rows["model"] == model]
    order = [*(name for name in _parameters() if name in rows), "hash"]
    return rows.drop_duplicates("hash").sort_values(order, ignore_index=True)


# --- what is to be done ---------------------------------------------------------------------------------------------


def _points(grid: Grids) -> tuple[Point, list[Point]]:
    """What all scenarios have, and what each has besides."""
    grid = Grid.load(grid) if isinstance(grid, (str, Path)) else grid
    if isinstance(grid, Grid):
        return grid.base, grid.points()
    return {}, [{n: getattr(s, n) for n in s.model_fields_set} if isinstance(s, Scenario) else dict(s) for s in grid]


def _there(folder: Path) -> dict[str, str | None]:
    """Hash and error of each row that is in the folder; the hash says of which model it is."""
    return {
        hash_: error
        for _, table in _parts(folder, ["hash", "error"])
        for hash_, error in zip(*(column.to_pylist() for column in table.columns), strict=True)
    }


def _sampled(folder: Path) -> set[str]:
    """Hashes of scenarios whose samples are in the folder."""
    return {path.stem for path in (folder / SAMPLES).glob("*.parquet")}


def _plan(grid: Grids, folder: Path, samples: bool) -> Plan:
    (base, points), there, sampled = _points(grid), _there(folder), _sampled(folder)
    # of the same memory one after the other: its contents are made once, which is half of what a small run takes
    memory = [name for name, p in flat_fields().items() if p.kind == "workload"]
    points.sort(key=lambda point: [str(point[name]) for name in memory if name in point])
    items: dict[str, Item] = {}
    invalid: dict[str, Row] = {}
    failed: set[str] = set()
    seen: set[str] = set()
    costs: dict[str, str] = {}
    for point in points:
        hash_, error = _check({**base, **point}, costs)
        seen.add(hash_)
        if there.get(hash_):
            failed.add(hash_)
        elif error is not None:
            invalid[hash_] = _row(hash_, {**base, **point}, error=error)
        elif hash_ not in there or (samples and hash_ not in sampled):
            items[hash_] = Item(hash_, point, hash_ not in there, samples and hash_ not in sampled)
    if invalid and len(invalid) == len(seen):
        raise UserError(f"none of these scenarios is possible. The first: {next(iter(invalid.values()))['error']}")
    return Plan(base, len(seen), list(items.values()), list(invalid.values()), len(failed))


def _check(values: Point, costs: dict[str, str]) -> tuple[str, str | None]:
    """A scenario's hash, and what is wrong with it, if anything; `costs` has the digests of cost sets seen so far."""
    try:
        scenario, error = Scenario(**values), None
        if scenario.costs not in costs:  # what they say matters, not their name
            found = cost_set(scenario.costs)
            numbers = [found.ns.tolist(), found.estimated, found.covariance.tolist(), found.error]
            costs[scenario.costs] = hashlib.sha256(json.dumps(numbers).encode()).hexdigest()
        said = f"{costs[scenario.costs]} {scenario.model_dump_json(exclude={'name', 'costs'})}"
    except UserError as wrong:
        said, error = json.dumps(values, sort_keys=True, default=str), str(wrong)
    return hashlib.sha256(f"{FORMAT} {model_digest()} {said}".encode()).hexdigest(), error


def _manifest(grid: Grids) -> bytes:
    if isinstance(grid, (str, Path)):
        grid = Grid.load(grid)
    said = grid.model_dump(mode="json") if isinstance(grid, Grid) else None
    about = {"mmlab": mmlab.__version__, "model": model_digest(), "grid": said}
    return (json.dumps(about, indent=1) + "\n").encode()


# --- files ----------------------------------------------------------------------------------------------------------


@cache
def _parameters() -> dict[str, Parameter]:
    """All that a row says of its scenario."""
    return {name: parameter for name, parameter in flat_fields().items() if name != "name"}


@cache
def _schema() -> pa.Schema:
    """Of a row: the same for every scenario, so that a folder is one table."""
    import pyarrow as pa

    from mmlab.results.run import Metrics

    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    found = {name: (get_args(hint) or (hint,))[0] for name, hint in get_type_hints(Metrics).items()}
    parameters = {name: parameter.type for name, parameter in _parameters().items()}
    errors = {f"se_{name}": float for name in UNSURE}
    columns = {"hash": str, **parameters, **found, **errors, "error": str, "model": str}
    return pa.schema([(name, kinds[kind]) for name, kind in columns.items()])


def _row(hash_: str, values: Point, run: Run | None = None, error: str | None = None) -> Row:
    said = {name: p.type(values.get(name, p.default)) for name, p in _parameters().items()}
    found = vars(run.metrics) | {f"se_{name}": run.uncertainty.get(name, 0.0) for name in UNSURE} if run else {}
    return {"hash": hash_, **said, **found, "error": error, "model": model_digest()}


def _parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _part(folder: Path, rows: list[Row], ending: str = "") -> tuple[Path, bytes]:
    """A part file with these rows: its name, which says what is in it, and its content."""
    import pyarrow as pa

    name = hashlib.sha256("".join(row["hash"] for row in rows).encode()).hexdigest()[:32]
    return folder / f"{name}{ending}.parquet", _parquet(pa.Table.from_pylist(rows, _schema()))


def _parts(folder: Path, columns: list[str] | None = None) -> Iterator[tuple[Path, pa.Table]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")):
        try:
            yield path, pq.read_table(path, columns=columns, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            what = str(error).splitlines()[0]
            raise UserError(
                f"{path}: this is no part of a sweep, or it is damaged ({what}): remove it, and its scenarios run again"
            ) from None


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, and to stay."""
    try:
        write_atomically(path, content, to_stay=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; what was written before is kept, the same sweep goes on") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder is ours: it is made, and what a killed sweep left unfinished is removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: name another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another sweep is writing there: wait for its end, or name another folder"
            ) from None
        for left in (*folder.glob(".*.tmp"), *(folder / SAMPLES).glob(".*.tmp")):
            left.unlink()
        yield


# --- in a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a worker is given."""

    base: Point
    items: list[Item]
    model: str


@dataclass
class Result:
    """What it gives back: how many of the items it has done, how many failed, CPU time in simulations, and files."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    files: dict[str, bytes] = field(default_factory=dict)


def _run(task: Task) -> Result:
    """Run a task's items, one after the other, for about `SECONDS`."""
    from mmlab.engine.clock import simulate

    if model_digest() != task.model:
        raise UserError(
            "a worker has another mmlab (or numpy) than this process: install the same everywhere, restart "
            "the workers, and start the sweep again: it goes on"
        )
    began, result, size = time.perf_counter(), Result(), 0
    rows: list[Row] = []
    errors: list[Row] = []
    for item in task.items:
        values, cpu = {**task.base, **item.point}, time.thread_time()
        try:
            run = simulate(Scenario(**values))
            run.metrics, run.uncertainty  # noqa: B018
        except Exception as error:  # whatever it is: a row with its error, not the end of the sweep
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            errors.append(_row(item.hash, values, error=text))
        else:
            result.seconds += time.thread_time() - cpu
            if item.samples:
                content = _samples(item.hash, run)
                result.files[f"{SAMPLES}/{item.hash}.parquet"] = content
                size += len(content)
            if item.row:
                rows.append(_row(item.hash, values, run))
        result.done += 1
        if time.perf_counter() - began > SECONDS or size > SAMPLE_BYTES:
            break
    result.failed = len(errors)
    for found, ending in ((rows, ""), (errors, "-error")):
        if found:
            path, content = _part(Path(), found, ending)
            result.files[path.name] = content
    return result


def _samples(hash_: str, run: Run) -> bytes:
    import pyarrow as pa

    columns = run.samples
    columns.insert(0, "hash", hash_)
    return _parquet(pa.Table.from_pandas(columns, preserve_index=False))


# --- workers ----------------------------------------------------------------------------------------------------------


def _drive(crew: Crew, base: Point, items: list[Item]) -> Iterator[Result]:
    """Keep the crew busy until all is done.

    A task whose worker died is tried again in two halves, and so on, until the scenario is alone that kills workers.
    """
    todo, suspects = deque(items), deque[list[Item]]()
    deaths: Counter[str] = Counter()
    busy: dict[Future[Result], tuple[list[Item], bool]] = {}
    while todo or suspects or busy:
        for _ in range(crew.room()):
            if suspects:
                chunk, suspect = suspects.popleft(), True
            elif todo:
                most = min(MOST, math.ceil(len(todo) / (2 * crew.workers())))
                chunk, suspect = [todo.popleft() for _ in range(most)], False
            else:
                break
            busy[crew.submit(_run, Task(base, chunk, model_digest()))] = chunk, suspect
        for future in wait(busy, timeout=10, return_when=FIRST_COMPLETED).done:
            chunk, suspect = busy.pop(future)
            crew.done(future)
            try:
                result = future.result()
            except crew.died:
                deaths[chunk[0].hash] += len(chunk) == 1
                if len(chunk) > 1:
                    suspects.extend((chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]))
                elif deaths[chunk[0].hash] < crew.tries:
                    suspects.append(chunk)
                else:
                    yield _killer(base, chunk[0])
                continue
            yield result
            if rest := chunk[result.done :]:
                if suspect:
                    suspects.appendleft(rest)
                else:
                    todo.extendleft(reversed(rest))


def _killer(base: Point, item: Item) -> Result:
    text = "its worker was killed, again and again, perhaps for want of memory"
    path, content = _part(Path(), [_row(item.hash, {**base, **item.point}, error=text)], "-error")
    return Result(1, 1, 0.0, {path.name: content})
