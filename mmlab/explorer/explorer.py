"""The explorer: sliders for a scenario's parameters, and beside them the runs of two fix variants.

    >>> import mmlab
    >>> explorer = mmlab.explore("all_zero", compare="ksm-opt-out", memory_mib=16)
    >>> explorer.update()
    >>> explorer.controls["pages_to_scan"].value = 100
    >>> [int(run.rows["thp_split_page"][-1]) for run in explorer.runs.values()]
    [8, 8]

As the last line of a notebook's cell it shows itself: sliders, figures, a page map and a table. Moving a slider
simulates the scenario again, in threads, so that the kernel goes on listening. Figures follow the slider as fast as
they can, and a computation that takes long is dropped as soon as there is a newer request. Without a running event
loop, such as in a script, each change is computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from mmlab.errors import UserError, unknown
from mmlab.explorer.comparison import Comparison, Figures, Frame, frames
from mmlab.explorer.debounce import Debounce, Job
from mmlab.explorer.layout import Layout
from mmlab.explorer.widgets import control, variants
from mmlab.kernel.jit import announced
from mmlab.params import find_params, params_files, read_yaml, save_new
from mmlab.results.run import Run, simulate
from mmlab.results.trace import load
from mmlab.scenario import Scenario, flat_fields
from mmlab.variants import KSMD_VARIANTS, VARIANTS, AnyVariant, Variant, resolve
from mmlab.workers import keep_freed_memory

__all__ = ["CONTROLS", "Explorer", "explore"]

CONTROLS = tuple(
    """pages_to_scan sleep_millisecs max_ptes_none use_zero_pages smart_scan shrink_underused khugepaged memory_mib
    thp_coverage zero_fraction duplicate_fraction duplicate_groups layout pressure_rate horizon_seconds""".split()
)
"""Fields of the scenario that have a control by default."""
START = "regression_uzp1"
KEPT_PAGES = 2_000_000
"""Budget of the kept runs in simulated pages: 160 MB."""


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


class Runs:
    """The latest runs, by scenario and variant."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Scenario, Variant], Run] = {}
        self.lock = Lock()

    def get(self, scenario: Scenario, variant: Variant, progress: Callable[[float], None]) -> Run:
        """Return a run, simulated if necessary, with its table, metrics and errors computed."""
        key = scenario.replace(name="", variant="mainline"), variant
        run = self.kept.get(key) or simulate(scenario, variant=variant, progress=progress)
        _ = run.samples, run.metrics, run.uncertainty  # here, in a thread: each is computed when first used
        with self.lock:
            self.kept.pop(key, None)
            self.kept[key] = run  # at the end, as the most recent
            while len(self.kept) > 2 and sum(kept.total_pages for kept, _ in self.kept) > KEPT_PAGES:
                del self.kept[next(iter(self.kept))]
        return run


