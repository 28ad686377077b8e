"""The scenario: the one strict parameter model.

A scenario states everything a run depends on: ksmd's knobs, the machine, the memory of one or several processes, what
happens to them, and when the run ends. Flat YAML files (plain scalars, which papermill takes with ``-f``), rich YAML
files (with a list of processes and a list of events), recordings, sliders and the command line all end up here. Each
field is declared once, with its bounds, unit and source; the text below it is its help. An unknown key is an error.

To add a parameter, add a field to `Scenario`. To add an event, add a class here and a function to ``engine/events.py``.

>>> Scenario(memory_mib=64, zero_fraction=0.5).total_pages
16384
>>> Scenario(pages_to_scan=-1)
Traceback (most recent call last):
mmlab.errors.UserError: pages_to_scan = -1 is out of range: it must be at least 0 (pages).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

import pydantic
from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, ValidationError, create_model

from mmlab.errors import UserError, located, unknown
from mmlab.kernel.versions import flags
from mmlab.limits import free_memory
from mmlab.params import in_units, quantity, read_image, read_yaml, units, written, yaml_lines
from mmlab.policies import FINITE, TUNERS, Strict, Tuner
from mmlab.variants import KSMD_VARIANTS, VARIANTS, resolve

THP_ORDER = 9
"""Folio order that stands for a PMD-sized folio, whatever ``pages_per_thp`` is."""
BYTES_PER_PAGE = 56
"""Memory that a run needs for each simulated page (arrays of the model and of the workload), with room to spare."""
ALWAYS_FREE = 2**25
"""Bytes for which the system is not asked: that takes 2 ms, of 35 for a short run of 1 GiB, which needs less memory."""
CAPTURED = 2**36
"""Keys of the first captured file are above this, those of the n-th above n times as much: generated ones are below."""
MAX_KEY = 2**64 - 1
UINT_MAX = 2**32 - 1

Kind = Literal["knob", "machine", "workload", "horizon"]
Switch = Annotated[int, Field(ge=0, le=1)]
Index = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
UInt = Annotated[int, Field(ge=0, le=UINT_MAX)]
Entries = Annotated[int, Field(ge=0, le=511)]
Key = Annotated[int, Field(ge=0, le=MAX_KEY)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Period = Annotated[float, Field(ge=0.05, le=1e9)]
Rate = Annotated[float, Field(ge=0, le=1e6)]
Kernel = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, float) else value)]
"""A kernel; YAML reads 6.18 as a number."""
Granularity = Literal["4K", "2M"]
Range = tuple[Index, Count]
Ranges = tuple[tuple[int, int], ...]
"""Runs of pages or blocks: [first, end)."""


# --- events ---------------------------------------------------------------------------------------------------------


class After(Strict):
    """When an event happens: after a batch, after the batch that completes a full scan, or at a simulated time."""

    batch: Index | None = None
    """after this many batches; 0: before ksmd starts"""
    full_scan: Index | None = None
    """after the batch that completes this full scan"""
    seconds: Seconds | None = None
    """at this simulated time (s)"""
    every: Annotated[float, Field(ge=0.001)] | None = None
    """repeat the event at this interval, from `seconds` on (s)"""

    def check(self) -> None:
        if sum(v is not None for v in (self.batch, self.full_scan, self.seconds)) != 1:
            raise UserError("needs exactly one of batch, full_scan and seconds", hint="E.g. after: {seconds: 30}.")
        if self.every is not None and self.seconds is None:
            raise _refusal("every", self.every, "goes with seconds only", hint="E.g. {seconds: 30, every: 10}.")


EVENTS: dict[str, type[Event]] = {}
"""The class of each operation, by the name of the operation (`op`)."""


class Event(Strict):
    """Something done to the machine from outside at a given point of the run (trace-format, Events).

    A subclass is an operation and named after it: SplitAll is the class of `op: split_all`, in `EVENTS`; its docstring
    says what happens.
    """

    after: After
    """when it happens"""
    op: str
    """what happens"""

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        if not abstract:
            op = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
            cls.__annotations__["op"] = Literal[op]
            EVENTS[op] = cls

    def sets(self, knob: str) -> bool:
        """Return whether this event writes the knob."""
        return getattr(self, "knob", None) == knob


class ProcessEvent(Event, abstract=True):
    """An event that happens to one process."""

    process: Index = 0
    """number of the process, from 0 in order of birth"""


class RangeEvent(ProcessEvent, abstract=True):
    """An event that happens to a range of pages of one process, or to a part of its pages or blocks, one by one."""

    page: Index
    """first page of the range, from 0 within the process (pages)"""
    count: Count
    """length of the range (pages)"""
    every_nth: Count = 1
    """the event happens only to each n-th unit of the range, from the first one on, one unit after the other"""
    share: Share = 1.0
    """share of these units to which it happens: drawn at random (seed), anew each time, in order of addresses"""
    granularity: Granularity = "4K"
    """what every_nth and share count: 4K pages, or 2M blocks (pages_per_thp), from the first page of the range on"""


class Write(RangeEvent):
    """Write each page."""

    key: Key | None
    """new content: equal keys are equal pages, their order is memcmp's, 0 is the zero page; null rewrites what is there
    (read, then written)"""


class Touch(RangeEvent):
    """Touch each page for the first time, as a process that grows does: write the content that is dealt to it. Holes,
    pages that are touched already, and those that cannot be written are left out."""


class Read(RangeEvent):
    """Read each page."""


_ADVICE = "dontneed free cold pageout collapse mergeable unmergeable hugepage nohugepage".split()
_CALLS = {op: f"madvise(MADV_{op.upper()})" for op in _ADVICE}
_CALLS |= {"mlock": "mlock: lock the range and populate it.", "munlock": "munlock", "munmap": "munmap"}
for _op, _about in _CALLS.items():  # a class like `Read` for each
    globals()[_op.title()] = create_model(_op.title(), __base__=RangeEvent, __doc__=_about)


class Mmap(RangeEvent):
    """mmap with MAP_FIXED and MAP_POPULATE: new zero-filled small pages instead of what is there, in a VMA of their
    own, which is mergeable if the process has MERGE_ANY."""


class Mremap(RangeEvent):
    """mremap with MREMAP_FIXED: the range moves to where it replaces what is there (thp-split H14)."""

    to: Index
    """first page of its new place"""


class Pin(RangeEvent):
    """Pin the range for I/O, as VFIO, RDMA and io_uring's fixed buffers do: each page is written to and held, or none
    is held if one cannot be written (thp-split H5)."""


class Unpin(ProcessEvent):
    """Let go of all pages that the process has pinned, as its end does."""


class Split(RangeEvent):
    """Split the range's folios through debugfs split_huge_pages."""


