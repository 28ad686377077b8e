"""What many hosts come to: a weighted mix of scenarios, a few hosts of each kind simulated (`mmlab fleet`).

>>> mix = [{"memory_mib": 4, "zero_fraction": {"low": 0.2, "high": 0.6}}]
>>> plan = Plan.of({"hosts": 1000, "samples": 3, "mix": mix})
>>> estimate = fleet(plan, variants=["ksm-opt-out"])
>>> list(estimate.totals().columns)
['variant', 'measure', 'unit', 'total', 'error', 'p5', 'median', 'p95']

**The estimate.** A kind of host is a scenario, some of whose parameters vary from host to host. `samples` hosts of each
kind are drawn by its ranges (and each has a seed of its own for what is random within), simulated under every
variant, and stand for all of their kind: a total is the sum over kinds of hosts × mean. Its standard error is that of
a stratified sample, sqrt(Σ hosts² · s² / samples), with the finite population's factor; s is the deviation between the
hosts of a kind, so at least two are needed. Differences between variants are taken host by host, so that what hosts
differ in cancels. Quantiles are those of single hosts. What the costs of steps are uncertain by is the same for all
hosts, does not average out, and is said beside.

**Smaller than it is.** With `simulate_mib` a host's memory is simulated at that size: each page stands for so many (the
factor), each step on it costs as many times more, and what is counted in pages is multiplied by it. See `shrunk`
for what is made smaller with it, and what that assumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlab.engine import policies
from mmlab.engine.clock import Simulation
from mmlab.engine.costs import STEPS
from mmlab.errors import UserError, unknown
from mmlab.params import find_params, read_yaml
from mmlab.results.run import Run
from mmlab.results.uncertainty import cpu_errors
from mmlab.scenario import Scenario, flat_fields
from mmlab.studies.goals import Reference
from mmlab.variants import resolve

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MEASURES", "Estimate", "Host", "Kind", "Plan", "fleet", "shrunk"]

MEASURES: dict[str, tuple[str, float, str]] = {
    "memory": ("TiB", 2.0**-28, "frames in use at the end"),
    "saved": ("TiB", 2.0**-28, "frames fewer than with KSM and khugepaged off"),
    "ksmd_cpu": ("cores", 1.0, "CPU time of ksmd over simulated time"),
    "khugepaged_cpu": ("cores", 1.0, "CPU time of khugepaged over simulated time (estimated costs)"),
    "thps": ("million", 1e-6, "THPs mapped at the end"),
    "thps_lost": ("million", 1e-6, "THPs fewer than with KSM and khugepaged off"),
}
"""What is summed up over the fleet: unit, units a host's figure (frames, CPUs, THPs) makes, meaning."""

SAMPLES = 8
COLD = 10
"""Levels of a tree before the cold ones (`mmlab.engine.costs`, tree_cold)."""
BATCHES_A_SCAN = 100
"""A shrunk host's full scan has at least so many batches."""


@dataclass(frozen=True)
class Host:
    """One host that stands for others.

    Attributes
    ----------
    kind
        Its kind's name.
    scenario
        As it is simulated.
    factor
        Pages of the host that a simulated page stands for.
    batches
        Batches of the host that a simulated batch stands for.
    """

    kind: str
    scenario: Scenario
    factor: float = 1.0
    batches: float = 1.0

    def simulate(self, variant: str) -> Run:
        """Its run: each step costs what it costs on the pages that it stands for, and in trees as deep as theirs."""
        policy = policies.resolve(self.scenario.policy)
        run = Simulation(self.scenario, resolve(variant), policy, None, None)
        times = np.full(len(STEPS), self.factor)
        times[list(STEPS).index("wake_up")] = self.batches
        times[list(STEPS).index("end_of_pass")] = 1
        deep, deeper = (
            math.log2(pages) for pages in (self.scenario.total_pages, self.factor * self.scenario.total_pages)
        )
        times[list(STEPS).index("tree_level")] *= deeper / deep
        times[list(STEPS).index("tree_cold")] *= (deeper - COLD) / max(1.0, deep - COLD)
        run.m.costs[:] = np.rint(run.m.costs * times)
        return run.run()


