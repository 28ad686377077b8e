"""JupyterLab on the explorer: on the clone's own notebooks, or on copies of the installed ones; or nothing but it.

A folder with copies belongs to its user: `copy` adds the files that are missing and never changes one that is there.
"""

import json
import os
import secrets
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmlab import __version__
from mmlab.params import find_params, read_yaml, shipped_folder, write_atomically, writing
from mmlab.results.trace import load
from mmlab.variants import resolve

START = "notebooks/00_explore.ipynb"
"""The notebook that is opened."""
PAGE = f"lab/tree/{START}"
DEFAULT = "regression_uzp1"
FOLDER = Path("mmlab-lab")
"""Where copies go by default."""


def clone() -> Path | None:
    """Return the top of the clone that this library is in, where notebooks are opened in place; None elsewhere."""
    top = Path(__file__).parents[2]
    return top if shipped_folder("notebooks").parent == top else None


def copy(folder: Path, source: Path | None = None) -> list[str]:
    """Copy notebooks and params files into a folder; a file that is there already stays as it is.

    Parameters
    ----------
    folder
        Made if necessary; ``notebooks/`` and ``params/`` are filled within it.
    source
        Where they come from; default: what was installed.

    Returns
    -------
    list of str
        A line that counts the files copied, and one for each file that differs from the shipped one.

    Raises
    ------
    UserError
        The folder cannot be written.
    """
    source = source or shipped_folder("notebooks").parent
    added, differ = 0, []
    with writing(folder):
        for origin in sorted([*(source / "notebooks").glob("[!.]*.*"), *(source / "params").rglob("[!.]*.*")]):
            target = folder / origin.relative_to(source)
            if not target.exists():
                write_atomically(target, origin.read_bytes())
                added += 1
            elif target.read_bytes() != origin.read_bytes():
                differ.append(f"{target}: differs from that of mmlab {__version__}; remove it to get that one")
    return [*[f"{folder}: {added} files copied"] * (added > 0), *differ]


def serve(
    folder: Path, port: int | None = None, browser: bool = True, say: Callable[[str], None] = print, page: str = PAGE
) -> None:
    """Run Jupyter's server in a folder until it is interrupted: on loopback only, with a token.

    Parameters
    ----------
    folder
        What JupyterLab shows; it has ``notebooks/``.
    port
        Default: 8888, or a free one where that is in use.
    browser
        Open a browser, where there is a display for it. The address is printed in any case.
    say
        Takes each line for the user.
    page
        What is opened: JupyterLab on the explorer, by default.

    Raises
    ------
    SystemExit
        The port is in use, or may not be used: Jupyter has said so.
    """
    import voila  # noqa: F401 (now: the filter that it adds must not win over ours)
    from jupyterlab.labapp import LabApp

    data = read_yaml(Path(__file__).with_name("lab.yaml"))
    token = secrets.token_hex(24)
    display = sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    settings = data["server"] | {
        "ServerApp.port": port or 8888,
        "ServerApp.port_retries": 0 if port else 50,
        "ServerApp.root_dir": folder.resolve(),
        "ServerApp.open_browser": browser and display,
        "IdentityProvider.token": token,
        "LabApp.default_url": f"/{page}",
    }
    with tempfile.TemporaryDirectory(prefix="mmlab-lab-") as own:
        if not os.access(os.path.expanduser("~"), os.W_OK):  # noqa: PTH111 (Path's raises where there is none)
            os.environ["HOME"] = own  # Jupyter does not start without a home that can be written
        overrides = Path(own, "labconfig", "default_setting_overrides.json")
        write_atomically(overrides, json.dumps(data["overrides"]).encode())
        for name, path in (("JUPYTER_CONFIG_PATH", own), ("JUPYTER_PATH", str(Path(__file__).with_name("jupyter")))):
            os.environ[name] = os.pathsep.join(filter(None, [path, os.environ.get(name)]))
        warnings.simplefilter("ignore", DeprecationWarning)  # of Jupyter's parts among themselves
        try:
            app = LabApp.initialize_server(argv=[f"--{name}={value}" for name, value in settings.items()])
        except SystemExit:
            sys.exit(2)  # Jupyter has said why: the port is in use, or its own configuration is wrong
        app.contents_manager.register_pre_save_hook(_as_shipped)
        address = f"http://127.0.0.1:{app.port}/{page}?token={token}"
        app.io_loop.add_callback(say, f"{address}\nCtrl-C ends it.")  # once the port is bound
        app.start()


def explore(params: str | None, variant: str | None, **options: Any) -> None:
    """Serve nothing but the explorer, without code, until it is interrupted.

    Parameters
    ----------
    params, variant
        What to start from: a params file or the name of one, and the first variant.
    **options
        Those of `serve`.

    Raises
    ------
    UserError
        A name is unknown.
    """
    from nbformat import v4, write

    start = find_params(params or DEFAULT).resolve()
    resolve(variant or load(start).variant)
    code = f"import os, mmlab\nos.chdir({str(Path.cwd())!r})\nmmlab.explore({str(start)!r}, variant={variant!r})"
    cells = [v4.new_markdown_cell("# mmlab: the explorer"), v4.new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    with tempfile.TemporaryDirectory(prefix="mmlab-explore-") as own:
        write(notebook, Path(own, "explorer.ipynb"))
        serve(Path(own), page="voila/render/explorer.ipynb", **options)


def _as_shipped(model: dict[str, Any], **_: object) -> None:
    """Drop what JupyterLab notes about interpreter and widgets before a notebook is saved.

    A notebook that was opened, and not changed, stays the same file, byte by byte.
    """
    if model["type"] == "notebook":
        model["content"]["metadata"]["language_info"] = {"name": "python"}
        model["content"]["metadata"].pop("widgets", None)
