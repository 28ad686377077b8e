"""The fix variants: who may remap a zero page (fix-variants 5.1, 5.4), and what that does to both regressions (5.3)."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from mmlab.engine.costs import STEPS
from mmlab.errors import UserError
from mmlab.kernel.versions import RELEASES
from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario
from mmlab.variants import CALLERS, KSMD_VARIANTS, VARIANTS, SplitContext, Variant, VisitContext, resolve

# fix-variants 5.4, with the callers one by one and ksmd's own splits (5.2). knob: only if shrink_underused is on
TABLE = """
situation                   legacy mainline rfc-underused-only rfc-underused-strict ksm-opt-out v1-mergeable v1-shrinker-gate v1-series skip-zeropage
ksm-M-running               no     yes      no                 no                   no          no           knob             no        yes
other-M-running             no     yes      no                 no                   yes         no           knob             no        yes
other-M-stopped             no     yes      no                 no                   yes         yes          knob             knob      yes
other-_-running             no     yes      no                 no                   yes         yes          knob             knob      yes
other-_-stopped             no     yes      no                 no                   yes         yes          knob             knob      yes
underused-M-running         no     yes      yes                yes                  yes         no           knob             no        yes
underused-M-stopped         no     yes      yes                yes                  yes         yes          knob             knob      yes
underused-_-running         no     yes      yes                yes                  yes         yes          knob             knob      yes
underused-_-stopped         no     yes      yes                yes                  yes         yes          knob             knob      yes
partially_mapped-M-running  no     yes      yes                no                   yes         no           knob             no        yes
partially_mapped-M-stopped  no     yes      yes                no                   yes         yes          knob             knob      yes
partially_mapped-_-running  no     yes      yes                no                   yes         yes          knob             knob      yes
partially_mapped-_-stopped  no     yes      yes                no                   yes         yes          knob             knob      yes
"""  # noqa: E501
HEAD, *LINES = (line.split() for line in TABLE.strip().splitlines())
CASES = [
    (variant, tuple(line[0].split("-")), knob, {"no": False, "yes": True, "knob": knob == 1}[answer])
    for line in LINES
    for variant, answer in zip(HEAD[1:], line[1:], strict=True)
    for knob in (0, 1)
]
CLASS_Y = ["legacy", "rfc-underused-only", "rfc-underused-strict", "ksm-opt-out", "v1-mergeable", "v1-series"]
CLASSES = {
    "X": [("mainline", 1), ("mainline", 0), ("v1-shrinker-gate", 1)],
    "X'": [("skip-zeropage", 1), ("skip-zeropage", 0)],
    "Y": [*product(CLASS_Y, (0, 1)), ("v1-shrinker-gate", 0)],
}
BOTH = [(name, variant, knob) for name, pairs in CLASSES.items() for variant, knob in pairs]


def test_the_table_is_of_all_variants() -> None:
    assert set(HEAD[1:]) == set(VARIANTS) == {variant for _, variant, _ in BOTH}
    assert {caller for _, (caller, *_), _, _ in CASES} == set(CALLERS)


@pytest.mark.parametrize(("variant", "situation", "knob", "remaps"), CASES)
def test_predicate(variant: str, situation: tuple[str, str, str], knob: int, remaps: bool) -> None:
    caller, mergeable, running = situation
    context = SplitContext(caller, mergeable == "M", running == "running", knob == 1)
    assert resolve(variant).predicate(context) == remaps
    number = CALLERS.index(caller) * 8 + (mergeable == "M") * 4 + (running == "running") * 2 + knob
    assert resolve(variant).table()[number] == remaps


def test_only_skip_zeropage_stops_early() -> None:
    assert [name for name, variant in VARIANTS.items() if variant.early_stop] == ["skip-zeropage"]


# --- in the model ---------------------------------------------------------------------------------------------------

SPLIT = {"op": "split", "page": 0, "count": 8}


def two_thps(*events: dict[str, Any], **fields: Any) -> Run:
    """Two THPs of 8 pages, 6 of them zero-filled; events after the first full scan, when nothing is split yet."""
    process = {"pages": 16, "contents": [[0, 6, 0], [1, 2, 1], [0, 6, 0], [3, 2, 1]], "thp": [[0, 16]]}
    process["mergeable"] = fields.pop("mergeable", [[0, 16]])
    setting = {"process_list": [process], "pages_per_thp": 8, "pages_to_scan": 16, "horizon_batches": 2}
    after = fields.pop("after", {"batch": 2})
    return simulate(Scenario(**{**setting, **fields}, events=[{"after": after} | e for e in events]))  # type: ignore[arg-type]


def letters(run: Run, process: int = 0) -> str:
    return run.page_map(process).tobytes().decode()


@pytest.mark.parametrize(("variant", "situation", "knob", "remaps"), [case for case in CASES if case[1][0] == "other"])
def test_split_from_outside(variant: str, situation: tuple[str, str, str], knob: int, remaps: bool) -> None:
    """debugfs splits the first THP."""
    _, mergeable, running = situation
    run = two_thps(
        SPLIT,
        variant=variant,
        shrink_underused=knob,
        mergeable=[[0, 16]] if mergeable == "M" else [],
        run=int(running == "running"),
        after={"batch": 2 if mergeable == "M" and running == "running" else 0},
    )
    assert letters(run) == ("ZZZZZZAA" if remaps else "AAAAAAAA") + "HHHHHHHH"
    assert run.rows["frames"][-1] == (10 if remaps else 16)
    assert run.rows["ksm_zero_pages"][-1] == 0 and run.rows["thp_split_page"][-1] == 1


@pytest.mark.parametrize(("variant", "situation", "knob", "remaps"), [case for case in CASES if case[1][0] == "ksm"])
def test_split_by_ksmd(variant: str, situation: tuple[str, str, str], knob: int, remaps: bool) -> None:
    run = two_thps(variant=variant, shrink_underused=knob, use_zero_pages=1, horizon_batches=4)
    assert letters(run) == "ZZZZZZAA" * 2
    assert run.rows["ksm_zero_pages"][-1] == (0 if remaps else 12)


def test_run_and_knob_are_read_at_the_split() -> None:
    """fix-variants 5.5.1: no remap while KSM runs; another THP of the same VMA after it was stopped."""
    stop, second = {"op": "set", "knob": "run", "value": 0}, {**SPLIT, "page": 8}
    assert letters(two_thps(SPLIT, stop, second, variant="v1-mergeable")) == "AAAAAAAAZZZZZZAA"
    off = {"op": "set", "knob": "shrink_underused", "value": 0}
    assert letters(two_thps(SPLIT, off, second, variant="v1-shrinker-gate")) == "ZZZZZZAAAAAAAAAA"


def test_unmergeable_memory_is_remapped() -> None:
    """5.5.2, KSM running; the VMA decides mapping by mapping, so the other half of a THP is kept."""
    leave = {"op": "unmergeable", "page": 0, "count": 8}
    assert letters(two_thps(leave, SPLIT, variant="v1-mergeable")) == "ZZZZZZAAHHHHHHHH"
    half = {"op": "unmergeable", "page": 0, "count": 4}
    assert letters(two_thps(half, SPLIT, variant="v1-mergeable")) == "ZZZZAAAAHHHHHHHH"


@pytest.mark.parametrize("variant", VARIANTS)
def test_locked_memory_is_never_remapped(variant: str) -> None:
    """5.5.5: nor when it is unlocked later."""
    lock, unlock = ({"op": op, "page": 0, "count": 8} for op in ("mlock", "munlock"))
    run = two_thps(lock, SPLIT, unlock, SPLIT, variant=variant, run=0, mergeable=[], after={"batch": 0})
    assert letters(run) == "AAAAAAAAHHHHHHHH" and run.results == [0] * 4


@pytest.mark.parametrize(("name", "variant", "knob"), BOTH)
def test_split_of_forked_memory(name: str, variant: str, knob: int) -> None:
    """5.5.6: with a remap both processes lose the zero pages, and no visit is spent on the child's."""
    fields = {"variant": variant, "shrink_underused": knob, "use_zero_pages": 1, "smart_scan": 0}
    run = two_thps({"op": "fork"}, after={"batch": 2}, horizon_batches=3, **fields)
    assert run.rows["thp_split_page"][-1] == 2 and letters(run) == "ZZZZZZAA" * 2
    assert letters(run, 1) == ("AAAAAAAA" if name == "Y" else "ZZZZZZAA") * 2
    visits, child = int(run.rows["pages_scanned"][-1]) - 16, int(run.machine.mm[2]["rmap_items"])
    assert (visits, child) == ((16, 0) if name == "Y" else (6 + 4, 4))  # 4 non-zero pages of the child
    assert run.rows["frames"][-1] == (16 if name == "Y" else 4)


