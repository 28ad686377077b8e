"""Dumps of hosts: every form that people paste, what it means, and a scenario that has the same counters."""

from __future__ import annotations

import random
from pathlib import Path
from time import process_time
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
        ({"full_scans": 2**64}, "full_scans"),
        ({"full_scans": 1.5}, "full_scans"),
        ({"stable_node_dups": 2, "stable_node_chains": 0}, "stable_node_dups"),
        ({"ksm_zero_pages": 6, "pages_scanned": 5}, "ksm_zero_pages"),
        ({"smart_scan": 2}, "smart_scan"),
        ({"use_zero_pages": 2}, "use_zero_pages"),
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
        "\t{}\t\t{}\t\r",
        "/sys/kernel/mm/ksm/{}\r\n{}\r",
        "::::::::::::::\n/sys/kernel/mm/ksm/{}\n::::::::::::::\n{}",
        "sys.kernel.mm.ksm.{} = {}",
        "kernel/mm/ksm/{} = {}",
        "\x1b[35m\x1b[K/sys/kernel/mm/ksm/{}\x1b[m\x1b[K\x1b[36m\x1b[K:\x1b[m\x1b[K{}",
        "/sys/kernel/mm/ksm/{}:1:{}",
        "Mar 04 10:00:01 node1 ksm[12]: {}: {}",
        "1. {}: {}",
        "* **{}**: {}",
        "- `{}` = `{}`",
        "<tr><td>{}</td><td>{}</td></tr>",
        "{};{}",
        '"{}","{}"',
        "{} ........ {} pages (1 MiB)",
        "{} = {}   # of all hosts",
        'node_ksmd_{}_total{{instance="node7"}} {} 1741082401.123',
        '{{"__name__":"node_ksmd_{}_total","instance":"node7:9100"}} {}',
        "node7 | CHANGED | rc=0 >>\n/sys/kernel/mm/ksm/{}:{}",
    ],
)
def test_forms(form: str) -> None:
    text = "\n".join(form.format(name, value) for name, value in SMALL.items())
    (found,) = parse(f"Is that normal?\n{text}\r\nThanks, 42 times\n")
    assert found.values == SMALL
    assert found.host == ("node7" if "node7" in form else "")


METRIC = '{{"metric":{{"__name__":"node_ksmd_{}_total","instance":"node7:9100"}},"value":[1741082401.123,"{}"]}}'
PRETTY = METRIC.replace("{{", "{{\n  ").replace("}}", "\n}}").replace(",", ",\n  ").replace(":[", ": [\n")
ONE_TEXT = {
    "json": ('"{}": {}', ", ", "{{{}}}"),
    "json of a host": ('"{}":{}', ",", '{{"node7": {{{}}}}}'),
    "python": ("'{}': {}", ", ", "{{{}}}"),
    "blanks": ("{}={}", " ", "{}"),
    "paths": ("/sys/kernel/mm/ksm/{}:{}", " ", "{}"),
    "ansible": ("/sys/kernel/mm/ksm/{}:{}", "\\n", '"stdout": "{}"'),
    "ansible lines": ('    "/sys/kernel/mm/ksm/{}:{}"', ",\n", '"stdout_lines": [\n{}\n]'),
    "prometheus": (METRIC, ",", '{{"status":"success","data":{{"result":[{}]}}}}'),
    "prometheus, pretty": (PRETTY, ",\n", "{}"),
}
TABLES = {
    "csv": "{},{},{},{}\n{},{},{},{}",
    "markdown": "| {} | {} | {} | {} |\n|---|---|---|---|\n| {} | {} | {} | {} |",
    "columns": "{}   {}   {}   {}\n   {}   {}   {}   {}",
    "braces": "root@node7:~# cat /sys/kernel/mm/ksm/{{{},{},{},{}}}\n{}\n{}\n{}\n{}",
    "cat": "$ cat /sys/kernel/mm/ksm/{} ksm/{} /sys/kernel/mm/ksm/{} {}\n{}\n{}\n{}\n{}",
}


