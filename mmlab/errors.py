"""The one exception that tells a user about a mistake of theirs.

Everything in mmlab that checks what comes from outside (a parameter, a file, a size) raises :class:`UserError` with a
complete message: which parameter or file, which value, what is allowed, and what to do. The command line prints that
message alone and exits with status 2; a notebook shows it as the error's text.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked for, never a fault of the model. The message is complete in itself."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: in a notebook, too, the message is enough."""
        return [f"{type(self).__name__}: {self}"]


def unknown(what: str, name: object, known: Iterable[str], hint: str = "") -> str:
    """Sentence for a name that does not exist, with the nearest names that do.

    Examples
    --------
    >>> unknown("key", "pages_to_scna", ["pages_to_scan", "seed"])
    'unknown key "pages_to_scna": did you mean "pages_to_scan"?'
    >>> unknown("variant", "zzz", ["legacy", "mainline"])
    'unknown variant "zzz": it must be one of legacy, mainline'
    """
    known = list(known)
    near = get_close_matches(str(name), known, n=2, cutoff=0.6)
    if near:
        text = f'unknown {what} "{name}": did you mean {" or ".join(f"{chr(34)}{n}{chr(34)}" for n in near)}?'
    elif len(known) <= 30:
        text = f'unknown {what} "{name}": it must be one of {", ".join(known)}'
    else:
        text = f'unknown {what} "{name}"'
    return f"{text} {hint}".rstrip()