@pytest.mark.parametrize(("name", "variant", "knob"), [case for case in BOTH if case[0] == "Y"])
def test_use_zero_pages_switched_off_in_mid_pass(name: str, variant: str, knob: int) -> None:
    """5.5.7: zeropage entries of ksmd and KSM pages of zeroes stand side by side."""
    fields = {"variant": variant, "shrink_underused": knob, "use_zero_pages": 1, "pages_to_scan": 4}
    off = {"op": "set", "knob": "use_zero_pages", "value": 0}
    run = two_thps(off, after={"batch": 6}, horizon_batches=10, **fields)  # pass 2 is batches 6 to 10
    assert letters(run) == "ZZZZKKAAKKKKKKAA"
    stat = run.rows[-1]
    assert (stat["ksm_zero_pages"], stat["pages_shared"], stat["pages_sharing"]) == (4, 1, 7)


def test_variant_changed_in_the_middle() -> None:
    change = {"op": "set", "knob": "variant", "value": "mainline"}
    run = two_thps(SPLIT, change, {**SPLIT, "page": 8}, variant="legacy")
    assert letters(run) == "AAAAAAAAZZZZZZAA"


# --- both regressions at the reference load: 32 THPs of 460 zero and 52 unique pages ----------------------------------


def reference_load(variant: str, knob: int, use_zero_pages: int, **fields: Any) -> Run:
    setting = {"memory_mib": 64, "zero_fraction": 460 / 512, "pages_to_scan": 500, "until_settled": True}
    setting |= {"costs": "free", "horizon_seconds": 0.0, "use_zero_pages": use_zero_pages, "shrink_underused": knob}
    return simulate(Scenario(**{**setting, **fields}, variant=variant))


