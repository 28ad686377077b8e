"""Random scenarios for the property test: small machines on which everything happens often.

Memory is rich in zeros and in duplicates of a few contents, nodes hold few pages, THPs are small, and events of every
kind come in the middle of passes.  A seed always gives the same scenario.
"""

from __future__ import annotations

import random

from mmlab.kernel.versions import DIFFERENCES, RELEASES

KERNELS = ("6.18.15", *RELEASES.values())
VARIANTS = (
    "legacy",
    "mainline",
    "rfc-underused-only",
    "rfc-underused-strict",
    "ksm-opt-out",
    "v1-mergeable",
    "v1-shrinker-gate",
    "v1-series",
    "skip-zeropage",
    "zero-only",
    "no-split",
    "legacy+zero-only",
    "v1-series+no-split",
    "skip-zeropage+no-split",
)
EVENT_WEIGHTS = {
    "write": 30,
    "dontneed": 10,
    "fork": 13,
    "exit": 28,
    "set": 12,
    "read": 4,
    "mlock": 16,
    "munlock": 3,
    "munmap": 3,
    "mmap": 2,
    "mremap": 6,
    "pin": 5,
    "unpin": 4,
    "mprotect": 4,
    "mergeable": 6,
    "unmergeable": 4,
    "hugepage": 3,
    "nohugepage": 2,
    "split": 4,
    "split_all": 2,
    "sleep": 2,
    "shrink": 20,
    "collapse": 30,
    "khugepaged": 8,
    "cold": 3,
    "free": 12,
    "pageout": 10,
    "compact": 1,
    "migrate": 8,
    "merge_any": 3,
    "uffd": 4,
    "memory_failure": 1,
    "populate_write": 4,
}
# which of them need to know what happened before, so that they can't be in a scenario of mixed clocks
ORDERED = {"fork", "exit", "munmap", "mmap", "mremap", "mprotect"}


def scenario(seed: int) -> dict:
    """A trace without answers (trace-format): scenario, variant and kernel."""
    return Draw(random.Random(seed)).trace(f"random-{seed}")


