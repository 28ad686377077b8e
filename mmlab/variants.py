"""The fix variants: which zero-filled pages a folio split remaps to the shared zeropage.

Each variant is one function: a predicate of the split's context (fix-variants 5.1) with its summary as docstring, below
who proposed it and where. Compiled code looks the answers up in a table of all 32 contexts, so a variant of your own is
a plain Python function too:

>>> def never_in_mergeable_memory(c: SplitContext) -> bool:
...     return not c.mergeable
>>> resolve(never_in_mergeable_memory).name
'never_in_mergeable_memory'

The base condition holds for every variant and belongs to the model: the page is order 0, all zero and not mlocked, and
the VMA is not VM_LOCKED (thp-split Z1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from mmlab.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CALLERS", "VARIANTS", "SplitContext", "Variant", "possible", "remap_index", "resolve", "truth_table"]

CALLERS = ("ksm", "underused", "partially_mapped", "other")
"""Who split the folio: ksmd; the shrinker, by its reason; anything else (migration, reclaim, debugfs, …)."""


def remap_index(caller: int, mergeable: int, ksm_running: int, shrink_underused: int) -> int:
    """Return the place of a context in `Variant.table`: the index of the caller, then three flags of 0 or 1."""
    return caller * 8 + mergeable * 4 + ksm_running * 2 + shrink_underused


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
        """Whether the deferred split shrinker split the folio, for whatever reason."""
        return self.caller in ("underused", "partially_mapped")


CONTEXTS = [SplitContext(caller, *flags) for caller in CALLERS for flags in product((False, True), repeat=3)]
Predicate = Callable[[SplitContext], bool]


@dataclass(frozen=True)
class Variant:
    """One fix variant; `predicate` says whether the zero-filled page becomes the shared zeropage (fix-variants 5.1)."""

    name: str
    predicate: Predicate
    who: str = "you"
    where: str = "your own code"
    summary: str = ""
    early_stop: bool = False
    """ksmd stops processing a page whose merge with the zeropage failed because a split has put the zeropage there"""

    def table(self) -> list[int]:
        """Return the answer for every context as 0 or 1, at its `remap_index`."""
        answers = [0] * len(CONTEXTS)
        for c in CONTEXTS:
            index = remap_index(CALLERS.index(c.caller), c.mergeable, c.ksm_running, c.shrink_underused)
            answers[index] = int(bool(self.predicate(c)))
        return answers


VARIANTS: dict[str, Variant] = {}
"""Every variant by name, in the order in which tables and figures show them."""
_THREAD = "RFC 'restrict zero-page remapping to underused THP splits', May 2026"
_V1 = "v1 series 'Tighten control over zero-page remapping', 9 June 2026"


def _variant(who: str, where: str, early_stop: bool = False) -> Callable[[Predicate], Predicate]:
    """Register a predicate as a variant, named as the function is, with its docstring as summary."""

    def register(predicate: Predicate) -> Predicate:
        name = predicate.__name__.replace("_", "-")
        VARIANTS[name] = Variant(name, predicate, who, where, predicate.__doc__ or "", early_stop)
        return predicate

    return register


@_variant("kernels before b1f202060afe", "asked for by N. Pache, 12 May 2026")
def legacy(_: SplitContext) -> bool:
    """a split never remaps"""
    return False


@_variant("Y. Zhao, U. Arif", "b1f202060afe, Linux 6.12")
def mainline(_: SplitContext) -> bool:
    """every split of an anonymous folio remaps"""
    return True


@_variant("N. Pache", _THREAD)
def rfc_underused_only(c: SplitContext) -> bool:
    """only splits by the shrinker remap"""
    return c.shrinker


@_variant("a stricter reading of the RFC", _THREAD)
def rfc_underused_strict(c: SplitContext) -> bool:
    """only splits that the underused test asked for remap"""
    return c.caller == "underused"


@_variant("D. Hildenbrand (option 1), L. Yang, N. Pache", _THREAD + " and the replies of 9 June")
def ksm_opt_out(c: SplitContext) -> bool:
    """KSM's own splits do not remap"""
    return c.caller != "ksm"


@_variant("D. Hildenbrand (option 2), N. Pache", _V1 + ", 2/3")
def v1_mergeable(c: SplitContext) -> bool:
    """no remap in mergeable VMAs while KSM runs"""
    return not (c.ksm_running and c.mergeable)


@_variant("D. Hildenbrand (option 3), N. Pache", _V1 + ", 3/3")
def v1_shrinker_gate(c: SplitContext) -> bool:
    """no remap while shrink_underused is off"""
    return c.shrink_underused


@_variant("N. Pache", _V1 + ", whole")
def v1_series(c: SplitContext) -> bool:
    """v1-mergeable and v1-shrinker-gate together"""
    return v1_mergeable(c) and v1_shrinker_gate(c)


@_variant("xu xin", "reply of 9 June 2026 to the v1 series", early_stop=True)
def skip_zeropage(_: SplitContext) -> bool:
    """as mainline, but ksmd stops at a page that a split has turned into the zeropage"""
    return True


def resolve(variant: str | Variant | Predicate) -> Variant:
    """Return a variant by its name, or made of a predicate of your own.

    Raises
    ------
    UserError
        The name is not one of VARIANTS.
    """
    if isinstance(variant, Variant):
        return variant
    if callable(variant):
        return Variant(getattr(variant, "__name__", "own"), variant, summary=(variant.__doc__ or "").strip())
    if variant in VARIANTS:
        return VARIANTS[variant]
    raise unknown("variant", variant, VARIANTS, "Or pass a function of your own.")


def possible(context: SplitContext) -> bool:
    """Return whether a context can happen: ksmd splits only while it runs, since `run` changes between batches (S6)."""
    return context.ksm_running or context.caller != "ksm"


def truth_table(variants: Iterable[str | Variant | Predicate] | None = None) -> pd.DataFrame:
    """Return the answers of some variants, by default of all.

    Returns
    -------
    DataFrame
        One row for each of the 32 contexts (index), one column for each variant, booleans.

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

    chosen = map(resolve, VARIANTS if variants is None else variants)
    columns = {v.name: [_answer(v, context) for context in CONTEXTS] for v in chosen}
    return pd.DataFrame(columns, index=pd.Index(CONTEXTS, dtype=object), dtype=bool)


def _answer(variant: Variant, context: SplitContext) -> bool:
    where = f"variant {variant.name}, asked about {context}"
    try:
        first, second = (variant.predicate(context) for _ in range(2))
    except Exception as error:
        hint = f"A predicate may look at {', '.join(vars(context))} and shrinker."
        raise UserError(f"it raised {type(error).__name__}: {error}", where=where, hint=hint) from error
    if first not in (True, False):
        raise UserError(parameter="answer", value=first, allowed="True or False", where=where)
    if first != second:
        raise UserError("it gave two answers", where=where, hint="A predicate may depend on nothing else.")
    return bool(first)
