"""From one kernel to another: which rules differ, and which of them alone move a scenario's counters.

>>> asked = Scenario(memory_mib=16, khugepaged=1, khugepaged_pages_to_scan=1024, horizon_seconds=35.0)
>>> up = upgrade(asked, "7.0", "7.1")
>>> list(up.runs)
['7.0', 'with scan_counts_entries', 'with collapse_skips_lazyfree', '7.1']
>>> up.moved()["with scan_counts_entries"]
{'khugepaged_full_scans': (0, 3)}
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mmlab.kernel.versions import DIFFERENCES, DISTRIBUTIONS, flags, release
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario
from mmlab.studies.runs import measured
from mmlab.studies.study import Answer

REMAP = "zero_pages_are_remapped"
"""What came with 6.12 and is a variant here, not a difference between kernels."""
TIMES = ("time_ns", "batch", "rank", "ksmd_cpu_ns", "khugepaged_cpu_ns", "freed_by_batch")
"""Counters of a sample that say when something happened."""


def moved(first: Run, other: Run) -> dict[str, tuple[int, int]]:
    """Return which counters of two runs differ at some of 500 times.

    Values are the counters at the end, of both runs; first come those that change most, in proportion. Events that fail
    are counted, too.
    """
    both = first, other
    times = np.linspace(0, max(int(run.rows["time_ns"][-1]) for run in both), 501)
    one, two = (run.rows[np.searchsorted(run.rows["time_ns"], times, side="right") - 1] for run in both)
    names = [name for name in first.rows.dtype.names or () if name not in TIMES and (one[name] != two[name]).any()]
    ends = {name: (int(first.rows[name][-1]), int(other.rows[name][-1])) for name in names}
    if first.results != other.results:
        ends["failed events"] = sum(map(bool, first.results)), sum(map(bool, other.results))
    return dict(sorted(ends.items(), key=lambda end: -abs(np.log((1 + end[1][1]) / (1 + end[1][0])))))


@dataclass(frozen=True)
class Upgrade:
    """A scenario on two kernels, and on the first with each single difference.

    Attributes
    ----------
    before, after
        The kernels.
    runs
        By what was run: the first kernel, "with" a difference, …, the second kernel.
    """

    before: str
    after: str
    runs: Mapping[str, Run]

    @property
    def ends(self) -> dict[str, Run]:
        """The runs of the two kernels alone, as ① and ②."""
        return {f"① {self.before}": self.runs[self.before], f"② {self.after}": self.runs[self.after]}

    def moved(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return for each run after the first what differs from the first run, see `moved`."""
        first = self.runs[self.before]
        return {label: moved(first, run) for label, run in self.runs.items() if label != self.before}

    def rules(self) -> Answer:
        """Study which rules differ between the kernels."""
        found = {name: row for name, row in DIFFERENCES.items() if f"with {name}" in self.runs}
        table = pd.DataFrame(index=pd.Index(found, name="difference"))
        table["rule"] = [row.rule for row in found.values()]
        table["since"] = [row.releases.removeprefix("since ") for row in found.values()]
        table["what changes"] = [row.change + " (From the text only.)" * row.from_text_only for row in found.values()]
        remap = "; splits remap zero-filled pages since 6.12" if f"with {REMAP}" in self.runs else ""
        named = [kernel for kernel in (self.before, self.after) if kernel in DISTRIBUTIONS]
        other = "".join(f"{kernel} has the rules of {DISTRIBUTIONS[kernel][0]}; " for kernel in named)
        words = f"{other}{len(found)} rules differ between {self.before} and {self.after}{remap}."
        return Answer(table, words, title=f"What differs between {self.before} and {self.after}")

    def counters(self) -> Answer:
        """Study which of the rules move the scenario's counters."""
        moved = self.moved()
        found = measured(self.runs, "upgrade", "kernel")
        found.data.insert(0, "counters that differ", [0, *map(len, moved.values())])
        singles = {label.removeprefix("with "): changes for label, changes in moved.items() if label != self.after}
        moving = [f"`{name}` ({_most(changes)})" for name, changes in singles.items() if changes]
        words = f"{len(moving)} of {len(singles)} differences move{'s' * (len(moving) == 1)} counters here: "
        if not moving:
            words = f"None of {len(singles)} differences moves a counter here: "
            moving = [f"{self.before} and {self.after} do the same"]
        if moved[self.after] and not any(singles.values()):
            words, moving = "Only together do the differences move counters here: ", [_most(moved[self.after])]
        title = f"From {self.before} to {self.after}, one difference at a time"
        return found.found(f"{words}{', '.join(moving)}.", title=title, digits=2)

    def paces(self) -> Answer:
        """Study the pace of ksmd and of khugepaged on both kernels."""
        found = measured(self.ends, "paces", "kernel")
        scans, blocks = found.data["khugepaged's full scans"], found.data["blocks collapsed (1/h)"]
        settled = [run.metrics.settled_s for run in self.ends.values()]
        words = f"A full scan of ksmd takes {_both(found.data['a full scan (s)'], 's')}, khugepaged makes "
        words += f"{_both(scans, 'full scans')} and collapses {_both(blocks, 'blocks an hour')}; "
        return found.found(f"{words}time to settle: {_both(settled, 's')}.", title="Paces", digits=3)