def after_pass(run: Run, number: int) -> np.void:
    """The row of the batch that ended a full scan."""
    row: np.void = run.rows[np.flatnonzero(run.rows["full_scans"] == number)[0]]
    return row


def first_batch(run: Run, name: str, value: int) -> int:
    return int(run.rows["batch"][np.flatnonzero(run.rows[name] == value)[0]])


def most_freed_by_one_visit(variant: str, knob: int, use_zero_pages: int) -> int:
    one = {"pages_to_scan": 1, "until_settled": False, "horizon_full_scans": 2, "sample_limit": 100_000}
    return reference_load(variant, knob, use_zero_pages, **one).metrics.most_freed_by_batch


def check_first_pass(run: Run) -> None:
    first = after_pass(run, 1)
    assert (first["batch"], first["pages_scanned"], first["frames"], first["thp_split_page"]) == (33, 16384, 16384, 0)


@pytest.mark.parametrize(("name", "variant", "knob"), BOTH)
def test_regression_1(name: str, variant: str, knob: int) -> None:
    """use_zero_pages=1: the budget is bypassed, and what is freed is not counted."""
    run = reference_load(variant, knob, 1)
    first, second, third, end = (after_pass(run, n) for n in (1, 2, 3, run.metrics.full_scans))
    remaps = name != "Y"
    check_first_pass(run)
    assert second["pages_scanned"] - first["pages_scanned"] == (1696 if remaps else 16384)
    assert second["batch"] - first["batch"] == (4 if remaps else 33)
    assert most_freed_by_one_visit(variant, knob, 1) == (460 if remaps else 1)
    assert run.metrics.most_freed_by_batch == (4600 if remaps else 460)  # at most P
    assert first_batch(run, "frames", 1664) == (37 if remaps else 66)
    assert run.metrics.zero_pages_left == 0
    assert end["ksm_zero_pages"] == (0 if remaps else 14720)
    assert (end["thp_split_page"], end["thp_split_page_failed"]) == (32, 0)
    unshared = {"X": 1, "X'": 1664, "Y": 1664}[name]
    assert (second["pages_unshared"], third["pages_unshared"]) == (unshared, 1664)
    assert end["anon_pages"] == end["frames"] == 1664
    profit = run.samples["general_profit"][np.flatnonzero(run.rows["full_scans"] == 3)[0]]
    assert profit == (0 if remaps else 14720 * 4096) - 1664 * 64


