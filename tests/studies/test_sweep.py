"""Grids and sweeps: what they run, that nothing is run twice, and that nothing is lost whoever is killed.

MMLAB_KILLS says how many kills there are of parents and workers (3; `make nightly`: 10).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

import mmlab
from mmlab import Scenario, cli, read_sweep, simulate, sweep
from mmlab.errors import UserError
from mmlab.results.metrics import UNSURE, Metrics
from mmlab.studies import sweep as sweeps
from mmlab.studies.grid import Grid, varying
from mmlab.studies.sweep import Item, Result, model_digest

KILLS = int(os.environ.get("MMLAB_KILLS") or 3)
TINY = {"memory_mib": 2, "zero_fraction": 0.5, "duplicate_fraction": 0.5, "pages_to_scan": 200, "horizon_full_scans": 3}
LONG = 300
"""Seconds that nothing here takes, however busy the machine is."""
MMLAB = [sys.executable, "-c", "from mmlab.cli import main; main()"]


# -- grids ----------------------------------------------------------------------------------------------------------


def test_a_full_grid_is_every_combination() -> None:
    grid = Grid(
        vary={
            "variant": ["mainline", "legacy"],
            "thp_coverage": {"low": 0, "high": 0.3, "step": 0.1},
            "pages_to_scan": {"low": 10, "high": 1000, "count": 5, "log": True},
        }
    )
    points = grid.points()
    assert len(points) == 2 * 4 * 5
    assert len({tuple(point.values()) for point in points}) == len(points)
    assert sorted({p["thp_coverage"] for p in points}) == [0.0, 0.1, 0.2, 0.3], "as they would be written"
    assert sorted({p["pages_to_scan"] for p in points}) == [10, 32, 100, 316, 1000]
    assert all(isinstance(p["pages_to_scan"], int) for p in points)
    assert Grid(vary={"max_ptes_none": {"low": 0, "high": 1, "count": 5}}).points() == [
        {"max_ptes_none": 0},
        {"max_ptes_none": 1},
    ]
    assert Grid().points() == [{}]


def test_numbers_of_a_grid_may_have_units() -> None:
    grid = Grid(
        base={"horizon_seconds": "2m"},
        vary={"memory_mib": ["64M", "1G"], "sleep_millisecs": {"low": 10, "high": "1s", "count": 3, "log": True}},
    )
    assert grid.base == {"horizon_seconds": 120}
    assert [tuple(point.values()) for point in grid.points()] == [(m, s) for m in (64, 1024) for s in (10, 100, 1000)]
    for wrong, words in (({"memory_mib": ["64h"]}, "Write it in MiB"), ({"pages_shared": [1]}, "is a counter")):
        with pytest.raises(UserError, match=words):
            Grid(vary=wrong)


AXES = {
    "thp_coverage": {"low": 0, "high": 1},
    "pages_to_scan": {"low": 10, "high": 10_000, "log": True},
    "max_ptes_none": {"low": 1, "high": 4},
    "zero_fraction": {"low": 0, "high": 1, "count": 4},
    "variant": ["mainline", "legacy"],
}


@pytest.mark.parametrize("design", ["latin_hypercube", "sobol"])
def test_sampled_designs_fill_every_axis_evenly(design: str) -> None:
    points = pd.DataFrame(Grid(vary=AXES, design=design, samples=64, seed=3).points())
    assert np.bincount((points["thp_coverage"] * 64).astype(int), minlength=64).tolist() == [1] * 64
    decades = np.log10(points["pages_to_scan"] + 0.5)
    assert decades.between(1, 4.01).all()
    assert np.bincount(decades.astype(int), minlength=4)[1:].min() >= 20
    for name, values in {"max_ptes_none": 4, "zero_fraction": 4, "variant": 2}.items():
        assert points[name].value_counts().tolist() == [64 // values] * values
    again, other = (Grid(vary=AXES, design=design, samples=64, seed=seed).points() for seed in (3, 4))
    assert again == points.to_dict("records") != other


def test_a_sobol_design_grows() -> None:
    small, large = (Grid(vary=AXES, design="sobol", samples=n).points() for n in (32, 64))
    assert large[:32] == small


RANGE = {"low": 1, "high": 9}
TOO_MANY = {n: {"low": 1, "high": 2e3, "step": 1} for n in ("seed", "pages_to_scan")}


@pytest.mark.parametrize(
    ("said", "where", "parameter", "value", "way_out"),
    [
        ({"bas": {}}, "", "key", "bas", "base"),
        ({"base": {"memory": 4}}, "base", "key", "memory", "memory_mib"),
        ({"base": {"memory_mib": 0}}, "base", "memory_mib", 0, "at least 1"),
        ({"base": {"params": "all_zeros"}}, "base", "params file", "all_zeros", "all_zero"),
        ({"base": {"params": 5}}, "base", "params file", "5", "one of params/"),
        ({"vary": {"pages_to_scna": [1]}}, "vary", "parameter", "pages_to_scna", "pages_to_scan"),
        ({"vary": {"pages_to_scan": [100, -1]}}, "vary", "pages_to_scan", -1, "0"),
        ({"vary": {"pages_to_scan": 100}}, "vary", "pages_to_scan", 100, "a list such as"),
        ({"vary": {"pages_to_scan": []}}, "vary", "pages_to_scan", [], "a list such as"),
        ({"vary": {"pages_to_scan": [[1]]}}, "vary", "pages_to_scan", [1], ""),
        ({"vary": {"pages_to_scan": RANGE}}, "vary", "pages_to_scan", None, "count: 5"),
        ({"vary": {"pages_to_scan": {**RANGE, "lo": 1}}}, "vary: pages_to_scan", "key", "lo", "low"),
        ({"vary": {"pages_to_scan": {"high": 9}}}, "vary: pages_to_scan", "low", None, "missing"),
        ({"vary": {"pages_to_scan": {**RANGE, "count": 1}}}, "vary: pages_to_scan", "count", 1, "2"),
        ({"vary": {"pages_to_scan": {**RANGE, "high": 1}}}, "vary: pages_to_scan", "low", 1, "below high = 1"),
        ({"vary": {"seed": {"low": 0, "high": 9, "count": 3, "log": True}}}, "vary: seed", "low", 0, "above 0"),
        ({"vary": {"seed": {**RANGE, "count": 3, "step": 1}}}, "vary: seed", "step", 1, "neither count nor log"),
        ({"vary": {"seed": {**RANGE, "step": 1e-9}}}, "vary: seed", "step", 1e-9, "1,000,000"),
        ({"vary": {"thp_coverage": {"low": 0, "high": 2, "count": 3}}}, "vary", "thp_coverage", 2, ""),
        ({"vary": {"variant": ["v1-serie"]}}, "vary", "variant", "v1-serie", "v1-series"),
        ({"vary": {"variant": RANGE}}, "vary", "variant", RANGE, "a list such as ['mainline']"),
        ({"vary": {"costs": ["fre"]}}, "vary", "cost set", "fre", "free"),
        ({"vary": {"name": ["a"]}}, "vary", "parameter", "name", "unknown"),
        ({"design": "sobl"}, "", "design", "sobl", "'full', 'latin_hypercube' or 'sobol'"),
        ({"vary": AXES, "design": "sobol"}, "", "samples", None, "sobol"),
        ({"vary": AXES, "design": "sobol", "samples": 100}, "", "samples", 100, "64 or 128"),
        ({"vary": {"seed": [1]}, "samples": 4}, "", "samples", 4, "latin_hypercube and sobol"),
        ({"vary": TOO_MANY}, "", "combinations", 4_000_000, "at most 1,000,000"),
    ],
)
def test_a_mistake_in_a_grid(said: dict[str, Any], where: str, parameter: str, value: object, way_out: str) -> None:
    with pytest.raises(UserError) as found:
        Grid(**said)
    error = found.value
    assert (error.where, error.parameter, error.value) == (where, parameter, value)
    assert way_out in str(error)


def test_a_grid_file_names_a_params_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("pages_to_scan: 7\nseed: 3\n")
    (tmp_path / "grid.yaml").write_text("base: {params: mine.yaml, seed: 4}\nvary: {smart_scan: [0, 1]}\n")
    grid = Grid.load(tmp_path / "grid.yaml")
    assert grid.base == {"pages_to_scan": 7, "seed": 4}
    (tmp_path / "grid.yaml").write_text("base: mine\n")
    with pytest.raises(UserError) as found:
        Grid.load(tmp_path / "grid.yaml")
    assert (found.value.where, found.value.value) == (f"{tmp_path / 'grid.yaml'}: base", "mine")
    with pytest.raises(UserError, match="budget_and_thps"):
        Grid.load("budget_and_thp")


def test_the_shipped_grids_are_possible(root: Path, tmp_path: Path) -> None:
    files = sorted((root / "params" / "grids").glob("*.yaml"))
    assert files
    explained = (root / "params" / "README.md").read_text(encoding="utf-8")
    for file in files:
        found = sweeps.plan(file.stem, tmp_path)
        assert found.items
        assert not found.impossible
        assert f"`grids/{file.name}`" in explained


def test_large_hosts_in_less_memory(tmp_path: Path) -> None:
    """Rows are of the whole host, whatever it is simulated in; a scenario that is small enough is simulated whole."""
    host = {"zero_fraction": 0.5, "use_zero_pages": 1, "layout": "random", "pages_to_scan": 1000, "horizon_seconds": 20}
    vary = {"memory_mib": [16, 128]}
    whole, small = (Grid(base=host, vary=vary, simulate_mib=mib) for mib in (None, 16))
    for name, grid in (("whole", whole), ("small", small)):
        assert sweep(grid, tmp_path / name, jobs=1).failed == 0
    rows, other = (read_sweep(tmp_path / name) for name in ("whole", "small"))
    assert list(other["simulated_share"]) == [1, 1 / 8] and (rows["simulated_share"] == 1).all()
    assert (other["memory_mib"] == rows["memory_mib"]).all() and len({*rows["hash"], *other["hash"]}) == 3
    assert other["freed_mib"][1] == pytest.approx(rows["freed_mib"][1], rel=0.05) == pytest.approx(64, rel=0.05)
    for name in ("thps_split", "ksmd_cpu_percent", "full_scans", "se_ksmd_cpu_ms"):
        assert other[name][1] == pytest.approx(rows[name][1], rel=0.2), name
    assert len(sweeps.plan(Grid(base=host, vary=vary, simulate_mib=32), tmp_path / "small").items) == 1
    summary = sweeps.plan([{**host, "memory_mib": 128, "simulate_mib": 1}, TINY], tmp_path / "other")
    assert "simulate_mib = 1" in summary.impossible[0]


# -- rows -----------------------------------------------------------------------------------------------------------


class Here(Executor):
    """One worker in this process."""

    _max_workers = 1

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future


@contextmanager
def open_here(jobs: int, scheduler: str | None = None) -> Iterator[Executor]:
    yield Here()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "executor", open_here)


@pytest.fixture(scope="module")
def grid() -> Grid:
    """Four scenarios that run, and four that are impossible."""
    return Grid(base=TINY, vary={"use_zero_pages": [0, 1], "seed": [0, 1], "memory_mib": [2, 1]})


@pytest.fixture(scope="module")
def swept(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sweeps.Summary]:
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "executor", open_here)
        return folder, sweep(grid, folder, samples=True)


def test_a_row_holds_the_parameters_and_metrics_of_its_run(grid: Grid, swept: tuple[Path, sweeps.Summary]) -> None:
    folder, summary = swept
    assert (summary.scenarios, summary.there, summary.ran, summary.failed) == (8, 0, 8, 4)
    rows = read_sweep(folder)
    assert len(rows) == 8
    assert not set(varying()) & set(Metrics.describe())
    for row in rows.to_dict("records"):
        values = {name: row[name] for name in ("use_zero_pages", "seed", "memory_mib")}
        if row["memory_mib"] == 1:
            assert row["error"].startswith("memory_mib = 1 is not whole THPs")
            assert pd.isna(row["freed_mib"])
            continue
        scenario = Scenario(**TINY | values)
        run = simulate(scenario)
        found = {name: None if pd.isna(row[name]) else row[name] for name in run.metrics.as_dict()}
        assert found == run.metrics.as_dict()
        assert {name: row[f"se_{name}"] for name in UNSURE} == dict.fromkeys(UNSURE, 0.0) | run.uncertainty
        assert pd.isna(row["error"])
        assert {n: row[n] for n in varying()} == {n: getattr(scenario, n) for n in varying()}
        samples = pd.read_parquet(folder / "_samples" / f"{row['hash']}.parquet")
        assert (samples.pop("hash") == row["hash"]).all()
        pd.testing.assert_frame_equal(samples, run.samples)
    assert rows["use_zero_pages"].is_monotonic_increasing, "in order of their parameters"


def test_the_folder_is_one_table_to_others(swept: tuple[Path, sweeps.Summary]) -> None:
    """For DuckDB as the documentation says it, and for whoever reads all Parquet of a folder."""
    import duckdb

    folder, _ = swept
    rows = read_sweep(folder)
    found = duckdb.sql(f"SELECT use_zero_pages, max(merge_rate) FROM '{folder}/*.parquet' GROUP BY ALL ORDER BY ALL")
    assert found.fetchall() == list(rows.groupby("use_zero_pages")["merge_rate"].max().items())
    joined = duckdb.sql(f"SELECT count(*) FROM '{folder}/*.parquet' JOIN '{folder}/_samples/*.parquet' USING (hash)")
    total = sum(pq.read_metadata(path).num_rows for path in (folder / "_samples").iterdir())
    assert joined.fetchall() == [(total,)]
    assert ds.dataset(folder, format="parquet", exclude_invalid_files=True).count_rows() == len(rows)


@pytest.mark.usefixtures("here")
def test_only_what_is_new_is_run(grid: Grid, swept: tuple[Path, sweeps.Summary]) -> None:
    folder, _ = swept
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    again = sweep(grid, folder, jobs=1, samples=True)
    assert (again.there, again.ran, again.failed) == (8, 0, 4)
    said = sweeps.plan(Grid(base={**TINY, "name": "other", "run": 1}, vary={"seed": [0, 1]}), folder)
    assert said.there == 2, "the same scenarios, in other words"
    scenarios = [Scenario(**TINY, use_zero_pages=u, seed=s) for u in (0, 1) for s in (1, 2)]
    grown = sweep([*scenarios, {**TINY, "pages_to_scan": 0, "horizon_seconds": 0}], folder, jobs=1)
    assert (grown.scenarios, grown.there, grown.ran, grown.failed) == (5, 2, 3, 1)
    rows = read_sweep(folder)
    assert len(rows) == 8 + 3
    assert rows["error"][rows["pages_to_scan"] == 0].str.startswith("pages_to_scan = 0").tolist() == [True], (
        "a run that fails is a row with its error"
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for path in folder.glob("*-error.parquet"):
        path.unlink()
    assert len(sweeps.plan(grid, folder).impossible) == 4, "what failed is tried again once its files are removed"
    more = sweep([scenarios[3]], folder, jobs=1, samples=True)
    assert (more.ran, len(read_sweep(folder))) == (1, 6), "samples that were not wanted before; no row twice"
    assert len(list((folder / "_samples").iterdir())) == 5


@pytest.mark.usefixtures("here")
def test_another_model_runs_all_anew(tmp_path: Path) -> None:
    grid = Grid(base=TINY, vary={"seed": [0, 1]})
    sweep(grid, tmp_path, jobs=1)
    now = read_sweep(tmp_path)
    for path in list(tmp_path.glob("*.parquet")):
        table = pq.read_table(path)
        for name in ("hash", "model"):
            place, old = table.schema.get_field_index(name), [value[::-1] for value in table[name].to_pylist()]
            table = table.set_column(place, name, [old])
        path.unlink()
        pq.write_table(table.drop_columns("settled_s"), tmp_path / f"old-{path.name}")
    assert sweep(grid, tmp_path, jobs=1).ran == 2
    pd.testing.assert_frame_equal(read_sweep(tmp_path), now)
    both = read_sweep(tmp_path, all_models=True)
    assert sorted(both["model"].unique()) == sorted([model_digest(), model_digest()[::-1]])
    assert len(both) == 4


def test_the_hash_covers_all_that_decides(tmp_path: Path) -> None:
    """The digest of the model is of all modules that decide the results; and costs count by their numbers."""
    code = "import sys, mmlab.engine.clock; print(*(n for n in sys.modules if n[:6] == 'mmlab.'))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    package = Path(mmlab.__file__).parent
    digested = {path for pattern in sweeps.MODEL for path in package.glob(pattern)}
    plain = {"mmlab.errors", "mmlab.limits", "mmlab.params", "mmlab.workers"}  # they compute nothing
    for name in loaded:
        path = package.parent.joinpath(*name.split("."))
        assert path.is_dir() or name in plain or path.with_suffix(".py") in digested

    shipped = next((package / "cost_sets").glob("*.yaml"))
    own = tmp_path / "own.yaml"
    own.write_bytes(shipped.read_bytes())
    hashes = [sweeps._identify({"costs": costs}).hash for costs in (shipped.stem, str(own), "free")]
    values = yaml.safe_load(own.read_text())
    assert hashes[0] == hashes[1] != hashes[2]
    assert values


@pytest.mark.usefixtures("here")
def test_what_is_damaged_or_taken_is_said(tmp_path: Path) -> None:
    def refused(*args: Any, where: Path = tmp_path) -> UserError:
        with pytest.raises(UserError) as found:
            sweep(*args, jobs=1) if args else read_sweep(tmp_path)
        assert found.value.parameter == str(where)
        return found.value

    assert "no sweep in it" in refused().problem
    (tmp_path / "sweep.json").write_text('{"mod')
    assert "no whole sweep.json" in refused().problem
    grid = Grid(base=TINY)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another sweep" in refused(grid, tmp_path).problem
    part = tmp_path / "part.parquet"
    part.write_bytes(b"PAR1 and no more")
    assert "damaged" in refused(grid, tmp_path, where=part).problem
    assert "another folder" in refused(grid, part, where=part).hint
    with pytest.raises(UserError, match=r"none of these scenarios is possible. The first: memory_mib = 1"):
        sweep(Grid(base={**TINY, "memory_mib": 1}), tmp_path / "new", jobs=1)
    assert not any((tmp_path / "new").glob("[!.]*"))


@pytest.mark.usefixtures("here")
def test_a_file_system_without_locks_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert sweep(Grid(base=TINY), tmp_path).ran == 1


@pytest.mark.usefixtures("here")
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "grid.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"base": TINY, "vary": {"seed": [1, 2], "memory_mib": [2, 3]}}))

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["sweep", str(file), "-o", str(out), *args])
        return (int(ended.value.code or 0), *capsys.readouterr())

    status, said, _ = run("--dry-run")
    assert status == 0
    assert f"{out}: 4 scenarios, 0 are there, 4 to run, 2 of them impossible\n  memory_mib = 3 is not" in said
    assert not out.exists()
    status, said, _ = run("--jobs", "1")
    assert status == 1, "there are rows with errors"
    assert "4 scenarios, 0 were there, 4 run in " in said
    assert said.endswith("2 with errors\n")
    assert json.loads((out / "sweep.json").read_text())["grid"]["vary"] == {"seed": [1, 2], "memory_mib": [2, 3]}
    file.write_text("vary: {seeds: [1]}")
    status, _, said = run()
    assert (status, said.startswith(f"mmlab: {file}: vary: unknown parameter 'seeds': did you mean 'seed'")) == (
        2,
        True,
    )


# -- workers and parents that die -----------------------------------------------------------------------------------


class Mortal(Here):
    """A worker that one scenario kills, whatever else is in its chunk."""

    def __init__(self, chunks: list[int]) -> None:
        self.chunks, self.killed = chunks, False

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        if args:
            self.chunks.append(len(args[0]))
            self.killed |= any(item.values["seed"] == 13 for item in args[0])
        if self.killed:
            future.set_exception(BrokenExecutor())
            return future
        return super().submit(function, *args, **kwargs)


def test_a_scenario_that_kills_workers_is_a_row_with_its_error(tmp_path: Path, monkeypatch) -> None:
    lives: list[list[int]] = []

    @contextmanager
    def open_mortal(jobs: int, scheduler: str | None) -> Iterator[Executor]:
        lives.append([])
        yield Mortal(lives[-1])

    monkeypatch.setattr(sweeps, "executor", open_mortal)
    found = sweep(Grid(base=TINY, vary={"seed": list(range(10, 18))}), tmp_path)
    assert (found.ran, found.failed) == (8, 1)
    assert lives[0] == [4, 2]
    assert all(set(life) == {1} for life in lives[1 : sweeps.DEATHS]), "suspects are chunks of their own"
    assert all(life[-1] == 1 for life in lives[2 : sweeps.DEATHS]), "then alone"
    rows = read_sweep(tmp_path).set_index("seed")
    assert list(rows["error"].dropna().index) == [13]
    assert "its worker was killed" in rows["error"][13]
    assert rows["freed_mib"].isna().sum() == 1


def test_suspects_run_alone_after_a_second_death() -> None:
    """Nothing else is under way beside one of them, and what follows waits."""
    items = [Item(name, {}) for name in "abcdef"]
    todo, deaths = deque(items), Counter({"a": 2, "b": 1, "c": 3, "d": 1})
    busy: dict[Future[Result], list[Item]] = {}
    seen: list[str] = []

    class Watching(Here):
        def submit(self, function, /, *args, **kwargs):
            names = "".join(item.hash for chunk in (*busy.values(), args[0]) for item in chunk)
            seen.append(names)
            return super().submit(lambda chunk: Result(len(chunk)), *args)

    pool = Watching()
    assert sum(result.done for result in sweeps._keep_busy(pool, Result, todo, busy, deaths)) == 6
    assert seen == ["a", "b", "c", "d", "de", "f"]


def test_workers_that_cannot_start_are_said(tmp_path: Path) -> None:
    """In a script that is not written for it, every worker runs the script again and dies of it."""
    script = tmp_path / "script.py"
    script.write_text(f"import mmlab\nmmlab.sweep([{TINY}], {str(tmp_path / 'out')!r}, jobs=1)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "worker processes end as soon as they start" in done.stderr.splitlines()[-1]


MANY = {
    "base": TINY,
    "vary": {
        "seed": list(range(60)),
        "use_zero_pages": [0, 1],
        "variant": ["mainline", "legacy"],
        "thp_coverage": [0, 1],
    },
}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of 480 scenarios."""
    file = tmp_path_factory.mktemp("grid") / "many.yaml"
    file.write_text(yaml.safe_dump(MANY))
    return file


