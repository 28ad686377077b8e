"""Grids: many scenarios from a short file, for `mmlab sweep`.

    base: {params: regression_uzp0, memory_mib: 64}          # a params file, or nothing; then what differs from it
    vary:
      variant: [mainline, v1-series]                         # each of these
      thp_coverage: {low: 0, high: 1, step: 0.25}            # 0, 0.25, … 1
      pages_to_scan: {low: 100, high: 10000, count: 5, log: true}
    design: full                                             # every combination; or latin_hypercube, sobol:
    # samples: 256                                           # so many points, spread evenly, the same for each seed
    # seed: 1

>>> grid = Grid(vary={"smart_scan": [0, 1], "pages_to_scan": {"low": 100, "high": 10000, "count": 3, "log": True}})
>>> [point["pages_to_scan"] for point in grid.points()]
[100, 1000, 10000, 100, 1000, 10000]
>>> Grid(vary={"smart_scan": [0, 1, 2]})
Traceback (most recent call last):
mmlab.errors.UserError: vary: smart_scan = 2 is out of range: it must be 0 … 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mmlab.engine.costs import cost_table
from mmlab.errors import UserError, unknown
from mmlab.params import find_params, read_yaml
from mmlab.scenario import Scenario, check_value, flat_fields
from mmlab.variants import resolve

__all__ = ["Axis", "Grid", "Point", "Range"]

MOST = 1_000_000
"""Scenarios of one grid."""

Design = Literal["full", "latin_hypercube", "sobol"]
Number = int | float
Value = bool | int | float | str
Point = dict[str, Any]
"""Values of parameters, by name."""


class Range(BaseModel):
    """Values from `low` to `high`: in steps, a number of them (`log`: by equal factors), or any between them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    low: Number
    high: Number
    step: Number | None = Field(None, gt=0)
    count: int | None = Field(None, ge=2, le=MOST)
    log: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if self.step is not None and (self.count is not None or self.log):
            raise ValueError("step goes with neither count nor log: use {low, high, step}, or {low, high, count}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low}")
        if self.step is not None and (self.high - self.low) / self.step > MOST:
            raise ValueError(f"step = {self.step} makes more than {MOST:,} values: use a larger one")
        return self

    def between(self, share: float) -> float:
        """The value at that share, 0 … 1, of the way."""
        if self.log:
            return _plain(self.low * (self.high / self.low) ** share)
        return _plain(self.low + (self.high - self.low) * share)

    def levels(self) -> list[float]:
        """The values that `step` or `count` name; none: there is neither."""
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step * (1 + 1e-12))
            return [_plain(self.low + i * self.step) for i in range(steps + 1)]
        return [self.between(i / (self.count - 1)) for i in range(self.count)] if self.count is not None else []


Axis = list[Value] | Range


def _plain(value: float) -> float:
    """Without the last digits' noise: 0.3 is the same scenario whether it was written or counted up to."""
    return float(f"{value:.12g}")


