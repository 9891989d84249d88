"""A folder of files from the Hugging Face Hub: out of the local cache, else downloaded, else one clear error.

Knows nothing of models or texts: the caller says which files it wants and when a folder is enough.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
PREFLIGHT_S = 7.0
STALL_S = 60.0  # a download of which nothing comes for so long is given up
abandoned: list[threading.Thread] = []  # what was given up and may still wait; see `grid.exits.leave`
# The hub's own rules for a repository; a revision becomes part of a path in its cache, so it may not lead elsewhere.
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(
    rf"(?![^@]*--)(?!.*\.\.)(?P<repo>{_PART}/{_PART}(?<!\.git))(?:@(?P<revision>\w[\w.-]*(?:/[\w.-]+)*))?", re.ASCII
)


def split_id(spec: str) -> tuple[str, str | None] | None:
    """`owner/name` or `owner/name@revision` as (repository, revision), or None if `spec` is neither."""
    match = _ID.fullmatch(spec)
    return (match["repo"], match["revision"]) if match else None


def fetch(
    repo: str,
    revision: str,
    *,
    kind: Literal["model", "dataset"],
    wanted: Callable[[str], bool],
    enough: Callable[[Path], bool],
    check: Callable[[list[str]], None],
    field: str,
    remedy: str,
    quick: bool = False,
) -> Path:
    """The snapshot folder of `repo` at `revision`; its name is the commit.

    If the cached snapshot satisfies `enough` nothing is asked of the network. Otherwise the repository is listed,
    `check` may refuse the listing, and the files that are `wanted` are downloaded. The listing, the files' sizes and
    their first byte, or if `quick` all of them, must come within `PREFLIGHT_S`. `ValueError`, in `field` and `remedy`'s
    words, if the hub refuses, stays silent or cannot be reached.
    """
    folder = cached(repo, revision, kind)
    if folder is not None and enough(folder):
        return folder
    import huggingface_hub

    api = huggingface_hub.HfApi()
    end_s = time.monotonic() + PREFLIGHT_S

    def refused(error: Exception) -> ValueError:
        return ValueError(f"{field}: {repo!r} at {revision!r} {_reason(error)}; {remedy}")

    try:
        info = within(PREFLIGHT_S, lambda: api.repo_info(repo, revision=revision, repo_type=kind, timeout=PREFLIGHT_S))
        commit, names = str(info.sha), [file.rfilename for file in getattr(info, "siblings", None) or ()]
    except Exception as error:
        raise refused(error) from error
    # The commit and the names become paths in the cache.
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or any(".." in name or name.startswith("/") for name in names):
        raise refused(TypeError("no listing"))
    check(names)

    def download(dry_run: bool = False) -> Any:
        patterns = [name for name in names if wanted(name)]
        return huggingface_hub.snapshot_download(
            repo, repo_type=kind, revision=commit, allow_patterns=patterns, dry_run=dry_run
        )

    try:
        with _told_in_one_line(bars=False):
            first = within(end_s - time.monotonic(), lambda: download(dry_run=not quick))
        if quick:
            folder = Path(first)
        else:
            with _told_in_one_line(bars=True):
                left_s = end_s - time.monotonic()
                folder = Path(within(STALL_S, download, lambda: _cached_bytes(repo, kind), first_s=left_s))
        if revision != commit:  # else the name would have to be asked for again
            reference = folder.parent.parent / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
        return folder
    except Exception as error:
        raise refused(error) from error


def cached(repo: str, revision: str, kind: Literal["model", "dataset"]) -> Path | None:
    """The snapshot folder in the local cache, complete or not, or None. Never touches the network."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)
        return None if partial is None else Path(partial)


def within(
    seconds: float,
    function: Callable[[], T],
    progress: Callable[[], object] = lambda: None,
    first_s: float | None = None,
) -> T:
    """`function()`, or `TimeoutError` if `seconds` pass in which neither it returns nor `progress()` changes.

    first_s: for how long it may do neither at first, where that is less.

    The hub client itself retries and waits for longer than a user will: for an hour, where a server asks it to.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seen, end_s = progress(), time.monotonic() + (seconds if first_s is None else first_s)
    while thread.is_alive() and (left_s := end_s - time.monotonic()) > 0:
        thread.join(min(left_s, 1.0))
        if (now := progress()) != seen:
            seen, end_s = now, time.monotonic() + seconds
    if failure:
        raise failure[0]
    if not outcome:
        abandoned.append(thread)
        raise TimeoutError(f"no result within {seconds:.1f} s")
    return outcome[0]


def _cached_bytes(repo: str, kind: str) -> list[tuple[str, int]]:
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE, f"{kind}s--{repo.replace('/', '--')}", "blobs")
    files = [(file.name, file.stat()) for file in blobs.glob("*")]
    return [(name, status.st_mtime_ns) for name, status in files if status.st_size]


@contextmanager
def _told_in_one_line(*, bars: bool) -> Iterator[None]:
    """Keep the client's warnings, one per retry, to itself, and unless `bars` its progress bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, shown = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if not bars:
        disable_progress_bars()
    yield
    # Not after an error: what was given up goes on retrying in its thread.
    logging.set_verbosity(level)
    if shown:
        enable_progress_bars()


def _reason(error: BaseException) -> str:
    from huggingface_hub import errors

    absent = "is not in the local Hugging Face cache and the hub"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "asks for a login with access to it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "does not exist: the repository has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "does not exist on the hub, or is private"
    if status is not None:
        return f"{absent} answered {status}"
    if error.__cause__ is not None:
        return _reason(error.__cause__)
    if isinstance(error, (TypeError, ValueError, AttributeError, KeyError)):
        return f"{absent} answered something that is no listing of files"
    late = isinstance(error, TimeoutError) or type(error).__name__.endswith("Timeout")
    return f"{absent} did not deliver in time" if late else f"{absent} cannot be reached"
