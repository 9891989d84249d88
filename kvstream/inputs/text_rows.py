"""The rows of one text file, each with a title, if it has one, and a text: .txt (one row), .jsonl and .parquet.

What is no text is refused: binary files, halves of characters, columns that hold something else.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, parquet

TITLES = ("short_book_title", "title", "name")
ROWS_AT_ONCE = 64  # of a Parquet file, some of whose rows are books
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell halves of characters, which no tokenizer can read
Row = tuple[dict[str, Any], Sequence[str]]  # the columns that are read, and the names of all there are


def read_rows(file: Path, column: str) -> Iterator[tuple[str | None, str]]:
    """Title, if it has one, and text of each row; `ValueError` for what is no text."""
    for row, columns in _read(file, column):
        text = row.get(column)
        if not isinstance(text, str):
            what = f"holds {type(text).__name__}, not text" if column in columns else "does not exist"
            raise ValueError(
                f"text: column {column!r} of {str(file)!r} {what}; there are {', '.join(map(repr, columns))}"
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
    reader = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[file.suffix.lower()]
    try:
        yield from reader(file, column)
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {str(file)!r} is binary or not UTF-8 ({error.reason}); give a UTF-8 text") from error
    except (OSError, ValueError, RecursionError, ArrowException) as error:
        raise ValueError(f"text: {str(file)!r} cannot be read ({error}); is it a whole {file.suffix} file?") from error


def _read_txt(file: Path, column: str) -> Iterator[Row]:  # noqa: ARG001
    yield {"text": file.read_text(encoding="utf-8")}, ["text"]


def _read_jsonl(file: Path, column: str) -> Iterator[Row]:  # noqa: ARG001
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if not isinstance(row := json.loads(line), dict):
                raise ValueError(f"line {number} is no JSON object")
            yield row, list(row)


def _read_parquet(file: Path, column: str) -> Iterator[Row]:
    with parquet.ParquetFile(file) as opened:
        columns = opened.schema_arrow.names
        wanted = [name for name in columns if name in (column, *TITLES)]
        for batch in opened.iter_batches(ROWS_AT_ONCE, columns=wanted):
            yield from ((row, columns) for row in batch.to_pylist())
