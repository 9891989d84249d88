"""What the engine found out about a machine, such as that it lacks a kernel: printed once, and kept to be passed on.

A sweep's workers print where nobody looks, so what they noted goes to the driver with what they finished.
"""

from __future__ import annotations

_told: set[str] = set()
_new: list[str] = []


def note(line: str) -> None:
    """Print a line, if this process has not done so yet, and keep it."""
    if line not in _told:
        _told.add(line)
        _new.append(line)
        print(line, flush=True)


def first_line(error: object) -> str:
    """The reason of an error, in a line."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__


def new_notes() -> tuple[str, ...]:
    """What was noted since this was asked last."""
    lines = tuple(_new)
    _new.clear()
    return lines
