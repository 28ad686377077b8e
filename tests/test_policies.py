"""Policies: the tuners held against cases computed by hand and against the real script, and what a policy may do."""

from __future__ import annotations

import csv
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmlab.errors import UserError
from mmlab.policies import TUNERS, Ksmtuned, Tuner, View, read_conf, resolve, schedule
from mmlab.results.run import simulate
from mmlab.scenario import Scenario

DATA = Path(__file__).parent / "host" / "data"
GIB = 2**20  # kB


def view(total: int, committed: int, free: int, **more: Any) -> View:
    """A host as a policy sees it, in kB; processes share nothing."""
    knobs = {"pages_to_scan": more.pop("pages", 100), "run": more.pop("run", 1)}
    seen = {"time_s": 60, "calls": 0, "knobs": knobs, "total_kb": total, "free_kb": free, "rss_kb": committed}
    return View(**{**seen, "pss_kb": committed, "booted_s": 0.0, "counters": {}, "own": {}, **more})


def scenario(**fields: Any) -> Scenario:
    """4 MiB; ksmd does not run, steps cost no time."""
    setting = {"memory_mib": 4, "zero_fraction": 0.5, "horizon_seconds": 10.0, "costs": "free", "run": 0}
    return Scenario(**{**setting, **fields})


def cases() -> dict[tuple[str, str], list[dict[str, str]]]:
    """The decisions of tuner.csv, by conf and host."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (DATA / "tuner.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["conf"], row["total_kb"]), []).append(row)
    return found


@pytest.mark.parametrize(("conf", "total"), cases())
def test_ksmtuned_by_hand(conf: str, total: str) -> None:
    tuner, own, pages = Ksmtuned(**read_conf(DATA / conf)), dict[str, Any](), ""
    for row in cases()[conf, total]:
        knobs = tuner.decide(view(int(total), int(row["committed_kb"]), int(row["free_kb"]), own=own))
        pages = str(knobs.get("pages_to_scan", pages))
        assert (str(knobs["run"]), pages, str(knobs.get("sleep_millisecs", ""))) == (
            row["run"],
            row["pages_to_scan"],
            row["sleep_millisecs"],
        )


DRIVER = """
source <(sed "/^PIDFILE/,\\$d; s#/proc/meminfo#$1/meminfo#; s#/sys/kernel/mm/ksm#$1#; s#/etc/ksmtuned.conf#$1/conf#" $2)
pgrep() { echo 1; }
ps() { cat "$dir/rss"; }
dir=$1
while read free rss; do
    printf 'MemTotal: %d kB\nMemFree: %d kB\nBuffers: 0 kB\nCached: 0 kB\n' $total $free > $dir/meminfo
    echo $rss > $dir/rss
    adjust
    echo $(< $dir/run) $(< $dir/pages_to_scan) $(< $dir/sleep_millisecs)
done
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of Debian's package ksmtuned."""
    folder = tmp_path_factory.mktemp("ksmtuned")
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("no apt to get the package ksmtuned with")
    subprocess.run(["apt-get", "download", "ksmtuned"], cwd=folder, capture_output=True, timeout=60)
    found = list(folder.glob("*.deb"))
    if not found:
        pytest.skip("the package ksmtuned cannot be had")
    subprocess.run(["dpkg-deb", "-x", found[0], folder], check=True)
    return folder / "usr/sbin/ksmtuned"


