"""Fleets: totals over many hosts, from a few simulated hosts of each kind (`mmlab fleet`).

>>> mix = [{"memory_mib": 4, "zero_fraction": {"low": 0.2, "high": 0.6}}]
>>> estimate = fleet({"hosts": 1000, "samples": 3, "mix": mix}, variants=["ksm-opt-out"])
>>> list(estimate.totals().columns)
['variant', 'measure', 'unit', 'total', 'error', 'p5', 'median', 'p95']

**Estimate.** A kind of host is a scenario, some of whose parameters vary from host to host. `samples` hosts of each
kind are drawn (a Latin hypercube over what varies; each host has its own seed), simulated under every variant, and
represent all hosts of their kind: a total is the sum over kinds of hosts × mean. Its standard error is that of a
stratified sample, sqrt(Σ hosts² · s² / samples) with the finite population's factor, where s is the standard deviation
between the hosts of a kind. Differences between variants are paired, host by host, so differences between hosts
cancel. Quantiles are those of single hosts. The uncertainty of the step costs is common to all hosts and does not
average out; it is printed separately.

**Scaled simulation.** `simulate_mib` simulates a host in less memory; each simulated page represents `factor` real
pages, each step on it costs `factor` times as much, and counts of pages are multiplied by it. `shrunk` lists what is
scaled and what that assumes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field

from mmlab.engine.costs import STEPS, cost_set
from mmlab.errors import UserError, located
from mmlab.kernel.state import CACHED_LEVELS
from mmlab.params import read_yaml
from mmlab.policies import PolicyLike, scaled_pace
from mmlab.results.baseline import BY_THE_CLOCK
from mmlab.results.metrics import METRICS
from mmlab.results.run import Run, simulate
from mmlab.results.table import text_table
from mmlab.results.uncertainty import cpu_errors
from mmlab.scenario import Scenario, flat_fields
from mmlab.studies.goals import MEASURES, Reference, four_digits, listed
from mmlab.studies.grid import Filed, Grid, Strict, with_params
from mmlab.variants import resolve
from mmlab.workers import Progress, each

_LISTED = read_yaml(Path(__file__).with_suffix(".yaml"))
UNITS = pd.DataFrame.from_dict(_LISTED, "index", columns=["unit", "scale", "single"]).rename_axis("measure")
"""Measures of a host: name → unit of the fleet's total, and factors to it and to a single host's unit."""
SCALED = """Hosts were simulated up to {:,.0f} times smaller, as if memory were alike throughout. The depth of their
trees is corrected for by the number of pages alone (mmlab.studies.fleet.shrunk)."""


@dataclass(frozen=True)
class Host:
    """A simulated host.

    Attributes
    ----------
    name
        The name of its kind.
    scenario
        Its simulation.
    factor, batches
        Pages and batches of the host that a simulated page and a simulated batch represent.
    """

    name: str
    scenario: Scenario
    factor: float = 1.0
    batches: float = 1.0

    @classmethod
    def of(
        cls, scenario: Scenario, simulate_mib: float | None, memory_gib: float | None = None, name: str = ""
    ) -> Self:
        """Return the host of a scenario, of `memory_gib` if given, simulated in less memory if it has more."""
        mib = 1024 * memory_gib if memory_gib else scenario.total_pages / 256
        if simulate_mib and simulate_mib < mib:
            return cls(name, *shrunk(scenario, mib, simulate_mib))
        return cls(name, scenario.replace(memory_mib=_share(scenario, mib)) if memory_gib else scenario)

    def true_size(self, measures: Mapping[str, Any]) -> dict[str, Any]:
        """Return measures of its simulation at the host's size: of memory, pages and THPs there are `factor` times."""
        if self.factor == 1:
            return dict(measures)
        grow = {name for name, (unit, _) in MEASURES.items() if unit.partition("/")[0] in ("MiB", "pages", "THPs")}
        grow = grow - {name for name, metric in METRICS.items() if metric.relative} | {"failed_splits"}
        return {name: value * self.factor if value and name in grow else value for name, value in measures.items()}

    def simulate(self, variant: str | None = None, policy: PolicyLike | None = None) -> Run:
        """Simulate it with the cost of each step on all pages that it represents, in trees as deep as the host's."""
        if self.factor == self.batches == 1:
            return simulate(self.scenario, variant=variant, policy=policy)
        times = dict.fromkeys(STEPS, self.factor) | {"wake_up": self.batches, "end_of_pass": 1.0}
        deep = math.log2(self.scenario.total_pages)
        deeper = deep + math.log2(self.factor)
        times["dup_walk"] *= self.factor  # a chain of zero-filled pages is longer, and walked more often
        times["tree_level"] *= deeper / deep
        times["tree_cold"] *= (deeper - CACHED_LEVELS) / max(1.0, deep - CACHED_LEVELS)
        costs, factors = cost_set(self.scenario.costs).of(self.scenario), np.array(list(times.values()))
        scaled = replace(costs, ns=costs.table * factors, covariance=costs.covariance * np.outer(factors, factors))
        return simulate(self.scenario, variant=variant, policy=policy, costs=scaled)


