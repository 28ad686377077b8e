"""The command line: a thin mirror of the Python functions, with their messages and nothing of its own.

Exit status 0: done, and for ``compare``: everything is exact; 1: something differs, or a report's notebook failed; 2: a
mistake in what was asked for; 130: interrupted (what was finished is kept).
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import textwrap
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmlab.errors import UserError, unknown
from mmlab.params import find_params, write_atomically
from mmlab.workers import cpus, each, executor, keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mmlab.results.trace import Comparison

TRACE = ".json.gz"


class _Commands(click.Group):
    """Prints examples as written, and lists commands in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mmlab", message="mmlab %(version)s")
def cli() -> None:
    """Page-exact simulation of Linux KSM and transparent huge pages, and of the variants proposed for their quarrel.

    \b
    First steps:
      mmlab simulate params/regression_uzp1.yaml                         what happens on mainline
      mmlab simulate params/regression_uzp1.yaml --variant ksm-opt-out   ... and with another variant
      mmlab params                                                       all that can be set
      mmlab verdict                                                      the list's questions, variant by variant
      mmlab report notebooks/01_regression.ipynb -f params/regression_uzp1.yaml
    """


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the console script: turns mistakes into one message on stderr and an exit status."""
    keep_freed_memory()
    try:
        status = cli.main(args, prog_name="mmlab", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("\ninterrupted; what was finished is kept", err=True)
        status = 130
    except UserError as error:
        click.echo(f"mmlab: {error}", err=True)
        status = 2
    except BrokenPipeError:  # `mmlab params | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status or 0)


# -- simulate -----------------------------------------------------------------------------------------------------

_files = click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(path_type=Path))
_variant = click.option("--variant", metavar="NAME", help="Another variant than the file's (see `mmlab variants`).")
_set = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change one parameter; may be given several times (see `mmlab params`).",
)
_jobs = click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1, 1024), help="Processes that share the work."
)


def _with_folder(_: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Make the folder of a file to be written, or refuse it before the work."""
    try:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(error.strerror or str(error), parameter=f"--{option.name}", value=str(path)) from None
    return path


_only = click.option(
    "--only", multiple=True, metavar="GLOB", help="Of folders, only files whose names begin like this, e.g. 'act-*'."
)


@cli.command()
@_files
@_variant
@_set
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write each prediction as a trace into this folder, under the file's name.",
)
@_only
@_jobs
def simulate(
    files: tuple[Path, ...],
    variant: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    only: tuple[str, ...],
    jobs: int,
) -> None:
    """Run scenario files (*.yaml), or the scenarios of kernel traces (*.json.gz), or folders of these.

    Prints a summary of each run. With --out, every prediction is written as a trace instead: a sample after every
    batch and event, page maps where a recording has them, or at the end.

    \b
    Examples:
      mmlab simulate params/all_zero.yaml
      mmlab simulate params/regression_uzp0.yaml --set pages_to_scan=4000 --set stray_zero_pages=2
      mmlab simulate mmlab/recordings --out predicted/
    """
    overrides = _parse(settings)
    _check(variant, overrides)
    paths = _expand(files, only, (TRACE, ".yaml", ".yml"))
    if out:
        targets = [path.name.removesuffix(TRACE).removesuffix(".yaml").removesuffix(".yml") for path in paths]
        if twice := sorted({t for t in targets if targets.count(t) > 1}):
            raise UserError(f"--out {out}: several files would be written as {twice[0]}{TRACE}: rename one of them")
    failed = False
    task = partial(_simulate, variant=variant, overrides=overrides, out=out, bar=len(paths) == 1)
    for result in _each(task, paths, jobs):
        failed |= result.failed
        _say(result.text, err=result.failed)
    if failed:
        sys.exit(2)


@dataclass(frozen=True)
class _Result:
    text: str
    failed: bool = False
    comparison: Comparison | None = None


