"""The Python that runs mmlab as a Jupyter kernel, for reports and JupyterLab, whichever kernel specs are installed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["environment", "this_interpreter"]


@contextmanager
def this_interpreter(folder: Path, env: Mapping[str, str] | None = None, *options: str) -> Iterator[str]:
    """Make the kernel that notebooks name run this interpreter, in which ``import mmlab`` finds this library.

    Parameters
    ----------
    folder : Path
        A folder of the caller's, which Jupyter then searches for kernel specs before all others (``JUPYTER_PATH``).
    env : mapping, optional
        Environment variables of the kernel's process, which has the caller's, too.
    *options : str
        More options of ipykernel.

    Yields
    ------
    str
        The kernel's name.
    """
    silent = "--log-level=50"  # no log of its loopback socket, nor of the interrupt before its end
    search = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", silent, *options],
        "display_name": "Python 3 (ipykernel)",  # the notebooks' own, so that saving one changes nothing
        "language": "python",
        "env": {**(env or {}), "PYTHONPATH": os.pathsep.join(search)},
    }
    home = folder / "kernels" / "python3"
    home.mkdir(parents=True)
    (home / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    with environment(JUPYTER_PATH=os.pathsep.join([str(folder), *filter(None, [os.environ.get("JUPYTER_PATH")])])):
        yield home.name


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for the duration of a context."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)
