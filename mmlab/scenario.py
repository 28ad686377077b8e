"""The scenario: the one strict parameter model.

A scenario says everything that a run depends on: ksmd's knobs, the machine, the memory of one or several processes,
what happens to them and when the run ends. The same model reads flat YAML files (plain scalars, which papermill takes
with ``-f``), richer YAML files (a list of processes, a list of events), the scenario part of a kernel trace, sliders
and the command line. Every field carries its bounds, unit, help and source; an unknown key is an error.

>>> Scenario(memory_mib=64, zero_fraction=0.5).total_pages
16384
>>> Scenario(pages_to_scan=-1)
Traceback (most recent call last):
mmlab.errors.UserError: pages_to_scan = -1 is out of range: it must be at least 0 (pages).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from mmlab.errors import UserError, unknown
from mmlab.params import read_yaml

THP_ORDER = 9
"""Folio order that stands for a PMD-sized folio, whatever ``pages_per_thp`` is."""
BYTES_PER_PAGE = 56
"""Memory that a run needs for each simulated page (arrays of the model and of the workload), with room to spare."""
MAX_KEY = 2**64 - 1
UINT_MAX = 2**32 - 1

Kind = Literal["knob", "machine", "workload", "horizon"]
Switch = Annotated[int, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Layout = Literal["zero-first", "zero-last", "interleaved", "random", "bimodal"]
KeyOrder = Literal["ascending", "random"]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Policy = Literal["none", "ksmtuned"]
Order = Literal[0, 2, 3, 4, 5, 6, 7, 8, 9]
Key = Annotated[int, Field(ge=0, le=MAX_KEY)]
Range = tuple[Index, Count]
Run3 = tuple[Key, Count, int]


def _field(
    default: Any,
    help: str,
    *,
    kind: Kind,
    unit: str = "",
    source: str = "",
    step: float | None = None,
    log: bool = False,
    slider: tuple[float, float] | None = None,
    **bounds: Any,
) -> Any:
    """A field with what sliders, ``mmlab params`` and messages need to know about it; ``slider`` is the usual range."""
    extra: dict[str, Any] = {"kind": kind, "unit": unit, "source": source, "step": step, "log": log, "slider": slider}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class After(_Strict):
    """When an event happens: after a batch, after the batch that completes a full scan, or at a simulated time.

    With `every` it happens at `seconds` and again every so many seconds.
    """

    batch: Index | None = None
    full_scan: Index | None = None
    seconds: Seconds | None = None
    every: Annotated[float, Field(ge=0.001, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(v is not None for v in (self.batch, self.full_scan, self.seconds)) != 1:
            raise ValueError("needs exactly one of batch, full_scan, seconds, e.g. after: {seconds: 30}")
        if self.every is not None and self.seconds is None:
            raise ValueError("every goes with seconds, e.g. after: {seconds: 30, every: 10}")
        return self


_RANGE = ("process", "page", "count")
EVENT_FIELDS: dict[str, tuple[str, ...]] = {
    "write": (*_RANGE, "key"),
    **dict.fromkeys(
        (
            "read",
            "dontneed",
            "free",
            "cold",
            "pageout",
            "collapse",
            "mergeable",
            "unmergeable",
            "hugepage",
            "nohugepage",
            "mlock",
            "munlock",
            "munmap",
            "split",
        ),
        _RANGE,
    ),
    "mprotect": (*_RANGE, "prot"),
    "fork": ("process",),
    "exit": ("process",),
    "shrink": ("count",),
    "split_all": (),
    "khugepaged": ("full_scans",),
    "compact": (),
    "set": ("knob", "value"),
    "sleep": ("millisecs",),
    "migrate": (*_RANGE, "node", "huge"),
    "merge_any": ("process", "value"),
    "uffd": (*_RANGE, "value"),
    "memory_failure": ("process", "page"),
}
"""What each op takes besides ``after`` and ``op``. ``process`` (0), ``node`` (the folio stays on its node) and ``huge``
(1: a huge page can be had to migrate to) may be left out, and ``key`` may be null."""
OPTIONAL = {"process", "node", "huge"}


class Event(_Strict):
    """Something done to the machine from outside, at a given point of the run (system call, madvise, sysfs write)."""

    after: After
    op: str
    process: Index = 0
    page: Index | None = None
    count: Count | None = None
    key: Key | None = None
    prot: Literal[1, 3] | None = None
    knob: str | None = None
    value: int | str | None = None
    node: Index | None = None
    huge: Switch | None = None
    full_scans: Count | None = None
    millisecs: Index | None = None

    @model_validator(mode="after")
    def _fields_of_op(self) -> Self:
        if self.op not in EVENT_FIELDS:
            raise ValueError(unknown("op", self.op, EVENT_FIELDS))
        wanted = EVENT_FIELDS[self.op]
        given = self.model_fields_set - {"after", "op"}
        if stray := sorted(given - set(wanted)):
            raise ValueError(f"op {self.op} takes {', '.join(wanted) or 'nothing more'}: remove {', '.join(stray)}")
        optional = OPTIONAL | ({"key"} if "key" in given else set())
        missing = [name for name in wanted if name not in optional and getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"op {self.op} needs {', '.join(missing)} (key: null rewrites what is there)"
                if "key" in missing
                else f"op {self.op} needs {', '.join(missing)}"
            )
        if self.op == "set":
            assert self.knob is not None and self.value is not None
            check_knob(self.knob, self.value)
        elif "value" in wanted and self.value not in (0, 1):
            raise ValueError(f"value = {self.value!r} is out of range: op {self.op} takes 1 (on) or 0 (off)")
        return self


def check_knob(knob: str, value: int | str) -> None:
    """ValueError unless a knob of that name may be set to the value while the scenario runs."""
    if knob not in SETTABLE:
        raise ValueError(unknown("knob", knob, SETTABLE))
    allowed = SETTABLE[knob]
    if isinstance(allowed[0], str):
        if value not in allowed:
            raise ValueError(f"{knob} = {value!r}: it must be one of {', '.join(map(str, allowed))}")
    elif knob == "variant":
        if not isinstance(value, str):
            raise ValueError("knob variant takes the name of a variant")
    elif not isinstance(value, int) or not allowed[0] <= value <= int(allowed[1]):
        raise ValueError(f"{knob} = {value!r} is out of range: it must be {allowed[0]} … {allowed[1]}")


class ProcessSpec(_Strict):
    """One process of a rich scenario: one region of memory, populated by writes before the run starts.

    Either ``pages`` and ``contents`` say what is in it page by page, or the workload fields do (those left out are
    the scenario's). Ranges are ``[first page, count]``.
    """

    pages: Count | None = None
    contents: tuple[Run3, ...] | None = None
    memory_mib: Count | None = None
    thp_coverage: Share | None = None
    zero_fraction: Share | None = None
    duplicate_fraction: Share | None = None
    duplicate_groups: Count | None = None
    layout: Layout | None = None
    key_order: KeyOrder | None = None
    stray_zero_pages: Index | None = None
    folio_order: int | None = None
    thp: tuple[Range, ...] | None = Field(None, description="ranges with MADV_HUGEPAGE; default: thp_coverage")
    mergeable: tuple[Range, ...] | None = Field(None, description="ranges with MADV_MERGEABLE; default: everything")
    orders: tuple[tuple[Index, Count, int], ...] | None = Field(None, description="[[first page, count, order], …]")
    nohugepage_after_populate: bool = False
    merge_any: Switch | None = Field(None, description="1: PR_SET_MEMORY_MERGE; default: the scenario's")
    forbids_zeropages: Switch = Field(0, description="1: never maps the shared zeropage, as a KVM guest on s390")
    node: Index | None = Field(None, description="NUMA node of its memory; default: its number modulo nodes")
    boots_at_seconds: Seconds | None = Field(None, description="default: its number × boot_interval_seconds")
    exits_at_seconds: Seconds | None = Field(None, description="default: lifetime_seconds after its boot")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.pages is None) != (self.contents is None):
            raise ValueError("pages and contents belong together: give both, or neither (then memory_mib … decide)")
        if self.contents is not None:
            if given := sorted(self.model_fields_set & set(WORKLOAD_FIELDS)):
                raise ValueError(f"contents decide what the pages hold: remove {', '.join(given)}")
            total = sum(count for _, count, _ in self.contents)
            if total != self.pages:
                raise ValueError(f"contents are {total} pages long, but pages = {self.pages}: they must be equal")
            for first, count, step in self.contents:
                if not 0 <= first + (count - 1) * step <= MAX_KEY:
                    raise ValueError(f"contents [{first}, {count}, {step}]: keys must stay within 0 … 2^64 - 1")
        return self


WORKLOAD_FIELDS = (
    "memory_mib",
    "thp_coverage",
    "zero_fraction",
    "duplicate_fraction",
    "duplicate_groups",
    "layout",
    "key_order",
    "stray_zero_pages",
    "folio_order",
)


class Scenario(_Strict):
    """Everything a run depends on. Immutable; :meth:`replace` gives a changed copy.

    Knobs are by default what they are in the kernel (the advisor's: ksm-scan S30), but ``run`` is 1.

    Raises
    ------
    UserError
        When a key is unknown or a value is not allowed; the message says what would be.
    """

    name: str = _field("", "free text that names the run", kind="workload")
    variant: str = _field(
        "mainline",
        "which kernel variant decides whether a split remaps zero-filled pages; `mmlab variants` lists them",
        kind="machine",
        source="fix-variants",
    )
    kernel: str = _field(
        "6.12",
        "kernel series whose details are imitated: 6.1, 6.12 or 6.18",
        kind="machine",
        pattern=r"^6\.(1|12|18)(\.\d+)?$",
    )

    # ksmd's knobs, /sys/kernel/mm/ksm, and two of /sys/kernel/mm/transparent_hugepage
    use_zero_pages: Switch = _field(
        0,
        "1: ksmd maps zero-filled pages to the shared zeropage instead of merging them with each other",
        kind="knob",
        source="sysfs ksm/use_zero_pages",
    )
    pages_to_scan: int = _field(
        100,
        "pages that ksmd visits in one batch",
        kind="knob",
        unit="pages",
        log=True,
        slider=(10, 10_000),
        ge=0,
        le=UINT_MAX,
        source="sysfs ksm/pages_to_scan",
    )
    sleep_millisecs: int = _field(
        20,
        "how long ksmd sleeps between two batches",
        kind="knob",
        unit="ms",
        log=True,
        slider=(1, 1000),
        ge=0,
        le=UINT_MAX,
        source="sysfs ksm/sleep_millisecs",
    )
    smart_scan: Switch = _field(
        1,
        "1: pages that could not be merged lately are skipped in more and more full scans",
        kind="knob",
        source="sysfs ksm/smart_scan",
    )
    max_page_sharing: int = _field(
        256,
        "how many mappings one KSM page may have before a duplicate is made",
        kind="knob",
        unit="mappings",
        log=True,
        ge=2,
        le=2**31 - 1,
        source="sysfs ksm/max_page_sharing",
    )
    stable_node_chains_prune_millisecs: int = _field(
        2000,
        "how often a chain of KSM pages is pruned of stale members",
        kind="knob",
        unit="ms",
        log=True,
        ge=0,
        le=UINT_MAX,
        source="sysfs ksm/stable_node_chains_prune_millisecs",
    )
    merge_across_nodes: Switch = _field(
        1,
        "0: only pages of one NUMA node are merged with each other",
        kind="knob",
        source="sysfs ksm/merge_across_nodes",
    )
    run: int = _field(
        1,
        "value of run at the start: 0 stopped, 1 running, 2 unmerge. The kernel boots with 0; here "
        "ksmd runs unless told otherwise",
        kind="knob",
        ge=0,
        le=2,
        source="sysfs ksm/run",
    )
    shrink_underused: Switch = _field(
        1,
        "1: new THPs are queued so that the shrinker may split underused ones",
        kind="knob",
        source="sysfs transparent_hugepage/shrink_underused",
    )
    max_ptes_none: int = _field(
        511,
        "most empty entries that khugepaged fills; a THP with more zero-filled pages is underused",
        kind="knob",
        unit="pages",
        ge=0,
        le=511,
        source="sysfs transparent_hugepage/khugepaged/max_ptes_none",
    )
    swap_mib: int = _field(0, "size of the swap area", kind="knob", unit="MiB", ge=0, le=2**20)
    advisor_mode: Literal["none", "scan-time"] = _field(
        "none",
        "scan-time: ksmd chooses pages_to_scan itself, so that a full scan takes advisor_target_scan_time",
        kind="knob",
        source="sysfs ksm/advisor_mode, ksm-scan S29",
    )
    advisor_max_cpu: int = _field(
        70,
        "most CPU time that the advisor lets ksmd use",
        kind="knob",
        unit="%",
        ge=0,
        le=100,
        source="sysfs ksm/advisor_max_cpu",
    )
    advisor_min_pages_to_scan: int = _field(
        500,
        "pages_to_scan that the advisor starts from",
        kind="knob",
        unit="pages",
        log=True,
        ge=0,
        le=UINT_MAX,
        source="sysfs ksm/advisor_min_pages_to_scan",
    )
    advisor_max_pages_to_scan: int = _field(
        30_000,
        "largest pages_to_scan that the advisor chooses",
        kind="knob",
        unit="pages",
        log=True,
        ge=0,
        le=UINT_MAX,
        source="sysfs ksm/advisor_max_pages_to_scan",
    )
    advisor_target_scan_time: int = _field(
        200,
        "how long the advisor wants a full scan to take",
        kind="knob",
        unit="s",
        log=True,
        ge=1,
        le=UINT_MAX,
        source="sysfs ksm/advisor_target_scan_time",
    )
    khugepaged: Switch = _field(
        0, "1: khugepaged runs by its own clock", kind="knob", source="sysfs transparent_hugepage/khugepaged/defrag"
    )
    khugepaged_pages_to_scan: int = _field(
        4096,
        "pages that khugepaged looks at in one burst",
        kind="knob",
        unit="pages",
        log=True,
        ge=1,
        le=UINT_MAX,
        source="sysfs transparent_hugepage/khugepaged/pages_to_scan",
    )
    khugepaged_scan_sleep_millisecs: int = _field(
        10_000,
        "how long khugepaged sleeps between two bursts",
        kind="knob",
        unit="ms",
        log=True,
        ge=0,
        le=UINT_MAX,
        source="sysfs transparent_hugepage/khugepaged/scan_sleep_millisecs",
    )
    khugepaged_alloc_sleep_millisecs: int = _field(
        60_000,
        "how long khugepaged sleeps after it got no huge page; only carried: here it always gets one",
        kind="knob",
        unit="ms",
        log=True,
        ge=0,
        le=UINT_MAX,
        source="sysfs transparent_hugepage/khugepaged/alloc_sleep_millisecs",
    )
    max_ptes_swap: int = _field(
        64,
        "most swapped-out entries of a range that khugepaged collapses",
        kind="knob",
        unit="pages",
        ge=0,
        le=511,
        source="sysfs transparent_hugepage/khugepaged/max_ptes_swap",
    )
    max_ptes_shared: int = _field(
        256,
        "most shared entries of a range that khugepaged collapses",
        kind="knob",
        unit="pages",
        ge=0,
        le=511,
        source="sysfs transparent_hugepage/khugepaged/max_ptes_shared",
    )

    # the machine
    hz: Literal[100, 250, 300, 1000] = _field(
        250, "timer ticks a second: a sleep lasts whole ticks", kind="machine", unit="1/s", source="CONFIG_HZ"
    )
    pages_per_thp: int = _field(
        512,
        "pages of a PMD-sized folio: a power of two; small sizes are for examples",
        kind="machine",
        unit="pages",
        ge=4,
        le=512,
    )
    nodes: int = _field(1, "NUMA nodes; process i's memory is on node i modulo nodes", kind="machine", ge=1, le=8)
    policy: Policy = _field(
        "none",
        "who turns ksmd's knobs while the scenario runs: nobody, or ksmtuned, by how much of host_mib is free",
        kind="machine",
        source="thread 3c",
    )
    host_mib: int = _field(
        16_384,
        "memory of the host, as policies see it; the model never runs out of memory",
        kind="machine",
        unit="MiB",
        log=True,
        ge=1,
        le=2**30,
    )
    ksm_start_seconds: float = _field(
        0.0,
        "when run becomes 1; 0 = run is as given from the start",
        kind="machine",
        unit="s",
        ge=0,
        le=1e9,
        allow_inf_nan=False,
    )
    pressure_rate: float = _field(
        0.0,
        "memory pressure: folios of the deferred split queue that the shrinker is asked to scan each second",
        kind="machine",
        unit="folios/s",
        log=True,
        step=0.5,
        slider=(0, 64),
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        source="thp-split Q3",
    )
    migration_rate: float = _field(
        0.0,
        "memory that is migrated (compaction, NUMA balancing): random 2 MiB blocks",
        kind="machine",
        unit="MiB/s",
        log=True,
        step=0.5,
        slider=(0, 32),
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        source="thp-split 3.7",
    )
    migration_huge_share: Share = _field(
        1.0,
        "chance that there is a huge page to migrate a huge page to; otherwise it is split first",
        kind="machine",
        step=0.01,
        source="thp-split 3.6",
    )
    costs: str = _field(
        "epyc-6.18",
        "name of the set of measured costs of ksmd's steps",
        kind="machine",
        source="costs; or a file of `mmlab calibrate`, *.yaml",
        pattern=r"^[\w.+-]+$|\.ya?ml$",
    )

    # the workload, of each process
    memory_mib: int = _field(
        1024,
        "memory of each process, whole THPs",
        kind="workload",
        unit="MiB",
        log=True,
        step=2,
        slider=(16, 4096),
        ge=1,
        le=2**24,
    )
    thp_coverage: Share = _field(
        1.0, "share of the 2 MiB blocks that are THPs: the first floor(share × blocks)", kind="workload", step=0.01
    )
    zero_fraction: Share = _field(0.0, "share of the pages that are filled with zeroes", kind="workload", step=0.01)
    duplicate_fraction: Share = _field(
        0.0,
        "share of the non-zero pages that have equals, spread evenly and dealt round robin into duplicate_groups",
        kind="workload",
        step=0.01,
    )
    duplicate_groups: int = _field(
        1,
        "how many different contents the duplicates have; processes share them",
        kind="workload",
        unit="contents",
        log=True,
        slider=(1, 100_000),
        ge=1,
        le=2**31 - 1,
    )
    layout: Layout = _field(
        "zero-first",
        "where the zero-filled pages lie: zero-first, zero-last, interleaved (within "
        "each block), random (anywhere), bimodal (nearly all in nearly empty blocks)",
        kind="workload",
    )
    key_order: KeyOrder = _field("ascending", "order in memcmp of the contents, along the addresses", kind="workload")
    stray_zero_pages: int = _field(
        0,
        "zero-filled small pages ahead of the first block: they and unique small pages "
        "fill one or more additional blocks",
        kind="workload",
        unit="pages",
        ge=0,
        le=2**20,
    )
    folio_order: Order = _field(
        9,
        "order of the folios that thp_coverage speaks of: 9 is a THP, 4 is 64 KiB, 0 is "
        "small pages; below 9 the blocks have no MADV_HUGEPAGE",
        kind="workload",
        source="mthp E1",
    )
    merge_any: Switch = _field(
        0,
        "1: processes use prctl PR_SET_MEMORY_MERGE instead of MADV_MERGEABLE",
        kind="workload",
        source="ksm-scan S12",
    )
    hot_fraction: Share = _field(
        0.0,
        "share of the non-zero pages that are written once in every hot_period_seconds, each time with new content",
        kind="workload",
        step=0.01,
    )
    hot_period_seconds: float = _field(
        1.0,
        "how often each hot page is written",
        kind="workload",
        unit="s",
        log=True,
        ge=0.05,
        le=1e9,
        allow_inf_nan=False,
    )
    warm_fraction: Share = _field(
        0.0,
        "share of the non-zero pages that are written once in every "
        "warm_period_seconds; what is neither hot nor warm is cold",
        kind="workload",
        step=0.01,
    )
    warm_period_seconds: float = _field(
        60.0,
        "how often each warm page is written",
        kind="workload",
        unit="s",
        log=True,
        ge=0.05,
        le=1e9,
        allow_inf_nan=False,
    )
    boot_interval_seconds: float = _field(
        0.0,
        "process i boots at i × this time: its memory is populated and advised then",
        kind="workload",
        unit="s",
        ge=0,
        le=1e6,
        allow_inf_nan=False,
    )
    balloon_fraction: Share = _field(
        0.0,
        "share of its 2 MiB blocks that each process gives back by MADV_DONTNEED, "
        "those with most zero-filled pages first",
        kind="workload",
        step=0.01,
    )
    balloon_seconds: float = _field(
        60.0, "when it does, after its boot", kind="workload", unit="s", ge=0, le=1e9, allow_inf_nan=False
    )
    lifetime_seconds: float = _field(
        0.0,
        "when each process exits, after its boot; 0 = never",
        kind="workload",
        unit="s",
        ge=0,
        le=1e9,
        allow_inf_nan=False,
    )
    processes: int = _field(1, "how many processes with such memory", kind="workload", slider=(1, 16), ge=1, le=10_000)
    seed: int = _field(0, "seed of everything that is random", kind="workload", ge=0, le=2**63 - 1)

    # the end, whichever comes first; 0 = does not end the run
    horizon_seconds: float = _field(
        120.0,
        "end after this simulated time; 0 = no limit",
        kind="horizon",
        unit="s",
        log=True,
        slider=(1, 600),
        ge=0,
        le=1e9,
        allow_inf_nan=False,
    )
    horizon_full_scans: int = _field(
        0,
        "end after this many full scans; 0 = no limit",
        kind="horizon",
        unit="full scans",
        log=True,
        ge=0,
        le=UINT_MAX,
    )
    horizon_batches: int = _field(
        0, "end after this many batches; 0 = no limit", kind="horizon", unit="batches", log=True, ge=0, le=UINT_MAX
    )
    until_settled: bool = _field(
        False, "end once a full scan in which nothing was skipped has changed nothing", kind="horizon"
    )
    sample_limit: int = _field(
        20_000,
        "most rows of the table of samples; a longer run is thinned evenly",
        kind="horizon",
        unit="rows",
        log=True,
        ge=100,
        le=10**8,
    )

    # richer scenarios
    process_list: tuple[ProcessSpec, ...] = Field((), description="processes one by one, instead of `processes`")
    late: bool = Field(False, description="memory becomes mergeable only by events")
    events: tuple[Event, ...] = Field((), description="what happens to the processes over time")
    stepped: bool = Field(False, description="as traces are recorded: run is set to 1 after the events of batch 0")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise UserError(_explain(error)) from None

    @field_validator("kernel", mode="before")
    @classmethod
    def _kernel_of_yaml(cls, value: Any) -> Any:
        return str(value) if isinstance(value, float) else value  # YAML takes 6.18 for a number

    @model_validator(mode="after")
    def _whole(self) -> Self:
        size = self.pages_per_thp
        if size & (size - 1):
            raise ValueError(f"pages_per_thp = {size} is not a power of two: use 4, 8, 16, 32, 64, 128, 256 or 512")
        if not (self.horizon_seconds or self.horizon_full_scans or self.horizon_batches or self.until_settled):
            raise ValueError(
                "the run would never end: set horizon_seconds, horizon_full_scans, horizon_batches or until_settled"
            )
        if self.hot_fraction + self.warm_fraction > 1:
            raise ValueError(
                f"hot_fraction = {self.hot_fraction} and warm_fraction = {self.warm_fraction} are more "
                "than all pages: their sum must be at most 1"
            )
        if self.ksm_start_seconds and self.run != 1:
            raise ValueError(
                f"ksm_start_seconds = {self.ksm_start_seconds:g} sets run to 1 then, but run = "
                f"{self.run}: remove one of the two"
            )
        self._check_repeats()
        for i, spec in enumerate(self.specs):
            if spec.memory_mib is not None and spec.memory_mib * 256 % size:
                where = f"process_list {i}: " if self.process_list else ""
                raise ValueError(
                    f"{where}memory_mib = {spec.memory_mib} is not whole THPs of 2 MiB: it must be even, "
                    f"e.g. {spec.memory_mib + 1}"
                )
            self._check_ranges(i, spec)
            self._check_times(i, spec)
        self._check_events()
        return self

    def _check_repeats(self) -> None:
        """What repeats for ever does not let a run end that waits for ksmd."""
        if self.horizon_seconds or self.stepped:
            return
        names = "policy khugepaged pressure_rate migration_rate hot_fraction warm_fraction".split()
        found = [n for n in names if getattr(self, n) not in (0, "none")]
        if any(e.after.every is not None for e in self.events):
            found.append("an event with every")
        if found:
            raise ValueError(f"horizon_seconds = 0 with {', '.join(found)}: the run might never end: set it to more")

    def _check_times(self, i: int, spec: ProcessSpec) -> None:
        if spec.node is not None and spec.node >= self.nodes:
            raise ValueError(f"process_list {i}: node = {spec.node}: there are only nodes 0 … {self.nodes - 1}")
        boots, exits = self.boots_at(i), self.exits_at(i)
        if exits is not None and exits <= boots:
            raise ValueError(f"process_list {i}: exits_at_seconds = {exits:g} is not after its boot at {boots:g} s")

    def boots_at(self, process: int) -> float:
        """When a process boots, s."""
        own = self.process_list[process].boots_at_seconds if self.process_list else None
        return process * self.boot_interval_seconds if own is None else own

    def exits_at(self, process: int) -> float | None:
        """When a process exits, s; None: never."""
        own = self.process_list[process].exits_at_seconds if self.process_list else None
        if own is None and self.lifetime_seconds:
            return self.boots_at(process) + self.lifetime_seconds
        return own

    def _check_ranges(self, i: int, spec: ProcessSpec) -> None:
        pages = self.pages_of(spec)
        for name in ("thp", "mergeable"):
            for first, count in getattr(spec, name) or ():
                if first + count > pages:
                    raise ValueError(f"process_list {i}: {name} [{first}, {count}] ends beyond the {pages} pages")
        top = self.pages_per_thp.bit_length() - 1
        if spec.folio_order is not None and spec.folio_order not in (0, *range(2, top + 1), THP_ORDER):
            where = f"process_list {i}: " if self.process_list else ""
            raise ValueError(
                f"{where}folio_order = {spec.folio_order}: it must be 0 or 2 … {top}, or {THP_ORDER} for a THP"
            )
        if spec.orders is not None:
            at = 0
            for first, count, order in spec.orders:
                if order not in (0, *range(2, top + 1), THP_ORDER) or first != at or count % (1 << min(order, top)):
                    raise ValueError(
                        f"process_list {i}: orders [{first}, {count}, {order}]: ranges must follow each "
                        f"other from page 0, in whole folios of order 0 or 2 … {top}"
                    )
                at += count
            if at != pages:
                raise ValueError(f"process_list {i}: orders cover {at} of {pages} pages; they must cover all")

    def _check_events(self) -> None:
        born = len(self.specs) + sum(e.op == "fork" for e in self.events)
        for i, e in enumerate(self.events):
            if e.process >= born:
                raise ValueError(f"events {i}: process = {e.process}: there are only processes 0 … {born - 1}")
            most = max(map(self.pages_of, self.specs))
            if e.node is not None and e.node >= self.nodes:
                raise ValueError(f"events {i}: node = {e.node}: there are only nodes 0 … {self.nodes - 1}")
            if e.page is not None and e.page + (e.count or 1) > most:
                raise ValueError(
                    f"events {i}: pages {e.page} + {e.count or 1} end beyond the {most} pages of a process"
                )

    @property
    def specs(self) -> tuple[ProcessSpec, ...]:
        """The processes one by one, with every workload field filled in (unless they have contents)."""
        own = {name: getattr(self, name) for name in WORKLOAD_FIELDS}
        if not self.process_list:
            return (ProcessSpec.model_construct(None, **own),) * self.processes
        return tuple(
            p
            if p.contents is not None
            else p.model_copy(update={n: v for n, v in own.items() if getattr(p, n) is None})
            for p in self.process_list
        )

    def pages_of(self, spec: ProcessSpec) -> int:
        """Pages in the region of one of :attr:`specs`, the blocks with stray zero pages included."""
        if spec.pages is not None:
            return spec.pages
        assert spec.memory_mib is not None and spec.stray_zero_pages is not None
        return spec.memory_mib * 256 + -(-spec.stray_zero_pages // self.pages_per_thp) * self.pages_per_thp

    @property
    def total_pages(self) -> int:
        """Pages of all processes at the start."""
        return sum(map(self.pages_of, self.specs))

    def check_memory(self) -> None:
        """Refuse what would not fit into this computer's free memory.

        Raises
        ------
        UserError
            When about 56 bytes a page are more than MemAvailable of /proc/meminfo (not checked where there is none).
        """
        free, need = _mem_available(), self.total_pages * BYTES_PER_PAGE
        if free is not None and need > free:
            fits = max(2, free // BYTES_PER_PAGE // 256 // max(1, len(self.specs)) // 2 * 2)
            raise UserError(
                f"memory_mib: {self.total_pages * 4 / 2**20:,.1f} GiB of simulated memory need {need / 2**30:,.1f} GiB "
                f"(about {BYTES_PER_PAGE} bytes a page), but only {free / 2**30:,.1f} GiB are free here. "
                f"Use at most {fits:,} MiB a process, or fewer processes."
            )

    def replace(self, **changes: Any) -> Scenario:
        """A copy with some fields changed, validated like a new one."""
        kept = {name: getattr(self, name) for name in self.model_fields_set}
        return Scenario(**{**kept, **changes})

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Scenario:
        """Read a YAML file, flat or rich, or the scenario of a kernel trace (``.json.gz``).

        Parameters
        ----------
        path
            The file.
        **overrides
            Fields that replace the file's.

        Raises
        ------
        UserError
            When the file can't be read or says something that is not allowed; the message begins with its name.
        """
        path = Path(path)
        try:
            if path.name.endswith((".json.gz", ".json")):
                from mmlab.results.trace import read

                scenario = cls.from_trace(read(path)).replace(**{"name": path.name.split(".")[0], **overrides})
            else:
                scenario = cls(**{**read_yaml(path), **overrides})
            scenario.check_memory()
        except UserError as error:
            text = str(error)
            raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None
        return scenario

    @classmethod
    def from_trace(cls, trace: dict[str, Any]) -> Scenario:
        """The scenario of a trace, as recorded: stepped batch by batch, ending after its last batch.

        Reads only ``kernel`` (a prediction's names the imitated one at its end), ``variant`` and ``scenario``, and of
        these nothing that is an answer.
        Knobs that a trace lacks are the defaults, but a trace without ``sleep_millisecs`` was made without sleeping.
        """
        asked = trace["scenario"]
        events = [{k: v for k, v in e.items() if k not in ("result", "sample")} for e in asked.get("events", ())]
        return cls(
            **{
                "sleep_millisecs": 0,
                "nodes": asked.get("nodes", 1),
                **asked["knobs"],
                "kernel": str(trace["kernel"]).rpartition(" ")[2],
                "variant": trace["variant"],
                "process_list": asked["processes"],
                "late": bool(asked.get("late", 0)),
                "events": events,
                "horizon_batches": asked["batches"],
                "horizon_seconds": 0.0,
                "run": 0,
                "stepped": True,
                "sample_limit": 10**8,
                "pages_per_thp": asked.get("pages_per_thp", 512),
            }
        )


def _bounds(name: str) -> tuple[int, int]:
    field = Scenario.model_fields[name]
    low = [m.ge for m in field.metadata if hasattr(m, "ge")]
    high = [m.le for m in field.metadata if hasattr(m, "le")]
    return int(low[0]), int(high[0])


@dataclass(frozen=True)
class Parameter:
    """What there is to know about one flat field: for sliders, the parameters cells of notebooks, and help texts."""

    name: str
    type: type
    default: Any
    low: float | None
    high: float | None
    choices: tuple[Any, ...]
    unit: str
    help: str
    kind: Kind
    source: str
    step: float | None
    log: bool
    slider: tuple[float, float] | None
    """The range of its slider, the usual values; what is allowed may be more."""

    @property
    def allowed(self) -> str:
        """The allowed range in words."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        if self.low is None:
            return "true, false" if self.type is bool else ""
        return f"{self.low:g} … {_number(self.high)}"


def flat_fields() -> dict[str, Parameter]:
    """Every plain parameter in its order, by name: what a flat YAML file, a slider or ``--set`` may give."""
    out = {}
    for name, field in Scenario.model_fields.items():
        extra = field.json_schema_extra
        if not isinstance(extra, dict):
            continue
        args = getattr(field.annotation, "__args__", ())
        low = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
        high = next((m.le for m in field.metadata if hasattr(m, "le")), None)
        kind: Any = extra["kind"]
        step: Any = extra["step"]
        slider: Any = extra["slider"] or (None if low is None or high is None or high > 1000 else (low, high))
        out[name] = Parameter(
            name=name,
            type=type(field.default),
            default=field.default,
            low=low,
            high=high,
            choices=tuple(args),
            unit=str(extra["unit"]),
            help=field.description or "",
            kind=kind,
            source=str(extra["source"]),
            step=step,
            log=bool(extra["log"]),
            slider=slider,
        )
    return out


def check_value(name: str, value: Any) -> None:
    """UserError unless a field of :class:`Scenario` may have the value, as far as that does not depend on others."""
    field = Scenario.model_fields[name]
    if name == "kernel" and isinstance(value, float):
        value = str(value)
    try:
        TypeAdapter(cast(Any, Annotated[field.annotation, field])).validate_python(value)
    except ValidationError as error:
        found = [{**e, "loc": (name, *e["loc"])} for e in error.errors(include_url=False)]
        raise UserError("\n".join(dict.fromkeys(map(_sentence, found)))) from None


SETTABLE: dict[str, tuple[int, int] | tuple[str, ...]] = {
    "variant": (0, 0),
    **{
        name: p.choices or _bounds(name)
        for name, p in flat_fields().items()
        if p.kind == "knob" and name not in ("swap_mib", "khugepaged_alloc_sleep_millisecs")
    },
    "advisor_max_cpu": (0, UINT_MAX),  # sysfs takes any
    "advisor_target_scan_time": (0, UINT_MAX),  # 0: the event results in EINVAL
}
"""Knobs that an event or a policy may set while the scenario runs: their bounds, or their values."""


def _number(value: float | None) -> str:
    return "" if value is None else str(int(value)) if float(value).is_integer() else f"{value:g}"


def _explain(error: ValidationError) -> str:
    """Pydantic's findings as sentences: parameter, value, what is allowed, the way out."""
    return "\n".join(dict.fromkeys(_sentence(dict(e)) for e in error.errors(include_url=False)))


def _sentence(e: dict[str, Any]) -> str:
    loc, ctx, given = [x for x in e["loc"] if x not in ("int", "str")], e.get("ctx", {}), e.get("input")
    name = " ".join(str(x) for x in loc)
    if e["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"process_list": ProcessSpec, "events": Event}
        model = models.get(str(loc[0]), Scenario) if len(loc) > 1 else Scenario
        model = After if "after" in loc[:-1] else model
        where = f"{' '.join(map(str, loc[:-1]))}: " if len(loc) > 1 else ""
        return where + str(unknown("key", loc[-1], model.model_fields, "`mmlab params` explains every parameter."))
    if e["type"] == "missing":
        return f"{name} is missing"
    if e["type"] == "value_error":
        return f"{name}: {ctx['error']}" if name else str(ctx["error"])
    about = flat_fields().get(str(loc[0])) if len(loc) == 1 else None
    unit = f" ({about.unit})" if about and about.unit else ""
    if about and about.low is not None:
        low, high = _number(about.low), _number(about.high)
        must = f"at least {low}" if e["type"].startswith("greater") else f"{low} … {high}"
        return (
            f"{name} = {given!r} is out of range: it must be {must}{unit}."
            if "equal" in e["type"]
            else (
                f"{name} = {given!r} is not {'a whole number' if about.type is int else 'a number'}: "
                f"it must be {low} … {high}{unit}."
            )
        )
    if about and about.choices:
        return f"{name} = {given!r}: it must be one of {about.allowed}."
    text = str(e["msg"]).replace("Input should be", "it must be").replace("String should", "it must")
    return f"{name} = {given!r}: {about.help if about and 'pattern' in e['type'] else text}."


def _mem_available() -> int | None:
    """Bytes of memory that are free for a new program, or None where /proc does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
