"""Record what the running kernel does with a scenario, as a recording that the model can be held against.

A scenario becomes a *plan*: the question of a kernel trace (trace-format) and how to record it, as plain JSON. The
*runner* (``runner.py``, a file of its own that needs nothing of mmlab) carries a plan out, on this machine or in a
virtual one, and gives the recording.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmlab.errors import UserError
from mmlab.host import runner
from mmlab.kernel.versions import release
from mmlab.limits import free_memory
from mmlab.results.metrics import PAGES_PER_MIB
from mmlab.results.run import simulate
from mmlab.results.table import text_table
from mmlab.results.trace import Trace, from_run
from mmlab.scenario import ProcessSpec, RangeEvent, Scenario
from mmlab.workers import Progress

Plan = Mapping[str, Any]
RUNNER = Path(runner.__file__)
OWN = ("boots_at_seconds", "exits_at_seconds", "hot_fraction", "forbids_zeropages", "node")
"""What a process cannot have in a recording of the running kernel."""


def running_kernel(uname: str = "") -> str:
    """Return the release of the running kernel, as the model knows it.

    Raises
    ------
    UserError
        Its rules are not known.
    """
    found = re.match(r"\d+\.\d+(\.\d+)?", uname or os.uname().release)
    kernel = found[0] if found else os.uname().release
    release(kernel)
    return kernel


def plan(scenario: Scenario, kernel: str = "", variant: str = "", **options: Any) -> dict[str, Any]:
    """Return the plan for recording a scenario.

    Parameters
    ----------
    scenario
        Any scenario whose events and processes a real kernel can have. What happens at a time happens after the batch
        that the model says, unless ksmd runs freely.
    kernel
        The release that will run it, as `uname -r` says. Default: this machine's.
    variant
        Which fix that kernel has. Default: none of those proposed, i.e. mainline, or legacy before 6.12.
    **options
        How to record: see `mmlab.host.runner.OPTIONS`.

    Raises
    ------
    UserError
        The scenario has something that the running kernel cannot do; the message names it.
    """
    kernel = running_kernel(kernel)
    if wrong := sorted(options.keys() - runner.OPTIONS):
        raise UserError(parameter=wrong[0], allowed=f"one of {', '.join(runner.OPTIONS)}")
    own = variant or ("mainline" if release(kernel) >= (6, 12) else "legacy")
    if not variant and scenario.variant != own:
        hint = f"`--variant {own}` records what it does; `--variant {scenario.variant}` says that it has this fix."
        raise UserError("is not what the running kernel does", parameter="variant", value=scenario.variant, hint=hint)
    for name in ("nodes", "kernel_changes", *(() if scenario.stepped else ("run",))):
        if getattr(scenario, name) != Scenario.model_fields[name].default:
            raise UserError("cannot be recorded on a running kernel", parameter=name, value=getattr(scenario, name))
    if scenario.swap_mib and any(kb < 2048 and how != "never" for kb, how in scenario.hugepages_enabled.items()):
        hint = "From zram, pages may come back as folios of these sizes (mthp 6.5): give one of the two."
        raise UserError("cannot be recorded beside swap_mib", parameter="hugepages_enabled", hint=hint)
    for i, spec in enumerate(scenario.process_list):
        if given := [name for name in OWN if getattr(spec, name) != ProcessSpec.model_fields[name].default]:
            raise UserError("cannot be recorded", parameter=given[0], where=f"process_list {i}")
    scenario = scenario.replace(kernel=kernel, variant=own, events=_repeated(scenario), sample_limit=10**8)
    run = simulate(scenario)
    asked = from_run(run)["scenario"]
    asked["batches"] = max(1, asked["batches"])  # if no mm is registered, the model makes none
    free = options.get("mode") == "free"
    for event, source in zip(asked["events"], scenario.events, strict=True):
        del event["result"], event["sample"]
        if free or source.after.seconds is None:
            event["after"] = source.after.model_dump(exclude_none=True)
        if isinstance(source, RangeEvent) and source.share < 1:
            raise UserError("cannot be recorded", parameter="share", value=source.share, where=f"op {source.op}")
        if isinstance(source, RangeEvent) and source.every_nth > 1:
            size, end = 1 if source.granularity == "4K" else 512, source.page + source.count
            starts = range(source.page, end, size * source.every_nth)
            event["parts"] = [{"page": page, "count": min(size, end - page)} for page in starts]
            for part in event["parts"] if "to" in event else ():
                part["to"] = event["to"] + part["page"] - source.page
        if event["op"] == "shrink" and event["count"] < scenario.total_pages // 512:
            allowed = f"at least {scenario.total_pages // 512}, as drop_caches scans the whole queue"
            raise UserError(parameter="count", value=event["count"], allowed=allowed, where="op shrink")
    if free:
        asked["batches"] = scenario.horizon_batches
        options = {"seconds": float(run.rows["time_ns"][-1]) / 1e9} | options
    else:
        asked["knobs"].pop("sleep_millisecs")  # ksmd's sleep is as long as a look at the machine takes
    return {"name": scenario.name or "recorded", "variant": own, "scenario": asked, "options": options}


def _repeated(scenario: Scenario) -> list[dict[str, Any]]:
    """Return the events of a scenario, those with `every` as often as they happen."""
    out = []
    for event in scenario.events:
        given, after = event.model_dump(exclude_unset=True), event.after
        if after.every and after.seconds is not None:
            times = int((scenario.horizon_seconds - after.seconds) / after.every) + 1
            out += [given | {"after": {"seconds": after.seconds + n * after.every}} for n in range(times)]
        else:
            out.append(given)
    return sorted(out, key=lambda event: event["after"].get("seconds", 0))


def record(scenario: Scenario | Plan, progress: Progress = None, **options: Any) -> Trace:
    """Record a scenario, or a plan, on the running kernel; afterwards the machine is as it was before.

    Parameters
    ----------
    scenario
        A scenario, for which `plan` is called with the options, or a plan.
    progress
        Called with the plans done, their number, and what is being done.

    Raises
    ------
    UserError
        The machine cannot record this, or not now: KSM is in use, memory is short, recordings differ each time.
    """
    asked = plan(scenario, **options) if isinstance(scenario, Scenario) else scenario
    asks = asked["scenario"]
    pages = sum(spec["pages"] for spec in asks["processes"]) + asks["knobs"].get("swap_mib", 0) * PAGES_PER_MIB
    need = 64 + pages * (1 + sum(event["op"] == "fork" for event in asks["events"])) // PAGES_PER_MIB
    if need << 20 > (free := free_memory() or 0):
        raise UserError(f"it may need {need:,} MiB, and {free >> 20:,} MiB are free here", where=asked["name"])
    command = [sys.executable, "-I", str(RUNNER), "/dev/stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            with suppress(BrokenPipeError), process.stdin as file:
                file.write(json.dumps(asked))
            ended = UserError("the recorder was ended from outside, and every knob is back", where=asked["name"])
            found = next(answers(map(json.loads, process.stdout), [asked], progress), ended)
            process.wait()
        finally:
            process.terminate()
            if process.wait():
                runner.recover()
    if isinstance(found, UserError):
        raise found
    return found


def answers(said: Iterator[dict[str, Any]], plans: Sequence[Plan], progress: Progress) -> Iterator[Trace | UserError]:
    """Yield the recording of each plan in turn, or the error that says why there is none, from what the runner says."""
    for done, plan in enumerate(plans):
        for what in said:
            if progress and "progress" in what:
                progress(done + what["progress"], len(plans), f"{plan['name']}: {what['text']}")
            if "recording" in what or "problem" in what:
                yield what.get("recording") or UserError(what["problem"].replace("\n", "; "), where=plan["name"])
                break


def check() -> str:
    """Return what this machine can record, as a table."""
    memory = ("memory", f"{(free_memory() or 0) >> 20:,} MiB are free", "")
    with runner.mounted():
        names, found, problems = zip(memory, *runner.survey(), strict=True)
    here = ["no" if problem else "yes" for problem in problems]
    why = [problem or there for there, problem in zip(found, problems, strict=True)]
    return f"Linux {os.uname().release}\n{text_table({'what': names, 'here': here, '': why})}"
