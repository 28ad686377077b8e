"""The running kernel's own tracepoints against the model's decisions: ten recordings of 6.18 that have both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmlab.cli import cli
from mmlab.host.tracepoints import compare_file
from mmlab.results import trace
from mmlab.results.decisions import described

TRACED = trace.find(Path(trace.__file__).parents[1] / "recordings" / "traced-*")


def test_ten_recordings_ship() -> None:
    """With every tracepoint of KSM but the advisor's, and every one of collapses of anonymous memory."""
    assert len(TRACED) >= 10 and sum(path.stat().st_size for path in TRACED) < 100_000
    lines = [
        line for path in TRACED for window in trace.read(path)["tracepoints"]["windows"] for line in window["lines"]
    ]
    kinds = {name for name, event in described()["events"].items() if event.get("kernel")}
    assert {re.findall(r": (\w+): ", line)[0] for line in lines} == kinds - {"ksm_advisor"}
    reasons = "succeeded page_pmd_mapped exceed_none_pte exceed_shared_pte exceed_swap_pte lack_referenced_page"
    assert {*reasons.split()} <= {*re.findall(r"status=(\w+)", " ".join(lines))}


@pytest.mark.parametrize("path", TRACED, ids=[path.name.partition(".")[0] for path in TRACED])
def test_the_kernel_says_what_the_model_decides(path: Path) -> None:
    """The same events in the same order, about the same processes and pages."""
    found = compare_file(path)
    assert found.exact and found.tracepoints_exact == found.tracepoints > 0, found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: lines.pop(), "tracepoints: nothing more, predicted ksm_"),
        (lambda lines: lines.insert(0, lines[0]), "tracepoints: ksm_"),
        (lambda lines: lines.append(lines[-1]), "of which the model has no more"),
        (lambda lines: lines.reverse(), "predicted ksm_"),
    ],
)
def test_what_differs_is_found(change: object, problem: str, tmp_path: Path) -> None:
    recorded = trace.read(next(path for path in TRACED if "fork-split-uzp0" in path.name))
    windows = recorded["tracepoints"]["windows"]
    lines = max((window["lines"] for window in windows), key=len)
    change(lines)  # type: ignore[operator]
    trace.write(tmp_path / "changed.json.gz", recorded)
    done = CliRunner().invoke(cli, ["compare", str(tmp_path)])
    assert done.exit_code == 1 and problem in done.output, done.output


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("status=succeeded", "status=failed", "status failed, predicted succeeded"),
        ("none_or_zero=", "none_or_zero=1", "none_or_zero 1"),
        ("swapped_in=", "swapped_in=1", "swapped_in 1"),
        (" mm=", " mm=f", "mm f"),
        ("scan_pfn=", "scan_pfn=0xffffffffffffffff, was=", "scan_pfn [], predicted [0, "),
    ],
)
def test_what_differs_in_a_collapse_is_found(old: str, new: str, problem: str, tmp_path: Path) -> None:
    recorded = trace.read(next(path for path in TRACED if "swap-khugepaged" in path.name))
    windows = recorded["tracepoints"]["windows"]
    window = next(window for window in windows if "swapin" in str(window["lines"]) and old in str(window["lines"]))
    window["lines"] = [line.replace(old, new) for line in window["lines"]]
    trace.write(tmp_path / "changed.json.gz", recorded)
    found = [str(difference) for difference in compare_file(tmp_path / "changed.json.gz").differences]
    assert len(found) == 1 and problem in found[0], found


def test_a_page_is_known_by_its_frame() -> None:
    """What a collapse looked at last is a page that had this frame, most often the only one."""
    known = [
        pages
        for path in TRACED
        for window in trace.read(path)["tracepoints"]["windows"]
        for pages in window["pages"].values()
    ]
    assert len(known) > 20 and sum(len(pages) == 1 for pages in known) > len(known) / 2