class Kind(Strict, extra="allow"):
    """A kind of host: its share of the fleet, its memory, the memory in which it is simulated, and its parameters."""

    name: str
    weight: int | float = Field(1, gt=0)
    memory_gib: int | float | None = Field(None, gt=0, description="(GiB)")
    simulate_mib: int | float | None = Field(None, gt=0, description="(MiB)")

    def draw(self, samples: int, seed: int) -> list[Host]:
        """Return this number of hosts; what varies among them is spread evenly."""
        given = self.model_extra or {}
        ranged = {name: list | dict if p.type in (int, float) else list for name, p in flat_fields().items()}
        vary = {name: axis for name, axis in given.items() if isinstance(axis, ranged.get(name, ()))}
        base = {name: value for name, value in given.items() if name not in vary}
        points = Grid(base=base, vary=vary, design="latin_hypercube", samples=samples, seed=seed).points()
        own = ({"seed": 100_003 * seed + i, "sample_limit": 100} for i in range(samples))
        drawn = (Scenario(**a | base | b | BY_THE_CLOCK) for a, b in zip(own, points, strict=True))
        return [Host.of(scenario, self.simulate_mib, self.memory_gib, self.name) for scenario in drawn]


class Plan(Filed):
    """A fleet: the number of hosts, how many of each kind are simulated, and the kinds (`mix`).

    Raises
    ------
    UserError
        A key is unknown, or a value is not allowed.
    """

    kind = "fleets"
    hosts: int = Field(ge=1)
    samples: int = Field(8, ge=2)
    seed: int = Field(0, ge=0)
    variants: Annotated[list[str], BeforeValidator(listed)] = Field(["mainline"], min_length=1)
    simulate_mib: int | float | None = Field(None, description="(MiB)")
    mix: list[dict[str, Any]] = Field(min_length=1)

    def model_post_init(self, _: Any) -> None:
        """Check the kinds."""
        _ = self.sampled

    @cached_property
    def sampled(self) -> dict[str, list[Host]]:
        """The hosts that are simulated, by the name of their kind."""
        found: dict[str, list[Host]] = {}
        for i, entry in enumerate(self.mix):
            name = str(entry.get("name", entry.get("params", f"kind {i + 1}")))
            if name in found:
                raise UserError("several kinds have the same name", parameter="mix", value=name)
            with located(f"mix {name}"):
                given = {"simulate_mib": self.simulate_mib} | with_params(entry, self.folder) | {"name": name}
                found[name] = Kind(**given).draw(self.samples, self.seed * len(self.mix) + i)
        return found

    def of_kind(self) -> dict[str, float]:
        """Return the number of hosts of each kind."""
        weights = [entry.get("weight", 1) for entry in self.mix]
        return {name: self.hosts * weight / sum(weights) for name, weight in zip(self.sampled, weights, strict=True)}


