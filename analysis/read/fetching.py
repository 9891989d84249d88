"""Records that lie in an object store, brought to a temporary folder for as long as a report takes.

    s3://bucket/mine      a prefix of a bucket; also gs://, with the provider's own environment variables for
                          credentials
                          https://arrow.apache.org/docs/python/filesystems.html

Only what a report reads is brought: the sweep's plan, commit records and their Parquet files, errors of failed cells.
Knows names, not contents; `records` checks these as it does in any folder.
"""

import atexit
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pyarrow import fs

from analysis.read.contract import COMMIT, FAILED, ROWS, RecordsError

T = TypeVar("T")
CREDENTIALS = re.compile(r"^[^?]*@|[?&][^=&]*(key|secret|token|password)[^=&]*=", re.IGNORECASE)
ANSWER_S = 30.0  # a store that is silent for so long is not there
AT_ONCE = 16  # files on their way; each waits for the store far longer than for this machine


@contextmanager
def at_hand(where: str) -> Iterator[Path]:
    """The folder that `where` names, or for a URL a folder with a copy, which is removed afterwards.

    Raises RecordsError, naming the URL, if it holds credentials, the store does not answer, or there are no records.
    """
    if not re.match(r"[a-z][a-z0-9+.-]*://", where, re.IGNORECASE):
        yield Path(where)
        return
    if CREDENTIALS.search(where):
        raise RecordsError(
            "--records: the address holds credentials; give them in the environment, such as AWS_ACCESS_KEY_ID"
        )
    try:
        store, prefix, names = in_time(lambda: listed(where))
    except (ValueError, OSError) as problem:
        raise RecordsError(
            f"--records: no answer from '{where}' ({first_line(problem)}); check the address, the network and the "
            "credentials in the environment"
        ) from None
    wanted = needed(names)
    if not wanted:
        raise RecordsError(f"--records: no records at '{where}'; pass a folder or an address that a sweep wrote to")
    with tempfile.TemporaryDirectory(prefix="kvstream-") as temporary:
        folder = Path(temporary, prefix.rstrip("/").rpartition("/")[2] or "records")
        folder.mkdir()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name: bring(store, f"{prefix.rstrip('/')}/{name}", folder / name), wanted))
        except OSError as problem:
            raise RecordsError(
                f"--records: '{where}' could not be read to the end ({first_line(problem)}); run the report again"
            ) from None
        yield folder


def listed(where: str) -> tuple[fs.FileSystem, str, list[str]]:
    """The store of a URL, the path in it, and the names of the files there."""
    store, prefix = fs.FileSystem.from_uri(where)
    found = store.get_file_info(fs.FileSelector(prefix, allow_not_found=True))
    return store, prefix, sorted(entry.base_name for entry in found if entry.is_file)


def needed(names: list[str]) -> list[str]:
    """Of the files of a records folder those that a report reads: rows only of cells with a commit record."""
    commits = [name for name in names if COMMIT.fullmatch(name)]
    committed = {name.removesuffix(".json") for name in commits}
    rows = [name for name in names if ROWS.fullmatch(name) and name.partition(".")[0] in committed]
    failures = [name for name in names if FAILED.fullmatch(name)]
    return [*commits, *rows, *failures, *({"sweep.json"} & set(names))]


def bring(store: fs.FileSystem, source: str, target: Path) -> None:
    """Copy one file, unless it is gone by now, as is the error of a cell that has since succeeded."""
    with suppress(FileNotFoundError), store.open_input_stream(source) as stream, target.open("wb") as file:
        shutil.copyfileobj(stream, file)


def in_time(question: Callable[[], T]) -> T:
    """The answer, or its exception, or OSError after ANSWER_S; the question is left to its own then."""
    answer: list[T] = []
    problem: list[BaseException] = []

    def ask() -> None:
        try:
            answer.append(question())
        except BaseException as raised:
            problem.append(raised)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    if problem:
        raise problem[0]
    if not answer:
        # Leaving in the usual way would wait a minute more for what is on its way; nothing of it is wanted.
        atexit.register(os._exit, 2)
        raise OSError(f"silent for {ANSWER_S:g} s")
    return answer[0]


def first_line(problem: Exception) -> str:
    """What went wrong, in a line."""
    text = str(problem).strip()
    return text.splitlines()[0][:200] if text else type(problem).__name__
