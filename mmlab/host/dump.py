"""Dumps of a running host: read what people paste, say what it means, and simulate memory that has these counters.

A dump is what ``grep . /sys/kernel/mm/ksm/*`` prints, or the same numbers in another form: with or without paths, with
``:``, ``=`` or blanks, below each other, in Markdown, a mail or an issue with prompts around it, of several hosts or at
several times; `virsh node-memory-tune`; node_exporter's ``node_ksmd_*``, also as Prometheus answers; JSON; or names and
then values. Lines of /proc/vmstat and /proc/meminfo and a ksmtuned.conf may stand beside it.

>>> dump, = parse("/sys/kernel/mm/ksm/pages_shared:10\\npages_sharing = 90\\nnode_ksmd_pages_unshared_total 400")
>>> dump.pages, dump.saved_mib
(500, 0.3515625)
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmlab.errors import KSM_COUNTERS, UserError
from mmlab.host.watch import ends
from mmlab.params import read_yaml, reading
from mmlab.policies import Ksmtuned, read_conf, scaled_pace
from mmlab.results.run import Run, simulate
from mmlab.results.table import number, text_table
from mmlab.scenario import KSM_KNOBS, Scenario

SAID = read_yaml(Path(__file__).with_suffix(".yaml"))
"""Sentences, with when they hold."""
NEEDED = ("pages_shared", "pages_sharing", "pages_unshared")
COMPARED = (*NEEDED, "pages_volatile", "ksm_zero_pages", "general_profit", "stable_node_chains", "stable_node_dups")
NEW = {"general_profit", "ksm_zero_pages", "pages_skipped", "smart_scan", "advisor_mode"}
"""Files that Linux has had since 6.4 to 6.8: without any of them the kernel is taken for an older one."""
TOLERANCE = 1.0
"""Percent by which a prediction may differ from the dump."""
MOST_PAGES = 1 << 22
"""A host with more scanned pages (16 GiB) is simulated smaller."""
RMAP_ITEM, PAGE, MIB = 64, 4096, 256
"""Bytes of an rmap_item and of a page; pages of a MiB."""

# --- the forms ------------------------------------------------------------------------------------------------------

_NAMES = "|".join(sorted([*KSM_COUNTERS, *KSM_KNOBS, "sleep_seconds"], key=len, reverse=True))
_NAME = f"(?:node_ksmd_|shm_|ksm_)?(?P<name>{_NAMES})"
_NUMBER = r"-?(?:[1-9]\d{0,2}(?:[,_.'’ \u00a0\u202f]\d{3})+|\d[\d,_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)"
_VALUE = rf"{_NUMBER}|\[?none\]?(?: scan-time)?|(?:none )?\[?scan-time\]?"
LINE = re.compile(
    rf"^\W*(?:\d+[.)] |export |.*\d\]: )?(?:(?P<host>[\w.-]+):\s*)?(?:\S*[/.])?{_NAME}(?:_total)?(?P<labels>\{{.*\}})?"
    rf"\W*?[\s:=|,;][\s:=|,;\"'`]*(?:1:)?(?P<value>{_VALUE})[\"'i]?(?:\s(?P<at>\d{{10,13}}(?:\.\d+)?))?"
    r"(?: pages)?[\s,;|`\]}]*(?:\s[(#<].*)?$"
)
"""A counter or a knob with its value; the host is that of ``pdsh`` and the like, `at` a scrape's time."""
ALONE = re.compile(rf"(?<![\w-]){_NAME}(?:_total)?(?![\w-])")
"""A name whose value is on a later line."""
FLAT = {
    r"\x1b\[[\d;]*[mK]|\"stdout(?:_lines)?\": ": "",  # colours; ansible
    r"</?[a-z][^<>\n]*>|(?<=[{\[,])\n\s+|\n\s*(?=[}\]])": " ",  # HTML; a JSON object on one line
    r"(?:\\r)?\\n": "\n",
    rf'"([\w.-]+)": ?\{{(?=\s*"(?:[\w./-]*/)?{_NAME})': r"\nroot@\1:~#\n",
    r'\{\s*"?__name__"?\s*[:=]\s*"(\w+)",?([^{}]*)\}': r"\n\1{\2}",
    r',\s*"value":\s*\[\s*([\d.]+),\s*"([^"]+)"\s*\]': r" \2 \1\n",  # as Prometheus answers
    rf"(\d[\"'i]?)[,;| \t]+(?=[\"']?(?:[\w./-]*/)?{_NAME}[\"']?[:= \t|])": "\\1\n",
}
"""What makes a text of one value a line."""
INSTANCE = re.compile(r'instance"?\s*[=:]\s*"([^":]+)')
BESIDE = re.compile(
    r"^\W*(Mem\w+|Cached|Buffers|AnonPages|AnonHugePages|thp_\w+|cow_ksm|ksm_swpin_copy):?\s+(\d+)(?: kB)?$"
)
"""A line of /proc/meminfo (kB) or /proc/vmstat."""
PROMPT = re.compile(
    r"^\W*(?:[\w.-]+@([\w.-]+)\b.*[#$%>]|([\w.-]+):[~/]\S* ?[#$%]|([\w.-]+) \| (?:SUCCESS|CHANGED)|.*\[SUCCESS\] (\S+))"
)
"""A shell's prompt, or the heading of a host's answer to ansible or pssh."""
DATE = re.compile(
    r"[A-Z][a-z]{2} ([A-Z][a-z]{2} +\d+) ([\d:]{8}(?: [AP]M)?)(?: \S+)? (\d{4})|(\d{4}-\d\d-\d\d)[T ]([\d:]{8})"
)
CONF = re.compile(r"(?m)^\s*#?\s*(?:export )?KSM_\w+=")


