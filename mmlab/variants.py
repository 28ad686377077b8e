"""The fix variants: who may remap a zero-filled page to the shared zeropage when a folio is split.

Each variant is one row: a name, who proposed it, where it is argued, and one pure predicate over the split's context
(fix-variants 5.1). The predicate is evaluated once for each of its 32 contexts into a small table that the compiled
model looks things up in, so a variant of your own is a plain Python function:

>>> def never_in_mergeable_memory(c: SplitContext) -> bool:
...     return not c.mergeable
>>> resolve(never_in_mergeable_memory).name
'never_in_mergeable_memory'

The base condition holds for every variant and is the model's: the page is order 0, all zero and not mlocked, the VMA is
not VM_LOCKED (thp-split Z1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from mmlab.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CALLERS", "VARIANTS", "SplitContext", "Variant", "possible", "resolve", "truth_table"]

CALLERS = ("ksm", "underused", "partially_mapped", "other")
"""Who split the folio: ksmd; the shrinker, by what made it split; anything else (migration, reclaim, debugfs, …)."""


@dataclass(frozen=True)
class SplitContext:
    """What a variant may look at when it decides about one mapping of one page, after a successful split."""

    caller: str
    """one of CALLERS"""
    mergeable: bool
    """the VMA of this mapping has VM_MERGEABLE"""
    ksm_running: bool
    """`run` is 1 at the time of the split"""
    shrink_underused: bool
    """`shrink_underused` is on at the time of the split"""

    @property
    def shrinker(self) -> bool:
        """The deferred split shrinker split the folio, for whatever reason."""
        return self.caller in ("underused", "partially_mapped")


Predicate = Callable[[SplitContext], bool]


@dataclass(frozen=True)
class Variant:
    """One fix variant; `predicate` says whether the zero-filled page becomes the shared zeropage (fix-variants 5.1)."""

    name: str
    predicate: Predicate
    who: str = ""
    where: str = ""
    summary: str = ""
    early_stop: bool = False
    """ksmd stops processing a page whose merge with the zeropage failed because a split has put the zeropage there"""

    def table(self) -> list[int]:
        """The predicate for every context, at caller * 8 + mergeable * 4 + KSM running * 2 + shrink_underused."""
        return [
            int(bool(self.predicate(SplitContext(c, *f)))) for c in CALLERS for f in product((False, True), repeat=3)
        ]


_THREAD = "RFC 'restrict zero-page remapping to underused THP splits', May 2026"
_V1 = "v1 series 'Tighten control over zero-page remapping', 9 June 2026"

VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant(
            "legacy",
            lambda _: False,
            "kernels before b1f202060afe",
            "asked for by N. Pache, 12 May 2026",
            "a split never remaps",
        ),
        Variant(
            "mainline",
            lambda _: True,
            "Y. Zhao, U. Arif",
            "b1f202060afe, Linux 6.12",
            "every split of an anonymous folio remaps",
        ),
        Variant("rfc-underused-only", lambda c: c.shrinker, "N. Pache", _THREAD, "only splits by the shrinker remap"),
        Variant(
            "rfc-underused-strict",
            lambda c: c.caller == "underused",
            "a stricter reading of the RFC",
            _THREAD,
            "only splits that the underused test asked for remap",
        ),
        Variant(
            "ksm-opt-out",
            lambda c: c.caller != "ksm",
            "D. Hildenbrand (option 1), L. Yang, N. Pache",
            _THREAD + " and the replies of 9 June",
            "KSM's own splits do not remap",
        ),
        Variant(
            "v1-mergeable",
            lambda c: not (c.ksm_running and c.mergeable),
            "D. Hildenbrand (option 2), N. Pache",
            _V1 + ", 2/3",
            "no remap in mergeable VMAs while KSM runs",
        ),
        Variant(
            "v1-shrinker-gate",
            lambda c: c.shrink_underused,
            "D. Hildenbrand (option 3), N. Pache",
            _V1 + ", 3/3",
            "no remap while shrink_underused is off",
        ),
        Variant(
            "v1-series",
            lambda c: c.shrink_underused and not (c.ksm_running and c.mergeable),
            "N. Pache",
            _V1 + ", whole",
            "v1-mergeable and v1-shrinker-gate together",
        ),
        Variant(
            "skip-zeropage",
            lambda _: True,
            "xu xin",
            "reply of 9 June 2026 to the v1 series",
            "as mainline, but ksmd stops at a page that a split has turned into the zeropage",
            early_stop=True,
        ),
    )
}
"""Every variant by name, in the order in which tables and figures show them."""


def resolve(variant: str | Variant | Predicate) -> Variant:
    """A variant from its name, or from a predicate of your own.

    Raises
    ------
    UserError
        The name is not one of VARIANTS.
    """
    if isinstance(variant, Variant):
        return variant
    if callable(variant):
        name, summary = getattr(variant, "__name__", "own"), (variant.__doc__ or "").strip()
        return Variant(name, variant, "you", "your own code", summary)
    if variant in VARIANTS:
        return VARIANTS[variant]
    raise unknown("variant", variant, VARIANTS, "Or pass a function of your own.")


def possible(context: SplitContext) -> bool:
    """Return whether a context can happen: ksmd splits only while it runs, since `run` changes between batches (S6)."""
    return context.ksm_running or context.caller != "ksm"


def truth_table(variants: Iterable[str | Variant | Predicate] = tuple(VARIANTS)) -> pd.DataFrame:
    """Return every answer of some variants: one row for each of the 32 contexts (index), a column a variant, booleans.

    Raises
    ------
    UserError
        A predicate raised, returned something else than true or false, or gave two answers to the same question.

    Examples
    --------
    >>> truth_table(["mainline", "ksm-opt-out"]).sum().to_dict()
    {'mainline': 32, 'ksm-opt-out': 24}
    """
    import pandas as pd

    contexts = [SplitContext(c, *flags) for c in CALLERS for flags in product((False, True), repeat=3)]
    columns = {v.name: [_answer(v, c) for c in contexts] for v in map(resolve, variants)}
    return pd.DataFrame(columns, index=pd.Index(contexts, dtype=object), dtype=bool)


def _answer(variant: Variant, context: SplitContext) -> bool:
    try:
        answers = [variant.predicate(context) for _ in range(2)]
    except Exception as error:
        problem = f"it raised {type(error).__name__}: {error}, when asked about {context}"
        hint = f"A predicate may look at {', '.join(vars(context))} and shrinker."
        raise UserError(problem, parameter=f"variant {variant.name}", hint=hint) from error
    if not all(answer in (True, False) for answer in answers):
        problem, allowed = (
            f"it answered {answers[0]!r} to {context}",
            "True (the shared zeropage) or False (the page stays)",
        )
        raise UserError(problem, parameter=f"variant {variant.name}", value=answers[0], allowed=allowed)
    if answers[0] != answers[1]:
        problem = f"it gave two different answers to {context}"
        hint = "A predicate may depend on nothing else."
        raise UserError(problem, parameter=f"variant {variant.name}", hint=hint)
    return bool(answers[0])
