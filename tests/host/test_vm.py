"""Another kernel in QEMU: what it is made of, what becomes of its answers, and, where there is one, a real boot."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import ROOT
from mmlab import Scenario, UserError
from mmlab.cli import main
from mmlab.host import runner, vm
from mmlab.results import trace
from mmlab.studies.own import beside, named
from mmlab.variants import VARIANTS

GUEST, RUNNER = ROOT / "mmlab/host/guest.py", ROOT / "mmlab/host/runner.py"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmlab" / "kernels"
KERNELS = [path for path in sorted(CACHE.glob("linux-*.deb")) if vm.PACKAGE.match(path.name)]
"""Those that `mmlab vm --fetch` has brought here: tests fetch nothing."""
PLAN: dict[str, Any] = {"name": "a", "scenario": {"processes": [{"pages": 512}]}}


def image(release: str = "7.9.1-test") -> bytes:
    """Return what a bzImage begins with."""
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x100).to_bytes(2, "little")
    return bytes(head[:0x300]) + f"{release} (somebody) #1 SMP\0".encode().ljust(0x100, b"\0")


KERNEL = vm.Kernel(image(), "7.9.1-test", {})


def unpack(archive: bytes) -> dict[str, bytes | None]:
    """Return the files of a cpio archive; None stands for a folder."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        mode, size, length = (int(archive[at + start : at + start + 8], 16) for start in (14, 54, 94))
        name = archive[at + 110 : at + 109 + length].decode()
        at += -(-(110 + length) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = None if mode & 0o40000 else archive[at : at + size]
        at += -(-size // 4) * 4


def test_cpio() -> None:
    files = {"/init": b"abcde", "/a/b/c.py": b"", "/a/d": b"1234"}
    found = unpack(vm.cpio(files))
    assert {f"/{name}": content for name, content in found.items() if content is not None} == files
    assert list(found)[:4] == ["", "a", "a/b", "init"], "folders before what is in them"
    if shutil.which("cpio"):
        done = subprocess.run(["cpio", "-it", "--quiet"], input=vm.cpio(files), capture_output=True, check=True)
        assert done.stderr == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_python_runs_where_nothing_else_is(tmp_path: Path) -> None:
    for name, content in unpack(vm.cpio(vm.python_files(GUEST, RUNNER))).items():
        if content is not None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).chmod(0o755)
    code = "import sys; sys.path.append('/'); import guest, runner; print(guest.__file__, runner.__file__)"
    command = ["chroot", str(tmp_path), str(vm.PYTHON), "-IS", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("/guest.pyc /runner.pyc\n", "")


def test_find(tmp_path: Path) -> None:
    """A file with modules where they belong, a folder, a build tree; anything else is told in one message."""
    boot, modules = tmp_path / "boot/vmlinuz-7.9.1-test", tmp_path / "lib/modules/7.9.1-test/kernel/zram.ko"
    for path, content in {boot: image(), modules: b"zram", modules.with_name("ext4.ko"): b""}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert vm.find(boot) == vm.find(tmp_path) == vm.Kernel(image(), "7.9.1-test", {"zram.ko": b"zram"})
    tree = tmp_path / "linux"
    (tree / "arch/x86/boot").mkdir(parents=True)
    (tree / "arch/x86/boot/bzImage").write_bytes(image())
    (tree / "zsmalloc.ko").write_bytes(b"zs")
    assert vm.find(tree) == vm.find(tree / "arch/x86/boot/bzImage")
    assert [*vm.find(tree).modules] == ["zsmalloc.ko"]
    for place, words in {
        "none": "no such file",
        "README": "there is no Linux kernel",
        "empty": "no Linux kernel",
    }.items():
        (tmp_path / "README").write_text("text")
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=words):
            vm.find(tmp_path / place)


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="makes Debian packages")
def test_find_in_packages(tmp_path: Path) -> None:
    contents = {"binary": ("boot/vmlinuz-7.9.1-test", image()), "modules": ("usr/lib/modules/7.9.1/zram.ko", b"zram")}
    for kind, (name, content) in contents.items():
        folder = tmp_path / kind
        for path, text in {folder / name: content, folder / "DEBIAN/control": b""}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        control = {"Package": f"linux-{kind}-7.9.1", "Version": "1", "Architecture": "amd64", "Description": "test"}
        (folder / "DEBIAN/control").write_text("".join(f"{k}: {v}\n" for k, v in control.items()) + "Maintainer: a\n")
        package = tmp_path / f"linux-{kind}-7.9.1_1_amd64.deb"
        subprocess.run(["dpkg-deb", "-b", str(folder), str(package)], check=True, capture_output=True)
    assert vm.find(tmp_path / "linux-binary-7.9.1_1_amd64.deb") == vm.Kernel(
        image(), "7.9.1-test", {"zram.ko": b"zram"}
    )
    (tmp_path / "broken.deb").write_text("text" * 100)
    with pytest.raises(UserError, match=r"broken\.deb: .*not a Debian format archive"):
        vm.find(tmp_path / "broken.deb")


