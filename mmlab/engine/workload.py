"""The workload: the pages that a scenario starts with, their contents, folio sizes and advice.

Everything is arithmetic over whole arrays: 1 GiB takes some milliseconds. A page's content is an integer key whose
order is the page's order in memcmp; equal keys are equal pages; 0 is the page of all zeroes. Generated keys start at
2^32 (duplicate groups first, then unique contents), so small keys in events and explicit contents never equal them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmlab.kernel.versions import flags
from mmlab.scenario import THP_ORDER, ProcessSpec, Ranges, Scenario

FIRST_KEY = 1 << 32
"""Keys of generated contents start just above."""
BIMODAL_EMPTY = 0.9991
"""Share of the zero-filled pages that lie in nearly empty THPs: 680,884 of 681,497 pages on the measured machine
(A. Zhu, THP shrinker, 2022: 1,331 THPs with 0-50 used pages, 400 with 460-512, and 21 in between)."""
BIMODAL_BETWEEN = 21 / 421
"""Share of the other THPs that hold the rest of the zero-filled pages."""
KEPT_PAGES = 1 << 19
"""Images of up to this many pages are kept for the next run."""


@dataclass(frozen=True)
class Image:
    """The region of one process at the start; each array has one element for each page.

    Attributes
    ----------
    keys
        Contents (uint64), 0 = zero-filled.
    order
        Order of the folio that the page is allocated in (uint8): 0, 2 … 8, or 9 for a THP, whatever ``pages_per_thp``
        is (mthp E1, E18).
    born_huge
        MADV_HUGEPAGE in force while it is populated.
    huge
        MADV_HUGEPAGE in force once populated.
    mergeable
        MADV_MERGEABLE in force at the start.
    dealt
        Pages that have contents; the others are holes.
    touched
        Those of them that are populated at the start.
    gaps
        `Scenario.gaps`: the image has one block for each.
    """

    keys: NDArray[np.uint64]
    order: NDArray[np.uint8]
    born_huge: NDArray[np.bool_]
    huge: NDArray[np.bool_]
    mergeable: NDArray[np.bool_]
    dealt: NDArray[np.bool_]
    touched: NDArray[np.bool_]
    gaps: Ranges = field(default=(), kw_only=True)


NOTHING = Image(np.zeros(0, np.uint64), np.zeros(0, np.uint8), *[np.zeros(0, np.bool_)] * 5)
"""The image of no pages."""


class _Process(NamedTuple):
    spec: ProcessSpec
    pages: int
    holes: Ranges
    gaps: Ranges


def places(pages: Any, gaps: Ranges, size: int) -> Any:
    """Return where pages of a process, an integer or an array, are in its image: one block stands for a gap."""
    return pages - sum(np.clip(pages - (first + 1) * size, 0, (end - first - 1) * size) for first, end in gaps)


def build(scenario: Scenario) -> list[Image]:
    """Return the start image of every process.

    Raises
    ------
    UserError
        The simulation would not fit into memory.

    Examples
    --------
    >>> image, = build(Scenario(memory_mib=2, zero_fraction=0.75, thp_coverage=0))
    >>> int((image.keys == 0).sum()), int(image.order.max())
    (384, 0)
    """
    scenario.check_memory()
    few = scenario.total_pages <= KEPT_PAGES and len(scenario.specs) <= 16
    images = _images if few else _images.__wrapped__
    sizes = flags(scenario.kernel, scenario.kernel_changes)["faults_take_sizes"]
    orders = tuple(order for order in scenario.enabled_orders if sizes or order == THP_ORDER)
    memory = [(spec, scenario.pages_of(spec), scenario.holes_of(spec)) for spec in scenario.specs]
    processes = tuple(_Process(*of, gaps) for of, gaps in zip(memory, scenario.gaps, strict=True))
    return list(images(processes, scenario.images, scenario.pages_per_thp, scenario.seed, scenario.late, orders))


@lru_cache(maxsize=2)
def _images(
    processes: tuple[_Process, ...], kinds: int, size: int, seed: int, late: bool, orders: tuple[int, ...]
) -> tuple[Image, ...]:
    """Return the images, kept for the next run of the same memory under another variant: half of a run's set-up."""
    groups = max(p.spec.duplicate_groups or 0 for p in processes)
    contents, unique = [], FIRST_KEY + 1 + kinds * groups
    for index, p in enumerate(processes):
        first = FIRST_KEY + 1 + index % kinds * groups, unique
        keys = _from_runs(p, size) if p.spec.contents is not None else _generated(p, size, (seed, 0, index), *first)
        unique = max(unique, int(keys.max()) + 1) if p.spec.contents is None else unique
        contents.append(keys)
    mixed = [keys for keys, p in zip(contents, processes, strict=True) if p.spec.key_order == "random"]
    _shuffle(mixed, FIRST_KEY + kinds * groups, seed)
    images = tuple(_image(p, size, late, orders, keys) for p, keys in zip(processes, contents, strict=True))
    for image in images:
        for array in filter(lambda value: isinstance(value, np.ndarray), vars(image).values()):
            array.setflags(write=False)
    return images


