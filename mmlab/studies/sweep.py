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

import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import mmlab
from mmlab.engine.costs import CostSet, cost_set
from mmlab.errors import UserError
from mmlab.kernel.jit import warm_up
from mmlab.limits import cpus
from mmlab.params import locked, write_atomically
from mmlab.results.metrics import METRICS, UNSURE
from mmlab.results.run import Run
from mmlab.scenario import Scenario, flat_fields
from mmlab.studies.fleet import Host
from mmlab.studies.grid import Grid, Point, varying
from mmlab.workers import Progress, executor, size

FORMAT = 1
"""Version of the rows; part of each hash."""
MODEL = ("scenario.py", "variants.py", "policies.py", "kernel/*.py", "engine/*.py", "results/*.py")
"""The sources that decide the results of a run. Costs are data and not among them."""
MOST = 500
"""Scenarios in a chunk at most."""
SECONDS = 2.0
"""Time after which a worker returns the finished part of its chunk."""
DEATHS = 5
"""Deaths of workers after which a scenario that was under way is given up; before the last three it was alone."""
PATIENCE_S = 60
"""Time that a cluster may be without workers."""
MANIFEST, SAMPLES = "sweep.json", "_samples"
"""Within the folder; the latter is a name that readers of whole folders of Parquet leave out."""
SMALLER = "simulate_mib"
PARQUET: dict[str, Any] = {"compression": "zstd", "index": False}
ANOTHER = "Name another folder."
RESUMES = "Earlier rows are kept; the same sweep resumes."

Grids = Grid | str | Path | Iterable[Scenario | Mapping[str, Any]]


class Item(NamedTuple):
    """A scenario that has to run.

    Attributes
    ----------
    hash, values
        Its hash and its parameters; ``simulate_mib`` among them if it is simulated in that much memory.
    error
        The reason why it is impossible, if it is.
    row
        Whether its row is wanted, or only its samples.
    """

    hash: str
    values: Point
    error: str | None = None
    row: bool = True


@dataclass
class Summary:
    """A sweep, planned or done.

    Attributes
    ----------
    scenarios
        Number of different scenarios.
    items
        Those that had no row in the folder, or had no samples there although samples are wanted.
    ran
        Number of `items` that are done.
    failed
        Number of rows with an error.
    seconds, simulated_s
        Wall-clock time; and CPU time of the simulations and their metrics.
    """

    scenarios: int
    items: list[Item]
    failed: int
    ran: int = 0
    seconds: float = 0.0
    simulated_s: float = 0.0

    @property
    def there(self) -> int:
        """Number of scenarios for which nothing had to be done."""
        return self.scenarios - len(self.items)

    @property
    def impossible(self) -> list[str]:
        """The error of each of the `items` that are impossible."""
        return [item.error for item in self.items if item.error]


class Result(NamedTuple):
    """The result of a chunk: scenarios done, those that failed, CPU time of the simulations, files to write."""

    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    files: Mapping[str, bytes] = {}


Work = Callable[[list[Item]], Result]
Busy = dict[Future[Result], list[Item]]
"""Chunks under way."""