def _simulate(path: Path, *, variant: str | None, overrides: dict[str, Any], out: Path | None, bar: bool) -> _Result:
    """One file: its summary, or where its prediction was written."""
    from mmlab.results import trace as traces
    from mmlab.results.run import Interrupted, defer_ctrl_c, simulate
    from mmlab.scenario import Scenario

    try:
        with _bar(bar) as progress, defer_ctrl_c() as interrupted:
            if out is None:
                scenario = traces.load(path, **_for_file(path, overrides))
                run = simulate(scenario, variant=variant, progress=progress, interrupted=interrupted)
                return _Result(f"{path}\n{textwrap.indent(run.summary(), '  ')}")
            if path.name.endswith(TRACE):
                prediction = traces.predict(traces.read(path), variant, overrides, progress)
                target = out / path.name
            else:
                scenario = Scenario.load(path, **{"sample_limit": 10**8, **overrides})
                run = simulate(scenario, variant=variant, maps_at="end", progress=progress, interrupted=interrupted)
                prediction = traces.from_run(run)
                target = out / f"{path.stem}{TRACE}"
        prediction["name"] = target.name.removesuffix(TRACE)
        if target.resolve() == path.resolve():
            raise UserError(f"--out {out} is where the file itself is: name another folder")
        traces.write(target, prediction)
    except UserError as error:
        return _Result(_about(path, error), failed=True)
    except Interrupted as stopped:
        if out is None:
            _say(f"{path}: {stopped.args[0].partition(';')[0]}\n{textwrap.indent(stopped.run.summary(), '  ')}")
        raise
    return _Result(str(target))