@pytest.mark.parametrize("seed", range(10))
def test_ksmtuned_decides_as_the_script(seed: int, script: Path, tmp_path: Path) -> None:
    """1,000 random states in all; every second configuration is random too."""
    dice = random.Random(seed)
    total = dice.choice((2, 4, 16, 64, 256, 1500)) * GIB - dice.randrange(GIB)
    tuner = Ksmtuned()
    if seed % 2:
        tuner = Ksmtuned(
            npages_boost=dice.randrange(500),
            npages_decay=-dice.randrange(200),
            npages_min=dice.randrange(1000),
            npages_max=dice.randrange(2000),
            sleep_msec=dice.randrange(200),
            thres_coef=dice.randrange(100),
            thres_const=dice.choice((2048, total // 3)),
        )
    for name, text in {
        "conf": tuner.conf(),
        "meminfo": f"MemTotal: {total} kB",
        "run": 0,
        "pages_to_scan": 100,
    }.items():
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "sleep_millisecs").write_text("20\n")
    threshold = total * tuner.thres_coef // 100
    states = []
    for _ in range(100):
        free = dice.choice((threshold + dice.randrange(-2, 3), dice.randrange(total)))
        states.append((max(0, free), max(0, dice.choice((total - threshold + dice.randrange(-2, 3), total - free)))))
    done = subprocess.run(
        ["bash", "-c", DRIVER, "-", tmp_path, script],
        input="".join(f"{free} {rss}\n" for free, rss in states),
        capture_output=True,
        text=True,
        check=True,
    )
    knobs: dict[str, int | str] = {"run": 0, "pages_to_scan": 100, "sleep_millisecs": 20}
    own: dict[str, Any] = {}
    for (free, rss), line in zip(states, done.stdout.splitlines(), strict=True):
        knobs |= tuner.decide(view(total, rss, free, own=own))
        assert line == f"{knobs['run']} {knobs['pages_to_scan']} {knobs['sleep_millisecs']}", (free, rss)


@pytest.mark.parametrize(
    ("name", "seen", "knobs"),
    [
        # N2: 16 GiB, sleep 100; merging makes the PSS fall while the RSS stays
        ("proxmox", view(16 * GIB, 15 * GIB, GIB), {"pages_to_scan": 300, "sleep_millisecs": 100, "run": 1}),
        ("proxmox", view(16 * GIB, 15 * GIB, 8 * GIB, pss_kb=8 * GIB), {"run": 0}),
        (
            "ksmtuned",
            view(16 * GIB, 15 * GIB, 8 * GIB, pss_kb=8 * GIB),
            {"pages_to_scan": 64, "run": 1, "sleep_millisecs": 10},
        ),
        # N3: 100 ms × 16 GiB / 32 GiB
        ("kubevirt", view(40 * GIB, 0, 8 * GIB, run=0), {"pages_to_scan": 100, "sleep_millisecs": 50, "run": 1}),
        ("kubevirt", view(40 * GIB, 0, 8 * GIB, pages=1000), {"pages_to_scan": 1250, "sleep_millisecs": 50, "run": 1}),
        ("kubevirt", view(40 * GIB, 0, 20 * GIB, pages=114), {"pages_to_scan": 64, "sleep_millisecs": 80, "run": 1}),
        ("kubevirt", view(40 * GIB, 0, 20 * GIB, pages=113), {"pages_to_scan": 64, "run": 0}),
        ("kubevirt", view(40 * GIB, 0, 20 * GIB, run=0), {}),
        ("kubevirt", view(2**30, 0, 2**20), {"pages_to_scan": 400, "sleep_millisecs": 10, "run": 1}),
        # N4: 10 ms × 16 GiB / total, truncated, down to 0
        ("mom", view(16 * GIB, 15 * GIB, GIB), {"pages_to_scan": 400, "sleep_millisecs": 10, "run": 1}),
        ("mom", view(161 * GIB, 160 * GIB, 90 * GIB), {"pages_to_scan": 64, "sleep_millisecs": 0, "run": 1}),
        ("mom", view(16 * GIB, GIB, 15 * GIB), {"run": 0}),
        # N5: 1 GiB of anonymous memory, 262,144 pages
        (
            "kata",
            view(16 * GIB, GIB, GIB, time_s=20, booted_s=0),
            {"pages_to_scan": 26_214, "sleep_millisecs": 1, "run": 1},
        ),
        (
            "kata",
            view(16 * GIB, GIB, GIB, time_s=50, booted_s=20),
            {"pages_to_scan": 2621, "sleep_millisecs": 10, "run": 1},
        ),
        (
            "kata",
            view(16 * GIB, GIB, GIB, time_s=170, booted_s=20),
            {"pages_to_scan": 524, "sleep_millisecs": 100, "run": 1},
        ),
        (
            "kata",
            view(16 * GIB, GIB, GIB, time_s=290, booted_s=20),
            {"pages_to_scan": 100, "sleep_millisecs": 20, "run": 1},
        ),
    ],
)
def test_tuners_by_hand(name: str, seen: View, knobs: dict[str, int]) -> None:
    policy = resolve(name)
    assert policy is not None
    assert policy.decide(seen) == knobs


def test_when_tuners_decide() -> None:
    def first(name: str, many: int = 4) -> list[float]:
        policy = resolve(name)
        assert policy is not None
        return [at for at, _ in zip(policy.moments([0.0, 50.0]), range(many), strict=False)]

    assert first("ksmtuned") == first("proxmox") == [60, 120, 180, 240]
    assert first("kubevirt") == [0, 600, 1200, 1800]
    assert first("mom") == [10, 20, 30, 40]
    assert first("kata", 99) == [0, 30, 50, 80, 150, 200, 270, 320]


def test_a_tuner_in_a_scenario() -> None:
    """By name, with parameters, in Python, and as YAML: the same run."""
    asked = scenario(host_mib=4, horizon_seconds=130.0)
    tuned = {"name": "ksmtuned", "npages_boost": 7, "npages_min": 0}
    run = simulate(asked.replace(policy=tuned))
    assert run.rows["pages_to_scan"][-1] == 14
    assert run.rows.tobytes() == simulate(asked, policy=Ksmtuned(npages_boost=7, npages_min=0)).rows.tobytes()
    assert asked.replace(policy=tuned).changed()["policy"] == tuned
    plan = {"name": "schedule", "steps": [[3, {"pages_to_scan": 9}]]}
    assert simulate(asked.replace(policy=plan)).rows["pages_to_scan"][-1] == 9


@pytest.mark.parametrize("tuner", TUNERS.values())
def test_tuners_explain_themselves(tuner: type[Tuner]) -> None:
    assert "(tuners N" in (tuner.__doc__ or "") or tuner.__name__ == "Schedule"
    name = tuner.model_fields["name"].default
    assert Scenario(policy={"name": name}).policy == tuner()


def test_a_host_that_is_simulated_smaller() -> None:
    """The policy sees and sets the knobs of the real host; ksmd's pace is a quarter of it, 96 ms for 24 (N9)."""
    seen: list[View] = []

    def watch(now: View) -> dict[str, int | str]:
        seen.append(now)
        return {"pages_to_scan": 400, "run": 1}

    small = scenario(host_mib=64, host_scale=4.0, memory_mib=400, horizon_seconds=10.0)
    run = simulate(small, policy=(watch, 4))
    assert (seen[0].total_kb, seen[0].rss_kb, seen[0].free_kb) == (64 * 1024, 4 * 400 * 1024, 0)
    assert seen[1].knobs["pages_to_scan"] == 400
    state = run.machine.state[0]
    assert (state["pages_to_scan"], state["sleep_millisecs"], state["hz"]) == (400, 4 * 24 - 4, 250)


def test_conf_files() -> None:
    assert read_conf(DATA / "ksmtuned.conf") == {}
    assert Ksmtuned(**read_conf(DATA / "ksmtuned-fast.conf")) == Ksmtuned(
        sleep_msec=30,
        npages_boost=0,
        npages_decay=0,
        npages_min=1000,
        npages_max=25_000,
        thres_coef=80,
        thres_const=8192,
    )
    with pytest.raises(UserError) as caught:
        read_conf(DATA / "ksmtuned-bad.conf")
    first, (second,) = caught.value, caught.value.others
    assert (first.parameter, first.value) == ("KSM_SLEEP_MSEC", "fast") and first.where.endswith("bad.conf, line 1")
    assert (second.value, second.where[-6:]) == ("KSM_NPAGES_BOST", "line 2")
    with pytest.raises(UserError, match="nowhere"):
        read_conf(DATA / "nowhere.conf")


def test_conf_of_a_tuner_reads_back(tmp_path: Path) -> None:
    tuner = Ksmtuned(sleep_msec=33, npages_decay=-5)
    (tmp_path / "conf").write_text(f"export KSM_THRES_COEF='7' # a comment\n{tuner.conf()}\n")
    assert Ksmtuned(**read_conf(tmp_path / "conf")) == tuner


def test_ksmtuned_in_a_run() -> None:
    """A host of 1 MiB is always short of memory: 300 more pages each minute, up to 1250."""
    seen = []

    def watch(now: View) -> dict[str, int | str]:
        seen.append((now.time_s, now.knobs["pages_to_scan"], now.knobs["run"], now.free_mib, now.rss_kb))
        return dict(Ksmtuned().decide(now))

    asked = scenario(host_mib=1, horizon_seconds=400.0)
    run = simulate(asked, policy=(watch, 60))
    assert [s[0] for s in seen] == [60, 120, 180, 240, 300, 360]
    assert [s[1] for s in seen] == [100, 300, 600, 900, 1200, 1250]
    assert [s[2] for s in seen] == [0, 1, 1, 1, 1, 1]
    assert seen[0][3:] == (0, 4 * 1024)
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
    assert [now.rss_kb for now in seen] == [4 * 1024, 8 * 1024, 8 * 1024]
    assert [now.booted_s for now in seen] == [0, 5, 5]
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
    for tuner in (Ksmtuned(), "ksmtuned"):
        policy = resolve(tuner)
        assert policy is not None
        assert (policy.name, policy.interval, policy.first) == ("ksmtuned", 60.0, None)
    with pytest.raises(UserError, match="ksmtuned") as caught:
        resolve("ksmtune")
    assert (caught.value.parameter, caught.value.value) == ("policy", "ksmtune")
    for interval in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError) as caught:
            resolve((Ksmtuned().decide, interval))
        assert (caught.value.where, caught.value.parameter) == ("policy decide", "interval")
    with pytest.raises(UserError) as caught:
        schedule([(-1, {})])
    assert (caught.value.where, caught.value.value, caught.value.allowed) == ("schedule", -1, "at least 0 (s)")
    with pytest.raises(UserError, match="ksmtuned") as caught:
        simulate(scenario(horizon_seconds=0.0, horizon_full_scans=2), policy="ksmtuned")
    assert caught.value.parameter == "horizon_seconds"
