"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write"]


def write(path: Path, content: bytes, *, to_stay: bool = False) -> None:
    """Under a temporary name in the same folder, which is made, then by a rename: nobody ever sees a part of it.

    With `to_stay` not even after the machine has lost its power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if to_stay:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