def test_newest() -> None:
    names = "linux-image-6.1.0-47-amd64 linux-image-6.12.95+deb12-amd64 linux-image-6.12.117+deb13-amd64".split()
    names += "linux-image-7.3-amd64 linux-image-7.3.4+deb13-amd64 linux-binary-7.3.4+deb13-amd64".split()
    names += "linux-image-6.1.0-47-cloud-amd64 linux-headers-9.9-amd64".split()
    newest = {
        version: vm._newest(version, names) for version in ("6.1", "6.12", "6.12.95", "7.3", "7", "9.9", "6.12.1")
    }
    assert [*newest.values()] == [names[0], names[2], names[1], names[5], names[5], "", ""]


def test_fetched_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache is not fetched again, and without apt there is one message."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    there = tmp_path / "mmlab/kernels/linux-binary-7.3.4+deb13-amd64_7.3.4-1_amd64.deb"
    there.parent.mkdir(parents=True)
    there.touch()
    assert vm.fetch("7.3") == there
    with pytest.raises(UserError, match="apt-get is not installed"):
        vm.fetch("6.12")
    assert [*there.parent.iterdir()] == [there]


def test_maps_are_left_out_where_the_kernel_marks_every_page() -> None:
    """KPF_KSM is wrong in some releases: a page has it before ksmd has run."""
    parts = {
        "free": False,
        "plan": PLAN | {"variant": "mainline"},
        "asked": {},
        "events": [],
        "samples": [{"batch": 0}],
    }
    for wrong in (0, 512):
        frames = [{"frames": 512, "ksm_frames": wrong}, {"frames": 512, "ksm_frames": 512}]
        recorder = SimpleNamespace(**parts, options=runner.OPTIONS, maps=[{"pages": "K512"}], frames=frames)
        made = runner.Recorder._trace(recorder)  # type: ignore[arg-type]
        assert (len(made["maps"]), len(made["frames"]), "KPF_KSM" in made["how"]) == (
            (0, 0, True) if wrong else (1, 2, False)
        )


def test_events_are_due_together() -> None:
    """`run` = 2 sets the kernel's full_scans to 0: later events of that full scan happen all the same."""

    class Fake(runner.Recorder):
        free, batch, rank, full_scans, options = False, 5, 0, 2, runner.OPTIONS

        def __init__(self) -> None:
            self.events = [
                {"after": {"full_scan": scan}, "op": op} for scan, op in ((2, "set"), (2, "read"), (3, "read"))
            ]

        def do(self, *_: Any, **__: Any) -> int:
            self.full_scans = 0
            return 0

        def sample(self) -> int:
            return 7

        _drain = _machine_wide = _tally = look = lambda _: None  # type: ignore[assignment]

    recorder = Fake()
    recorder.happen()
    assert ["result" in event for event in recorder.events] == [True, True, False]