class PopulateWrite(RangeEvent):
    """madvise(MADV_POPULATE_WRITE): populate each page as by a write fault; contents that are there stay."""


class Mprotect(RangeEvent):
    """mprotect"""

    prot: Literal[1, 3]
    """1: read only, 3: read and write"""


class Fork(ProcessEvent):
    """Fork a child process, which gets the next number."""


class Exit(ProcessEvent):
    """Kill and reap the process."""


class Shrink(Event):
    """Ask the shrinker of the deferred split queue to scan folios."""

    count: Count
    """number of folios"""


class SplitAll(Event):
    """Split the folios of all processes through debugfs split_huge_pages."""


class Khugepaged(Event):
    """Let khugepaged make full scans at once."""

    full_scans: Count
    """number of full scans"""


class Compact(Event):
    """Compact all memory."""


class Set(Event):
    """Write a sysfs knob, or boot another variant."""

    knob: str
    """which knob"""
    value: int | str
    """its new value"""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _in_the_knobs_unit(cls, given: Any) -> Any:
        knob = flat_fields().get(str(given.get("knob"))) if isinstance(given, Mapping) else None
        return {**given, "value": quantity(given.get("value"), knob.unit)} if knob else given

    def check(self) -> None:
        check_knob(self.knob, self.value)


class Sleep(Event):
    """Let time pass."""

    millisecs: Index
    """how long (ms)"""


class Migrate(RangeEvent):
    """Migrate the range's folios; a huge page that can have no huge page is split first."""

    node: Index | None = None
    """NUMA node to migrate to; default: each folio's own"""
    huge: Switch = 1
    """1: a huge page can be allocated to migrate a huge page to"""


class MergeAny(ProcessEvent):
    """prctl(PR_SET_MEMORY_MERGE)"""

    value: Switch
    """1: on, 0: off"""


class Uffd(RangeEvent):
    """Register the range with userfaultfd, or unregister it."""

    value: Switch
    """1: register, 0: unregister"""


class MemoryFailure(ProcessEvent):
    """Let the hardware poison a page."""

    page: Index
    """which page, from 0 within the process"""


PolicyName = Literal["none", "ksmtuned", "proxmox", "kubevirt", "mom", "kata"]
if TYPE_CHECKING:
    AnyEvent = Event
    AnyPolicy = PolicyName | Tuner
else:  # each class by the name of its operation; type checkers cannot read a union that is put together here
    AnyEvent = Annotated[Union[tuple(EVENTS.values())], Field(discriminator="op")]  # noqa: UP007
    AnyTuner = Annotated[Union[tuple(TUNERS.values())], Field(discriminator="name")]  # noqa: UP007
    AnyPolicy = Annotated[
        Annotated[PolicyName, Tag("name")] | Annotated[AnyTuner, Tag("settings")],
        Discriminator(lambda policy: "settings" if isinstance(policy, Mapping | Tuner) else "name"),
    ]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _refusal(parameter: str, value: object, problem: str = "", allowed: str = "", hint: str = "") -> UserError:
    return UserError(problem, parameter=parameter, value=value, allowed=allowed, hint=hint)


def _check_index(parameter: str, index: int | None, size: int, count: int = 1) -> None:
    """Raise a `UserError` if `count` things from `index` on are more than there are (`size`)."""
    if index is not None and index + count > size:
        problem = "is out of range" if count == 1 else f"with count = {count} this ends beyond the last one, {size - 1}"
        raise _refusal(parameter, index, problem, f"0 … {size - count}" if size > count else "0")


def check_knob(knob: str, value: object) -> None:
    """Check that the knob may be set to the value while a scenario runs.

    Raises
    ------
    UserError
        There is no such knob, or it does not take the value.
    """
    if knob not in SETTABLE:
        raise unknown("knob", knob, SETTABLE)
    first, *_, last = choices = SETTABLE[knob]
    if knob == "variant" and isinstance(value, str):
        resolve(value)
    elif isinstance(first, str) and value not in choices:
        raise _refusal(knob, value, allowed=f"one of {_listed(choices)}")
    if isinstance(first, int) and not (isinstance(value, int) and first <= value <= last):
        raise _refusal(knob, value, "is out of range", f"{first} … {last}")


# --- processes ------------------------------------------------------------------------------------------------------


def _field(kind: Kind, default: Any, unit: str = "", source: str = "", **more: Any) -> Any:
    """Return a field; `step`, `log` and `slider` (the usual range) are for its slider, the rest are its bounds."""
    extra: dict[str, Any] = {"kind": kind, "unit": unit, "source": source}
    extra |= {key: more.pop(key, None) for key in ("step", "log", "slider", "choices")}
    return Field(default, json_schema_extra=extra, **more)


_knob, _machine, _workload, _horizon = (partial(_field, kind) for kind in get_args(Kind))
_KSM, _THP = "sysfs ksm/{}", "sysfs transparent_hugepage/{}"
_KHUGEPAGED = "sysfs transparent_hugepage/khugepaged/{}"


