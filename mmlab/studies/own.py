"""A variant of your own beside all others: is it new, where does it rank, what does it gain (notebook 05)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd

from mmlab.figures import figures as plots
from mmlab.results import trace
from mmlab.studies.recorded import Recording
from mmlab.studies.study import Answer, expect
from mmlab.studies.verdict import Verdict
from mmlab.variants import VARIANTS, AnyVariant, Variant, possible, resolve, truth_table


def named(variant: AnyVariant) -> Variant:
    """Return a variant of your own, under a name that no shipped one has."""
    yours = resolve(variant)
    return replace(yours, name=f"own {yours.name}") if yours.name in VARIANTS else yours


def answers(yours: Variant) -> Answer:
    """Compare a variant's answers with those of each shipped one, in all contexts that can happen."""
    table = truth_table([yours, *VARIANTS.values()])
    can = [possible(context) for context in table.index]
    others, mine = table[can].drop(columns=yours.name), table[can][yours.name]
    differs = others.ne(mine, axis=0)
    data = pd.DataFrame({"other answers": differs.sum(), "yours remaps": (differs & ~others).sum()})
    data["the other remaps"] = data["other answers"] - data["yours remaps"]
    twins, nearest = [*differs.columns[~differs.any()]], data["other answers"].idxmin()
    finding = f"Not new: wherever it can be asked, `{yours.name}` answers as {' and '.join(twins)}"
    if not twins:
        finding = f"New: {nearest} is nearest, with another answer in {data['other answers'].min()} contexts"
    title = f"Of {len(mine)} contexts that can happen"
    return Answer(data, finding, plots.truth_table(table, can), title, "Filled circle: yes.")


def ranking(matrix: Verdict, yours: str, weights: Mapping[str, float]) -> Answer:
    """Count the questions in which each variant is among the best or the worst, and find the Pareto front."""
    places, front = matrix.places, matrix.pareto()
    weight = pd.Series(weights).reindex(places.index)
    signs = {"+": "among the best", " ": "in between", "-": "among the worst"}
    counts = matrix.marks.loc[places.index].apply(pd.Series.value_counts).T.reindex(columns=signs).fillna(0).astype(int)
    counts = counts.rename(columns=signs).sort_values(["among the worst", "among the best"], ascending=[True, False])
    score = 100 * places.mul(weight, axis=0).sum() / (weight.sum() or 1.0)
    table = counts.assign(**{"place, mean (%)": score, "dominated by": pd.Series(front).str.join(", ")})
    best, worst = counts.loc[yours, ["among the best", "among the worst"]]
    on = f"dominated by {', '.join(front[yours])}" if front[yours] else "on the Pareto front"
    finding = f"Rank: among the best in {best} of {len(places)} questions, among the worst in {worst}; {on}"
    figure = plots.bars(counts, f"questions, of {len(places)} that tell the variants apart", stacked=True)
    return Answer(table, finding, figure, "Place: 100 is the best of every row, 0 the worst", digits=0)


def gains(matrix: Verdict, yours: str, rivals: Sequence[str]) -> Answer:
    """Compare a variant with each rival, in the questions in which one of the two is better."""
    better = {v: {"+": matrix.better(yours, v), "-": matrix.better(v, yours)} for v in rivals}
    asked = [q for q in matrix.questions if any(q.key in keys for signs in better.values() for keys in signs.values())]
    labels = {q.key: matrix.labels[q.key] for q in asked}
    cells, words = (table.loc[[*labels], [*rivals]] for table in (matrix.cells, matrix.words))
    marks = pd.DataFrame("=", [*labels], [*rivals])
    for v, sign in product(rivals, "+-"):
        marks.loc[better[v][sign], v] = sign
    text = words.apply(lambda column: matrix.words[yours][[*labels]] + " : " + column)
    meaning = {"+": f"{yours} is better (+)", "-": f"{yours} is worse (−)", "=": "no difference"}
    figure = plots.verdict_table(cells.rename(index=labels), marks.rename(index=labels), text, signs=meaning)
    said = (f"against {v} better in {len(signs['+'])}, worse in {len(signs['-'])}" for v, signs in better.items())
    return Answer(text, f"Gains and costs: {'; '.join(said)}", figure, note=f"In each cell {yours} : the other.")


def beside(recordings: str, yours: Variant) -> Answer:
    """Hold what a kernel with your patch did against the model with your variant, and against mainline.

    Parameters
    ----------
    recordings
        A folder, a file or a pattern, as `mmlab.results.trace.find` takes it; `mmlab vm … record` makes them.
    yours
        The variant that the kernel is said to have.

    Returns
    -------
    Answer
        A row a recording: its samples, and how many are exact under either variant. Drawn is the recording that tells
        the two apart best, in the counters that do: the kernel's samples on the line of your variant.
    """
    both = {v: [Recording(path, v) for path in trace.find(recordings)] for v in (yours, "mainline")}
    exact = {f"exact under {resolve(v).name}": [one.found.samples_exact for one in of] for v, of in both.items()}
    data = pd.DataFrame(exact, [one.name for one in both[yours]])
    best = int((data.iloc[:, 0] - data.iloc[:, 1]).abs().argmax())
    data.insert(0, "samples", [one.found.samples for one in both[yours]])
    told, (own, main) = both[yours][best], (plots.recorded_samples(of[best].predicted) for of in both.values())
    apart = own.ne(main).sum().nlargest(4)
    units = dict.fromkeys(apart.index[apart > 0], "")
    figure = told.drawn(units, model=yours.name if units else "mmlab").figure
    what = f"samples of Linux {told.trace['kernel']} with your patch that `{yours.name}` predicts exactly:"
    finding = expect(what, 100 * data.iloc[:, 1].sum() / data["samples"].sum(), least=100, unit="%")
    return Answer(data, finding, figure, "Your kernel, sample by sample", f"Line: {yours.name}.")
