"""The command line: what it prints, what it writes, and that a mistake is one message and exit status 2."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from conftest import ROOT, SHIPPED
from mmlab import cli, simulate
from mmlab.host.dump import parse
from mmlab.kernel.versions import DIFFERENCES, DISTRIBUTIONS, differing
from mmlab.results import trace as traces
from mmlab.scenario import Scenario, flat_fields
from mmlab.variants import KSMD_VARIANTS, VARIANTS

SMALL = "memory_mib: 4\nzero_fraction: 0.5\npages_to_scan: 500\nhorizon_full_scans: 4\n"
DATA = Path(__file__).parent / "host" / "data"
TRACES = sorted(SHIPPED.glob("act-w*.json.gz"))
GROWING = ROOT / "params" / "growing_guests.yaml"


class Result:
    """Exit status and what was printed."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*args: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in args])
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


# -- what it does -------------------------------------------------------------------------------------------------


def test_simulate_prints_a_summary(run, small: Path) -> None:
    done = run("simulate", small)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"{small}\n")
    assert "thps_split" in done.out


def test_counters_come_first(run, small: Path) -> None:
    lines = run("simulate", small).out.splitlines()
    assert lines[1].split()[:2] == ["simulated", "time"] and lines[2].split() == ["full_scans", "4"]
    assert "per_hour" not in "".join(lines)


def test_counters_over_time(run, small: Path, tmp_path: Path) -> None:
    table = tmp_path / "new" / "counters.csv"
    long = ("simulate", small, "--set", "horizon_full_scans=0", "--set", "horizon_seconds=1m")
    done = run(*long, "--every", "20s", "--at", "500 ms", "--table", table)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1].split() == ["simulated", "time", "0.50", "20.00", "40.00", "60.00", "s"]
    rows = pd.read_csv(table)
    assert [*rows["file"]] == [str(small)] * 4
    assert [*rows["time_s"]] == pytest.approx([0.5, 20, 40, 60], abs=0.03)
    scanned = next(line.split()[1:5] for line in done.out.splitlines() if "pages_scanned" in line)
    assert [f"{value:,}" for value in rows["pages_scanned"]] == scanned
    assert {*rows["sleep_millisecs"]} == {20}
    run("simulate", small, TRACES[0], "--table", table)
    assert {*pd.read_csv(table)["file"]} == {str(small), str(TRACES[0])}
    ended = run("simulate", TRACES[0], "--at", "1000s").out.splitlines()
    assert ended[1].split()[:2] == ["simulated", "time"] and float(ended[1].split()[2]) < 1000, "the end"


def test_sysfs_goes_back_into_host(run, small: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump.txt"
    dump.write_text(run("simulate", small, "--sysfs").out)
    assert len(dump.read_text().splitlines()) == 24
    assert "512 pages are scanned" in run("host", dump).out
    dump.write_text(run("simulate", small, "--sysfs", "--set", "horizon_full_scans=90", "--every", "1s").out)
    assert "in 1 s" in run("host", dump).out
    dump.write_text(run("simulate", small, ROOT / "params" / "advisor_scan_time.yaml", "--sysfs").out)
    assert [one.host for one in parse(dump.read_text())] == ["small", "advisor_scan_time"]
    assert parse(dump.read_text())[1].values["advisor_mode"] == "scan-time"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--at", "soon"), "--at = 'soon'"),
        (("--at", "1h", "--set", "horizon_seconds=1m"), "at most 60 s, the end"),
        (("--every", "0"), "--every = '0'"),
        (("--every", "1ms", "--set", "horizon_seconds=1h"), "3,600,000 times"),
        (("--every", "4G"), "--every = '4G'"),
        (("--sysfs", "--out", "x"), "--out writes traces"),
    ],
    ids=str,
)
def test_times_that_are_refused(run, small: Path, options: tuple[str, ...], words: str) -> None:
    done = run("simulate", small, *options)
    assert (done.status, done.out) == (2, "")
    assert words in done.err


def test_variant_and_settings_change_the_run(run, small: Path) -> None:
    mainline = run("simulate", small).out
    assert run("simulate", small, "--variant", "legacy").out != mainline
    assert run("simulate", small, "--set", "use_zero_pages=1", "--set", "layout=random").out != mainline
    assert run("simulate", small, "--set", "variant=legacy").out == run("simulate", small, "--variant", "legacy").out


