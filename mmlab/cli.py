"""The command line: a thin mirror of the Python functions, with their messages and no rules of its own.

Exit status 0: done, and for ``compare``: everything is exact; 1: something differs, a notebook or a scenario failed, or
goals cannot be met; 2: a mistake in the input; 130: interrupted (what was finished is kept).
"""

import json
import os
import re
import signal
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, wraps
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import yaml
from tqdm import tqdm

from mmlab.errors import UserError, located, unknown
from mmlab.limits import cpus
from mmlab.params import check_folder, find_params, parse_yaml, quantity, seconds, write_atomically, writing
from mmlab.workers import Progress, each, executor, keep_freed_memory

TRACE = ".json.gz"
MOST_TIMES = 100_000
AT_LEAST_0, AT_LEAST_1, JOBS = click.IntRange(0), click.IntRange(1), click.IntRange(1, 1024)
PATH, FILE = click.Path(path_type=Path), click.Path(path_type=Path, dir_okay=False)


class _Output(click.Path):
    """A file to be written, with one of some endings: that it can be is tried before anything runs."""

    def __init__(self, *endings: str) -> None:
        super().__init__(path_type=Path, dir_okay=False)
        self.endings = endings

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        file = Path(str(super().convert(value, param, ctx)))
        if file.suffix not in self.endings:
            allowed = f"a file that ends in {', '.join(self.endings)}"
            raise UserError(parameter=param.opts[0], value=str(file), allowed=allowed)
        check_folder(file)
        return file


class _Time(click.ParamType):
    """A simulated or real time, such as 30s, 5m or 2h; in s."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002
        return seconds(value, param.opts[0])


CSV, PARQUET, YAML, TIME = _Output(".csv"), _Output(".parquet"), _Output(".yaml", ".yml"), _Time()


class _Commands(click.Group):
    """Commands in the order in which one needs them; those that take `progress` run the model (see `computes`)."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def command(self, *args: Any, **kwargs: Any) -> Any:
        made = super().command(*args, **kwargs)
        return lambda command: made(computes(command) if "progress" in signature(command).parameters else command)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="mmlab", message="mmlab %(version)s")