@pytest.mark.parametrize("how", ["unmergeable", "run=2"])
@pytest.mark.parametrize(("name", "variant", "knob"), BOTH)
def test_regression_1_undone(name: str, variant: str, knob: int, how: str) -> None:
    """Only zero pages that ksmd has placed come back."""
    event: dict[str, Any] = {"op": "set", "knob": "run", "value": 2}
    if how == "unmergeable":
        event = {"op": "unmergeable", "page": 0, "count": 16384}
    load = {"memory_mib": 64, "zero_fraction": 460 / 512, "pages_to_scan": 500, "horizon_full_scans": 3}
    asked = Scenario(
        **load, variant=variant, shrink_underused=knob, use_zero_pages=1, events=[{"after": {"full_scan": 3}, **event}]
    )  # type: ignore[arg-type]
    end = simulate(asked).rows[-1]
    assert end["anon_pages"] == end["frames"] == (1664 if name != "Y" else 16384)
    assert end["ksm_zero_pages"] == 0


@pytest.mark.parametrize(("name", "variant", "knob"), BOTH)
def test_regression_2(name: str, variant: str, knob: int) -> None:
    """use_zero_pages=0: one THP a full scan, since the tree is left with a dead node."""
    run = reference_load(variant, knob, 0)
    first, second, end = (after_pass(run, n) for n in (1, 2, run.metrics.full_scans))
    remaps = name != "Y"
    check_first_pass(run)
    assert second["thp_split_page"] == (1 if remaps else 32)
    wasted, visits = (int(second[x] - first[x]) for x in ("wasted_visits", "pages_scanned"))
    assert (wasted, visits) == ((15924, 15926) if remaps else (0, 16384))
    assert first_batch(run, "thp_split_page", 32) == (828 if remaps else 65)
    assert int(run.rows["full_scans"][first_batch(run, "thp_split_page", 32) - 1]) + 1 == (248 if remaps else 2)
    assert (end["thp_split_page"], end["thp_split_page_failed"]) == (32, 32 if remaps else 1)
    assert (end["pages_shared"], end["pages_sharing"]) == ((0, 0) if remaps else (58, 14662))
    assert second["pages_sharing"] == (0 if remaps else 14661)
    assert end["anon_pages"] == (1664 if remaps else 16384)
    assert 16384 - end["frames"] == (14720 if remaps else 14662)
    assert run.metrics.freed_unseen_pages == (14720 if remaps else 0)
    assert end["rmap_items"] == (1664 if remaps else 16384)
    assert (end["stable_node_chains"], end["stable_node_dups"]) == ((0, 0) if remaps else (1, 58))
    assert end["ksm_zero_pages"] == 0


