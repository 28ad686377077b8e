"""Speed and trust: a table a part, and in the end all goals as one. Every timed run is also checked to be exact.

    python tests/bench.py                what `make bench` runs: all parts, half an hour
    python tests/bench.py PART…          some of recordings, model, start, explore, calibrate, scale, sweep, kills,
                                         tune, fleet
    python tests/bench.py --reference    compute the expected counters anew with the reference model (20 minutes)
    python tests/bench.py --against REV  this model and that of a git revision in alternating pairs (4 minutes)

A run is exact when the counters of every batch have the digest that the reference model gave them (`bench.json`, with
the number of batches, which are compared however many of them the costs of steps let fit into the time). Each part
becomes a section of reports/benchmarks.md, in place of its earlier one, with machine, date and commit. Exit status 1
when a goal is missed.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
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
from mmlab.limits import cpus
from mmlab.results.trace import compare_file
from mmlab.workers import each, keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = Path(__file__).with_suffix(".json")
WRITTEN = ROOT / "reports" / "benchmarks.md"
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


def printed_seconds(code: str, tree: Path) -> float:
    """Seconds that a new Python with a tree's mmlab prints."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


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
    with tempfile.TemporaryDirectory() as empty:
        cold = in_fresh_process(EVERYTHING, NUMBA_CACHE_DIR=empty)
    name = "first result and everything compiled, empty cache"
    print(f"{name:64}{cold:8.3f}{30:8.1f}")
    return [*goals, Goal(f"{name}, s", cold, 30)]


TIMED = "import time; t = time.perf_counter()\n{}\nprint(time.perf_counter() - t)"
STARTS = {
    "import mmlab, s": ("import mmlab", 0.3),
    "first result (1 GiB), s": (FIRST_RESULT, 1.5),
    "the explorer's first picture, s": ("import mmlab; mmlab.explore().update()", 6.0),
}
"""Code of a fresh process with a warm cache, and its limit."""
REPORTS = {"all reports, CPU s": 150.0, "… the first one is there after, s": 25.0, "… all of them after, s": 240.0}


def starts(tree: Path) -> dict[str, float]:
    """Seconds from the start of a process to the first result, picture and report, with a tree's mmlab."""
    found = {
        name: statistics.median(printed_seconds(TIMED.format(code), tree) for _ in range(ROUNDS))
        for name, (code, _) in STARTS.items()
    }
    main = "from mmlab.cli import main; main()"
    with tempfile.TemporaryDirectory() as folder:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-c", main, "report", "--all", "-o", "reports"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdout=subprocess.PIPE,
        ) as made:
            assert made.stdout
            made.stdout.readline()
            first = time.perf_counter() - began
            made.stdout.read()
        assert made.returncode == 0
        after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found | dict(zip(REPORTS, (cpu, first, took), strict=True))


def start() -> list[Goal]:
    """Print the times to the first results of fresh processes, caches warm."""
    limits = {name: limit for name, (_, limit) in STARTS.items()} | REPORTS
    return [Goal(name, value, limits[name]) for name, value in starts(ROOT).items()]


def recordings() -> list[Goal]:
    """Predict all recordings: those that ship, and those of the folders that MMLAB_TRACES names."""
    others = os.environ.get("MMLAB_TRACES", "").split(os.pathsep)
    folders = [ROOT / "mmlab" / "recordings", *map(Path, filter(None, others))]
    files = list({file.name: file for folder in folders for file in sorted(folder.glob("*.json.gz"))}.values())
    found = list(each(compare_file, files, cpus()))
    for what in ("samples", "maps", "frames"):
        exact, total = (sum(getattr(one, name) for one in found) for name in (f"{what}_exact", what))
        print(f"{what}: {exact:,} of {total:,} exact")
    inexact = sum(not one.exact for one in found)
    return [Goal(f"of {len(found):,} recordings of real kernels, not predicted exactly", inexact, 0)]


