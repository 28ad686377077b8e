"""Events one by one, where no recording shows them."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any

from mmlab.results.run import Run, simulate
from mmlab.scenario import Scenario

EHWPOISON = 133


def after(*events: dict[str, Any], **fields: Any) -> Run:
    """16 pages, half of them zero-filled, in two blocks; the events before ksmd starts."""
    process = {"pages": 16, "contents": [[0, 8, 0], [5, 8, 0]], "mergeable": [[0, 16]], "thp": fields.pop("thp", [])}
    setting = {"process_list": [process], "pages_per_thp": 8, "horizon_batches": 1, "run": 0, "horizon_seconds": 1.0}
    moment = fields.pop("moment", {"batch": 0})
    return simulate(Scenario(**{**setting, **fields}, events=[{"after": moment, **e} for e in events]))


def op(name: str, page: int = 0, count: int = 8, **more: Any) -> dict[str, Any]:
    return {"op": name, "page": page, "count": count, **more}


def letters(run: Run) -> str:
    return run.page_map(0).tobytes().decode()


def test_populate_write_fills_what_is_empty() -> None:
    assert letters(after(op("dontneed"))) == "NNNNNNNNAAAAAAAA"
    assert letters(after(op("dontneed"), op("read", count=4))) == "ZZZZNNNNAAAAAAAA"
    run = after(op("dontneed"), op("read", count=4), op("populate_write", count=6))
    assert (letters(run), run.results) == ("AAAAAANNAAAAAAAA", [0, 0, 0])
    assert letters(after(op("dontneed"), thp=[[0, 8]])) == "NNNNNNNNAAAAAAAA"
    assert letters(after(op("dontneed"), op("populate_write", count=1), thp=[[0, 8]])) == "HHHHHHHHAAAAAAAA"


def test_populate_write_copies_merged_pages_and_keeps_contents() -> None:
    fields = {"run": 1, "smart_scan": 0, "moment": {"full_scan": 3}, "horizon_full_scans": 3, "horizon_batches": 0}
    assert letters(after(**fields)) == "K" * 16
    run = after(op("populate_write", page=6, count=4), **fields)
    assert letters(run) == "KKKKKKAAAAKKKKKK"
    assert run.machine.page["key"][:16].tolist() == [0] * 8 + [5] * 8


def test_populate_write_stops_at_what_it_cannot_write() -> None:
    empty = [op("dontneed"), op("munmap", page=4, count=1)]
    run = after(*empty, op("populate_write"))
    assert (letters(run), run.results[-1]) == ("AAAANNNNAAAAAAAA", errno.ENOMEM)
    run = after(op("dontneed"), op("mprotect", page=2, count=1, prot=1), op("populate_write"))
    assert (letters(run), run.results[-1]) == ("AANNNNNNAAAAAAAA", errno.EINVAL)
    run = after({"op": "memory_failure", "page": 3}, op("dontneed", count=3), op("populate_write"))
    assert (letters(run)[:3], run.results[-1]) == ("AAA", EHWPOISON)


def test_a_stride_takes_every_nth_page_or_block() -> None:
    assert letters(after(op("dontneed", count=16, every_nth=3))) == "NAANAANAANAANAAN"
    assert letters(after(op("dontneed", page=1, count=6, every_nth=2))) == "ANANANAAAAAAAAAA"
    assert letters(after(op("dontneed", page=4, count=12, every_nth=2, granularity="2M"))) == "AAAA" + "N" * 8 + "AAAA"
    assert letters(after(op("dontneed", count=16, every_nth=2, granularity="2M"))) == "N" * 8 + "A" * 8


def test_a_share_is_drawn_anew_each_time() -> None:
    given = [letters(after(*[op("dontneed", count=16, share=0.25)] * n)) for n in (1, 2, 3)]
    assert [text.count("N") for text in given] == [4, 6, 9]
    assert all(b == "N" for one, two in pairwise(given) for a, b in zip(one, two, strict=True) if a == "N")
    assert letters(after(op("dontneed", count=16, share=0.5, every_nth=2))).count("N") == 4
    assert letters(after(op("dontneed", count=16, share=0.0))) == "A" * 16
    other = letters(after(op("dontneed", count=16, share=0.25), seed=1))
    assert other.count("N") == 4 and other != given[0]


def test_a_stride_gives_the_first_error() -> None:
    run = after(op("munmap", page=5, count=2), op("dontneed", count=16, every_nth=2))
    assert (letters(run), run.results[-1]) == ("NANANNNANANANANA", errno.ENOMEM)
