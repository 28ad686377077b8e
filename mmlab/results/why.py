"""Why a page is what it is: the decisions about it as sentences, and the reasons for which pages are not merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlab.engine.outcome import Outcome, page_letters
from mmlab.errors import UserError
from mmlab.kernel.decisions import Decision
from mmlab.kernel.state import VM_MERGEABLE
from mmlab.results.decisions import Events, described, fields
from mmlab.results.metrics import PAGES_PER_MIB

if TYPE_CHECKING:
    import pandas as pd


ENDS = ("visit", "skip", "item_freed")
"""Events that end what ksmd does at one address."""
FOLIO = ("split", "queue", "underused_test")
"""Events whose pages are those of the oldest process of a family."""
REASONS = ("visit", "skip", "merge_failed", "unshare", "ksm_zero_page", "mm_collapse_huge_page")
"""Events that say why a page is not merged."""
NEAR = 512
"""Pages of the largest folio."""


class PageEvents(Events):
    """The events that `history` needs of a page, or `not_merged` (None), for `simulate(events=…)`, and few others."""

    def __init__(self, page: int | None = None) -> None:
        super().__init__(REASONS if page is None else ())
        self.page = page

    def __call__(self, rows: np.ndarray) -> None:
        """Keep those of event_t[n] that are near the page or name it, and how their visits ended."""
        if self.page is None:
            return super().__call__(rows)
        near = (rows["page"] <= self.page + NEAR) & (rows["page"] + rows["count"] > max(0, self.page - NEAR))
        near |= rows["other_page"] == self.page
        ends = np.flatnonzero(rows["what"] <= Decision.ITEM_FREED)
        following = np.searchsorted(ends, np.flatnonzero(near))
        near[ends[following[following < len(ends)]]] = True
        return self._kept.append(rows[near])

    def __exit__(self, *_: object) -> None:
        """Leave it to the reader of the events to say that there are none."""


@dataclass(frozen=True)
class History:
    """What happened to a page.

    Attributes
    ----------
    title
        The page, what it holds, and what it is at the end.
    table
        A row for each sentence, in which each clause ends with the number of its rule, as "(M3b)". time_s, full_scan,
        batch, rank: when it happened first; times: how often in a row, until full scan `until`.
    """

    title: str
    table: pd.DataFrame

    def _lines(self) -> Iterator[str]:
        for row in self.table.itertuples():
            scan = f"full scan{f's {row.full_scan} to' * (row.until > row.full_scan)} {row.until}"
            place = f"{'after' if row.rank else 'in'} batch {row.batch}" if row.batch else "before the first batch"
            often = f", {row.times:,} times" if row.times > 1 else ""
            yield f"{row.time_s:,.3f} s, {scan}, {place}{often}: {row.sentence}"

    def __str__(self) -> str:
        lines = (fill(line, 110, initial_indent="  ", subsequent_indent="      ") for line in self._lines())
        return "\n".join([self.title, *lines])

    def _repr_markdown_(self) -> str:
        return "\n".join([f"**{self.title}**", "", *(f"- {line}" for line in self._lines())])


def history(run: Outcome, e: pd.DataFrame, page: int, process: int = 0, since: float = 0.0) -> History:
    """Return what happened to a page, in sentences, each clause with the rule that decided.

    Parameters
    ----------
    run, e
        A run and its events: of ``simulate(…, events=True)``, or of ``events=PageEvents(page)``.
    page, process
        Numbers from 0 on.
    since
        Simulated time (s) from which on.

    Raises
    ------
    UserError
        There is no such process, page or time, or nothing happened to the page since then.
    """
    import pandas as pd

    pages, end = run.machine.mm["pages"][1 : run.processes + 1], run.rows["time_ns"][-1] / 1e9
    if not 0 <= process < len(pages):
        raise UserError(parameter="process", value=process, allowed=f"0 … {len(pages) - 1}")
    if not 0 <= page < pages[process]:
        raise UserError(parameter="page", value=page, allowed=f"0 … {pages[process] - 1} in process {process}")
    if not 0 <= since <= end:
        raise UserError(parameter="since", value=since, allowed=f"0 … {end:g} s, the end")
    oldest = run.machine.mm[process + 1]["family"] - 1
    own = (e["page"] <= page) & (page < e["page"] + e["count"])
    own &= (e["process"] == process) | (e["process"] == oldest) & e["event"].isin(FOLIO)
    visit = e["event"] == "visit"
    named = visit & (e["other_process"] == process) & (e["other_page"] == page) & (e["rule"] != "ksm-merge M4d")
    ends = e["event"].isin(ENDS) | (e[["batch", "rank"]].diff(-1) != 0).any(axis=1)
    step = ends.shift(fill_value=False).cumsum()
    about = step.isin(step[(own | named) & (e["time_s"] >= since)])
    remap = (e["event"] == "remap") & step.isin(step[own & (e["event"] == "split")])
    rows = e.assign(own=own, step=step)[about & (own | visit | remap)]
    told = [row for group in _steps(rows) for row in _sentences(group, page, process)]
    last, held = e["time_s"][own].max(), _held(run, page, process)
    if not told:
        there = f"The last event is at {last:g} s." if last == last else f"It has no events; {held}."
        raise UserError(f"nothing happened to it from {since:g} s on", parameter="page", value=page, hint=there)
    table = pd.DataFrame(told)
    if run.processes == 1:
        table["sentence"] = table["sentence"].str.replace(" of process 0", "")
    same = table.groupby((table["sentence"] != table["sentence"].shift()).cumsum())
    table = same.first().assign(until=same["full_scan"].last(), times=same.size())
    return History(f"page {page} of process {process} under {run.variant}; {held}", table)


def _steps(rows: pd.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """Yield the events of each step, with the sentence of each; what a split does to zero-filled pages is one event."""
    texts = {(row["event"], row["outcome"]): row["text"] for row in described()["decisions"].values()}
    records: dict[Any, Any] = {}
    for event in rows["event"].unique():
        records |= fields(rows, event).to_dict("index")
    for _, group in groupby((records[i] for i in rows.index), itemgetter("step")):
        step: list[dict[str, Any]] = []
        remaps: dict[str, dict[str, Any]] = {}
        for row in group:
            if row["event"] == "remap" and (first := remaps.setdefault(row["outcome"], row)) is not row:
                first["count"], first["own"] = first["count"] + row["count"], first["own"] or row["own"]
            else:
                step.append(row)
        for row in step:
            among = ", this page among them" if row["event"] == "remap" and row["own"] else ""
            text = texts[row["event"], row["outcome"]].format(**row, other=row["other_page"])
            row["text"] = f"{text}{among} ({row['rule'].split()[-1]})"
        yield step


def _sentences(step: list[dict[str, Any]], page: int, process: int) -> Iterator[dict[str, Any]]:
    """Yield what happened to a page in one step: at ksmd's visit of one address, or else between two samples."""
    *before, end = step
    place = {name: end[name] for name in ("time_s", "full_scan", "batch", "rank")}
    texts, outcome = [row["text"] for row in before], end["text"].removeprefix("visited; ")
    if end["event"] != "visit":
        yield place | {"sentence": "; ".join([*texts, end["text"]])}
    elif (end["process"], end["page"]) == (process, page):
        yield place | {"sentence": "; ".join(["visited", *texts, outcome]) if texts else end["text"]}
    else:
        subject = f"page {end['page']} of process {end['process']}" if before else "another page"
        if before or not end["own"]:
            yield place | {"sentence": "; ".join([f"visit of {subject}", *texts, f"that page: {outcome}"])}
        if end["own"]:
            yield place | {"sentence": end["text"]}


