"""Records that lie in an object store, brought to a temporary folder for as long as a report takes.

    s3://bucket/mine      a prefix of a bucket; also gs://, with the provider's own environment variables for
                          credentials
                          https://arrow.apache.org/docs/python/filesystems.html

Only what a report reads is brought. Knows names, not contents; `records` checks these as it does in any folder.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from analysis.read.contract import COMMIT, FAILED, ROWS, RecordsError

CREDENTIALS = re.compile(r"^[^?]*@|[?&][^=&]*(key|secret|token|password)[^=&]*=", re.IGNORECASE)
AT_ONCE = 16  # files on their way; each waits for the store far longer than for this machine


@contextmanager
def at_hand(where: str) -> Iterator[Path]:
    """The folder that `where` names, or for a URL a folder with a copy, which is removed afterwards.

    Raises RecordsError, naming the URL, if it holds credentials or the store does not answer.
    """
    if "://" not in where:
        yield Path(where)
        return
    if CREDENTIALS.search(where):
        remedy = "give them in the environment, such as AWS_ACCESS_KEY_ID"
        raise RecordsError(f"--records: the address holds credentials; {remedy}")
    with tempfile.TemporaryDirectory(prefix="kvstream-") as temporary:
        folder = Path(temporary, re.split(r"[?#]", where)[0].rstrip("/").rpartition("/")[2] or "records")
        folder.mkdir()
        try:
            bring(where, folder)
        except (ValueError, OSError) as problem:
            why = (str(problem).splitlines() or [type(problem).__name__])[0][:200]
            remedy = "check the address, the network and the credentials in the environment"
            raise RecordsError(f"--records: '{where}' could not be read ({why}); {remedy}") from None
        yield folder


def bring(where: str, folder: Path) -> None:
    """Copy what a report reads: the sweep's plan, commit records, rows, and errors of failed cells."""
    store, prefix = fs.FileSystem.from_uri(where)
    found = store.get_file_info(fs.FileSelector(prefix, allow_not_found=True))
    names = [entry.base_name for entry in found if entry.is_file]
    wanted = [
        one for one in names if one == "sweep.json" or any(kind.fullmatch(one) for kind in (COMMIT, ROWS, FAILED))
    ]

    def copy(name: str) -> None:
        source, target = f"{prefix.rstrip('/')}/{name}", folder / name
        # The error of a cell that has since succeeded may be gone by now.
        with suppress(FileNotFoundError), store.open_input_stream(source) as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(copy, wanted))
