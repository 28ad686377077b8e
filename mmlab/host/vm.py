"""Another kernel beside the model: boot it in QEMU, and have it carry out plans of the recorder.

The guest has one CPU, no disk and no network. Its files are an initramfs made here: the Python that runs this, as much
of the standard library as the recorder imports, and the plans. Recordings come back over a serial port. Nothing is
installed, nothing needs root, and nothing is left when QEMU ends, which it does with this process.
"""

import json
import lzma
import marshal
import os
import re
import select
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import MAGIC_NUMBER
from modulefinder import ModuleFinder
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from mmlab.errors import UserError
from mmlab.host.record import Plan, answers
from mmlab.results.trace import Trace
from mmlab.workers import Progress

QEMU = """setpriv --pdeathsig KILL qemu-system-x86_64 -machine pc,mem-merge=off -smp 1 -m {memory} -no-reboot
    -nodefaults -no-user-config -display none -kernel /dev/fd/{image} -initrd /dev/fd/{files}
    -chardev file,id=console,path=/dev/fd/{console},append=on -serial chardev:console
    -chardev stdio,id=answers,signal=off -serial chardev:answers"""
"""The second serial port is QEMU's own standard output."""
CPU = {"kvm": "-accel kvm -cpu host", "tcg": "-accel tcg,thread=single -cpu max"}
ARGUMENTS = """console=ttyS0 panic=-1 mitigations=off nokaslr audit=0 apparmor=0 loglevel=5 no_timer_check
    transparent_hugepage=madvise rdinit={python} -- -IS /guest.pyc"""
"""Without `no_timer_check` a boot may panic on a busy host; with THPs everywhere, the recorder would have some."""
MEMORY_MIB = 2048
"""Memory of a guest, beside four times that of its largest scenario."""
SILENCE_S = 300.0
"""Seconds without an answer after which a guest is dead. Time does not count in which it waited for a CPU."""
LAST_LINES = 25
"""Lines of a dead guest's console that are shown."""
WANTED = re.compile(r"vmlinuz[^/]*|bzImage|(zram|zsmalloc|(lz4|lzo|842|zstd|deflate)\w*)\.ko(\.xz)?")
"""Files of a kernel: its image, and what swap on zram may need."""
PACKAGE = re.compile(r"linux-(?:binary|image)-(\d[\d.]+(?:-\d+)?(?:\+deb[\d.]+)?)-amd64")
"""A Debian package that may hold a kernel, and its version."""
SUITES = "bookworm bookworm-backports trixie trixie-backports sid experimental".split()
"""Where Debian has kernels from 6.1 to the newest."""
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
PYTHON = Path(vars(sys)["_base_executable"]).resolve()
"""The executable itself, not that of a virtual environment."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted: its image (a bzImage), its release (`uname -r`), and modules by name."""

    image: bytes = field(repr=False)
    release: str
    modules: Mapping[str, bytes] = field(repr=False)

    def carry_out(self, plans: Sequence[Plan], progress: Progress = None) -> Iterator[Trace | UserError]:
        """Boot, and yield the recording of each plan in turn, or the error that says why there is none.

        KVM is used where it works, emulation elsewhere; the recording's `how` says which. `progress` is called with the
        plans done, all plans, and what the guest does.

        Raises
        ------
        UserError
            QEMU is missing; the kernel died or said nothing any more (with the end of its console).
        """
        if absent := [tool for tool in ("setpriv", "qemu-system-x86_64") if not shutil.which(tool)]:
            raise UserError("is not installed", parameter=absent[0])
        files = python_files(*(Path(__file__).with_name(name) for name in ("guest.py", "runner.py")))
        files |= {f"/modules/{name}": content for name, content in self.modules.items()}
        files |= {f"/plans/{number:06}.json": json.dumps(plan).encode() for number, plan in enumerate(plans)}
        pages = (sum(process["pages"] for process in plan["scenario"]["processes"]) for plan in plans)
        memory_mib = MEMORY_MIB + max(pages, default=0) // 64
        usable, tell = os.access("/dev/kvm", os.R_OK | os.W_OK), progress or (lambda *_: None)
        for how in ["kvm"] * usable + ["tcg"]:
            tell(0, len(plans), f"boots {self.release}{', emulated: KVM cannot be used' * (how == 'tcg')}")
            said = self._boot(cpio(files), memory_mib, how)
            try:
                next(said)
            except UserError:
                if how == "tcg":
                    raise
                continue  # KVM is there, and does not work
            for found in answers(said, plans, progress):
                if not isinstance(found, UserError):
                    found["how"] = f"{found.get('how', 'recorded')}; in QEMU ({how})"
                yield found
            return

    def _boot(self, files: bytes, memory_mib: int, how: str) -> Iterator[dict[str, Any]]:
        """Yield what the guest says (`guest.py`, and the runner), and raise why it died, unless nobody listens then."""
        with TemporaryFile("a+b") as console, TemporaryFile("w+b", 0) as image, TemporaryFile("w+b", 0) as archive:
            image.write(self.image)
            archive.write(files)
            opened = {"console": console.fileno(), "image": image.fileno(), "files": archive.fileno()}
            command = [*QEMU.format(memory=memory_mib, **opened).split(), *CPU[how].split()]
            command += ["-append", " ".join(ARGUMENTS.format(python=PYTHON).split())]
            died = "the kernel died"
            pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": console}
            with subprocess.Popen(command, **pipes, pass_fds=[*opened.values()]) as qemu:
                try:
                    yield from map(json.loads, _lines(qemu, console.fileno()))
                except TimeoutError:
                    died = f"the kernel did not answer for {SILENCE_S:.0f} s"
                finally:
                    qemu.kill()
            console.seek(0)
            lines = [*filter(str.strip, console.read().decode(errors="replace").splitlines())]
            raise UserError("\n".join([f"{died}; its console:", *lines[-LAST_LINES:]]), parameter=self.release)