class Workload(Strict):
    """The memory of a process: the scenario's is that of all processes, and each may have its own."""

    memory_mib: int = _workload(1024, "MiB", log=True, step=2, slider=(16, 4096), ge=1, le=2**24)
    """memory of each process, whole THPs"""
    thp_coverage: Share = _workload(1.0, step=0.01)
    """share of the 2 MiB blocks that are THPs: the first floor(share × blocks)"""
    zero_fraction: Share = _workload(0.0, step=0.01)
    """share of the pages that are filled with zeroes"""
    duplicate_fraction: Share = _workload(0.0, step=0.01)
    """share of the non-zero pages that have duplicates; they are dealt into duplicate_groups"""
    duplicate_groups: int = _workload(1, "contents", log=True, slider=(1, 100_000), ge=1, le=2**31 - 1)
    """number of different contents of the duplicates; processes of the same image share them"""
    duplicate_layout: Literal["spread", "clustered", "blocks"] = _workload("spread")
    """where the duplicates lie among the non-zero pages: spread evenly; clustered: side by side, as kernel text and
    page cache are; blocks: in whole 2 MiB blocks, which are spread evenly"""
    duplicate_skew: float = _workload(0.0, step=0.1, ge=0, le=10)
    """how unequal the contents' numbers of duplicates are: content n has a share in proportion to 1 / n^skew; 0: all
    have as many"""
    layout: Literal["zero-first", "zero-last", "interleaved", "random", "bimodal"] = _workload("zero-first")
    """where the zero-filled pages lie: zero-first, zero-last, interleaved (within each block), random (anywhere),
    bimodal (nearly all in nearly empty blocks)"""
    key_order: Literal["ascending", "random"] = _workload("ascending")
    """memcmp order of the contents along the addresses"""
    stray_zero_pages: int = _workload(0, "pages", ge=0, le=2**20)
    """zero-filled small pages ahead of the first block: they and unique small pages fill one or more additional
    blocks"""
    folio_order: Literal[0, 2, 3, 4, 5, 6, 7, 8, 9] = _workload(9, source="mthp E1")
    """order of the folios that thp_coverage is about: 9 is a THP, 4 is 64 KiB, 0 is small pages; below 9 the blocks
    have no MADV_HUGEPAGE"""
    touched_fraction: Share = _workload(1.0, step=0.01)
    """share of its memory that each process has touched when it starts, from the first page on"""
    growth_seconds: Seconds = _workload(0.0, "s")
    """how long after its boot each process touches the rest, at an even pace in order of addresses; 0: never, and the
    shares above are those of the blocks that it has touched. Where thp_coverage gives MADV_HUGEPAGE, a first touch
    brings a THP, or a folio of a size in hugepages_enabled"""
    hot_fraction: Share = _workload(0.0, step=0.01)
    """share of the non-zero pages that are written once in every hot_period_seconds, each time with new content"""


USE_FIELDS = ("touched_fraction", "growth_seconds", "hot_fraction")
"""Fields that a process may have of its own whether it has contents or not."""
WORKLOAD_FIELDS = tuple(name for name in Workload.model_fields if name not in USE_FIELDS)
if TYPE_CHECKING:
    OwnWorkload = Workload
else:  # the same fields, None where the process has the scenario's
    _own = {}
    for _name, _of in Workload.model_fields.items():
        _about = {"description": _of.description, "json_schema_extra": _of.json_schema_extra}
        _own[_name] = (_of.rebuild_annotation() | None, Field(None, **_about))
    OwnWorkload = create_model("OwnWorkload", __base__=Strict, **_own)


