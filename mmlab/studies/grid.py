"""Grids: many scenarios from a short file, for `mmlab sweep`.

    base: {params: regression_uzp0, memory_mib: 64}          # what all have: a params file, then changes to it
    vary:
      variant: [mainline, v1-series]                         # a list of values
      thp_coverage: {low: 0, high: 1, step: 0.25}            # a range in steps: 0, 0.25, … 1
      pages_to_scan: {low: 100, high: 10000, count: 5, log: true}    # five values by equal factors
    design: full                                             # every combination; or latin_hypercube, sobol:
    # samples: 256                                           # that number of points, spread evenly
    # seed: 1

>>> grid = Grid(vary={"smart_scan": [0, 1], "pages_to_scan": {"low": 100, "high": 10000, "count": 3, "log": True}})
>>> [point["pages_to_scan"] for point in grid.points()]
[100, 1000, 10000, 100, 1000, 10000]
"""

import math
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from mmlab.engine.costs import cost_set
from mmlab.errors import UserError, located, unknown
from mmlab.params import find_params, in_units, quantity, read_yaml
from mmlab.scenario import Parameter, Scenario, check_value, explain, flat_fields
from mmlab.variants import resolve

MOST = 1_000_000
"""Scenarios of one grid."""
Point = dict[str, Any]
"""Values of parameters, by name."""


class Strict(BaseModel):
    """A model in which unknown keys and wrong values are a `UserError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    _in_units = model_validator(mode="before")(classmethod(in_units))  # type: ignore[arg-type]  # pydantic takes it

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except pydantic.ValidationError as error:
            raise explain(error, of=type(self)) from None


class Filed(Strict):
    """A model that is read from a file; params files that it names may lie in the file's `folder`."""

    kind: ClassVar[str]
    folder: Path = Field(Path(), exclude=True)

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Self:
        """Read a file, or one of the folder `kind` of ``params/`` by its name; overrides that are not None win."""
        path = find_params(path, cls.kind)
        with located(path):
            given = {name: value for name, value in overrides.items() if value is not None}
            return cls(**read_yaml(path) | given | {"folder": path.parent})


class Range(Strict):
    """Values from `low` to `high`: in steps, a number of them (`log`: by equal factors), or any between them."""

    low: int | float
    high: int | float
    step: int | float | None = Field(None, gt=0)
    count: int | None = Field(None, ge=2, le=MOST)
    log: bool = False

    def model_post_init(self, _: Any) -> None:
        """Check the ends, and what goes together."""
        if self.low >= self.high:
            raise UserError(parameter="low", value=self.low, allowed=f"below high = {self.high}")
        if self.log and self.low <= 0:
            raise UserError(parameter="low", value=self.low, allowed="above 0, because log is true")
        if self.step and (self.count or self.log):
            raise UserError("goes with neither count nor log", parameter="step", value=self.step)
        if self.step and (self.high - self.low) / self.step > MOST:
            raise UserError(parameter="step", value=self.step, allowed=f"large enough for at most {MOST:,} values")

    def levels(self, whole: bool) -> list[float]:
        """Return the values that `step` or `count` names, each `whole` number once; none if there is neither."""
        count = math.floor((self.high - self.low) / self.step * (1 + 1e-12)) + 1 if self.step else self.count or 0
        high = self.low + self.step * (count - 1) if self.step else self.high
        values = (np.geomspace if self.log else np.linspace)(self.low, high, count)
        return list(dict.fromkeys(map(round if whole else _plain, values.tolist())))

    def between(self, share: float, whole: bool) -> float:
        """Return the value at a share, at least 0 and below 1, of the way; `whole` numbers have equal parts of it."""
        high = self.high + 1 if whole else self.high
        value = self.low * (high / self.low) ** share if self.log else self.low + (high - self.low) * share
        return int(value) if whole else _plain(value)


def _plain(value: float) -> float:
    """Round off the noise of the last digits: 0.3 is the same scenario whether it was written or counted up to."""
    return float(f"{value:.12g}")


def varying() -> dict[str, Parameter]:
    """Return all parameters that can change a result."""
    return {name: parameter for name, parameter in flat_fields().items() if name != "name"}


def with_params(base: Any, folder: Path) -> Any:
    """Return `base` with the parameters of the file that its ``params`` names: in `folder`, or a shipped one."""
    base = {"params": base} if isinstance(base, str) else base
    if not isinstance(base, dict) or "params" not in base:
        return base
    name = str(base["params"])
    near = folder / name
    return read_yaml(near if near.is_file() else find_params(name)) | {n: v for n, v in base.items() if n != "params"}


def beside(base: Any, info: ValidationInfo) -> Any:
    """Return a field of a `Filed` model with the parameters of its params file: a validator of mode "before"."""
    return with_params(base, info.data["folder"])


@located("base")
def _base(given: Any, info: ValidationInfo) -> Any:
    """Return the base with the parameters of its params file, each checked by itself."""
    base = beside(given, info)
    for name, value in base.items() if isinstance(base, dict) else ():
        if name not in Scenario.model_fields:
            raise unknown("key", name, ["params", *Scenario.model_fields], "`mmlab params` explains them.")
        base = base | {name: _checked(name, value)}
    return base


