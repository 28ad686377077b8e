"""A scenario as a script and as a params file, to take along what was found with sliders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmlab.errors import UserError
from mmlab.scenario import Scenario, flat_fields
from mmlab.variants import VARIANTS

__all__ = ["as_python", "as_yaml", "changed", "save"]

RICH = ("process_list", "late", "events", "stepped")


def changed(scenario: Scenario) -> dict[str, Any]:
    """The fields that are not at their defaults, as plain values."""
    given = scenario.model_dump(mode="json", include={*flat_fields(), *RICH}, exclude_unset=True)
    fields = Scenario.model_fields
    return {
        name: given[name]
        for name in (*flat_fields(), *RICH)
        if name in given and getattr(scenario, name) != fields[name].default
    }


def as_python(scenario: Scenario, variants: Sequence[str]) -> str:
    """A script that runs the scenario under these variants; a variant of your own is named as your function is.

    >>> print(as_python(Scenario(zero_fraction=0.5), ["mainline", "mine"]), end="")
    from mmlab import Scenario, simulate
    <BLANKLINE>
    scenario = Scenario(
        zero_fraction=0.5,
    )
    for variant in ('mainline', mine):
        run = simulate(scenario, variant=variant)
        print(run.variant, run.summary(), sep="\\n")
    """
    fields = "".join(f"    {name}={value!r},\n" for name, value in changed(scenario).items() if name != "variant")
    names = ", ".join(repr(name) if name in VARIANTS else name for name in variants)
    return (
        f"from mmlab import Scenario, simulate\n\nscenario = Scenario(\n{fields})\nfor variant in ({names}):\n"
        '    run = simulate(scenario, variant=variant)\n    print(run.variant, run.summary(), sep="\\n")\n'
    )


def as_yaml(scenario: Scenario, always: Collection[str] = (), about: str = "") -> str:
    """The scenario as a params file, each line with its meaning.

    Parameters
    ----------
    always
        Fields that are said even where they are at their defaults.
    about
        A line above.

    Raises
    ------
    UserError
        The variant is a function of yours, which a file cannot name.

    >>> print(as_yaml(Scenario(smart_scan=0)), end="")
    smart_scan: 0                   # 1: pages that could not be merged lately are skipped in more and more full scans
    """
    if scenario.variant not in VARIANTS:
        raise UserError(f"variant = {scenario.variant!r}: a params file can only name one of {', '.join(VARIANTS)}")
    values = {name: getattr(scenario, name) for name in flat_fields() if name in always} | changed(scenario)
    lines = [f"# {about}\n\n"] if about else []
    for name, value in values.items():
        line = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=1000)
        if field := flat_fields().get(name):
            unit = f" ({field.unit})" if field.unit else ""
            line = f"{line.strip():31} # {field.help}{unit}\n"
        lines.append(line)
    return "".join(lines)


def save(path: str | Path, text: str) -> Path:
    """Write a new file, never over another one; the path in full.

    Raises
    ------
    UserError
        It exists, or it cannot be written.
    """
    path = Path(path).expanduser().absolute()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists and was left alone: name another file.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file.") from None
    return path
