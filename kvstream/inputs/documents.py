"""Documents to evaluate on: the first token ids of as many documents of a source as a sweep asks for.

Knows no models, only a tokenizer; where texts come from is `text_sources`' business. Loading the documents *is* the
preflight check: it takes a second, loads no model, and one error says what is needed and what there is.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstream.inputs import text_sources
from kvstream.inputs.text_sources import Text

# Tokens beyond those needed, so that where the text is cut cannot reach them.
SLACK = 64
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Document:
    """A document's first tokens. token_ids: (T,), int32. sha256: of their little-endian bytes.

    bos: whether they begin with the tokenizer's BOS token; there is no other special one. join_rows: how it was read.
    """

    name: str
    token_ids: np.ndarray
    sha256: str
    bos: bool = False
    join_rows: bool = False


def load_documents(
    spec: str,
    *,
    documents: int | None = None,
    names: Sequence[str] | None = None,
    tokens: int,
    tokenizer: Any,
    bos: str = "auto",
    join_rows: bool = False,
) -> list[Document]:
    """The first `tokens` token ids of `documents` documents, or of those called `names`, or of all; needs no model.

    bos: whether a BOS token comes first, as one of them: `on`, `off`, or `auto`, as the tokenizer does by itself.
    join_rows: see `text_sources.read`. Order is the source's, or that of `names`. Documents that are too short are
    passed over, with a warning in the log; a named one is an error. Names are made unique. `ValueError` with field,
    value and remedy for an unknown source, a missing, empty or binary file, a missing column, a BOS token that is not
    there, and too few documents or tokens, then with needed and available counts.
    """
    _check_request(documents, names, tokens)
    count = documents if names is None else len(names)
    found: dict[str, Document] = {}
    short: dict[str, int] = {}
    others: list[str] = []
    first = bos_ids(tokenizer, bos)
    for name, text in _unique(text_sources.read(spec, join_rows=join_rows)):
        if names is not None and name not in names:
            others.append(name)
            continue
        ids = np.concatenate((first, first_tokens(tokenizer, text, tokens - len(first))))
        if len(ids) < tokens:
            short[name] = len(ids)
        else:
            digest = hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
            found[name] = Document(name, ids, digest, len(first) > 0, join_rows)
        if len(found) == count:
            break
    if names is not None:
        _check_named(spec, names, found, short, others, tokens)
        return [found[name] for name in names]
    _check_enough(spec, documents, found, short, tokens, join_rows)
    if short:
        log.warning("text: %d documents of %r passed over, %s", len(short), spec, _too_short(short, tokens))
    return list(found.values())


def bos_ids(tokenizer: Any, bos: str) -> np.ndarray:
    """The id that texts begin with, shape (1,), int32, or (0,): see `load_documents`."""
    token = tokenizer.bos_token_id
    if bos == "on" and token is None:
        raise ValueError(
            f"bos: 'on' asked, but the tokenizer of {tokenizer.name_or_path!r} has no BOS token; choose auto or off"
        )
    starts = [tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"][:1] for special in (True, False)]
    adds = bos == "on" or (bos == "auto" and token is not None and starts[0] == [token] != starts[1])
    return np.asarray([token] if adds else [], dtype=np.int32)


def first_tokens(tokenizer: Any, text: Text, tokens: int) -> np.ndarray:
    """The first `tokens` ids of `tokenizer(text)`, shape (≤ tokens,), int32, without special tokens, reading little
    more text than needed.

    A cut changes the tokens around it. So ids are taken only when `SLACK` more follow them and half as much text gives
    the same.
    """
    length, before = 6 * (tokens + SLACK), None
    while True:
        piece = text[:length] if isinstance(text, str) else text.first(length)
        ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        whole = len(piece) < length
        if whole or (before is not None and len(before) >= tokens + SLACK and ids[:tokens] == before[:tokens]):
            return np.asarray(ids[:tokens], dtype=np.int32)
        length, before = 2 * length, ids


def _unique(pairs: Iterable[tuple[str, Text]]) -> Iterator[tuple[str, Text]]:
    """The same pairs, a name that was there before followed by (2), (3) …"""
    used: set[str] = set()
    for name, text in pairs:
        unique, number = name, 1
        while unique in used:
            number += 1
            unique = f"{name} ({number})"
        used.add(unique)
        yield unique, text


def _check_request(documents: int | None, names: Sequence[str] | None, tokens: int) -> None:
    if tokens < 2:
        raise ValueError(f"lengths: {tokens} tokens leave nothing to predict; ask for 2 or more")
    if documents is not None and documents < 1:
        raise ValueError(f"documents: {documents} asked; ask for 1 or more")
    if names is not None and documents is not None:
        raise ValueError(f"documents: both a count ({documents}) and names were given; give one of them")
    if names is not None and (not names or len(set(names)) < len(names)):
        raise ValueError(f"documents: {list(names)!r} names none, or one twice; name each document once")


def _check_named(
    spec: str,
    names: Sequence[str],
    found: dict[str, Document],
    short: dict[str, int],
    others: list[str],
    tokens: int,
) -> None:
    if unknown := [name for name in names if name not in found and name not in short]:
        listed = ", ".join(map(repr, others[:12])) + (" …" if len(others) > 12 else "")
        raise ValueError(f"documents: {unknown[0]!r} is not in {spec!r}; there are {listed}")
    if short:
        raise ValueError(f"documents: {_too_short(short, tokens)}; ask for other documents or shorter lengths")


def _check_enough(
    spec: str, documents: int | None, found: dict[str, Document], short: dict[str, int], tokens: int, joined: bool
) -> None:
    if len(found) < (documents or 1):
        longest = f", the longest of the others has {max(short.values())}" if short else ""
        several = sum(short.values()) > max(short.values(), default=0)
        lines = several and not found and not joined and text_sources.has_rows(spec)
        remedy = "join rows of a line each with --join-rows, or " if lines else ""
        raise ValueError(
            f"documents: {documents or 1} asked, only {len(found)} in {spec!r} have at least {tokens} tokens{longest}; "
            f"{remedy}ask for fewer documents or shorter lengths"
        )


def _too_short(short: dict[str, int], tokens: int) -> str:
    listed = ", ".join(f"{name!r} has {length}" for name, length in list(short.items())[:5])
    return f"shorter than {tokens} tokens: {listed}{' …' if len(short) > 5 else ''}"
