"""What kernel releases do differently: a row a difference, and the only place where a release is compared.

Each row becomes a field of `Machine.state`, 1 in the releases that have the difference. Compiled code asks that flag,
never a release. A new row is one function here, and one `if` where the rule acts.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from mmlab.errors import UserError
from mmlab.params import read_yaml

RELEASES = {
    "6.1": "6.1.192",
    "6.12": "6.12.117",
    "6.18": "6.18.44",
    "6.19": "6.19.14",
    "7.0": "7.0.13",
    "7.1": "7.1.13",
    "7.2": "7.2.13",
    "7.3": "7.3.4",
}
"""Series that the model was held against, and the newest stable release of each: the one that a series stands for."""
SERIES = (*(f"6.{minor}" for minor in range(1, 20)), *(f"7.{minor}" for minor in range(4)))
"""Every series whose rules are known: those between two of `RELEASES` have the rows that began by then."""
DISTRIBUTIONS: dict[str, list[str]] = read_yaml(Path(__file__).with_name("distributions.yaml"))
"""Distributions' names → the series whose rules they get, why, and the source. Backports are not known."""
PATTERN = rf"(({'|'.join(map(re.escape, SERIES))})(\.\d+)?|{'|'.join(map(re.escape, DISTRIBUTIONS))})"
"""What a scenario's `kernel` looks like: a series, a stable release of one such as 6.18.15, or a distribution."""


@dataclass(frozen=True)
class Difference:
    """One difference between releases.

    Attributes
    ----------
    name
        The flag in `Machine.state`.
    rule
        The rule that differs.
    since
        The first release with the difference.
    source
        The commit that made it, and the release on which it was measured.
    change
        What changes.
    until
        Releases without it again: the first one of each series, the last for all that follow.
    from_text_only
        No recording shows it.
    """

    name: str
    rule: str
    since: tuple[int, ...]
    source: str
    change: str
    until: tuple[tuple[int, ...], ...] = ()
    from_text_only: bool = False

    @property
    def releases(self) -> str:
        """The releases that have the difference, in words."""
        ends = [".".join(map(str, end)) for end in self.until]
        return f"since {'.'.join(map(str, self.since))}" + (f", not from {', '.join(ends)} on" if ends else "")

    def holds(self, of: tuple[int, ...]) -> int:
        """Return 1 if a release such as (6, 18, 44) has the difference, else 0."""
        gone = any(end <= of and (end == self.until[-1] or end[:2] == of[:2]) for end in self.until)
        return int(of >= self.since and not gone)


DIFFERENCES: dict[str, Difference] = {}
"""Every row by name."""


def _row(
    rule: str, since: tuple[int, ...], source: str, *until: tuple[int, ...], from_text_only: bool = False
) -> Callable[[Callable[[], None]], Difference]:
    """Make a function a row: its name is the flag's, its docstring the change."""

    def add(row: Callable[[], None]) -> Difference:
        name, change = row.__name__, " ".join((row.__doc__ or "").split())
        DIFFERENCES[name] = Difference(name, rule, since, source, change, until, from_text_only)
        return DIFFERENCES[name]

    return add


@_row("ksm-scan S25", (6, 7), '5e924ff54d08 mm/ksm: add "smart" page scanning mode', from_text_only=True)
def smart_scan_exists() -> None:
    """ksmd has smart scan. Before, it visits every page in every full scan, whatever `smart_scan` says."""


@_row("ksm-scan S29", (6, 8), "4e5fa4f5eff6 mm/ksm: add ksm advisor", from_text_only=True)
def advisor_exists() -> None:
    """ksmd has an advisor. Before, `advisor_mode` has no effect."""


@_row("ksm-scan S14", (6, 1), "range-walk function to jump over holes", (6, 12, 117), (6, 18), from_text_only=True)
def scan_looks_up_each_page() -> None:
    """ksmd looks up each page of a VMA by itself, so that a hole costs time page by page. Otherwise, a walk jumps over
    what has no page table."""


@_row("ksm-merge F3", (6, 13), "1ced09e0331f mm: allocate THP on hugezeropage wp-fault; measured on 6.18.44")
def wp_fault_allocates_thp() -> None:
    """A write to the huge zeropage allocates a huge page. Before, it splits the PMD and allocates one small page."""