# -- kernels --------------------------------------------------------------------------------------------------------


def find(place: str | Path) -> Kernel:
    """Return the kernel of a bzImage (with its modules, if they lie where they belong), a folder, or a Debian package.

    Parameters
    ----------
    place
        A file such as ``/boot/vmlinuz-7.3``; a folder in which a kernel was built, installed or unpacked; or a
        ``linux-image-*.deb`` or ``linux-binary-*.deb``, beside which its ``linux-modules-*.deb`` is used, too.

    Raises
    ------
    UserError
        There is no kernel.
    """
    path, files = Path(place).expanduser().absolute(), dict[str, bytes]()
    if not path.exists():
        raise UserError("there is no such file", parameter=str(place))
    if path.suffix == ".deb":
        beside = (path.with_name(f"linux-{kind}-{path.name.split('-', 2)[-1]}") for kind in ("binary", "modules"))
        for package in {path, *filter(Path.exists, beside)}:
            files |= _in_package(package)
    elif path.is_dir() or path.parts[-4:-1] == ("arch", "x86", "boot"):
        files = _in_folder(path if path.is_dir() else path.parents[3])
    else:
        files = {"vmlinuz": path.read_bytes()}
    image = next((files[name] for name in sorted(files, reverse=True) if ".ko" not in name), b"")
    if image[0x202:0x206] != b"HdrS":
        allowed = "a bzImage, a folder with one, or a linux-image-*.deb or linux-binary-*.deb"
        raise UserError("there is no Linux kernel for x86-64 in it", parameter=str(place), allowed=allowed)
    start = 0x200 + int.from_bytes(image[0x20E:0x210], "little")
    release = image[start : start + 100].split()[0].decode()
    for folder in (path.parent, path.parents[1] / "lib/modules" / release, Path("/lib/modules", release)):
        if path.is_file() and folder.name == release:
            files = _in_folder(folder) | files
    modules = {name: content for name, content in files.items() if ".ko" in name}
    return Kernel(image, release, {n: lzma.decompress(c) if n.endswith(".xz") else c for n, c in modules.items()})


def _in_folder(folder: Path) -> dict[str, bytes]:
    """Return what is wanted of a folder."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if WANTED.fullmatch(path.name) if path.is_file()}


def _in_package(package: Path) -> dict[str, bytes]:
    """Return what is wanted of a Debian package."""
    with TemporaryFile() as file:
        _run(["dpkg-deb", "--fsys-tarfile", str(package)], package.name, stdout=file)
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            found = {Path(one.name).name: one for one in tar if one.isfile()}
            return {n: tar.extractfile(one).read() for n, one in found.items() if WANTED.fullmatch(n)}  # type: ignore[union-attr]


def fetch(version: str) -> Path:
    """Return the Debian package of a kernel, fetched with apt into the user's cache unless it is there.

    All suites of Debian are asked, at the mirrors of this machine's own apt configuration, in a private apt state: the
    machine's stays as it is. Releases must be signed by the installed archive key.

    Parameters
    ----------
    version
        A series or a release, such as ``7.3`` or ``6.12.117``. Of several the newest is taken.

    Raises
    ------
    UserError
        apt or the archive's key is missing, no mirror of Debian is configured, or no suite has that version.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mmlab" / "kernels"
    cache.mkdir(parents=True, exist_ok=True)
    there = {path.name.partition("_")[0]: path for path in cache.glob("linux-*.deb")}
    if chosen := _newest(version, there):
        return there[chosen]
    with TemporaryDirectory(dir=cache) as state:
        Path(state, "lists/partial").mkdir(parents=True)
        targets = _run(["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)"], "apt-get")
        mirrors = sorted({uri for uri in targets.split() if uri.rstrip("/").endswith("/debian")})
        lines = [f"deb [signed-by={KEYS}] {uri} {suite} main\n" for uri in mirrors for suite in SUITES]
        Path(state, "sources.list").write_text("".join(lines))
        Path(state, "apt.conf").write_text(
            f'#clear APT::Update;\nDir::Etc::SourceList "{state}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State::Lists "{state}/lists";\nDir::Cache "{state}";\n'
            'Acquire::Languages "none";\nAPT::Sandbox::User "root";\n'
        )
        apt = ["-c", f"{state}/apt.conf", "-q"]
        _run(["apt-get", *apt, "update"])  # a suite may be missing
        names = _run(["apt-cache", *apt, "pkgnames", "linux-"], "apt-cache").split()
        if not (chosen := _newest(version, names)):
            series = sorted({".".join(one[1].split(".")[:2]) for one in map(PACKAGE.fullmatch, names) if one})
            hint = f"There are {', '.join(series)}." if series else "apt reaches no mirror of Debian."
            raise UserError("is in no suite of Debian", parameter="--fetch", value=version, hint=hint)
        wanted = sorted({chosen, chosen.replace("-binary-", "-modules-")} & {*names})
        _run(["apt-get", *apt, "download", *wanted], "apt-get", cwd=state)
        for path in Path(state).glob("*.deb"):
            there[path.name.partition("_")[0]] = path.rename(cache / path.name)
    return there[chosen]