@pytest.mark.parametrize(("name", "variant", "knob"), BOTH)
def test_regression_2_without_smart_scan(name: str, variant: str, knob: int) -> None:
    run = reference_load(variant, knob, 0, smart_scan=0)
    last = first_batch(run, "thp_split_page", 32)
    assert last == (613 if name != "Y" else 65)
    assert run.rows["full_scans"][last - 1] + 1 == (33 if name != "Y" else 2)


@pytest.mark.parametrize("use_zero_pages", [0, 1])
@pytest.mark.parametrize(("name", "variant", "knob"), [case for case in BOTH if case[0] != "Y"])
def test_one_stray_zero_page_cures_the_pace(name: str, variant: str, knob: int, use_zero_pages: int) -> None:
    """fix-variants 5.3, ksm-merge D9: all THPs go in the second full scan, each at its first zero page."""
    run = reference_load(variant, knob, use_zero_pages, stray_zero_pages=1)
    second = after_pass(run, 2)
    assert (second["thp_split_page"], second["thp_split_page_failed"], second["huge_pmds"]) == (32, 0, 0)


# --- variants of one's own --------------------------------------------------------------------------------------------


def not_mergeable_while_running(c: SplitContext) -> bool:
    """the same rule as v1-mergeable"""
    return not (c.ksm_running and c.mergeable)


def test_own_function_is_like_the_named_variant() -> None:
    asked = Scenario(
        memory_mib=4,
        zero_fraction=0.5,
        horizon_seconds=2.0,
        events=[{"after": {"batch": 13}, "op": "split", "page": 0, "count": 512}],
    )  # type: ignore[list-item]
    own = simulate(asked, variant=not_mergeable_while_running)
    named = simulate(asked, variant="v1-mergeable")
    other = simulate(asked, variant="mainline")
    assert own.rows.tobytes() == named.rows.tobytes() != other.rows.tobytes()
    assert (own.page_map() == named.page_map()).all()
    assert own.variant == "not_mergeable_while_running"
    described = resolve(not_mergeable_while_running)
    assert described.summary == "the same rule as v1-mergeable" and resolve(described) is described
    own_row = Variant("own-row", VARIANTS["v1-mergeable"].predicate)
    assert simulate(asked, variant=own_row).rows.tobytes() == named.rows.tobytes()
    assert simulate(asked.replace(variant="v1-mergeable")).rows.tobytes() == named.rows.tobytes()


# --- variants of ksmd (5.7) -------------------------------------------------------------------------------------------

GUEST = {"memory_mib": 8, "zero_fraction": 0.5, "duplicate_fraction": 0.5, "pages_to_scan": 500, "costs": "free"}


def guest(variant: Any, **fields: Any) -> Run:
    setting = {"horizon_seconds": 0, "horizon_full_scans": 6, "smart_scan": 0, "thp_coverage": 0.5}
    return simulate(Scenario(**GUEST | setting | fields), variant=variant)  # type: ignore[arg-type]


@pytest.mark.parametrize("use_zero_pages", [0, 1])
@pytest.mark.parametrize("kernel", RELEASES)
def test_zero_only_merges_zero_pages_and_searches_no_tree(kernel: str, use_zero_pages: int) -> None:
    run = guest("legacy+zero-only", use_zero_pages=use_zero_pages, kernel=kernel)
    end, steps = run.rows[-1], dict(zip(STEPS, run.machine.steps.tolist(), strict=True))
    assert (end["ksm_zero_pages"], end["thp_split_page"]) == (1024, 2), (
        "the first half of memory, whose blocks are huge"
    )
    assert end["pages_shared"] == end["pages_sharing"] == end["pages_unshared"] == steps["tree_level"] == 0
    assert end["rmap_items"] == 1024, "of the others, in no tree"
    full = guest("legacy", use_zero_pages=1, kernel=kernel)
    assert full.rows["ksm_zero_pages"][-1] == 1024 and full.rows["pages_sharing"][-1] > 0