class Process:
    """What the generator has to know of a process to keep its writes and reads legal."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.alive = True
        self.holes: set[int] = set()
        self.read_only: set[int] = set()

    def fork(self) -> Process:
        child = Process(self.pages)
        child.holes, child.read_only = set(self.holes), set(self.read_only)
        return child

    def before_hole(self, page: int, count: int) -> range:
        """The pages a system call reaches that stops at the first hole."""
        end = next((n for n in range(page, page + count) if n in self.holes), page + count)
        return range(page, end)


class Draw:
    """One scenario being drawn."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.more = random.Random(rng.getstate()[1][1])  # what draws from here leaves everything else as it was
        self.thp = rng.choice([4, 8, 8, 16, 16, 16, 64, 64, 64])
        if rng.random() < 0.03:
            self.thp = 512
        self.orders = rng.random() < 0.15  # folios of several sizes (mthp)
        self.sizes = rng.random() < 0.29  # that faults and khugepaged make
        self.thp = rng.choice([16, 64, 64]) if self.sizes else self.thp
        self.clocked = rng.random() < 0.3  # khugepaged wakes up by its own clock
        self.zero = rng.choice([0.05, 0.2] if self.sizes else [0.05, 0.2, 0.4, 0.7, 0.9])  # share of zero pages
        self.pool = [rng.randrange(1, 1 << 63) for _ in range(rng.choice([1, 2, 3, 6, 12]))]  # the duplicated contents
        self.unique = rng.choice([0.8, 0.9, 1] if self.sizes else [0.0, 0.1, 0.4, 0.8])  # shared pages forbid sizes
        self.processes: list[Process] = []

    def trace(self, name: str) -> dict:
        rng = self.rng
        self.nodes = rng.choice([1, 1, 2, 3])
        processes = [self.process() for _ in range(rng.choice([1, 1, 2, 2, 3]))]
        total = sum(p.pages for p in self.processes)
        pass_batches = rng.choice([0.5, 1, 2, 4, 8, 12])
        passes = rng.randint(5, 10 if total > 1000 else 24)
        pages_to_scan = max(1, int(total / pass_batches) + rng.randint(-2, 2))
        batches = min(200, int(passes * (pass_batches + 1)) + 1)
        late = int(rng.random() < 0.08)
        # a chain's full walk depends on time: either ksmd sleeps or 2,000 ms may matter, so that costs of steps do not
        self.sleeps = rng.random() < 0.5
        self.prune_millisecs = (*6 * (0,), 4294967) if self.sleeps else (*6 * (0,), 2000, 4294967)
        # T of the underused test, and khugepaged's: some say never, whatever the size of a THP
        self.max_ptes_none = (0, 0, 1, self.thp // 4, self.thp // 2, self.thp - 2, 255, 511)
        clock = rng.choice(["batch", "batch", "batch", "batch", "full_scan", "mixed"])
        self.ordered = clock != "mixed"
        knobs = {
            "use_zero_pages": int(rng.random() < 0.5),
            "pages_to_scan": pages_to_scan,
            "smart_scan": int(rng.random() < 0.3),
            "max_page_sharing": rng.choice([2, 2, 3, 3, 3, 4, 4, 5, 8, 256]),
            "shrink_underused": int(rng.random() < 0.7),
            "max_ptes_none": rng.choice((0, 511, 511) if self.sizes else self.max_ptes_none),
            "stable_node_chains_prune_millisecs": rng.choice(self.prune_millisecs),
            "merge_across_nodes": int(self.nodes == 1 or rng.random() < 0.3),
            "swap_mib": rng.choice([0, 1, 64, 64]),
        }
        if self.sleeps:
            knobs["sleep_millisecs"] = rng.choice([20, 100, 500, 900, 2000])
        if self.sizes:
            knobs["hugepages_enabled"] = self.hugepages_enabled()
        if self.clocked:
            knobs["khugepaged"] = 1
            knobs["khugepaged_scan_sleep_millisecs"] = 10**9  # it wakes up when the knob is set
            knobs["khugepaged_pages_to_scan"] = rng.randint(1, 3 * self.thp)
        return {
            "format": "kernel-trace-1",
            "name": name,
            "kernel": rng.choice(KERNELS[-2:] if self.sizes and rng.random() < 0.7 else KERNELS),
            "variant": "mainline" if rng.random() < 0.45 else rng.choice(VARIANTS),
            "how": "drawn at random",
            "scenario": {
                "knobs": knobs,
                "processes": processes,
                "late": late,
                "events": self.events(clock, batches, passes, late),
                "batches": batches,
                "pages_per_thp": self.thp,
                "nodes": self.nodes,
                "kernel_changes": {row: rng.choice([0, 1]) for row in DIFFERENCES if rng.random() < 0.05},
            },
            "fields": [],
            "samples": [],
            "maps": [],
            "frames": [],
        }

    # -- processes --------------------------------------------------------------------------------------------

    def process(self) -> dict:
        rng = self.rng
        blocks = rng.randint(1, 8 if self.thp < 512 else 2)
        pages = blocks * self.thp
        self.processes.append(Process(pages))
        coverage = rng.choice([0, 0.2] if self.sizes else [0, 0.5, 0.8, 1, 1, 1])
        huge = [rng.random() < coverage for _ in range(blocks)]
        spec = {
            "pages": pages,
            "thp": joined([[b * self.thp, self.thp] for b in range(blocks) if huge[b]]),
            "mergeable": [[0, pages]] if rng.random() < 0.7 else self.some_ranges(pages),
            "contents": self.contents(pages),
        }
        if self.orders:
            small = [0, *range(2, self.thp.bit_length() - 1)]
            orders = [[b * self.thp, self.thp, 9 if huge[b] else rng.choice(small)] for b in range(blocks)]
            spec |= {"orders": joined(orders), "nohugepage_after_populate": True}
        elif rng.random() < 0.3:
            spec["nohugepage_after_populate"] = True
        if rng.random() < 0.05:
            spec["forbids_zeropages"] = 1
        self.leave_holes(spec)
        return spec

    def leave_holes(self, spec: dict) -> None:
        """Sometimes there are holes, also at the end, where events never come, and memory that is touched later."""
        rng, pages = self.more, spec["pages"]
        if rng.random() < 0.3:
            keys = [first + n * step for first, count, step in spec["contents"] for n in range(count)]
            for _ in range(rng.randint(1, 3)):
                first = rng.randrange(pages)
                end = min(pages, first + rng.choice([1, 3, self.thp, 3 * self.thp]))
                keys[first:end] = ["hole"] * (end - first)
            spec["contents"] = [[key, 1, 0] for key in keys]
        elif rng.random() < 0.2:  # duplicates side by side
            first, end = sorted(rng.sample(range(pages + 1), 2))
            keys = [key + n * step for key, count, step in spec["contents"] for n in range(count)]
            keys[first:end] = [self.pool[n % len(self.pool)] for n in range(end - first)]
            spec["contents"] = [[key, 1, 0] for key in keys]
        if rng.random() < 0.2:
            spec["touched_fraction"] = rng.choice([0, 0.1, 0.5, 0.9])
        if rng.random() < 0.3:
            more = rng.choice([1, self.thp, 5 * self.thp + 1, 40 * self.thp])
            more = more // self.thp * self.thp if self.orders else more
            spec["pages"] += more
            spec["contents"] += [["hole", more, 0]] if more else []
            for name in ("mergeable", "thp"):
                if spec[name] and spec[name][-1][0] + spec[name][-1][1] == pages and rng.random() < 0.7:
                    spec[name][-1][1] += more
            if "orders" in spec and more:
                spec["orders"] = joined([*spec["orders"], [pages, more, 0]])
                spec["thp"] = [[first, count] for first, count, order in spec["orders"] if order == 9]

    def hugepages_enabled(self) -> dict[str, str]:
        orders = [order for order in range(2, 9) if 1 << order < self.thp]
        chosen = {order: self.rng.choice(["always", "never"]) for order in self.rng.sample(orders, len(orders) // 2)}
        chosen[self.rng.choice(orders)] = self.rng.choice(["always", "inherit", "madvise"])
        small = {str(4 << order): value for order, value in chosen.items()}
        return small | ({"2048": "never"} if self.rng.random() < 0.7 else {})

    def some_ranges(self, pages: int) -> list[list[int]]:
        borders = sorted(self.rng.sample(range(pages + 1), min(pages, self.rng.choice([2, 4]))))
        return [[start, end - start] for start, end in zip(borders[::2], borders[1::2], strict=True)]

    def contents(self, pages: int) -> list[list[int]]:
        """Runs of a content, as segments [first key, count, step]."""
        segments: list[list[int]] = []
        longest = self.rng.choice([1, 2, 2, 6])
        while pages:
            count = min(pages, self.rng.randint(1, longest))
            key = self.key()
            segments.append([key, count, 0 if key == 0 or self.rng.random() < 0.8 else 1])
            pages -= count
        return segments

    def key(self) -> int:
        if self.rng.random() < self.zero:
            return 0
        if self.rng.random() < self.unique:
            return self.rng.randrange(1, 1 << 63)
        return self.rng.choice(self.pool)

    # -- events -----------------------------------------------------------------------------------------------

    def events(self, clock: str, batches: int, passes: int, late: int) -> list[dict]:
        rng = self.rng
        count = rng.choice([0, 30, 60, 100, 150])
        moments: list[dict[str, int]] = [self.moment(clock, batches, passes) for _ in range(count)]
        if clock != "mixed":
            moments.sort(key=lambda moment: moment[clock])
        weights = {op: w for op, w in EVENT_WEIGHTS.items() if self.ordered or op not in ORDERED}
        if self.nodes > 1:
            weights["migrate"] *= 4
        if self.orders and not self.sizes:
            del weights["hugepage"]  # later births of folios of other sizes are not in a trace
        for op in ("khugepaged", "hugepage", "dontneed") if self.sizes else ():
            weights[op] *= 5
        if self.clocked:
            weights["khugepaged"] *= 4
        events: list[dict] = []
        for n in range(len(self.processes) if late else 0):
            first, size = (0, self.processes[n].pages) if rng.random() < 0.6 else self.range(self.processes[n])
            start = {"batch": 0} if rng.random() < 0.5 else {"batch": min(2, n)}
            events.append({"after": start, "op": "mergeable", "process": n, "page": first, "count": size})
        for moment in moments:
            drawn = self.strided(self.event(rng.choices(list(weights), list(weights.values()))[0]))
            events += [{"after": moment, **event} for event in drawn]
        if late and clock == "batch":
            events.sort(key=lambda event: event["after"]["batch"])
        return [event | {"result": None, "sample": None} for event in events]

    def moment(self, clock: str, batches: int, passes: int) -> dict[str, int]:
        if clock == "full_scan" or (clock == "mixed" and self.rng.random() < 0.5):
            return {"full_scan": self.rng.randint(1, passes)}
        return {"batch": self.rng.randint(0, batches - 1)}

    def range(self, process: Process) -> tuple[int, int]:
        """Some pages, a block, a part of one, or all."""
        kind = self.rng.random()
        if kind < 0.1:
            return 0, process.pages
        if kind < 0.35:
            first = self.rng.randrange(process.pages // self.thp) * self.thp
            return first, min(process.pages - first, self.thp * self.rng.randint(1, 2))
        first = self.rng.randrange(process.pages)
        return first, min(process.pages - first, self.rng.randint(1, max(1, self.thp)))

    def event(self, op: str) -> list[dict]:
        """The event, or the few that belong together; none if it can't be."""
        rng = self.rng
        if op == "set":
            return self.set()
        if op == "split_all":
            return [{"op": op}]
        if op == "sleep":
            return [{"op": op, "millisecs": rng.choice([100, 5000])}]
        if op == "shrink":
            holes = self.event("dontneed") + self.event("dontneed") if rng.random() < 0.6 else []
            return [*holes, {"op": op, "count": rng.choice([1, 2, 5, 100])}]
        if op == "khugepaged" and self.clocked and rng.random() < 0.7:
            return [{"op": "set", "knob": "khugepaged", "value": 1}, {"op": "sleep", "millisecs": 100}]
        if op == "khugepaged":
            n = rng.randrange(len(self.processes))  # where sizes are made, small pages come first, advice later
            whole = {"op": "hugepage", "process": n, "page": 0, "count": self.processes[n].pages}
            return [*([whole] if self.sizes else []), {"op": op, "full_scans": rng.choice([1, 1, 2])}]
        if op == "compact":
            return [{"op": op}]
        alive = [n for n, process in enumerate(self.processes) if process.alive]
        if not alive:
            return []
        n = rng.choice(alive)
        process = self.processes[n]
        if op == "fork":
            if len(alive) < 6:
                self.processes.append(process.fork())
                return [{"op": op, "process": n}, *(self.widow(n) if rng.random() < 0.4 else [])]
            return []
        if op == "exit":
            if len(alive) > 1 or rng.random() < 0.1:
                process.alive = False
                return [{"op": op, "process": n}]
            return []
        first, count = self.range(process)
        event = {"op": op, "process": n, "page": first, "count": count}
        if op == "munmap":
            process.holes |= set(range(first, first + count))
        elif op == "mremap":
            to = rng.randrange(process.pages)
            if rng.random() < 0.6:  # whole blocks
                first, to, count = first // self.thp * self.thp, to // self.thp * self.thp, self.thp
            count = min(count, process.pages - max(first, to))
            event |= {"page": first, "count": count, "to": to}
            process.holes |= {*range(first, first + count), *range(to, to + count)}  # to be sure
        elif op == "mmap":
            process.holes -= set(range(first, first + count))
            process.read_only -= set(range(first, first + count))
        elif op == "mprotect":
            event["prot"] = rng.choice([1, 3, 3])
            reached = set(process.before_hole(first, count))
            process.read_only = process.read_only | reached if event["prot"] == 1 else process.read_only - reached
        elif op in ("write", "read"):
            barred = process.holes | (process.read_only if op == "write" else set())
            legal = [page for page in range(first, first + count) if page not in barred]
            if not legal:
                return []
            event["page"] = legal[0]
            event["count"] = next((k for k, page in enumerate(legal) if page != legal[0] + k), len(legal))
            if op == "write":
                event["key"] = None if rng.random() < 0.3 else self.key()
        elif op == "migrate":
            event["node"] = rng.choice([None, *range(self.nodes)])
            event["huge"] = rng.choice([0, 1, 1])
            event = {k: v for k, v in event.items() if v is not None}
        elif op == "uffd":
            event["value"] = rng.choice([0, 1])
        elif op == "unpin":
            return [{"op": op, "process": n}]
        elif op == "merge_any":
            return [{"op": op, "process": n, "value": rng.choice([0, 1])}]
        elif op == "memory_failure":
            return [{"op": op, "process": n, "page": first}]
        elif op == "collapse":
            return self.collapse(n, event)
        elif op in ("free", "mlock") and rng.random() < 0.8:
            return self.whole_block(n, event)
        elif op in ("free", "pageout") and rng.random() < 0.6:
            return self.swap(n, event)
        return [event]

    def strided(self, events: list[dict]) -> list[dict]:
        """Sometimes an event happens only to a part of the pages or blocks of its range, or memory is touched first."""
        rng = self.more
        if rng.random() < 0.08:
            n = rng.randrange(len(self.processes))
            first = rng.randrange(self.processes[n].pages)
            count = rng.randint(1, min(self.processes[n].pages - first, 2 * self.thp))
            events = [*events, {"op": "touch", "process": n, "page": first, "count": count}]
        for event in events:
            if event.get("count", 0) > 1 and "page" in event and rng.random() < 0.06:
                event["every_nth"] = rng.choice([1, 2, 2, 3, 7])
                if rng.random() < 0.5:
                    event["share"] = rng.choice([0.0, 0.3, 0.7])
                if rng.random() < 0.3:
                    event["granularity"] = "2M"
        return events

    def collapse(self, n: int, event: dict) -> list[dict]:
        """MADV_COLLAPSE, mostly where it can succeed: whole blocks with MADV_HUGEPAGE and a writable entry (K4)."""
        rng, process = self.rng, self.processes[n]
        if rng.random() < 0.8:
            first = rng.randrange(process.pages // self.thp) * self.thp
            event |= {"page": first, "count": min(rng.randint(1, 3) * self.thp, process.pages - first)}
        events = [event]
        page = rng.randrange(event["page"], event["page"] + event["count"])
        if rng.random() < 0.7 and page not in process.holes | process.read_only:
            events.insert(0, {"op": "write", "process": n, "page": page, "count": 1, "key": self.key()})
        if rng.random() < 0.4 and not self.orders:
            events.insert(0, event | {"op": "hugepage"})
        if rng.random() < 0.3:
            events[-1] = {"op": "khugepaged", "full_scans": rng.choice([1, 1, 2])}
        return events

    def widow(self, n: int) -> list[dict]:
        """The child just born exits, and the parent, whose THPs may be cut before, writes again."""
        self.processes[-1].alive = False
        first, count = self.range(self.processes[n])
        cut = {"process": n, "page": first, "count": count, "op": self.rng.choice(["mergeable", "unmergeable"])}
        barred = self.processes[n].holes | self.processes[n].read_only
        write = [] if barred & {*range(first, first + count)} else [{**cut, "op": "write", "key": None}]
        return [cut, {"op": "exit", "process": len(self.processes) - 1}, *write]

    def whole_block(self, n: int, event: dict) -> list[dict]:
        """MADV_FREE or mlock of a whole block, perhaps a part that is treated otherwise, and the reclaim after it."""
        rng, process = self.rng, self.processes[n]
        first = rng.randrange(process.pages // self.thp) * self.thp
        event |= {"page": first, "count": self.thp}
        events, part = [event], rng.randrange(self.thp)
        few = {"process": n, "page": first + part, "count": rng.randint(1, self.thp - part)}
        if rng.random() < 0.5 and not {*range(first, first + self.thp)} & (process.holes | process.read_only):
            again = [{**event, "op": op} for op in ("munlock", "hugepage", "dontneed", "write")]
            events[:0] = again[:1] + again[2 if self.orders else 1 :]
            events[-2]["key"] = self.key()
        if event["op"] == "free":
            born = self.event("fork") if self.ordered and rng.random() < 0.3 else []
            return [*events[:-1], *born, event, {**event, "op": "pageout"}]
        if rng.random() < 0.7:
            events.append({"op": rng.choice(["munlock", "mergeable", "unmergeable", "mergeable"]), **few})
        return [*events, {"op": "set", "knob": "max_ptes_none", "value": 0}, {"op": "shrink", "count": 100}]

    def swap(self, n: int, event: dict) -> list[dict]:
        """What comes after a page was given up or swapped out: it is used again, shared by a fork, or goes for good."""
        rng = self.rng
        first, last = event["page"], event["page"] + event["count"] - 1
        events = [event]
        if event["op"] == "pageout" and self.ordered and rng.random() < 0.3:
            events += self.event("fork")
        users = [k for k, other in enumerate(self.processes) if other.alive and last < other.pages]
        for _ in range(rng.randint(1, 3)):
            user = rng.choice(users)
            page = rng.randint(first, last)
            barred = self.processes[user].holes | self.processes[user].read_only
            op = rng.choice(["read", "write", "pageout", "free"])
            if op in ("pageout", "free"):
                events.append({**event, "op": op, "process": user})
            elif not barred & set(range(page, last + 1)):
                key = {"key": None if rng.random() < 0.3 else self.key()} if op == "write" else {}
                events.append({"op": op, "process": user, "page": page, "count": last + 1 - page, **key})
        return events

    def set(self) -> list[dict]:
        rng = self.rng
        knob, values = rng.choice(
            [
                ("run", (0, 1, 2)),
                ("run", (0, 1, 2)),
                ("use_zero_pages", (0, 1)),
                ("smart_scan", (0, 1)),
                ("pages_to_scan", (1, 7, 30, 200)),
                ("max_page_sharing", (2, 3, 4, 8)),
                ("shrink_underused", (0, 1)),
                ("max_ptes_none", self.max_ptes_none),
                ("stable_node_chains_prune_millisecs", self.prune_millisecs),
                ("variant", VARIANTS),
            ]
        )
        sets = [{"op": "set", "knob": knob, "value": rng.choice(values)}]
        if knob == "run" and sets[0]["value"] != 1 and rng.random() < 0.9:
            if rng.random() < 0.5:
                sets.append({"op": "set", "knob": "max_page_sharing", "value": rng.choice((2, 3, 4, 8))})
            if rng.random() < 0.3:
                sets.append({"op": "set", "knob": "merge_across_nodes", "value": rng.choice((0, 1))})
            sets.append({"op": "set", "knob": "run", "value": 1})
        return sets


def joined(ranges: list[list[int]]) -> list[list[int]]:
    """Neighbouring [first, count, …] of the same kind become one."""
    out: list[list[int]] = []
    for first, count, *kind in ranges:
        if out and out[-1][0] + out[-1][1] == first and out[-1][2:] == kind:
            out[-1][1] += count
        else:
            out.append([first, count, *kind])
    return out