def _contents(run: Outcome) -> pd.DataFrame:
    """Return the pages of all processes: process, page, state (its letter), key, mergeable, copies of its content."""
    import pandas as pd

    parts = []
    for i, mm in enumerate(run.machine.mm[1 : run.processes + 1]):
        region = slice(mm["base"], mm["base"] + mm["pages"])
        key, vm = run.machine.page["key"][region], run.machine.pte["vm"][region]
        table = {"process": i, "page": np.arange(len(key)), "state": page_letters(run.machine, i), "key": key}
        parts.append(pd.DataFrame(table | {"mergeable": vm & VM_MERGEABLE > 0}))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(copies=table[table["state"] != ord("N")].groupby("key")["key"].transform("size"))


def _held(run: Outcome, page: int, process: int) -> str:
    """Return what a page is at the end and what it holds."""
    table = _contents(run)
    found = table[(table["process"] == process) & (table["page"] == page)].iloc[0]
    copies = f"{found['copies']:.0f} pages hold the same" if found["copies"] > 1 else "no other page holds the same"
    content = f", {'zero-filled' if found['key'] == 0 else copies}" if found["copies"] > 0 else ""
    return f"at the end: {described()['states'][chr(found['state'])]}{content}"


def not_merged(run: Outcome, e: pd.DataFrame) -> pd.DataFrame:
    """Return why pages with duplicates, and zero-filled ones, are not merged at the end of a run.

    The reason is the last decision about the page, and whether smart scan has skipped it since. A row for each, the
    most frequent first: pages, MiB, reason, rule, and one such page, for `history`: process, page.

    Parameters
    ----------
    run, e
        A run and its events; those of `REASONS` will do.
    """
    pages = _contents(run)
    e = e[e["event"].isin(REASONS) & ((e["event"] != "mm_collapse_huge_page") | (e["value"] == 1))]
    e = e.assign(cause=e["outcome"].shift().where(e["event"].shift() == "merge_failed")).reset_index(drop=True)
    skips = e["event"] == "skip"
    pages["last"], pages["skip"] = _last(e[~skips], pages), _last(e[skips], pages)
    left = pages["state"].isin([*b"AHh"]) & ((pages["copies"] > 1) | (pages["key"] == 0))
    facts = e[["event", "outcome", "cause", "rule"]].astype(object)
    table = pages[left].join(facts, on="last")
    table.loc[table["last"] < 0, "event"] = "not visited by ksmd"
    table.loc[~table["mergeable"], [*facts]] = ["its memory is not mergeable", "", "", "ksm-scan S13"]
    table["skipped"] = table["skip"] > table["last"]
    kinds = table.groupby(["event", "outcome", "cause", "skipped", "rule"], dropna=False, sort=False)
    found = kinds.agg(pages=("page", "size"), process=("process", "first"), page=("page", "first")).reset_index()
    found["reason"] = [_reason(**row) for row in found[["event", "outcome", "cause", "skipped"]].to_dict("records")]
    found["MiB"] = found["pages"] / PAGES_PER_MIB
    columns = ["pages", "MiB", "reason", "rule", "process", "page"]
    return found.sort_values("pages", ascending=False, ignore_index=True)[columns]


def _last(e: pd.DataFrame, pages: pd.DataFrame) -> np.ndarray:
    """Return int64[pages]: the number of the last of some events about each page; -1: none."""
    first, count = np.searchsorted(pages["process"], e["process"]) + e["page"], e["count"]
    last = np.full(len(pages), -1)
    at = np.repeat(first - count.cumsum() + count, count) + np.arange(count.sum())
    last[at] = np.repeat(e.index, count)  # of several the last one stays
    return last


def _reason(event: str, outcome: str, cause: str, skipped: bool) -> str:
    """Return the last decision about pages as the reason why they are not merged."""
    if event not in REASONS:
        return event
    meaning = described()["events"][event]["meaning"]
    reason = outcome if event == "visit" else f"{meaning}: {outcome}".rstrip(": ")
    reason += f": {cause}" if outcome.endswith("failed") and cause == cause else ""
    return reason + ", then skipped by smart scan" * skipped
