"""How the values of flags are read: comma lists without spaces or quotes, as `ray submit` joins arguments unquoted.

Each function turns a flag's text into a value, or raises what argparse shows in one line.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import TypeVar

from kvstream.grid.axes import MOST
from kvstream.policies import POLICIES, Policy, parse_policy

T = TypeVar("T")


def policies(text: str) -> tuple[str | Policy, ...]:
    """Read names and whole labels, split at the commas outside parentheses; a label with values becomes its policy."""
    entries: list[str] = [""]
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += character
    try:
        return tuple(parse_policy(entry) if "(" in entry else _known(entry) for entry in entries)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _known(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"{name!r} is unknown; choose among {', '.join(POLICIES)}")
    return name


def listed(what: str, convert: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Make a reader of comma lists of `what`, whose entries `convert` reads."""

    def parse(text: str) -> tuple[T, ...]:
        entries = text.split(",")
        if not all(entries):
            raise argparse.ArgumentTypeError(f"{_short(text)} is not valid; give a comma list of {what}")
        return tuple(convert(entry) for entry in entries)

    return parse


WORDS = listed("names, such as a,b", str)
NUMBERS = listed("whole numbers, such as 4,8", lambda text: count(text))
DECIMALS = listed("numbers, such as 0.5,0.7", lambda text: decimal(text))


def none_or(parse: Callable[[str], tuple[T, ...]]) -> Callable[[str], tuple[T, ...]]:
    """Make a reader that also takes `none`, an empty list."""
    return lambda text: () if text == "none" else parse(text)


def one(parse: Callable[[str], T]) -> Callable[[str], tuple[T]]:
    """Make a reader of a single value for an axis whose values are lists themselves."""
    return lambda text: (parse(text),)


def count(text: str) -> int:
    """Read a whole number of 0 or more."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number; write it in digits, such as 8")
    if len(text) > 4000 or int(text) > MOST:  # Python itself reads no more than 4,300 digits
        raise argparse.ArgumentTypeError(f"{_short(text)} is too large; give {MOST:,} or less")
    return int(text)


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    if (number := count(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; give 1 or more")
    return number


def decimal(text: str) -> float:
    """Read a number."""
    if not re.fullmatch(r"-?[0-9]*\.?[0-9]+(e-?[0-9]+)?|-?inf|nan", text):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a number; write it in digits, such as 0.7")
    return float(text)


def place(text: str) -> str:
    """Read a folder or an address; what no folder can be is refused before anything is computed for it."""
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{_short(text)} holds characters that cannot be shown; give another name")
    above = text
    while above and "://" not in text and not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.lexists(above) and not os.path.isdir(above):
        raise argparse.ArgumentTypeError(f"{_short(text)} cannot be a folder, {above!r} is a file; give another name")
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:99] + "…")
