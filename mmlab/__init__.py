"""mmlab: a page-exact model of KSM, transparent huge pages and the zero-page remap."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Scenario": "scenario",
    "Run": "results.run",
    "simulate": "engine.clock",
    "Variant": "variants",
    "VARIANTS": "variants",
    "SplitContext": "variants",
    "explore": "explorer.explorer",
    "sweep": "studies.sweep",
    "read_sweep": "studies.sweep",
    "Goals": "studies.goals",
    "tune": "studies.tune",
    "fleet": "studies.fleet",
}
__all__ = [
    "VARIANTS",
    "Goals",
    "Run",
    "Scenario",
    "SplitContext",
    "Variant",
    "__version__",
    "explore",
    "fleet",
    "read_sweep",
    "simulate",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Compiled code, pandas and matplotlib load when first needed."""
    if name not in _HOME:
        raise AttributeError(f"module 'mmlab' has no attribute {name!r}")
    value = getattr(import_module(f"mmlab.{_HOME[name]}"), name)
    globals()[name] = value
    return value