def test_zero_only_keeps_the_splits_of_its_fix_variant() -> None:
    """Beside mainline the first zero page of each THP gives all of its 256 back, uncounted, whatever the budget."""
    alone, named, opted = (
        guest(v, thp_coverage=1.0) for v in ("zero-only", "mainline+zero-only", "ksm-opt-out+zero-only")
    )
    assert alone.rows.tobytes() == named.rows.tobytes() != opted.rows.tobytes()
    assert (alone.metrics.most_freed_by_batch, alone.rows["ksm_zero_pages"][-1]) == (512, 0), "of two THPs"
    assert (opted.metrics.most_freed_by_batch, opted.rows["ksm_zero_pages"][-1]) == (256, 1024), "a page a visit"


@pytest.mark.parametrize("kernel", RELEASES)
@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_no_split_leaves_huge_pages_alone(kernel: str, use_zero_pages: int) -> None:
    run = guest("no-split", use_zero_pages=use_zero_pages, kernel=kernel, layout="random")
    end, small = run.rows[-1], run.page_map()[1024:]
    assert (end["huge_pmds"], end["thp_split_page"], end["thp_split_page_failed"]) == (2, 0, 0)
    assert (run.page_map()[:1024] == ord("H")).all() and set(small.tobytes()) == set(
        b"AKZ" if use_zero_pages else b"AK"
    )
    assert guest("mainline", use_zero_pages=use_zero_pages, kernel=kernel, layout="random").rows["huge_pmds"][-1] == 0


def test_no_split_splits_what_only_page_table_entries_map() -> None:
    """mprotect cuts the first THP's PMD. The parent's huge PMD keeps the second whole, though the child cut its own."""
    cut = {"op": "mprotect", "page": 0, "count": 4, "prot": 1}
    setting = {"variant": "no-split", "use_zero_pages": 1, "smart_scan": 0, "horizon_batches": 5}
    assert letters(two_thps(cut, **setting)) == "ZZZZZZAA" + "HHHHHHHH"
    both = two_thps({"op": "fork"}, {**cut, "page": 8, "process": 1}, **setting)
    assert letters(both) == "HHHHHHHH" * 2 and letters(both, 1)[8:] == "hhhhhhhh"
    assert both.rows["thp_split_page"][-1] == 0


def test_no_split_leaves_an_equal_page_alone_that_has_become_huge() -> None:
    """A small page in the unstable tree is collapsed before its equal is visited: neither is touched."""
    process = {"pages": 16, "contents": [[5, 1, 0], [100, 7, 1], [5, 1, 0], [200, 7, 1]], "mergeable": [[0, 16]]}
    setting = {"process_list": [process], "pages_per_thp": 8, "pages_to_scan": 8, "horizon_batches": 6, "smart_scan": 0}
    at = {"after": {"batch": 4}, "page": 0, "count": 8}  # in full scan 2, batches 4 and 5
    collapse = [at | {"op": "hugepage"}, at | {"op": "collapse"}]
    plain, kept = (simulate(Scenario(**setting, events=collapse, variant=v)) for v in ("mainline", "no-split"))
    assert (letters(plain)[0], letters(plain)[8]) == ("K", "K")
    assert letters(kept) == "HHHHHHHH" + "AAAAAAAA" and kept.rows["thp_split_page_failed"][-1] == 0


class KeepHuge:
    """the same rules as ksm-opt-out+no-split"""

    def split(self, c: SplitContext) -> bool:
        return c.caller != "ksm"

    def visit(self, c: VisitContext) -> str:
        return "leave" if c.huge else "merge"


class Choosy(KeepHuge):
    def __init__(self, visit: Any) -> None:
        self.visit = visit  # type: ignore[method-assign]