def cli() -> None:
    """Page-exact simulation of Linux KSM and transparent huge pages, and of the fixes proposed for the two together.

    \b
    First steps:
      mmlab simulate params/regression_uzp1.yaml                         what happens on mainline
      mmlab simulate params/regression_uzp1.yaml --variant ksm-opt-out   ... and with another variant
      mmlab params                                                       every parameter
      mmlab rule M5d                                                     a rule of the model
      mmlab verdict                                                      the list's questions, variant by variant
      mmlab report 01_regression -f regression_uzp1                      a page with figures
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line: turn mistakes into one message on stderr and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a locale without "…" or "±"
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # without the line of code that warns
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is temporary is removed
    keep_freed_memory()
    try:
        Path.cwd()  # or libraries cannot be loaded
        status = cli.main(args, prog_name="mmlab", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was finished is kept", err=True)  # click has ended the line
        status = 130
    except BrokenPipeError:  # `mmlab params | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (UserError, OSError) as error:  # the latter: a full disk; only getcwd misses a file without a name
        gone = isinstance(error, FileNotFoundError) and not error.filename
        click.echo(f"mmlab: {'the current folder was removed' if gone else error}", err=True)
        status = 2
    sys.exit(status or 0)


def computes(command: Callable[..., None]) -> Callable[..., None]:
    """Pass `progress` to a command that runs the model, and announce on stderr if the model is compiled meanwhile."""

    @wraps(command)
    def run(**options: Any) -> None:
        from mmlab.kernel.jit import announced

        with announced(partial(click.echo, err=True)), _progress() as progress:
            command(**options, progress=progress)

    return run


many = partial(click.option, multiple=True)
files_argument = click.argument("files", nargs=-1, required=True, metavar="FILE…", type=PATH)
variant_option = click.option("--variant", metavar="NAME", help="Replaces the file's variant (`mmlab variants`).")
values_option = partial(many, metavar="NAME=VALUE", callback=lambda _, param, given: _parse(given, param.opts[0]))
set_option = values_option("--set", "changes", help="Change one parameter (`mmlab params`); repeatable.")
only_option = many("--only", metavar="GLOB", help="In folders, only files whose names start like this, e.g. 'act-*'.")
port_option = click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Default: 8888, or a free one.")
browser_option = click.option("--no-browser", "browser", flag_value=False, default=True, help="Only print the address.")
jobs_option = click.option("--jobs", default=1, show_default=True, type=JOBS, help="Processes that share the work.")


@cli.command()
@files_argument
@variant_option
@set_option
@click.option("--policy", metavar="NAME", help="Who turns ksmd's knobs: ksmtuned, proxmox, kubevirt, mom, kata, none.")
@click.option("--ksmtuned", "conf", type=FILE, metavar="CONF", help="Its configuration: a ksmtuned.conf.")
@many("--at", type=TIME, help="Print the counters at this simulated time, e.g. 30s, 5m, 2h; repeatable.")
@click.option("--every", type=TIME, help="Print the counters at this interval.")
@click.option("--sysfs", is_flag=True, help="Print what `grep . /sys/kernel/mm/ksm/*` would, for `mmlab host`.")
@click.option("--table", type=CSV, metavar="FILE.csv", help="Write the samples, or those at the times.")
@click.option("--events", "file", type=PARQUET, metavar="FILE.parquet", help="Write each decision about each page.")
@many("--kind", "kinds", metavar="EVENT", help="Of --events: only these, e.g. visit, split, remap; repeatable.")
@click.option("--process", type=int, help="Of --events: only those of this process.")
@click.option("--pages", nargs=2, type=int, metavar="FIRST LAST", help="Of --events: only those of these pages.")
@click.option("--seconds", nargs=2, type=float, metavar="FROM TO", help="Of --events: only those of this time.")
@click.option("--out", type=PATH, metavar="DIR", help="Write each prediction as a trace into this folder.")
@only_option
@jobs_option
def simulate(files: Any, changes: Any, policy: Any, conf: Any, only: Any, jobs: int, progress: Any, **how: Any) -> None:
    """Run scenario files (*.yaml), the scenarios of kernel traces (*.json.gz), or folders of these.

    Prints KSM's counters at the end, to compare with a host's, then a summary of each run. --at and --every print the
    counters over time instead, and --table writes every counter and knob of these samples. With --out, every prediction
    is written as a trace instead: a sample after every batch and event, and page maps where a recording has them, or at
    the end.

    
    Examples:
      mmlab simulate params/all_zero.yaml
      mmlab simulate params/regression_uzp0.yaml --set pages_to_scan=4000 --set memory_mib=2G
      mmlab simulate params/ksmtuned.yaml --policy proxmox --ksmtuned /etc/ksmtuned.conf
      mmlab simulate params/shared_image.yaml --at 10s --at 1m
      mmlab simulate params/shared_image.yaml --every 5s --table counters.csv
      mmlab simulate params/shared_image.yaml --sysfs > dump.txt; mmlab host dump.txt
      mmlab simulate params/all_zero.yaml --events events.parquet --kind split --kind remap --seconds 0 5
      mmlab simulate mmlab/recordings --out predicted/
    """
    from mmlab.policies import read_conf

    out, table = how["out"], how["table"]
    if out and (how["at"] or how["every"] or how["sysfs"] or table):
        raise click.UsageError("--out writes traces: it goes without --at, --every, --sysfs and --table.")
    tuner = {"name": policy or "ksmtuned", **read_conf(conf)} if conf else policy
    overrides = _checked(changes | ({"policy": tuner} if tuner else {}), how["variant"])
    paths = _expand(files, only, (TRACE, ".yaml", ".yml"))
    given = {name: how.pop(name) for name in ("file", "kinds", "process", "pages", "seconds")}
    wanted = {name: value for name, value in given.items() if value not in (None, ())}
    if wanted and (len(paths) > 1 or out or "file" not in wanted):
        raise click.UsageError("--events, with or without filters, takes one FILE and goes without --out.")
    if out:
        _check_distinct(f"{_name(path)}{TRACE}" for path in paths)
    alone = progress if len(paths) == 1 else None
    task = partial(_predict if out else _show, several=len(paths) > 1, overrides=overrides, bar=_share(alone), **how)
    tables = []
    results = each(partial(_tried, partial(task, wanted=wanted)), paths, jobs, None if alone else progress)
    for _, (text, rows) in _told(paths, results):
        _say(text)
        tables.append(rows)
    if table and tables:
        import pandas as pd

        write_atomically(table, pd.concat(tables).set_index("file").to_csv().encode())
    sys.exit(2 * (len(tables) < len(paths)))


def _told(paths: list[Path], results: Iterable[Any]) -> Iterator[Any]:
    """Yield each file with its result; print the mistakes that others have instead."""
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, UserError):
            _say(f"mmlab: {result}", err=True)
        else:
            yield path, result


def _tried(task: Callable[[Path], Any], path: Path) -> Any:
    """Return the result of a task for a file, or the mistake in the file."""
    try:
        with located(path):
            return task(path)
    except UserError as error:
        return error


def _predict(path: Path, *, variant: Any, overrides: Any, out: Path, bar: Any, **_: Any) -> tuple[str, None]:
    """Write a prediction as a trace; return where it is."""
    from mmlab.results import run, trace

    name = _name(path)
    target = out / f"{name}{TRACE}"
    if target.resolve() == path.resolve():
        hint = "Name another folder."
        raise UserError("it is where the file itself is", parameter="--out", value=str(out), hint=hint)
    if path.name.endswith(TRACE):
        prediction = trace.predict(trace.read(path), variant, overrides=overrides, progress=bar)
    else:
        scenario = trace.load(path, **{"sample_limit": 10**8} | overrides)
        prediction = trace.from_run(run.simulate(scenario, variant=variant, maps_at="end", progress=bar))
    trace.write(target, prediction | {"name": name})
    return str(target), None


def _show(path: Path, *, variant: Any, overrides: Any, bar: Any, wanted: Any, several: bool, **how: Any) -> Any:
    """Return what to print of a run, and its samples for --table."""
    from mmlab.results import run as runs
    from mmlab.results.decisions import Events
    from mmlab.results.trace import load

    scenario = load(path, **({"sample_limit": 20_000} if path.name.endswith(TRACE) else {}) | overrides)
    times = _times(how["at"], how["every"], scenario.horizon_seconds)
    asked: Any = {"variant": variant, "samples_at": times, "events": Events(**wanted) if wanted else False}
    try:
        with runs.defer_ctrl_c() as pressed:
            run = runs.simulate(scenario, **asked, progress=bar, interrupted=pressed)
    except runs.Interrupted as stopped:
        _say(_summary(f"{path}: {stopped.args[0].partition(';')[0]}", stopped.run.summary(), stopped.run))
        raise
    end = run.rows["time_ns"][-1] / 1e9
    times = [at for at in times if at <= end] or [end] * bool(times)
    text = _summary(str(path), run.counters(times) if times else run.summary(), run)
    if how["sysfs"]:
        dumps = [time.strftime("%c\n", time.gmtime(at)) + run.sysfs(at) for at in times] or [run.sysfs()]
        text = re.sub(r"(?m)^/", f"{_name(path)}: /" if several else "/", "\n".join(dumps))
    if not how["table"]:
        return text, None
    return text, run.samples.iloc[run.rows_at(times) if times else slice(None)].assign(file=str(path))


def _share(progress: Progress) -> Callable[[float], None] | None:
    """Return what takes the share of a run that is done."""
    return progress and (lambda share: progress(share, 1.0, ""))


def _times(at: list[float], every: float | None, end: float) -> list[float]:
    """Return the times in s of --at and --every up to the end, 0 if that is not known, in order."""
    if end and (late := [each for each in at if each > end]):
        hint = "--set horizon_seconds=… sets the end."
        raise UserError(parameter="--at", value=f"{late[0]:g} s", allowed=f"at most {end:g} s, the end", hint=hint)
    count = 0 if not every else int(end / every) if end else MOST_TIMES
    if count > MOST_TIMES:
        raise UserError(f"gives {count:,} times", parameter="--every", value=f"{every:g} s", allowed="longer")
    return sorted({*at, *((every or 0) * (i + 1) for i in range(count))})


def _check_distinct(files: Iterable[str]) -> None:
    """Refuse to write several results into one file."""
    for file, count in Counter(files).items():
        if count > 1:
            raise UserError("several results would be written as it", parameter=file, hint="Rename what they are of.")


def _name(path: Path) -> str:
    """Return the name of a file without its ending."""
    return re.sub(r"\.(json\.gz|ya?ml)$", "", path.name)


def _summary(title: str, text: str, run: Any) -> str:
    return "\n".join(filter(None, (title, textwrap.indent(text, "  "), run.kernel_bug)))


@cli.command()
@files_argument
@only_option
@jobs_option
@click.option("-v", "--verbose", is_flag=True, help="Every difference, not only the first.")
@click.option("-q", "--quiet", is_flag=True, help="Only traces that are not exact, and the totals.")
def compare(files: Any, only: Any, jobs: int, verbose: bool, quiet: bool, progress: Progress) -> None:
    """Predict recorded kernel traces and compare: every counter of every sample, every map, every frame count.

    Tracepoints are held against the model's decisions, where a recording has them. Prints a line for each trace, then
    the totals. Exit status 0 only when everything is exact. The prediction reads the recording's scenario, variant,
    kernel and the places of its maps, nothing else.

    
    Examples:
      mmlab compare mmlab/recordings
      mmlab compare recorded/ --only 'act-*' --only 'chain-*' --quiet
    """
    from mmlab.host.tracepoints import compare_file

    paths, found = _expand(files, only, (TRACE,)), []
    for path, result in _told(paths, each(partial(_tried, compare_file), paths, jobs, progress)):
        found.append(result)
        if not (result.exact and quiet):
            _say("\n    ".join([f"{path.name}: {result}", *map(str, result.differences * verbose)]))

    def total(name: str) -> int:
        return sum(getattr(one, name) for one in found)

    exact, kinds = total("exact"), ["samples", "maps", "frames"] + ["tracepoints"] * (total("tracepoints") > 0)
    counts = (f"{kind} exact {total(f'{kind}_exact')}/{total(kind)}" for kind in kinds)
    _say(", ".join([f"traces exact {exact}/{len(paths)}", *counts]))
    sys.exit(2 if len(found) < len(paths) else exact != len(paths))


@cli.command()
@click.argument("files", nargs=-1, metavar="[SCENARIO…]", type=PATH)
@click.option("-o", "--out", default="recorded", show_default=True, type=PATH, metavar="DIR", help="The folder.")
@click.option("--variant", metavar="NAME", help="The fix that the running kernel has [none: mainline].")
@set_option
@click.option("--compare", "compares", is_flag=True, help="Predict each recording at once, and compare.")
@click.option("--tracepoints", is_flag=True, help="Keep what the kernel's tracepoints of KSM and THPs say, too.")
@click.option("--free", is_flag=True, help="Let ksmd run by its own clock, instead of a batch at a time.")
@click.option("--times", default=2, show_default=True, type=AT_LEAST_1, help="Recordings of each that must agree.")
@click.option("--check", "checks", is_flag=True, help="Only say what this machine can record.")
def record(files: Any, out: Path, changes: Any, compares: bool, checks: bool, progress: Progress, **how: Any) -> None:
    """Record what the running kernel does with scenarios (*.yaml), or with those of recordings (*.json.gz).

    Needs root, and a kernel with KSM that nobody uses meanwhile. ksmd's knobs are changed while this runs, and put back
    whatever happens. What the running kernel cannot do is refused before anything starts.

    Exit status 1: with --compare, something differs.

    \b
    Examples:
      mmlab record --check
      mmlab record params/regression_uzp1.yaml --set memory_mib=64 --set horizon_batches=100 -o recorded --compare
      mmlab compare recorded
    """
    os.environ["NUMPY_MADVISE_HUGEPAGE"] = "0"  # or khugepaged spends its time on this process
    from mmlab.host import record as recorder
    from mmlab.results import trace as traces

    guest = click.get_current_context().obj  # of `mmlab vm`; None: this machine
    if not guest and (checks or not files):
        _say(recorder.check())
        return
    paths = _expand(files, (), (TRACE, ".yaml", ".yml"))
    overrides, exact = _checked(changes, how["variant"]), 0
    how |= {"variant": how["variant"] or "", "tracepoints": ["ksm", "huge_memory"] * how["tracepoints"]}
    how |= {"mode": "free" if how.pop("free") else "stepped", "alone": bool(guest)}
    how["kernel"] = str(overrides.get("kernel") or (guest.release if guest else ""))
    plans = [recorder.plan(traces.load(path, **overrides), **how) | {"name": _name(path)} for path in paths]
    check_folder(out / TRACE)
    recordings = guest.carry_out(plans, progress) if guest else (recorder.record(plan, progress) for plan in plans)
    for path, recording in _told(paths, recordings):
        if "kernel" in overrides:
            recording["kernel"] += f" as {overrides['kernel']}"
        traces.write(target := out / f"{_name(path)}{TRACE}", recording)
        found = traces.compare(recording, traces.predict(recording)) if compares else None
        exact += found is None or found.exact
        moved = f"; others moved {', '.join(recording['moved'])}" if recording["moved"] else ""
        _say(f"{target}: {found or '{} samples'.format(len(recording['samples']))}{moved}")
    sys.exit(exact < len(paths))


@cli.command()
@click.argument("kernel", required=False, metavar="[KERNEL]")
@click.argument("words", nargs=-1, metavar="[-- record SCENARIO…]", type=click.UNPROCESSED)
@click.option("--fetch", metavar="VERSION", help="Only get that kernel from Debian with apt, and print where it is.")
def vm(kernel: str | None, words: tuple[str, ...], fetch: str | None) -> None:
    """Boot another kernel in QEMU, and record there what it does with scenarios; see `mmlab record`.

    KERNEL is a bzImage, such as /boot/vmlinuz-7.3, a folder in which one was built or unpacked, or a Debian package,
    linux-image-*.deb or linux-binary-*.deb. Nothing is installed, and nothing needs root here. Without KVM the kernel
    is emulated.

    Of the recorder, --variant names the fix that the kernel has, and --set kernel=7.3 the release that it is held
    against, if it is newer than what the model knows.

    \b
    Examples:
      mmlab vm --fetch 7.3
      mmlab vm $(mmlab vm --fetch 6.12) -- record params/regression_uzp1.yaml --set memory_mib=32 -o recorded --compare
      mmlab vm ~/linux/arch/x86/boot/bzImage -- record params/all_zero.yaml --set kernel=7.3 -o patched
      mmlab report 05_own_variant -p recordings=patched
    """
    from mmlab.host import vm as machines

    if fetch:
        _say(f"looking for Linux {fetch} among Debian's packages", err=True)
        click.echo(machines.fetch(fetch))
        return
    if not kernel or words[:1] != ("record",):
        raise click.UsageError("Name a kernel, and behind -- what to do: record SCENARIO….")
    with record.make_context("record", [*words[1:]], click.get_current_context(), obj=machines.find(kernel)) as inner:
        record.invoke(inner)


@cli.command()
@click.argument("files", nargs=-1, metavar="[FILE]…", type=FILE)
@click.option("-o", "out", type=YAML, metavar="FILE.yaml", help="Write the costs; `costs: FILE.yaml` uses them.")
@click.option("--record", "folder", type=PATH, metavar="DIR", help="Record the calibration set here first, as root.")
@click.option("--times", type=AT_LEAST_1, default=3, show_default=True, metavar="N", help="Recordings of each.")
@click.option("--machine", metavar="TEXT", help="Where it was recorded. Default: this computer's processor.")
def calibrate(files: Any, out: Path, folder: Path, times: int, machine: str, progress: Progress) -> None:
    """Fit the costs of ksmd's steps to recordings of its CPU time on a real kernel, and judge the fit.

    The model repeats each recorded scenario and counts ksmd's steps in every batch. The output is the cost of each step
    with its standard error; each scenario's CPU time as measured, and as predicted by costs fitted to all the other
    scenarios; and the median of these errors. Steps that the recording does not determine keep an estimate.

    With --record it records on the running kernel what it needs: some 30 scenarios, each several times, in five to ten
    minutes; a busy machine is no obstacle, as CPU time is measured. What is in DIR already is not recorded again.
    Another FILE is a kernel trace with lab_ksmd_cpu_ns among its fields (`mmlab record`), or a list of scenarios with
    their samples, like tests/calibration-6.18.json.gz. At least two scenarios are needed, with different kinds of
    memory: a step that occurs in only one of them cannot be predicted from the others.

    Exit status 1: in some scenario the model's counters differ from the recorded ones; that scenario was not used.

    \b
    Examples:
      sudo mmlab calibrate --record recorded/ -o my-host.yaml
      mmlab calibrate recorded/*.json.gz -o my-host.yaml
      mmlab simulate params/all_zero.yaml --set costs=my-host.yaml
    """
    from mmlab.host import calibrate as calibration

    if not (files or folder):
        raise click.UsageError("Name recordings, or a folder for new ones with --record.")
    files += tuple(calibration.record_all(folder, times, progress)) if folder else ()
    found = calibration.calibrate([one for file in files for one in calibration.read(file)], progress)
    _say(found.text())
    if out:
        with writing(out):
            write_atomically(out, found.cost_file(**calibration.origin(found, files, machine)).encode())
        _say(f"\n{out}")
    sys.exit(len(found.dropped) > 0)


@cli.command()
@click.argument("dumps", nargs=-1, required=True, metavar="DUMP…", type=FILE)
@click.option("-o", "out", type=YAML, metavar="FILE.yaml", help="Write the scenario that reproduces the dump.")
def host(dumps: Any, out: Path | None, progress: Progress) -> None:
    """Read the counters of a running host, say what they mean, and simulate memory that has them.

    DUMP is what `grep . /sys/kernel/mm/ksm/*` prints, in a file, or the same in another form: names and values, an
    issue or a mail with prompts around it, `virsh node-memory-tune`, or node_exporter's node_ksmd_*. /proc/vmstat,
    /proc/meminfo and ksmtuned.conf may stand beside it, as files of their own. Two dumps of a host, in one file or two,
    give rates.

    Prints what is saved, by what, and how long a full scan takes; then the counters of the last dump of each host
    beside those of a run.

    \b
    Examples:
      grep . /sys/kernel/mm/ksm/* > dump.txt; mmlab host dump.txt
      mmlab host dump.txt meminfo.txt /etc/ksmtuned.conf -o host.yaml
      mmlab simulate host.yaml --set use_zero_pages=1

    Exit status 1: a prediction of shared or unshared pages is off by more than 1 %.
    """
    from mmlab.host import dump

    hosts: dict[str, list[Any]] = {}
    for one in dump.read(dumps):
        hosts.setdefault(one.host, []).append(one)
    if out and len(hosts) > 1:
        raise UserError(f"{len(hosts)} hosts do not fit into one file", parameter="-o", value=str(out))
    exact = True
    for name, found in hosts.items():
        _say("\n".join([f"{name}:" if name else "", *found[-1].words()]).strip())
        for before, after in pairwise(found):
            _say("\n" + "\n".join(dump.rates(before, after)))
        if not found[-1].whole:
            continue
        made = dump.reproduce(found[-1], _share(progress))
        exact &= made.exact
        _say(f"\n{made.text()}")
        if out:
            write_atomically(out, made.scenario.as_yaml(about=f"Reproduces {', '.join(map(str, dumps))}").encode())
            _say(f"\n{out}")
    sys.exit(not exact)


@cli.command()
@click.option("--every", type=TIME, default="1s", show_default=True, help="Time between samples.")
@click.option("--for", "length", type=TIME, help="How long, e.g. 60s or 8h. Default: until Ctrl-C.")
@click.option("-o", "out", type=PARQUET, metavar="FILE.parquet", help="Keep the samples: added to those of the file.")
def watch(every: float, length: float | None, out: Path | None) -> None:
    """Watch KSM and THPs of the running kernel: a live table, or a line a sample where stdout is no terminal.

    Among the rates is what no counter of KSM shows: zero-filled pages that a split of a huge page, or a read fault,
    mapped to the zeropage in processes with mergeable memory. It needs root; the rest does not. Samples of -o are safe
    at once: after a crash, they are in FILE.parquet.journal until the file is next written.

    \b
    Examples:
      mmlab watch
      mmlab watch --every 10s --for 8h -o night.parquet; mmlab host night.parquet
    """
    from mmlab.host import watch as watching

    watching.show(every, length, out)


@cli.command()
@click.argument("pids", nargs=-1, type=AT_LEAST_1, metavar="[PID]…")
@click.option("--qemu", is_flag=True, help="All QEMUs.")
@click.option("--all-mergeable", is_flag=True, help="All processes with mergeable memory.")
@click.option("-o", "out", required=True, type=PARQUET, metavar="FILE.parquet", help="The file.")
@click.option("--rate", default="200M", show_default=True, help="Bytes that are read a second, at most.")
@click.option("--again", type=TIME, help="Read again after this time, and mark what has changed as volatile.")
def capture(pids: Any, qemu: bool, all_mergeable: bool, out: Path, rate: str, again: float | None) -> None:
    """Capture the memory of running processes as a workload, without its contents.

    FILE.parquet says which pages there are, in which folios, which are filled with zeroes, which are equal, and their
    order in memcmp; nothing of what is in them. It needs root and Linux 6.7. Pages that are not there, in swap, of
    files or shared are not read. Prints MiB of each kind.

    \b
    Examples:
      mmlab capture 4711 -o guest.parquet
      mmlab capture --qemu --rate 50M --again 60s -o guests.parquet
    In a scenario, the path relative to its file:
      process_list: [{workload: guest.parquet, count: 20}]
    """
    from mmlab.host import capture as capturing

    found, limit = capturing.find(pids, qemu, all_mergeable), quantity(rate, "bytes")
    if isinstance(limit, str) or limit <= 0:
        raise UserError(parameter="--rate", value=rate, allowed="an amount above 0, such as 50M or 1G")
    with _progress() as progress:
        _say(capturing.capture(found, out, limit, again, progress))


@cli.command()
@click.argument("grid", metavar="GRID.yaml")
@click.option("-o", "out", required=True, type=PATH, metavar="DIR", help="The folder of the rows, old and new.")
@click.option("--jobs", type=JOBS, metavar="N", help="Worker processes. Default: one per core.")
@click.option("--scheduler", metavar="tcp://HOST:PORT", help="Use the workers of a Dask scheduler (mmlab[cluster]).")
@click.option("--samples", is_flag=True, help="Keep each run's samples, too, in DIR/_samples/HASH.parquet.")
@click.option("--dry-run", is_flag=True, help="Only print what there is to do.")
def sweep(grid: str, out: Path, dry_run: bool, progress: Progress, **how: Any) -> None:
    """Run a grid of scenarios, and keep a row of metrics for each in DIR, as Parquet.

    GRID.yaml is a file, or the name of one in params/grids/:

    \b
      base: {params: regression_uzp0, memory_mib: 64}      shared by all: a params file, and what differs from it
      vary:                                                any parameter (`mmlab params`):
        variant: [mainline, v1-series]                       a list,
        thp_coverage: {low: 0, high: 1, step: 0.25}          a range in steps,
        pages_to_scan: {low: 100, high: 10000, count: 5, log: true}    or 5 values by equal factors
      design: full                                         every combination: 2 × 5 × 5 scenarios; instead
      # simulate_mib: 64                                   larger hosts in this much memory (`mmlab fleet --help`)
      # design: sobol                                      (or latin_hypercube): 256 points spread evenly, where a
      # samples: 256                                       range may be {low, high}, and has every value between them
      # seed: 1

    Rows in DIR are not computed again: the same command resumes a sweep that was stopped or killed, and a grid that
    has grown runs only its new scenarios. Another version of the model runs all of them anew. A scenario that fails is
    a row with its error; remove DIR/*-error.parquet to try these again.

    For a cluster, install mmlab[cluster] and the same mmlab everywhere, start `dask scheduler`, and on each machine
    `dask worker tcp://HOST:8786 --nworkers -1 --nthreads 1`. Workers need no access to DIR.

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
        todo = sweeps.plan(grid, out, samples=how["samples"])
        counts = f"{todo.scenarios:,} scenarios, {todo.there:,} are there, {len(todo.items):,} to run"
        _say(f"{out}: {counts}, {len(todo.impossible):,} of them impossible")
        for problem in todo.impossible[:5]:
            _say(f"  {problem}")
        return
    try:
        found = sweeps.sweep(grid, out, progress=progress, **how)
    except KeyboardInterrupt:
        _say(f"\nmmlab: {out}: the same command resumes the sweep", err=True)
        raise
    counts = f"{found.scenarios:,} scenarios, {found.there:,} were there, {found.ran:,} run in {found.seconds:.1f} s"
    _say(f"{out}: {counts}, {found.failed:,} with errors")
    sys.exit(found.failed > 0)


@cli.command()
@click.argument("workload", metavar="WORKLOAD|GOALS.yaml")
@variant_option
@set_option
@many("--goal", "goals", metavar="LIMIT", help="'NAME >= NUMBER', 'NAME <= NUMBER'; repeatable.")
@click.option("--within", metavar="TIME", help="ksmd's time: '90 s', '30 min', '2 h'. Default: the file's.")
@click.option("--minimise", metavar="NAME", help="What 'cheapest' means. Default: ksmd_cpu.")
@many("--by", metavar="PACE", help="fixed, advisor, ksmtuned (default: any of these), proxmox, kubevirt, mom, kata.")
@values_option("--levels", metavar="KNOB=[…]", help="Values to choose from; one value fixes the knob.")
@click.option("--simulate-mib", type=click.IntRange(2), metavar="N", help="Memory in which it is simulated; see fleet.")
@click.option("--runs", type=AT_LEAST_1, default=240, show_default=True, metavar="N", help="Most runs of the search.")
@click.option("--seed", default=0, show_default=True, type=AT_LEAST_0, help="Seed of the search.")
@click.option("--figure", type=_Output(".png", ".svg", ".pdf"), metavar="FILE.png", help="Draw the settings tried.")
@click.option("--table", type=CSV, metavar="FILE.csv", help="Write the whole Pareto front.")
@jobs_option
def tune(workload: str, changes: Any, figure: Any, table: Any, jobs: int, progress: Progress, **asked: Any) -> None:
    """Find the cheapest setting of ksmd that meets goals, and print the commands that set it.

    WORKLOAD is a params file or the name of one in params/, with --goal; or a goals file, or the name of one in
    params/goals/, which needs nothing else. The search chooses among pages_to_scan and sleep_millisecs, the advisor's
    knobs, or the parameters of a tuner, and use_zero_pages, smart_scan and max_ptes_none. The cheapest setting takes
    the least CPU time of ksmd.

    \b
    A goal limits one of these measures, taken at the end of --within:
      saved           %     share of the ideal saving: one frame kept for each distinct content of mergeable memory,
                            none for zero-filled pages; never above 100 %
      saved_mib       MiB   memory saved in all, relative to the same memory with KSM off
      thps_lost       %     THPs missing, relative to the same memory with KSM off
      ksmd_cpu        %     CPU time of ksmd over --within; khugepaged_cpu likewise
      ...                   and each metric that `mmlab simulate` prints, in its unit

    The output is the setting, the price of each limit, the Pareto front of the settings tried, and commands for sysfs
    or the tuner. Where the goals cannot be met together, it names the nearest that can be. --simulate-mib simulates a
    large host in less memory, as `mmlab fleet` does: the setting and all figures are those of the host.

    \b
    Examples:
      mmlab tune one_image
      mmlab tune keep_thps --variant ksm-opt-out --figure front.png
      mmlab tune bimodal --set memory_mib=64 --within "2 min" --goal "saved >= 90 %" --goal "ksmd_cpu <= 5 %"
      mmlab tune my.yaml --within "30 min" --goal "saved >= 80 %" --by fixed --levels sleep_millisecs=20 --jobs 2
      mmlab tune my.yaml --within "2 h" --goal "saved >= 50 %" --by kubevirt --by mom --simulate-mib 256

    Exit status 1: the goals cannot be met.
    """
    from mmlab.figures.theme import figure_of
    from mmlab.studies import tune as search
    from mmlab.studies.goals import Goals

    how = {name: asked.pop(name) for name in ("runs", "seed")}
    goals = Goals.load(workload, set=changes, **asked)
    with executor(jobs) if jobs > 1 else nullcontext() as pool:
        found = search.tune(goals, executor=pool, progress=progress, **how)
    _say(found.text())
    if table:
        write_atomically(table, found.front.to_csv(index=False).encode())
    if figure:
        figure_of(found.plot()).savefig(figure, dpi=150)
    sys.exit(not found.feasible)


@cli.command()
@click.argument("plan", metavar="FLEET.yaml")
@many("--variant", "variants", metavar="NAME", help="Replaces the file's variants; repeatable.")
@click.option("--hosts", type=AT_LEAST_1, metavar="N", help="Replaces the file's number of hosts.")
@click.option("--samples", type=click.IntRange(2), metavar="N", help="Hosts of each kind that are simulated.")
@click.option("--simulate-mib", type=click.IntRange(2), metavar="N", help="Memory in which a host is simulated.")
@click.option("--seed", type=AT_LEAST_0, metavar="N", help="Seed for drawing hosts.")
@click.option("--table", type=CSV, metavar="FILE.csv", help="Write a row for each simulated host and variant.")
@jobs_option
def fleet(plan: str, variants: Any, table: Path | None, jobs: int, progress: Progress, **changes: Any) -> None:
    """Estimate the memory (TiB), CPU time (cores) and THPs of a fleet of hosts, under each variant.

    FLEET.yaml is a file, or the name of one in params/fleets/:

    \b
      hosts: 100000
      samples: 8                                     hosts of each kind that are simulated, and represent the others
      simulate_mib: 64                               … in this much memory, each page standing for several
      variants: [mainline, ksm-opt-out]              the others are compared with the first
      mix:
        - {params: bimodal, weight: 0.6, memory_gib: 512, pages_to_scan: 4000}    a file of params/, and changes to it
        - params: shared_image
          weight: 0.4
          zero_fraction: {low: 0.3, high: 0.6}       from host to host: a range (log: true for equal factors)
          pages_to_scan: [1000, 2000, 4000]          or one of these

    Prints fleet totals with sampling error, per-host quantiles, and paired differences between variants.

    With simulate_mib, each simulated page represents `factor` real ones: a step costs `factor` times as much, and ksmd,
    khugepaged, migration and pressure are slowed down by that factor, so that a full scan takes as long as on the host.
    This assumes that all of a host's memory is of the same kind.

    \b
    Examples:
      mmlab fleet three_kinds
      mmlab fleet three_kinds --samples 32 --jobs 4 --variant mainline --variant v1-series
      mmlab fleet mine.yaml --simulate-mib 256 --table hosts.csv
    """
    from mmlab.studies import fleet as fleets

    estimate = fleets.fleet(fleets.Plan.load(plan, **changes), variants=variants, jobs=jobs, progress=progress)
    _say(estimate.text())
    if table:
        write_atomically(table, estimate.hosts.to_csv(index=False).encode())


@cli.command()
@click.argument("notebooks", nargs=-1, metavar="[NOTEBOOK]…")
@click.option("--all", "everything", is_flag=True, help="The standard reports and their index, instead of NOTEBOOK.")
@many("-f", "params", metavar="FILE", help="Flat params file, or the name of one; repeatable.")
@click.option("--each", "apart", is_flag=True, help="A report for each FILE, instead of one with all of them.")
@values_option("-p", "changes", help="One parameter; wins over files.")
@click.option("-o", "out", type=PATH, metavar="FILE.html|DIR", help="The page, or the folder. Default: reports/")
@click.option("--code", is_flag=True, help="Show the code cells, too.")
@click.option("--again", is_flag=True, help="With --all: make also the pages that would not change.")
@click.option("--jobs", default=cpus, type=JOBS, help="Reports made at a time. Default: one per core.")
def report(everything: bool, out: Path | None, again: bool, jobs: int, progress: Progress, **asked: Any) -> None:
    """Run notebooks with parameters: each becomes one HTML page that needs no network. Prints what was written.

    The tables behind the figures go beside the page, into NAME.data/, as CSV and Parquet. A notebook is a file, or the
    name of one that ships with mmlab. A notebook that fails leaves its page up to the failing cell, with the error.

    With --all, or when -o names a folder, an index of the pages with their headlines is written, too: index.html, and
    SHA256SUMS. --all makes only what is new or has changed: the notebook, a parameter, mmlab itself. The same
    parameters and versions give the same bytes.

    
    Examples:
      mmlab report 01_regression -f regression_uzp1 -p pages_to_scan=100
      mmlab report 02_other_splits -f params/migration_no_huge.yaml -o migration.html
      mmlab report 07_compare -p first=all_zero -p second=my.yaml              two params files beside each other
      mmlab report 01_regression 02_other_splits --each -f all_zero -f bimodal -o two-by-two/
      mmlab report --all
    """
    from mmlab.report import index
    from mmlab.report.execute import make_all

    place, failed = out or Path("reports"), 0
    page = place.suffix == ".html"
    if place.suffix == ".htm":
        raise UserError(parameter="-o", value=str(place), allowed="a file that ends in .html, or a folder")
    if everything and (page or any(asked.values())):
        raise click.UsageError("--all makes the standard reports: it goes with -o DIR, --again and --jobs only.")
    requests = index.standard(place) if everything else _requests(place, **asked)
    if page and len(requests) > 1:
        raise click.UsageError(f"{len(requests)} reports do not fit into one file: name a folder with -o.")
    _check_distinct(str(request.page) for request in requests)
    wanted = [request for request in requests if again or not everything or not request.is_made()]
    for request, error in zip(wanted, make_all(wanted, jobs, progress), strict=True):
        _say(str(request.page))
        if error:
            failed += 1
            _say(f"mmlab: {error}. {request.page} has the results up to there", err=True)
    if everything or (out and not page):
        if unchanged := len(requests) - len(wanted):
            _say(f"{unchanged} of {len(requests)} were up to date")
        _say(str(index.write_index(place, requests)))
    sys.exit(failed > 0)


def _requests(place: Path, notebooks: Any, params: Any, apart: bool, changes: Any, code: bool) -> list[Any]:
    """Return the requests for the reports that the options of ``mmlab report`` name."""
    from mmlab.report.request import Request, find_notebook

    if not notebooks:
        raise click.UsageError("Name a notebook, such as 01_regression; or --all for the standard reports.")
    if apart and not params:
        raise click.UsageError("--each makes a report for each -f FILE: name some.")
    files = [find_params(name) for name in params]
    groups = [[file] for file in files] if apart else [files]
    return [Request(find_notebook(name), group, changes, place, code) for name in notebooks for group in groups]


@cli.command()
@click.argument("params", required=False, metavar="[PARAMS]")
@click.option("--variant", metavar="NAME", help="The first variant; default: that of PARAMS.")
@port_option
@browser_option
def explore(params: str | None, variant: str | None, port: int | None, browser: bool) -> None:
    """Open the explorer alone in the browser, on this machine only: sliders, figures and page maps, no code.

    PARAMS is a params file, or the name of one of params/.

    \b
    Examples:
      mmlab explore
      mmlab explore bimodal --variant v1-series
    """
    from mmlab.explorer import lab as labs

    labs.explore(params, variant, port=port, browser=browser, say=click.echo)


@cli.command()
@click.argument("folder", required=False, metavar="[FOLDER]", type=PATH)
@port_option
@browser_option
@click.option("--copy-only", is_flag=True, help="Copy the notebooks and params files, and open nothing.")
def lab(folder: Path | None, port: int | None, browser: bool, copy_only: bool) -> None:
    """Open JupyterLab on the explorer, on this machine only, with the Python that runs this.

    In a clone the notebooks are opened in place. Elsewhere, or with FOLDER (default: mmlab-lab), they are copied there
    first, with the params files. A file that is there already is never changed; one that you remove comes back.

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
        labs.serve(here, port, browser=browser, say=click.echo)


@cli.command()
@many("--params", "files", type=PATH, metavar="FILE", help="Flat params file; repeatable.")
@set_option
@many("--variant", "variants", metavar="NAME", help="Only this variant; repeatable.")
@many("--only", "questions", metavar="KEY", help="Only this question, e.g. c1, or all of a letter, e.g. c.")
@click.option("--kernel", metavar="NAME", help="Ask of this kernel; default: as in --params and --set.")
@click.option("--json", "as_json", is_flag=True, help="Plain data instead of text: every cell unrounded.")
def verdict(files: Any, changes: Any, kernel: str | None, as_json: bool, progress: Progress, **asked: Any) -> None:
    """Ask the mailing list's questions of every variant, and print the matrix as text for a mail.

    The matrix has a row for each question and a column for each variant. A cell has a number computed from a run, and a
    sign: + is among the best of its row, - among the worst, = means that all are the same. The legend gives each
    number's meaning and unit, who asked, and what was run.

    Each question has its own scene: blocks migrate, pressure comes, KSM is enabled late, khugepaged runs against ksmd,
    and so on. --params and --set give the memory, knobs and rates of these scenes; a scene itself decides what it is
    about (run, khugepaged, policy, events, the end). Default: 32 MiB, three quarters zero-filled.

    \b
    Examples:
      mmlab verdict
      mmlab verdict --kernel 7.3
      mmlab verdict --only c --only d --set max_ptes_none=409 --set zero_fraction=0.9
      mmlab verdict --params params/underused_pressure.yaml --variant ksm-opt-out --variant v1-mergeable
      mmlab verdict --json > verdict.json
    """
    from mmlab.report.request import read_params
    from mmlab.scenario import Scenario
    from mmlab.studies import scenes
    from mmlab.studies import verdict as verdicts

    values = dict(scenes.BASE)
    for file in files:
        with located(file):
            values |= _checked(read_params(file))
    values |= changes | ({"kernel": kernel} if kernel else {})
    base = Scenario(**_checked(values))
    given = {name: chosen for name, chosen in asked.items() if chosen}
    found = verdicts.verdict(base, progress=progress, **given)
    _say(json.dumps(found.as_json(), indent=1, ensure_ascii=False) if as_json else found.text())


@cli.command()
@click.argument("scenario", metavar="SCENARIO", type=FILE)
@click.option("--page", type=AT_LEAST_0, metavar="N", help="The page, from 0 on.")
@click.option("--process", default=0, show_default=True, type=AT_LEAST_0, metavar="N", help="Its process, from 0 on.")
@click.option("--from", "since", type=TIME, help="Only from this simulated time on, e.g. 6s.")
@click.option("--not-merged", is_flag=True, help="Instead of a page: for which reasons duplicates are not merged.")
@variant_option
@set_option
def why(scenario: Path, page: Any, not_merged: bool, variant: Any, changes: Any, progress: Any, **of: Any) -> None:
    """Say what happened to a page of a scenario (*.yaml) or of a recording's (*.json.gz), each sentence with its rule.

    With --not-merged, count the pages that hold duplicates or zeros and are not merged at the end, by the last decision
    about each. `mmlab rule M5d` prints a rule.

    \b
    Examples:
      mmlab why params/regression_uzp0.yaml --page 123
      mmlab why params/regression_uzp0.yaml --page 123 --from 6s --variant ksm-opt-out
      mmlab why params/shared_image.yaml --not-merged --set pages_to_scan=1000
    """
    from mmlab.results import trace, why
    from mmlab.results.run import simulate as run_scenario
    from mmlab.results.table import text_table

    if not_merged == (page is not None):
        raise click.UsageError("Ask for a --page, or for --not-merged.")
    asked = trace.load(scenario, **_checked(changes, variant))
    run = run_scenario(asked, variant=variant, events=why.PageEvents(page), progress=_share(progress))
    if page is not None:
        _say(str(run.why(page, of["process"], of["since"] or 0.0)))
    else:
        left = run.not_merged()
        _say(text_table(left) if len(left) else "Every page with duplicates and every zero-filled one is merged.")


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
    from mmlab.spec import rules

    cited = re.findall(rf"(?:(?:{'|'.join(rules.FILES)}) )?\S+", " ".join(words))
    if words and any(map(rules.resolve, cited)):
        click.echo("\n\n".join(str(rules.rule(one)) for one in cited))
        return
    if not (words or every):
        raise click.UsageError("Name a rule, or words to search for, or ask for --list.")
    for found in rules.rules().values() if every else rules.search(" ".join(words)):
        click.echo(f"{found.name:20}{textwrap.shorten(found.text, 90, placeholder=' …')}")


@cli.command()
def variants() -> None:
    """List the kernel variants: which splits remap zero-filled pages to the shared zeropage, and who proposed that.

    The last ones say what ksmd does with a page; alone they split as mainline. "legacy+zero-only" combines two.
    """
    from mmlab.variants import KSMD_VARIANTS, VARIANTS

    known = VARIANTS | KSMD_VARIANTS
    width = max(map(len, known))
    for v in known.values():
        _entry(f"{v.name:{width}}  {v.summary}", f"{v.who} — {v.where}", indent=width + 2)


@cli.command()
@click.argument("names", nargs=-1, metavar="[A B]")
def kernels(names: tuple[str, ...]) -> None:
    """List what kernel releases do differently, or what differs between two of them.

    A kernel is a series, a stable release, or the name of a distribution; `kernel` of a scenario takes the same.

    \b
      mmlab kernels                 every difference, and the names of distributions
      mmlab kernels pve8 7.3        what differs between two
    """
    from mmlab.kernel.versions import DIFFERENCES, DISTRIBUTIONS, differing, flags

    if len(names) not in (0, 2):
        raise click.UsageError("Name two kernels, or none.")
    for name in differing(*names) if names else DIFFERENCES:
        row = DIFFERENCES[name]
        has = f", {names[bool(flags(names[1])[name])]} has it" if names else ""
        head = f"{name}  ({row.rule}; {row.releases}{has}){', from the text only' * row.from_text_only}"
        _entry(head, row.change, f"Source: {row.source}")
    if not names:
        click.echo("\nDistributions (before 6.12 no split remaps: there, mainline means variant: legacy)")
    for name, (kernel, why, source) in DISTRIBUTIONS.items():
        if not names or name in names:
            _entry(f"{name}: {kernel}", f"{why} Source: {source}")


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]…")
def params(names: tuple[str, ...]) -> None:
    """Explain every parameter, or those named: default, unit, allowed range, meaning and source.

    \b
    Examples:
      mmlab params
      mmlab params pages_to_scan zero_fraction
    """
    from mmlab.scenario import flat_fields

    kinds = ("knob", "machine", "workload", "horizon")
    fields = flat_fields()
    for name in names:
        if name not in fields:
            raise unknown("parameter", name, fields, "`mmlab params` prints all of them.")
    for p in sorted((fields[name] for name in names or fields), key=lambda p: kinds.index(p.kind)):
        default = f"  {p.name}: {json.dumps(p.default)} {p.unit}".rstrip()
        head = f"{default}   [{p.allowed}]" if p.allowed else default
        _entry(head, p.help + (f" ({p.source})" if p.source else ""), "", indent=6)


@cli.command()
def schema() -> None:
    """Print a JSON schema of params files: editors that know it complete names, explain them, and mark mistakes.

    \b
    The files of params/ name it in their first line; in a file of yours:
      mmlab schema > scenario.schema.json
      # yaml-language-server: $schema=scenario.schema.json
    """
    from mmlab import schema as schemas
    from mmlab.engine.costs import cost_sets

    click.echo(schemas.text(cost_sets()), nl=False)


@cli.command("compile")
def compile_(progress: Progress) -> None:  # noqa: ARG001 (it is told of the compilation)
    """Compile the model now; otherwise the first simulation does (about 20 s, once after each installation)."""
    from mmlab.report.execute import load

    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # or the debugger, which kernels load, warns
    load()
    click.echo("The model is compiled.")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Yield a function that shows progress on a terminal's stderr (done, all, what); None where there is none."""
    if not sys.stderr.isatty():
        yield None
        return
    layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, leave=False, file=sys.stderr, bar_format=layout, delay=0.1) as bar:

        def update(done: float, total: float, what: str) -> None:
            bar.set_postfix_str(f"{done:,.0f} of {total:,.0f} {what}".rstrip() if total > 1 else what, refresh=False)
            bar.update(done / max(1, total) - bar.n)

        yield update


def _say(text: str, err: bool = False) -> None:
    """Print text above the progress bar."""
    tqdm.write(text, file=sys.stderr if err else sys.stdout)


def _entry(head: str, *texts: str, indent: int = 4) -> None:
    """Print an entry of a list: its head, and below it texts, wrapped and indented."""
    wrapped = partial(textwrap.fill, width=110, initial_indent=" " * indent, subsequent_indent=" " * indent)
    click.echo("\n".join([head, *map(wrapped, texts)]))


def _parse(changes: Sequence[str], option: str) -> dict[str, Any]:
    """Return the values of ``name=value`` options, read as YAML."""
    out: dict[str, Any] = {}
    for setting in changes:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            hint = f"E.g. {option} pages_to_scan=1000."
            raise UserError(parameter=option, value=setting, allowed="NAME=VALUE", hint=hint)
        out[name.strip()] = value
        with suppress(yaml.YAMLError):
            out[name.strip()] = parse_yaml(value)
    return out


def _checked(values: dict[str, Any], variant: str | None = None) -> dict[str, Any]:
    """Return the values: what is wrong with them for every file is reported once, before anything runs."""
    from mmlab.scenario import Scenario
    from mmlab.variants import resolve

    for name in filter(None, (variant, values.get("variant"))):
        resolve(name)
    Scenario(**values | {"horizon_batches": 1})
    return values


def _expand(files: Sequence[Path], only: Sequence[str], endings: tuple[str, ...]) -> list[Path]:
    """Return files as they are, and of folders the files with these endings whose names match."""
    out: list[Path] = []
    for path in files:
        if not path.exists():
            raise UserError("there is no such file", parameter=str(path))
        inside = {p for glob in only or ("[!.]",) for p in path.glob(glob.rstrip("*") + "*")}
        inside = {p for p in inside if p.name.endswith(endings)}
        if path.is_dir() and not inside:
            chosen = f" that starts like {' or '.join(only)}" if only else ""
            raise UserError(f"there is no {' or '.join(endings)} file{chosen} in this folder", parameter=str(path))
        out += sorted(inside) or [path]
    return out