def kills() -> list[Goal]:
    """Sweeps whose parent, workers or Dask worker are killed at random, resumed and compared with undisturbed ones."""
    tests = Path(__file__).with_name("studies/test_sweep.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "-k", "killed or dask"]
    done = subprocess.run(command, env={**os.environ, "MMLAB_KILLS": str(KILLS)}, check=False)
    what = f"sweeps killed {KILLS} times, and Dask's, against undisturbed ones: tests' exit status"
    return [Goal(what, done.returncode, 0)]


KILLS = 10
PARTS: dict[str, Callable[[], list[Goal]]] = {
    "recordings": recordings,
    "model": model,
    "start": start,
    "explore": bench_explore.main,
    "calibrate": bench_calibrate.main,
    "scale": bench_scale.main,
    "sweep": bench_sweep.main,
    "kills": kills,
    "tune": bench_tune.main,
    "fleet": bench_fleet.main,
}


def main(names: Sequence[str]) -> int:
    """Print the parts' tables, write them to the report, and print all goals as one; 0 if no limit is missed."""
    if odd := [name for name in names if name not in PARTS]:
        print(f"{odd[0]}: there is no such part: choose some of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    print(about())
    keep_freed_memory()
    with announced(print):
        warm_up()
    goals: list[Goal] = []
    for name in names or PARTS:
        print(f"\n-- {name}", flush=True)
        with redirect_stdout(Tee()) as said:
            part = PARTS[name]()
        goals += part
        with redirect_stdout(io.StringIO()) as table:
            told(part)
        write(name, f"{about()}\n\n{as_markdown(said.getvalue())}{table.getvalue()}")
    return told(goals)


class Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return super().write(text)


def about() -> str:
    """Where and when something was measured: processor, CPUs, Python, date and commit."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    machine = f"{processor()}, {cpus()} CPUs, Python {platform.python_version()}"
    return f"{machine}, {time.strftime('%Y-%m-%d')}, commit {commit}"


def as_markdown(text: str) -> str:
    """Return what a part prints as Markdown: tables of columns in blocks of code, all else as it is."""
    blocks = [block.strip("\n") for block in text.split("\n\n") if block.strip()]
    columns = [not block.lstrip().startswith("|") and "   " in block for block in blocks]
    return "".join(f"```\n{b}\n```\n\n" if is_code else f"{b}\n\n" for b, is_code in zip(blocks, columns, strict=True))


def write(part: str, text: str) -> None:
    """Put a part's section into the report, in place of its earlier one; parts stand in the order of `PARTS`."""
    there = WRITTEN.read_text(encoding="utf-8") if WRITTEN.exists() else ""
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", there, re.DOTALL | re.MULTILINE)) | {part: text}
    body = [f"## {name}\n\n{sections[name].strip()}\n" for name in PARTS if name in sections]
    WRITTEN.write_text("\n".join([HEAD, *body]), encoding="utf-8")


HEAD = """# Benchmarks

Written by `make bench`: a section for each part of `tests/bench.py`, with the machine, date and commit of its last run.
A timed run counts only if its counters, after every batch, are those of the reference model. `python tests/bench.py
--against REV` times two commits in turns.
"""


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
    named = list(scenarios())
    asked = json.dumps([scenario.model_dump(exclude_unset=True) for _, scenario, _ in named])

    def one_round(tree: Path) -> list[float]:
        command = [sys.executable, "-c", ONE_ROUND, str(tree), asked]
        out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tree).stdout
        return [float(line) for line in out.split()]

    with tempfile.TemporaryDirectory() as directory:
        old = Path(directory) / "old"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(old), revision], check=True)
        try:
            for tree in (old, ROOT):
                one_round(tree)  # compiles
            pairs = [(one_round(old), one_round(ROOT)) for _ in range(PAIRS)]
            first = [starts(tree) for tree in (old, ROOT)]
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(old)], check=True)
    print(f"{about()}: median of {PAIRS} pairs, {revision} and this tree")
    print(f"{'':64}{'old s':>8}{'new s':>8}{'ratio':>8}")
    ratios = []
    for i, (name, _, _) in enumerate(named):
        before, after = (statistics.median(pair[k][i] for pair in pairs) for k in (0, 1))
        ratios.append(statistics.median(pair[1][i] / pair[0][i] for pair in pairs))
        print(f"{name:64}{before:8.3f}{after:8.3f}{ratios[-1]:8.2f}")
    total = statistics.median(sum(pair[1]) / sum(pair[0]) for pair in pairs)
    print(f"{'all together':80}{total:8.2f}")
    for name, seconds in first[0].items():
        print(f"{name:64}{seconds:8.3f}{first[1][name]:8.3f}{first[1][name] / seconds:8.2f}")
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