@dataclass
class Dump:
    """The counters and knobs of a host at one time.

    Attributes
    ----------
    values
        Counters and knobs of /sys/kernel/mm/ksm by their names; `advisor_mode` is a text.
    host, time
        Which host, and when, where the prompts tell.
    beside
        Lines of /proc/meminfo (kB) and /proc/vmstat.
    conf
        Parameters of `mmlab.policies.Ksmtuned` from a ksmtuned.conf; None: there was no such file.
    """

    values: dict[str, Any] = field(default_factory=dict)
    host: str = ""
    time: datetime | None = None
    beside: dict[str, int] = field(default_factory=dict)
    conf: dict[str, int] | None = None

    def __getitem__(self, name: str) -> int:
        return int(self.values.get(name, 0))

    @property
    def volatile(self) -> int | None:
        """`pages_volatile`, or what `general_profit` says of it (tuners I3); None if the dump has neither."""
        if "pages_volatile" in self.values or "general_profit" not in self.values:
            return self.values.get("pages_volatile")
        return self.rmap_items - sum(self[name] for name in NEEDED)

    @property
    def rmap_items(self) -> int:
        """Pages that ksmd tracks, by what their bookkeeping costs (tuners I3)."""
        saved = (self["pages_sharing"] + self["ksm_zero_pages"]) * PAGE
        return (saved - self["general_profit"]) // RMAP_ITEM

    @property
    def pages(self) -> int:
        """Scanned mergeable pages that hold frames or KSM entries (tuners I1)."""
        return sum(self[name] for name in NEEDED) + (self.volatile or 0)

    @property
    def volatile_percent(self) -> float:
        """Share of the scanned pages that are volatile."""
        return 100 * (self.volatile or 0) / max(1, self.pages)

    @property
    def whole(self) -> int:
        """Scanned pages and those that ksmd has mapped to the zeropage."""
        return self.pages + self["ksm_zero_pages"]

    @property
    def saved_mib(self) -> float:
        """Memory that KSM saves, before what its own bookkeeping costs."""
        return (self["pages_sharing"] + self["ksm_zero_pages"]) / MIB

    @property
    def chained(self) -> int:
        """Mappings of the contents that have more than `max_page_sharing` copies (tuners I4)."""
        return self["stable_node_dups"] * int(self.values.get("max_page_sharing", 256))

    @property
    def scan_seconds(self) -> float | None:
        """Least duration of a full scan, from the sleeps alone; None if the dump has no `sleep_millisecs`."""
        if not (self["pages_to_scan"] and "sleep_millisecs" in self.values):
            return None
        return math.ceil(self.pages / self["pages_to_scan"]) * self["sleep_millisecs"] / 1000

    def knobs(self) -> dict[str, Any]:
        """Return the fields of a scenario in which ksmd runs as in the dump, at the pace that was set last."""
        given = {n: self.values[n] for n in KSM_KNOBS if self.values.get(n) or n == "sleep_millisecs" in self.values}
        return {"smart_scan": 0, "pages_to_scan": 100} | given | {"run": 1, "advisor_mode": "none"}

    def text(self) -> str:
        """Return the dump as `grep` prints it, with what stood beside it; `parse` reads it."""
        about = [f"root@{self.host}:~#"] * bool(self.host) + [str(self.time)] * bool(self.time)
        ksm = [f"/sys/kernel/mm/ksm/{name}:{value}" for name, value in sorted(self.values.items())]
        return "\n".join([*about, *ksm, *(f"{name}: {value}" for name, value in self.beside.items())])

    def check(self) -> None:
        """Refuse numbers that no kernel has.

        Raises
        ------
        UserError
            A counter is missing, or each impossible number, with the reason.
        """
        if missing := [name for name in NEEDED if name not in self.values]:
            raise UserError("is missing in the dump: without it the memory is unknown", parameter=", ".join(missing))
        numbers = {name: value for name, value in self.values.items() if not isinstance(value, str)}
        found = [(n, "it is a whole number of 64 bits") for n, x in numbers.items() if x != int(x) or abs(x) >= 2**64]
        negative = [name for name, value in numbers.items() if value < 0 and name != "general_profit"]
        found += [(name, "it counts something, and is never negative") for name in negative] + self._said("impossible")
        errors = [UserError(f"is impossible: {why}", parameter=n, value=self.values.get(n)) for n, why in found]
        for first in errors[:1]:
            first.others = tuple(errors[1:])
            raise first

    def words(self) -> list[str]:
        """Return what the dump means, a sentence each (tuners I1–I6)."""
        return [text for (text,) in self._said("words")]

    def _said(self, kind: str) -> list[Any]:
        """Return the sentences of dump.yaml that hold, with what their braces come to, behind what they are about."""
        tuner, total = Ksmtuned(**self.conf or {}), self.beside.get("MemTotal", 0)
        known: dict[str, Any] = dict.fromkeys((*KSM_COUNTERS, *KSM_KNOBS), 0)
        known |= {"ceil": math.ceil, "inf": math.inf, "duration": _duration}
        known |= {"d": self, "v": self.values, "beside": self.beside, "tuner": tuner, "total": total}
        known["threshold"] = max(total * tuner.thres_coef // 100, tuner.thres_const)
        known |= {"free": sum(self.beside.get(n, 0) for n in ("MemFree", "Buffers", "Cached"))} | self.values
        return [(*about, eval(f'f"""{text}"""', known)) for *about, when, text in SAID[kind] if eval(when, known)]


def _duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> _duration(4606), _duration(43)
    ('77 min', '43 s')
    """
    for least, size, unit in ((86400, 86400, "days"), (7200, 3600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def read(paths: Iterable[str | Path]) -> list[Dump]:
    """Return the dumps in files, in order; what stands in files beside them belongs to each.

    Raises
    ------
    UserError
        A file cannot be read or is none of the known forms; a number is impossible; a ksmtuned.conf has a mistake;
        there is no dump.
    """
    dumps, beside, conf = list[Dump](), dict[str, int](), None
    for path in map(Path, paths):
        if path.suffix == ".parquet":
            dumps += [Dump(sample, time=time, beside=sample) for time, sample in ends(path)]
            continue
        with reading(path):
            content = path.read_bytes()
            wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")  # as PowerShell writes
            text = content.decode("utf-16" if wide else "utf-8-sig", errors="replace")
            found, lines = parse(text), _beside(text)
            for dump in found:
                dump.check()
            if not (found or lines or CONF.search(text)):
                raise UserError(f"this is none of the known forms; it is {_kind(content)}", hint=SAID["known"])
        dumps += found
        if not found:
            beside |= lines
            conf = read_conf(path) if CONF.search(text) else conf
    if not dumps:
        raise UserError("there is no dump beside these files", parameter="DUMP", hint=SAID["known"])
    for dump in dumps:
        dump.beside, dump.conf = beside | dump.beside, conf
    return dumps


def parse(text: str) -> list[Dump]:
    """Return the dumps in a text; a name that comes again, another host or another time begins a new one."""
    found: list[Dump] = []
    latest: dict[str, Dump] = {}
    host, time, before, waiting = "", None, "", list[str]()
    for pattern, plain in FLAT.items():
        text = re.sub(pattern, plain, text)
    for line in text.splitlines():
        clean = line.strip("`\ufeff \t\r")
        before, last = clean, before
        if prompt := PROMPT.match(clean):
            where = prompt[prompt.lastindex or 1]
            host, time = where, time if where == host else None
        if date := DATE.search(clean):
            time = pd.Timestamp(" ".join(filter(None, date.groups()))).to_pydatetime()
            latest.pop(host, None)
        values = [clean] if len(waiting) == 1 else re.split(r"[\s,;|]+", clean.strip(" \t,;|"))
        if not waiting or not all(re.fullmatch(_VALUE, value) for value in values):
            values = []
        lines = [f"{name} {value}" for name, value in zip(waiting, values, strict=False)] or [clean]
        named = [name["name"] for name in ALONE.finditer(clean)] if re.search(rf"{ALONE.pattern}\W*$", clean) else []
        waiting = named or waiting[len(values) :] * (bool(values) or not re.search(r"\w", clean))
        for match in filter(None, map(LINE.match, lines)):
            waiting = waiting if values else []
            name, value = match["name"], _value(match["value"])
            if name == "ksm_zero_pages" and "ksm_rmap_items" in last:  # of a process, /proc/PID/ksm_stat
                continue
            if name == "sleep_seconds":
                name, value = "sleep_millisecs", round(1000 * value)
            if match["at"]:
                time = pd.Timestamp(float(match["at"]), unit="ms" if len(match["at"]) == 13 else "s").floor("ms")
            instance = INSTANCE.search(match["labels"] or "")
            where = match["host"] or (instance[1] if instance else host)
            if where not in latest or name in latest[where].values:
                latest[where] = Dump(host=where, time=time)
                found.append(latest[where])
            latest[where].values[name] = value
    found = [dump for dump in found if KSM_COUNTERS & dump.values.keys()]  # a scenario has knobs only
    for dump in found:
        dump.beside = _beside(text)
        known = {"general_profit", "pages_volatile", "pages_shared", "pages_sharing"} <= dump.values.keys()
        if known and "pages_unshared" not in dump.values:
            dump.values["pages_unshared"] = dump.rmap_items - sum(dump[name] for name in (*NEEDED, "pages_volatile"))
    return found


def _beside(text: str) -> dict[str, int]:
    return {found[1]: int(found[2]) for found in map(BESIDE.match, map(str.strip, text.splitlines())) if found}


def _value(text: str) -> Any:
    """Return a number without its thousands' commas, or the value of advisor_mode that is in brackets."""
    if "none" in text or "scan" in text:
        return (re.findall(r"\[(.+?)\]", text) or [text])[0]
    if re.fullmatch(r"-?[1-9]\d{0,2}(\D\d{3})+", text):
        text = re.sub(r"[^\d-]", "", text)
    plain = Decimal(re.sub("[,_]", "", text))
    return int(plain) if plain == plain.to_integral_value() else float(plain)


def _kind(content: bytes) -> str:
    """Return what a file looks like."""
    if b"\0" in content or content[:2] == b"\x1f\x8b":
        return "binary, as recordings are (`mmlab compare`)"
    first = content.decode("utf-8", errors="replace").strip()[:60].partition("\n")[0]
    return f"text that begins with {first!r}" if first else "empty"


def rates(first: Dump, second: Dump) -> list[str]:
    """Return how counters changed from one dump of a host to the next, a sentence each."""
    seconds = (second.time - first.time).total_seconds() if first.time and second.time else 0.0
    if seconds < 0:
        return rates(second, first)
    said, scans = [], second["full_scans"] - first["full_scans"]
    if scans < 0 and {"full_scans"} <= second.values.keys():
        return ["full_scans fell: the host was started anew in between, or these are two hosts, or in the other order."]
    over = ", ".join([f"in {_duration(seconds)}"] * (seconds > 0) + [f"in {scans:,} full scans"] * (scans > 0))
    for name in (name for name in COMPARED if name in first.values and name in second.values):
        if change := second[name] - first[name]:
            timed = seconds > 0 and name.startswith("pages_")
            hourly = f" ({change * 3600 / seconds / MIB:+,.0f} MiB/h)" if timed else ""
            said.append(f"{name} {first[name]:,} → {second[name]:,}: {change:+,}{hourly} {over}.")
    if seconds > 0 and scans > 0:
        batch = 1000 * seconds / scans * second["pages_to_scan"] / max(1, second.pages)
        pace = f", {batch:.0f} ms from batch to batch" if batch else ""
        said.append(f"A full scan takes {_duration(seconds / scans)}{pace}.")
    return said or ["No counter changed."]


# --- the scenario ---------------------------------------------------------------------------------------------------

MERGED, UNSHARED, VOLATILE = 1_000, 10**9, 2 * 10**9
"""First keys of the contents."""


@dataclass(frozen=True)
class Reproduction:
    """A scenario that reproduces a dump.

    Attributes
    ----------
    scenario
        It ends with the counters of the dump.
    run, row
        A run of the same scenario that goes on, and its sample at the end of the scenario.
    factor
        How many of the host's pages a simulated one stands for.
    """

    dump: Dump
    scenario: Scenario
    run: Run
    row: int
    factor: float

    @property
    def rows(self) -> dict[str, list[Any]]:
        """Counter, dump, prediction and difference (%), column by column; the columns of a table."""
        asked = self.dump.values | ({} if self.dump.volatile is None else {"pages_volatile": self.dump.volatile})
        told, columns = {name: int(asked[name]) for name in COMPARED if name in asked}, self.run.columns()
        same = {"stable_node_chains": 1.0}  # a chain is shorter, not several
        predicted = [round(int(columns[name][self.row]) * same.get(name, self.factor)) for name in told]
        pairs = zip(told.values(), predicted, strict=True)
        off = [100 * (value - was) / abs(was) if was else math.nan if value else 0.0 for was, value in pairs]
        return {"counter": [*told], "dump": [*told.values()], "predicted": predicted, "difference, %": off}

    @property
    def exact(self) -> bool:
        """Whether shared, sharing and unshared pages and the profit are those of the dump, within `TOLERANCE`."""
        rows = dict(zip(self.rows["counter"], self.rows["difference, %"], strict=True))
        return all(abs(rows.get(name, 0.0)) <= TOLERANCE for name in (*NEEDED, "general_profit"))

    @property
    def cpu_percent(self) -> float:
        """CPU time of ksmd (%) in the second half of the run, when most is merged, scaled to the host."""
        rows = self.run.rows[[self.row // 2, self.row]]
        spent, passed = (int(np.diff(rows[name])[0]) for name in ("ksmd_cpu_ns", "time_ns"))
        more = (self.factor - 1) * spent  # which is time on the host, too
        return 100 * (spent + more) / (passed + more) if passed else math.nan

    def text(self) -> str:
        """Return the comparison as a table, and ksmd's CPU time."""
        scaled = f", simulated {self.factor:,.0f} times smaller" if self.factor > 1 else ""
        cpu = f"ksmd takes about {number(self.cpu_percent)} % of a CPU at this pace"
        return f"{text_table(self.rows)}\n\n{cpu} (costs {self.scenario.costs}{scaled})."


def reproduce(dump: Dump, progress: Callable[[float], None] | None = None) -> Reproduction:
    """Return a scenario whose run ends with the dump's counters, with that run.

    Volatile pages are written once in every full scan; with `smart_scan` they are first taken for pages that ksmd skips
    (tuners I5), and the run ends in the middle of a full scan, where as many are skipped as in the dump. All memory is
    in small pages: a dump does not tell where duplicates lie (tuners I6).

    Raises
    ------
    UserError
        The dump lacks a counter, or ksmd tracks no page.
    """
    dump.check()
    if not dump.whole:
        raise UserError("ksmd tracks no page: there is nothing to reproduce", parameter="DUMP")
    found: list[Reproduction] = []
    skipping = bool(dump["smart_scan"] and dump["full_scans"] > 3 and dump.volatile)
    for quiet in (True, False) if skipping else (False,):
        scenario, factor = _scenario(dump, quiet)
        run = simulate(scenario, progress=progress)
        row = _best(dump, run, factor)
        end = {"horizon_full_scans": 0, "horizon_batches": int(run.rows["batch"][row]), "sample_limit": 20_000}
        found.append(Reproduction(dump, scenario.replace(**end), run, row, factor))
        if found[-1].exact:
            break
    return min(found, key=lambda one: sum(map(abs, one.rows["difference, %"][: len(NEEDED)])))


def _best(dump: Dump, run: Run, factor: float) -> int:
    """Return the sample whose counters are nearest to the dump's, after about as many full scans."""
    rows = run.columns()
    names = [name for name in (*NEEDED, "general_profit") if name in dump.values]
    off = np.max([np.abs(rows[n] * factor - dump[n]) / max(1, abs(dump[n])) for n in names], axis=0)
    off[rows["full_scans"] < 2] = np.inf  # not everything is merged yet
    apart = np.abs(rows["full_scans"] - min(dump["full_scans"], int(rows["full_scans"][-1])))
    near = np.flatnonzero(off <= max(TOLERANCE / 400, float(off.min())))
    return int(near[np.argmin(apart[near] + off[near])])


def _scenario(dump: Dump, quiet: bool) -> tuple[Scenario, float]:
    """Return a scenario with the dump's memory and knobs, and how many of the host's pages one of its pages stands for.

    Each shared page is a content of its own (tuners I2), but the dups of a chain have one. `quiet`: volatile pages are
    not written.
    """
    factor = _factor(dump)
    counted = (*(dump[name] for name in NEEDED), dump.volatile or 0, dump["ksm_zero_pages"], dump["stable_node_dups"])
    shared, sharing, unshared, volatile, zeroes, dups = (round(count / factor) for count in counted)
    knobs = dump.knobs() | ({"use_zero_pages": 1} if zeroes else {})
    knobs |= {} if NEW & dump.values.keys() else {"kernel": "6.1", "variant": "legacy"}
    most = int(knobs.setdefault("max_page_sharing", max(256, math.ceil(1 + sharing / max(1, shared)))))
    total = shared + sharing + unshared + volatile + zeroes
    pages, sleep = knobs["pages_to_scan"], knobs.get("sleep_millisecs", 20)
    if factor > 1:
        pages, sleep, _ = scaled_pace(pages, sleep, total, factor, 250)
        knobs |= {"host_scale": factor}
    written = volatile and not quiet
    if written:  # between two visits: so a full scan must last some batches, and long enough for a period
        pages = min(pages, max(1, total // 4))
        sleep = sleep if total > 500_000 else max(sleep, math.ceil(100 * pages / total))
    scan = math.ceil(total / pages) * sleep / 1000 + total * 3e-7
    knobs |= {"pages_to_scan": pages, "sleep_millisecs": sleep}
    contents = shared - dups
    mappings = max(contents, shared + sharing - dups * most)  # of the contents without dups
    lone = max(0, 2 * contents - mappings)  # merged pages whose other mappings are gone
    emptied = dups * most - (shared + sharing - mappings)  # mappings that are gone from the dups
    rounds, rest = divmod(mappings + lone, max(1, contents))
    chains = max(1, dump["stable_node_chains"])  # of nearly as many dups
    chain = (most * np.diff(np.arange(chains + 1) * dups // chains)).tolist()
    zero_filled = 0 if "use_zero_pages" not in knobs else MERGED - 1
    memory = [[[zero_filled if i == 0 else i, count, 0] for i, count in enumerate(chain)]]
    memory += [[[MERGED, contents, 1]] * rounds + [[MERGED, rest, 1]]]
    memory += [[[UNSHARED, unshared, 1], [VOLATILE, volatile * quiet, 1]], [[0, zeroes, 0]]]
    memory += [[[VOLATILE, volatile * bool(written), 1]]]
    given = [[run for run in runs if run[1]] for runs in memory]
    processes = [
        {"pages": sum(run[1] for run in runs), "contents": runs, "hot_fraction": 0.0} for runs in given if runs
    ]
    if written:
        processes[-1]["hot_fraction"] = 1.0
    fewer = [min(most - 1, emptied - done) for done in range(0, emptied, most - 1)]  # of each dup
    gone = [(0, dup * most + 1, count) for dup, count in enumerate(fewer)]
    gone += [(i, p["pages"] - lone, lone) for i, p in enumerate(processes) if lone and p["contents"][0][0] == MERGED]
    event = {"after": {"full_scan": 2}, "op": "dontneed"}
    events = [event | {"process": i, "page": page, "count": count} for i, page, count in gone]
    knobs |= {"thp_coverage": 0.0, "sample_limit": 200_000, "process_list": processes, "events": events}
    knobs |= {"horizon_full_scans": min(max(dump["full_scans"] + 1, 6), 24) if quiet else 3, "horizon_seconds": 0.0}
    if written:
        knobs |= {"hot_fraction": 1.0, "hot_period_seconds": max(0.05, round(scan / 3, 3))}
        knobs["horizon_seconds"] = round(60 + 1000 * scan)
    return Scenario(**knobs), factor


def _factor(dump: Dump) -> float:
    """Return how much smaller a host is simulated: at least as much as its size asks for, and so that counters divide.

    Merged contents count more where they are many: the stable tree takes most of the time.
    """
    least = max(1, math.ceil(max(dump.whole, dump.whole / 2 + dump["pages_shared"]) / MOST_PAGES))
    factors = np.linspace(least, 3 * least - 2, 400)
    counts = np.array([[dump[name]] for name in NEEDED])
    off = (np.abs(np.round(counts / factors) * factors - counts) / np.maximum(1, counts)).max(axis=0)
    return float(factors[np.argmax(off <= max(TOLERANCE / 400, off.min()))])