@located("vary")
def _vary(given: dict[str, Any]) -> dict[str, list[Any] | Range]:
    """Return the list or the `Range` of each parameter, every value checked by itself."""
    axes = {}
    for name, axis in given.items():
        if name not in varying():
            raise unknown("parameter", name, varying(), "`mmlab params` explains every one.")
        parameter = flat_fields()[name]
        if isinstance(axis, dict) and parameter.type in (int, float):
            with located(name):
                axis = Range(**{key: quantity(value, parameter.unit) for key, value in axis.items()})
        if not axis or not isinstance(axis, list | Range):
            allowed = f"a list such as [{parameter.default!r}], or for numbers {{low: …, high: …, step: …}}"
            hint = "What all scenarios have goes into base."
            raise UserError(parameter=name, value=axis, allowed=allowed, hint=hint)
        found = [_checked(name, value) for value in (axis if isinstance(axis, list) else (axis.low, axis.high))]
        axes[name] = found if isinstance(axis, list) else axis
    return axes


def _checked(name: str, value: Any) -> Any:
    """Return the value in the parameter's unit; raise a `UserError` unless it may have it, whatever the others are."""
    value = check_value(name, value)
    if name == "variant":
        resolve(value)
    elif name == "costs":
        cost_set(value)
    return value


class Grid(Filed):
    """Scenarios with a common base, of which some parameters vary; see the module.

    Attributes
    ----------
    base
        Parameters that all scenarios have. ``params`` in it names a params file that they start from.
    vary
        For each parameter, by name, its values: a list, or a `Range`.
    design
        "full": every combination. "latin_hypercube", "sobol": `samples` points that fill the space, drawn from `seed`.
    simulate_mib
        Memory in which a larger scenario is simulated (MiB); see `mmlab.studies.fleet.shrunk`.

    Raises
    ------
    UserError
        A key or a parameter is unknown, or a value is not allowed.
    """

    kind = "grids"
    base: Annotated[Point, BeforeValidator(_base)] = {}
    vary: Annotated[dict[str, Any], AfterValidator(_vary)] = {}
    design: Literal["full", "latin_hypercube", "sobol"] = "full"
    samples: int | None = Field(None, ge=1, le=MOST)
    seed: int = Field(0, ge=0, lt=2**63)
    simulate_mib: int | float | None = Field(None, gt=0, description="(MiB)")

    def model_post_init(self, _: Any) -> None:
        """Check that the design has what it needs, and not too many scenarios."""
        if (self.design == "full") == bool(self.samples):
            hint = "A full design has all combinations; latin_hypercube and sobol need samples."
            raise UserError("does not fit the design", parameter="samples", value=self.samples, hint=hint)
        if self.design == "sobol" and self.samples and self.samples.bit_count() > 1:
            below = 1 << self.samples.bit_length() - 1
            allowed = f"a power of two, which fills the space evenly: {below} or {2 * below}"
            raise UserError(parameter="samples", value=self.samples, allowed=allowed)
        levels = self._levels() if self.design == "full" else {}
        for name in (name for name, values in levels.items() if not values):
            hint = "A full design needs one of them in each range, e.g. count: 5."
            raise UserError("has neither step nor count", parameter=name, where="vary", hint=hint)
        if (total := math.prod(map(len, levels.values()))) > MOST:
            hint = "Use fewer values, or design: sobol with samples."
            raise UserError(parameter="combinations", value=total, allowed=f"at most {MOST:,}", hint=hint)

    def points(self) -> list[Point]:
        """Return the varied parameters of each scenario, in order."""
        levels = self._levels()
        if self.design == "full":
            return [dict(zip(levels, values, strict=True)) for values in product(*levels.values())]
        from scipy.stats import qmc

        kind = qmc.Sobol if self.design == "sobol" else qmc.LatinHypercube  # twice as long, Sobol begins the same
        return self.at(kind(max(1, len(levels)), rng=self.seed).random(self.samples))

    def at(self, shares: np.ndarray) -> list[Point]:
        """Return the scenarios (rows of `shares`) whose parameters (columns) stand at a share, 0 to 1, of the way."""
        levels, rows = self._levels(), shares.clip(max=1 - 1e-9).tolist()
        return [{name: self._at(u, name, levels[name]) for u, name in zip(row, levels, strict=False)} for row in rows]

    def _levels(self) -> dict[str, list[Any]]:
        """Return each parameter's values: those listed, or those that its range's step or count names."""
        whole = {name for name, parameter in flat_fields().items() if parameter.type is int}
        return {n: axis.levels(n in whole) if isinstance(axis, Range) else axis for n, axis in self.vary.items()}

    def _at(self, share: float, name: str, levels: list[Any]) -> Any:
        """Return the value at a share of the way: each level, or each whole number, has an equal part of it."""
        if levels:
            return levels[int(share * len(levels))]
        value = self.vary[name].between(share, flat_fields()[name].type is int)
        return max(2, value // 2 * 2) if name == "memory_mib" else value  # whole THPs