def _newest(version: str, names: Iterable[str]) -> str:
    """Return the newest package of that version, and of two the one that holds the kernel; "" if there is none."""
    asked = re.compile(re.escape(version) + r"([.+-].*)?")
    found = [one for one in map(PACKAGE.fullmatch, names) if one and asked.fullmatch(one[1])]
    found.sort(key=lambda one: ([int(number) for number in re.findall(r"\d+", one[1])], "-binary-" in one[0]))
    return found[-1][0] if found else ""


def _run(command: list[str], what: str = "", **how: Any) -> str:
    """Return what a command prints; with `what`, a name for the message, it must succeed."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False, **how}
    try:
        done = subprocess.run(command, **how)
    except FileNotFoundError:
        raise UserError("is not installed", parameter=command[0]) from None
    if what and done.returncode:
        raise UserError(done.stderr.strip().rpartition("\n")[2] or "failed", parameter=what)
    return done.stdout or ""


# -- what the guest has ---------------------------------------------------------------------------------------------


def cpio(files: Mapping[str, bytes]) -> bytes:
    """Return files, and the folders that they need, as an archive that the kernel unpacks at boot ("newc").

    >>> len(cpio({"init": b""})), cpio({})[:6]
    (352, b'070701')
    """
    folders = {str(parent): None for name in files for parent in reversed(Path(name).parents)}
    out = bytearray()
    for number, (path, content) in enumerate([*(folders | dict(files)).items(), ("TRAILER!!!", b"")]):
        name = path.strip("/").encode() + b"\0"
        mode, size = (0o40755, 0) if content is None else (0o100755, len(content))
        fields = (number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name), 0)
        for part in (b"070701" + b"".join(b"%08X" % one for one in fields) + name, content or b""):
            out += part + bytes(-len(part) % 4)
    return bytes(out)


def python_files(*scripts: Path) -> dict[str, bytes]:
    """Return the files that scripts need where nothing else is, at the paths that they have here.

    These are Python's executable, modules of the standard library (compiled), shared libraries, and each script,
    compiled, in the topmost folder.
    """
    stdlib = sysconfig.get_path("stdlib")
    finder = ModuleFinder([stdlib, f"{stdlib}/lib-dynload"], excludes=["multiprocessing", "pydoc", "unittest"])
    for script in scripts:
        finder.load_file(str(script))
    files, binaries = {}, [str(PYTHON)]
    modules: dict[str, Any] = finder.modules
    for name, module in modules.items():
        if module.__code__:
            path = f"/{name}.pyc" if name in {one.stem for one in scripts} else f"{module.__file__}c"
            files[path] = MAGIC_NUMBER + bytes(12) + marshal.dumps(module.__code__)
        elif module.__file__:
            binaries.append(module.__file__)
    libraries = re.findall(r"(/\S+) \(0x", _run(["ldd", *binaries], "ldd"))
    return files | {path: Path(path).read_bytes() for path in {*binaries, *libraries}}


# -- a guest --------------------------------------------------------------------------------------------------------


def _lines(qemu: subprocess.Popen[bytes], console: int) -> Iterator[bytes]:
    """Yield the lines of the second serial port until QEMU ends; TimeoutError if there are none any more."""
    assert qemu.stdout
    port, rest, since = qemu.stdout.fileno(), b"", _clock(qemu.pid)
    while True:
        if select.select([port], [], [], 0.5)[0]:
            if not (chunk := os.read(port, 1 << 20)):
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
            since = _clock(qemu.pid)
        elif b"KVM internal error" in os.pread(console, 1 << 20, 0):
            return  # QEMU would wait for a debugger
        elif _clock(qemu.pid) - since > SILENCE_S:
            raise TimeoutError


def _clock(pid: int) -> float:
    """Return a time in seconds that stands still while a process has no CPU because others have it."""
    waits = [path.read_text().split()[1] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return time.monotonic() - max(map(int, waits), default=0) / 1e9
