"""The Python that runs mmlab as a Jupyter kernel, for reports and for the lab, whatever kernel specs are installed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["environment", "this_interpreter"]


@contextlib.contextmanager
def this_interpreter(folder: Path, env: Mapping[str, str] | None = None, *options: str) -> Iterator[str]:
    """Within it, the kernel that notebooks name runs this very interpreter, and ``import mmlab`` finds this library.

    Parameters
    ----------
    folder : Path
        A folder of the caller's, which is searched for kernel specs before all others (``JUPYTER_PATH``).
    env : mapping, optional
        Environment of the kernel's process, besides the caller's.
    *options : str
        More options of ipykernel.

    Yields
    ------
    str
        The kernel's name.
    """
    name = "python3"
    silent = ["--log-level=50"]  # about its loopback socket, and about the interrupt that comes before its end
    search = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", *silent, *options],
        "display_name": "Python 3 (ipykernel)",  # as the notebooks have it: saving one changes nothing
        "language": "python",
        "env": {**(env or {}), "PYTHONPATH": os.pathsep.join(search)},
    }
    home = folder / "kernels" / name
    home.mkdir(parents=True)
    (home / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    before = filter(None, [os.environ.get("JUPYTER_PATH")])
    with environment(JUPYTER_PATH=os.pathsep.join([str(folder), *before])):
        yield name


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Within it, the environment has these values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
