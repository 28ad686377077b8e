"""Files: the shipped ones by name, YAML read strictly, and writing that never leaves half a file.

Numbers, wherever they are given, may be written 1e3, and with a unit: `quantity` is the one place that knows how.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, get_args

import yaml

from mmlab.errors import KSM_COUNTERS, UserError, located, unknown

KINDS = {"": "params file", "upgrade": "params file", "grids": "grid", "goals": "goals file", "fleets": "fleet file"}
KINDS |= {"dumps": "dump"}
"""Folders within ``params/``, and what to call a file of each."""
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,2})?")
_TIMES = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_LARGE = {"M": 1 << 20, "MiB": 1 << 20, "G": 1 << 30, "GiB": 1 << 30, "T": 1 << 40, "TiB": 1 << 40}
_BYTES = {"K": 1 << 10, "KiB": 1 << 10, **_LARGE}
UNITS = {
    "s": (_TIMES, 1000, "30s, 5m or 2h"),
    "ms": (_TIMES, 1, "100ms or 2s"),
    "bytes": (_BYTES, 1, "512 or 4K"),
    "kB": (_BYTES, 1 << 10, "512M or 4G"),
    "MiB": (_BYTES, 1 << 20, "512M or 4G"),
    "MiB/s": (_BYTES, 1 << 20, "512K or 1G"),
    "GiB": (_BYTES, 1 << 30, "512G or 2T"),
    "pages": (_LARGE, 1 << 12, "1e3, or 64M for that much memory"),
}
"""What may follow a number in a unit, and how large each is; how large the unit is; and examples. No K may follow a
number of pages: it might mean a thousand of them."""


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
    return {path.stem: path for path in sorted((shipped_folder() / kind).glob("*.[ty]*"))}  # YAML; dumps are text


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


# --- numbers --------------------------------------------------------------------------------------------------------


def quantity(value: Any, unit: str) -> Any:
    """Return a number that is written as text, such as 4G, 2h or 1e3, in a unit; anything else as it is.

    Parameters
    ----------
    value
        What was given. A suffix of bytes is a power of 1024; a time is in ms, s, m (or min), h or d.
    unit
        The unit of the result; "" for a plain number.

    Examples
    --------
    >>> quantity("4G", "MiB"), quantity("2h", "s"), quantity("0.5s", "ms"), quantity("64M", "pages")
    (4096, 7200, 500, 16384)
    >>> quantity("1e3", ""), quantity("1000 pages", "pages"), quantity("4G", "s"), quantity(7, "s")
    (1000, 1000, '4G', 7)
    """
    if not (isinstance(value, str) and (found := NUMBER.match(value))):
        return value
    number, suffix = found[0], value[found.end() :].strip()
    known, size, _ = UNITS.get(unit, ({}, 1, ""))
    factor = size if suffix in ("", unit) else known.get(suffix, 0)
    if not factor:
        return value
    result = Decimal(number) * factor / size
    return int(result) if result == result.to_integral_value() else float(result)


def written(unit: str) -> str:
    """Return how numbers in a unit may be written: a sentence, or nothing where there is no unit to write.

    >>> written("ms")
    'Write it in ms, or as 100ms or 2s.'
    """
    return f"Write it in {unit}, or as {UNITS[unit][2]}." if unit in UNITS else ""


def seconds(text: str | float, parameter: str = "within") -> float:
    """Return a time above 0 in s, given as a number of seconds or with a unit.

    >>> seconds("30 min"), seconds("1.5 h"), seconds("90s"), seconds(5)
    (1800.0, 5400.0, 90.0, 5.0)
    """
    value = quantity(str(text), "s")
    if isinstance(value, str) or not 0 < value <= 1e9:
        raise UserError(parameter=parameter, value=text, allowed='a time above 0, such as "90 s", "30 min" or "2 h"')
    return float(value)


@cache
def units(model: Any) -> Mapping[str, str]:
    """Return the unit of each field of a pydantic model that does not take text; "" if it has none.

    It is the field's extra "unit", or stands in brackets in its description.
    """
    out = {}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra or {}
        named = re.search(rf"\(({'|'.join(UNITS)})\)", field.description or "")
        if str not in map(type, (field.default, *get_args(field.annotation))) and field.annotation is not str:
            out[name] = extra.get("unit") or (named[1] if named else "")
    return out


def in_units(model: Any, given: Any) -> Any:
    """Return what a pydantic model is given with each number in its field's unit: a validator of mode "before"."""
    if not isinstance(given, dict):
        return given
    known = units(model)
    return given | {name: quantity(value, known[name]) for name, value in given.items() if name in known}


