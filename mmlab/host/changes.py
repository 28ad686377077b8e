"""What would change on a host: the memory of its dump in THPs, under other variants, budgets and tuners.

A dump does not tell where duplicates lie (tuners I6), so everything about THPs has two ends: `LAYOUTS`. All answers are
of the host's size, whatever size is simulated.

>>> from mmlab.host.dump import parse
>>> dump, = parse("pages_shared 1000\\npages_sharing 9000\\npages_unshared 6384\\npages_to_scan 100")
>>> runs = {layout: memory(dump, layout).simulate("mainline") for layout in LAYOUTS}
>>> measured(runs, "host price", "layout").data["THPs lost per MiB"].round(2).to_dict()
{'side by side': 0.57, 'spread': 0.91}
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mmlab.figures.figures import bars, steps
from mmlab.host.dump import COMPARED, Dump, Reproduction
from mmlab.results.metrics import PAGES_PER_MIB
from mmlab.results.run import Run
from mmlab.scenario import Scenario
from mmlab.studies.fleet import Host
from mmlab.studies.runs import measured
from mmlab.studies.study import Answer

LAYOUTS = {
    "side by side": {"duplicate_layout": "clustered", "layout": "bimodal"},
    "spread": {"duplicate_layout": "spread", "layout": "interleaved"},
}
"""Where duplicates and zero-filled pages lie: the two ends of what a dump leaves open."""


def memory(dump: Dump, layout: str, mib: float = 64, **changes: Any) -> Host:
    """Return the memory of a dump, in THPs and at rest, simulated in `mib`.

    Contents with more than `max_page_sharing` copies are taken for zero-filled (tuners I4), volatile pages for unique
    ones (I5).

    Parameters
    ----------
    layout
        A name in `LAYOUTS`.
    **changes
        Other fields of the scenario; where there are none, the dump's knobs hold.
    """
    dump.check()
    merged, whole = dump["pages_shared"] + dump["pages_sharing"], dump.whole
    chained = min(dump.chained, merged)
    zeroes = dump["ksm_zero_pages"] + chained
    fields = dump.knobs() | LAYOUTS[layout] | {"horizon_seconds": 0.0, "until_settled": True}
    fields |= {
        "memory_mib": max(2, 2 * round(whole / PAGES_PER_MIB / 2)),
        "zero_fraction": zeroes / max(1, whole),
        "duplicate_fraction": (merged - chained) / max(1, whole - zeroes),
        "duplicate_groups": max(1, dump["pages_shared"] - dump["stable_node_dups"]),
        "host_mib": max(1, dump.beside.get("MemTotal", 4 * whole) // 1024),
    }
    return Host.of(Scenario(**fields | changes), mib, name=layout)


def composition(made: Reproduction) -> Answer:
    """Study what the scanned memory is, by its counters, in the dump and in the run that reproduces it."""
    table = pd.DataFrame(made.rows).set_index("counter")
    mib = table[["dump", "predicted"]].reindex([*COMPARED]).fillna(0.0) / PAGES_PER_MIB
    shared, sharing, unique, volatile, zeroes, *_, dups = mib.to_numpy()
    chained = np.minimum(sharing, dups * (made.scenario.max_page_sharing - 1))
    parts = {"KSM pages": shared, "saved: zero-filled, as its copies tell": chained, "saved: zeropage": zeroes}
    parts |= {"saved: other duplicates": sharing - chained, "unique": unique, "volatile": volatile}
    figure = bars(pd.DataFrame(parts, ["dump", "simulated"]), "scanned memory (MiB)", stacked=True)
    total, zero = made.dump.whole / PAGES_PER_MIB, chained[0] + zeroes[0]
    saved = f"{made.dump.saved_mib:,.0f} of {total:,.0f} MiB, at least {zero:,.0f} MiB of that by zero-filled pages"
    finding = f"Saved: {saved}. The simulation is {'' if made.exact else 'not '}exact."
    return Answer(table, finding, figure, "Dump and simulation", digits=2)


def bargain(runs: Mapping[str, Run]) -> Answer:
    """Study how many THPs are lost for what is saved, on the way and in the end."""
    saved, lost = "saved (MiB)", "THPs lost"
    found = measured(runs, "host price", "where duplicates lie")
    ways = [
        pd.DataFrame({saved: saved_mib(run), lost: run.rows["thp_split_page"] * run.scenario.host_scale, "where": at})
        for at, run in runs.items()
    ]
    prices = found.data["THPs lost per MiB"].dropna().items()
    said = ", ".join(f"{n:.2g} if duplicates lie {where}" for where, n in prices) or "nothing is saved"
    figure = steps(pd.concat(ways), saved, lost, "where")
    return found.found(f"THPs lost for each MiB saved: {said}.", figure, title="The two ends", digits=2)


def saved_mib(run: Run) -> np.ndarray:
    """Return float64[samples]: the memory saved on the whole host, MiB."""
    saved: np.ndarray = (run.rows["frames"][0] - run.rows["frames"]) * run.scenario.host_scale / PAGES_PER_MIB
    return saved
