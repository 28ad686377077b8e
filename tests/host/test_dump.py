"""Dumps of hosts: every form that people paste, what it means, and a scenario that has the same counters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from mmlab import Scenario, cli, simulate
from mmlab.errors import UserError
from mmlab.host import dump as dumps
from mmlab.host.dump import Dump, parse, rates, read, reproduce

DATA = Path(__file__).with_name("data")
NODE = {"pages_shared": 171_264, "pages_sharing": 1_368_772, "pages_unshared": 545_943, "pages_volatile": 10_909}
SMALL = {"pages_shared": 40, "pages_sharing": 360, "pages_unshared": 500, "pages_volatile": 100}
"""pages_to_scan and sleep_millisecs are left to their defaults."""


def one(name: str) -> Dump:
    (found,) = read([DATA / name])
    return found


def words(name: str) -> str:
    return " ".join(one(name).words())


# -- the forms ------------------------------------------------------------------------------------------------------


def test_a_virtualisation_node() -> None:
    found = one("node.txt")
    assert found.pages == 2_096_888
    assert found.chained == 137_728
    assert {name: found[name] for name in NODE} == NODE
    said = words("node.txt")
    assert "137,728 mappings" in said
    assert "nearly surely zero-filled" in said
    assert "8,191 MiB" in said


def test_an_older_kernel() -> None:
    found = one("vms.txt")
    assert found.pages == 2_303_040
    assert "at least 77 min" in words("vms.txt")


def test_a_desktop_with_smart_scan() -> None:
    """pages_volatile from the profit (I3), and why half of the pages of a quiet machine are volatile (I5)."""
    found = one("desktop.txt")
    assert found.volatile == (31_557 * 4096 - 100_941_824) // 64 - 3213 - 31_557 - 181_131 == 226_531
    assert "51 % of the pages are volatile, which does not mean that they are written" in words("desktop.txt")


def test_an_issue_with_two_dumps() -> None:
    first, second = read([DATA / "prompts.md"])
    assert (first.host, second.host) == ("host", "host")
    assert first.time and second.time
    assert (second.time - first.time).total_seconds() == 602
    said = rates(first, second)
    assert "pages_sharing 81,240 → 97,004: +15,764 (+368 MiB/h) in 10 min, in 14 full scans." in said
    assert said[-1] == "A full scan takes 43 s, 116 ms from batch to batch."
    assert rates(first, first) == ["No counter changed."]


def test_ksm_that_never_ran() -> None:
    said = words("off.txt")
    assert "KSM has never run: run is 0" in said
    assert "Nothing is mergeable unless a program advises it" in said
    with pytest.raises(UserError, match="nothing to reproduce"):
        reproduce(one("off.txt"))


def test_impossible_numbers() -> None:
    with pytest.raises(UserError) as found:
        one("impossible.txt")
    assert "pages_unshared = -4 is impossible: it counts something" in str(found.value)
    assert "pages_sharing = 5120 is impossible: nothing is shared (pages_shared is 0)" in str(found.value)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"max_page_sharing": 4, "pages_sharing": 121}, "pages_sharing"),
        ({"stable_node_dups": 41}, "stable_node_dups"),
        ({"stable_node_dups": 1, "stable_node_chains": 2}, "stable_node_chains"),
        ({"run": 3}, "run"),
        ({"general_profit": 361 * 4096}, "general_profit"),
        ({"full_scans": -1}, "full_scans"),
    ],
)
def test_each_impossible_number(values: dict[str, int], name: str) -> None:
    known = {key: value for key, value in SMALL.items() if key != "pages_volatile"}
    Dump(known).check()
    with pytest.raises(UserError) as found:
        Dump(known | values).check()
    assert found.value.parameter == name


def test_a_missing_counter() -> None:
    with pytest.raises(UserError, match="pages_unshared is missing"):
        Dump({"pages_shared": 1, "pages_sharing": 5}).check()


def test_node_exporter_is_read_as_the_node() -> None:
    found = one("exporter.txt")
    assert {name: found[name] for name in NODE} == NODE
    assert (found["sleep_millisecs"], found["pages_to_scan"], found["full_scans"]) == (20, 100, 1284)


def test_virsh_is_read_as_the_vms() -> None:
    names = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "sleep_millisecs", "full_scans")
    assert [one("virsh.txt")[name] for name in names] == [one("vms.txt")[name] for name in names]


@pytest.mark.parametrize(
    "form",
    [
        "/sys/kernel/mm/ksm/{}:{}",
        "{}: {}",
        "{}={}",
        "{} = {}",
        "{}\t{}",
        "> /sys/kernel/mm/ksm/{}:{}",
        "| {} | {} |",
        "- `{}`: {}",
        '  "{}": {},',
        "node7: /sys/kernel/mm/ksm/{}:{}",
        "/sys/kernel/mm/ksm/{}\n{}",
        "==> /sys/kernel/mm/ksm/{} <==\n{}\n",
        "root@node7:~# cat /sys/kernel/mm/ksm/{}\n{}",
        'node_ksmd_{}{{instance="node7:9100",job="node"}} {} 1741082401000',
        "node_ksmd_{}_total {}",
        "shm_{}   {}",
    ],
)
def test_forms(form: str) -> None:
    text = "\n".join(form.format(name, value) for name, value in SMALL.items())
    (found,) = parse(f"Is that normal?\n{text}\r\nThanks, 42 times\n")
    assert found.values == SMALL
    assert found.host == ("node7" if re.match(r"node7|root@", form) else "")


def test_hosts_and_times() -> None:
    """Lines of several hosts in turns; a name that comes again begins another dump."""
    lines = [f"{host}: pages_shared:{i}\n{host}: pages_sharing:{i}" for i in (1, 2) for host in ("a", "b")]
    found = parse("\n".join(lines))
    assert [(each.host, each["pages_shared"], each["pages_sharing"]) for each in found] == [
        ("a", 1, 1),
        ("b", 1, 1),
        ("a", 2, 2),
        ("b", 2, 2),
    ]
    dated = "2026-03-04 10:00:00\npages_shared 1\n2026-03-04T11:00:00+01:00\npages_sharing 7"
    assert [each.time.hour for each in parse(dated) if each.time] == [10, 11]


def test_values() -> None:
    text = "advisor_mode:[none] scan-time\npages_shared:1,368,772\npages_sharing 1.5e+06\npages_unshared 1_000"
    (found,) = parse(text)
    assert list(found.values.values()) == ["none", 1_368_772, 1_500_000, 1000]
    (other,) = parse("advisor_mode:none [scan-time]\nfull_scans:1")
    assert other.values["advisor_mode"] == "scan-time"


# -- what stands beside a dump ---------------------------------------------------------------------------------------


def test_files_beside(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:       16777216 kB\nAnonHugePages:   2048000 kB\n")
    stat = tmp_path / "vmstat"
    stat.write_text("thp_split_page 12\ncow_ksm 5\n")
    (found,) = read([info, DATA / "node.txt", stat, DATA / "ksmtuned-fast.conf"])
    assert found.beside == {"MemTotal": 16_777_216, "AnonHugePages": 2_048_000, "thp_split_page": 12, "cow_ksm": 5}
    said = " ".join(found.words())
    assert "less than 80 % of memory is free" in said
    assert "1,000 to 25,000 pages a batch" in said
    assert "13,107 MiB, and a batch every 30 ms" in said
    assert "Huge pages hold 2,000 MiB now" in said
    assert "5 merged pages were written" in said
    (plain,) = read([DATA / "node.txt", DATA / "ksmtuned.conf"])
    assert "less than 20 % of memory is free" in " ".join(plain.words())


def test_a_conf_with_mistakes() -> None:
    with pytest.raises(UserError) as found:
        read([DATA / "node.txt", DATA / "ksmtuned-bad.conf"])
    assert "ksmtuned-bad.conf, line 1: KSM_SLEEP_MSEC = 'fast'" in str(found.value)
    assert "line 2: unknown name 'KSM_NPAGES_BOST'" in str(found.value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b" \n", "empty"),
        (b"\x1f\x8b\x08", "mmlab compare"),
        (b"a\0b", "binary"),
        (b"run: 1\npages_to_scan: 100\n", "begins with 'run: 1'"),
        ("Größe".encode("latin-1"), "begins with"),
    ],
)
def test_files_that_are_no_dump(content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError) as found:
        read([tmp_path / "file"])
    assert kind in str(found.value)
    assert "node_exporter" in found.value.hint


def test_no_dump_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dump beside"):
        read([DATA / "ksmtuned.conf"])
    with pytest.raises(UserError, match="No such file"):
        read([tmp_path / "missing"])


# -- the scenario ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["node.txt", "vms.txt", "desktop.txt", "prompts.md", "exporter.txt"])
def test_a_run_repeats_the_dump(name: str) -> None:
    """Shared, sharing, unshared within 1 %, and the profit; the scenario by itself ends with the same counters."""
    dump = read([DATA / name])[-1]
    made = reproduce(dump)
    assert made.exact
    told = dict(zip(made.rows["counter"], made.rows["difference, %"], strict=True))
    assert all(abs(difference) <= 1 for difference in told.values()), told
    assert {"pages_shared", "pages_sharing", "pages_unshared"} < told.keys()
    assert ("general_profit" in told) == (name == "desktop.txt")
    assert 0 < made.cpu_percent < 100
    if name == "desktop.txt":
        assert made.run.columns()["full_scans"][made.row] == dump["full_scans"]
        last = {key: values[-1] for key, values in simulate(made.scenario).columns().items()}
        assert [int(last[key]) for key in made.rows["counter"]] == made.rows["predicted"]


CASES: dict[str, dict[str, Any]] = {
    "merged pages alone": {"pages_shared": 50, "pages_sharing": 20},
    "zeropages": {"ksm_zero_pages": 300, "use_zero_pages": 1, "general_profit": 360 * 4096},
    "three chains": {"pages_shared": 60, "pages_sharing": 2200, "stable_node_dups": 12, "stable_node_chains": 3},
    "old kernel without a limit": {"pages_shared": 2, "pages_sharing": 3000},
    "written with smart scan": {"smart_scan": 1, "full_scans": 2, "pages_volatile": 700},
    "skipped for long": {"smart_scan": 1, "full_scans": 5000, "pages_volatile": 450, "pages_unshared": 50},
    "nothing volatile": {"pages_volatile": 0},
    "without sleep": {name: 100 * value for name, value in SMALL.items()} | {"sleep_millisecs": 0},
    "with the advisor": {"advisor_mode": "scan-time", "advisor_target_scan_time": 30, "full_scans": 7},
}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_other_hosts(values: dict[str, Any]) -> None:
    dump = Dump(SMALL | {"pages_to_scan": 10, "sleep_millisecs": 20} | values)
    if "general_profit" in values:
        dump.values["general_profit"] -= 64 * (dump.pages + 300)
    made = reproduce(dump)
    assert made.exact, made.text()


def test_knobs_and_kernel() -> None:
    """A kernel without the files of newer ones is an older one, whose splits never remap."""
    old = reproduce(Dump(SMALL | {"sleep_millisecs": 0, "merge_across_nodes": 0})).scenario
    assert (old.kernel, old.variant, old.smart_scan, old.sleep_millisecs) == ("6.1", "legacy", 0, 0)
    new = reproduce(Dump(SMALL | {"smart_scan": 1, "pages_to_scan": 7})).scenario
    assert (new.kernel, new.variant, new.smart_scan, new.pages_to_scan) == ("6.12", "mainline", 1, 7)


def test_a_large_host_is_simulated_smaller() -> None:
    dump = Dump({name: 16 * value for name, value in NODE.items()} | {"pages_to_scan": 4000, "sleep_millisecs": 20})
    made = reproduce(dump)
    assert made.factor == 8
    assert made.scenario.total_pages < dumps.MOST_PAGES * 1.01
    assert made.exact
    assert "simulated 8 times smaller" in made.text()


# -- the command -----------------------------------------------------------------------------------------------------


def call(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(arg) for arg in args])
    return int(ended.value.code or 0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "host.yaml"
    assert call("host", DATA / "desktop.txt", "-o", out) == 0
    said = capsys.readouterr().out
    assert "general_profit  100,941,824" in said
    assert str(out) in said
    scenario = Scenario.load(out)
    assert scenario == reproduce(one("desktop.txt")).scenario
    assert len(out.read_text().splitlines()) < 40


def test_two_dumps_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("host", DATA / "prompts.md") == 0
    assert "A full scan takes 43 s" in capsys.readouterr().out


def test_simulate_points_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("node.txt", "virsh.txt", "exporter.txt", "desktop.txt"):
        assert call("simulate", DATA / name) == 2
        assert "`mmlab host` reads dumps" in capsys.readouterr().err
    with pytest.raises(UserError, match="pages_shared is a counter, not a parameter"):
        Scenario(pages_shared=1)
    for command in (
        ("simulate", ROOT / "params" / "no_thp.yaml", "--set", "full_scans=3"),
        ("report", "01_regression", "-p", "pages_shared=1"),
        ("params", "pages_volatile"),
        ("verdict", "--set", "pages_shared=1"),
        ("tune", "one_image", "--levels", "pages_sharing=1"),
    ):
        assert call(*command) == 2
        assert "is a counter, not a parameter. `mmlab host` reads dumps." in capsys.readouterr().err


@pytest.mark.parametrize("form", ["{}={}", "{}: {}", "{} {}", "| {} | {} |", "{}:\n{}", "/sys/kernel/mm/ksm/{}:{}"])
def test_simulate_points_to_it_in_every_form(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dump").write_text("\n".join(form.format(name, value) for name, value in SMALL.items()))
    assert call("simulate", tmp_path / "dump") == 2
    assert "`mmlab host` reads dumps" in capsys.readouterr().err


def test_several_hosts_do_not_fit_into_one_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two").write_text("\n".join(f"{h}: {name}:{v}" for h in "ab" for name, v in SMALL.items()))
    assert call("host", tmp_path / "two", "-o", tmp_path / "x.yaml") == 2
    assert "2 hosts do not fit" in capsys.readouterr().err
    assert call("host", tmp_path / "two") == 0
    assert capsys.readouterr().out.count("1,000 pages are scanned") == 2