def sweep(
    grid: Grids,
    folder: str | Path,
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    samples: bool = False,
    progress: Progress = None,
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
        first = Result(files={MANIFEST: f"{json.dumps(about, indent=1)}\n".encode()})
        if summary.items and not scheduler:
            warm_up()  # otherwise every worker would compile
        run = partial(_run, samples=samples, model=model_digest())
        for result in chain([first], _drive(run, summary.items, jobs or cpus(), scheduler)):
            for name, content in result.files.items():
                with _user_errors(folder / name, RESUMES):
                    write_atomically(folder / name, content, to_stay=True)
            summary.ran += result.done
            summary.failed += result.failed
            summary.simulated_s += result.seconds
            if progress:
                progress(summary.there + summary.ran, summary.scenarios, f"{summary.failed} with errors")
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
    with _user_errors(folder, "Name the folder of `mmlab sweep -o`.", f"there is no sweep in it (no whole {MANIFEST})"):
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    rows = _read(folder).to_pandas()
    rows = rows if all_models else rows[rows["model"] == about["model"]]
    return rows.drop_duplicates("hash").sort_values([*varying(), "hash"], ignore_index=True)


def plan(grid: Grids, folder: str | Path, *, samples: bool = False) -> Summary:
    """Return the work that `sweep` would do; run and write nothing."""
    folder = Path(folder)
    there = dict(zip(*_read(folder, ["hash", "error"]).to_pydict().values(), strict=True))
    sampled = {path.stem for path in (folder / SAMPLES).glob("*.parquet")}
    asked = {item.hash: item for item in map(_identify, _scenarios(grid))}
    items = [item for name, item in asked.items() if name not in there]
    if samples:
        unsampled = {name for name, error in there.items() if error is None} - sampled
        items += [asked[name]._replace(row=False) for name in asked if name in unsampled]
    summary = Summary(len(asked), items, failed=sum(there.get(name) is not None for name in asked))
    if len(summary.impossible) == summary.scenarios > 0:
        raise UserError(f"none of these scenarios is possible. The first: {summary.impossible[0]}")
    return summary


def _scenarios(grid: Grids) -> list[Point]:
    """Return the parameters of each scenario, ordered by its memory."""
    grid = Grid.load(grid) if isinstance(grid, (str, Path)) else grid
    if isinstance(grid, Grid):
        smaller = {SMALLER: grid.simulate_mib} if grid.simulate_mib else {}
        found = [{**grid.base, **point, **smaller} for point in grid.points()]
    else:
        found = [{n: getattr(s, n) for n in s.model_fields_set} if isinstance(s, Scenario) else dict(s) for s in grid]
    # Contents of equal memory are made once where such runs follow each other: half of the time of a small run.
    memory = [name for name, parameter in flat_fields().items() if parameter.kind == "workload"]
    return sorted(found, key=lambda values: [str(values.get(name)) for name in memory])


def _identify(values: Point) -> Item:
    """Return a scenario with its hash, or with its mistake and a hash of what was given."""
    said: list[Any] = [values]
    error = None
    try:
        host = _host(values)
        said = [_cost_digest(cost_set(host.scenario.costs)), host.scenario.model_dump_json(exclude={"name", "costs"})]
        said += [values] * (host.factor > 1)  # several hosts may be alike once they are smaller
    except UserError as wrong:
        error = str(wrong)
    return Item(_sha256([FORMAT, model_digest(), *said]), values, error)


def _host(values: Point) -> Host:
    """Return the host that has these parameters."""
    return Host.of(Scenario(**{n: v for n, v in values.items() if n != SMALLER}), values.get(SMALLER))


@lru_cache(maxsize=16)
def _cost_digest(costs: CostSet) -> str:
    """Return the SHA-256 of a cost set's numbers: they matter, not its name."""
    return _sha256([costs.ns.tolist(), costs.estimated, costs.covariance.tolist(), costs.error])


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
    columns = {"hash": str, **parameters, **metrics, **errors, "simulated_share": float, "error": str, "model": str}
    return pa.schema([(name, kinds[kind]) for name, kind in columns.items()])


def _row(item: Item, host: Host | None = None, run: Run | None = None, error: str | None = None) -> dict[str, Any]:
    """Return a scenario's parameters, with the metrics of its run and their standard errors, or with its error."""
    said = {name: p.type(item.values.get(name, p.default)) for name, p in varying().items()}
    found: dict[str, Any] = {}
    if host and run:
        errors = host.true_size({name: run.uncertainty.get(name, 0.0) for name in UNSURE})
        found = host.true_size(run.metrics.as_dict()) | {f"se_{name}": error for name, error in errors.items()}
        found["simulated_share"] = 1 / host.factor
    return {"hash": item.hash, **said, **found, "error": error, "model": model_digest()}


def _part(rows: list[dict[str, Any]], ending: str = "") -> dict[str, bytes]:
    """Return the name and the content of a part file with these rows, if there are any."""
    name = _sha256([row["hash"] for row in rows])[:32]
    table = pd.DataFrame(rows, columns=_schema().names)
    return {f"{name}{ending}.parquet": table.to_parquet(None, **PARQUET, schema=_schema())} if rows else {}


def _read(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """Return all part files as one table; a part of an older model may lack columns, or have others."""
    tables = [_schema().empty_table().select(columns or _schema().names)]
    for path in sorted(folder.glob("*.parquet")):
        with _user_errors(path, "Remove it, and its scenarios run again.", "is no part of a sweep, or it is damaged"):
            tables.append(pq.read_table(path, columns=columns, partitioning=None))
    return pa.concat_tables(tables, promote_options="default")


@contextmanager
def _user_errors(path: Path, hint: str, problem: str = "") -> Iterator[None]:
    """Raise an error of a file or folder as a `UserError`, with this hint and, if given, this problem."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(problem or str(getattr(error, "strerror", error)), parameter=str(path), hint=hint) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create and lock the folder, and remove the temporary files of a killed sweep."""
    with ExitStack() as stack:
        with _user_errors(folder, ANOTHER):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        with _user_errors(folder, ANOTHER, "another sweep is writing there"):
            stack.enter_context(locked(folder / ".lock", wait=False))
        for left in folder.rglob(".*.tmp"):
            left.unlink()
        yield


# --- workers --------------------------------------------------------------------------------------------------------


def _run(items: list[Item], samples: bool, model: str) -> Result:
    """Run scenarios one after the other, in a worker, for about `SECONDS`."""
    if model_digest() != model:
        hint = "Install the same everywhere, restart the workers and start the sweep again: it resumes."
        raise UserError("a worker has another mmlab (or numpy) than this process", hint=hint)
    began, done, seconds, rows, errors, files = time.perf_counter(), 0, 0.0, [], [], {}
    for item in items:
        cpu = time.thread_time()
        try:
            host = _host(item.values)
            run = host.simulate()
            row = _row(item, host, run)
        except Exception as error:  # whatever it is: a row with its error, not the end of the sweep
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            errors.append(_row(item, error=text))
        else:
            seconds += time.thread_time() - cpu
            rows += [row] * item.row
            if samples:
                content = run.samples.assign(hash=item.hash).to_parquet(None, **PARQUET)
                files[f"{SAMPLES}/{item.hash}.parquet"] = content
        done += 1
        if time.perf_counter() - began > SECONDS:
            break
    return Result(done, len(errors), seconds, files | _part(rows) | _part(errors, "-error"))


def _drive(run: Work, items: list[Item], jobs: int, scheduler: str | None) -> Iterator[Result]:
    """Yield the results of all chunks, from new workers whenever one has died."""
    todo, deaths, stillborn = deque(items), Counter[str](), 0
    while todo:
        busy: Busy = {}
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
                    row = _row(item, error="its worker was killed, again and again: out of memory?")
                    yield Result(1, 1, files=_part([row], "-error"))


def _keep_busy(pool: Executor, run: Work, todo: deque[Item], busy: Busy, deaths: Counter[str]) -> Iterator[Result]:
    """Submit chunks of `todo` until all is done, and yield their results.

    Scenarios that saw a death stand first in `todo`. They are chunks of their own; after a second death they run alone.
    """

    def suspected() -> bool:
        return any(deaths[chunk[0].hash] > 1 for chunk in (todo, *busy.values()))

    while todo or busy:
        room = 2 * max(1, size(pool))
        while todo and len(busy) < (1 if suspected() else room):
            most = 1 if deaths[todo[0].hash] else min(MOST, -(-len(todo) // room))
            chunk = [todo.popleft() for _ in range(most)]
            busy[pool.submit(run, chunk)] = chunk
        done = wait(busy, timeout=PATIENCE_S, return_when=FIRST_COMPLETED).done
        if not done and not size(pool):
            raise UserError(f"the cluster has had no workers for {PATIENCE_S} s", parameter="scheduler", hint=RESUMES)
        for future in done:
            result = future.result()
            todo.extendleft(reversed(busy.pop(future)[result.done :]))
            yield result