def on_another_kernel(runs: Mapping[str, Run], kernel: str) -> Answer:
    """Study which of these runs another kernel changes: those that differ in a counter at any time."""
    others = {n: simulate(run.scenario.replace(kernel=kernel), variant=run.variant) for n, run in runs.items()}
    changed = {label: moved(run, others[label]) for label, run in runs.items()}
    columns = {"counters that differ": list(map(len, changed.values())), "most": list(map(_most, changed.values()))}
    leading = Counter(next(iter(changes)) for changes in changed.values() if changes)
    words = f"On Linux {kernel}, {len(runs) - leading.total()} of {len(runs)} runs do the same in every counter"
    words += f"; the others differ, most often in `{leading.most_common(1)[0][0]}`" if leading else ""
    return Answer(pd.DataFrame(columns, pd.Index(runs, name="run")), f"{words}.", title=f"On Linux {kernel}")


def _both(values: Iterable[float | None], unit: str) -> str:
    """Return the numbers of both kernels in words."""
    one, other = ("never" if x is None or x != x else f"{x:,.4g}" for x in values)
    text = f"{one} {unit} on both" if one == other else f"{one} → {other} {unit}"
    return text.replace(f"never {unit}", "never")


def _most(changes: Mapping[str, tuple[int, int]]) -> str:
    """Return the three counters that change most at the end, or else that differ on the way."""
    first = list(changes.items())[:3]
    ends = [f"{name} {one:,} → {other:,}" for name, (one, other) in first if one != other]
    return "; ".join(ends) or (f"on the way: {', '.join(name for name, _ in first)}" if first else "–")


def upgrade(scenario: Scenario, before: str | float, after: str | float) -> Upgrade:
    """Run a scenario on two kernels, and on the first with each difference switched by itself (`kernel_changes`).

    Kernels before 6.12 do not remap at splits: there, mainline means the variant legacy.

    Raises
    ------
    UserError
        A kernel is unknown.
    """
    before, after, own = str(before), str(after), scenario.kernel_changes  # YAML reads 6.18 as a number
    one, other = flags(before, own), flags(after, own)
    runs: dict[str, Scenario] = {before: scenario.replace(kernel=before)}
    if scenario.variant == "mainline" and release(before) < (6, 12) <= release(after):
        runs = {before: scenario.replace(kernel=before, variant="legacy"), f"with {REMAP}": runs[before]}
    for name in (name for name, on in other.items() if on != one[name]):
        runs[f"with {name}"] = runs[before].replace(kernel_changes={**own, name: other[name]})
    runs[after] = scenario.replace(kernel=after)
    return Upgrade(before, after, {label: simulate(asked) for label, asked in runs.items()})
