"""Files: the shipped ones by name, YAML read strictly, and writing that never leaves half a file."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml

from mmlab.errors import UserError, unknown

__all__ = ["check_folder", "find_params", "locked", "params_files", "read_yaml", "save_new", "shipped_folder"]
__all__ += ["write_atomically", "writing", "yaml_lines"]

KINDS = {"": "params file", "upgrade": "params file", "grids": "grid", "goals": "goals file", "fleets": "fleet file"}
"""Folders within ``params/``, and what to call a file of each."""


def shipped_folder(name: str = "params") -> Path:
    """Return where ``params`` or ``notebooks`` are: in the installed package, or beside it in a clone.

    Raises
    ------
    UserError
        They are in neither.
    """
    package = Path(__file__).parent
    clone = package.parent if (package.parent / "pyproject.toml").is_file() else package
    for place in (package / "shipped" / name, clone / name):
        if place.is_dir():
            return place
    raise UserError(f"the folder is not in {package / 'shipped'}", parameter=name, hint="Reinstall mmlab.")


def params_files(kind: str = "") -> dict[str, Path]:
    """Return every file of ``params/``, or of one of its folders (`KINDS`), by its name without the ending."""
    return {path.stem: path for path in sorted((shipped_folder() / kind).glob("*.yaml"))}


def find_params(name: str | Path, kind: str = "") -> Path:
    """Return a file by its path, or one of `params_files` by its name.

    Raises
    ------
    UserError
        There is neither.

    Examples
    --------
    >>> find_params("all_zero").name, find_params("one_image", "goals").name
    ('all_zero.yaml', 'one_image.yaml')
    """
    path, shipped = Path(name), params_files(kind)
    if not kind:
        shipped |= {f"upgrade/{name}": path for name, path in params_files("upgrade").items()}
    if path.is_file():
        return path
    if str(name) in shipped:
        return shipped[str(name)]
    where = f"params/{kind}/" if kind else "params/"
    raise unknown(KINDS[kind], str(name), shipped, f"Name a file, or one of {where} without its ending.")


class _UniqueKeys(yaml.CSafeLoader):
    """Plain YAML in which a key given twice is an error; a plain loader would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f'"{key.value}" is given twice', key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the unchecked values of a YAML file of ``name: value`` lines.

    Raises
    ------
    UserError
        The file cannot be read, is not a mapping, or gives a key twice.
    """
    hint = ""
    try:
        text = path.read_text(encoding="utf-8")
        hint = "`mmlab host` reads dumps of a host." if re.search(r"ksm/\w+:|node_ksmd_|shm_\w+ ", text) else ""
        data = yaml.load(text, _UniqueKeys)  # a safe loader
    except OSError as error:
        raise UserError(error.strerror or str(error), where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"this is not YAML: {' '.join(str(error).split())}", where=str(path), hint=hint) from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        problem = "a scenario file holds `name: value` lines, one for each parameter"
        raise UserError(problem, where=str(path), hint=hint)
    return data


def yaml_lines(values: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Return values as YAML, one after another, each with its note, if it has one, in a comment behind it."""
    lines = {}
    for name, value in values.items():
        style = None if isinstance(value, list) else False  # lists of lists: the innermost on one line
        line = yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=style, allow_unicode=True, width=1000)
        lines[name] = f"{line.strip():31} # {notes[name]}\n" if name in notes else line
    return "".join(lines.values())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write a file into a `UserError`."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise UserError(problem, parameter=str(path), hint="Name another place.") from error


def check_folder(file: Path) -> None:
    """Make the folder of a file that will be written; raise `UserError` if that is not possible."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=file.parent).close()


def save_new(path: str | Path, text: str) -> Path:
    """Write a new file, never over another one, and return its absolute path.

    Raises
    ------
    UserError
        The file exists, or cannot be written.
    """
    path = Path(path).expanduser().absolute()
    if path.exists():
        raise UserError("it exists and was left alone", parameter=str(path), hint="Name another file.")
    with writing(path):
        write_atomically(path, text.encode())
    return path


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder, or go on without where the file system has no locks.

    Raises
    ------
    BlockingIOError
        Another process holds it, and this one does not `wait`.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise
        yield
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes, *, to_stay: bool = False) -> None:
    """Write to a temporary file in the same (created) folder, then rename it; with `to_stay`, flush it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if to_stay:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
