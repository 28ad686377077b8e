"""The lab: what is copied and what never is, and a server that really runs: token, loopback, kernel, end."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from conftest import ROOT
from mmlab import __version__, cli
from mmlab.errors import UserError
from mmlab.explorer import lab

# -- copies ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """Something small to copy, in place of what is installed."""
    top = tmp_path / "share"
    for name in ("notebooks/a.ipynb", "notebooks/b.ipynb", "params/p.yaml", "params/README.md"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(f"first {name}")
    return top


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_copies_what_ships(tmp_path: Path) -> None:
    """Every notebook and params file of the clone, as it is, and a second time nothing."""
    mine = tmp_path / "mine"
    (said,) = lab.copy(mine)
    wanted = [path for path in (*(ROOT / "notebooks").glob("*.*"), *(ROOT / "params").rglob("*.*")) if path.is_file()]
    assert said == f"{mine}: {len(wanted)} files copied"
    for path in wanted:
        assert (mine / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert set(files(mine)) == {p.relative_to(ROOT).as_posix() for p in wanted}
    assert lab.copy(mine) == []


def test_what_is_there_stays(shipped: Path, tmp_path: Path) -> None:
    """Changed files, a user's own files, and files of an earlier version; what was removed comes back."""
    mine = tmp_path / "mine"
    (mine / "notebooks").mkdir(parents=True)
    (mine / "notebooks/a.ipynb").write_text("another's")
    counted, differs = lab.copy(mine, shipped)
    assert counted == f"{mine}: 3 files copied"
    assert differs.startswith(f"{mine}/notebooks/a.ipynb: differs from that of mmlab {__version__}")
    (mine / "params/p.yaml").unlink()
    (mine / "notebooks/own.ipynb").write_text("my own")
    (shipped / "notebooks/b.ipynb").write_text("second")
    said = lab.copy(mine, shipped)
    assert said[0] == f"{mine}: 1 files copied"
    assert [line.partition(":")[0] for line in said[1:]] == [f"{mine}/notebooks/{name}.ipynb" for name in "ab"]
    assert files(mine) == {
        "notebooks/a.ipynb": "another's",
        "notebooks/b.ipynb": "first notebooks/b.ipynb",
        "notebooks/own.ipynb": "my own",
        "params/p.yaml": "first params/p.yaml",
        "params/README.md": "first params/README.md",
    }


def test_never_onto_itself(shipped: Path) -> None:
    before = files(shipped)
    assert lab.copy(shipped / "notebooks" / "..", shipped) == []
    assert files(shipped) == before


def test_a_folder_that_cannot_be(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "odd" / "params" / "p.yaml").mkdir(parents=True)
    for name, problem in (("file", "Not a directory"), ("odd", "Is a directory")):
        with pytest.raises(UserError, match=problem) as error:
            lab.copy(tmp_path / name, shipped)
        assert error.value.parameter == str(tmp_path / name)


def test_this_is_a_clone() -> None:
    assert lab.clone() == ROOT
    assert lab.START == "notebooks/00_explore.ipynb"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a clone it opens the clone; a folder is filled first, and only that with --copy-only."""
    opened = []
    monkeypatch.setattr(lab, "serve", lambda folder, port, browser, say: opened.append((folder, port, browser)))
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["lab", *args])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert run() == ""
    assert opened.pop() == (ROOT, None, True)
    assert run("mine", "--port", "9000", "--no-browser").startswith("mine: ")
    assert opened.pop() == (Path("mine"), 9000, False)
    assert run("mine") == ""
    assert opened.pop() == (Path("mine"), None, True)
    assert run("--copy-only").startswith(f"{lab.FOLDER}: ")
    assert not opened
    assert (tmp_path / lab.FOLDER / "params").is_dir()


# -- the server -----------------------------------------------------------------------------------------------------

LONG = 300
"""Seconds that a busy machine may take."""


def call(url: str, token: str = "", data: object = None, method: str | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer over loopback."""
    headers = {"Authorization": f"token {token}"} if token else {}
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, headers, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    try:
        with direct.open(request, timeout=LONG) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, None


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    token: str
    said: str
    folder: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`mmlab lab FOLDER --no-browser` on a terminal, with a home that cannot be written, behind a proxy."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "my lab"
    (home / "a file").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "PYTEST"))}
    own, theirs = pty.openpty()
    main = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); from mmlab.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", main, "lab", str(folder), "--no-browser"],
        cwd=home,
        env=environment | {"HOME": str(home / "a file" / "home")},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    timer = threading.Timer(LONG, process.kill)
    timer.start()
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("Ctrl-C"):
                break
        address = next((word for word in said.split() if word.startswith("http")), "")
        assert address, said
        parts = urlsplit(address)
        assert parts.path == f"/lab/tree/{lab.START}"
        yield Server(process, f"http://{parts.netloc}", parse_qs(parts.query)["token"][0], said, folder)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(own)
        os.close(theirs)


