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

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmlab.engine.costs import cost_set
from mmlab.errors import UserError, located, unknown
from mmlab.params import find_params, read_yaml
from mmlab.scenario import Parameter, Scenario, check_value, flat_fields
from mmlab.variants import resolve

__all__ = ["Grid", "Point", "Range", "Strict", "varying", "with_params"]

MOST = 1_000_000
"""Scenarios of one grid."""

Point = dict[str, Any]
"""Values of parameters, by name."""


class Strict(BaseModel):
    """A model in which unknown keys and wrong values are a `UserError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            found = max(error.errors(include_url=False), key=lambda each: each["type"] == "extra_forbidden")
            name = " ".join(map(str, found["loc"]))
            if found["type"] == "extra_forbidden":
                known = [field.alias or name for name, field in type(self).model_fields.items()]
                raise unknown("key", name, known) from None
            if found["type"] == "missing":
                raise UserError("is missing", parameter=name) from None
            allowed = found["msg"].removeprefix("Input should be ")
            raise UserError(parameter=name, value=found["input"], allowed=allowed) from None


class Range(Strict):
    """Values from `low` to `high`: in steps, a number of them (`log`: by equal factors), or any between them."""

    low: int | float
    high: int | float
    step: int | float | None = Field(None, gt=0)
    count: int | None = Field(None, ge=2, le=MOST)
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise UserError(parameter="low", value=self.low, allowed=f"below high = {self.high}")
        if self.log and self.low <= 0:
            raise UserError(parameter="low", value=self.low, allowed="above 0, because log is true")
        if self.step is not None and (self.count is not None or self.log):
            raise UserError("goes with neither count nor log", parameter="step", value=self.step)
        if self.step is not None and (self.high - self.low) / self.step > MOST:
            raise UserError(parameter="step", value=self.step, allowed=f"large enough for at most {MOST:,} values")
        return self

    def between(self, share: float) -> float:
        """Return the value at that share, 0 … 1, of the way."""
        if self.log:
            return _plain(self.low * (self.high / self.low) ** share)
        return _plain(self.low + (self.high - self.low) * share)

    def levels(self) -> list[float]:
        """Return the values that `step` or `count` names; none if there is neither."""
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step * (1 + 1e-12))
            return [_plain(self.low + i * self.step) for i in range(steps + 1)]
        return [self.between(i / (self.count - 1)) for i in range(self.count)] if self.count else []


def _plain(value: float) -> float:
    """Round off the noise of the last digits: 0.3 is the same scenario whether it was written or counted up to."""
    return float(f"{value:.12g}")


class Grid(Strict):
    """Scenarios with a common base, of which some parameters vary; see the module.

    Attributes
    ----------
    base
        Parameters that all scenarios have. ``params`` in it names a params file that they start from.
    vary
        For each parameter, by name, its values: a list, or a `Range`.
    design
        "full": every combination. "latin_hypercube", "sobol": `samples` points that fill the space, drawn from `seed`.

    Raises
    ------
    UserError
        A key or a parameter is unknown, or a value is not allowed.
    """

    base: Point = {}
    vary: dict[str, list[bool | int | float | str] | Range] = {}
    design: Literal["full", "latin_hypercube", "sobol"] = "full"
    samples: int | None = Field(None, ge=1, le=MOST)
    seed: int = Field(0, ge=0, lt=2**63)

    @classmethod
    def load(cls, path: str | Path) -> Grid:
        """Read a grid file, or one of ``params/grids/`` by its name. A params file that it names may lie beside it."""
        path = find_params(path, "grids")
        with located(path):
            data = read_yaml(path)
            return cls(**{**data, "base": with_params(data.get("base", {}), path.parent)})

    @field_validator("base", mode="before")
    @classmethod
    def _check_base(cls, given: Any) -> Any:
        with located("base"):
            base = with_params(given)
            for name, value in base.items() if isinstance(base, dict) else ():
                if name not in Scenario.model_fields:
                    raise unknown("key", name, ["params", *Scenario.model_fields], "`mmlab params` explains them.")
                _check(name, value)
        return base

    @field_validator("vary", mode="before")
    @classmethod
    def _check_vary(cls, given: Any) -> Any:
        with located("vary"):
            return {n: _axis(n, value) for n, value in given.items()} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _check_design(self) -> Self:
        if (self.design == "full") == (self.samples is not None):
            hint = "A full design has all combinations; latin_hypercube and sobol need samples."
            raise UserError("does not fit the design", parameter="samples", value=self.samples, hint=hint)
        if self.design == "sobol" and self.samples and self.samples.bit_count() > 1:
            below = 1 << self.samples.bit_length() - 1
            allowed = f"a power of two, which fills the space evenly: {below} or {2 * below}"
            raise UserError(parameter="samples", value=self.samples, allowed=allowed)
        if self.design == "full":
            count = {name: len(self.levels(name)) for name in self.vary}
            for name in (name for name, levels in count.items() if not levels):
                hint = "A full design needs one of them in each range, e.g. count: 5."
                raise UserError("has neither step nor count", parameter=name, where="vary", hint=hint)
            if (total := math.prod(count.values())) > MOST:
                hint = "Use fewer values, or design: sobol with samples."
                raise UserError(parameter="combinations", value=total, allowed=f"at most {MOST:,}", hint=hint)
        return self

    def points(self) -> list[Point]:
        """Return the varied parameters of each scenario, in order."""
        if self.design == "full":
            levels = {name: self.levels(name) for name in self.vary}
            return [dict(zip(levels, values, strict=True)) for values in product(*levels.values())]
        from scipy.stats import qmc

        kind = qmc.Sobol if self.design == "sobol" else qmc.LatinHypercube  # twice as long, Sobol begins the same
        shares = kind(max(1, len(self.vary)), rng=self.seed).random(self.samples).tolist()
        return [{name: self._at(name, u) for name, u in zip(self.vary, row, strict=False)} for row in shares]

    def levels(self, name: str) -> list[Any]:
        """Return all values of a list, or of a range with step or count (each whole number once)."""
        axis = self.vary[name]
        if isinstance(axis, list):
            return axis
        return list(dict.fromkeys(map(round, axis.levels()))) if flat_fields()[name].type is int else axis.levels()

    def _at(self, name: str, share: float) -> Any:
        """Return the value at a share, 0 … 1: each level, or each whole number, has an equal part of it."""
        axis, levels = self.vary[name], self.levels(name)
        if levels:
            return levels[min(int(share * len(levels)), len(levels) - 1)]
        assert isinstance(axis, Range)
        if flat_fields()[name].type is float:
            return axis.between(share)
        high = math.floor(axis.high)
        value = min(high, int(Range(low=math.ceil(axis.low), high=high + 1, log=axis.log).between(share)))
        return max(2, value // 2 * 2) if name == "memory_mib" else value  # whole THPs


def with_params(base: Any, folder: Path = Path()) -> Any:
    """Return `base` with the parameters of the file that its ``params`` names: in `folder`, or a shipped one."""
    base = {"params": base} if isinstance(base, str) else base
    if not isinstance(base, dict) or "params" not in base:
        return base
    name = base["params"]
    if not isinstance(name, str):
        raise UserError(parameter="params", value=name, allowed="a params file, or the name of a shipped one")
    near = folder / name
    return read_yaml(near if near.is_file() else find_params(name)) | {n: v for n, v in base.items() if n != "params"}


def _axis(name: str, given: Any) -> Any:
    if name not in varying():
        raise unknown("parameter", name, varying(), "`mmlab params` explains every one.")
    if isinstance(given, dict) and flat_fields()[name].type in (int, float):
        with located(name):
            given = Range(**given)
    if not given or not isinstance(given, list | Range):
        hint = "What all scenarios have goes into base."
        allowed = (
            f"a list such as [{flat_fields()[name].default!r}], or for numbers a range {{low: …, high: …, step: …}}"
        )
        raise UserError(parameter=name, value=given, allowed=allowed, hint=hint)
    for value in given if isinstance(given, list) else (given.low, given.high):
        _check(name, value)
    return given


def varying() -> dict[str, Parameter]:
    """Return all parameters that can change a result."""
    return {name: parameter for name, parameter in flat_fields().items() if name != "name"}


def _check(name: str, value: Any) -> None:
    """Raise a `UserError` unless the parameter may have the value, whatever the others are."""
    check_value(name, value)
    if name == "variant":
        resolve(value)
    elif name == "costs":
        cost_set(value)