def test_a_tuner_by_name_and_by_its_configuration(run, small: Path) -> None:
    starts = ("simulate", small, "--set", "run=0", "--set", "horizon_seconds=300", "--set", "host_mib=4")
    ksmtuned = run(*starts, "--policy", "ksmtuned").out
    conf = DATA / "ksmtuned-fast.conf"
    fast = run(*starts, "--ksmtuned", conf).out
    assert len({ksmtuned, fast, run(*starts).out}) == 3
    assert fast == run(*starts, "--policy", "ksmtuned", "--ksmtuned", conf).out
    bad = run("simulate", small, "--ksmtuned", DATA / "ksmtuned-bad.conf")
    assert bad.status == 2
    assert "line 2" in bad.err


def test_out_writes_predictions_that_compare_takes(run, tmp_path: Path, small: Path) -> None:
    out = tmp_path / "out"
    done = run("simulate", small, *TRACES, "--out", out)
    assert done.status == 0
    assert [Path(line) for line in done.out.split()] == [out / "small.json.gz", *(out / p.name for p in TRACES)]
    assert sorted(p.name for p in out.iterdir()) == sorted(["small.json.gz", *(p.name for p in TRACES)])
    for path in TRACES:
        prediction = traces.read(out / path.name)
        assert traces.compare(traces.read(path), prediction).exact
        assert prediction["name"] == path.name.removesuffix(".json.gz")
    again = run("compare", out)
    assert again.status == 0
    assert f"traces exact {1 + len(TRACES)}/{1 + len(TRACES)}" in again.out


def test_predictions_are_the_same_bytes_with_two_processes(run, tmp_path: Path) -> None:
    files = sorted(SHIPPED.glob("smart*.json.gz"))[:3]
    run("simulate", *files, "--out", tmp_path / "a")
    done = run("simulate", *files, "--out", tmp_path / "b", "--jobs", "2")
    assert done.status == 0, done.err
    assert [(tmp_path / "a" / p.name).read_bytes() for p in files] == [
        (tmp_path / "b" / p.name).read_bytes() for p in files
    ]


def test_compare_says_what_differs(run, tmp_path: Path) -> None:
    good = TRACES[0]
    wrong = traces.read(good)
    wrong["samples"][4][wrong["fields"].index("pages_scanned")] += 1
    wrong["samples"][9][wrong["fields"].index("rss_kb")] += 4
    traces.write(tmp_path / "wrong.json.gz", wrong)
    done = run("compare", good, tmp_path / "wrong.json.gz")
    assert done.status == 1
    first, second, totals = done.out.splitlines()
    assert first.startswith(f"{good.name}: samples exact")
    assert "first: batch" in second
    assert "pages_scanned: recorded" in second
    assert totals.startswith("traces exact 1/2, samples exact ")
    assert run("compare", "-v", tmp_path / "wrong.json.gz").out.count("    batch") == 2
    quiet = run("compare", "-q", good).out.splitlines()
    assert len(quiet) == 1
    assert quiet[0].startswith("traces exact 1/1")


def test_compare_only(run) -> None:
    done = run("compare", SHIPPED, "--only", "act-write*", "--only", "k61")
    assert done.status == 0
    assert "k61_" in done.out
    assert "base_" not in done.out


def test_variants_and_params_are_complete(run) -> None:
    out = run("variants").out
    assert all(name in out for name in [*VARIANTS, *KSMD_VARIANTS])
    out = run("params").out
    assert all(f"  {name}: " in out for name in flat_fields())
    out = run("params", "pages_to_scan").out
    assert "100 pages" in out
    assert "seed" not in out