def test_own_class_is_like_the_named_variant() -> None:
    named = guest("ksm-opt-out+no-split")
    for own in (KeepHuge, KeepHuge(), resolve(KeepHuge)):
        assert guest(own).rows.tobytes() == named.rows.tobytes()
    assert (guest(KeepHuge).variant, resolve(KeepHuge).summary) == (
        "KeepHuge",
        "the same rules as ksm-opt-out+no-split",
    )

    class SplitOnly:
        def split(self, c: SplitContext) -> bool:
            return c.caller != "ksm"

    assert guest(SplitOnly).rows.tobytes() == guest("ksm-opt-out").rows.tobytes()


def test_what_a_visit_is_told() -> None:
    """Each flag alone decides about the right pages: a rule that leaves them alone keeps them from being merged."""

    def merged(flag: str, *events: dict[str, Any], **fields: Any) -> str:
        leave = Choosy(lambda c: "leave" if getattr(c, flag) else "merge")
        small = {
            "pages": 8,
            "contents": [[0, 4, 0], [7, 4, 0]],
            "mergeable": [[0, 8]],
            "orders": [[0, 4, 0], [4, 4, 2]],
        }
        setting = {
            "process_list": [small],
            "pages_per_thp": 8,
            "pages_to_scan": 8,
            "smart_scan": 0,
            "horizon_batches": 5,
        }
        batch = {"after": {"batch": 0}}
        return letters(simulate(Scenario(**setting | fields, events=[batch | e for e in events]), variant=leave))

    assert merged("huge") == "KKKKKKKK"
    assert merged("zero") == "AAAAKKKK"
    assert merged("large") == "KKKKhhhh"
    assert merged("use_zero_pages") == "KKKKKKKK" and merged("use_zero_pages", use_zero_pages=1) == "AAAAhhhh"
    assert merged("shared", {"op": "fork"}) == "AAAAhhhh"
    assert merged("partially_mapped", {"op": "munmap", "page": 7, "count": 1}) == "KKKKhhhN"


@pytest.mark.parametrize(
    ("visit", "match"),
    [
        (lambda c: c.nodes, "AttributeError.*may look at zero, large, huge, partially_mapped, shared, use_zero_pages"),
        (lambda _: True, "answer = True.*merge or zeropage or leave"),
        (lambda _, calls=iter(range(999)): ("merge", "leave")[next(calls) % 2], "two answers"),  # noqa: B008
    ],
)
def test_visit_that_does_not_answer(visit: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        guest(Choosy(visit))


def test_combined_names() -> None:
    set_both = {"after": {"batch": 0}, "op": "set", "knob": "variant", "value": "legacy+zero-only"}
    changed = simulate(Scenario(**GUEST, events=[set_both]))  # type: ignore[arg-type]
    assert changed.rows["ksm_zero_pages"][-1] == 1024
    saved = Scenario(variant="legacy+zero-only").as_yaml()
    assert saved.startswith("variant: legacy+zero-only")
    assert "'legacy+zero-only', Mine" in Scenario().as_python(["legacy+zero-only", "Mine"])
    for wrong in ("legacy+legacy", "zero-only+legacy", "legacy+zero-onl", "legacy+"):
        with pytest.raises(UserError, match="variant"):
            resolve(wrong)
    with pytest.raises(UserError, match=r"did you mean 'legacy\+zero-only'"):
        resolve("legacy+zero-onl")


def test_unknown_variant() -> None:
    with pytest.raises(UserError, match="v1-mergeable") as error:
        resolve("v1-mergable")
    assert (error.value.parameter, error.value.value) == ("variant", "v1-mergable")
    with pytest.raises(UserError) as error:
        simulate(Scenario(), variant="zzz")
    assert (error.value.value, error.value.allowed) == ("zzz", f"one of {', '.join([*VARIANTS, *KSMD_VARIANTS])}")
    change = [{"after": {"batch": 0}, "op": "set", "knob": "variant", "value": "mainlin"}]
    with pytest.raises(UserError, match="mainline") as error:
        Scenario(memory_mib=2, events=change)
    assert (error.value.where, error.value.value) == ("events 0", "mainlin")