@pytest.mark.parametrize("form", [*ONE_TEXT, *TABLES])
def test_forms_of_a_whole(form: str) -> None:
    """Several values on a line, and values below their names."""
    if form in TABLES:
        text = TABLES[form].format(*SMALL, *SMALL.values())
    else:
        each, between, around = ONE_TEXT[form]
        text = around.format(between.join(each.format(name, value) for name, value in SMALL.items()))
    (found,) = parse(f"As asked:\n{text}\nThanks")
    assert found.values == SMALL
    assert found.host == ("node7" if "node7" in text else "")
    assert (found.time is not None) == form.startswith("prometheus")


def test_what_is_no_counter_of_the_host() -> None:
    """A process's ksm_stat has a ksm_zero_pages of its own; knobs that are set, and prose."""
    plain = "\n".join(f"{name}:{value}" for name, value in SMALL.items())
    other = "$ cat /proc/12/ksm_stat\nksm_rmap_items 76\nksm_zero_pages 7\n/proc/13/ksm_stat:ksm_zero_pages 8\n"
    (found,) = parse(f"{plain}\n{other}\n# echo 1 > /sys/kernel/mm/ksm/run\nWhen I run\nit, pages_shared is low.\n")
    assert found.values == SMALL


def test_separators_and_large_numbers() -> None:
    text = "pages_shared: 1 368 772\npages_sharing 1.368.772\npages_unshared 1'368'772\npages_volatile: 171.264\n"
    (found,) = parse(f"{text}full_scans 5000000000\nadvisor_mode\n[none] scan-time\n")
    assert [*found.values.values()] == [1_368_772, 1_368_772, 1_368_772, 171_264, 5_000_000_000, "none"]