def _for_file(path: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Runs without --out are watched, not compared: a trace's rows may be thinned like any other's."""
    return {"sample_limit": 20_000, **overrides} if path.name.endswith(TRACE) else overrides


# -- compare ------------------------------------------------------------------------------------------------------


@cli.command()
@_files
@_only
@_jobs
@click.option("-v", "--verbose", is_flag=True, help="Every difference, not only the first.")
@click.option("-q", "--quiet", is_flag=True, help="Only traces that are not exact, and the totals.")
def compare(files: tuple[Path, ...], only: tuple[str, ...], jobs: int, verbose: bool, quiet: bool) -> None:
    """Predict recorded kernel traces and compare: every counter of every sample, every map, every frame count.

    A line for each trace, then the totals. Exit status 0 only when everything is exact. The prediction reads the
    recording's scenario, variant, kernel and the places of its maps, nothing else.

    \b
    Examples:
      mmlab compare mmlab/recordings
      mmlab compare recorded/ --only 'act-*' --only 'chain-*' --quiet
    """
    paths = _expand(files, only, (TRACE,))
    exact, broken, total = 0, False, _totals()
    for path, result in zip(paths, _each(_compare, paths, jobs), strict=True):
        found = result.comparison
        if found is None:
            broken = True
            _say(result.text, err=True)
            continue
        exact += found.exact
        for name in total:
            total[name] += getattr(found, name)
        if not found.exact or not quiet:
            _say(f"{path.name}: {found}")
        for difference in found.differences if verbose else ():
            _say(f"    {difference}")
    counts = "".join(f", {n} exact {total[f'{n}_exact']}/{total[n]}" for n in ("samples", "maps", "frames"))
    click.echo(f"traces exact {exact}/{len(paths)}{counts}")
    sys.exit(2 if broken else exact != len(paths))


def _totals() -> dict[str, int]:
    return {f"{name}{end}": 0 for name in ("samples", "maps", "frames") for end in ("", "_exact")}


def _compare(path: Path) -> _Result:
    """One recording against its prediction."""
    from mmlab.results import trace as traces

    try:
        recorded = traces.read(path)
        found = traces.compare(recorded, traces.predict(recorded))
    except UserError as error:
        return _Result(_about(path, error), failed=True)
    return _Result("", comparison=found)


# -- calibrate ----------------------------------------------------------------------------------------------------


@cli.command()
@_files
@click.option(
    "-o",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.yaml",
    help="Write the costs there; a scenario takes them by `costs: FILE.yaml`.",
)
@click.option("--machine", metavar="TEXT", help="Where it was recorded. Default: this computer's processor.")
def calibrate(files: tuple[Path, ...], out: Path | None, machine: str | None) -> None:
    """Fit what ksmd's steps cost to recordings of its CPU time on a real kernel, and say how far to trust it.

    The model repeats each recorded scenario and counts ksmd's steps in every batch. Printed are the cost of each step
    with its standard error; each scenario's CPU time as measured, and as predicted by the costs that all the other
    scenarios give; and the median of these errors. Steps that the recording does not tell keep an estimate.

    FILE is a kernel trace with lab_ksmd_cpu_ns among its fields, as tests/record.py makes them (`tests/record.py
    "cost-*" --out recorded`, as root on the kernel in question), or a list of scenarios with their samples as
    tests/calibration-6.18.json.gz. At least two are needed, of different kinds of memory: a step that only one of them
    has cannot be predicted from the others.

    Exit status 1: in a scenario the model's counters differ from the recorded ones; that scenario was not used.

    \b
    Examples:
      mmlab calibrate tests/calibration-6.18.json.gz
      mmlab calibrate recorded/*.json.gz -o my-host.yaml
      mmlab simulate params/all_zero.yaml --set costs=my-host.yaml
    """
    import time

    from mmlab.host import calibrate as calibration

    if out and out.suffix not in (".yaml", ".yml"):
        raise UserError(f"-o {out}: a file of costs ends in .yaml")
    recorded = [one for file in files for one in calibration.read(file)]
    _warm_up()
    with _steps() as progress:
        found = calibration.calibrate(recorded, progress)
    click.echo(found.text())
    if out:
        about = {
            "machine": machine or calibration.processor(),
            "kernel": ", ".join(sorted({one.kernel for one in found.observed})),
            "date": time.strftime("%Y-%m-%d"),
            "recording": ", ".join(file.name for file in files[:3]) + (" …" if len(files) > 3 else ""),
        }
        calibration.write(out, found.cost_file(**about))
        click.echo(f"\n{out}")
    sys.exit(len(found.dropped) > 0)


# -- sweep --------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("grid", metavar="GRID.yaml")
@click.option(
    "-o",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the rows go, and from where they are read again.",
)
@click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help="Worker processes. Default: one a core.")
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on the workers of this Dask scheduler, tcp://HOST:PORT, instead. They need the same mmlab, but "
    "not DIR. Needs pip install 'mmlab[cluster]'.",
)
@click.option("--samples", is_flag=True, help="Keep each run's samples, too, in DIR/_samples/HASH.parquet.")
@click.option("--dry-run", is_flag=True, help="Only say what there is to do.")
def sweep(grid: str, out: Path, jobs: int | None, scheduler: str | None, samples: bool, dry_run: bool) -> None:
    """Run a grid of scenarios, and keep a row of metrics for each in DIR, as Parquet.

    GRID.yaml is a file, or the name of one of params/grids/:

    \b
      base: {params: regression_uzp0, memory_mib: 64}      what all have: a params file, and what differs from it
      vary:                                                any parameter (`mmlab params`):
        variant: [mainline, v1-series]                       a list,
        thp_coverage: {low: 0, high: 1, step: 0.25}          a range in steps,
        pages_to_scan: {low: 100, high: 10000, count: 5, log: true}    or so many values by equal factors
      design: full                                         every combination: 2 × 5 × 5 scenarios; instead
      # design: sobol                                      (or latin_hypercube): so many points spread evenly, where a
      # samples: 256                                       range may be {low, high}, and has every value between them
      # seed: 1

    What is in DIR already is not run again: a sweep that was stopped or killed goes on by the same command, and one
    that has grown runs only what is new. Another version of the model runs all of it anew. A scenario that fails is a
    row with its error; remove DIR/*-error.parquet to try these again.

    \b
    Examples:
      mmlab sweep budget_and_thps -o budget/ --dry-run
      mmlab sweep budget_and_thps -o budget/
      mmlab sweep my.yaml -o mine/ --scheduler tcp://10.0.0.5:8786
      duckdb -c "SELECT variant, max(merge_rate) FROM 'budget/*.parquet' GROUP BY variant"
      python -c "import mmlab; print(mmlab.read_sweep('budget'))"

    Exit status 1: there are rows with errors.
    """
    from mmlab.studies import sweep as sweeps

    if dry_run:
        todo = sweeps.plan(grid, out, samples=samples)
        click.echo(
            f"{out}: {todo.scenarios:,} scenarios, {todo.there:,} are there, {len(todo.items):,} to run, "
            f"{len(todo.invalid):,} impossible"
        )
        for row in todo.invalid[:5]:
            click.echo(f"  {row['error']}")
        return
    try:
        with _announced(), _steps() as progress:
            found = sweeps.sweep(grid, out, jobs=jobs, scheduler=scheduler, samples=samples, progress=progress)
    except KeyboardInterrupt:
        click.echo(f"\nmmlab: {out}: the same command goes on with what is not there yet", err=True)
        raise
    click.echo(
        f"{out}: {found.scenarios:,} scenarios, {found.there:,} were there, {found.ran:,} run in "
        f"{found.seconds:.1f} s, {found.failed:,} with errors"
    )
    sys.exit(found.failed > 0)


# -- tune ---------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("workload", metavar="WORKLOAD|GOALS.yaml")
@_variant
@_set
@click.option(
    "--goal",
    "goals",
    multiple=True,
    metavar="LIMIT",
    help="'NAME >= NUMBER' or 'NAME <= NUMBER'; may be given several times.",
)
@click.option("--within", metavar="TIME", help="'90 s', '30 min', '2 h': how long ksmd has. Default: the file's.")
@click.option("--minimise", metavar="NAME", help="What 'cheapest' means. Default: ksmd_cpu.")
@click.option(
    "--by", multiple=True, metavar="PACE", help="Who may set the pace: fixed, advisor, ksmtuned. Default: each of them."
)
@click.option(
    "--levels",
    multiple=True,
    metavar="KNOB=[…]",
    help="Values to choose from; a single one fixes the knob, e.g. smart_scan=1.",
)
@click.option("--runs", type=click.IntRange(1), metavar="N", help="Most runs that the search may take. Default: 240.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the search.")
@click.option(
    "--figure",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    callback=_with_folder,
    help="Draw all settings tried, the front and the limits (.png, .svg, .pdf).",
)
@click.option(
    "--table",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_with_folder,
    metavar="FILE.csv",
    help="Write the whole Pareto front.",
)
@_jobs
def tune(
    workload: str,
    variant: str | None,
    settings: tuple[str, ...],
    goals: tuple[str, ...],
    within: str | None,
    minimise: str | None,
    by: tuple[str, ...],
    levels: tuple[str, ...],
    runs: int | None,
    seed: int,
    figure: Path | None,
    table: Path | None,
    jobs: int,
) -> None:
    """Find the cheapest setting of ksmd that meets goals, and print the commands that set it.

    WORKLOAD is a params file or the name of one in params/, with --goal; or a goals file, or the name of one in
    params/goals/, which needs nothing else. The search chooses among pages_to_scan and sleep_millisecs, the advisor's
    knobs, or ksmtuned's configuration, and use_zero_pages, smart_scan and max_ptes_none. The cheapest setting takes the
    least CPU time of ksmd.

    \b
    A goal limits one of these measures, taken at the end of --within:
      saved           %     share of the ideal saving: one frame kept for each distinct content of mergeable memory,
                            none for zero-filled pages; never above 100 %
      saved_mib       MiB   memory saved in all, relative to the same memory with KSM off
      thps_lost       %     THPs missing, relative to the same memory with KSM off
      ksmd_cpu        %     CPU time of ksmd over --within; khugepaged_cpu likewise
      ...                   and each metric that `mmlab simulate` prints, in its unit

    The output is the setting, the price of each limit, the Pareto front of the settings tried, and commands for sysfs
    or ksmtuned.conf. Where the goals cannot be met together, it names the nearest that can be.

    \b
    Examples:
      mmlab tune one_image
      mmlab tune keep_thps --variant ksm-opt-out --figure front.png
      mmlab tune bimodal --set memory_mib=64 --within "2 min" --goal "saved >= 90 %" --goal "ksmd_cpu <= 5 %"
      mmlab tune my.yaml --within "30 min" --goal "saved >= 80 %" --by fixed --levels sleep_millisecs=20 --jobs 2

    Exit status 1: the goals cannot be met.
    """
    from mmlab.studies import tune as search
    from mmlab.studies.goals import Goals

    asked = Goals.load(
        workload,
        goals=goals,
        within=within,
        variant=variant,
        minimise=minimise,
        by=by,
        levels=_parse(levels, "--levels"),
        set=_parse(settings),
    )
    _warm_up()
    with _steps() as progress, ExitStack() as stack:
        pool = stack.enter_context(executor(jobs)) if jobs > 1 else None
        found = search.tune(asked, runs=runs or search.RUNS, seed=seed, executor=pool, progress=progress)
    click.echo(found.text())
    if table:
        write_atomically(table, found.table().to_csv(index=False).encode())
    if figure:
        found.save(figure)
    sys.exit(not found.feasible)


# -- fleet --------------------------------------------------------------------------------------------------------


@cli.command("fleet")
@click.argument("plan", metavar="FLEET.yaml")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help="Use instead of the file's variants; may be repeated. The others are compared with the first.",
)
@click.option("--hosts", type=click.IntRange(1), metavar="N", help="Instead of the file's.")
@click.option("--samples", type=click.IntRange(2), metavar="N", help="Hosts of each kind that are simulated.")
@click.option("--simulate-mib", type=click.IntRange(2), metavar="N", help="Memory in which a host is simulated.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed for drawing hosts.")
@click.option(
    "--table",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.csv",
    callback=_with_folder,
    help="Write a row for each simulated host and variant.",
)
@_jobs
def fleet_(
    plan: str,
    variants: tuple[str, ...],
    hosts: int | None,
    samples: int | None,
    simulate_mib: int | None,
    seed: int | None,
    table: Path | None,
    jobs: int,
) -> None:
    """Estimate the memory (TiB), CPU time (cores) and THPs of a fleet of hosts, under each variant.

    FLEET.yaml is a file, or the name of one of params/fleets/:

    \b
      hosts: 100000
      samples: 8                                     hosts of each kind that are simulated, and represent the others
      simulate_mib: 64                               … in this much memory, ksmd slower to match (README, "A fleet")
      variants: [mainline, ksm-opt-out]
      mix:
        - {params: bimodal, weight: 0.6, memory_gib: 512, pages_to_scan: 4000}    a file of params/, and changes to it
        - params: shared_image
          weight: 0.4
          zero_fraction: {low: 0.3, high: 0.6}       from host to host: a range (log: true for equal factors)
          pages_to_scan: [1000, 2000, 4000]          or one of these

    Prints fleet totals with sampling error, per-host quantiles, and paired differences between variants.

    \b
    Examples:
      mmlab fleet three_kinds
      mmlab fleet three_kinds --samples 32 --jobs 4 --variant mainline --variant v1-series
      mmlab fleet mine.yaml --simulate-mib 256 --table hosts.csv
    """
    from mmlab.studies import fleet as fleets

    asked = fleets.Plan.load(plan, hosts=hosts, samples=samples, simulate_mib=simulate_mib, seed=seed)
    _warm_up()
    with _steps() as progress:
        estimate = fleets.fleet(asked, variants=variants, jobs=jobs, progress=progress)
    click.echo(estimate.text())
    if table:
        write_atomically(table, estimate.hosts.to_csv(index=False).encode())


# -- report, variants, params, compile -------------------------------------------------------------------------------


@cli.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]…")
@click.option("--all", "everything", is_flag=True, help="The standard reports and their index, instead of NOTEBOOK.")
@click.option(
    "-f",
    "params",
    multiple=True,
    metavar="FILE",
    help="Flat YAML file with parameters, or the name of one of params/; a later file wins.",
)
@click.option("--each", is_flag=True, help="A report for each FILE, instead of one with all of them.")
@click.option("-p", "settings", multiple=True, metavar="NAME=VALUE", help="One parameter; wins over files.")
@click.option(
    "-o",
    "out",
    type=click.Path(path_type=Path),
    metavar="FILE.html|DIR",
    help="The page; or the folder for pages and their index. Default: reports/",
)
@click.option("--code", is_flag=True, help="Show the code cells, too.")
@click.option("--again", is_flag=True, help="With --all: make also what would come out as it is.")
@click.option(
    "--jobs",
    default=cpus(),
    type=click.IntRange(1, 1024),
    help="Reports made at a time. Default: one a core.",
)
def report(
    notebooks: tuple[str, ...],
    everything: bool,
    params: tuple[str, ...],
    each: bool,
    settings: tuple[str, ...],
    out: Path | None,
    code: bool,
    again: bool,
    jobs: int,
) -> None:
    """Run notebooks with parameters: each becomes one HTML page that needs no network. Prints what was written.

    The tables behind the figures go beside the page, into NAME.data/, as CSV and Parquet. A notebook is a file, or the
    name of one that ships with mmlab. A notebook that fails leaves its page as far as it came, with the error.

    With --all, or when -o names a folder, an index of the pages with their headlines is written, too: index.html, and
    SHA256SUMS. --all makes only what is new or has changed: the notebook, a parameter, mmlab itself. The same
    parameters and versions give the same bytes.

    \b
    Examples:
      mmlab report 01_regression -f regression_uzp1 -p pages_to_scan=100
      mmlab report 02_other_splits -f params/migration_no_huge.yaml -o migration.html
      mmlab report 07_compare -p first=all_zero -p second=my.yaml              two params files beside each other
      mmlab report 01_regression 02_other_splits --each -f all_zero -f bimodal -o two-by-two/
      mmlab report --all
    """
    from mmlab.report import execute as one
    from mmlab.report import index as many

    place = out or Path("reports")
    page = place.suffix == ".html"
    if everything:
        if notebooks or params or each or settings or code or page:
            raise click.UsageError("--all makes the standard reports: it goes with -o DIR, --again and --jobs only.")
        requests = many.standard(place)
    else:
        if not notebooks:
            raise click.UsageError("Name a notebook, such as 01_regression; or --all for the standard reports.")
        if each and not params:
            raise click.UsageError("--each makes a report for each -f FILE: name some.")
        files = [find_params(name) for name in params]
        groups = [(file,) for file in files] if each else [tuple(files)]
        pairs = [(one.find_notebook(name), group) for name in notebooks for group in groups]
        if page and len(pairs) > 1:
            raise click.UsageError(f"{len(pairs)} reports do not fit into one file: name a folder with -o.")
        requests = [one.Request(*pair, _parse(settings, "-p"), place, code) for pair in pairs]
    wanted = many.to_make(requests, again or not everything)
    if wanted:
        _warm_up()
    failed = 0
    with _steps() as progress:
        for request, error in zip(wanted, many.make_all(wanted, jobs, progress), strict=True):
            _say(str(request.page))
            if error:
                failed += 1
                _say(f"mmlab: {error}. {request.page} has the results up to there", err=True)
    if everything or (out and not page):
        if unchanged := len(requests) - len(wanted):
            click.echo(f"{unchanged} of {len(requests)} were up to date")
        click.echo(many.write_index(place, requests))
    sys.exit(failed > 0)


@cli.command()
@click.argument("folder", required=False, metavar="[FOLDER]", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Default: the first free one from 8888 on.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("--copy-only", is_flag=True, help="Copy or update the notebooks and params files, and open nothing.")
def lab(folder: Path | None, port: int | None, no_browser: bool, copy_only: bool) -> None:
    """Open JupyterLab on the explorer, on this machine only, with the Python that runs this.

    In a clone the notebooks are opened in place. Elsewhere, or with FOLDER (default: mmlab-lab), they are copied there
    with the params files first. What you have changed in it stays: a newer version is put beside it. A file that
    you remove comes back as it is shipped.

    \b
    Examples:
      mmlab lab
      mmlab lab ~/ksm --no-browser --port 9000
    """
    from mmlab.explorer import lab as labs

    here = labs.clone() if folder is None and not copy_only else None
    if here is None:
        here = folder or labs.FOLDER
        for line in labs.copy(here):
            click.echo(line)
    if not copy_only:
        _warm_up()
        labs.serve(here, port, browser=not no_browser, say=click.echo)


@cli.command()
@click.option(
    "--params",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Flat YAML file: memory, knobs and rates to ask about; a later file wins.",
)
@_set
@click.option("--variant", "chosen", multiple=True, metavar="NAME", help="Only this variant; may be given again.")
@click.option("--only", multiple=True, metavar="KEY", help="Only this question, e.g. c1, or all of a letter, e.g. c.")
@click.option("--json", "as_json", is_flag=True, help="Plain data instead of text: every cell unrounded.")
def verdict(
    files: tuple[Path, ...], settings: tuple[str, ...], chosen: tuple[str, ...], only: tuple[str, ...], as_json: bool
) -> None:
    """Ask the mailing list's questions of every variant, and print the matrix as text for a mail.

    A row a question, a column a variant, in each cell a number computed from a run, and a sign: + is among the best of
    its row, - among the worst, = all are the same. Below the matrix: what each number is, its unit, who asked, and
    what was run for it.

    Each question has its own scene: blocks migrate, pressure comes, KSM is enabled late, khugepaged runs against ksmd,
    and so on. Memory, knobs and rates of these scenes are those of --params and --set; what a scene is about (run,
    khugepaged, policy, events, when to end) it decides itself. Without any: 32 MiB, three quarters zero-filled.

    \b
    Examples:
      mmlab verdict
      mmlab verdict --only c --only d --set max_ptes_none=409 --set zero_fraction=0.9
      mmlab verdict --params params/underused_pressure.yaml --variant ksm-opt-out --variant v1-mergeable
      mmlab verdict --json > verdict.json
    """
    import json

    from mmlab.scenario import Scenario
    from mmlab.studies import verdict as verdicts
    from mmlab.variants import VARIANTS

    values = dict(verdicts.BASE)
    for file in files:
        values |= _plain(file)
    values |= _parse(settings)
    _check(None, values)
    base = Scenario(**values)
    _warm_up()
    with _steps() as progress:
        found = verdicts.verdict(base, chosen or tuple(VARIANTS), only or tuple(verdicts.QUESTIONS), progress)
    click.echo(json.dumps(found.as_json(), indent=1, ensure_ascii=False) if as_json else found.text())


def _plain(file: Path) -> dict[str, Any]:
    """A flat params file; what it says is checked like --set."""
    from mmlab.report.execute import read_params

    values = read_params(file)
    _check(None, values)
    return values


@cli.command()
@click.argument("words", nargs=-1, metavar="[RULE | WORDS]…")
@click.option("--list", "every", is_flag=True, help="All rules, a line each.")
def rule(words: tuple[str, ...], every: bool) -> None:
    """Print rules of the specification: their text, the code that implements them, and what shows that they hold.

    A RULE is a number, with or without its file. Other WORDS list the rules whose text has them.

    \b
    Examples:
      mmlab rule M5d
      mmlab rule ksm-merge M5d thp-split Q3.2
      mmlab rule "dead node"
      mmlab rule --list
    """
    from mmlab.spec.rules import FILES, resolve, rules, search
    from mmlab.spec.rules import rule as find

    cited = re.findall(rf"(?:(?:{'|'.join(FILES)}) )?\S+", " ".join(words))
    if words and any(map(resolve, cited)):
        click.echo("\n\n".join(str(find(one)) for one in cited))
        return
    if not (words or every):
        raise click.UsageError("name a rule, or words to search for, or ask for --list")
    for found in rules().values() if every else search(" ".join(words)):
        start = " ".join(found.text.split())
        click.echo(f"{found.name:20}{start[:90]}{' …' if len(start) > 90 else ''}")


@cli.command()
def variants() -> None:
    """The kernel variants: which splits remap zero-filled pages to the shared zeropage, and who proposed that."""
    from mmlab.variants import VARIANTS

    width = max(map(len, VARIANTS))
    for v in VARIANTS.values():
        click.echo(f"{v.name:{width}}  {v.summary}")
        click.echo(_wrapped(f"{v.who} — {v.where}", width + 2))


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]…")
def params(names: tuple[str, ...]) -> None:
    """Every parameter: default, unit, allowed range, meaning and source. With names: only these.

    \b
    Examples:
      mmlab params
      mmlab params pages_to_scan zero_fraction
    """
    from mmlab.scenario import flat_fields

    fields = flat_fields()
    for name in names:
        if name not in fields:
            raise unknown("parameter", name, fields, "`mmlab params` prints all of them.")
    for p in sorted(fields.values(), key=lambda p: ("knob", "machine", "workload", "horizon").index(p.kind)):
        if names and p.name not in names:
            continue
        default = f'"{p.default}"' if p.type is str else str(p.default).lower() if p.type is bool else p.default
        allowed = f"   [{p.allowed}]" if p.allowed else ""
        click.echo(f"  {p.name}: {default}{f' {p.unit}' if p.unit else ''}{allowed}")
        click.echo(_wrapped(p.help + (f" ({p.source})" if p.source else ""), 6) + "\n")


@cli.command()
def schema() -> None:
    """A JSON schema of params files: editors that know it complete names, explain them, and mark what is wrong.

    \b
    The files of params/ name it in their first line; in a file of yours:
      mmlab schema > scenario.schema.json
      # yaml-language-server: $schema=scenario.schema.json
    """
    from mmlab import schema as schemas
    from mmlab.engine.costs import cost_sets

    click.echo(schemas.text(cost_sets()), nl=False)


@cli.command("compile")
def compile_() -> None:
    """Compile the model now; otherwise the first simulation does (about 20 s, once after each installation)."""
    _warm_up()
    click.echo("The model is compiled.")


# -- helpers ------------------------------------------------------------------------------------------------------


def _warm_up() -> None:
    """Compile before anything is timed, forked or drawn, and say so."""
    from mmlab.kernel.jit import warm_up

    with _announced():
        warm_up()


def _announced() -> AbstractContextManager[None]:
    """Within it, a first compilation is said on stderr."""
    from mmlab.kernel.jit import announced

    return announced(lambda text: click.echo(text, err=True))


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, 110, initial_indent=" " * indent, subsequent_indent=" " * indent)


def _about(path: Path, error: UserError) -> str:
    text = str(error)
    return f"mmlab: {text}" if text.startswith(str(path)) else f"mmlab: {path}: {text}"


def _parse(settings: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """``name=value`` as a YAML file would say it."""
    import yaml

    out: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{option} {setting}: it must be NAME=VALUE, e.g. {option} pages_to_scan=1000")
        try:
            out[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            out[name.strip()] = value
    return out


def _check(variant: str | None, overrides: dict[str, Any]) -> None:
    """What is wrong for every file is said once, before anything runs."""
    from mmlab.scenario import Scenario, flat_fields
    from mmlab.variants import resolve

    for name in overrides:
        if name not in flat_fields():
            raise unknown("parameter", name, flat_fields(), "`mmlab params` explains every one.")
    names = [name for name in (variant, overrides.get("variant")) if name is not None]
    for name in names:
        resolve(name)
    alone = {name: value for name, value in overrides.items() if not name.startswith(("horizon", "until"))}
    Scenario(**alone)


def _expand(files: Sequence[Path], only: Sequence[str], endings: tuple[str, ...]) -> list[Path]:
    """Files as they are, folders as the files in them that could be meant."""
    out: list[Path] = []
    for path in files:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith(endings) and not p.name.startswith("."))
            found = [p for p in inside if not only or any(fnmatch.fnmatch(p.name, glob + "*") for glob in only)]
            if not found:
                chosen = f" that begins like {' or '.join(only)}" if only else ""
                raise UserError(f"{path}: there is no {' or '.join(endings)} file{chosen} in this folder")
            out += found
        elif not path.exists():
            raise UserError(f"{path}: there is no such file")
        else:
            out.append(path)
    return out


def _say(text: str, err: bool = False) -> None:
    """One line, above the progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr if err else sys.stdout)


@contextmanager
def _bar(wanted: bool) -> Iterator[Callable[[float], None] | None]:
    """A bar over one run on a terminal's stderr: takes the share that is done."""
    from tqdm import tqdm

    if not wanted or not sys.stderr.isatty():
        yield None
        return
    with tqdm(total=1.0, leave=False, file=sys.stderr, bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:

        def update(share: float) -> None:
            bar.update(share - bar.n)

        yield update


@contextmanager
def _steps(wanted: bool = True) -> Iterator[Callable[[float, float, str], None] | None]:
    """Show a bar over many runs where stderr is a terminal; yield its progress function."""
    from tqdm import tqdm

    if not wanted or not sys.stderr.isatty():
        yield None
        return
    with tqdm(unit="run", leave=False, file=sys.stderr) as bar:

        def update(done: float, total: float, what: str) -> None:
            bar.total = total
            bar.set_postfix_str(what)
            bar.update(done - bar.n)

        yield update


def _each(function: Callable[[Path], _Result], paths: list[Path], jobs: int) -> Iterator[_Result]:
    """Yield the results in the order of the files, with a progress bar where there are several."""
    if jobs > 1 and len(paths) > 1:  # otherwise every process would compile
        _warm_up()
    with _announced(), _steps(len(paths) > 1) as progress:
        yield from each(function, paths, jobs, progress)
