"""How far simulated time can be trusted: each recorded scenario is predicted by costs fitted to all the others.

python tests/bench_calibrate.py     a line; exit status 1 when a goal is missed
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmlab.calibrate import calibrate, read

RECORDING = Path(__file__).with_name("calibration-6.18.json.gz")
"""13 scenarios of 18 batches, Linux 6.18.44 on a 2-core AMD EPYC virtual machine shared with others."""
MOST_ERROR, LEAST_CORRELATION = 0.15, 0.9


def main() -> int:
    found = calibrate(read(RECORDING))
    batches = sum(len(one.cpu_ns) for one in found.observed)
    print(
        f"ksmd's CPU time, each of {len(found.observed)} recorded scenarios left out of the fit in turn: median error "
        f"{100 * found.median_error:.1f} % (at most {100 * MOST_ERROR:.0f} %), largest "
        f"{100 * abs(found.errors).max():.0f} %; rank correlation over {batches} batches {found.rank_correlation:.3f} "
        f"(at least {LEAST_CORRELATION})"
    )
    return int(found.median_error > MOST_ERROR or found.rank_correlation < LEAST_CORRELATION or bool(found.dropped))


if __name__ == "__main__":
    sys.exit(main())
