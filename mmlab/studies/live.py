"""The running kernel beside the model: two regressions, and the same kernel without them (notebook 11).

Splits keep zero-filled pages of locked memory (thp-split Z1): it shows what a kernel does whose splits do not remap at
all. Each kind of memory has recordings of its own, as memory that is scanned together shares ksmd's budget and trees.
"""

from collections.abc import Callable, Mapping
from itertools import product

import pandas as pd

from mmlab.errors import UserError
from mmlab.figures import figures as plots
from mmlab.results import trace
from mmlab.scenario import Scenario
from mmlab.studies.study import Answer

MEMORY = {"not locked": ("munlock", "mainline"), "locked": ("mlock", "legacy")}
"""Kinds of memory: the call on all of it before ksmd runs, and the variant whose prediction without locks it equals."""
Found = Mapping[tuple[int, str], trace.Trace]
"""Recordings by `use_zero_pages` and kind of memory."""


def questions(scenario: Scenario) -> dict[tuple[int, str], Scenario]:
    """Return what to record, by `use_zero_pages` and kind of memory."""
    sizes, asked = [*enumerate(map(scenario.pages_of, scenario.specs))], {}
    for switch, (kind, (op, _)) in product((1, 0), MEMORY.items()):
        calls = [{"op": op, "process": i, "page": 0, "count": n, "after": {"batch": 0}} for i, n in sizes]
        own = {"name": f"live618-{op}-uzp{switch}", "use_zero_pages": switch, "events": [*calls, *scenario.events]}
        asked[switch, kind] = scenario.replace(**own, stepped=True, horizon_seconds=0.0)
    return asked


def recordings(scenario: Scenario, record: Callable[[Scenario], trace.Trace] | None = None) -> tuple[Found, str]:
    """Return recordings of the `questions`, and a sentence that says what they are.

    They are new ones, made with `record`; without it, or if this machine cannot record, those that ship with mmlab,
    which have a scenario of their own.
    """
    asked, words = questions(scenario), "`record=True` records the kernel that runs here, with your parameters."
    if record:
        try:
            return {at: record(one) for at, one in asked.items()}, "**Recorded just now**, on this machine."
        except UserError as mistake:
            words = f"this machine cannot record now: {mistake}"
    shipped = {path.name: path for path in trace.find()}
    found = {at: trace.read(shipped[one.name + trace.ENDING]) for at, one in asked.items()}
    return found, f"**Shipped recordings**, with parameters of their own: {words}"


def exact(found: Found) -> Answer:
    """Hold each recording against the prediction of what was recorded, and against one of memory without locks."""
    rows, wrong = {}, []
    for (switch, kind), one in found.items():
        own, samples = trace.compare(one, trace.predict(one)), _samples(one)
        other = trace.compare(one, trace.predict(found[switch, "not locked"], MEMORY[kind][1]))
        most, last = 256 * samples["freed"].diff().max(), samples.iloc[-1]
        row = {n.replace("_", " "): getattr(own, n) for n in ("samples", "samples_exact", "maps", "maps_exact")}
        row |= {"without locks": other.samples_exact} | {f"{n} (MiB)": last[n] for n in ("freed", "shown by KSM")}
        row["most by a batch, over pages_to_scan"] = most / one["scenario"]["knobs"]["pages_to_scan"]
        rows[switch, kind] = row | {"CPU (s)": last["lab_ksmd_cpu_ns"] / 1e9}
        wrong += own.differences
    data = pd.DataFrame.from_dict(rows, "index").rename_axis(["use_zero_pages", "memory"])
    words = "{samples exact} of {samples} samples, in every counter, and {maps exact} of {maps} page maps"
    words = f"Linux {one['kernel']}, predicted exactly: {words.format_map(data.sum().astype(int))}"
    return Answer(data, "; ".join([words, *map(str, wrong[:1])]), title="Each recording", digits=2)


def regression(found: Found, rows: pd.DataFrame, switch: int) -> Answer:
    """Draw what is freed, and what of it KSM shows, with one setting of `use_zero_pages`; rows are those of `exact`."""
    pairs, said = {}, []
    for kind, (_, variant) in MEMORY.items():
        one, predicted = found[switch, kind], trace.predict(found[switch, "not locked"], variant)
        pairs[f"mmlab, {variant}", f"Linux {one['kernel']}, {kind}"] = _samples(predicted), _samples(one)
        same, freed, shown, most, cpu = rows.loc[(switch, kind)].iloc[-5:]
        text = f"{kind}, KSM shows {shown:.3g} of {freed:.3g} MiB, and a batch frees up to {most:.2g} × `pages_to_scan`"
        said.append(f"{text} ({cpu:.2f} s of ksmd's CPU; {same:.0f} samples as {variant} without locks)")
    figure = plots.overlay(pairs, {"freed": "MiB", "shown by KSM": "MiB"})
    return Answer(rows.loc[switch], f"use_zero_pages={switch}: {'; '.join(said)}", figure)


def _samples(one: trace.Trace) -> pd.DataFrame:
    """Return the samples with the memory that was freed, and what KSM's counters show of it, MiB."""
    samples = plots.recorded_samples(one)
    freed = samples["pages_sharing"] + (samples["rss_kb"].iloc[0] - samples["rss_kb"]) / 4
    shown = samples["pages_sharing"] + samples["ksm_zero_pages"]
    return samples.assign(**{"freed": freed / 256, "shown by KSM": shown / 256})
