"""What the benches must show: each measured number beside its limit, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Goal", "told"]


@dataclass(frozen=True)
class Goal:
    """A number that was measured, and its limit: the most that it may be, or the least."""

    what: str
    measured: float
    limit: float
    least: bool = False

    @property
    def kept(self) -> bool:
        return self.measured >= self.limit if self.least else self.measured <= self.limit


def told(goals: Sequence[Goal]) -> int:
    """Print the table, as Markdown; exit status 1 if a limit is missed."""
    if goals:
        print("\n| goal | measured | limit | kept |\n|---|---|---|---|")
    for goal in goals:
        bound = f"{'≥' if goal.least else '≤'} {goal.limit:g}"
        print(f"| {goal.what} | {float(f'{goal.measured:.3g}'):,g} | {bound} | {'yes' if goal.kept else '**no**'} |")
    return int(not all(goal.kept for goal in goals))
