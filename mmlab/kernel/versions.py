"""What kernel releases do differently: a row a difference, and the only place where a release is compared.

Each row becomes a field of `Machine.state`, 1 from the release on that brought the difference. Compiled code asks that
flag, never a release. A new row is one function here, and one `if` where the rule acts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DIFFERENCES", "RELEASES", "Difference", "flags"]

RELEASES = ("6.1", "6.12", "6.18")
"""Series that the model was held against. A scenario's `kernel` is one of them, or a stable release such as 6.18.44."""


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
    """

    name: str
    rule: str
    since: tuple[int, ...]
    source: str
    change: str


DIFFERENCES: dict[str, Difference] = {}
"""Every row by name."""


def _row(rule: str, since: tuple[int, ...], source: str) -> Callable[[Callable[[], None]], Difference]:
    """Make a function a row: its name is the flag's, its docstring the change."""

    def add(row: Callable[[], None]) -> Difference:
        name = row.__name__
        DIFFERENCES[name] = Difference(name, rule, since, source, " ".join((row.__doc__ or "").split()))
        return DIFFERENCES[name]

    return add


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


@_row("thp-split Q3", (6, 18), "mm: skip mlocked THPs that are underused early in deferred_split_scan(); 6.18.44")
def shrinker_skips_mlocked() -> None:
    """The deferred split shrinker drops an mlocked THP that is not partially mapped. Before, it splits the THP in vain
    if it is underused."""


@_row("khugepaged K4", (6, 18), "mm: enable khugepaged anonymous collapse on non-writable regions; 6.18.44")
def collapse_needs_no_writable() -> None:
    """A range without a writable entry may be collapsed."""


def flags(kernel: str) -> dict[str, int]:
    """Return the flag of each difference, 0 or 1, for a release such as "6.18" or "6.12.117"."""
    release = tuple(map(int, kernel.split(".")))
    return {name: int(release >= row.since) for name, row in DIFFERENCES.items()}
