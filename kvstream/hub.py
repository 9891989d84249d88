"""A folder of files from the Hugging Face Hub: out of the local cache, else downloaded, else one clear error.

Knows nothing of models or texts: the caller says which files it wants and when a folder is enough.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")
PREFLIGHT_S = 7.0
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
    check: Callable[[list[str]], None],
    field: str,
    remedy: str,
    quick: bool = False,
) -> Path:
    """The snapshot folder of `repo` at `revision`; its name is the commit.

    If the cached snapshot satisfies `enough` nothing is asked of the network. Otherwise the repository is listed,
    `check` may refuse the listing, and the files that are `wanted` are downloaded. The listing, and if `quick` the
    download too, must end within `PREFLIGHT_S`. `ValueError`, in `field` and `remedy`'s words, if the hub refuses,
    stays silent or cannot be reached.
    """
    folder = cached(repo, revision, kind)
    if folder is not None and enough(folder):
        return folder
    import huggingface_hub

    api = huggingface_hub.HfApi()
    end_s = time.monotonic() + PREFLIGHT_S
    try:
        info = within(PREFLIGHT_S, lambda: api.repo_info(repo, revision=revision, repo_type=kind, timeout=PREFLIGHT_S))
        names = [file.rfilename for file in getattr(info, "siblings", None) or ()]
        check(names)

        def download() -> str:
            return huggingface_hub.snapshot_download(
                repo, repo_type=kind, revision=info.sha, allow_patterns=[name for name in names if wanted(name)]
            )

        return Path(within(end_s - time.monotonic(), download) if quick else download())
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
    thread.join(max(0.0, seconds))
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no result within {seconds:.1f} s")
    return outcome[0]


def _reason(error: Exception) -> str:
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
    return f"{absent} did not deliver in time" if isinstance(error, TimeoutError) else f"{absent} cannot be reached"
