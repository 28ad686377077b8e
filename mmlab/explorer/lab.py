"""JupyterLab on the explorer: on the clone's own notebooks, or on copies of those that were installed.

A folder with copies belongs to its user. :func:`copy` brings in what is new and replaces what was never changed; what
was changed stays as it is. ``.mmlab.sha256`` in the folder says what was shipped (``sha256sum -c`` reads it, too).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mmlab import __version__
from mmlab.errors import UserError
from mmlab.params import shipped_folder, write_atomically
from mmlab.report.jupyter import environment, this_interpreter

__all__ = ["FOLDER", "START", "clone", "copy", "serve"]

START = "notebooks/00_explore.ipynb"
"""What is opened."""
FOLDER = Path("mmlab-lab")
"""Where copies go unless told otherwise."""
MANIFEST = ".mmlab.sha256"


def clone() -> Path | None:
    """The top of the clone that this library is in, if it is in one: there, notebooks are opened in place."""
    top = Path(__file__).parents[2]
    return top if shipped_folder("notebooks").parent == top else None


def copy(folder: Path, source: Path | None = None) -> list[str]:
    """Bring notebooks and params files into a folder, never over a change that was made there.

    Parameters
    ----------
    folder : Path
        Made if need be; ``notebooks/`` and ``params/`` are filled within it.
    source : Path, optional
        Where they come from; default: what was installed.

    Returns
    -------
    list of str
        A line that counts the files copied, and one for each file that was updated or that stays because it was
        changed. A new version of a file that was changed lies beside it, with version and digest in its name.

    Raises
    ------
    UserError
        The folder cannot be written.
    """
    source = source or shipped_folder("notebooks").parent
    if folder.resolve() == source.resolve():
        return []
    added, said = 0, []
    try:
        known = _manifest(folder)
        shipped = [*(source / "notebooks").glob("[!.]*.*"), *(source / "params").rglob("[!.]*.*")]
        for origin in sorted(shipped):
            name, content = origin.relative_to(source).as_posix(), origin.read_bytes()
            target, digest, before = folder / name, _digest(content), known.get(name)
            there = _digest(target.read_bytes()) if target.exists() else None
            if there is None:
                write_atomically(target, content)
                added += 1
            elif there == before != digest:
                write_atomically(target, content)
                said.append(f"{target}: updated to mmlab {__version__}")
            elif there != digest and before == digest:
                said.append(f"{target}: you have changed it, so it stays")
            elif there != digest:
                beside = target.with_name(f"{target.stem}.{__version__}-{digest[:6]}{target.suffix}")
                if not beside.exists():
                    write_atomically(beside, content)
                said.append(f"{target}: you have changed it, so it stays; what is shipped is beside it: {beside.name}")
            known[name] = digest
        write_atomically(
            folder / MANIFEST, "".join(f"{digest}  {name}\n" for name, digest in sorted(known.items())).encode()
        )
    except OSError as error:
        raise UserError(f"{folder}: {error.filename or folder}: {error.strerror}; name another folder") from None
    return [*([f"{folder}: {added} files copied"] if added else []), *said]


def _manifest(folder: Path) -> dict[str, str]:
    """Digest of each file as it was shipped last, by its name; empty where there is none."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    return {match[2]: match[1] for match in re.finditer(r"(?m)^([0-9a-f]{64})  (.+)$", text)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def serve(folder: Path, port: int | None = None, browser: bool = True, say: Callable[[str], None] = print) -> None:
    """JupyterLab in a folder, on the explorer, until it is interrupted. Loopback only, with a token.

    Parameters
    ----------
    folder : Path
        What the lab shows; it has ``notebooks/``.
    port : int, optional
        Default: the first free one from 8888 on.
    browser : bool
        Open a browser, where there is a display for it. The address is said in any case.
    say : callable
        Takes each line for the user.

    Raises
    ------
    UserError
        The port is not to be had.
    """
    from jupyterlab.labapp import LabApp

    token, port = secrets.token_hex(24), _free_port(port)
    shown = sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.base_url": "/",
        "ServerApp.certfile": "",
        "ServerApp.root_dir": folder.resolve(),
        "ServerApp.open_browser": browser and shown,
        "ServerApp.allow_root": True,  # it is reached from this machine only, by who knows the token
        "ServerApp.answer_yes": True,  # one Ctrl-C ends it
        "ServerApp.log_level": 40,
        "LabApp.log_level": 40,
        "IdentityProvider.token": token,
        "LabApp.default_url": f"/lab/tree/{START}",
    }
    with tempfile.TemporaryDirectory(prefix="mmlab-lab-") as own, this_interpreter(Path(own)), _defaults(Path(own)):
        app = LabApp.initialize_server(argv=[f"--{name}={value}" for name, value in settings.items()])
        app.contents_manager.register_pre_save_hook(_as_shipped)
        address = f"http://127.0.0.1:{port}/lab/tree/{START}?token={token}"
        app.io_loop.add_callback(say, f"JupyterLab: {address}\nCtrl-C ends it.")  # after the one that binds the port
        app.start()


def _defaults(folder: Path) -> AbstractContextManager[None]:
    """Within it, JupyterLab asks nobody for news or newer versions, unless its user has set that."""
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (folder / "labconfig").mkdir()
    text = json.dumps({"@jupyterlab/apputils-extension:notification": quiet})
    (folder / "labconfig" / "default_setting_overrides.json").write_text(text, encoding="utf-8")
    others = filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])
    return environment(JUPYTER_CONFIG_PATH=os.pathsep.join([str(folder), *others]))


def _as_shipped(model: dict[str, Any], **_: object) -> None:
    """Before a notebook is saved: without what JupyterLab notes about the interpreter. A notebook that was opened, and
    not changed, stays the same file, byte by byte."""
    if model["type"] == "notebook":
        model["content"]["metadata"]["language_info"] = {"name": "python"}


def _free_port(wanted: int | None) -> int:
    """The port wanted, or the first free one from 8888 on, or any."""
    for port in (wanted,) if wanted else (*range(8888, 8988), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                reason = error.strerror
                continue
            return int(probe.getsockname()[1])
    raise UserError(f"--port {wanted}: {reason}. Name another one, or none: then a free one is taken")