def test_kernels_lists_every_row_or_what_differs(run) -> None:
    out = run("kernels").out
    for name, row in DIFFERENCES.items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name}  ("))
        assert row.rule in line and line.endswith("from the text only") == row.from_text_only
    flat = " ".join(out.split())
    assert all(row.change in flat and row.source in flat for row in DIFFERENCES.values())
    assert all(f"\n{name}: {kernel}\n" in out for name, (kernel, *_) in DISTRIBUTIONS.items())
    between = run("kernels", "pve8", "7.3").out
    assert [line.partition("  (")[0] for line in between.splitlines() if "; since" in line] == differing("6.8", "7.3")
    assert "pve8: 6.8" in between and "rhel9" not in between and "; since 7.3, 7.3 has it)" in between
    assert run("kernels", "7.3", "7.3.4").out == ""
    assert run("kernels", "7.3").status == 2
    wrong = run("kernels", "6.12", "rhel8")
    assert wrong.status != 0 and "rhel9" in wrong.err


def test_verdict_prints_the_matrix(run) -> None:
    small = ["--set", "memory_mib=4", "--variant", "legacy", "--variant", "v1-mergeable", "--only", "c"]
    done = run("verdict", *small)
    assert (done.status, done.err) == (0, "")
    head, codes, _, first, *_ = done.out.splitlines()
    assert head.split() == ["question", "V-1", "V3"]
    assert codes.split() == ["leg", "merg"]
    assert first.split() == ["c1", "pressure:", "freed", "0=", "0="]
    assert done.out == run("verdict", *small).out
    data = json.loads(run("verdict", *small, "--json").out)
    assert [q["key"] for q in data["questions"]] == ["c1", "c2", "c3", "c4"]
    assert data["questions"][2]["cells"] == {"legacy": 0, "v1-mergeable": 3}


def test_verdict_takes_params_files(run) -> None:
    file = ROOT / "params" / "underused_pressure.yaml"
    done = run("verdict", "--params", file, "--set", "memory_mib=4", "--only", "c1", "--variant", "mainline", "--json")
    data = json.loads(done.out)
    assert data["scenario"]["max_ptes_none"] == 409
    assert data["questions"][0]["cells"] == {"mainline": 2 * 460 / 256}


@pytest.mark.parametrize("params", sorted({*(ROOT / "params").glob("*.yaml")} - {GROWING}), ids=lambda path: path.stem)
def test_every_params_file_runs(params: Path) -> None:
    """… all of its events with it, and none of them fails; the slowest runs in `test_daemons`."""
    run = simulate(Scenario.load(params))
    assert not any(run.results)
    assert len(run.samples) > 1


@pytest.mark.parametrize("command", ["", "simulate", "compare", "calibrate", "report", "verdict", "variants", "params"])
def test_help(run, command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.status == 0
    assert "Usage: mmlab" in done.out


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["simulate", "none.yaml"], ["none.yaml", "no such file"]),
        (["simulate", "small.yaml", "--set", "pages_to_scna=1"], ["pages_to_scna", "did you mean 'pages_to_scan'"]),
        (["simulate", "small.yaml", "--set", "pages_to_scan=-1"], ["pages_to_scan = -1", "at least 0"]),
        (["simulate", "small.yaml", "--set", "pages_to_scan"], ["NAME=VALUE"]),
        (["simulate", "small.yaml", "--set", "memory_mib=9999998"], ["memory_mib", "GiB"]),
        (["simulate", "small.yaml", "--variant", "mainlien"], ["mainlien", "mainline"]),
        (["simulate", "small.yaml", "--jobs", "0"], ["--jobs"]),
        (["simulate", "typo.yaml"], ["typo.yaml", "zero_fractoin", "'zero_fraction'"]),
        (["simulate", "range.yaml"], ["range.yaml", "zero_fraction = 3", "0 … 1"]),
        (["simulate", "cut.json.gz"], ["cut.json.gz", "cut short"]),
        (["simulate", "cut.json.gz", "--out", "out"], ["cut.json.gz", "cut short"]),
        (["compare", "cut.json.gz"], ["cut.json.gz", "cut short"]),
        (["compare", "nojson.json.gz"], ["nojson.json.gz", "not a gzip file"]),
        (["compare", "empty"], ["empty", "no .json.gz file"]),
        (["simulate", "small.yaml", "a/small.yaml", "--out", "out"], ["small.json.gz", "several results"]),
        (["simulate", "small.yaml", "--out", "small.yaml"], ["small.yaml"]),
        (["simulate", "miniature.yaml", "--out", "out"], ["pages_per_thp = 8", "512"]),
        (["simulate", "trace.json.gz", "--out", "."], ["trace.json.gz", "another folder"]),
        (["simulate", "trace.json.gz", "--out", "out", "--set", "memory_mib=4"], ["memory_mib = 4", "changed"]),
        (["params", "sede"], ["sede", "'seed'"]),
        (["report", "none.ipynb"], ["none.ipynb"]),
        (["verdict", "--params", "none.yaml"], ["none.yaml"]),
        (["verdict", "--params", "rich.yaml"], ["rich.yaml", "events"]),
        (["verdict", "--only", "z1"], ["z1", "a1"]),
        (["verdict", "--variant", "mainlien", "--only", "c1"], ["mainlien", "mainline"]),
        (["verdict", "--set", "memory_mbi=4"], ["memory_mbi", "memory_mib"]),
        (["tune", "one_image", "--table", "small.yaml/x.csv"], ["small.yaml/x.csv", "cannot be written"]),
        (["fleet", "three_kinds", "--table", "/sys/x.csv"], ["/sys/x.csv", "cannot be written"]),
        (["report", "07", "-o", "page.htm"], ["page.htm", ".html"]),
        (["report", "7"], ["unknown notebook '7'", "07_compare"]),
        (["report", "00"], ["00 is the number of 00_explore and 00_tour. Type `mmlab report 00_tour`."]),
        (["simualte", "x"], ["simualte"]),
        (["simulate"], ["FILE"]),
    ],
    ids=lambda x: " ".join(x) if x and " " not in x[0] else "",
)
def test_a_mistake_is_one_message_and_status_2(
    run, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("empty").mkdir()
    shutil.copy(small, "a")
    Path("typo.yaml").write_text("zero_fractoin: 0.5\n")
    Path("range.yaml").write_text("zero_fraction: 3\n")
    Path("rich.yaml").write_text("events: [{after: {batch: 1}, op: split_all}]\n")
    Path("miniature.yaml").write_text("pages_per_thp: 8\nmemory_mib: 1\nhorizon_seconds: 0.1\n")
    shutil.copy(TRACES[0], "trace.json.gz")
    Path("cut.json.gz").write_bytes(TRACES[0].read_bytes()[:2000])
    Path("nojson.json.gz").write_bytes(b"{}")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = run(*args)
    assert done.status == 2
    assert all(word in done.err for word in words), done.err
    assert "Traceback" not in done.err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before, "nothing half-written"


def test_a_current_folder_that_was_removed(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = run("variants")
    monkeypatch.chdir(tmp_path)
    assert (done.status, done.err) == (2, "mmlab: the current folder was removed\n")


def test_a_full_disk_is_one_message(run, tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mmlab.params.os.fsync", full)
    monkeypatch.setattr("mmlab.params.Path.replace", full)
    done = run("simulate", small, "--out", tmp_path / "out")
    assert done.status == 2
    assert "No space left on device" in done.err
    assert len(done.err.splitlines()) == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("command", ["variants", "params", "report --help", "schema"])
def test_a_locale_without_some_characters(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from mmlab.cli import main; main()", *command.split()],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "iso-8859-1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.decode("iso-8859-1").splitlines()) > 5


def test_one_broken_file_does_not_stop_the_others(run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json.gz"
    broken.write_bytes(TRACES[0].read_bytes()[:2000])
    done = run("simulate", broken, TRACES[0], "--out", tmp_path / "out")
    assert done.status == 2
    assert (tmp_path / "out" / TRACES[0].name).exists()
    assert len(done.err.splitlines()) == 1
    done = run("compare", broken, TRACES[0])
    assert done.status == 2
    assert "traces exact 1/2" in done.out


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_interrupted_keeps_what_is_finished(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SMALL)
    (tmp_path / "b.yaml").write_text("memory_mib: 64\nkey_order: random\nsmart_scan: 0\nhorizon_seconds: 1e9\n")
    process = subprocess.Popen(
        [sys.executable, "-c", "from mmlab.cli import main; main()", "simulate", "a.yaml", "b.yaml", "--out", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not (tmp_path / "out" / "a.json.gz").exists() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.json.gz"]
    traces.read(tmp_path / "out" / "a.json.gz")