@dataclass(frozen=True)
class Kind:
    """A kind of host: its share of the fleet, and its parameters, some of which vary."""

    name: str
    weight: float
    parameters: Mapping[str, Any]
    memory_gib: float | None = None
    simulate_mib: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], number: int, beside: Path | None = None) -> Kind:
        """From an entry of `mix`."""
        given = dict(values)
        params = given.pop("params", None)
        name = str(given.pop("name", params or f"kind {number + 1}"))
        own = {key: given.pop(key, None) for key in ("weight", "memory_gib", "simulate_mib")}
        weight = 1.0 if own["weight"] is None else own["weight"]
        for key, value in {**own, "weight": weight}.items():
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise UserError(f"mix {name}: {key} = {value!r}: it must be a number above 0")
        base: dict[str, Any] = {}
        if params is not None:
            near = beside / str(params) if beside else None
            base = read_yaml(near if near and near.is_file() else find_params(params))
        known = flat_fields()
        for key, value in given.items():
            if key not in known:
                own_keys = ("name", "params", "weight", "memory_gib", "simulate_mib", *known)
                raise UserError(f"mix {name}: {unknown('key', key, own_keys)}")
            _check_range(name, key, value)
        return cls(name, float(weight), {**base, **given}, own["memory_gib"], own["simulate_mib"])

    def sample(self, hosts: int, seed: int) -> list[Host]:
        """So many hosts of this kind, drawn by its ranges.

        Raises
        ------
        UserError
            A drawn scenario is not allowed, or it can't be simulated at `simulate_mib`.
        """
        from scipy.stats import qmc

        varied = [key for key, value in self.parameters.items() if key in flat_fields() and _varies(value)]
        # spread evenly over the ranges: the means are at least as good as those of independent draws
        places = qmc.LatinHypercube(max(1, len(varied)), rng=seed).random(hosts)
        out = []
        for i, place in enumerate(places):
            drawn = {key: _draw(key, self.parameters[key], u) for key, u in zip(varied, place.tolist(), strict=False)}
            try:
                own = {"seed": seed * 100_003 + i, "sample_limit": 100}
                scenario = _timed(Scenario(**{**own, **self.parameters, **drawn}))
                out.append(self._sized(scenario))
            except UserError as error:
                raise UserError(f"mix {self.name}: {error}") from None
        return out

    def _sized(self, scenario: Scenario) -> Host:
        true_mib = scenario.total_pages / 256 if self.memory_gib is None else 1024 * self.memory_gib
        if self.simulate_mib is None or self.simulate_mib >= true_mib:
            if self.memory_gib is not None:
                scenario = scenario.replace(memory_mib=_whole(scenario, true_mib))
            return Host(self.name, scenario)
        return Host(self.name, *shrunk(scenario, true_mib, self.simulate_mib))


def _varies(value: Any) -> bool:
    return isinstance(value, list | dict)


def _check_range(kind: str, key: str, value: Any) -> None:
    """A list of values, or {low, high} with or without log, as in the grids of `mmlab sweep`."""
    if isinstance(value, list) and value:
        return
    if isinstance(value, dict):
        low, high = value.get("low", 0), value.get("high", -1)
        numbers = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in (low, high))
        if set(value) <= {"low", "high", "log"} and numbers and low <= high and (low > 0 or not value.get("log")):
            return
    elif not isinstance(value, list):
        return
    raise UserError(
        f"mix {kind}: {key} = {value!r}: it must be one value, a list of some, or a range {{low: 1, high: 9}}, "
        "with log: true (from above 0) for equal chances of equal factors"
    )