def test_hosts_by_their_prompts() -> None:
    """Before noon and after; the time of one host is not that of another; rates the right way round."""
    counters = "/sys/kernel/mm/ksm/pages_shared:{}\n/sys/kernel/mm/ksm/full_scans:{}\n"
    text = "[root@a ~]# date\nTue Mar  4 11:59:01 AM UTC 2025\n" + counters.format(40, 3)
    text += "b:~ # grep .\n" + counters.format(7, 9)
    text += "[root@a ~]# date\nTue Mar  4 12:09:01 PM UTC 2025\n" + counters.format(50, 5)
    first, other, second = parse(text)
    assert [each.host for each in (first, other, second)] == ["a", "b", "a"]
    assert other.time is None
    assert rates(first, second) == rates(second, first) != ["No counter changed."]
    assert "in 10 min, in 2 full scans" in rates(first, second)[0]
    assert "two hosts" in rates(other, second)[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    text = "\r\n".join(f"/sys/kernel/mm/ksm/{name}:{value}" for name, value in SMALL.items())
    (tmp_path / "dump.txt").write_bytes((("\ufeff" if encoding == "utf-16-be" else "") + text).encode(encoding))
    assert read([tmp_path / "dump.txt"])[0].values == SMALL


def test_unshared_from_the_profit() -> None:
    """I3 gives either of pages_volatile and pages_unshared."""
    whole = {**SMALL, "general_profit": 360 * 4096 - 64 * 1000}
    for name in ("pages_unshared", "pages_volatile"):
        (found,) = parse("\n".join(f"{key} {value}" for key, value in whole.items() if key != name))
        assert (found["pages_unshared"], found.volatile, found.pages) == (500, 100, 1000)


def test_a_large_paste_takes_no_time() -> None:
    start = process_time()
    for text in ('{"a":1,"value":[1741082401.1,"5"]},' * 20_000, "x" * 10**6, "<p>5, 6 " * 20_000, "/a.b" * 50_000):
        assert parse(text) == []
    assert process_time() - start < 10


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
    for free, does in ((9000, "KSM is to run"), (16_000_000, "it stops KSM, as long as")):
        info.write_text(f"MemTotal: 16777216 kB\nMemFree: {free} kB\nCached: 400 kB\n")
        (found,) = read([info, DATA / "node.txt", DATA / "ksmtuned.conf"])
        assert f"Free are {(free + 400) / 1024:,.0f} MiB (MemFree, Buffers, Cached), so {does}" in " ".join(
            found.words()
        )
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
    "zeropages": {"ksm_zero_pages": 300, "use_zero_pages": 1, "general_profit": 660 * 4096},
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
        dump.values["general_profit"] -= 64 * dump.pages
    made = reproduce(dump)
    assert made.exact, made.text()


def plausible(rng: random.Random) -> dict[str, Any]:
    """Counters and knobs that a host could have."""
    size, most = int(10 ** rng.uniform(1.5, 4.3)), rng.choice([256, 256, 16, 1000])
    dups = rng.choice([0, 0, rng.randint(1, 40)])
    contents = rng.randint(0 if dups else 1, size)
    copies = min(round(contents * rng.choice([0, rng.random(), 10 ** rng.uniform(0, 1.5)])), contents * (most - 1))
    values = {
        "pages_shared": contents + dups,
        "pages_sharing": copies + max(0, round(dups * most * rng.uniform(0.6, 1)) - dups),
        "pages_unshared": round(size * rng.choice([0, 1, 10]) * rng.random()),
        "pages_volatile": round(size * rng.choice([0, 0.01, 0.2, 2]) * rng.random()),
        "full_scans": rng.choice([rng.randint(2, 10), rng.randint(2, 100_000)]),
        "pages_to_scan": rng.choice([100, 100, 1250, 4000, rng.randint(1, 30_000)]),
        "sleep_millisecs": rng.choice([20, 20, 200, 10, 0, rng.randint(0, 1000)]),
        "run": rng.choice([1, 1, 1, 0]),
        "max_page_sharing": most,
    }
    values |= {"stable_node_dups": dups, "stable_node_chains": rng.randint(1, (dups + 1) // 2)} if dups else {}
    if rng.random() < 0.7:
        zeroes = rng.choice([0, 0, rng.randint(0, size)])
        pages = sum(values[name] for name in NODE)
        values |= {"smart_scan": rng.choice([0, 1]), "ksm_zero_pages": zeroes, "use_zero_pages": int(zeroes > 0)}
        values["general_profit"] = 4096 * (values["pages_sharing"] + zeroes) - 64 * pages
    if rng.random() < 0.3:
        del values["pages_volatile"]
    return values


def test_200_random_hosts() -> None:
    """Shared, sharing, unshared and the profit within 1 %, whatever the knobs."""
    for seed in range(200):
        made = reproduce(Dump(plausible(random.Random(seed))))
        assert made.exact, f"seed {seed}: {made.dump.values}\n{made.text()}"


def test_a_host_of_a_tebibyte() -> None:
    """Counters beyond 2^32 bytes and pages; few of some kind, which must not be lost by rounding."""
    dump = Dump(
        {name: 128 * value for name, value in NODE.items()} | {"pages_unshared": 700, "pages_shared": 4_000_037}
    )
    dump.values |= {"pages_to_scan": 30_000, "sleep_millisecs": 1, "stable_node_dups": 6000, "stable_node_chains": 1}
    made = reproduce(dump)
    assert made.factor > 40
    assert made.exact, made.text()
    told = dict(zip(made.rows["counter"], made.rows["predicted"], strict=True))
    assert told["stable_node_chains"] == 1
    assert 50 < made.cpu_percent < 100, "it cannot do more"


def test_knobs_and_kernel() -> None:
    """A kernel without the files of newer ones is an older one, whose splits never remap."""
    old = reproduce(Dump(SMALL | {"pages_volatile": 0, "sleep_millisecs": 0, "merge_across_nodes": 0})).scenario
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
