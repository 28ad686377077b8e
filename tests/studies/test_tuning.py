"""Tuning: the budgets it finds are the smallest and the largest that do, and its law predicts what is simulated."""

import pytest

from mmlab import Scenario, simulate
from mmlab.errors import UserError
from mmlab.studies.tuning import Goal, Tuning, Work, commands

GUESTS = Scenario(
    memory_mib=8, processes=2, zero_fraction=0.5, layout="bimodal", duplicate_fraction=0.3, duplicate_groups=200
)
PAIR = ("mainline", "ksm-opt-out")


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return Tuning(GUESTS, Goal(share=0.9, seconds=5, cpu_percent=10), PAIR)


def test_saved_is_memory_not_counters(tuning: Tuning) -> None:
    run = simulate(tuning.scenario.replace(pages_to_scan=1000), variant="mainline")
    point = tuning.at(1000, "mainline")
    assert point == tuning.measure(run)
    assert point.saved_mib == pytest.approx(run.metrics.freed_mib, abs=0.1)
    assert point.shown_mib < point.saved_mib / 2, "mainline's counters don't show what its splits remap"
    assert tuning.goal_mib == pytest.approx(0.9 * tuning.possible_mib)
    assert tuning.possible_mib == max(point.saved_mib for point in tuning.long.values())


@pytest.mark.parametrize("variant", PAIR)
def test_least_and_most(tuning: Tuning, variant: str) -> None:
    least, most = tuning.least(variant), tuning.most(variant)
    assert least
    assert most
    assert tuning.in_time(least)
    assert not tuning.in_time(tuning.at(least.pages_to_scan - (1 if least.pages_to_scan < 100 else 10), variant))
    assert (
        most.cpu_percent
        <= 10
        < tuning.at(most.pages_to_scan + (10 if most.pages_to_scan < 1000 else 100), variant).cpu_percent
    )
    assert tuning.met(least) == (least.cpu_percent <= 10)


def test_what_the_variant_changes(tuning: Tuning) -> None:
    """With use_zero_pages=0 dead nodes cost mainline full scans; with 1 they cost it nothing."""
    slow, fast = (tuning.least(variant) for variant in PAIR)
    assert slow
    assert fast
    assert slow.pages_to_scan >= 2 * fast.pages_to_scan
    assert slow.full_scans > fast.full_scans
    assert slow.wasted > 0 == fast.wasted
    eased = tuning.least("mainline", use_zero_pages=1)
    assert eased
    assert eased.pages_to_scan <= fast.pages_to_scan
    assert len(tuning.groups) == 2


def test_own_variant(tuning: Tuning) -> None:
    def never(_: object) -> bool:
        return False

    assert tuning.at(500, never) == tuning.at(500, "ksm-opt-out")


def test_work_predicts_other_budgets(tuning: Tuning) -> None:
    work = Work.of(tuning.at(220, "ksm-opt-out"))
    for budget in (50, 100, 460):
        assert work.seconds(budget) == pytest.approx(tuning.at(budget, "ksm-opt-out").seconds, rel=0.1)
    for budget in (1000, 4097):
        assert work.seconds(budget) >= tuning.at(budget, "ksm-opt-out").seconds, "few batches: at most so many"
    assert work.budget(work.seconds(300)) == pytest.approx(300)
    assert work.budget(work.cpu_s) == float("inf")
    assert work.soonest(50) == pytest.approx(max(2 * work.cpu_s, work.seconds(float("inf"))))


def test_guests_that_come_and_go() -> None:
    """A guest that boots later takes memory, and one that exits gives it back: neither is saved or lost by KSM."""
    guests = GUESTS.replace(boot_interval_seconds=3.0, lifetime_seconds=20.0, horizon_seconds=40.0)
    tuning = Tuning(guests, Goal(0.9, 10, 100), PAIR)
    idle = simulate(tuning.scenario.replace(run=0))
    assert tuning.saved(idle).tolist() == [0.0] * len(idle.rows)
    assert 0.9 * 16 > tuning.possible_mib > 0.4 * 16
    assert tuning.at(1000, "ksm-opt-out").reached


def test_ksmd_stops_once_it_is_enough() -> None:
    """Beside migration nothing ever settles: a run ends with the goal, and up to it nothing is different."""
    tuning = Tuning(GUESTS.replace(migration_rate=1.0), Goal(0.9, 20, 100), PAIR)
    point = tuning.at(200, "ksm-opt-out")
    whole = tuning.measure(simulate(tuning.scenario.replace(pages_to_scan=200), variant="ksm-opt-out"))
    assert point.reached
    for name in ("seconds", "cpu_s", "visits", "full_scans"):
        assert getattr(point, name) == getattr(whole, name)
    assert point.saved_mib <= whole.saved_mib


def test_nothing_to_save() -> None:
    tuning = Tuning(Scenario(memory_mib=2), Goal(0.9, 5, 20), PAIR)
    assert tuning.possible_mib == 0
    assert not tuning.at(1000, "mainline").reached
    assert tuning.least("mainline") is None
    assert not tuning.met(None)


@pytest.mark.parametrize("goal", [(0.0, 5, 20), (1.1, 5, 20), (0.9, 0, 20), (0.9, 5, 101)])
def test_goals_out_of_range(goal: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match=r"(share|seconds|cpu_percent) = .* must be above 0 and at most"):
        Goal(*goal)


def test_commands() -> None:
    lines = commands(GUESTS.replace(use_zero_pages=1), 150).splitlines()
    assert lines[0] == "echo none > /sys/kernel/mm/ksm/advisor_mode", "it resets pages_to_scan"
    assert "echo 150 > /sys/kernel/mm/ksm/pages_to_scan" in lines
    assert "echo 1 > /sys/kernel/mm/ksm/use_zero_pages" in lines
    assert lines[-1] == "echo 1 > /sys/kernel/mm/ksm/run"
    old = commands(GUESTS.replace(kernel="6.1"), 150)
    assert "advisor" not in old
    assert "smart_scan" not in old
    assert "smart_scan" in commands(GUESTS.replace(kernel="6.12"), 150)