def _from_runs(p: _Process, size: int) -> NDArray[np.uint64]:
    """Return the keys of ``[[first, count, step], …]``, modulo 2^64 so that descending runs need no special case."""
    runs = [(0, n, 0) if first == "hole" else (first, n, step) for first, n, step in p.spec.contents or ()]
    first = np.array([r[0] for r in runs], dtype=np.uint64)
    count = np.diff(places(np.cumsum([r[1] for r in runs]), p.gaps, size), prepend=0)
    step = np.array([r[2] % 2**64 for r in runs], dtype=np.uint64)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    keys: NDArray[np.uint64] = np.repeat(first, count) + within.astype(np.uint64) * np.repeat(step, count)
    return keys


def _generated(
    p: _Process, size: int, seed: tuple[int, ...], first_shared: int, first_unique: int
) -> NDArray[np.uint64]:
    """Return the keys of a process described by workload fields, shared and unique ones, which count up from these."""
    spec, lead, pages = p.spec, p.spec.lead(size), p.holes[0][0] if p.holes else p.pages
    rng = np.random.default_rng(seed)
    unique = np.arange(pages) >= (spec.stray_zero_pages or 0)
    unique[lead:] = ~_zero_pages(spec, pages - lead, size, rng)

    eligible = lead + np.flatnonzero(unique[lead:])
    keys = np.zeros(places(p.pages, p.gaps, size), dtype=np.uint64)
    if dealt := round((spec.duplicate_fraction or 0.0) * eligible.size):
        duplicates = np.sort(eligible[_duplicates(spec.duplicate_layout, eligible // size, dealt)])
        keys[duplicates] = first_shared + _dealt(dealt, spec.duplicate_groups or 1, spec.duplicate_skew or 0.0)
        unique[duplicates] = False
    keys[:pages][unique] = first_unique + np.arange(int(unique.sum()), dtype=np.uint64)
    return keys


def _duplicates(layout: str | None, blocks: NDArray[np.int64], dealt: int) -> NDArray[np.int64]:
    """Return which of the pages that lie in these blocks are duplicates: `dealt` of them, in the given layout."""
    order = np.arange(blocks.size)
    if layout == "blocks":  # blocks in the order of their reversed bits, so that the first few are spread evenly
        width = int(blocks.max()).bit_length()
        rank = np.array([int(f"{block:0{width}b}"[::-1], 2) for block in range(int(blocks.max()) + 1)])
        order = np.argsort(rank[blocks], kind="stable")
    elif layout != "clustered":
        order = np.flatnonzero(np.diff(np.arange(blocks.size + 1, dtype=np.int64) * dealt // blocks.size))
    return order[:dealt]


def _dealt(pages: int, groups: int, skew: float) -> NDArray[np.uint64]:
    """Return which content each of the duplicates has, from 0: round robin, each as often as the skew lets it."""
    if not skew:
        return np.arange(pages, dtype=np.uint64) % np.uint64(groups)
    shares = np.arange(1, groups + 1) ** -skew
    ends = np.round(np.cumsum(shares) / shares.sum() * pages).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    content = np.repeat(np.arange(groups, dtype=np.uint64), counts)
    return content[np.lexsort((content, np.arange(pages) - np.repeat(ends - counts, counts)))]


def _zero_pages(spec: ProcessSpec, pages: int, size: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which pages are zero-filled: a share ``zero_fraction`` of them, in the given ``layout``."""
    zeros = round((spec.zero_fraction or 0.0) * pages)
    blocks = pages // size
    if spec.layout == "random":
        out = np.zeros(pages, dtype=np.bool_)
        out[rng.permutation(pages)[:zeros]] = True
        return out
    if spec.layout == "bimodal":
        return _bimodal(zeros, blocks, size, rng)
    share = np.diff(np.arange(blocks + 1, dtype=np.int64) * zeros // max(1, blocks))[:, None]  # of each block, ±1
    at = np.arange(size, dtype=np.int64)[None, :]
    if spec.layout == "zero-first":
        return (at < share).ravel()
    if spec.layout == "zero-last":
        return (at >= size - share).ravel()
    return ((at + 1) * share // size > at * share // size).ravel()


def _bimodal(zeros: int, blocks: int, size: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Put nearly all zero-filled pages into nearly empty blocks and the rest into a few others, in random order."""
    out = np.zeros((blocks, size), dtype=np.bool_)
    order = rng.permutation(blocks)
    empty = zeros // size
    in_empty = min(empty * size, max(round(zeros * BIMODAL_EMPTY), zeros - (blocks - empty) * size))
    rest = zeros - in_empty
    between = min(blocks - empty, max(round((blocks - empty) * BIMODAL_BETWEEN), -(-rest // size)))
    for chosen, count in ((order[:empty], in_empty), (order[empty : empty + between], rest)):
        part = np.zeros(chosen.size * size, dtype=np.bool_)
        part[rng.permutation(part.size)[:count]] = True
        out[chosen] = part.reshape(-1, size)
    return out.ravel()


def _shuffle(contents: list[NDArray[np.uint64]], above: int, seed: int) -> None:
    """Shuffle the unique contents (keys larger than ``above``) of these processes into a random memcmp order."""
    if not contents:
        return
    masks = [keys > above for keys in contents]
    pool = np.concatenate([keys[mask] for keys, mask in zip(contents, masks, strict=True)])
    dealt = np.random.default_rng((seed, 1)).permutation(pool)
    for keys, mask in zip(contents, masks, strict=True):
        keys[mask], dealt = np.split(dealt, [mask.sum()])


def _image(p: _Process, size: int, late: bool, enabled: tuple[int, ...], keys: NDArray[np.uint64]) -> Image:
    """Return the image of a process: its keys with the folios and advice that its specification asks for.

    Without `orders`, memory with MADV_HUGEPAGE has folios of the largest `enabled` orders that fit (mthp E2).
    """
    spec, pages = p.spec, keys.size
    order = np.zeros(pages, dtype=np.uint8)

    def of(ranges: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
        """Return which pages are in one of these ranges, first and count."""
        found = np.zeros(pages, dtype=np.bool_)
        for first, count in ranges:
            found[slice(*places(np.array([first, first + count]), p.gaps, size))] = True
        return found

    huge = of(spec.thp or ())
    if spec.thp is None and spec.contents is None:
        blocks = ((p.holes[0][0] if p.holes else p.pages) - spec.lead(size)) // size
        n = int((spec.thp_coverage or 0.0) * blocks + 1e-9)
        covered = slice(spec.lead(size), spec.lead(size) + n * size if n < blocks else None)
        if spec.folio_order in (None, THP_ORDER):
            huge[covered] = True
        else:
            order[covered] = spec.folio_order
    if spec.orders is not None:
        for first, count, small in spec.orders:
            order[of([(first, count)])] = small
    else:
        for large in enabled:
            n = min(1 << large, size)
            whole = huge[: pages // n * n].reshape(-1, n).all(axis=1)  # a folio needs its whole aligned range
            order[: whole.size * n][np.repeat(whole, n)] = large
    mergeable = of(() if late else ((0, p.pages),) if spec.mergeable is None else spec.mergeable)
    dealt = ~of((first, end - first) for first, end in p.holes)
    touched = dealt & of([(0, round((spec.touched_fraction or 0.0) * p.pages))])
    born_huge = huge.copy() if spec.orders is None else order == THP_ORDER
    if spec.nohugepage_after_populate:
        huge[:] = False
    return Image(keys, order, born_huge, huge, mergeable, dealt, touched, gaps=p.gaps)
