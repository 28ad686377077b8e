from .errors import UserError
from .explorer.explorer import explore
from .host.watch import watch
from .policies import Ksmtuned, Policy, View, schedule
from .results.metrics import Metrics
from .results.run import Run, simulate
from .scenario import Scenario
from .spec.rules import rule
from .studies.fleet import fleet
from .studies.goals import Goals
from .studies.parameters import read_parameters
from .studies.sweep import read_sweep, sweep
from .studies.tune import tune
from .studies.verdict import verdict
from .variants import VARIANTS, SplitContext, Variant

__all__ = [
    "VARIANTS",
    "Goals",
    "Ksmtuned",
    "Metrics",
    "Policy",
    "Run",
    "Scenario",
    "SplitContext",
    "UserError",
    "Variant",
    "View",
    "explore",
    "fleet",
    "read_parameters",
    "read_sweep",
    "rule",
    "schedule",
    "simulate",
    "sweep",
    "tune",
    "verdict",
    "watch",
]

__version__: str