def _draw(key: str, value: Any, u: float) -> Any:
    """The value at the share u of a range, or of a list."""
    if isinstance(value, list):
        return value[int(u * len(value))]
    low, high = value["low"], value["high"]
    whole = flat_fields()[key].type is int
    if value.get("log"):
        drawn = math.exp(math.log(low) + u * math.log((high + (1 if whole else 0)) / low))
    else:
        drawn = low + u * (high - low + (1 if whole else 0))
    if key == "memory_mib":  # whole THPs
        return max(2, int(drawn) // 2 * 2)
    return min(high, int(drawn)) if whole else drawn


def _whole(scenario: Scenario, mib: float) -> int:
    """memory_mib of each process so that all have so much together: whole blocks of 2 MiB."""
    return max(2, round(mib / len(scenario.specs) / 2) * 2)


def shrunk(scenario: Scenario, true_mib: float, mib: float) -> tuple[Scenario, float, float]:
    """A host of `true_mib` as it can be simulated in `mib`, and how many pages and batches one stands for.

    Every process gets so much smaller, and with it everything that is so much a second: ksmd's and khugepaged's pages a
    batch (or their sleeps get longer), `migration_rate`, `pressure_rate`; and `duplicate_groups`, `stray_zero_pages`,
    `swap_mib`, so that a content has as many equals. Full scans then take as long as they do on the host.

    This assumes that memory is alike throughout. Trees are not as deep as the host's: a level is taken to cost more by
    the ratio of log2(pages), so ksmd's CPU time is about right (README, "A fleet"). Bursts of single batches are not
    those of the host.

    Raises
    ------
    UserError
        The scenario depends on its absolute size: processes one by one, events, ksmtuned, the advisor; or the size is
        too small for its processes.
    """
    for name, usual in (("process_list", ()), ("events", ()), ("policy", "none"), ("advisor_mode", "none")):
        if getattr(scenario, name) != usual:
            raise UserError(f"simulate_mib = {mib:g}: {name} depends on the true size: leave simulate_mib out")
    if mib < 2 * scenario.processes:
        raise UserError(
            f"simulate_mib = {mib:g}: {scenario.processes} processes need at least {2 * scenario.processes} MiB"
        )
    small = scenario.replace(memory_mib=_whole(scenario, mib), stray_zero_pages=0)
    factor = true_mib * 256 / small.total_pages
    pages = _slower(scenario.pages_to_scan, small.total_pages, factor)
    huge = _slower(scenario.khugepaged_pages_to_scan, small.total_pages, factor)
    sleep = round(1000 * (_tick_seconds(scenario) * pages[1] - 1 / scenario.hz)) if scenario.sleep_millisecs else 0
    return (
        small.replace(
            stray_zero_pages=round(scenario.stray_zero_pages / factor),
            duplicate_groups=max(1, round(scenario.duplicate_groups / factor)),
            migration_rate=scenario.migration_rate / factor,
            pressure_rate=scenario.pressure_rate / factor,
            swap_mib=math.ceil(scenario.swap_mib / factor),
            pages_to_scan=pages[0],
            sleep_millisecs=sleep,
            khugepaged_pages_to_scan=max(1, huge[0]),
            khugepaged_scan_sleep_millisecs=round(scenario.khugepaged_scan_sleep_millisecs * huge[1]),
        ),
        factor,
        pages[1],
    )


def _tick_seconds(scenario: Scenario) -> float:
    """How long a sleep of ksmd takes, s: whole ticks and one more."""
    return (-(-scenario.sleep_millisecs * scenario.hz // 1000) + 1) / scenario.hz


def _slower(pages: int, memory: int, factor: float) -> tuple[int, float]:
    """Pages a batch for a pace that is `factor` times slower, and by how much its sleeps get longer."""
    fewer = min(pages, max(1, math.ceil(pages / factor), memory // BATCHES_A_SCAN))
    return fewer, factor * fewer / pages if pages else 1.0


@dataclass(frozen=True)
class Plan:
    """A fleet: how many hosts, of which kinds, and how many of each are simulated."""

    hosts: int
    kinds: tuple[Kind, ...]
    samples: int = SAMPLES
    seed: int = 0
    variants: tuple[str, ...] = ("mainline",)

    @classmethod
    def of(cls, values: Mapping[str, Any], beside: Path | None = None) -> Plan:
        """From what a fleet file says: `hosts`, `mix`, and maybe `samples`, `seed`, `variants`, `simulate_mib` of all.

        Raises
        ------
        UserError
            Something in it is not known or out of range.
        """
        known = ("hosts", "mix", "samples", "seed", "variants", "simulate_mib")
        for name in values:
            if name not in known:
                raise unknown("key", name, known)
        mix = values.get("mix")
        if not isinstance(mix, list) or not mix or not all(isinstance(entry, dict) for entry in mix):
            raise UserError("mix: it must be a list of kinds of hosts, such as - {params: bimodal, weight: 0.4}")
        numbers = {"hosts": 1, "samples": 2, "seed": 0}
        for name, least in numbers.items():
            value = values.get(name, least)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name} = {value!r}: it must be a whole number, at least {least}")
        if "hosts" not in values:
            raise UserError("hosts is missing: how many hosts has the fleet?")
        variants = values.get("variants", ["mainline"])
        variants = [variants] if isinstance(variants, str) else list(variants)
        for name in variants:
            resolve(name)
        size = {} if values.get("simulate_mib") is None else {"simulate_mib": values["simulate_mib"]}
        kinds = tuple(Kind.of({**size, **entry}, i, beside) for i, entry in enumerate(mix))
        names = [kind.name for kind in kinds]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"mix: there are several kinds called {twice[0]}: give each a name of its own")
        return cls(values["hosts"], kinds, values.get("samples", SAMPLES), values.get("seed", 0), tuple(variants))

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Plan:
        """From a fleet file, or the name of one of params/fleets/; `overrides` that are not None replace what it says.

        Raises
        ------
        UserError
            As :meth:`of`; the message begins with the file's name.
        """
        path = find_params(path, "fleets")
        try:
            asked = {name: value for name, value in overrides.items() if value is not None}
            return cls.of(read_yaml(path) | asked, path.parent)
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None

    def of_kind(self) -> dict[str, float]:
        """Hosts of each kind."""
        total = sum(kind.weight for kind in self.kinds)
        return {kind.name: self.hosts * kind.weight / total for kind in self.kinds}

    def sampled(self) -> list[Host]:
        """The hosts that are simulated."""
        return [
            host
            for i, kind in enumerate(self.kinds)
            for host in kind.sample(self.samples, self.seed * len(self.kinds) + i)
        ]


def host_rows(host: Host, variants: Sequence[str]) -> list[dict[str, Any]]:
    """What a host comes to, a row a variant: `MEASURES` in frames, CPUs and THPs, at its true size."""
    reference = Reference.of(host.scenario)
    out = []
    for variant in variants:
        run = host.simulate(variant)
        measured, last = reference.measures(run), run.rows[-1]
        frames, thps = int(last["frames"]), int(last["huge_pmds"])
        error = cpu_errors(run)
        row = {
            "memory": frames * host.factor,
            "saved": (reference.frames - frames) * host.factor,
            "ksmd_cpu": (measured["ksmd_cpu"] or 0.0) / 100,
            "khugepaged_cpu": (measured["khugepaged_cpu"] or 0.0) / 100,
            "thps": thps * host.factor,
            "thps_lost": (reference.thps - thps) * host.factor,
        }
        errors = {"ksmd_cost_error": error[0], "khugepaged_cost_error": error[1]}
        out.append({"kind": host.kind, "variant": variant, "factor": host.factor, **row, **errors})
    return out


def _timed(scenario: Scenario) -> Scenario:
    """All hosts are looked at after a time, not when they happen to be done."""
    if not scenario.horizon_seconds:
        raise UserError("horizon_seconds = 0: a fleet is looked at after a time: set it to more")
    return scenario.replace(until_settled=False, horizon_full_scans=0, horizon_batches=0)


def _task(task: tuple[int, Host, Sequence[str]]) -> list[dict[str, Any]]:
    number, host, variants = task
    return [{"host": number, **row} for row in host_rows(host, variants)]


def fleet(
    plan: Plan | str | Path | Mapping[str, Any],
    *,
    variants: Sequence[str] = (),
    jobs: int = 1,
    executor: Executor | None = None,
    progress: Any = None,
) -> Estimate:
    """Simulate the sampled hosts of a fleet and add them up.

    Parameters
    ----------
    plan
        The fleet: a `Plan`, a file or the name of one of params/fleets/, or what a file would say.
    variants
        Instead of the plan's; the first is what the others are compared with.
    jobs, executor
        Processes that share the work, or something with `map`. The estimate does not depend on them.
    progress
        Called after each host with hosts done, hosts in all, and the kind.

    Raises
    ------
    UserError
        The plan is not allowed, or a variant is not known.
    """
    if not isinstance(plan, Plan):
        plan = Plan.of(plan) if isinstance(plan, Mapping) else Plan.load(plan)
    chosen = tuple(variants) or plan.variants
    for name in chosen:
        resolve(name)
    hosts = plan.sampled()
    tasks = [(i, host, chosen) for i, host in enumerate(hosts)]
    own = ProcessPoolExecutor(jobs, get_context("spawn")) if jobs > 1 and executor is None else None
    rows: list[dict[str, Any]] = []
    try:
        for i, done in enumerate((executor or own).map(_task, tasks) if executor or own else map(_task, tasks)):  # type: ignore[union-attr]
            rows += done
            if progress:
                progress(i + 1, len(tasks), hosts[i].kind)
    finally:
        if own:
            own.shutdown(cancel_futures=True)
    return Estimate(plan, chosen, tuple(hosts), rows)


@dataclass(frozen=True)
class Estimate:
    """What a fleet comes to."""

    plan: Plan
    variants: tuple[str, ...]
    sampled: tuple[Host, ...]
    rows: list[dict[str, Any]]

    @cached_property
    def hosts(self) -> pd.DataFrame:
        """A row a simulated host and variant: frames, CPUs, THPs at its true size, and how many hosts it stands for."""
        import pandas as pd

        table = pd.DataFrame(self.rows)
        table["stands_for"] = table["kind"].map(self.plan.of_kind()) / self.plan.samples
        return table

    def _sum(self, values: pd.Series, kinds: pd.Series) -> tuple[float, float]:
        """Total over the fleet and its standard error, from one value a host."""
        total = variance = 0.0
        for kind, count in self.plan.of_kind().items():
            own = values[kinds == kind].to_numpy()
            rest = max(0.0, 1 - len(own) / count)
            total += count * own.mean()
            variance += count**2 * own.var(ddof=1) / len(own) * rest
        return float(total), math.sqrt(variance)

    def totals(self) -> pd.DataFrame:
        """A row a variant and measure: total, its standard error, and quantiles of single hosts (GiB, %, THPs)."""
        import pandas as pd

        rows = []
        for variant in self.variants:
            own = self.hosts[self.hosts["variant"] == variant]
            for name, (unit, scale, _) in MEASURES.items():
                total, error = self._sum(own[name] * scale, own["kind"])
                low, middle, high = _quantiles(own[name].to_numpy() * HOST[name][1], own["stands_for"].to_numpy())
                rows.append(
                    {
                        "variant": variant,
                        "measure": name,
                        "unit": unit,
                        "total": total,
                        "error": error,
                        "p5": low,
                        "median": middle,
                        "p95": high,
                    }
                )
        return pd.DataFrame(rows)

    def differences(self) -> pd.DataFrame:
        """A row a measure and variant but the first: its total less the first's, and the standard error of that."""
        import pandas as pd

        first = self.hosts[self.hosts["variant"] == self.variants[0]].set_index("host")
        rows = []
        for variant in self.variants[1:]:
            own = self.hosts[self.hosts["variant"] == variant].set_index("host")
            for name, (unit, scale, _) in MEASURES.items():
                total, error = self._sum((own[name] - first[name]) * scale, own["kind"])
                rows.append({"variant": variant, "measure": name, "unit": unit, "total": total, "error": error})
        return pd.DataFrame(rows, columns=["variant", "measure", "unit", "total", "error"])

    def text(self) -> str:
        """All of it as text tables, and what it assumes."""
        plan, kinds = self.plan, self.plan.of_kind()
        out = [f"{plan.hosts:,} hosts, {plan.samples} simulated of each kind, seed {plan.seed}"]
        width = max(map(len, kinds))
        for kind, count in kinds.items():
            own = [host for host in self.sampled if host.kind == kind]
            sizes = [host.factor * host.scenario.total_pages / 2**18 for host in own]
            said = f"{min(sizes):,.4g}" if min(sizes) == max(sizes) else f"{min(sizes):,.4g} … {max(sizes):,.4g}"
            small = max(host.factor for host in own) > 1
            as_ = f", simulated in {own[0].scenario.total_pages / 256:,.0f} MiB" if small else ""
            seconds = own[0].scenario.horizon_seconds
            out.append(f"  {kind:{width}}  {count:>11,.0f} hosts of {said} GiB after {seconds:,g} s{as_}")
        out += ["", f"{'':18}{'fleet':>12} {'± error':>10}  {'':8}{'a host: 5 %':>12} {'median':>10} {'95 %':>10}"]
        table = self.totals()
        for variant in self.variants:
            out.append(variant)
            for row in table[table["variant"] == variant].itertuples():
                out.append(
                    f"  {row.measure:16}{_n(row.total):>12} {_n(row.error):>10}  {row.unit:8}"
                    f"{_n(row.p5):>12} {_n(row.median):>10} {_n(row.p95):>10} {HOST[row.measure][0]}"
                )
        gaps = self.differences()
        for variant in self.variants[1:]:
            out += ["", f"{variant} less {self.variants[0]}"]
            for row in gaps[gaps["variant"] == variant].itertuples():
                out.append(f"  {row.measure:16}{_n(row.total):>12} {_n(row.error):>10}  {row.unit}")
        cpu, error = self.hosts["ksmd_cpu"], self.hosts["ksmd_cost_error"]
        out += [
            "",
            "± error is that of the sample; what steps cost is uncertain by another "
            f"{100 * float((cpu * error).sum() / (cpu.sum() or 1)):.2g} % of ksmd's CPU time, on all hosts alike.",
        ]
        factor = max(host.factor for host in self.sampled)
        if factor > 1:
            out += [
                f"Hosts were simulated up to {factor:,.0f} times smaller, as if memory were alike throughout; how deep",
                "trees are on the host is corrected for by its pages alone (mmlab.studies.fleet.shrunk).",
            ]
        return "\n".join(out)


HOST = {
    "memory": ("GiB", 2.0**-18),
    "saved": ("GiB", 2.0**-18),
    "ksmd_cpu": ("% of a CPU", 100.0),
    "khugepaged_cpu": ("% of a CPU", 100.0),
    "thps": ("THPs", 1.0),
    "thps_lost": ("THPs", 1.0),
}
"""Units of a single host's figures, and how many of them a frame, a CPU, a THP makes."""


def _quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """5 %, 50 % and 95 % of hosts that stand for `weights` hosts each."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    at = np.searchsorted(reached, np.array([0.05, 0.5, 0.95]) * reached[-1] * (1 - 1e-12))
    low, middle, high = (float(values[order][i]) for i in at)
    return low, middle, high


def _n(value: float) -> str:
    """Four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
