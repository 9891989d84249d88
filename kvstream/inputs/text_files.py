"""Local files of text: which ones a name stands for, and the rows in them: .txt (one row), .jsonl and .parquet.

A row has a text and may have a title. What is no text is refused: binary files, halves of characters, columns that hold
something else.
"""

import functools
import glob
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, parquet

log = logging.getLogger(__name__)
SUFFIXES = (".txt", ".jsonl", ".parquet")
TITLES = ("short_book_title", "title", "name")
ROWS_AT_ONCE = 64  # of a Parquet file, some of whose rows are books
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell halves of characters, which no tokenizer can read
Row = tuple[dict[str, Any], Sequence[str]]  # the columns that are read, and the names of all there are


def local_files(spec: str, kinds: str) -> tuple[list[Path], str]:
    """The files of one name, of all below a folder, or of a glob, in order; and the text column, which may follow a
    colon. `ValueError` if there are none; kinds: what could be given instead.
    """
    path, column = spec, "text"
    files = _expand(path)
    if not files and ":" in spec:
        path, _, column = spec.rpartition(":")
        files = _expand(path)
    if not files:
        raise ValueError(
            f"text: {spec!r} is no file, folder or glob with {', '.join(SUFFIXES)} files in it; give {kinds}"
        )
    if files[0].suffix.lower() not in SUFFIXES:
        raise ValueError(f"text: {str(files[0])!r} is of no known kind; give one of {', '.join(SUFFIXES)}")
    return files, column


def _expand(path: str) -> list[Path]:
    """The files that a path, folder or glob stands for. What is hidden in a folder is passed over, and named once."""
    # os.path answers False to names no file can have; pathlib raises.
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [Path(path)]  # whatever its suffix
    found = [path] if os.path.isdir(path) else glob.glob(path, recursive=True)
    files = {name for name in found if os.path.isfile(name)}
    hidden = {*glob.glob(path, recursive=True, include_hidden=True)} - {*found, path}
    for folder in (name for name in found if os.path.isdir(name)):
        for here, folders, names in os.walk(folder, onerror=_refuse):
            hidden.update(os.path.join(here, name) for name in (*folders, *names) if name.startswith("."))
            folders[:] = [name for name in folders if not name.startswith(".")]
            if links := [name for name in folders if os.path.islink(os.path.join(here, name))]:
                raise ValueError(f"text: {links[0]!r} in {here!r} is a link to a folder; name that folder instead")
            files.update(os.path.join(here, name) for name in names if not name.startswith("."))
    if passed_over := sorted(name for name in hidden if os.path.isdir(name) or _is_ours(name)):
        listed = ", ".join(map(repr, passed_over[:5])) + (" …" if len(passed_over) > 5 else "")
        _warn_once(f"text: what is hidden in {path!r} is passed over: {listed}")
    return sorted(Path(name) for name in files if _is_ours(name))


def _is_ours(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


@functools.cache
def _warn_once(message: str) -> None:
    """A source is read more than once: to count its documents, and by each model's tokenizer."""
    log.warning(message)


def _refuse(error: OSError) -> None:
    raise ValueError(f"text: {error.filename!r} cannot be read ({error.strerror}); give another folder")


def read_rows(file: Path, column: str) -> Iterator[tuple[str | None, str]]:
    """Title, if it has one, and text of each row; `ValueError` for what is no text."""
    for row, columns in _read(file, column):
        text = row.get(column)
        if not isinstance(text, str):
            what = f"holds {type(text).__name__}, not text" if column in columns else "does not exist"
            raise ValueError(
                f"text: column {column!r} of {str(file)!r} {what}; there are {', '.join(map(repr, columns))}; "
                "write NAME:column for one of them"
            )
        title = next((row[key] for key in TITLES if isinstance(row.get(key), str) and row[key] and key != column), None)
        if "\0" in text:
            raise ValueError(f"text: {str(file)!r} is binary, it holds NUL bytes; give a UTF-8 text")
        if SURROGATE.search(text) or SURROGATE.search(title or ""):
            raise ValueError(f"text: {str(file)!r} holds half a character, such as \\ud800; give a UTF-8 text")
        yield title, text


def _read(file: Path, column: str) -> Iterator[Row]:
    if file.stat().st_size == 0:
        return
    kind = file.suffix.lower()
    try:
        if kind == ".txt":
            yield {"text": file.read_text(encoding="utf-8")}, ["text"]
        else:
            yield from _jsonl(file) if kind == ".jsonl" else _parquet(file, column)
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {str(file)!r} is binary or not UTF-8 ({error.reason}); give a UTF-8 text") from error
    except (OSError, ValueError, RecursionError, ArrowException) as error:
        raise ValueError(f"text: {str(file)!r} cannot be read ({error}); is it a whole {file.suffix} file?") from error


def _jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if not isinstance(row := json.loads(line), dict):
                raise ValueError(f"line {number} is no JSON object")
            yield row, list(row)


def _parquet(file: Path, column: str) -> Iterator[Row]:
    with parquet.ParquetFile(file) as opened:
        columns = opened.schema_arrow.names
        wanted = [name for name in columns if name in (column, *TITLES)]
        for batch in opened.iter_batches(ROWS_AT_ONCE, columns=wanted):
            yield from ((row, columns) for row in batch.to_pylist())