class Explorer(Layout):
    """The explorer; `explore` makes one.

    Attributes
    ----------
    controls : dict
        By the scenario's field, and ``variant`` and ``compare``: widgets with a ``value``.
    """

    def __init__(self, scenario: Scenario, variant: Variant, compare: Variant, controls: Sequence[str]) -> None:
        fields = flat_fields()
        for name in controls:
            if name not in fields:
                raise unknown("control", name, fields, "Plain fields of the scenario can have one.")
        self.known = {**VARIANTS, **KSMD_VARIANTS, variant.name: variant, compare.name: compare}
        self.base = scenario.replace(variant=variant.name)
        self.start = self.base, compare.name
        made = {name: control(fields[name], getattr(scenario, name)) for name in controls if name != "variant"}
        for name, value in {"variant": variant.name, "compare": compare.name}.items():
            made[name] = variants(name, self.known, value)
        super().__init__(made, flat_presets())
        self.figures, self.cache, self.requests = Figures(), Runs(), Debounce(self.show_status, self.show_error)
        self._drawing, self._setting = Lock(), False
        for widget in (*made.values(), self.whole):
            widget.observe(self._changed, "value")
        self.preset.observe(self._preset, "value")
        self.reset.on_click(self._reset)
        self.save.on_click(self._save)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.box)  # type: ignore[no-untyped-call]
        self.update()

    @property
    def scenario(self) -> Scenario:
        """The scenario of the controls.

        Raises
        ------
        UserError
            A control has a value that is not allowed.
        """
        fields = flat_fields()
        values = {name: fields[name].type(made.value) for name, made in self.controls.items() if name in fields}
        return self.base.replace(**values)

    @property
    def runs(self) -> dict[str, Run]:
        """The runs on display, by label."""
        return self.shown.runs if self.shown else {}

    def use(self, scenario: Scenario, compare: str | None = None) -> None:
        """Set all controls to a scenario, and take over its other fields."""
        if compare is None and (compare := self.controls["compare"].value) == scenario.variant:
            compare = "mainline" if compare != "mainline" else "ksm-opt-out"
        self.base, self._setting = scenario, True
        try:
            for name, made in self.controls.items():
                made.value = compare if name == "compare" else getattr(scenario, name)
        finally:
            self._setting = False
        self._changed()

    def update(self) -> None:
        """Simulate and show the controls' scenario before this returns; the page maps follow in a notebook."""
        self.requests.ask(*self._jobs(), at_once=True)

    def _changed(self, _: Any = None) -> None:
        """Show the controls' scenario, unless several controls are being set."""
        if not self._setting:
            self.requests.ask(*self._jobs())

    def _reset(self, _: Any = None) -> None:
        """Set everything as it was at the start."""
        self.preset.value = ""
        self.use(*self.start)

    def _preset(self, change: Any) -> None:
        """Use a file of ``params/``, or the start for the empty name."""
        try:
            self.use(*([load(find_params(change["new"]))] if change["new"] else self.start))
        except UserError as error:
            self.show_error(error)

    def _jobs(self) -> list[Job]:
        """Return the jobs of the controls: the comparison, then the page maps through time; none after a mistake."""
        names = [self.controls[name].value for name in ("variant", "compare")]
        chosen = [self.known[name] for name in names]
        self.explain(chosen, {n: v for n, v in self.base.changed().items() if n not in (*self.controls, "name")})
        try:
            scenario = self.scenario
            scenario.check_memory()
        except UserError as error:
            self.show_error(error)
            return []
        labels = names if names[0] != names[1] else [names[0], f"{names[1]} again"]
        compare = partial(self._compare, scenario, dict(zip(labels, chosen, strict=True)), self.whole.value)
        page_maps = Job(self._frames, self.show_frames, patience=0.0, idle=0.5, note="page maps through time …")
        return [Job(compare, self.show), page_maps]

    def _compare(self, scenario: Scenario, asked: Mapping[str, Variant], whole: bool, job: Job) -> Comparison:
        """Return the comparison of a scenario under two variants."""
        job.shares = dict.fromkeys(asked, 0.0)

        def one(label: str) -> Run:
            return self.cache.get(scenario, asked[label], partial(job.report, label))

        with announced(partial(setattr, job, "note")), ThreadPoolExecutor(len(asked)) as pool:
            runs = dict(zip(asked, pool.map(one, asked), strict=True))
        simulated = job.age
        with self._drawing:
            job.report("drawing", 1.0)
            found = self.figures.compare(runs, whole)
            self.seconds = simulated, job.age
            return found

    def _frames(self, job: Job) -> list[Frame]:
        """Return the page maps through time of the runs on display."""
        assert self.shown is not None
        job.shares = {run.variant: 0.0 for run in self.runs.values()}

        def again(run: Run, where: set[tuple[int, int]]) -> Run:
            report = partial(job.report, run.variant)
            return simulate(run.scenario, variant=self.known[run.variant], maps_at=where, progress=report)

        return frames(self.shown.runs, self.shown.end, again)

    def _save(self, _: Any = None) -> None:
        """Save the controls' scenario as a new params file."""
        about = f"Saved by mmlab's explorer, where it was compared with {self.controls['compare'].value}."
        try:
            said = f"Saved as {save_new(self.path.value, self.scenario.as_yaml(self.controls, about))}"
        except UserError as error:
            said = f"Not saved: {error}"
        self.message.value = self.words.note(said)


def flat_presets() -> list[str]:
    """Return the names of the files of ``params/`` without lists of processes or events."""
    return [name for name, path in params_files().items() if not {"process_list", "events"} & read_yaml(path).keys()]
