"""The one exception that tells a user about a mistake of theirs.

Everything in mmlab that checks input (a parameter, a file, a size) raises `UserError` with the same four facts: which
parameter, which value, what is allowed, and the way out. The message is composed of them here and nowhere else. The
command line prints it and exits with status 2; a notebook shows it in place of a traceback.

>>> raise UserError(parameter="pages_to_scan", value=-1, allowed="at least 0 (pages)")
Traceback (most recent call last):
mmlab.errors.UserError: pages_to_scan = -1 is not allowed: it must be at least 0 (pages).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

KSM_COUNTERS = frozenset(
    """full_scans pages_scanned pages_skipped pages_shared pages_sharing pages_unshared pages_volatile ksm_zero_pages
    general_profit stable_node_chains stable_node_dups""".split()
)
"""Files of /sys/kernel/mm/ksm that tell something and take nothing: no parameters, though they are taken for some."""
MISSING = object()


class UserError(Exception):
    """A mistake in what was asked for, never a fault of the model.

    Parameters
    ----------
    problem
        What is wrong, by default "is not allowed": a clause without a full stop. One that begins with "is " continues
        "parameter = value"; any other stands after a colon.
    parameter, value
        The parameter (or file) and the given value. Without `value` the message names the parameter only.
    allowed
        What is allowed instead; follows "it must be".
    hint
        The way out: a sentence.
    where
        The file, list element or option in which the mistake was made; the message begins with it.
    """

    def __init__(
        self,
        problem: str = "",
        *,
        parameter: str = "",
        value: object = MISSING,
        allowed: str = "",
        hint: str = "",
        where: str = "",
    ) -> None:
        super().__init__(problem)
        self.problem, self.parameter, self.allowed, self.hint, self.where = problem, parameter, allowed, hint, where
        self.value = None if value is MISSING else value
        self.others: tuple[UserError, ...] = ()
        """Further mistakes that were found at the same time, each on a line of its own."""
        self._subject = parameter if value is MISSING else f"{parameter} = {value!r}"

    def __str__(self) -> str:
        subject, problem = self._subject, self.problem or "is not allowed"
        text = (" " if problem.startswith("is ") else ": ").join(filter(None, (subject, problem)))
        if self.allowed:
            text += f": it must be {self.allowed}"
        text = text if text.endswith((".", "?", "!")) else f"{text}."
        text = " ".join(filter(None, (f"{self.where}:" if self.where else "", text, self.hint)))
        return "\n".join((text, *map(str, self.others)))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback: in a notebook, too, the message is enough."""
        return [f"{type(self).__name__}: {self}"]


def unknown(what: str, name: object, known: Iterable[str], hint: str = "") -> UserError:
    """Return the error for a name that does not exist, with the nearest names that do.

    >>> str(unknown("key", "pages_to_scna", ["pages_to_scan", "seed"]))
    "unknown key 'pages_to_scna': did you mean 'pages_to_scan'?"
    >>> str(unknown("variant", "zzz", ["legacy", "mainline"]))
    "unknown variant 'zzz': it must be one of legacy, mainline."
    >>> str(unknown("parameter", "pages_shared", ["pages_to_scan"]))
    'pages_shared is a counter, not a parameter. `mmlab host` reads dumps.'
    """
    known = list(known)
    near = get_close_matches(str(name), known, n=2, cutoff=0.6)
    problem = f"unknown {what} {name!r}" + (f": did you mean {' or '.join(map(repr, near))}?" if near else "")
    error = UserError(problem, allowed="" if near or len(known) > 30 else f"one of {', '.join(known)}", hint=hint)
    if name in KSM_COUNTERS and what in ("control", "key", "knob", "parameter"):
        error = UserError("is a counter, not a parameter", parameter=str(name), hint="`mmlab host` reads dumps.")
    error.parameter, error.value = what, name
    return error


@contextmanager
def located(where: str | Path) -> Iterator[None]:
    """Name the place of a mistake (a file, an option) in every `UserError` that leaves this context."""
    try:
        yield
    except UserError as error:
        for each in (error, *error.others):
            if each.where != str(where):
                each.where = ": ".join(filter(None, (str(where), each.where)))
        raise