def shrunk(scenario: Scenario, true_mib: float, mib: float) -> tuple[Scenario, float, float]:
    """Scale a host of `true_mib` down to `mib`; also return how many pages and batches one of them represents.

    Every process shrinks, and with it the pages per second of ksmd and khugepaged (fewer pages a batch, or longer
    sleeps), `migration_rate` and `pressure_rate`; also `duplicate_groups`, `stray_zero_pages` and `swap_mib`, so that
    each content keeps its number of duplicates. A full scan then takes as long as it does on the host.

    This assumes that memory is alike throughout. Trees are less deep than the host's. A level is taken to cost more by
    the ratio of log2(pages), so ksmd's CPU time is about right (`mmlab fleet --help`). The effects of single batches
    are not those of the host.

    Raises
    ------
    UserError
        The scenario depends on its absolute size (processes one by one, events, the advisor), or the size is
        too small for its processes.
    """
    for name, usual in (("process_list", ()), ("events", ()), ("advisor_mode", "none")):
        if getattr(scenario, name) != usual:
            hint = "Leave simulate_mib out."
            raise UserError(f"{name} depends on the true size", parameter="simulate_mib", value=mib, hint=hint)
    if mib < 2 * scenario.processes:
        allowed = f"at least {2 * scenario.processes} (MiB) for {scenario.processes} processes"
        raise UserError(parameter="simulate_mib", value=mib, allowed=allowed)
    small = scenario.replace(memory_mib=_share(scenario, mib), stray_zero_pages=0)
    factor = true_mib * 256 / small.total_pages
    scaled = partial(scaled_pace, memory=small.total_pages, factor=factor, hz=scenario.hz)
    pages, sleep, batches = scaled(scenario.pages_to_scan, scenario.sleep_millisecs)
    huge, _, sleeps = scaled(scenario.khugepaged_pages_to_scan, 0)
    shrunk = small.replace(
        host_scale=factor,
        stray_zero_pages=round(scenario.stray_zero_pages / factor),
        duplicate_groups=max(1, round(scenario.duplicate_groups / factor)),
        migration_rate=scenario.migration_rate / factor,
        pressure_rate=scenario.pressure_rate / factor,
        swap_mib=math.ceil(scenario.swap_mib / factor),
        pages_to_scan=pages,
        sleep_millisecs=sleep,
        khugepaged_pages_to_scan=max(1, huge),
        khugepaged_scan_sleep_millisecs=round(scenario.khugepaged_scan_sleep_millisecs * sleeps),
    )
    return shrunk, factor, batches


def _share(scenario: Scenario, mib: float) -> int:
    """Return the memory_mib of each process, in whole blocks of 2 MiB, with which all of them have `mib` together."""
    return max(2, round(mib / len(scenario.specs) / 2) * 2)


@dataclass(frozen=True)
class Estimate:
    """The result of `fleet`.

    Attributes
    ----------
    hosts
        A row a simulated host and variant: its measures in frames, CPUs and THPs at its true size, and the number of
        hosts that it represents.
    """

    plan: Plan
    variants: list[str]
    hosts: pd.DataFrame

    def totals(self) -> pd.DataFrame:
        """Return a row a variant and measure: total, standard error, and quantiles of single hosts (GiB, %, THPs)."""
        values = self._values()
        single = values.groupby(["variant", "measure"])[["value", "stands_for"]].apply(_quantiles)
        return self._sum(values).join(single.mul(UNITS["single"], axis=0, level="measure"), on=["variant", "measure"])

    def differences(self) -> pd.DataFrame:
        """Return a row a variant but the first and measure: its total minus the first's, and the error of that."""
        values = self._values()
        values["value"] -= values.groupby(["host", "measure"])["value"].transform("first")
        return self._sum(values).iloc[len(UNITS) :].reset_index(drop=True)

    def _values(self) -> pd.DataFrame:
        """Return a row a host, variant and measure; of each host, the first variant's stands first."""
        return self.hosts.melt(["host", "kind", "variant", "stands_for"], [*UNITS.index], "measure")

    def _sum(self, values: pd.DataFrame) -> pd.DataFrame:
        """Return the total of each measure over the fleet, and its standard error."""
        strata = values.groupby(["variant", "measure", "kind"], sort=False)["value"].agg(["mean", "var"]).reset_index()
        strata = strata.join(UNITS, on="measure")
        hosts, samples = strata["kind"].map(self.plan.of_kind()), self.plan.samples
        strata["total"] = hosts * strata["mean"] * strata["scale"]
        strata["error"] = hosts * (hosts / samples - 1).clip(lower=0) * strata["var"] * strata["scale"] ** 2
        table = strata.groupby(["variant", "measure", "unit"], sort=False)[["total", "error"]].sum()
        table["error"] **= 0.5
        return table.loc[self.variants].reset_index()

    def text(self) -> str:
        """Return all of it as text tables, with the assumptions."""
        plan, hosts = self.plan, self.hosts
        kinds = hosts.groupby("kind", sort=False)[["stands_for", "GiB", "simulated_GiB", "seconds"]].max().reset_index()
        kinds = kinds.assign(stands_for=kinds["stands_for"] * plan.samples).rename(columns={"stands_for": "hosts"})
        tables = {
            f"{plan.hosts:,} hosts, {plan.samples} simulated of each kind, seed {plan.seed}": kinds,
            "Totals with sampling error; quantiles of single hosts in GiB, % of a CPU and THPs": self.totals(),
            f"Differences from {self.variants[0]}, host by host": self.differences(),
        }
        texts = [f"{title}\n{text_table(t.map(four_digits), indent=2)}" for title, t in tables.items() if len(t)]
        share = (hosts["ksmd_cpu"] * hosts["ksmd_cost_error"]).sum() / (hosts["ksmd_cpu"].sum() or 1)
        costs = f"The costs of steps add an uncertainty, common to all hosts: {100 * share:.2g} % of ksmd's CPU time."
        scaled = SCALED.format(hosts["factor"].max()) if hosts["factor"].max() > 1 else ""
        return "\n\n".join([*texts, f"{costs}\n{scaled}".strip()])


