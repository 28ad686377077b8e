"""Decisions as a table: what happened to which page, when, and by which rule.

`simulate(…, events=True)` keeps the events of a run in memory; `Events` says which to keep, and may name a Parquet file
to which they go batch by batch. `decisions.yaml` beside this module says what each event means, which are tracepoints
of Linux, and what `value` holds.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlab.errors import UserError, unknown
from mmlab.kernel.decisions import HELD, Decision
from mmlab.kernel.state import event_t
from mmlab.params import check_folder, read_yaml, writing

if TYPE_CHECKING:
    import pandas as pd


@cache
def described() -> dict[str, dict[str, Any]]:
    """Return what `decisions.yaml` says: of `events`, of the `names` of some fields' values, of `decisions`."""
    return read_yaml(Path(__file__).with_suffix(".yaml"))


def _codes(what: str) -> tuple[np.ndarray, list[str]]:
    """Return, for each number in `Decision`, the code of its event, outcome or rule, and what the codes mean."""
    each = [described()["decisions"][decision.name][what] for decision in Decision]
    names = list(dict.fromkeys(each))
    return np.array([names.index(name) for name in each]), names


def frame(rows: np.ndarray) -> pd.DataFrame:
    """Return events as a table, one row an event or a run of equal ones on consecutive pages.

    Parameters
    ----------
    rows
        event_t[n].

    Returns
    -------
    DataFrame
        time_s: simulated time, of a batch its start; batch, rank: the sample that the event led to; full_scan: the one
        under way, from 1; event, outcome, rule; process, page, count: pages [page, page + count); other_process,
        other_page: a partner; -1: none; value: see `fields`. A large folio has the pages of the oldest process that can
        map it.
    """
    import pandas as pd

    table: dict[str, Any] = {"time_s": rows["time_ns"] / 1e9}
    table |= {name: rows[name] for name in ("batch", "rank", "full_scan")}
    for what in ("event", "outcome", "rule"):
        codes, names = _codes(what)
        table[what] = pd.Categorical.from_codes(codes[rows["what"]], names)
    table |= {name: rows[name] for name in ("process", "page", "count", "other_process", "other_page", "value")}
    return pd.DataFrame(table)


def fields(events: pd.DataFrame, event: str) -> pd.DataFrame:
    """Return the rows of one event, with the fields that its `value` holds, by their names.

    Raises
    ------
    UserError
        There is no such event.
    """
    known = described()["events"]
    if event not in known:
        raise unknown("event", event, known)
    rows = events[events["event"] == event].copy()
    value = rows.pop("value").to_numpy()
    for name, bits in known[event].get("fields", {}).items():
        held = value if bits == 64 else value & (1 << bits) - 1
        names = described()["names"].get(name)
        rows[name], value = [names[i] for i in held] if names else held, value >> min(bits, 63)
    return rows


@dataclass
class Events:
    """Which events of a run are kept, and where.

    Attributes
    ----------
    kinds
        Names of events, as in `decisions.yaml`; all if empty.
    process
        Only those of this process; None: of all.
    pages
        First and last page.
    seconds
        First and last simulated time, s.
    file
        Parquet file to which they go; None: they stay in memory, 56 bytes each.
    """

    kinds: Collection[str] = ()
    process: int | None = None
    pages: tuple[int, int] = (-1, 1 << 31)
    seconds: tuple[float, float] = (0.0, float("inf"))
    file: Path | None = None
    _kept: list[np.ndarray] = field(default_factory=list)
    _happened: np.ndarray = field(default_factory=lambda: np.zeros(len(Decision), np.int64))
    _held: int = 0
    _writer: Any = None

    def __post_init__(self) -> None:
        of, names = _codes("event")
        for kind in self.kinds:
            if kind not in names:
                raise unknown("event", kind, names, f"There are {', '.join(names)}.")
        for what in ("pages", "seconds"):
            first, last = getattr(self, what)
            if not (0 <= first <= last or (first, last) == (-1, 1 << 31)):
                raise UserError(parameter=what, value=(first, last), allowed="from 0 on, the first before the last")
        self._wanted = np.isin(of, [names.index(kind) for kind in self.kinds or names])
        if self.file:
            check_folder(self.file)
            self._part = self.file.with_name(f".{self.file.name}.part")

    def __call__(self, rows: np.ndarray) -> None:
        """Keep those of event_t[n] that are wanted."""
        self._happened += np.bincount(rows["what"], minlength=len(Decision))
        keep = self._wanted[rows["what"]] & ((self.process is None) | (rows["process"] == self.process))
        keep &= (rows["page"] <= self.pages[1]) & (rows["page"] + rows["count"] > self.pages[0])
        keep &= (rows["time_ns"] >= self.seconds[0] * 1e9) & (rows["time_ns"] <= self.seconds[1] * 1e9)
        self._kept.append(rows[keep])
        self._held += len(self._kept[-1])
        if self.file and self._held > HELD:
            self._write()

    def _write(self) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        table = pyarrow.Table.from_pandas(frame(self.rows()), preserve_index=False)
        with writing(self._part):
            self._writer = self._writer or ParquetWriter(self._part, table.schema)
            self._writer.write_table(table)
        self._kept, self._held = [], 0

    def rows(self) -> np.ndarray:
        """Return event_t[n]: what is in memory."""
        return np.concatenate([np.zeros(0, event_t), *self._kept])

    def table(self) -> pd.DataFrame:
        """Return what was kept, as `frame` does."""
        import pandas as pd

        return pd.read_parquet(self.file) if self.file else frame(self.rows())

    def __enter__(self) -> Events:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        """Complete the file, or remove it if the run failed; raise `UserError` if nothing that was wanted happened."""
        nothing = not failed and not self._held and not self._writer
        if self.file and not failed and not nothing:
            self._write()
            self._writer.close()
            self._part.replace(self.file)
        elif self.file:
            self._part.unlink(missing_ok=True)
        if nothing and self._happened.any():
            of, names = _codes("event")
            there = ", ".join(names[code] for code in np.unique(of[self._happened > 0]))
            raise UserError("nothing matches", parameter="events", hint=f"What happened: {there}.")
