"""The worked examples of the specification as vectors: scenarios, and the rows that a model must give.

W1 to W12 are miniatures, where a THP has 8 pages (4 where said); X1 to X5 are rows of the full-size runs (64 MiB).
`examples` gives every example once for each variant it holds for; `measure` brings a prediction into the same columns.
"""

from __future__ import annotations

import dataclasses

PAGE_KB = 4

# the classes of fix-variants 5.2: (variant, shrink_underused)
X = (("mainline", 1), ("mainline", 0), ("v1-shrinker-gate", 1))
SKIP = (("skip-zeropage", 1),)
Y = (
    ("legacy", 1),
    ("rfc-underused-only", 1),
    ("rfc-underused-strict", 1),
    ("ksm-opt-out", 1),
    ("v1-mergeable", 1),
    ("v1-series", 1),
    ("v1-series", 0),
    ("v1-shrinker-gate", 0),
)

Z = 0
LOAD_L = [Z] * 6 + [0x11, 0x12] + [Z] * 6 + [0x21, 0x22] + [Z] * 6 + [0x31, 0x32]
REFERENCE_LOAD = [segment for n in range(32) for segment in ([0, 460, 0], [52 * n + 1, 52, 1])]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an example starts from; `keys` one a page, or segments [first, count, step]."""

    variants: tuple[tuple[str, int], ...]
    keys: list
    pages_to_scan: int
    use_zero_pages: int = 0
    smart_scan: int = 1
    max_page_sharing: int = 256
    pages_per_thp: int = 8
    small: int = 0  # so many leading pages are small ones, in a block of their own that is otherwise unmapped
    thp: bool = True


SETTINGS = {
    "W1": Setting(X, LOAD_L, 10, use_zero_pages=1),
    "W2": Setting((*X, *SKIP), LOAD_L, 10),
    "W3": Setting(Y, LOAD_L, 10, use_zero_pages=1),
    "W4": Setting(Y, LOAD_L, 10),
    "W5": Setting(Y, LOAD_L, 10, max_page_sharing=4),
    "W6": Setting(X, [0x50, Z, Z, Z, 0x50, Z, Z, 0x60], 4, pages_per_thp=4),
    "W7": Setting(X, [Z, Z, 0x40, 0x50, Z, Z, 0x45, 0x30, Z, Z, 0x20, 0x60], 12, smart_scan=0, pages_per_thp=4),
    "W8": Setting(SKIP, LOAD_L, 10, use_zero_pages=1),
    "W9": Setting(X, [Z, Z, *LOAD_L], 10, small=2),
    "W10": Setting(X, [Z, 0x11, 0x12, 0x13, Z, Z, Z, 0x21, Z, Z, Z, 0x31], 12, smart_scan=0, pages_per_thp=4),
    "W11": Setting(X, [Z, 0x40, 0x50, 0x60, Z, 0x20, 0x70, 0x45], 8, smart_scan=0),
    "W12": Setting(X, [1, 2, 3], 10, small=3),
    "X1": Setting(X[:1], REFERENCE_LOAD, 500, use_zero_pages=1, pages_per_thp=512),
    "X2": Setting(X[:1], REFERENCE_LOAD, 500, pages_per_thp=512),
    "X3": Setting(Y[:1], REFERENCE_LOAD, 500, use_zero_pages=1, pages_per_thp=512),
    "X4": Setting(Y[:1], REFERENCE_LOAD, 500, pages_per_thp=512),
    "X5": Setting(SKIP, REFERENCE_LOAD, 500, use_zero_pages=1, pages_per_thp=512),
}

# values after the batch, columns as in the specification
TABLES = {
    "W1": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1  24   24   3      0       0    0  10    0      10       0    0     0    0
        2  24   24   3      0       0    0  20    0      20       0    0     0    0
        3  24   24   3      0       0    0  24    0      24       0    1     0    0
        4   6    6   0      0       0    1   8    0      33       0    2     3    0
        5   6    6   0      0       0    6   0    0      39       0    3     3    0
        6   6    6   0      0       0    6   0    0      45       0    4     3    0
        7   6    6   0      0       0    0   6    0      45       6    5     3    0
        8   6    6   0      0       0    6   0    0      51       6    6     3    0
        9   6    6   0      0       0    0   6    0      51      12    7     3    0
    """,
    "W2": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1  24   24   3      0       0    0  10    0      10       0    0     0    0
        2  24   24   3      0       0    0  20    0      20       0    0     0    0
        3  24   24   3      0       0    0  24    0      24       0    1     0    0
        4  18   18   2      0       0    1  19    0      34       0    1     1    1
        5  18   18   2      0       0    1  19    0      44       0    1     1    1
        6  18   18   2      0       0    1  19    0      44       0    2     1    1
        7  12   12   1      0       0    5   9    0      54       0    2     2    2
        8  12   12   1      0       0    7   7    0      58       0    3     2    2
        9   6    6   0      0       0    7   1    0      66       0    4     3    3
       10   6    6   0      0       0    0   6    0      66       6    5     3    3
       11   6    6   0      0       0    6   0    0      72       6    6     3    3
       12   6    6   0      0       0    0   6    0      72      12    7     3    3
       13   6    6   0      0       0    0   6    0      72      18    8     3    3
       14   6    6   0      0       0    6   0    0      78      18    9     3    3
    """,
    "W3": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1  24   24   3      0       0    0  10    0      10       0    0     0    0
        2  24   24   3      0       0    0  20    0      20       0    0     0    0
        3  24   24   3      0       0    0  24    0      24       0    1     0    0
        4  16   16   1      0       0    2  22    8      34       0    1     2    0
        5   8    8   0      0       0    4  20   16      44       0    1     3    0
        6   6    6   0      0       0    6  18   18      48       0    2     3    0
        7   6    6   0      0       0    6   0   18      54       0    3     3    0
    """,
    "W4": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1  24   24   3      0       0    0  10    0      10       0    0     0    0
        2  24   24   3      0       0    0  20    0      20       0    0     0    0
        3  24   24   3      0       0    0  24    0      24       0    1     0    0
        4  24   18   1      1       6    2  15    0      34       0    1     2    1
        5  24   10   0      1      14    4   5    0      44       0    1     3    1
        6  24    8   0      1      16    6   1    0      48       0    2     3    1
        7  24    7   0      1      17    6   0    0      58       0    2     3    1
        8  24    7   0      1      17    6   0    0      68       0    2     3    1
    """,
    "W5": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail chains dups
        1  24   24   3      0       0    0  10    0      10       0    0     0    0      0    0
        2  24   24   3      0       0    0  20    0      20       0    0     0    0      0    0
        3  24   24   3      0       0    0  24    0      24       0    1     0    0      0    0
        4  24   19   1      2       5    2  15    0      34       0    1     2    1      1    2
        5  24   13   0      4      11    4   5    0      44       0    1     3    1      1    4
        6  24   12   0      4      12    7   1    0      48       0    2     3    1      1    4
        7  24   12   0      4      12    8   0    0      58       0    2     3    1      1    4
        8  24   12   0      4      12    8   0    0      68       0    2     3    1      1    4
        9  24   11   0      5      13    6   0    0      72       0    3     3    1      1    5
    """,
    "W6": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1   8    8   2      0       0    0   4    0       4       0    0     0    0
        2   8    8   2      0       0    0   8    0       8       0    0     0    0
        3   8    8   2      0       0    0   8    0       8       0    1     0    0
        4   3    2   0      1       1    1   4    0      12       0    1     2    1
        5   3    2   0      1       1    1   2    0      13       0    2     2    1
        6   3    2   0      1       1    1   0    0      16       0    3     2    1
    """,
    "W7": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1  12   12   3      0       0    0  12    0      12       0    0     0    0
        2  12   12   3      0       0    0  12    0      12       0    1     0    0
        3  10   10   2      0       0    1  11    0      24       0    1     1    1
        4  10   10   2      0       0    1  11    0      24       0    2     1    1
        5   8    8   1      0       0    5   5    0      34       0    3     2    2
        6   6    6   0      0       0    6   2    0      42       0    4     3    3
        7   6    6   0      0       0    6   0    0      48       0    5     3    3
    """,
    "W8": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1  24   24   3      0       0    0  10    0      10       0    0     0    0
        2  24   24   3      0       0    0  20    0      20       0    0     0    0
        3  24   24   3      0       0    0  24    0      24       0    1     0    0
        4   6    6   0      0       0    6   3    0      33       0    2     3    0
        5   6    6   0      0       0    6   0    0      39       0    3     3    0
    """,
    "W9": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1  26   26   3      0       0    0  10    0      10       0    0     0    0
        2  26   26   3      0       0    0  20    0      20       0    0     0    0
        3  26   26   3      0       0    0  26    0      26       0    1     0    0
        4   8    7   0      1       1    5   4    0      36       0    1     3    0
        5   8    7   0      1       1    6   3    0      37       0    2     3    0
        6   8    7   0      1       1    6   0    0      45       0    3     3    0
    """,
    "W10": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1  12   12   3      0       0    0  12    0      12       0    0     0    0
        2  12   12   3      0       0    0  12    0      12       0    1     0    0
        3   6    6   1      0       0    6   2    0      20       0    2     2    0
        4   6    6   1      0       0    6   0    0      26       0    3     2    0
    """,
    "W11": """
    batch rss phys THP shared sharing unsh vol zero scanned skipped full split fail
        1   8    8   1      0       0    0   8    0       8       0    0     0    0
        2   8    8   1      0       0    0   8    0       8       0    1     0    0
        3   6    6   0      0       0    6   2    0      16       0    1     1    1
        4   6    6   0      0       0    6   2    0      16       0    2     1    1
        5   6    6   0      0       0    6   0    0      22       0    3     1    1
    """,
    "W12": """
    batch unsh vol scanned skipped
        1    0   3       3       0
        2    3   0       6       0
        3    3   0       9       0
        4    3   0      12       0
        5    0   3      12       3
        6    3   0      15       3
        7    0   3      15       6
        8    0   3      15       9
        9    3   0      18       9
       10    0   3      18      12
       11    0   3      18      15
       12    0   3      18      18
       13    0   3      18      21
       14    3   0      21      21
       15    0   3      21      24
       16    0   3      21      27
       17    0   3      21      30
       18    0   3      21      33
       19    0   3      21      36
       20    0   3      21      39
       21    0   3      21      42
       22    0   3      21      45
       23    3   0      24      45
       24    0   3      24      48
    """,
    "X1": """
    batch visits   rss thp shared sharing unsh   vol zero scanned skipped full split fail items  free
        1    500 16384  32      0       0    0   500    0     500       0    0     0    0   500     0
       33    384 16384  32      0       0    0 16384    0   16384       0    1     0    0 16384     0
       34    500 11784  22      0       0    1 11793    0   16884       0    1    10    0 11794  4600
       35    500  7644  13      0       0    1  7662    0   17384       0    1    19    0  7663  8740
       36    500  3044   3      0       0    1  3072    0   17884       0    1    29    0  3073 13340
       37    196  1664   0      0       0    1  1695    0   18080       0    2    32    0  1696 14720
       38    500  1664   0      0       0  500  1186    0   18580       0    2    32    0  1686 14720
       41    164  1664   0      0       0 1664     0    0   19744       0    3    32    0  1664 14720
       45    164  1664   0      0       0 1664     0    0   21408       0    4    32    0  1664 14720
       46      0  1664   0      0       0    0  1664    0   21408    1664    5    32    0  1664 14720
       50    164  1664   0      0       0 1664     0    0   23072    1664    6    32    0  1664 14720
       51      0  1664   0      0       0    0  1664    0   23072    3328    7    32    0  1664 14720
       52      0  1664   0      0       0    0  1664    0   23072    4992    8    32    0  1664 14720
    """,
    "X2": """
    batch visits   rss thp shared sharing unsh   vol zero scanned skipped full split fail items  free
       33    384 16384  32      0       0    0 16384    0   16384       0    1     0    0 16384     0
       34    500 15924  31      0       0    1 15925    0   16884       0    1     1    1 15926   460
       35    500 15924  31      0       0    1 15925    0   17384       0    1     1    1 15926   460
       64    500 15924  31      0       0    1 15925    0   31884       0    1     1    1 15926   460
       65    426 15924  31      0       0    1 15925    0   32310       0    2     1    1 15926   460
       66    500 15464  30      0       0  105 15361    0   32810       0    2     2    2 15466   920
       96    466 15464  30      0       0 1665 13801    0   47776       0    3     2    2 15466   920
       97    500 15004  29      0       0 1665 13341    0   48276       0    3     3    3 15006  1380
      127      6 15004  29      0       0 1665 13341    0   62782       0    4     3    3 15006  1380
      128      0 15004  29      0       0    0 15004    0   62782   15004    5     3    3 15004  1380
      129    500 14544  28      0       0  209 14337    0   63282   15004    5     4    4 14546  1840
      158     46 14544  28      0       0 1665 12881    0   77328   15004    6     4    4 14546  1840
      159      0 14544  28      0       0    0 14544    0   77328   29548    7     4    4 14544  1840
      160      0 14544  28      0       0    0 14544    0   77328   44092    8     4    4 14544  1840
      161    500 14084  27      0       0  261 13825    0   77828   44092    8     5    5 14086  2300
      189     86 14084  27      0       0 1665 12421    0   91414   44092    9     5    5 14086  2300
      194    500 13624  26      0       0  313 13313    0   91914  100428   13     6    6 13626  2760
      230    500 13164  25      0       0  365 12801    0  105540  209420   22     7    7 13166  3220
      256    166 13164  25      0       0 1665 11501    0  118206  209420   23     7    7 13166  3220
      299    500 12244  23      0       0  469 11777    0  131412  416364   40     9    9 12246  4140
      612    500  7184  12      0       0  999  6187    0  241318 1291436  139    20   20  7186  9200
      828    166  1664   0      0       0 1665     1    0  297856 1738220  248    32   32  1666 14720
    """,
    "X3": """
    batch visits   rss thp shared sharing unsh   vol  zero scanned skipped full split fail items  free
       33    384 16384  32      0       0    0 16384     0   16384       0    1     0    0 16384     0
       34    500 15924  31      0       0   40 16344   460   16884       0    1     1    0 16384   460
       40    500 13196  25      0       0  312 16072  3188   19884       0    1     7    0 16384  3188
       50    500  8716  15      0       0  832 15552  7668   24884       0    1    17    0 16384  7668
       60    500  4236   5      0       0 1352 15032 12148   29884       0    1    27    0 16384 12148
       65    500  1996   0      0       0 1612 14772 14388   32384       0    1    32    0 16384 14388
       66    384  1664   0      0       0 1664 14720 14720   32768       0    2    32    0 16384 14720
       70    164  1664   0      0       0 1664     0 14720   34432       0    3    32    0  1664 14720
       75      0  1664   0      0       0    0  1664 14720   36096    1664    5    32    0  1664 14720
    """,
    "X4": """
    batch visits   rss thp shared sharing unsh   vol zero scanned skipped full split fail items  free
       33    384 16384  32      0       0    0 16384    0   16384       0    1     0    0 16384     0
       34    500 16384  31      2     457   40 15885    0   16884       0    1     1    1 16384   457
       40    500 16384  25     13    3174  312 12885    0   19884       0    1     7    1 16384  3174
       50    500 16384  15     30    7637  832  7885    0   24884       0    1    17    1 16384  7637
       60    500 16384   5     48   12099 1352  2885    0   29884       0    1    27    1 16384 12099
       65    500 16384   0     57   14330 1612   385    0   32384       0    1    32    1 16384 14330
       66    384 16384   0     58   14661 1664     1    0   32768       0    2    32    1 16384 14661
       99    384 16384   0     58   14662 1664     0    0   49152       0    3    32    1 16384 14662
      132    384 16384   0     58   14662 1664     0    0   65536       0    4    32    1 16384 14662
      162    220 16384   0     58   14662    0  1664    0   80256    1664    5    32    1 16384 14662
    """,
    "X5": """
    batch visits   rss thp shared sharing unsh   vol zero scanned skipped full split fail items  free
       33    384 16384  32      0       0    0 16384    0   16384       0    1     0    0 16384     0
       34    500 11784  22      0       0  490 11304    0   16884       0    1    10    0 11794  4600
       37    196  1664   0      0       0 1664    32    0   18080       0    2    32    0  1696 14720
       41    164  1664   0      0       0 1664     0    0   19744       0    3    32    0  1664 14720
       45    164  1664   0      0       0 1664     0    0   21408       0    4    32    0  1664 14720
    """,
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One example under one variant: a trace without samples, and the rows expected, {column: value} each."""

    name: str
    trace: dict
    rows: list[dict[str, int]]