@_row("thp-split H10", (6, 14), "6375e95f381e mm: pgtable: reclaim empty PTE page in madvise(MADV_DONTNEED); 6.18.44")
def dontneed_frees_page_table() -> None:
    """MADV_DONTNEED of a whole block frees its page table, so the next fault may allocate a huge page there."""


@_row("thp-split W6", (6, 15), "354dffd29575 mm: support batched unmap for lazyfree large folios; 6.18.44")
def lazyfree_goes_at_once() -> None:
    """Reclaim of a lazy large folio unmaps all of its entries at once or, if one is dirty, none. Before, it unmaps them
    one by one up to the first dirty one, so the folio counts as partially mapped."""


@_row("thp-split W6", (6, 18, 17), "mm/rmap: fix incorrect pte restoration for lazyfree folios; 6.18.44")
def lazyfree_runs_are_alike() -> None:
    """What reclaim unmaps at once of a lazy large folio is a run of entries that are all writable or all not, up to the
    first run with a dirty one. Before, all of its entries are one run."""


@_row("ksm-merge F7", (6, 15), "mm: Copy-on-Write (COW) reuse support for PTE-mapped THP; 6.18.44")
def large_folio_reused() -> None:
    """A write to a page of a large folio that only this process maps any more, by several entries, is done in place.
    Before, the page is copied."""


@_row("thp-split W5", (6, 15), "mm/rmap: basic MM owner tracking for large folios (!hugetlb); 6.18.44")
def shared_is_exact() -> None:
    """Whether several processes map a large folio is known. Before, it is guessed from the mappings of its first page
    and their number."""


@_row("thp-split W6", (6, 11), "avoid split lazyfree THP; 6.18.15 and 7.2.13", (6, 12, 117), (6, 18, 44), (7, 3))
def lazy_pmd_goes_whole() -> None:
    """Reclaim of a lazy THP that a huge PMD maps clears the PMD or, if it is dirty, leaves it. Otherwise, it splits the
    PMD first."""


@_row("thp-split Q3", (6, 18), "mm/rmap: improve mlock tracking for large folios; 6.18.15, 7.3.4")
def cut_thp_stays_mlocked() -> None:
    """An mlocked THP stays mlocked when its PMD is split, until a page of it leaves the locked area. Before, the split
    ends the mlock."""


@_row("thp-split Q3", (6, 18), "mm: skip mlocked THPs that are underused early in deferred_split_scan(); 6.18.44")
def shrinker_skips_mlocked() -> None:
    """The deferred split shrinker drops an mlocked THP that is not partially mapped. Before, it splits the THP in vain
    if it is underused."""


@_row("khugepaged K6", (6, 17), "khugepaged: optimize __collapse_huge_page_copy_succeeded() by PTE batching; 6.18.44")
def collapse_goes_by_runs() -> None:
    """A collapse unmaps the pages of a large folio by runs of consecutive entries. Before, it unmaps them one by one,
    so a folio that goes as a whole counts as partially mapped."""


@_row("khugepaged K4", (6, 18), "mm: enable khugepaged anonymous collapse on non-writable regions; 6.18.44")
def collapse_needs_no_writable() -> None:
    """A range without a writable entry may be collapsed."""


@_row("thp-split H14", (6, 17), "mm/mremap: permit mremap() move of multiple VMAs; measured on 6.18.44")
def mremap_moves_several() -> None:
    """mremap of a range with several VMAs moves each of them. Before, it fails once it has unmapped its new place."""


@_row("mthp E2", (6, 8), "19eaf44954df mm: thp: support allocation of anonymous multi-size THP")
def faults_take_sizes() -> None:
    """A write fault takes the largest enabled size that fits. Before, folios are small pages or huge pages."""


@_row("khugepaged K1", (7, 1), "measured on 7.1.13 and 7.3.4, not on 7.0.13")
def scan_counts_entries() -> None:
    """A range costs khugepaged the entries that it looked at, and 1 if it is huge or has no page table. Before, each
    costs as much as a huge page has pages."""


@_row("khugepaged K4", (7, 1), "mm: khugepaged: skip lazy-free folios; read in 7.2.13", from_text_only=True)
def collapse_skips_lazyfree() -> None:
    """khugepaged gives up a range with a page that MADV_FREE marked and that was not written since."""


