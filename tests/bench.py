"""Speed and trust: a table a part, and in the end all goals as one. Every timed run is also checked to be exact.

    python tests/bench.py                what `make bench` runs: all parts, a quarter of an hour
    python tests/bench.py PART…          some of model, explore, scale, calibrate, sweep, kills, tune, fleet
    python tests/bench.py --reference    compute the expected counters anew with the reference model (20 minutes)
    python tests/bench.py --against REV  this model and that of a git revision in alternating pairs (4 minutes)

A run is exact when the counters of every batch have the digest that the reference model gave them (`bench.json`, with
the number of batches, which are compared however many of them the costs of steps let fit into the time). Exit
status 1 when a goal is missed.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

import bench_calibrate
import bench_explore
import bench_fleet
import bench_scale
import bench_sweep
import bench_tune
from bench_goals import Goal, told
from mmlab import VARIANTS, Run, Scenario, simulate
from mmlab.kernel.jit import announced, warm_up
from mmlab.workers import keep_freed_memory

EXPECTED = Path(__file__).with_suffix(".json")
ROUNDS = 5
COUNTERS = """
    pages_scanned full_scans pages_skipped pages_shared pages_sharing pages_unshared pages_volatile ksm_zero_pages
    stable_node_chains stable_node_dups general_profit rss_kb anonhugepages_kb ksm_kb thp_split_page
    thp_split_page_failed thp_split_pmd thp_deferred_split_page cow_ksm deferred_queue_len
""".split()


def scenarios() -> Iterator[tuple[str, Scenario, float]]:
    """Name, scenario and limit in seconds of every run that is timed."""
    unique = {"thp_coverage": 0.0, "key_order": "random", "horizon_full_scans": 3, "horizon_seconds": 0.0}
    yield "1 GiB unique small pages, random keys, 3 full scans", Scenario(pages_to_scan=1000, **unique), 0.5
    for use_zero_pages in (1, 0):
        for variant in VARIANTS:
            yield (
                f"1 GiB regression, use_zero_pages={use_zero_pages}, {variant}, 120 s",
                Scenario(zero_fraction=460 / 512, pages_to_scan=1000, use_zero_pages=use_zero_pages, variant=variant),
                0.5,
            )


def digest(columns: dict[str, np.ndarray]) -> str:
    """SHA-256 of the counters of all batches."""
    return sha256(np.stack([columns[name] for name in COUNTERS], 1).astype("<i8").tobytes()).hexdigest()


def batches(run: Run) -> dict[str, np.ndarray]:
    """The counters after each batch (a run may end with a row in which only time has passed)."""
    columns = run.columns()
    after = np.flatnonzero(np.diff(columns["batch"], prepend=-1))
    return {name: columns[name][after] for name in COUNTERS}


def expected_by_reference(scenario: Scenario, count: int) -> str:
    """The digest that the reference model gives `count` batches of the scenario."""
    import reference

    got = reference.predict(bench_scale.trace_of(scenario, count))
    table = np.array(got["samples"])
    return digest({name: table[:, got["fields"].index(name)] for name in COUNTERS})


def in_fresh_process(code: str, **environment: str) -> float:
    """Seconds that a new Python needs for some code, its own start included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **environment})
    return time.perf_counter() - start


def import_seconds() -> float:
    """Seconds that `import mmlab` takes in a new Python."""
    code = "import time; t = time.perf_counter(); import mmlab; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


FIRST_RESULT = """
from mmlab import Scenario, simulate
simulate(Scenario(zero_fraction=460 / 512, pages_to_scan=1000)).metrics
"""
EVERYTHING = f"{FIRST_RESULT}from mmlab.kernel.jit import warm_up; warm_up()"


def model() -> list[Goal]:
    """Print the table of the runs that are timed."""
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    print(f"{'':64}{'s':>8}{'limit':>8}{'M visits/s':>12}  exact")
    medians, inexact = {}, 0
    for name, scenario, limit in scenarios():
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            run = simulate(scenario)
            seconds.append(time.perf_counter() - start)
        count, wanted = expected.get(name, (1, ""))
        whole = simulate(scenario.replace(horizon_seconds=0.0, horizon_batches=count))
        exact = digest(batches(whole)) == wanted
        median = statistics.median(seconds)
        visits = int(run.rows["pages_scanned"][-1]) / median / 1e6
        inexact += not exact
        medians[name] = median
        print(f"{name:64}{median:8.3f}{limit:8.1f}{visits:12.1f}  {'yes' if exact else 'NO'}")
    (first, alone), *others = medians.items()
    goals = [
        Goal(f"{first}, s", alone, limit),
        Goal(f"1 GiB regression, 120 s, the slowest of {len(others)}, s", max(seconds for _, seconds in others), limit),
        Goal("… runs that differ from the reference model's", inexact, 0),
    ]
    for name, measure, limit in (
        ("import mmlab, fresh process", import_seconds, 0.3),
        ("first result (1 GiB), fresh process, warm cache", lambda: in_fresh_process(FIRST_RESULT), 2.0),
    ):
        median = statistics.median(measure() for _ in range(ROUNDS))
        goals.append(Goal(f"{name}, s", median, limit))
        print(f"{name:64}{median:8.3f}{limit:8.1f}")
    with tempfile.TemporaryDirectory() as empty:
        cold = in_fresh_process(EVERYTHING, NUMBA_CACHE_DIR=empty)
    name = "first result and everything compiled, empty cache"
    print(f"{name:64}{cold:8.3f}{30:8.1f}")
    return [*goals, Goal(f"{name}, s", cold, 30)]