class Grid(BaseModel):
    """A base, what is varied, and how; see the module's text.

    Attributes
    ----------
    base
        Parameters that all scenarios have, after the params file that ``params`` named in it.
    vary
        For each parameter, by name, the values it takes: a list, or a `Range`.
    design
        "full": every combination. "latin_hypercube", "sobol": `samples` points that fill the space, from `seed`.

    Raises
    ------
    UserError
        A key or a parameter is unknown, or a value is not allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Point = {}
    vary: dict[str, Axis] = {}
    design: Design = "full"
    samples: int | None = Field(None, ge=1, le=MOST)
    seed: int = Field(0, ge=0, lt=2**63)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise UserError("\n".join(dict.fromkeys(map(_sentence, error.errors(include_url=False))))) from None

    @classmethod
    def load(cls, path: str | Path) -> Grid:
        """Read a grid file; or one of ``params/grids/``, by its name. A params file may lie beside it."""
        path = find_params(path, "grids")
        data = read_yaml(path)
        try:
            base = data.get("base")
            if isinstance(base, str):
                base = {"params": base}
            if isinstance(base, dict) and isinstance(base.get("params"), str):
                beside = path.parent / base["params"]
                data["base"] = {**base, "params": str(beside) if beside.is_file() else base["params"]}
            return cls(**data)
        except UserError as error:
            raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None

    @field_validator("base", mode="before")
    @classmethod
    def _with_file(cls, base: Any) -> Any:
        base = {"params": base} if isinstance(base, str) else base
        if isinstance(base, dict) and "params" in base:
            if not isinstance(base["params"], str):
                raise ValueError(f"params = {base['params']!r}: it must be a params file, or the name of a shipped one")
            return {**read_yaml(find_params(base["params"])), **{n: v for n, v in base.items() if n != "params"}}
        return base

    @field_validator("vary", mode="before")
    @classmethod
    def _axes(cls, vary: Any) -> Any:
        if not isinstance(vary, dict):
            return vary
        axes: dict[str, list[Any] | Range] = {}
        for name, given in vary.items():
            if name not in flat_fields():
                raise ValueError(unknown("parameter", name, flat_fields(), "`mmlab params` explains every one."))
            if name == "name":
                raise ValueError("name is free text and changes no result: vary something else")
            if isinstance(given, list):
                if not given:
                    raise ValueError(f"{name}: the list is empty: name at least one value")
                if odd := [value for value in given if not isinstance(value, Value)]:
                    raise ValueError(f"{name} = {odd[0]!r}: a list holds numbers, names, true or false")
                axes[name] = given
            elif isinstance(given, (dict, Range)):
                axes[name] = _range(name, given)
            else:
                raise ValueError(
                    f"{name} = {given!r}: it must be a list, [{given}], or a range, "
                    "{low: …, high: …, step: …}. What all scenarios have goes into base"
                )
        return axes

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name, value in self.base.items():
            if name not in Scenario.model_fields:
                raise ValueError(
                    "base: "
                    + str(unknown("key", name, ["params", *Scenario.model_fields], "`mmlab params` explains them."))
                )
            _allowed("base", name, value)
        for name, axis in self.vary.items():
            for value in axis if isinstance(axis, list) else [axis.low, axis.high]:
                _allowed("vary", name, value)
        if self.design == "full":
            if self.samples is not None:
                raise ValueError(
                    f"samples = {self.samples} goes with design: latin_hypercube or sobol; a full design "
                    "has every combination"
                )
            for name, axis in self.vary.items():
                if isinstance(axis, Range) and axis.step is None and axis.count is None:
                    raise ValueError(
                        f"vary {name}: a full design needs step or count in each range, "
                        f"e.g. {{low: {axis.low}, high: {axis.high}, count: 5}}"
                    )
            if (total := math.prod(len(self._levels(name)) for name in self.vary)) > MOST:
                raise ValueError(
                    f"vary: these are {total:,} combinations, and {MOST:,} is the most: use fewer values, "
                    "or design: sobol with samples"
                )
        elif self.samples is None:
            raise ValueError(f"design = {self.design} needs samples: how many scenarios, e.g. samples: 256")
        elif not self.vary:
            raise ValueError(f"design = {self.design} needs vary: at least one parameter")
        elif self.design == "sobol" and self.samples & (self.samples - 1):
            below = 1 << self.samples.bit_length() - 1
            raise ValueError(
                f"samples = {self.samples}: a Sobol design fills space evenly with a power of two: "
                f"{below} or {2 * below}"
            )
        return self

    def points(self) -> list[Point]:
        """The varied parameters of each scenario, in order."""
        if self.design == "full":
            levels = {name: self._levels(name) for name in self.vary}
            return [dict(zip(levels, values, strict=True)) for values in product(*levels.values())]
        from scipy.stats import qmc

        assert self.samples is not None
        if self.design == "sobol":  # the first half of twice as many points are these: it may grow
            shares = qmc.Sobol(len(self.vary), rng=self.seed).random_base2(self.samples.bit_length() - 1)
        else:
            shares = qmc.LatinHypercube(len(self.vary), rng=self.seed).random(self.samples)
        picks = [self._pick(name) for name in self.vary]
        return [
            {name: pick(share) for name, pick, share in zip(self.vary, picks, row, strict=True)}
            for row in shares.tolist()
        ]

    def _levels(self, name: str) -> list[Any]:
        """All values of a list, or of a range with step or count; of a whole number each once."""
        axis = self.vary[name]
        if isinstance(axis, list):
            return axis
        return list(dict.fromkeys(map(round, axis.levels()))) if _is_whole(name) else axis.levels()

    def _pick(self, name: str) -> Callable[[float], Any]:
        """From a share, 0 … 1, to a value; of a list or of levels each is as likely."""
        axis, levels = self.vary[name], self._levels(name)
        if levels:
            return lambda share: levels[min(int(share * len(levels)), len(levels) - 1)]
        assert isinstance(axis, Range)
        if not _is_whole(name):
            return axis.between
        if axis.log:
            return lambda share: round(axis.between(share))
        low, count = math.ceil(axis.low), math.floor(axis.high) - math.ceil(axis.low) + 1
        return lambda share: low + min(int(share * count), count - 1)


def _is_whole(name: str) -> bool:
    return flat_fields()[name].type is int


def _range(name: str, given: dict[str, Any] | Range) -> Range:
    if flat_fields()[name].type not in (int, float):
        raise ValueError(f"{name} takes a list, e.g. [{flat_fields()[name].default!r}]: a range is of numbers")
    if isinstance(given, Range):
        return given
    try:
        return Range(**given)
    except ValidationError as error:
        raise ValueError("\n".join(f"{name}: {_sentence(e, Range)}" for e in error.errors(include_url=False))) from None


def _allowed(where: str, name: str, value: Any) -> None:
    """ValueError unless the parameter may have the value, whatever the others are."""
    try:
        check_value(name, value)
        if name == "variant":
            resolve(value)
        elif name == "costs":
            cost_table(value)
    except UserError as error:
        raise ValueError(f"{where}: {error}") from None


def _sentence(e: Any, model: type[BaseModel] = Grid) -> str:
    """One of pydantic's findings: what, which value, what is allowed."""
    name, given = " ".join(str(part) for part in e["loc"]), e.get("input")
    if e["type"] == "extra_forbidden":
        return str(unknown("key", name, model.model_fields))
    if e["type"] == "missing":
        return f"{name} is missing"
    if e["type"] == "value_error":
        return f"{name}: {e['ctx']['error']}" if name else str(e["ctx"]["error"])
    if name == "design":
        return f"design = {given!r}: it must be one of {', '.join(get_args(Design))}"
    return f"{name} = {given!r}: {str(e['msg']).replace('Input should be', 'it must be')}"
