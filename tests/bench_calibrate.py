"""How far simulated time can be trusted: each recorded scenario is predicted by costs fitted to all the others.

python tests/bench_calibrate.py     a line; exit status 1 when a goal is missed
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench_goals import Goal, told
from mmlab.host.calibrate import calibrate, read

RECORDING = Path(__file__).with_name("calibration-6.18.json.gz")
"""13 scenarios of 18 batches, Linux 6.18.44 on a 2-core AMD EPYC virtual machine shared with others."""
MOST_ERROR, LEAST_CORRELATION = 15, 0.9
"""Percent; of 1."""


def main() -> list[Goal]:
    found = calibrate(read(RECORDING))
    batches = sum(len(one.cpu_ns) for one in found.observed)
    print(
        f"ksmd's CPU time, each of {len(found.observed)} recorded scenarios left out of the fit in turn: median error "
        f"{100 * found.median_error:.1f} %, largest {100 * abs(found.errors).max():.0f} %; rank correlation over "
        f"{batches} batches {found.rank_correlation:.3f}"
    )
    return [
        Goal(
            "ksmd's CPU time of a scenario that is left out of the fit, median error, %",
            100 * found.median_error,
            MOST_ERROR,
        ),
        Goal("… rank correlation over all batches", found.rank_correlation, LEAST_CORRELATION, least=True),
        Goal("recorded scenarios that the model does not repeat exactly", len(found.dropped), 0),
    ]


if __name__ == "__main__":
    sys.exit(told(main()))
