"""The Python that runs mmlab as a Jupyter kernel, for reports and JupyterLab, whichever kernel specs are installed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

__all__ = ["ThisInterpreter", "kernel_manager"]

QUIET = "--IPKernelApp.exec_lines=__import__('logging').getLogger('matplotlib').setLevel('ERROR')"
"""matplotlib tells that it has no folder for its fonts, or many fonts: a page must not depend on either."""


class ThisInterpreter(KernelSpecManager):
    """Jupyter's kernels, but the one that notebooks name runs this interpreter, with this library."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return a kernel spec by its name; the one named python3 finds this library, whatever is installed."""
        if kernel_name != NATIVE_KERNEL_NAME:
            return super().get_kernel_spec(kernel_name)
        search = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")]), str(Path.cwd())]
        silent = ["--log-level=50"]  # no log of its loopback socket, nor of the interrupt before its end
        return KernelSpec(**get_kernel_dict(silent), env={"PYTHONPATH": os.pathsep.join(search)})


def kernel_manager(env: Mapping[str, str]) -> type[AsyncKernelManager]:
    """Return a class that starts this interpreter with more environment variables."""

    class Manager(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            spec = ThisInterpreter().get_kernel_spec(NATIVE_KERNEL_NAME)
            spec.env |= env
            spec.argv.append(QUIET)
            return spec

    return Manager
