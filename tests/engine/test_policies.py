"""Policies: ksmtuned by hand-computed examples, schedules, and what a policy may return."""

from __future__ import annotations

from typing import Any

import pytest

from mmlab.engine.policies import POLICIES, Policy, View, ksmtuned, resolve, schedule
from mmlab.errors import UserError
from mmlab.results.run import simulate
from mmlab.scenario import Scenario


def view(host: int, committed: float, free: float, pages: int = 100) -> View:
    return View(
        time_s=60,
        calls=0,
        knobs={"pages_to_scan": pages, "run": 1},
        free_mib=free,
        committed_mib=committed,
        host_mib=host,
        counters={},
    )


def scenario(**fields: Any) -> Scenario:
    """4 MiB; ksmd does not run, steps cost no time."""
    setting = {"memory_mib": 4, "zero_fraction": 0.5, "horizon_seconds": 10.0, "costs": "free", "run": 0}
    return Scenario(**{**setting, **fields})


@pytest.mark.parametrize(
    ("seen", "knobs"),
    [
        # 16 GiB: the threshold is 20 % = 3276 MiB, the sleep 100 ms
        (view(16_384, 4_096, 12_000), {"run": 0}),
        (view(16_384, 13_107, 12_000), {"run": 0}),  # 13,107 + 3,276 < 16,384
        (view(16_384, 13_108, 12_000), {"pages_to_scan": 64, "sleep_millisecs": 100, "run": 1}),  # not 50
        (view(16_384, 4_096, 3_276), {"pages_to_scan": 64, "sleep_millisecs": 100, "run": 1}),  # not more than 3,276
        (view(16_384, 4_096, 3_275), {"pages_to_scan": 400, "sleep_millisecs": 100, "run": 1}),
        (view(16_384, 20_000, 9_000, 1000), {"pages_to_scan": 950, "sleep_millisecs": 100, "run": 1}),
        (view(16_384, 20_000, 100, 1000), {"pages_to_scan": 1250, "sleep_millisecs": 100, "run": 1}),
        # 4 GiB: 2048 MiB are more than 20 %; four times the sleep
        (view(4_096, 2_048, 3_000), {"pages_to_scan": 64, "sleep_millisecs": 400, "run": 1}),
        (view(4_096, 2_047, 3_000), {"run": 0}),
        # 1 TiB: 1.6 ms become 10
        (view(2**20, 2**21, 1_000), {"pages_to_scan": 400, "sleep_millisecs": 10, "run": 1}),
    ],
)
def test_ksmtuned(seen: View, knobs: dict[str, int]) -> None:
    assert ksmtuned(seen) == knobs


def test_ksmtuned_in_a_run() -> None:
    """A host of 8 MiB is always short of memory: 300 more pages each minute, up to 1250."""
    seen = []

    def watch(now: View) -> dict[str, int | str]:
        seen.append((now.time_s, now.knobs["pages_to_scan"], now.knobs["run"], now.free_mib, now.committed_mib))
        return dict(ksmtuned(now))

    asked = scenario(host_mib=8, horizon_seconds=400.0)
    run = simulate(asked, policy=(watch, 60))
    assert [s[0] for s in seen] == [60, 120, 180, 240, 300, 360]
    assert [s[1] for s in seen] == [100, 400, 700, 1000, 1250, 1250]
    assert [s[2] for s in seen] == [0, 1, 1, 1, 1, 1]
    assert seen[0][3:] == (4, 4)
    assert run.rows["pages_scanned"][-1] > 0
    assert run.rows.tobytes() == simulate(asked.replace(policy="ksmtuned")).rows.tobytes()
    assert run.rows.tobytes() == simulate(asked, policy="ksmtuned").rows.tobytes()
    assert simulate(asked.replace(policy="ksmtuned"), policy="none").rows["pages_scanned"][-1] == 0


def test_schedule() -> None:
    seen = []

    def watch(now: View) -> dict[str, int | str]:
        seen.append((now.knobs["pages_to_scan"], now.knobs["run"], now.knobs["advisor_mode"]))
        return {}

    plan = schedule([(4.0, {"pages_to_scan": 7}), (2.0, {"run": 1, "pages_to_scan": 50}), (4.0, {"run": 0})])
    run = simulate(scenario(), policy=plan)
    rows = run.rows[run.rows["rank"] > 0]
    assert [t for t in rows["time_ns"].tolist() if t % 1_000_000_000 == 0][:3] == [2_000_000_000] + [4_000_000_000] * 2
    last = run.machine.state[0]
    assert (last["pages_to_scan"], last["run"]) == (7, 0)
    moved = run.rows["time_ns"][run.rows["pages_scanned"] > 0]
    assert moved[0] == 2_000_000_000
    simulate(scenario(), policy=(watch, 4))
    assert seen == [(100, 0, "none")] * 2
    assert simulate(scenario(), policy=schedule([])).rows["batch"][-1] == 0


def test_advisor_is_a_knob() -> None:
    run = simulate(scenario(), policy=schedule([(1, {"advisor_mode": "scan-time"})]))
    assert run.machine.state[0]["pages_to_scan"] == 500


def test_what_a_policy_sees() -> None:
    seen: list[View] = []

    def watch(now: View) -> dict[str, int | str]:
        seen.append(now)
        return {}

    watch.interval = 3  # type: ignore[attr-defined]
    run = simulate(scenario(processes=2, boot_interval_seconds=5.0, host_mib=64), policy=watch)
    assert [now.time_s for now in seen] == [3, 6, 9] and [now.calls for now in seen] == [0, 1, 2]
    assert [now.committed_mib for now in seen] == [4, 8, 8]
    assert [now.free_mib for now in seen] == [60, 56, 56]
    assert seen[0].counters["frames"] == 1024 and seen[0].counters["time_ns"] == 3_000_000_000
    assert set(run.rows.dtype.names or ()) == set(seen[0].counters)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"pages_to_scna": 3}, "pages_to_scna"),
        ({"run": 3}, "run = 3"),
        ({"pages_to_scan": 1.5}, "pages_to_scan = 1.5"),
        ({"advisor_mode": "fast"}, "advisor_mode = 'fast'"),
        ({"swap_mib": 3}, "swap_mib"),
    ],
)
def test_what_a_policy_may_not_return(knobs: dict[str, Any], words: str) -> None:
    def bad(_: View) -> dict[str, Any]:
        return knobs

    with pytest.raises(UserError, match=words) as caught:
        simulate(scenario(), policy=(bad, 2))
    assert caught.value.where == "policy bad at 2 s"


def test_names_and_intervals() -> None:
    assert resolve(None) is resolve("none") is None
    assert resolve("ksmtuned") is POLICIES["ksmtuned"]
    assert resolve(ksmtuned) == Policy("ksmtuned", ksmtuned, 60.0)
    with pytest.raises(UserError, match="ksmtuned") as caught:
        resolve("ksmtune")
    assert (caught.value.parameter, caught.value.value) == ("policy", "ksmtune")
    for interval in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError) as caught:
            resolve((ksmtuned, interval))
        assert (caught.value.where, caught.value.parameter) == ("policy ksmtuned", "interval")
    with pytest.raises(UserError) as caught:
        schedule([(-1, {})])
    assert (caught.value.where, caught.value.value, caught.value.allowed) == ("schedule", -1, "at least 0 (s)")
    with pytest.raises(UserError, match="ksmtuned") as caught:
        simulate(scenario(horizon_seconds=0.0, horizon_full_scans=2), policy="ksmtuned")
    assert caught.value.parameter == "horizon_seconds"
