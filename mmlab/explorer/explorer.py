"""The explorer: sliders for a scenario's parameters, and beside them the runs of two fix variants.

    >>> import mmlab
    >>> explorer = mmlab.explore("all_zero", compare="ksm-opt-out", memory_mib=16)
    >>> explorer.set(pages_to_scan=100)
    >>> [int(run.rows["thp_split_page"][-1]) for run in explorer.runs.values()]
    [8, 8]

As the last line of a notebook's cell it shows itself: sliders, figures, page maps and a table. Moving a slider
simulates the scenario again, in threads, so that the kernel goes on listening. Figures follow the slider as fast as
they can, and a computation that takes long is dropped as soon as there is a newer request. Without a running event
loop, such as in a script, each change is computed at once.

The browser's part is ``explorer.js``: it draws what `Comparison.data` describes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from mmlab.errors import UserError, unknown
from mmlab.explorer.comparison import Comparison, template
from mmlab.explorer.requests import Job, Requests
from mmlab.kernel.jit import announced
from mmlab.params import find_params, params_files, read_yaml, save_new
from mmlab.results.run import Run, simulate
from mmlab.results.trace import load
from mmlab.results.why import History, PageEvents
from mmlab.scenario import Scenario, flat_fields
from mmlab.variants import KSMD_VARIANTS, VARIANTS, AnyVariant, Variant, resolve
from mmlab.workers import keep_freed_memory

CONTROLS = tuple(
    """pages_to_scan sleep_millisecs max_ptes_none use_zero_pages smart_scan shrink_underused khugepaged memory_mib
    thp_coverage zero_fraction duplicate_fraction duplicate_groups layout pressure_rate horizon_seconds""".split()
)
"""Fields of the scenario that have a control by default."""
START = "regression_uzp1"
PROGRESS = 0.3
"""Seconds after which the figures are marked as old, and progress is shown."""


def explore(
    scenario: Scenario | str | Path | None = None,
    compare: AnyVariant = "ksm-opt-out",
    *,
    variant: AnyVariant | None = None,
    controls: Sequence[str] = CONTROLS,
    **changes: Any,
) -> Explorer:
    """Return sliders for a scenario, with its runs under two variants; show it as the value of a notebook's cell.

    Parameters
    ----------
    scenario
        What to start from: a scenario, a params file, or the name of one of ``params/``. Default: 1 GiB of THPs, 460 of
        512 pages zero-filled.
    compare
        The variant beside the scenario's own: a name, a `Variant`, or a predicate of your own.
    variant
        Replaces the scenario's own variant, e.g. by a predicate of your own.
    controls
        Fields of the scenario that get a control, in this order.
    **changes
        Fields of the scenario to change.

    Raises
    ------
    UserError
        A name is unknown, or a value out of range.
    """
    if not isinstance(scenario, Scenario):
        scenario = load(find_params(START if scenario is None else scenario))
    keep_freed_memory()
    return Explorer(scenario.replace(**changes), resolve(variant or scenario.variant), resolve(compare), controls)


class Explorer(anywidget.AnyWidget):  # type: ignore[misc]
    """The explorer; `explore` makes one.

    Attributes
    ----------
    chosen : dict
        Value of each control, by the scenario's field, and ``variant``, ``compare`` and ``whole``.
    found : Comparison
        What is on display; None before the first run.
    seconds : tuple
        Time that its simulations took, and the whole update.
    """

    _esm, _css = (Path(__file__).with_name(f"explorer.{kind}") for kind in ("js", "css"))
    about, asked, given, told, shown, busy = (traitlets.Dict().tag(sync=True) for _ in range(6))

    def __init__(self, scenario: Scenario, variant: Variant, compare: Variant, controls: Sequence[str]) -> None:
        for name in set(controls) - set(flat_fields()):
            raise unknown("control", name, flat_fields(), "Plain fields of the scenario can have one.")
        self.known = {**VARIANTS, **KSMD_VARIANTS, variant.name: variant, compare.name: compare}
        self.controls = [name for name in controls if name != "variant"]
        self.base = scenario.replace(variant=variant.name)
        self.start = self.base, compare.name
        self.chosen = self._values(self.base) | {"compare": compare.name, "whole": 0}
        self.found: Comparison | None = None
        self.seconds, self.serial = (0.0, 0.0), 0
        self.requests = Requests(self._show, self._show_status, self._show_error)
        self.histories = Requests(self._show_history, lambda _: None, self._show_error)
        fields = {}
        for field in (flat_fields()[name] for name in self.controls):
            fields[field.name] = {**vars(field), "default": None, "type": field.type.__name__, "allowed": field.allowed}
        variants = {v.name: f"{v.name}: {v.summary}" if v.summary else v.name for v in self.known.values()}
        about = {"fields": fields, "variants": variants, "presets": ["", *flat_presets()]}
        super().__init__(about=about, given={"after": 0, "values": self.chosen})
        self.observe(self._heard, "asked")
        self.on_msg(self._told)

    def _values(self, scenario: Scenario) -> dict[str, Any]:
        return {name: getattr(scenario, name) for name in (*self.controls, "variant")}

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compute and return the widget, and a picture of it for where there is no kernel."""
        with announced(partial(print, file=sys.stderr)):
            self.update()
        data, about = self.found.picture() if self.found else ({"text/plain": "mmlab's explorer"}, {})
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return data | {"application/vnd.jupyter.widget-view+json": view}, about

    @property
    def scenario(self) -> Scenario:
        """The scenario of the controls.

        Raises
        ------
        UserError
            A control has a value that is not allowed.
        """
        fields = flat_fields()
        values = {name: value for name, value in self.chosen.items() if name in fields}
        for name, value in values.items():
            if isinstance(value, (int, float)) and (fields[name].type is not int or value == int(value)):
                values[name] = fields[name].type(value)
        return self.base.replace(**values)

    @property
    def runs(self) -> Mapping[str, Run]:
        """The runs on display, by label."""
        return self.found.runs if self.found else {}

    def set(self, **values: Any) -> None:
        """Set controls, and show their scenario."""
        for name in values.keys() - self.chosen.keys():
            raise unknown("control", name, self.chosen, "`controls` of `explore` names them.")
        self._take(self.chosen | values)

    def use(self, scenario: Scenario, compare: str | None = None) -> None:
        """Set all controls to a scenario, and take over its other fields."""
        if compare is None and (compare := self.chosen["compare"]) == scenario.variant:
            compare = "mainline" if compare != "mainline" else "ksm-opt-out"
        self.base = scenario
        self._take(self.chosen | self._values(scenario) | {"compare": compare})

    def _take(self, values: dict[str, Any]) -> None:
        self.chosen = values
        self.given = {"after": self.serial, "values": values}
        self.requests.ask(self._work())

    def update(self) -> None:
        """Simulate and show the controls' scenario before this returns."""
        self.requests.ask(self._work(), at_once=True)

    def _heard(self, change: Any) -> None:
        """Take the values of controls that were moved in the browser."""
        self.serial = change["new"]["serial"]
        self._take(self.chosen | change["new"]["values"])

    def _told(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """Answer a button: a file of ``params/`` or (the empty name) the start, saving, or why a page is as it is."""
        self.serial = content.get("serial", self.serial)
        try:
            if "preset" in content:
                self.use(*([load(find_params(content["preset"]))] if content["preset"] else self.start))
            if "save" in content:
                about = f"Saved by mmlab's explorer, where it was compared with {self.chosen['compare']}."
                path = save_new(content["save"], self.scenario.as_yaml(self.controls, about))
                self.told = self.told | {"message": f"Saved as {path}"}
            if "why" in content:
                self.histories.ask(partial(self._history, **content["why"]))
        except UserError as error:
            self.told = self.told | {"message": f"Not done: {error}"}

    def _history(self, job: Job, run: int, page: int, process: int) -> History:
        """Simulate the first or second run again, and return the history of a page."""
        shown = [*self.runs.values()][run]
        how: Any = {"variant": self.known[shown.variant], "progress": partial(job.report, "")}
        return simulate(shown.scenario, **how, events=PageEvents(page)).why(page, process)

    def _show_history(self, found: History) -> None:
        self.told = self.told | {"history": str(found), "error": ""}

    def _work(self) -> Callable[[Job], Any] | None:
        """Return what computes the controls' comparison; None, with a message beside the control, after a mistake."""
        names = [self.chosen["variant"], self.chosen["compare"]]
        variants = [self.known[name] for name in names]
        others = {n: v for n, v in self.base.changed().items() if n not in (*self.chosen, "name")}
        self.told = {"explained": str(template().module.explained(variants, others))}
        try:
            scenario = self.scenario
            scenario.check_memory()
        except UserError as error:
            self._show_error(error)
            return None
        labels = names if names[0] != names[1] else [names[0], f"{names[1]} again"]
        asked = dict(zip(labels, variants, strict=True))
        return partial(self._compare, scenario, asked, bool(self.chosen["whole"]), self.serial)

    def _compare(self, scenario: Scenario, asked: Mapping[str, Variant], whole: bool, serial: int, job: Job) -> Any:
        """Return the comparison of a scenario under two variants, and its data for the browser.

        A run that is on display is not simulated again, so that another variant beside it is there at once.
        """
        job.shares, shown = dict.fromkeys(asked, 0.0), list(self.runs.values())

        def one(label: str) -> Run:
            variant, own = asked[label], scenario.variant
            same = (r for r in shown if r.variant == variant.name and r.scenario.replace(variant=own) == scenario)
            run = next(same, None) or simulate(scenario, variant=variant, progress=partial(job.report, label))
            _ = run.metrics.as_dict(), run.uncertainty  # here, in a thread: each is computed when first used
            return run

        with announced(partial(setattr, job, "note")), ThreadPoolExecutor(len(asked)) as pool:
            found = Comparison(dict(zip(asked, pool.map(one, asked), strict=True)), whole)
        simulated = job.age
        job.report(next(iter(asked)), 1.0)
        return found, found.data() | {"serial": serial}, simulated, job

    def _show(self, result: tuple[Comparison, dict[str, Any], float, Job]) -> None:
        """Show two runs, and the time that the simulations and the whole update took."""
        self.found, data, simulated, job = result
        self.seconds = simulated, job.age
        self.shown = data | {"seconds": self.seconds}

    def _show_status(self, job: Job | None) -> None:
        """Mark the figures as old while a job takes long; None means that it has ended."""
        self.busy = {"share": job.share, "note": job.note} if job and job.age > PROGRESS else {}

    def _show_error(self, error: Exception) -> None:
        """Show what is wrong, beside its control where it has one; the last picture stays."""
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        name = getattr(error, "parameter", "")
        self.told = self.told | ({"wrong": {name: words}} if name in self.chosen else {"error": words})


def flat_presets() -> list[str]:
    """Return the names of the files of ``params/`` without lists of processes or events."""
    return [name for name, path in params_files().items() if not {"process_list", "events"} & read_yaml(path).keys()]
