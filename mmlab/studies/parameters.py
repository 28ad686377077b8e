"""The parameters of a notebook: which scenario they describe, and which names and values they may have.

A parameters cell has ``params``, the file to start from, and the fields that the notebook's question is about. Where
such a field is None, the file decides. Any other field of a scenario can be given, too: by ``mmlab report -p``, or by
papermill, which injects a cell behind the parameters cell.

>>> own = {"params": "all_zero", "pages_to_scan": None, "compare": "legacy"}
>>> scenario_from(own, {"smart_scan": 0}).changed()
{'pages_to_scan': 1000, 'smart_scan': 0, 'zero_fraction': 1.0}
>>> check_names(own, {"memory_mb": 64})
Traceback (most recent call last):
mmlab.errors.UserError: unknown parameter 'memory_mb': did you mean 'memory_mib'? See `mmlab params`.
"""

import re
from collections.abc import Mapping
from typing import Any

from mmlab.engine.costs import cost_set
from mmlab.errors import UserError, unknown
from mmlab.params import find_params
from mmlab.results.trace import load
from mmlab.scenario import Scenario
from mmlab.variants import resolve

ASSIGNED, TYPED = re.compile(r"\w+(: \w+)? = |#|$"), re.compile(r"^\w+: \w+ = ", re.MULTILINE)
"""A line of a parameters cell; and what it has at least once, for other cells assign values, too."""


def read_parameters(namespace: Mapping[str, Any]) -> Scenario:
    """Return the scenario that a notebook's parameters describe: ``mmlab.read_parameters(globals())``.

    What papermill injected wins over the parameters cell, which wins over the file that ``params`` names.

    Raises
    ------
    UserError
        An injected name is neither a parameter of the notebook nor a field of the scenario, or a value is not allowed.
    """
    own: dict[str, Any] = {}
    injected: dict[str, Any] = {}
    for cell in namespace.get("In", ()):  # not the variables: later cells may have reused a name
        if cell.startswith("# Parameters\n"):  # as papermill marks it
            exec(cell, {}, injected)
        elif all(map(ASSIGNED.match, cell.splitlines())) and TYPED.search(cell):
            exec(cell, {}, own)
    if not own:  # no history: a script, or nbval
        own = {name: value for name, value in namespace.items() if isinstance(value, str | int | float | None)}
    own, injected = ({n: value for n, value in values.items() if n[0] != "_"} for values in (own, injected))
    check_names(own, injected)
    return scenario_from(own, injected)


def check_names(own: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Check the values given to a notebook with the parameters `own`: their names, and types that no scenario checks.

    Raises
    ------
    UserError
        A name is unknown, or a value is not of its default's type.
    """
    for name, value in given.items():
        if name in Scenario.model_fields:
            continue
        if name not in own:
            raise unknown("parameter", name, [*own, *Scenario.model_fields], "See `mmlab params`.")
        kind = type(own[name])
        fits = type(value) is kind or (kind, type(value)) in ((float, int), (str, float))  # YAML reads 6.18 as a number
        if own[name] is not None and not fits:
            allowed = f"of type {kind.__name__}, such as {own[name]!r}"
            raise UserError(parameter=name, value=value, allowed=allowed)


def scenario_from(own: Mapping[str, Any], given: Mapping[str, Any]) -> Scenario:
    """Return the scenario that a notebook's parameters and the values given to it describe.

    Raises
    ------
    UserError
        There is no such file, a value is not allowed, or this computer has too little memory for the scenario.
    """
    values = {name: value for name, value in {**own, **given}.items() if value is not None}
    base = load(find_params(values["params"])) if values.get("params") else Scenario()
    scenario = base.replace(**{name: value for name, value in values.items() if name in Scenario.model_fields})
    scenario.check_memory()
    resolve(scenario.variant)
    cost_set(scenario.costs)
    return scenario