@pytest.fixture(scope="module")
def undisturbed(many: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Its rows, all from one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "executor", open_here)
        sweep(many, folder)
    return read_sweep(folder)


@contextmanager
def started(many: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a process; nothing of it is left in the end."""
    command = [*MMLAB, "sweep", many, "-o", folder, "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            for one in (*_children(process.pid), process):
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _workers(pid: int) -> list[psutil.Process]:
    """Not the process of multiprocessing that keeps track of resources."""
    out = []
    for child in _children(pid):
        with suppress(psutil.NoSuchProcess):
            out += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return out


def _gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=LONG)[1]


def test_killed_at_random_it_loses_nothing(many: Path, undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    """By turns the parent and a worker are killed, and it is started again until all is there."""
    rng, kills = random.Random(5), 0
    for turn in range(100):
        folder = tmp_path / str(turn)
        returned = None
        while returned != 0:
            with started(many, folder) as process:
                while kills < KILLS and process.poll() is None:
                    parts, in_the_midst = set(folder.glob("*.parquet")), rng.random() < 0.8
                    while in_the_midst and process.poll() is None and parts == set(folder.glob("*.parquet")):
                        time.sleep(0.01)
                    time.sleep(rng.uniform(0, 0.3))
                    workers = _workers(process.pid)
                    if kills % 2 == 0 and workers:
                        rng.choice(workers).kill()
                        kills += 1
                    elif kills % 2 and process.poll() is None:
                        process.kill()
                        assert _gone(workers), "workers go with their parent"
                        kills += 1
                _, err = process.communicate(timeout=LONG)
                returned = process.returncode
                assert returned in (0, -signal.SIGKILL), err
        pd.testing.assert_frame_equal(read_sweep(folder), undisturbed)
        assert sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet")) == len(undisturbed)
        assert not list(folder.glob(".*.tmp"))
        if kills == KILLS:
            return
    pytest.fail("it was always too late to kill anything")


def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({"base": TINY, "vary": {"seed": list(range(8000))}}))
    with started(more, tmp_path) as process:
        while not list(tmp_path.glob("*.parquet")):
            assert process.poll() is None
            time.sleep(0.02)
        workers = _workers(process.pid)
        for one in (process, *workers):  # as a terminal does
            one.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert f"mmlab: {tmp_path}: the same command resumes the sweep" in err
    assert "Traceback" not in err
    assert workers
    assert _gone(workers)
    assert 0 < len(read_sweep(tmp_path)) < 8000


# -- Dask -----------------------------------------------------------------------------------------------------------


def test_a_dask_cluster_whose_worker_dies(many: Path, undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    """A LocalCluster replaces the worker itself."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        killed: list[int] = []

        def progress(done: float, total: float, what: str) -> None:
            if 0 < done < total and not killed:
                killed.append(next(iter(cluster.workers.values())).pid)
                os.kill(killed[0], signal.SIGKILL)

        found = sweep(many, tmp_path, scheduler=cluster.scheduler_address, progress=progress)
    assert killed
    assert (found.ran, found.failed) == (480, 0)
    pd.testing.assert_frame_equal(read_sweep(tmp_path), undisturbed)


def test_a_cluster_without_workers_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(Here):
        _max_workers = 0

        def submit(self, function, /, *args, **kwargs):
            return Future()

    monkeypatch.setattr(sweeps, "PATIENCE_S", 0.1)
    with pytest.raises(UserError, match="the same sweep resumes") as found:
        list(sweeps._keep_busy(Empty(), Result, deque([Item("a", {})]), {}, Counter()))
    assert found.value.parameter == "scheduler"


def test_dask_workers_in_processes_of_their_own(many: Path, undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    """A scheduler and two workers by Dask's own commands; one worker is killed, and the other finishes."""
    dask = [sys.executable, "-m", "dask"]
    quiet = {**os.environ, "DASK_LOGGING__DISTRIBUTED": "critical"}
    scheduler_file = tmp_path / "scheduler.json"
    commands = [
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file"],
        *[[*dask, "worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--scheduler-file"]] * 2,
    ]
    running = [
        subprocess.Popen(
            [*command, scheduler_file], env=quiet, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    try:
        deadline = time.monotonic() + LONG
        while not scheduler_file.exists() or not scheduler_file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = json.loads(scheduler_file.read_text())["address"]
        folder = tmp_path / "rows"
        while True:
            try:
                found = sweep(
                    many,
                    folder,
                    scheduler=address,
                    progress=lambda done, total, what: running[1].kill() if 0 < done < total else None,
                )
                break
            except UserError as error:
                if "the cluster has no workers" not in error.problem or time.monotonic() > deadline:
                    raise
        assert running[1].wait() == -signal.SIGKILL
        assert found.failed == 0
        pd.testing.assert_frame_equal(read_sweep(folder), undisturbed)
        with pytest.raises(UserError, match="no Dask scheduler answers") as lost:
            sweep(many, tmp_path / "other", scheduler=address, progress=lambda *_: running[0].kill())
        assert (lost.value.parameter, lost.value.value) == ("scheduler", address)
    finally:
        for process in running:
            process.kill()
            process.wait()
