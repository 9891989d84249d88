"""A folder of files from the Hugging Face Hub: out of the local cache without one network call, else downloaded, else one clear error.

Knows nothing of models or texts: the caller says which files it wants and when a folder is enough.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")
PREFLIGHT_S = 8.0
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


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
    field: str,
    remedy: str,
    check: Callable[[list[str]], None] = lambda names: None,
    deadline_s: float | None = None,
) -> Path:
    """The snapshot folder of `repo` at `revision`; its name is the commit.

    If the cached snapshot satisfies `enough` nothing is asked of the network. Otherwise the repository is listed within
    `PREFLIGHT_S`, `check` may refuse the listing, and the files that are `wanted` are downloaded, within `deadline_s` seconds if given.
    `ValueError`, in `field` and `remedy`'s words, if the hub refuses, does not answer in time or cannot be reached.
    """
    folder = cached(repo, revision, kind)
    if folder is not None and enough(folder):
        return folder
    import huggingface_hub

    try:
        info = within(
            PREFLIGHT_S,
            lambda: huggingface_hub.HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=PREFLIGHT_S / 2),
        )
        names = [file.rfilename for file in info.siblings or ()]
        check(names)
        download = lambda: huggingface_hub.snapshot_download(  # noqa: E731
            repo, repo_type=kind, revision=info.sha, allow_patterns=[name for name in names if wanted(name)]
        )
        return Path(download() if deadline_s is None else within(deadline_s, download))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{field}: {repo!r} at {revision!r} {_reason(error)}; {remedy}") from error


def cached(repo: str, revision: str, kind: Literal["model", "dataset"]) -> Path | None:
    """The snapshot folder in the local cache, complete or not, or None. Never touches the network."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)
        return None if partial is None else Path(partial)


def within(seconds: float, function: Callable[[], T]) -> T:
    """`function()`, or `TimeoutError` after `seconds`: the hub client retries and waits for longer than a user will."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "asks for a login with access to it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "does not exist: the repository has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "does not exist on the hub, or is private"
    if status is not None:
        return f"is not in the local Hugging Face cache and the hub answered {status}"
    return "is not in the local Hugging Face cache and the hub cannot be reached"
