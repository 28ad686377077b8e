"""The scan-time advisor (ksm-scan S29 to S32), against hand-made numbers and a recording of a busy ksmd."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mmlab import Scenario, simulate
from mmlab.kernel.advisor import advised_pages
from mmlab.results import trace

HEAVY = Path(__file__).parent / "advisor" / "live618-advisor-heavy.json.gz"
NO_HISTORY = (0, 0)


@pytest.mark.parametrize(
    ("scan_ms", "cpu_ms", "expected"),
    [
        # 500 pages, target 200 s, so factor 20000 / t; the first change is scaled by 30 / 100; at most 70 % CPU
        (400_000, 200_000, (300, 400, 30)),  # 50 % CPU: 500 * 100 / 50 * 30 / 100, between 10 and 70 times 500 / 50
        (400_000, 40_000, (500, 400, 30)),  # 10 %: 300 is below 10 times 500 / 10
        (4_000_000, 400_000_000, (70, 4000, 30)),  # 10,000 %: 3,000 is above 70 times max(1, 500 / 10,000) …
        (400, 999, (50, 1, 30)),  # shorter than 1 s counts as 1 s; 99 % CPU: 7 is below 10 times 5
    ],
)
def test_one_step(scan_ms: int, cpu_ms: int, expected: tuple[int, int, int]) -> None:
    assert advised_pages(500, scan_ms, cpu_ms, 200, 70, 30_000, *NO_HISTORY) == expected


def test_history_is_smoothed() -> None:
    _, seconds, change = advised_pages(500, 100_000, 20_000, 200, 70, 30_000, *NO_HISTORY)
    assert (seconds, change) == (100, 30)
    _, seconds, change = advised_pages(500, 100_000, 20_000, 200, 70, 30_000, seconds, change)
    assert (seconds, change) == (100, 51)  # S32: the second by about 51 / 100
    _, seconds, change = advised_pages(500, 300_000, 60_000, 200, 70, 30_000, seconds, change)
    assert change == (70 * 51 + 30 * 300) // 100


def test_recorded_choices_follow_from_the_rule() -> None:
    """Elapsed and CPU times were measured from outside, as bounds: each recorded value must follow from some inside."""
    recorded = trace.read(HEAVY)
    knobs = dict(recorded["scenario"]["knobs"])
    scans, chosen = (recorded["fields"].index(name) for name in ("full_scans", "pages_to_scan"))
    after = {}
    for row in recorded["samples"]:
        after.setdefault(row[scans], row[chosen])
    possible = {(after[0], *NO_HISTORY)}
    for scan in recorded["advisor"]:
        number = scan["full_scan"]
        for event in recorded["scenario"]["events"]:
            if event["after"].get("full_scan") == number - 1:
                knobs[event["knob"]] = event["value"]
        elapsed, cpu = ([int(bound) for bound in scan[name]] for name in ("elapsed_ms", "cpu_ms"))
        possible = {
            advised_pages(
                pages,
                scan_ms,
                cpu_ms,
                knobs["advisor_target_scan_time"],
                knobs["advisor_max_cpu"],
                knobs["advisor_max_pages_to_scan"],
                seconds,
                change,
            )
            for pages, seconds, change in possible
            for scan_ms in {elapsed[0], *range(elapsed[0] // 1000 * 1000 + 1000, elapsed[1] + 1, 1000)}
            for cpu_ms in range(cpu[0], cpu[1] + 1)
        }
        possible = {state for state in possible if state[0] == after[number]}
        assert possible, f"full scan {number}: {after[number]} does not follow"


def test_mode_decides_who_sets_pages_to_scan() -> None:
    events = [
        {"after": {"batch": 1}, "op": "set", "knob": knob, "value": value}
        for knob, value in (
            ("pages_to_scan", 7),
            ("advisor_min_pages_to_scan", 40),
            ("advisor_mode", "scan-time"),
            ("pages_to_scan", 8),
            ("advisor_mode", "scan-time"),
            ("advisor_target_scan_time", 0),
            ("advisor_mode", "none"),
            ("pages_to_scan", 9),
        )
    ]
    run = simulate(Scenario(memory_mib=8, horizon_batches=2, horizon_seconds=0, events=events))
    assert run.results == [0, 0, 0, errno.EINVAL, 0, errno.EINVAL, 0, 0]
    rows = [i for i in run.event_rows if i is not None]
    assert run.rows["pages_to_scan"][rows].tolist() == [7, 7, 40, 40, 40, 40, 100, 9]


def test_all_cpu_time_since_boot_counts_as_the_first_full_scans() -> None:
    """S31: the history is empty then. 50 s of CPU time in a scan of 1 s are 5,000 %, so pages_to_scan falls at once."""
    asked = Scenario(memory_mib=8, advisor_mode="scan-time", advisor_target_scan_time=1, horizon_full_scans=3)
    fresh, used = (simulate(asked.replace(ksmd_cpu_before_seconds=seconds)) for seconds in (0.0, 50.0))
    first = [int(run.rows["pages_to_scan"][run.rows["full_scans"] == 1][0]) for run in (fresh, used)]
    assert first[1] == advised_pages(500, 0, 50_000, 1, 70, 30_000, *NO_HISTORY)[0] == 70 < first[0]
    never = asked.replace(advisor_mode="none")
    runs = [simulate(never.replace(ksmd_cpu_before_seconds=seconds)).rows.tobytes() for seconds in (0.0, 50.0)]
    assert runs[0] == runs[1], "nobody asks"