def examples() -> list[Example]:
    """Every worked example, once for each variant it holds for."""
    return [
        Example(f"{name}-{variant}-su{gate}", trace_of(name, setting, variant, gate), rows_of(name))
        for name, setting in SETTINGS.items()
        for variant, gate in setting.variants
    ]


def rows_of(name: str) -> list[dict[str, int]]:
    head, *lines = (line.split() for line in TABLES[name].strip().splitlines())
    return [dict(zip(map(str.lower, head), map(int, line), strict=True)) for line in lines]


def trace_of(name: str, setting: Setting, variant: str, gate: int) -> dict:
    """The trace format's question: scenario and variant, with frames asked for in the batches of the table.

    A THP starts at a multiple of its size, so leading small pages are the end of a block whose first pages are unmapped
    before ksmd starts.
    """
    segments = [key if isinstance(key, list) else [key, 1, 0] for key in setting.keys]
    count = sum(segment[1] for segment in segments)
    pad = -setting.small % setting.pages_per_thp
    thp = [[pad + setting.small, count - setting.small]] if count > setting.small else []
    batches = [row["batch"] for row in rows_of(name)]
    munmap = {"after": {"batch": 0}, "op": "munmap", "process": 0, "page": 0, "count": pad, "result": 0, "sample": 1}
    knobs = {
        "use_zero_pages": setting.use_zero_pages,
        "pages_to_scan": setting.pages_to_scan,
        "smart_scan": setting.smart_scan,
        "max_page_sharing": setting.max_page_sharing,
        "shrink_underused": gate,
        "max_ptes_none": 511,
        "stable_node_chains_prune_millisecs": 0,
        "merge_across_nodes": 1,
        "swap_mib": 0,
    }
    process = {
        "pages": pad + count,
        "contents": [[1, pad, 0], *segments] if pad else segments,
        "thp": thp,
        "mergeable": [[0, pad + count]],
    }
    return {
        "format": "kernel-trace-1",
        "name": name,
        "kernel": "6.12.117",
        "variant": variant,
        "how": "worked example",
        "scenario": {
            "knobs": knobs,
            "processes": [process],
            "late": 0,
            "events": [munmap] if pad else [],
            "batches": max(batches),
            "pages_per_thp": setting.pages_per_thp,
        },
        "fields": [],
        "samples": [],
        "maps": [],
        "frames": [{"batch": batch, "rank": 0} for batch in batches],
    }


