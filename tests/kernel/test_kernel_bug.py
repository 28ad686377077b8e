"""The bug of 7.3 that leaves a page locked for good (kernel-7 7.10): recognised, counted, and what follows from it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import conservation
from mmlab import Scenario, simulate
from mmlab.cli import cli
from mmlab.kernel.state import LOCKED
from mmlab.results.run import Run

# A THP of zeros has its first page in an area of its own. That page is inserted in the unstable tree, then ksmd is told
# to use the zeropage, and visits the second page.
LOCK = {"op": "mlock", "page": 0, "count": 1, "after": {"batch": 0}}
ONE = {"op": "set", "knob": "pages_to_scan", "value": 1, "after": {"batch": 1}}
ZEROPAGE = {"op": "set", "knob": "use_zero_pages", "value": 1, "after": {"batch": 2}}
ALL = {"op": "set", "knob": "pages_to_scan", "value": 1000, "after": {"batch": 3}}


def run(*later: dict[str, Any], on: int = 1, **fields: Any) -> Run:
    process = {"pages": 16, "contents": [[0, 6, 0], [100, 10, 1]], "thp": [[0, 8]]}
    asked = {"kernel": "7.3", "pages_per_thp": 8, "process_list": [process], "stepped": True, "run": 0, "smart_scan": 0}
    asked |= {"pages_to_scan": 1000, "horizon_batches": 8, "horizon_seconds": 0}
    events = [LOCK, ONE, ZEROPAGE, ALL, *({"after": {"batch": 4}} | event for event in later)]
    return simulate(Scenario(**{**asked, "events": events, "kernel_changes": {"same_folio_is_old": on}, **fields}))


def test_the_moment_is_recognised() -> None:
    """kernel-7 7.10: nobody is merged and nothing inserted in that visit; the first page then merges no more."""
    bad, good = run(), run(on=0)
    at = next(int(row["batch"]) for row in bad.rows if row["kernel_bugs"])
    assert (at, bad.rows["kernel_bugs"][-1], good.rows["kernel_bugs"][-1]) == (3, 1, 0)
    visit = bad.rows["batch"] == 3
    for name in ("pages_unshared", "pages_shared", "thp_split_page", "anon_pages"):
        assert bad.rows[name][visit].tolist() == good.rows[name][visit].tolist(), name
    assert (bad.rows["ksm_zero_pages"][-1], good.rows["ksm_zero_pages"][-1]) == (0, 1)
    assert bad.rows["frames"][-1] == good.rows["frames"][-1] + 2  # the first page, and the second, which nobody maps
    assert "visit 18 of ksmd (batch 3, page 1 of process 0)" in bad.kernel_bug and good.kernel_bug == ""
    conservation.check(good)


@pytest.mark.parametrize("variant", ["legacy", "ksm-opt-out", "skip-zeropage"])
def test_variants_without_it(variant: str) -> None:
    """kernel-7 7.10: without the remap M3 succeeds, and skip-zeropage ends the visit after it."""
    assert not run(variant=variant).rows["kernel_bugs"].any()


@pytest.mark.parametrize(
    ("event", "result"),
    [
        ({"op": "pageout", "page": 0, "count": 1}, "A"),
        ({"op": "free", "page": 0, "count": 1}, "A"),
        ({"op": "collapse", "page": 0, "count": 8}, "A"),
        ({"op": "khugepaged", "full_scans": 1}, "A"),
        ({"op": "dontneed", "page": 0, "count": 1}, "N"),
    ],
)
def test_the_page_stays_locked(event: dict[str, Any], result: str) -> None:
    """kernel-7 7.10: it is not merged, swapped, collapsed or made lazy; unmapped, it is lost."""
    unlock = {"op": "munlock", "page": 0, "count": 1}
    done = run(unlock, event, swap_mib=1)
    assert done.results[-1] == (11 if event["op"] == "collapse" else 0)
    assert done.page_map()[:1].tobytes().decode() == result
    assert (done.machine.frame["flags"] & LOCKED != 0).sum() == 2


def test_simulate_says_so(tmp_path: Any) -> None:
    path = tmp_path / "bug.yaml"
    path.write_text(yaml.safe_dump(run().scenario.changed()))
    lines = CliRunner().invoke(cli, ["simulate", str(path)]).output.splitlines()
    assert [line for line in lines if line.startswith("Kernel")] == [lines[-1]] == [run().kernel_bug]