class ProcessSpec(OwnWorkload):
    """One process of a rich scenario: one region of memory, populated by writes before the run starts.

    Either `pages` and `contents` say what is in it page by page, or the workload fields do.
    """

    pages: Count | None = None
    """size (pages); goes with `contents`"""
    contents: tuple[tuple[Key | Literal["hole"], Count, int], ...] | None = None
    """[[first key, count, step], …], one key for each page: 0 is the zero page, `hole` in place of a key means pages
    that are never touched; goes with `pages`"""
    thp: tuple[Range, ...] | None = None
    """[[first page, count], …]: ranges with MADV_HUGEPAGE; default: thp_coverage"""
    mergeable: tuple[Range, ...] | None = None
    """[[first page, count], …]: ranges with MADV_MERGEABLE; default: everything"""
    orders: tuple[tuple[Index, Count, int], ...] | None = None
    """[[first page, count, order], …]: orders of the folios, for all pages"""
    nohugepage_after_populate: bool = False
    """the ranges of `thp` get MADV_NOHUGEPAGE once they are populated"""
    merge_any: Switch | None = None
    """1: PR_SET_MEMORY_MERGE; default: the scenario's"""
    forbids_zeropages: Switch = 0
    """1: never maps the shared zeropage, as a KVM guest on s390"""
    node: Index | None = None
    """NUMA node of its memory; default: its number modulo nodes"""
    boots_at_seconds: Seconds | None = None
    """when it boots (s); default: its number × boot_interval_seconds"""
    exits_at_seconds: Seconds | None = None
    """when it exits (s); default: lifetime_seconds after its boot"""

    def check(self) -> None:
        if (self.contents is None) != (self.pages is None):
            raise UserError("pages and contents belong together", hint="Give both, or neither.")
        if self.contents is None:
            return
        if given := sorted(self.model_fields_set & set(WORKLOAD_FIELDS)):
            raise UserError("contents decide what the pages hold", hint=f"Remove {', '.join(given)}.")
        if (total := sum(count for _, count, _ in self.contents)) != self.pages:
            raise _refusal("pages", self.pages, allowed=f"{total}, the length of contents")
        for first, count, step in self.contents:
            if first != "hole" and not 0 <= first + (count - 1) * step <= MAX_KEY:
                raise _refusal("contents", [first, count, step], "its keys leave 0 … 2^64 - 1")

    def lead(self, size: int) -> int:
        """Return how many pages lie ahead of the first block: whole blocks with the stray zero-filled pages."""
        return -(-(self.stray_zero_pages or 0) // size) * size


def _repeated(entries: Any) -> Any:
    """Return a list of processes in which an entry with a count stands there as often, one with a workload for all of
    the processes in that file."""
    if not isinstance(entries, list | tuple):
        return entries
    out: list[Any] = []
    files: dict[Any, int] = {}
    for i, entry in enumerate(entries):
        count = entry.get("count", 1) if isinstance(entry, Mapping) else 1
        if not (isinstance(count, int) and 1 <= count <= 10_000):
            raise ValueError(_refusal("count", count, allowed="1 … 10000"), i)
        own = {n: v for n, v in entry.items() if n != "count"} if isinstance(entry, Mapping) else entry
        image = isinstance(own, Mapping) and own.get("workload")
        made = read_image(own, CAPTURED * (1 + files.setdefault(image, len(files)))) if image else [own]
        out += made * count
    return out


# --- the scenario ---------------------------------------------------------------------------------------------------


class _Machine(Strict):
    """What a run is called, and the machine that it runs on."""

    name: str = _workload("")
    """free text that names the run"""
    variant: str = _machine("mainline", source="fix-variants")
    """which kernel variant decides whether a split remaps zero-filled pages; `mmlab variants` lists them"""
    kernel: Kernel = _machine("6.12")
    """kernel whose details are imitated: a series from 6.1 to 7.3, which means its newest known release, a stable
    release such as 6.18.15, or a distribution such as pve9; `mmlab kernels` lists them (quote '6.10' in YAML)"""

    # ksmd's knobs, /sys/kernel/mm/ksm, and two of /sys/kernel/mm/transparent_hugepage
    use_zero_pages: Switch = _knob(0, source=_KSM)
    """1: ksmd maps zero-filled pages to the shared zeropage instead of merging them with each other"""
    pages_to_scan: UInt = _knob(100, "pages", _KSM, log=True, slider=(10, 10_000))
    """pages that ksmd visits in one batch"""
    sleep_millisecs: UInt = _knob(20, "ms", _KSM, log=True, slider=(1, 1000))
    """how long ksmd sleeps between two batches"""
    smart_scan: Switch = _knob(1, source=_KSM)
    """1: pages that could not be merged recently are skipped in more and more full scans"""
    max_page_sharing: int = _knob(256, "mappings", _KSM, log=True, ge=2, le=2**31 - 1)
    """largest number of mappings of one KSM page; beyond it a duplicate is made"""
    stable_node_chains_prune_millisecs: UInt = _knob(2000, "ms", _KSM, log=True)
    """how often a chain of KSM pages is pruned of stale members"""
    merge_across_nodes: Switch = _knob(1, source=_KSM)
    """0: only pages of one NUMA node are merged with each other"""
    run: int = _knob(1, source=_KSM, ge=0, le=2)
    """value of run at the start: 0 stopped, 1 running, 2 unmerge. The kernel boots with 0; here the default is 1"""
    shrink_underused: Switch = _knob(1, source=_THP)
    """1: new THPs are queued so that the shrinker may split underused ones"""
    max_ptes_none: Entries = _knob(511, "pages", _KHUGEPAGED)
    """largest number of empty entries that khugepaged fills; a THP with more zero-filled pages is underused"""
    swap_mib: int = _knob(0, "MiB", ge=0, le=2**20)
    """size of the swap area"""
    advisor_mode: Literal["none", "scan-time"] = _knob("none", source=f"{_KSM}, ksm-scan S29")
    """scan-time: ksmd chooses pages_to_scan itself so that a full scan takes advisor_target_scan_time"""
    advisor_max_cpu: int = _knob(70, "%", _KSM, ge=0, le=100)
    """largest share of a CPU that the advisor lets ksmd use"""
    advisor_min_pages_to_scan: UInt = _knob(500, "pages", _KSM, log=True)
    """pages_to_scan that the advisor starts from"""
    advisor_max_pages_to_scan: UInt = _knob(30_000, "pages", _KSM, log=True)
    """largest pages_to_scan that the advisor chooses"""
    advisor_target_scan_time: int = _knob(200, "s", _KSM, log=True, ge=1, le=UINT_MAX)
    """duration of a full scan that the advisor aims at"""
    khugepaged: Switch = _knob(0, source="sysfs transparent_hugepage/khugepaged/defrag")
    """1: khugepaged runs by its own clock"""
    khugepaged_pages_to_scan: int = _knob(4096, "pages", _KHUGEPAGED, log=True, ge=1, le=UINT_MAX)
    """pages that khugepaged looks at in one burst"""
    khugepaged_scan_sleep_millisecs: UInt = _knob(10_000, "ms", _KHUGEPAGED, log=True)
    """how long khugepaged sleeps between two bursts"""
    khugepaged_alloc_sleep_millisecs: UInt = _knob(60_000, "ms", _KHUGEPAGED, log=True)
    """how long khugepaged sleeps after it got no huge page; no effect, since here it always gets one"""
    max_ptes_swap: Entries = _knob(64, "pages", _KHUGEPAGED)
    """largest number of swapped-out entries in a range that khugepaged collapses"""
    max_ptes_shared: Entries = _knob(256, "pages", _KHUGEPAGED)
    """largest number of shared entries in a range that khugepaged collapses"""

    # the machine
    hz: Literal[100, 250, 300, 1000] = _machine(250, "1/s", "CONFIG_HZ")
    """timer ticks per second: a sleep lasts whole ticks"""
    pages_per_thp: Literal[4, 8, 16, 32, 64, 128, 256, 512] = _machine(512, "pages")
    """pages of a PMD-sized folio; small sizes are for examples"""
    nodes: int = _machine(1, ge=1, le=8)
    """NUMA nodes; the memory of process i is on node i modulo nodes"""
    policy: AnyPolicy = _machine("none", source="tuners N1–N5", choices=get_args(PolicyName))
    """who sets ksmd's knobs during the run, mostly depending on how much of host_mib is free; with parameters:
    {name: ksmtuned, sleep_msec: 30}"""
    host_mib: int = _machine(16_384, "MiB", log=True, ge=1, le=2**30)
    """memory of the host as policies see it; the model never runs out of memory"""
    host_scale: float = _machine(1.0, source="tuners N9", log=True, ge=1, le=1e6)
    """how many times more memory the real host's processes have than is simulated; policies see the real host"""
    ksm_start_seconds: Seconds = _machine(0.0, "s")
    """when run becomes 1; 0 = run is as given from the start"""
    ksmd_cpu_before_seconds: Seconds = _machine(0.0, "s", "ksm-scan S31", log=True)
    """CPU time that ksmd has used before; the advisor counts it as part of the first full scan after it is turned on"""
    pressure_rate: Rate = _machine(0.0, "folios/s", "thp-split Q3", log=True, step=0.5, slider=(0, 64))
    """memory pressure: folios of the deferred split queue that the shrinker is asked to scan each second"""
    migration_rate: Rate = _machine(0.0, "MiB/s", "thp-split 3.7", log=True, step=0.5, slider=(0, 32))
    """memory that is migrated (compaction, NUMA balancing): random 2 MiB blocks"""
    migration_huge_share: Share = _machine(1.0, source="thp-split 3.6", step=0.01)
    """probability that a huge page can be allocated to migrate a huge page to; otherwise it is split first"""
    costs: str = _machine(
        "epyc-6.18", source="costs; or a file of `mmlab calibrate`, *.yaml", pattern=r"^[\w.+-]+$|\.ya?ml$"
    )
    """name of the set of measured costs of ksmd's steps"""
    cost_factor: float = _machine(1.0, source="costs", log=True, ge=0.01, le=100)
    """what every step costs, relative to the cost set: 0.5 for a CPU that is twice as fast"""


class Scenario(Workload, _Machine):
    """Everything a run depends on. Immutable; `replace` returns a changed copy.

    Knobs have the kernel's defaults (the advisor's: ksm-scan S30), except that ``run`` is 1.

    Raises
    ------
    UserError
        A key is unknown or a value is not allowed; the message says what is.
    """

    # the workload, beside that of one process
    images: int = _workload(1, slider=(1, 8), ge=1, le=1000)
    """number of images that processes are started from in turn, e.g. 2 for Linux and Windows guests: processes of
    different images have no duplicates in common but zero-filled pages"""
    merge_any: Switch = _workload(0, source="ksm-scan S12")
    """1: processes use prctl PR_SET_MEMORY_MERGE instead of MADV_MERGEABLE"""
    hot_period_seconds: Period = _workload(1.0, "s", log=True)
    """how often each hot page is written"""
    warm_fraction: Share = _workload(0.0, step=0.01)
    """share of the non-zero pages that are written once in every warm_period_seconds; pages neither hot nor warm are
    cold"""
    warm_period_seconds: Period = _workload(60.0, "s", log=True)
    """how often each warm page is written"""
    owner_running_fraction: Share = _workload(0.0, source="costs", step=0.01)
    """share of the merges of pages whose owner runs on another CPU meanwhile: they cost more CPU time"""
    equal_bytes: int = _workload(0, "bytes", source="costs", ge=0, le=4095)
    """bytes in which pages that differ are equal before they differ: a comparison reads them"""
    boot_interval_seconds: Rate = _workload(0.0, "s")
    """process i boots at i × this time: its memory is populated and advised then"""
    balloon_fraction: Share = _workload(0.0, step=0.01)
    """share of its 2 MiB blocks, or pages, that each process gives back by MADV_DONTNEED, those with most zero-filled
    pages first"""
    balloon_seconds: Seconds = _workload(60.0, "s")
    """when each process does so, after its boot"""
    balloon_granularity: Granularity = _workload("2M")
    """what it gives back: 2M blocks, or 4K pages, those that are zero-filled first, each by a call of its own, as a
    balloon without free page reporting does"""
    lifetime_seconds: Seconds = _workload(0.0, "s")
    """when each process exits, after its boot; 0 = never"""
    processes: int = _workload(1, slider=(1, 16), ge=1, le=10_000)
    """number of processes with such memory"""
    seed: int = _workload(0, ge=0, le=2**63 - 1)
    """seed of everything that is random"""

    # the end, whichever comes first; 0 = does not end the run
    horizon_seconds: Seconds = _horizon(120.0, "s", log=True, slider=(1, 600))
    """end after this simulated time; 0 = no limit"""
    horizon_full_scans: UInt = _horizon(0, "full scans", log=True)
    """end after this many full scans; 0 = no limit"""
    horizon_batches: UInt = _horizon(0, "batches", log=True)
    """end after this many batches; 0 = no limit"""
    until_settled: bool = _horizon(False)
    """end once a full scan in which nothing was skipped has changed nothing"""
    sample_limit: int = _horizon(20_000, "rows", log=True, ge=100, le=10**8)
    """largest number of rows of the table of samples; a longer run is thinned evenly"""

    # rich scenarios
    kernel_changes: Mapping[str, Switch] = {}
    """differences between kernels that are switched one by one, {name: 0 or 1}, whatever the kernel has"""
    hugepages_enabled: Mapping[int, Literal["always", "inherit", "madvise", "never"]] = {}
    """sizes of folios that faults and khugepaged may make, {kB: always, inherit, madvise or never}, as in sysfs
    transparent_hugepage/hugepages-*kB/enabled; 2048 is inherit unless it is given, the others are never. All but never
    mean: where MADV_HUGEPAGE holds; memory without it counts as MADV_NOHUGEPAGE"""
    process_list: Annotated[tuple[ProcessSpec, ...], BeforeValidator(_repeated)] = ()
    """processes one by one, instead of `processes`; an entry with `count: 20` stands for 20 of them, one
    with `workload: FILE.parquet` for the processes in a file of `mmlab capture`, relative to the scenario's file"""
    late: bool = False
    """memory becomes mergeable only by events"""
    events: tuple[AnyEvent, ...] = ()
    """what happens to the processes over time"""
    stepped: bool = False
    """run is set to 1 after the events of batch 0, and ksmd is stepped batch by batch, as in recordings"""

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise explain(error) from None

    def __hash__(self) -> int:
        return hash(tuple(frozenset(v.items()) if isinstance(v, Mapping) else v for v in vars(self).values()))

    def check(self) -> None:
        flags(self.kernel, self.kernel_changes)
        ends = "horizon_seconds", "horizon_full_scans", "horizon_batches", "until_settled"
        sizes = [4 << order for order in self._orders if order]
        for kb in self.hugepages_enabled:
            if kb not in sizes:
                near = " and ".join(map(str, sorted(sorted(sizes, key=lambda size: abs(size - kb))[:2])))
                allowed = f"one of {_listed(sizes)} (kB)"
                raise _refusal("hugepages_enabled", kb, "is not the size of a folio", allowed, f"The nearest: {near}.")
        if not any(getattr(self, name) for name in ends):
            raise _refusal(ends[0], 0, "the run would never end", hint=f"Set one of {_listed(ends)}.")
        if self.hot_fraction + self.warm_fraction > 1:
            problem = f"with warm_fraction = {self.warm_fraction} this is more than all pages"
            raise _refusal("hot_fraction", self.hot_fraction, problem, f"at most {1 - self.warm_fraction:g}")
        if self.ksm_start_seconds and self.run != 1:
            problem = f"sets run to 1 then, but run = {self.run}"
            raise _refusal("ksm_start_seconds", self.ksm_start_seconds, problem, hint="Remove one of the two.")
        if not (self.horizon_seconds or self.stepped):  # ksmd may never reach another end
            names = "policy khugepaged pressure_rate migration_rate hot_fraction warm_fraction".split()
            found = [name for name in names if getattr(self, name) not in (0, "none")]
            found += ["an event with every"] if any(e.after.every is not None for e in self.events) else []
            if found:
                raise _refusal(ends[0], 0, f"with {_listed(found)} the run might never end", "above 0")
        for i, spec in enumerate(self.specs if self.process_list else self.specs[:1]):
            with located(f"process_list {i}" if self.process_list else ""):
                self._check_process(i, spec)
        if self.events:
            self._check_events()

    def _check_process(self, i: int, spec: ProcessSpec) -> None:
        pages, top = self.pages_of(spec), self.pages_per_thp.bit_length() - 1
        orders = self._orders
        mib, small, exits, boots = spec.memory_mib, spec.folio_order, self.exits_at(i), self.boots_at(i)
        if mib is not None and mib * 256 % self.pages_per_thp:
            raise _refusal("memory_mib", mib, "is not whole THPs of 2 MiB", f"even, e.g. {mib + 1}")
        for name in ("thp", "mergeable"):
            for first, count in getattr(spec, name) or ():
                if first + count > pages:
                    raise _refusal(name, [first, count], allowed=f"within the {pages} pages")
        if small is not None and small not in orders:
            raise _refusal("folio_order", small, allowed=f"one of {_listed(orders)}")
        end = 0
        for first, count, order in spec.orders or ():
            if order not in orders or first != end or count % (1 << min(order, top)):
                allowed = f"whole folios of order {_listed(orders)}, from the end of the range before it"
                raise _refusal("orders", [first, count, order], allowed=allowed)
            end += count
        if spec.orders is not None and end != pages:
            raise UserError(f"they cover {end} of {pages} pages", parameter="orders", hint="Cover all.")
        _check_index("node", spec.node, self.nodes)
        if exits is not None and exits <= boots:
            raise _refusal("exits_at_seconds", exits, f"is not after its boot at {boots:g} s")

    def _check_events(self) -> None:
        processes = len(self.specs) + sum(event.op == "fork" for event in self.events)
        pages = max(map(self.pages_of, self.specs))
        for i, event in enumerate(self.events):
            given = vars(event)
            with located(f"events {i}"):
                _check_index("process", given.get("process"), processes)
                _check_index("node", given.get("node"), self.nodes)
                for place in ("page", "to"):
                    _check_index(place, given.get(place), pages, given.get("count", 1))

    def boots_at(self, process: int) -> float:
        """Return when a process boots, s."""
        own = self.process_list[process].boots_at_seconds if self.process_list else None
        return process * self.boot_interval_seconds if own is None else own

    def exits_at(self, process: int) -> float | None:
        """Return when a process exits, s; None: never."""
        own = self.process_list[process].exits_at_seconds if self.process_list else None
        if own is None and self.lifetime_seconds:
            return self.boots_at(process) + self.lifetime_seconds
        return own

    @property
    def _orders(self) -> list[int]:
        """The orders that folios may have (mthp E1)."""
        return sorted({0, *range(2, self.pages_per_thp.bit_length()), THP_ORDER})

    @property
    def enabled_orders(self) -> tuple[int, ...]:
        """The orders of large folios that may be made, ascending; `THP_ORDER` is a huge page's (mthp E2)."""
        enabled = {2048: "inherit", **self.hugepages_enabled}
        return tuple(sorted((kb // 4).bit_length() - 1 for kb, value in enabled.items() if value != "never"))

    def sets(self, knob: str) -> bool:
        """Return whether an event of this scenario writes the knob."""
        return any(e.sets(knob) for e in self.events)

    @cached_property
    def specs(self) -> tuple[ProcessSpec, ...]:
        """The processes one by one, with every workload field filled in (unless they have contents)."""
        own = {name: getattr(self, name) for name in Workload.model_fields}
        if not self.process_list:
            return (ProcessSpec(**own),) * self.processes
        names = [USE_FIELDS if p.contents else own for p in self.process_list]
        given = zip(self.process_list, names, strict=True)
        return tuple(p.model_copy(update={n: own[n] for n in fill if getattr(p, n) is None}) for p, fill in given)

    def pages_of(self, spec: ProcessSpec) -> int:
        """Return the number of pages of one of `specs`, including the blocks with stray zero pages."""
        if spec.pages is not None:
            return spec.pages
        return spec.memory_mib * 256 + spec.lead(self.pages_per_thp)

    def holes_of(self, spec: ProcessSpec) -> Ranges:
        """Return the ranges of pages, [first, end), of one of `specs` to which no content is dealt."""
        pages, size = self.pages_of(spec), self.pages_per_thp
        if spec.contents is not None:
            runs = zip(accumulate(n for _, n, _ in spec.contents), spec.contents, strict=True)
            return tuple((end - n, end) for end, (key, n, _) in runs if key == "hole")
        touched = -(-max(spec.lead(size) + 1, round((spec.touched_fraction or 0.0) * pages)) // size) * size
        return () if spec.growth_seconds or touched >= pages else ((touched, pages),)

    @cached_property
    def gaps(self) -> tuple[Ranges, ...]:
        """Runs of blocks, [first, end), of each process that are holes in which no event and no range of advice begins
        or ends, or is: the model keeps the first block of each, which stands for all.
        """
        return tuple(self._gaps(i, spec, h) if (h := self.holes_of(spec)) else () for i, spec in enumerate(self.specs))

    def _gaps(self, process: int, spec: ProcessSpec, holes: Ranges) -> Ranges:
        size, events = self.pages_per_thp, (vars(event) for event in self.events if "page" in vars(event))
        used = [(0, self.pages_of(spec))] if self.balloon_fraction else []
        own = (e for e in events if e["process"] == process or e["process"] >= len(self.specs))
        used += [(e[at], e[at] + e.get("count", 1)) for e in own for at in ("page", "to") if at in e]
        advised = (*(spec.thp or ()), *(spec.mergeable or ()), *(spec.orders or ()))
        used += [(border, border) for first, count, *_ in advised for border in (first, first + count)]
        blocks = ((-(-first // size), end // size) for first, end in holes)
        return tuple((a, b) for a, b in blocks if b - a > 1 and not any(u < b * size and v > a * size for u, v in used))

    @property
    def total_pages(self) -> int:
        """Pages of all processes at the start."""
        return sum(map(self.pages_of, self.specs))

    def check_memory(self) -> None:
        """Check that the run fits into the memory that this process may take, where the system tells it.

        Raises
        ------
        UserError
            About 56 bytes a page are more than `mmlab.limits.free_memory`.
        """
        gaps = sum(end - first - 1 for gaps in self.gaps for first, end in gaps)
        need = (self.total_pages - gaps * self.pages_per_thp) * BYTES_PER_PAGE
        free = free_memory() if need > ALWAYS_FREE else None
        if free is not None and need > free:
            fits = max(2, free // BYTES_PER_PAGE // 256 // len(self.specs) // 2 * 2)
            problem = (
                f"{self.total_pages * 4 / 2**20:,.1f} GiB of simulated memory need {need / 2**30:,.1f} GiB "
                f"({BYTES_PER_PAGE} bytes a page), but only {free / 2**30:,.1f} GiB are free here"
            )
            allowed = f"at most {fits:,} MiB a process"
            raise _refusal("memory_mib", self.memory_mib, problem, allowed, "Or simulate fewer processes.")

    def replace(self, **changes: Any) -> Scenario:
        """Return a copy with some fields changed, validated like a new one."""
        return Scenario(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Scenario:
        """Read a YAML file, flat or rich. `mmlab.results.trace.load` reads recordings too.

        Parameters
        ----------
        path
            The file.
        **overrides
            Fields that replace the file's.

        Raises
        ------
        UserError
            The file can't be read, says something that is not allowed, or needs more memory than there is.
        """
        with located(path):
            scenario = cls(**{**read_yaml(Path(path)), **overrides})
            scenario.check_memory()
        return scenario

    def changed(self) -> dict[str, Any]:
        """Return the fields that are not at their defaults, as plain values."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def as_python(self, variants: Sequence[str]) -> str:
        """Return a script that runs the scenario under these variants; your own variant is a name in the script.

        >>> print(Scenario(zero_fraction=0.5).as_python(["mainline", "mine"]), end="")
        from mmlab import Scenario, simulate
        <BLANKLINE>
        scenario = Scenario(
            zero_fraction=0.5,
        )
        for variant in ('mainline', mine):
            run = simulate(scenario, variant=variant)
            print(run.variant, run.summary(), sep="\\n")
        """
        fields = "".join(f"    {name}={value!r},\n" for name, value in self.changed().items() if name != "variant")
        names = ", ".join(name if name.isidentifier() and name not in VARIANTS else repr(name) for name in variants)
        return (
            f"from mmlab import Scenario, simulate\n\nscenario = Scenario(\n{fields})\nfor variant in ({names}):\n"
            '    run = simulate(scenario, variant=variant)\n    print(run.variant, run.summary(), sep="\\n")\n'
        )

    def as_yaml(self, always: Collection[str] = (), about: str = "") -> str:
        """Return the scenario as a params file, each line with its meaning.

        Parameters
        ----------
        always
            Fields to write even where they are at their defaults.
        about
            A comment for the first line.

        Raises
        ------
        UserError
            The variant is a function of yours, which a file cannot name.

        >>> print(Scenario(seed=7).as_yaml(), end="")
        seed: 7                         # seed of everything that is random
        """
        try:
            resolve(self.variant)
        except UserError:
            hint = "A params file cannot name a function of yours."
            raise unknown("variant", self.variant, VARIANTS, hint) from None
        values = {name: getattr(self, name) for name in flat_fields() if name in always} | self.changed()
        plain = {name: p for name, p in flat_fields().items() if not isinstance(values.get(name), dict)}
        notes = {name: p.help + (p.unit and f" ({p.unit})") for name, p in plain.items()}
        return (f"# {about}\n\n" if about else "") + yaml_lines(values, notes)


# --- what is known of a field ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One flat field as sliders, notebooks' parameter cells and help texts need it."""

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
    """The range of its slider, i.e. the usual values; the allowed range may be wider."""

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return _listed(self.choices)
        if self.low is None or self.high is None:
            return "true, false" if self.type is bool else ""
        return f"{self.low:g} … {self.high if isinstance(self.high, int) else format(self.high, 'g')}"

    def allows(self, *, least: bool) -> str:
        """Return what may follow "it must be", with the unit; `least` tells that the value was too low."""
        text = f"at least {self.low:g}" if least else f"{'one of ' if self.choices else ''}{self.allowed}"
        return f"{text} ({self.unit})" if self.unit else text


@cache
def flat_fields() -> Mapping[str, Parameter]:
    """Return every plain parameter by name, in order: what a flat YAML file, a slider or ``--set`` may give."""
    out = {}
    for name, field in Scenario.model_fields.items():
        extra: Any = field.json_schema_extra
        if extra is None:
            continue
        low, high = (next((getattr(m, end) for m in field.metadata if hasattr(m, end)), None) for end in ("ge", "le"))
        extra = extra | {"source": extra["source"].format(name.removeprefix("khugepaged_")), "log": bool(extra["log"])}
        if not extra["slider"] and low is not None and high is not None and high <= 1000:
            extra["slider"] = (low, high)
        extra |= {"low": low, "high": high, "choices": extra["choices"] or get_args(field.annotation)}
        words = " ".join((field.description or "").split())
        out[name] = Parameter(name, type(field.default), field.default, help=words, **extra)
    return out


@cache
def _validator(name: str) -> TypeAdapter[Any]:
    annotation: Any = Annotated[Scenario.model_fields[name].annotation, Scenario.model_fields[name]]
    return TypeAdapter(annotation, config=FINITE)


def check_value(name: str, value: Any) -> Any:
    """Return one value of a field of `Scenario` in its unit, checked as far as that does not depend on other fields.

    Raises
    ------
    UserError
        The field does not take the value.
    """
    value = in_units(Scenario, {name: value})[name]
    try:
        _validator(name).validate_python(value)
    except ValidationError as error:
        raise explain(error, name) from None
    return value


SETTABLE: dict[str, tuple[Any, ...]] = {
    name: p.choices or (p.low, p.high)
    for name, p in flat_fields().items()
    if p.kind == "knob" and name not in ("swap_mib", "khugepaged_alloc_sleep_millisecs")
}
SETTABLE |= dict.fromkeys(("advisor_max_cpu", "advisor_target_scan_time"), (0, UINT_MAX))
SETTABLE["variant"] = (*VARIANTS, *KSMD_VARIANTS)
"""Knobs that an event or a policy may set while the scenario runs: their bounds, or their values. sysfs takes any
advisor_max_cpu; advisor_target_scan_time = 0 results in EINVAL."""
KSM_KNOBS = [name for name, field in flat_fields().items() if field.source.startswith("sysfs ksm/")]
"""The knobs in /sys/kernel/mm/ksm."""


# --- mistakes -------------------------------------------------------------------------------------------------------


def explain(error: ValidationError, *prefix: str, of: type[pydantic.BaseModel] | None = None) -> UserError:
    """Return pydantic's findings about a scenario, or another model, as one `UserError`; unknown keys come first."""
    ordered = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    found = [_translated(e, (*prefix, *e["loc"]), of) for e in ordered]
    first, *others = {str(e): e for e in found}.values()
    first.others = tuple(others)
    return first


def _translated(e: Mapping[str, Any], loc: tuple[int | str, ...], of: type[pydantic.BaseModel] | None) -> UserError:
    """Return one of pydantic's findings with place, parameter, value, what is allowed, and the way out."""
    where, model, path = _place(loc) if of is None else ([], of, [*loc])
    kind, ctx, name = e["type"], e.get("ctx", {}), " ".join(map(str, path))
    meaning = " ".join((getattr(model.model_fields.get(name), "description", None) or "").split())
    error: UserError
    if kind == "value_error":
        error, *index = ctx["error"].args
        where += [*path, *index]
    elif kind == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        error = unknown("key", name, known, "" if of else "`mmlab params` explains every parameter.")
    elif kind == "union_tag_invalid":
        error = unknown("op", ctx["tag"], EVENTS) if loc[0] == "events" else unknown("policy", ctx["tag"], TUNERS)
    elif kind in ("missing", "union_tag_not_found"):
        tag = "name" if where == ["policy"] else "op"
        error = UserError(f"is missing ({meaning})" if meaning else "is missing", parameter=name or tag)
    else:
        allowed = e["msg"].partition(" be ")[2].partition(", unable to")[0]
        if of is None and name in flat_fields():
            allowed = flat_fields()[name].allows(least=kind == "greater_than_equal")
        hint = written(units(model).get(name, "")) if isinstance(e["input"], str) else ""
        hint = f"{meaning[0].upper()}{meaning[1:]}." if kind == "string_pattern_mismatch" else hint
        error = _refusal(name, e["input"], _PROBLEMS.get(kind.split("_")[0], ""), allowed, hint)
    error.where = " ".join(map(str, where)) or error.where
    return error


_PROBLEMS = {"int": "is not a whole number", "float": "is not a number"}
_PROBLEMS |= dict.fromkeys(("greater", "less", "finite"), "is out of range")


def _place(loc: tuple[int | str, ...]) -> tuple[list[int | str], type[pydantic.BaseModel], list[int | str]]:
    """Return where a finding is: the element of a list, its model, and the path of the field within it."""
    model: type[pydantic.BaseModel] = Scenario
    kinds = ("int", "str", "constrained-int", "literal")  # pydantic names the kind of a union's member, too
    where, path = [], [x for x in loc if str(x).partition("[")[0] not in kinds]
    if path[:1] == ["policy"]:  # pydantic names the kind of union and the class before the field
        where, model, path = path[:1], TUNERS.get(str(path[2]), Scenario) if path[2:] else Scenario, path[3:]
        return (where, model, path) if path or loc[1:] == ("settings",) else ([], Scenario, where)
    if len(path) > 1 and path[0] in ("events", "process_list"):
        where, path, model = path[:2], path[2:], ProcessSpec
        if where[0] == "events" and path:
            model, path = EVENTS[str(path[0])], path[1:]
    if len(path) > 1 and path[0] == "after":
        where, path, model = [*where, "after"], path[1:], After
    return where, model, path
