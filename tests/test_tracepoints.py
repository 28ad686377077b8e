"""The running kernel's own tracepoints against the model's decisions: ten recordings of 6.18 that have both."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mmlab.cli import cli
from mmlab.host.tracepoints import compare_file
from mmlab.results import trace

TRACED = trace.find(Path(trace.__file__).parents[1] / "recordings" / "traced-*")


def test_ten_recordings_ship() -> None:
    assert len(TRACED) >= 10 and sum(path.stat().st_size for path in TRACED) < 100_000


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
