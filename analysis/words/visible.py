"""Names made harmless: they come from files and from other people's models.

A name must not hide a part of itself, nor turn the text around it backwards: control characters get a symbol. HTML
escaping is the template's; what Markdown would take for markup is escaped here. Knows strings, lists and dictionaries,
nothing of what they mean.
"""

import unicodedata
from collections.abc import Callable
from typing import Any

CONTROL_PICTURES = 0x2400  # U+2400 onward holds a symbol for each of U+0000 … U+001F, and U+2421 that of DELETE
MARKS = str.maketrans({"<": "&lt;", ">": "&gt;", "|": "\\|"})  # of Markdown
HIDDEN = {"Cc", "Cf", "Zl", "Zp", "Cs"}  # controls, formats such as bidi overrides, line ends, lone surrogates


def visible(value: Any) -> Any:
    """The same value with every invisible character of its texts replaced by a symbol, ␀ for U+0000."""
    return with_texts(value, shown)


def in_markdown(value: Any) -> Any:
    """The same value with its texts visible, and escaped where they would be tags or end a table's cell."""
    return with_texts(value, lambda text: shown(text).translate(MARKS))


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with `change` made to every text in it, the names of fields aside."""
    if isinstance(value, str):
        return change(value)
    if value is None or isinstance(value, float | int):  # most of what a report holds
        return value
    if isinstance(value, dict):
        return {name: with_texts(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([with_texts(one, change) for one in value])
    return value


def shown(text: str) -> str:
    """A text with every invisible character replaced by a symbol."""
    return text if text.isascii() and text.isprintable() else "".join(map(symbol, text))


def symbol(character: str) -> str:
    """What stands for one character: itself when it can be seen."""
    if unicodedata.category(character) not in HIDDEN:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(CONTROL_PICTURES + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
