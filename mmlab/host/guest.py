"""The first process of a guest that `mmlab vm` boots: it runs a plan after the other, and answers on a serial port.

Nothing is there but this file, the runner, as much of Python's standard library as the two import, and the plans.
"""

import ctypes
import json
import subprocess
import sys
import termios
import tty
from encodings import latin_1, utf_8  # noqa: F401  (Python loads them before it reads any import statement)
from pathlib import Path

MOUNTS = {"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/tmp": "tmpfs", "/run": "tmpfs"}
INIT_MODULE, RESTART = 175, 0x01234567
"""The number of init_module(); what makes reboot() restart, upon which QEMU ends."""


def main() -> None:
    """Mount, load modules, run each plan, restart."""
    libc = ctypes.CDLL(None)
    for where, kind in MOUNTS.items():
        Path(where).mkdir(exist_ok=True)
        libc.mount(b"none", where.encode(), kind.encode(), 0, None)
    waiting = {path.read_bytes() for path in Path("/modules").glob("*")}
    while loaded := {one for one in waiting if libc.syscall(INIT_MODULE, one, ctypes.c_ulong(len(one)), b"") == 0}:
        waiting -= loaded  # others may have needed these
    with Path("/dev/ttyS1").open("w", buffering=1) as line:
        tty.setraw(line)
        print(json.dumps({"booted": True}), file=line)
        for plan in sorted(Path("/plans").iterdir()):
            command = [sys.executable, "-IS", "/runner.pyc", str(plan)]
            done = subprocess.run(command, stdout=line, check=False)
            if done.returncode:
                print(json.dumps({"problem": f"the recorder ended with status {done.returncode}"}), file=line)
        termios.tcdrain(line)
    libc.reboot(RESTART)


if __name__ == "__main__":
    main()