def fleet(
    plan: Plan | str | Path | Mapping[str, Any],
    *,
    variants: Sequence[str] = (),
    jobs: int = 1,
    progress: Progress = None,
) -> Estimate:
    """Simulate the sampled hosts of a fleet and return its totals.

    Parameters
    ----------
    plan
        The fleet: a `Plan`, a file or the name of one of params/fleets/, or the values of a file.
    variants
        Variants instead of the plan's; the others are compared with the first.
    jobs
        Processes that share the work. The estimate does not depend on it.
    progress
        Called before each host with the hosts done, all hosts, and its kind.

    Raises
    ------
    UserError
        The plan is not allowed, or a variant is not known.
    """
    if not isinstance(plan, Plan):
        plan = Plan(**plan) if isinstance(plan, Mapping) else Plan.load(plan)
    chosen = list(dict.fromkeys(variants or plan.variants))
    for name in chosen:
        resolve(name)
    hosts = list(chain.from_iterable(plan.sampled.values()))
    rows = enumerate(each(partial(host_rows, variants=chosen), hosts, jobs, progress))
    table = pd.DataFrame([{"host": i, **row} for i, found in rows for row in found])
    return Estimate(plan, chosen, table.assign(stands_for=table["kind"].map(plan.of_kind()) / plan.samples))


def host_rows(host: Host, variants: Sequence[str]) -> list[dict[str, Any]]:
    """Return a host's measures (`UNITS`) at its true size, in frames, CPUs and THPs, a row a variant."""
    _, unmerged, unsplit = Reference.of(host.scenario).rows[-1].item()
    gib, rows = host.scenario.total_pages / 2**18, []
    seconds = host.scenario.horizon_seconds
    about = {"kind": host.name, "GiB": host.factor * gib, "simulated_GiB": gib, "seconds": seconds}
    for variant in variants:
        run = host.simulate(variant)
        last = run.rows[-1]
        frames, thps = int(last["frames"]), int(last["huge_pmds"])
        pages = {"memory": frames, "saved": unmerged - frames, "thps": thps, "thps_lost": unsplit - thps}
        values = {name: count * host.factor for name, count in pages.items()}
        for daemon, error in zip(("ksmd", "khugepaged"), cpu_errors(run), strict=True):
            values |= {f"{daemon}_cpu": last[f"{daemon}_cpu_ns"] / last["time_ns"], f"{daemon}_cost_error": error}
        rows.append({**about, "variant": variant, "factor": host.factor, **values})
    return rows


def _quantiles(hosts: pd.DataFrame) -> pd.Series:
    """Return quantiles of single hosts, each of which represents `stands_for` hosts."""
    found = np.quantile(hosts["value"], [0.05, 0.5, 0.95], weights=hosts["stands_for"], method="inverted_cdf")
    return pd.Series(found, ["p5", "median", "p95"])
