"""The variants: which zero-filled pages a folio split remaps to the shared zeropage, and what ksmd does with a page.

Each fix variant is one function: a predicate of the split's context (fix-variants 5.1) with its summary as docstring,
below who proposed it and where. Compiled code looks the answers up in a table of all 32 contexts, so a variant of your
own is a plain Python function too:

>>> def never_in_mergeable_memory(c: SplitContext) -> bool:
...     return not c.mergeable
>>> resolve(never_in_mergeable_memory).name
'never_in_mergeable_memory'

Variants of ksmd answer whether it merges a page that it visits (fix-variants 5.7). They go with any fix variant, as
"ksm-opt-out+zero-only"; alone they split as mainline does. Yours is a class with both answers:

>>> class KeepHugePages:
...     def split(self, c: SplitContext) -> bool:
...         return c.shrinker
...     def visit(self, c: VisitContext) -> str:
...         return "leave" if c.huge else "merge"
>>> resolve(KeepHugePages).name
'KeepHugePages'

The base condition holds for every variant and belongs to the model: the page is order 0, all zero and not mlocked, and
the VMA is not VM_LOCKED (thp-split Z1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mmlab.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd


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


VISITS = ("merge", "zeropage", "leave")
"""What ksmd does with a page: merge it if it can; merge it with the shared zeropage or not at all; leave it alone."""


def visit_index(zero: int, large: int, huge: int, partially_mapped: int, shared: int, use_zero_pages: int) -> int:
    """Return the place of a context in `Variant.visit_table`; the flags are 0 or 1."""
    return zero * 32 + large * 16 + huge * 8 + partially_mapped * 4 + shared * 2 + use_zero_pages


@dataclass(frozen=True)
class VisitContext:
    """What ksmd knows of a page whose checksum has not changed, before it looks for an equal one."""

    zero: bool
    """its checksum is that of a page of zeroes"""
    large: bool
    """it is in a large folio, of any order"""
    huge: bool
    """a huge PMD, in this process or another one, maps its folio"""
    partially_mapped: bool
    """its folio is marked as partially mapped (thp-split Q1)"""
    shared: bool
    """more than one entry maps it"""
    use_zero_pages: bool
    """the knob, at this moment"""


CONTEXTS = [SplitContext(caller, *flags) for caller in CALLERS for flags in product((False, True), repeat=3)]
VISIT_CONTEXTS = [VisitContext(*flags) for flags in product((False, True), repeat=6)]
"""Every context, at its `remap_index`, and at its `visit_index`."""
Predicate = Callable[[SplitContext], bool]
Visit = Callable[[VisitContext], str]
Rule = TypeVar("Rule", bound=Callable[[Any], Any])


class Rules(Protocol):
    """A variant of your own: `split`, and optionally `visit`, a `Visit`."""

    def split(self, context: SplitContext, /) -> bool: ...


@dataclass(frozen=True)
class Variant:
    """One variant; `predicate` says whether the zero-filled page becomes the shared zeropage (fix-variants 5.1)."""

    name: str
    predicate: Predicate
    who: str = "you"
    where: str = "your own code"
    summary: str = ""
    early_stop: bool = False
    """ksmd stops processing a page whose merge with the zeropage failed because a split has put the zeropage there"""
    visit: Visit | None = None
    """what ksmd does with a page, one of VISITS (fix-variants 5.7); None: it merges what it can"""

    def table(self) -> list[int]:
        """Return the answer for every context as 0 or 1, at its `remap_index`."""
        return [int(bool(self.predicate(context))) for context in CONTEXTS]

    def visit_table(self) -> list[int]:
        """Return the index in VISITS of the answer for every context, at its `visit_index`.

        Raises
        ------
        UserError
            `visit` raised, returned something else than one of VISITS, or gave two answers to the same question.
        """
        visit = self.visit or (lambda _: VISITS[0])
        return [VISITS.index(_answer(self, visit, context, VISITS)) for context in VISIT_CONTEXTS]


VARIANTS: dict[str, Variant] = {}
"""Every variant by name, in the order in which tables and figures show them."""
KSMD_VARIANTS: dict[str, Variant] = {}
"""Every variant of ksmd by name."""
_THREAD = "RFC 'restrict zero-page remapping to underused THP splits', May 2026"
_V1 = "v1 series 'Tighten control over zero-page remapping', 9 June 2026"


def _variant(who: str, where: str, early_stop: bool = False, *, of_ksmd: bool = False) -> Callable[[Rule], Rule]:
    """Register a variant, named as the function is, with its docstring as summary.

    The function is a predicate, or what ksmd does with a page (`of_ksmd`): such a variant splits as mainline does.
    """

    def register(rule: Rule) -> Rule:
        name, summary = rule.__name__.replace("_", "-"), rule.__doc__ or ""
        rules: dict[str, Any] = {"predicate": mainline, "visit": rule} if of_ksmd else {"predicate": rule}
        known = KSMD_VARIANTS if of_ksmd else VARIANTS
        known[name] = Variant(name, who=who, where=where, summary=summary, early_stop=early_stop, **rules)
        return rule

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


@_variant("A. Arcangeli", "CentOS Stream 9 MR 8249, redhat_only_zero_pages of RHEL 9.9 (thread V10)", of_ksmd=True)
def zero_only(c: VisitContext) -> str:
    """ksmd merges zero-filled pages with the shared zeropage, whatever use_zero_pages says, and no others"""
    return "zeropage" if c.zero else "leave"


@_variant("U. Arif", "the discussion of the RFC, 9 to 11 May 2026 (thread V7)", of_ksmd=True)
def no_split(c: VisitContext) -> str:
    """ksmd leaves alone a folio that a huge PMD maps; one that only page table entries map is split as before"""
    return "leave" if c.huge else "merge"


AnyVariant = str | Variant | Predicate | Rules | type[Rules]


def resolve(variant: AnyVariant) -> Variant:
    """Return a variant by its name, or made of a function or a class of your own.

    >>> resolve("legacy+zero-only").summary.partition(";")[0]
    'a split never remaps'

    Raises
    ------
    UserError
        The name is not one of VARIANTS or KSMD_VARIANTS, or of the former and the latter with "+" between them.
    """
    if isinstance(variant, Variant):
        return variant
    if isinstance(variant, str):
        fix, plus, ksmd = variant.partition("+")
        if variant in VARIANTS or variant in KSMD_VARIANTS:
            return VARIANTS.get(variant) or KSMD_VARIANTS[variant]
        if fix in VARIANTS and ksmd in KSMD_VARIANTS:
            one, other = VARIANTS[fix], KSMD_VARIANTS[ksmd]
            return replace(one, name=variant, summary=f"{one.summary}; {other.summary}", visit=other.visit)
        known = [*VARIANTS, *KSMD_VARIANTS, *(f"{fix}+{name}" for name in KSMD_VARIANTS if plus and fix in VARIANTS)]
        raise unknown("variant", variant, known, "Or pass a function of your own.")
    about: dict[str, Any] = {"summary": (variant.__doc__ or "").strip()}
    if hasattr(variant, "split"):
        rules = variant() if isinstance(variant, type) else variant
        return Variant(type(rules).__name__, rules.split, visit=getattr(rules, "visit", None), **about)
    return Variant(getattr(variant, "__name__", "own"), variant, **about)


def possible(context: SplitContext) -> bool:
    """Return whether a context can happen: ksmd splits only while it runs, since `run` changes between batches (S6)."""
    return context.ksm_running or context.caller != "ksm"


def truth_table(variants: Iterable[AnyVariant] | None = None) -> pd.DataFrame:
    """Return the answers of some variants about splits, by default of all fix variants.

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
    columns = {v.name: [_answer(v, v.predicate, context, (True, False)) for context in CONTEXTS] for v in chosen}
    return pd.DataFrame(columns, index=pd.Index(CONTEXTS, dtype=object), dtype=bool)


def _answer(variant: Variant, rule: Callable[[Any], Any], context: object, allowed: tuple[Any, ...]) -> Any:
    """Return the answer of a variant's predicate or visit, checked."""
    where = f"variant {variant.name}, asked about {context}"
    try:
        first, second = (rule(context) for _ in range(2))
    except Exception as error:
        more = " and shrinker" if isinstance(context, SplitContext) else ""
        hint = f"It may look at {', '.join(vars(context))}{more}."
        raise UserError(f"it raised {type(error).__name__}: {error}", where=where, hint=hint) from error
    if first not in allowed:
        raise UserError(parameter="answer", value=first, allowed=" or ".join(map(str, allowed)), where=where)
    if first != second:
        raise UserError("it gave two answers", where=where, hint="A variant's answer may depend on nothing else.")
    return first