# --- YAML -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.CSafeLoader):
    """Plain YAML in which 1e3 is a number, as in YAML 1.2, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f'"{key.value}" is given twice', key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("!e", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d{1,2}$"), list("-+0123456789"))
_Loader.add_constructor("!e", lambda _, node: quantity(node.value, ""))


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML text."""
    return yaml.load(text, _Loader)  # a safe loader


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the unchecked values of a YAML file of ``name: value`` lines.

    Raises
    ------
    UserError
        The file cannot be read, is not a mapping, or gives a key twice.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8")
    counters = "|".join(KSM_COUNTERS - {"full_scans"})  # an event may have that
    hint = "`mmlab host` reads dumps of a host." if re.search(rf"(\b|ksmd_|shm_)({counters})", text) else ""
    try:
        data = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"this is not YAML: {' '.join(str(error).split())}", where=str(path), hint=hint) from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        problem = "a scenario file holds `name: value` lines, one for each parameter"
        raise UserError(problem, where=str(path), hint=hint)
    for entry in data.get("process_list") or ():
        if isinstance(entry, dict) and isinstance(entry.get("workload"), str):
            entry["workload"] = str(path.parent / entry["workload"])
    return data


def read_image(entry: Mapping[str, Any], key: int) -> list[dict[str, Any]]:
    """Return an entry of `process_list` with a `workload`, a file of `mmlab capture`, once for each of its processes.

    Pages that are not there, in swap or unread are holes. So are zeropage entries, unless ksmd has placed most of those
    that lie in the process's mergeable memory: then they are what they were before, pages of zeroes.

    Parameters
    ----------
    entry
        Its other fields are those of each process.
    key
        Contents become keys above this one.

    Raises
    ------
    UserError
        The file cannot be read, or is another kind of file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, own = Path(str(entry["workload"])), {name: value for name, value in entry.items() if name != "workload"}
    columns = "process count kind rank step order mergeable hugepage nohugepage".split()
    with reading(path):
        try:
            with path.open("rb") as file:
                table = pq.read_table(file, columns=columns)
            about = json.loads(table.schema.metadata[b"mmlab"])
            always, asked = "[always]" in about["thp_enabled"], about["processes"]
        except (pa.ArrowException, KeyError, TypeError, ValueError):
            raise UserError("is no file of `mmlab capture`") from None
    out = []
    for process, part in groupby(zip(*table.to_pydict().values(), strict=True), itemgetter(0)):
        rows = list(part)
        zeroes = sum(count for _, count, kind, *_, mergeable, _, _ in rows if kind == "zeropage" and mergeable)
        known = ("anon", "zeropage") if 2 * asked[process]["ksm_zero_pages"] > zeroes else ("anon",)
        contents = [
            (key + rank if rank else 0, count, step) if kind in known else ("hole", count, 0)
            for _, count, kind, rank, step, *_ in rows
        ]
        image = {"pages": sum(row[1] for row in rows), "contents": contents}
        image["orders"] = _runs((row[5], row[1]) for row in rows)
        huge = _runs((row[7] or (always and not row[8]), row[1]) for row in rows)
        for name, runs in (("mergeable", _runs((row[6], row[1]) for row in rows)), ("thp", huge)):
            image[name] = [(page, count) for page, count, given in runs if given]
        out.append(image | own)
    return out


def _runs(values: Iterable[tuple[Any, int]]) -> list[tuple[int, int, Any]]:
    """Return (page, count, value) for each run of equal values, which are given with their counts."""
    out, page = [], 0
    for value, same in groupby(values, itemgetter(0)):
        count = sum(each for _, each in same)
        out.append((page, count, value))
        page += count
    return out


def yaml_lines(values: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Return values as YAML, one after another, each with its note, if it has one, in a comment behind it."""
    lines = {}
    for name, value in values.items():
        style = None if isinstance(value, list) else False  # lists of lists: the innermost on one line
        line = yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=style, allow_unicode=True, width=1000)
        lines[name] = f"{line.strip():31} # {notes[name]}\n" if name in notes else line
    return "".join(lines.values())


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn a failure to read a file, or to decode its text, into a `UserError`; name the file in each one."""
    with located(path):
        try:
            yield
        except OSError as error:
            raise UserError(error.strerror or str(error)) from None
        except UnicodeDecodeError:
            raise UserError("this is not text") from None


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
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks what can be written
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