def measure(prediction: dict, columns: list[str]) -> list[dict[str, int]]:
    """The columns of a prediction, in the batches in which it has frames."""
    rows = [dict(zip(prediction["fields"], row, strict=True)) for row in prediction["samples"]]
    after_batch = {row["batch"]: row for row in reversed(rows)}  # the first row of a batch is the one right after it
    scenario = prediction["scenario"]
    thp_kb = scenario["pages_per_thp"] * PAGE_KB
    start = rows[len(scenario["events"])]["rss_kb"] // PAGE_KB
    measured = []
    for place in prediction["frames"]:
        row = after_batch[place["batch"]]
        values = {
            "batch": row["batch"],
            "visits": row["pages_scanned"] - after_batch[row["batch"] - 1]["pages_scanned"],
            "rss": row["rss_kb"] // PAGE_KB,
            "phys": place["frames"],
            "free": start - place["frames"],
            "thp": row["anonhugepages_kb"] // thp_kb,
            "shared": row["pages_shared"],
            "sharing": row["pages_sharing"],
            "unsh": row["pages_unshared"],
            "vol": row["pages_volatile"],
            "zero": row["ksm_zero_pages"],
            "scanned": row["pages_scanned"],
            "skipped": row["pages_skipped"],
            "full": row["full_scans"],
            "split": row["thp_split_page"],
            "fail": row["thp_split_page_failed"],
            "items": row["proc_ksm_rmap_items"],
            "chains": row["stable_node_chains"],
            "dups": row["stable_node_dups"],
        }
        measured.append({column: values[column] for column in columns})
    return measured