# -- a QEMU that plays its part -------------------------------------------------------------------------------------


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that lays down what QEMU does: Python, with `say` and `console`; PATH leads to it."""
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if path == "/dev/kvm" else real(path, mode))
    monkeypatch.setattr(vm, "python_files", lambda *_: {})
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def play(code: str) -> None:
        path = tmp_path / "qemu-system-x86_64"
        path.write_text(
            f"#!{sys.executable}\nimport json, os, re, sys, time\nwords = ' '.join(sys.argv)\n"
            "console = open(re.search(r'console,path=([^,]+)', words)[1], 'a')\n"
            "def say(**what): print(json.dumps(what), flush=True)\n" + textwrap.dedent(code)
        )
        path.chmod(0o755)

    return play


def test_answers(qemu: Any) -> None:
    qemu("""
        assert "mem-merge=off" in words and "-smp 1" in words and "rdinit=" in words
        say(booted=True)
        say(progress=0.5, text="batch 1 of 2")
        say(recording={"how": "recorded", "samples": []})
        say(problem="op split needs debugfs\\nand more")
        say(problem="the recorder ended with status 1")
    """)
    told: list[Any] = []
    first, second, third = KERNEL.carry_out([PLAN, PLAN | {"name": "b"}, PLAN], lambda *what: told.append(what))
    assert first == {"how": "recorded; in QEMU (tcg)", "samples": []}
    assert str(second) == "b: op split needs debugfs; and more."
    assert str(third) == "a: the recorder ended with status 1."
    assert told == [(0, 3, "boots 7.9.1-test, emulated: KVM cannot be used"), (0.5, 3, "a: batch 1 of 2")]


def test_a_kernel_that_dies(qemu: Any) -> None:
    """Its console is shown, and what was recorded before is kept."""
    qemu("""
        say(booted=True)
        say(recording={"samples": []})
        print("Kernel panic - not syncing: bad luck", file=console)
    """)
    answers = KERNEL.carry_out([PLAN, PLAN])
    assert "samples" in next(answers)
    with pytest.raises(UserError, match=r"7\.9\.1-test: the kernel died; its console:\nKernel panic .* bad luck"):
        next(answers)


def test_a_kernel_that_hangs(qemu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "SILENCE_S", 1.0)
    qemu("""
        say(booted=True)
        for n in range(3):
            say(progress=n / 3, text="")
            time.sleep(0.6)
        while True:
            print("soft lockup", file=console, flush=True)
            time.sleep(0.1)
    """)
    told: list[Any] = []
    with pytest.raises(UserError, match=r"did not answer for 1 s; its console:\nsoft lockup\n"):
        next(KERNEL.carry_out([PLAN], lambda *what: told.append(what)))
    assert len(told) == 4, "answers keep it alive"


@pytest.mark.parametrize(
    "fails", ["sys.exit(1)", "os.write(2, b'KVM internal error. Suberror: 1\\n'); time.sleep(1000)"]
)
def test_kvm_that_does_not_work(qemu: Any, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """/dev/kvm may be there, and QEMU end at once, or stop the guest and wait."""
    monkeypatch.setattr(os, "access", lambda *_: True)
    answers = "say(booted=True)\nsay(recording=dict(fields=[]))"
    qemu(f"if '-accel kvm' in words: {fails}\n{answers}")
    told: list[Any] = []
    assert [*KERNEL.carry_out([PLAN], lambda *what: told.append(what[2]))] == [
        {"fields": [], "how": "recorded; in QEMU (tcg)"}
    ]
    assert told == ["boots 7.9.1-test", "boots 7.9.1-test, emulated: KVM cannot be used"]


def test_without_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="is not installed"):
        next(KERNEL.carry_out([PLAN]))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_qemu_ends_with_us(qemu: Any, tmp_path: Path, sent: int) -> None:
    qemu(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + ' ')\ntime.sleep(1000)")
    code = "from mmlab.host import vm; vm.python_files = lambda *_: {}; import test_vm; "
    code += "next(test_vm.KERNEL.carry_out([test_vm.PLAN]))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/host")])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    )
    written = tmp_path / "pid"
    while not (written.exists() and written.read_text().endswith(" ")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(sent)
    process.communicate()
    while Path(f"/proc/{written.read_text().strip()}").exists():
        time.sleep(0.02)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel that is newer than the model's, with a patch: what it did is written, what it refused is said."""

    class Guest:
        release = "7.9.1-test"

        def carry_out(self, plans: list[dict[str, Any]], progress: Any) -> Any:
            assert [plan["options"]["alone"] for plan in plans] == [True, True]
            asked = {"kernel": "7.3", "maps": [], "frames": [], **plans[0], "variant": "v1-series"}
            yield trace.predict(asked) | {"kernel": "7.9.1", "variant": "mainline", "moved": []}
            yield UserError("op split needs debugfs", where="second")

    monkeypatch.setattr(vm, "find", lambda _: Guest())
    for name in ("first", "second"):
        scenario = Scenario(memory_mib=2, zero_fraction=0.5, use_zero_pages=1, horizon_batches=8)
        (tmp_path / f"{name}.yaml").write_text(scenario.as_yaml())
    files, out = [str(tmp_path / f"{name}.yaml") for name in ("first", "second")], tmp_path / "out"
    for known, words in {"": "7.9.1' is not a known kernel", "7.3": "mmlab: second: op split needs debugfs"}.items():
        settings = ["--set", f"kernel={known}"] * bool(known)
        with pytest.raises(SystemExit) as ended:
            main(["vm", "bzImage", "--", "record", *files, "-o", str(out), "--compare", *settings])
        assert words in capsys.readouterr().err
        assert ended.value.code == (1 if known else 2)
        assert [path.name for path in out.glob("*")] == ["first.json.gz"] * bool(known)
    assert trace.read(out / "first.json.gz")["kernel"] == "7.9.1 as 7.3"
    table = beside(str(out), named(VARIANTS["v1-series"])).table()
    assert table.iloc[0].tolist()[:2] == [9, 9]
    assert table.iloc[0, 2] < 9


# -- a real one -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not KERNELS, reason="no kernel in the cache: `mmlab vm --fetch 7.3` brings one")
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs QEMU")
def test_boot(tmp_path: Path) -> None:
    """The newest kernel here: recorded by the command line, and exactly as predicted for its version."""
    scenario = Scenario(memory_mib=4, zero_fraction=0.5, use_zero_pages=1, pages_to_scan=1000, horizon_batches=6)
    (tmp_path / "some.yaml").write_text(scenario.as_yaml())
    newest = max(KERNELS, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    kernel = tmp_path / newest.name  # away from its modules, which take long to unpack
    kernel.symlink_to(newest)
    command = [
        sys.executable,
        "-c",
        "from mmlab.cli import main; main()",
        "vm",
        str(kernel),
        "--",
        "record",
        str(tmp_path / "some.yaml"),
    ]
    done = subprocess.run([*command, "-o", str(tmp_path), "--compare"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "samples exact 7/7" in done.stdout
    recording = trace.read(tmp_path / "some.json.gz")
    assert kernel.name.split("-")[2].startswith(recording["kernel"])
    assert re.search(r"in QEMU \((kvm|tcg)\)", recording["how"])
    assert json.loads(json.dumps(recording)) == recording
