"""Recordings of real kernels beside the model: is it exact, would that be noticed, what do counters mean (notebook 06).

`recorded.yaml` lists what is looked at.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmlab.errors import UserError
from mmlab.figures import figures as plots
from mmlab.params import read_yaml
from mmlab.results import trace
from mmlab.results.run import simulate
from mmlab.studies.study import Answer, expect
from mmlab.variants import CONTEXTS, VARIANTS, AnyVariant, SplitContext, Variant, possible

LISTED = read_yaml(Path(__file__).with_suffix(".yaml"))
ENOUGH = 10
"""Recordings that confirm a decision of a variant; then no more are asked about it."""


class Recording:
    """A recording, and the model's run of its scenario, under the recording's variant or another one."""

    def __init__(self, path: Path, variant: AnyVariant | None = None) -> None:
        self.name, self.trace = path.name.removesuffix(trace.ENDING), trace.read(path)
        self.run, self.predicted = trace.rerun(self.trace, variant)
        self.found = trace.compare(self.trace, self.predicted)
        self.asked, self.variant = self.trace["scenario"], self.trace["variant"]
        self.kernel = ".".join(self.trace["kernel"].split(".")[:2])
        self.ops = {event["op"] for event in self.asked["events"]}
        samples = plots.recorded_samples(self.trace).filter(regex="^(?!lab_)")
        self.counters, self.rows = [*samples], [*map(tuple, samples.to_numpy().tolist())]

    def facts(self) -> dict[str, Any]:
        """Return group, kernel series and variant of the recording, how much of it is exact, and the THPs split."""
        about = {"group": re.findall("^[a-zA-Z]*", self.name)[0], "kernel": self.kernel, "variant": self.variant}
        found = {name.replace("_", " "): value for name, value in vars(self.found).items()}
        return about | {"exact": self.found.exact, "THPs split": int(self.run.rows["thp_split_page"][-1])} | found

    def maps(self, predicted: trace.Trace | None = None) -> dict[tuple[int, int, int], str]:
        """Return the recorded page maps, or those of a prediction, by batch, rank and process (6.12 alone tells h)."""
        maps, fold = (predicted or self.trace)["maps"], "H" if self.kernel != "6.12" else "h"
        return {(m["batch"], m["rank"], m["process"]): m["pages"].replace("h", fold) for m in maps if m.get("pages")}

    def matching(self, variant: str | Variant | None = None, **changes: Any) -> int:
        """Return how many samples match a prediction under another variant, or of a changed question."""
        try:
            model = simulate(trace.scenario_of(self.trace | changes), variant=variant).columns()
        except UserError:  # the model refuses it
            return 0
        predicted = {*map(tuple, np.stack([model[name] for name in self.counters], axis=1).tolist())}
        return sum(row in predicted for row in self.rows)

    def changes(self, kernels: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return other questions than the recording's, each with one thing changed."""
        asked, knobs, (first, *others) = self.asked, self.asked["knobs"], self.asked["processes"]
        (key, count, step), *rest = first["contents"]
        contents = [[0 if key else 2**63, 1, 0], *([[key + step, count - 1, step]] if count > 1 else []), *rest]
        new: dict[str, dict[str, Any]] = {
            f"{name} {words}": {"knobs": knobs | {name: abs(knobs[name] - less)}}
            for name, (less, words) in LISTED["changes"].items()
            if name in knobs
        }
        new["one page with another content"] = {"processes": [{**first, "contents": contents}, *others]}
        if self.ops and "fork" not in self.ops:  # otherwise later events name processes that do not exist
            new["without the first event"] = {"events": asked["events"][1:]}
        questions = {words: {"scenario": asked | change} for words, change in new.items()}
        apart = [name for name in kernels if name != self.kernel and self.variant in ("mainline", "legacy")]
        return questions | {f"predicted as Linux {name}": {"kernel": name} for name in apart}

    def drawn(self, units: Mapping[str, str] | None = None, title: str = "", model: str = "mmlab") -> Answer:
        """Draw counters of the recording (name → unit) on the model's line, which has the name `model`.

        By default, those of `LISTED`, or the four that change most.
        """
        kernel = plots.recorded_samples(self.trace)
        lively = kernel.filter(regex="^(?!lab_|batch|rank|pages_scanned)").nunique()
        units = units or LISTED["drawn"].get(self.name) or dict.fromkeys(lively.nlargest(4).index, "")
        what = f"{self.name} (Linux {self.trace['kernel']}, {self.variant}): samples exact:"
        finding = expect(what, self.found.samples_exact, least=self.found.samples)
        pair = {(model, f"Linux {self.trace['kernel']}"): (plots.recorded_samples(self.predicted), kernel)}
        return Answer(kernel, finding, plots.overlay(pair, units, title or self.name))


def recorded(name: str, units: Mapping[str, str], title: str) -> Answer:
    """Predict a recording of a kernel that ships with mmlab, and draw counters (name → unit) of both."""
    (path,) = (path for path in trace.find() if path.name == f"{name}{trace.ENDING}")
    one = Recording(path)
    said = f"{one.found.samples_exact} of {one.found.samples} samples in all counters"
    said = f"the model predicts {said}, {one.found.maps_exact} of {one.found.maps} page maps ({title})."
    return one.drawn(units, title).found(f"{'Holds' if one.found.exact else 'Does not hold'}: {said}")