def kills() -> list[Goal]:
    """Sweeps whose parent, workers or Dask worker are killed at random, resumed and compared with undisturbed ones."""
    tests = Path(__file__).with_name("studies/test_sweep.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", "killed or dask"]
    done = subprocess.run(command, env={**os.environ, "MMLAB_KILLS": str(KILLS)}, check=False)
    what = f"sweeps killed {KILLS} times, and Dask's, against undisturbed ones: tests' exit status"
    return [Goal(what, done.returncode, 0)]


KILLS = 10
PARTS: dict[str, Callable[[], list[Goal]]] = {
    "model": model,
    "explore": bench_explore.main,
    "calibrate": bench_calibrate.main,
    "scale": bench_scale.main,
    "sweep": bench_sweep.main,
    "kills": kills,
    "tune": bench_tune.main,
    "fleet": bench_fleet.main,
}


def main(names: Sequence[str]) -> int:
    """Print the parts' tables, and what they have to show as one; 0 if no limit is missed."""
    if odd := [name for name in names if name not in PARTS]:
        print(f"{odd[0]}: there is no such part: choose some of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    print(f"{processor()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    keep_freed_memory()
    with announced(print):
        warm_up()
    goals: list[Goal] = []
    for name in names or PARTS:
        print(f"\n-- {name}", flush=True)
        goals += PARTS[name]()
    return told(goals)


ONE_ROUND = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from mmlab import Scenario, simulate
for parameters in json.loads(sys.argv[2]):
    scenario = Scenario(**parameters)
    start = time.perf_counter()
    simulate(scenario)
    print(time.perf_counter() - start)
"""
PAIRS, SLOWDOWN = 9, 1.1


def against(revision: str) -> int:
    """Time this model and an older one in turn, each round in a process of its own; 1 if this one is too slow."""
    root = Path(__file__).resolve().parents[1]
    named = list(scenarios())
    asked = json.dumps([scenario.model_dump(exclude_unset=True) for _, scenario, _ in named])

    def one_round(tree: Path) -> list[float]:
        command = [sys.executable, "-c", ONE_ROUND, str(tree), asked]
        out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tree).stdout
        return [float(line) for line in out.split()]

    with tempfile.TemporaryDirectory() as directory:
        old = Path(directory) / "old"
        subprocess.run(["git", "-C", str(root), "worktree", "add", "--detach", str(old), revision], check=True)
        try:
            for tree in (old, root):
                one_round(tree)  # compiles
            pairs = [(one_round(old), one_round(root)) for _ in range(PAIRS)]
        finally:
            subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(old)], check=True)
    print(f"{processor()}, {time.strftime('%Y-%m-%d')}: median of {PAIRS} pairs, {revision} and this tree")
    print(f"{'':64}{'old s':>8}{'new s':>8}{'ratio':>8}")
    ratios = []
    for i, (name, _, _) in enumerate(named):
        before, after = (statistics.median(pair[k][i] for pair in pairs) for k in (0, 1))
        ratios.append(statistics.median(pair[1][i] / pair[0][i] for pair in pairs))
        print(f"{name:64}{before:8.3f}{after:8.3f}{ratios[-1]:8.2f}")
    total = statistics.median(sum(pair[1]) / sum(pair[0]) for pair in pairs)
    print(f"{'all together':80}{total:8.2f}")
    return int(total > SLOWDOWN)


def processor() -> str:
    """The processor's name as /proc/cpuinfo has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def recompute() -> int:
    """Write bench.json anew."""
    expected = {}
    for name, scenario, _ in scenarios():
        count = int(simulate(scenario).rows["batch"][-1])
        expected[name] = count, expected_by_reference(scenario, count)
        print(name, *expected[name], flush=True)
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, usage=SUPPRESS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--reference", action="store_true", help="see above")
    parser.add_argument("--against", metavar="REV", help="see above")
    asked = parser.parse_args()
    sys.exit(against(asked.against) if asked.against else recompute() if asked.reference else main(asked.parts))