@_row("khugepaged K11", (7, 2), "measured on 7.2.13 and 7.3.4, EINVAL on 6.19.14, 7.0.13 and 7.1.13")
def part_of_block_is_done() -> None:
    """MADV_COLLAPSE of a part that begins and ends in one block does nothing and succeeds. Before, it is an error."""


@_row("mthp E2", (7, 2), "khugepaged: mTHP support; the figures of kernel-7 7.6, no recording", from_text_only=True)
def collapse_to_sizes() -> None:
    """khugepaged collapses to smaller sizes too, where they are enabled."""


@_row("thp-split Q1", (7, 2), "mm: switch deferred split shrinker to list_lru; read in 7.2.13", from_text_only=True)
def queue_per_node() -> None:
    """Each NUMA node has a deferred split queue of its own, and the shrinker scans each. Before, there is one."""


@_row("ksm-merge M5", (7, 3), "a bug; reproduced on 7.3.4, not on 7.2.13")
def same_folio_is_old() -> None:
    """ksmd compares the folio that a visit began with, even if the visit has split it meanwhile. If the match is its
    first page, that page stays locked for good and the kernel reports a bad page state."""


@_row("thp-split W7", (7, 3), "do_swap_page(), read in 7.3.4", from_text_only=True)
def swapin_keeps_shared() -> None:
    """A page that was shared when it was swapped out is not exclusive when it comes back, though nobody else uses it:
    the next write makes it so. Before, it is exclusive at once."""


@_row("ksm-scan S20", (7, 3), "measured on 7.3.4, not in 7.2.13")
def forget_age() -> None:
    """An item that leaves the stable tree, or whose merge is undone, loses its checksum, age and skips, and smart scan
    never skips one that is still attached. Before, an item keeps all three for as long as it exists."""


def release(kernel: str) -> tuple[int, ...]:
    """Return the release that a name stands for, such as (6, 18, 44): a series is its newest known one.

    Raises
    ------
    UserError
        The name stands for none whose rules are known.
    """
    if re.fullmatch(PATTERN, kernel):
        series, *_ = DISTRIBUTIONS.get(kernel, (kernel,))
        return _numbers(RELEASES.get(series, series))
    known = list(RELEASES)
    number = re.match(r"\d+\.\d+", kernel)
    if number:
        place = sum(_numbers(name) <= _numbers(number[0]) for name in known)
        near = known[max(0, min(place, len(known) - 1) - 1) :][:2]
    else:
        near = _nearest(kernel, [*known, *DISTRIBUTIONS])
    names = ", ".join(differing(*near)) or "nothing that the model knows of"
    hint = f"The nearest are {near[0]} and {near[1]}; between them differs: {names}."
    others = f"a stable release such as {RELEASES['6.18']}, or one of {', '.join(DISTRIBUTIONS)}"
    allowed = f"{SERIES[0]} to {SERIES[-1]}, {others}"
    raise UserError("is not a known kernel", parameter="kernel", value=kernel, allowed=allowed, hint=hint)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split(".")))


def _nearest(name: str, known: list[str]) -> list[str]:
    return sorted(get_close_matches(name, known, n=2, cutoff=0), key=known.index)


def differing(one: str, other: str) -> list[str]:
    """Return the names of the rows that differ between two kernels."""
    return [name for name, on in flags(one).items() if on != flags(other)[name]]


def flags(kernel: str, changes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the flag of each difference, 0 or 1, for a kernel such as "6.18" or "6.12.117".

    Parameters
    ----------
    kernel
        A series or a stable release.
    changes
        Rows that are switched, whatever the kernel has: their name → 0 or 1.

    Raises
    ------
    UserError
        The kernel or a row is unknown.
    """
    of = release(kernel)
    for name in changes or ():
        if name not in DIFFERENCES:
            near = " or ".join(_nearest(name, list(DIFFERENCES)))
            allowed = f"one of {', '.join(DIFFERENCES)}"
            hint = f"Did you mean {near}?"
            raise UserError("is not known", parameter="kernel_changes", value=name, allowed=allowed, hint=hint)
    return {name: row.holds(of) for name, row in DIFFERENCES.items()} | dict(changes or {})