def samples(found: Sequence[Recording]) -> pd.DataFrame:
    """Return the model's samples of recordings, what follows from them, and the kernel's own counters (``lab_…``)."""
    names, at, large = [one.name for one in found], ["recording", "batch", "rank"], Counter[tuple[str, int, int]]()
    for one in found:
        for (batch, rank, _), pages in one.maps().items():
            large[one.name, batch, rank] += int(np.isin(trace.letters(pages), [*b"Hh"]).sum())
    pairs = zip(*((one.run.samples, plots.recorded_samples(one.trace)) for one in found), strict=True)
    model, kernel = (pd.concat(p, keys=names, names=["recording", None]).reset_index("recording") for p in pairs)
    own = kernel[[*at, *kernel.filter(regex="^lab_")]]
    m = model.drop_duplicates(at).merge(own, "left", at, indicator="of the kernel")
    by, of = m.groupby("recording", sort=False), m["recording"]
    ops = of.map({one.name: one.ops for one in found})
    queue_shown = of.isin(one.name for one in found if "deferred_queue_len" in one.trace["fields"])
    same = (by[["frames", "anon_pages", "ksm_entries", "huge_pmds"]].diff() == 0).all(axis=1)
    scans, thps = (by[name].diff().clip(lower=0).fillna(0) for name in ("full_scans", "huge_pmds"))
    visited = m["pages_scanned"].where((scans > 0) | (by.cumcount() == 0)).ffill()
    return m.assign(
        saved=m["ksm_entries"] - m["ksm_frames"],
        unshared_before=by["pages_unshared"].shift().where(same, m["pages_unshared"]),
        scans_ended=scans.groupby(of).cumsum(),
        scans_visiting=(visited.groupby(of).diff() > 0).groupby(of).cumsum(),
        thps_made=thps.groupby(of).cumsum(),
        all_splits=m.filter(regex=r"^mthp_(?!2048)\d+kB_split$").sum(axis=1) + m["thp_split_page"],
        not_retried=(m["thp_split_page_failed"] - m.get("lab_sp_ksm_same_ok", pd.Series(0.0)).fillna(0)).clip(lower=0),
        written=(m["full_scans"] < 2) | ops.astype(bool),
        copied=ops.map({"write", "mlock"}.intersection).astype(bool),
        queued=m["deferred_queue_len"].where(queue_shown, m["thp_deferred_split_page"]),
        in_large_folios=[large.get(place, np.nan) for place in zip(of, m["batch"], m["rank"], strict=True)],
    )


def confirmed(found: Iterable[Recording]) -> pd.DataFrame:
    """Count the recordings that confirm each decision of the variants: those that notice if it is turned round.

    Returns
    -------
    DataFrame
        A row a context; columns ``remaps`` and ``does not remap``. At most `ENOUGH`.
    """
    table = pd.DataFrame(0, pd.Index(CONTEXTS, dtype=object), ["does not remap", "remaps"])

    def notice(recording: Recording, contexts: Sequence[SplitContext], some: bool = False) -> list[SplitContext]:
        """Return the contexts whose answer matters, by halving: most do not; if `some` do, a half need not be asked."""
        own, half = VARIANTS[recording.variant], len(contexts) // 2
        turned = replace(own, predicate=lambda split: own.predicate(split) != (split in contexts))
        if not contexts or (not (some and half) and recording.matching(turned) == recording.found.samples):
            return []
        first = notice(recording, contexts[:half]) if half else [*contexts]
        return first + notice(recording, contexts[half:], not first) if half else first

    for recording in found:
        splits = recording.run.mthp is not None or recording.run.rows["thp_split_page"][-1] > 0
        if splits and recording.found.exact and recording.variant in VARIANTS:
            answers = {c: int(VARIANTS[recording.variant].predicate(c)) for c in CONTEXTS if possible(c)}
            asked = [c for c, answer in answers.items() if table.iat[CONTEXTS.index(c), answer] < ENOUGH]
            for context in notice(recording, asked):
                table.iat[CONTEXTS.index(context), answers[context]] += 1
    return table[["remaps", "does not remap"]]


def meaning(table: pd.DataFrame) -> Answer:
    """Compare counters with what they are taken for (`LISTED`), in the `samples` of exact recordings.

    Of each counter the recording is shown in which it is furthest off, or nearly so and most often.
    """
    by, rows, drawn = table["recording"], {}, {}
    for row in LISTED["counters"]:
        formulas = row.get("says", row["counter"]), row["is"]
        said, case = (table.eval(formula, engine="python").astype(float) for formula in formulas)
        if "only" in row:
            case = (np.minimum if row["only"] == "too many" else np.maximum)(said, case)
        gap = (said - case).abs().fillna(0.0)
        most, often = gap.groupby(by).max(), (gap > 0).groupby(by).sum()
        name = often[most >= most.max() / 2].sort_index(ascending=False).idxmax()
        at = gap[by == name].idxmax()
        label = ", ".join(filter(None, (row["counter"], row.get("only"))))
        shown = {"it says": said[at], "there are": case[at], "of": row["words"], "rule": row["rule"]}
        rows[label] = shown | {"recording": name, "off in (recordings)": int((most > 0).sum())}
        if row.get("drawn"):
            own = said.where(table["of the kernel"] == "both")
            part = pd.DataFrame({"model": said, "truth": case, "recorded": own})
            drawn[f"{label}\n{name[:34]}"] = part[by == name].reset_index(drop=True).rename_axis("sample").reset_index()
    data = pd.DataFrame.from_dict(rows, "index").rename_axis("counter")
    often = data["off in (recordings)"].sort_values(ascending=False, kind="stable").head(4)
    said = "; ".join(f"{name}, in {count}" for name, count in often.items())
    title = f"Where each counter is furthest off, and in how many of {by.nunique()} recordings it is off"
    finding = f"Not what it is taken for: {said} recordings"
    return Answer(data, finding, plots.says_and_truth(drawn), title, digits=0)