def test_says_what_was_copied_and_where(server: Server) -> None:
    assert f"{server.folder}: " in server.said.splitlines()[0]
    assert (server.folder / "params" / "README.md").is_file()


def test_nobody_gets_in_without_the_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert len(server.token) >= 32
    assert call(f"{server.url}/api/contents")[0] == 403
    assert call(f"{server.url}/api/contents", "wrong")[0] == 403
    status, contents = call(f"{server.url}/api/contents", server.token)
    assert status == 200
    assert {entry["name"] for entry in contents["content"]} == {"notebooks", "params"}


def test_only_loopback(server: Server) -> None:
    """Every socket that listens at the server's port is bound to 127.0.0.1 (/proc/net/tcp)."""
    port = urlsplit(server.url).port
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    bound = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    assert bound == [f"0100007F:{port:04X}"]


def test_opening_a_notebook_does_not_change_it(server: Server) -> None:
    """What JupyterLab saves of a notebook that nobody changed is the file that was shipped: it can still be updated."""
    name = "notebooks/01_regression.ipynb"
    _, model = call(f"{server.url}/api/contents/{name}", server.token)
    model["content"]["metadata"]["language_info"] = {"name": "python", "version": "3.11.0", "file_extension": ".py"}
    assert call(f"{server.url}/api/contents/{name}", server.token, model, "PUT")[0] == 200
    assert (server.folder / name).read_bytes() == (ROOT / name).read_bytes()


def test_asks_nobody_for_news(server: Server) -> None:
    plugin = "@jupyterlab/apputils-extension:notification"
    _, settings = call(f"{server.url}/lab/api/settings/{plugin}", server.token)
    news, updates = (settings["schema"]["properties"][name]["default"] for name in ("fetchNews", "checkForUpdates"))
    assert (news, updates) == ("false", False)


def test_its_kernel_runs_mmlab(server: Server) -> None:
    """The kernel that a notebook names is this interpreter, in the notebook's folder."""
    from websocket import create_connection

    _, session = call(
        f"{server.url}/api/sessions",
        server.token,
        {"path": "notebooks/01_regression.ipynb", "name": "", "type": "notebook", "kernel": {"name": "python3"}},
    )
    kernel = session["kernel"]["id"]
    socket_url = f"{server.url.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={server.token}"
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": "s",
        "username": "",
        "version": "5.3",
    }
    code = "import sys, os, mmlab; print(sys.executable, os.getcwd(), mmlab.Scenario(memory_mib=2).total_pages)"
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    line = create_connection(socket_url, timeout=60)
    try:
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        line.send(json.dumps(message))
        while (heard := json.loads(line.recv()))["msg_type"] not in ("stream", "error"):
            pass
    finally:
        line.close()
    assert heard["content"].get("text") == f"{sys.executable} {server.folder}/notebooks 512\n", heard


def test_a_port_in_use(server: Server, tmp_path: Path) -> None:
    """Jupyter says so. Without a port, another one is taken."""
    command = [sys.executable, "-c", "from mmlab.cli import main; main()", "lab", str(tmp_path), "--no-browser"]
    port = str(urlsplit(server.url).port)
    done = subprocess.run(
        [*command, "--port", port],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "http" in done.stdout) == (2, False)
    said = done.stderr.splitlines()[-1]
    assert f"port {port} is not available" in said


def test_interrupt_ends_it(server: Server) -> None:
    """The last test of this server: one Ctrl-C, status 0, nothing said but that, and the port is free again."""
    server.process.send_signal(signal.SIGINT)
    rest, _ = server.process.communicate(timeout=LONG)
    assert server.process.returncode == 0, rest
    assert len(rest.splitlines()) <= 1, rest
    with pytest.raises(urllib.error.URLError):
        call(f"{server.url}/api", server.token)
