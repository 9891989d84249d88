"""Documents to evaluate on: the first token ids of as many documents of a source as a sweep asks for.

Knows no models, only a tokenizer; where texts come from is `text_sources`' business. Loading the documents *is* the
preflight check: it takes a second, loads no model, and one error says what is needed and what there is.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstream.inputs import recall, text_sources
from kvstream.inputs.text_sources import Text

# Tokens beyond those needed, so that where the text is cut cannot reach them.
SLACK = 64
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Document:
    """A document's first tokens. token_ids: (T,), int32. sha256: of their little-endian bytes.

    bos: whether they begin with the tokenizer's BOS token; there is no other special one. join_rows: how it was read.
    answers: by position, to the questions in it; none but of `recall:`. words: the text of some of its tokens.
    """

    name: str
    token_ids: np.ndarray
    sha256: str
    bos: bool = False
    join_rows: bool = False
    answers: tuple[recall.Answer, ...] = ()
    words: Callable[[np.ndarray], str] | None = None


def load_documents(
    spec: str,
    *,
    documents: int | None = None,
    name: str | None = None,
    tokens: int,
    tokenizer: Any,
    bos: str = "auto",
    join_rows: bool = False,
) -> list[Document]:
    """The first `tokens` token ids of `documents` documents, or of the one called `name`, or of all; needs no model.

    bos: whether a BOS token comes first, as one of them: `on`, `off`, or `auto`, as the tokenizer does by itself.
    join_rows: see `text_sources.read`. Documents that are too short are passed over, with a warning in the log. A name
    that was there before is followed by (2), (3) … `ValueError` with field, value and remedy for an unknown source, a
    missing, empty or binary file, a missing column, a BOS token that is not there, and too few documents or tokens,
    then with needed and available counts.
    """
    count = documents if name is None else 1
    found: list[Document] = []
    short: dict[str, int] = {}
    used: Counter[str] = Counter()
    first = bos_ids(tokenizer, bos)
    kind, _ = recall.split(spec)
    for title, text in text_sources.read(spec, join_rows=join_rows):
        called = title
        while used[called]:
            used[title] += 1
            called = f"{title} ({used[title]})"
        used[called] += 1
        if name not in (None, called):
            continue
        ids = np.concatenate((first, first_tokens(tokenizer, text, tokens - len(first))))
        if len(ids) < tokens:
            short[called] = len(ids)
        else:
            ids, answers = recall.planted(kind, ids, tokenizer, called) if kind else (ids, ())
            digest = hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
            found.append(Document(called, ids, digest, len(first) > 0, join_rows, answers, tokenizer.decode))
        if len(found) == count:
            break
    _check_enough(spec, name, documents or 1, found, short, tokens, join_rows)
    if short:
        listed = ", ".join(f"{title!r} has {length}" for title, length in list(short.items())[:5])
        more = " …" if len(short) > 5 else ""
        log.warning(
            f"text: {len(short)} documents of {spec!r} passed over, shorter than {tokens} tokens: {listed}{more}"
        )
    return found


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


def _check_enough(
    spec: str, name: str | None, asked: int, found: list[Document], short: dict[str, int], tokens: int, joined: bool
) -> None:
    if len(found) >= asked:
        return
    if name is not None and not short:
        raise ValueError(f"documents: {name!r} is not in {spec!r}; was the text changed?")
    longest = max(short.values(), default=0)
    others = f", the longest of the others has {longest}" if short else ""
    lines = not found and not joined and sum(short.values()) > longest and text_sources.has_rows(spec)
    remedy = "join rows of a line each with --join-rows, or " if lines else ""
    raise ValueError(
        f"documents: {asked} asked, only {len(found)} in {spec!r} have at least {tokens} tokens{others}; "
        f"{remedy}ask for fewer documents or shorter lengths"
    )
