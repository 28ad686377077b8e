"""Jupyter kernels that run this interpreter with this library: for JupyterLab, and, forked, for reports."""

import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from mmlab.workers import end_with_parent

FORK: Any = get_context("fork" if sys.platform == "linux" else "spawn")
"""Processes that start with all that is loaded; the frameworks of macOS do not survive a fork."""


class ThisInterpreter(KernelSpecManager):
    """Jupyter's kernels, but the one that notebooks name runs this interpreter, with this library."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return a kernel spec by its name; the one named python3 finds this library, whatever is installed."""
        if kernel_name != NATIVE_KERNEL_NAME:
            return super().get_kernel_spec(kernel_name)
        search = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")]), str(Path.cwd())]
        silent = ["--log-level=50"]  # no log of its loopback socket, nor of the interrupt before its end
        return KernelSpec(**get_kernel_dict(silent), env={"PYTHONPATH": os.pathsep.join(search)})


class _ForkedKernel(FORK.Process):  # type: ignore[misc]
    """A kernel with the methods of `subprocess.Popen` that Jupyter uses."""

    stdin = stdout = stderr = None

    def run(self) -> None:
        from ipykernel.kernelapp import IPKernelApp

        os.setsid()  # a Ctrl-C that is meant for the caller would end its cell
        end_with_parent()
        logging.disable(logging.NOTSET)
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a page must not tell about the user's many fonts
        asyncio.set_event_loop(asyncio.new_event_loop())
        sys.path.append(str(Path.cwd()))
        app: Any = IPKernelApp.instance()
        app.initialize(self._args)
        app.start()

    def poll(self) -> Any:
        return self.exitcode

    def wait(self) -> Any:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class _Provisioner(LocalProvisioner):
    async def launch_kernel(self, cmd: list[str], **_: Any) -> Mapping[str, Any]:  # type: ignore[override]
        self.process = _ForkedKernel(args=cmd)
        self.process.start()
        return self.connection_info


class ForkedKernelManager(AsyncKernelManager):
    """Starts kernels by forking this process, with its environment."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        quiet = ["--log-level=50", "--HistoryManager.enabled=False", "--InteractiveShellApp.ignore_cwd=True"]
        self._kernel_spec = KernelSpec(argv=["-f", "{connection_file}", *quiet])
        self.provisioner = _Provisioner(parent=self, kernel_id="", kernel_spec=self._kernel_spec)
