"""A folder of files from the Hugging Face Hub: out of the local cache, else downloaded, else one clear error.

Knows nothing of models or texts: the caller says which files it wants and when a folder is enough. Timeouts and retries
are the client's own: HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT, ten seconds each.
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

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
) -> Path:
    """The snapshot folder of `repo` at `revision`; its name is the commit.

    If the cached snapshot satisfies `enough` nothing is asked of the network. Otherwise the repository is listed,
    `check` may refuse the listing, and the files that are `wanted` are downloaded. `ValueError`, in `field` and
    `remedy`'s words, if the hub refuses or cannot be reached.
    """
    folder = cached(repo, revision, kind)
    if folder is not None and enough(folder):
        return folder
    from huggingface_hub import HfApi, constants, snapshot_download

    def refused(why: str) -> ValueError:
        return ValueError(f"{field}: {repo!r} at {revision!r} {why}; {remedy}")

    try:
        info = HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        names = [file.rfilename for file in getattr(info, "siblings", None) or ()]
    except Exception as error:
        raise refused(_reason(error)) from error
    # The commit and the names become paths in the cache.
    if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)) or any(".." in name or name[:1] == "/" for name in names):
        raise refused("is listed by the hub with names that lead elsewhere")
    check(names)
    files = [name for name in names if wanted(name)]
    try:
        folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=files))
    except Exception as error:
        raise refused(_reason(error)) from error
    if missing := [name for name in files if not (folder / name).is_file()]:  # the client may give what it had before
        raise refused(f"came without {missing[0]!r}")
    return folder


def cached(repo: str, revision: str, kind: Literal["model", "dataset"]) -> Path | None:
    """The snapshot folder in the local cache, complete or not, or None. Never touches the network."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)
        return None if partial is None else Path(partial)


def _reason(error: BaseException) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "asks for a login with access to it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "does not exist: the repository has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "does not exist on the hub, or is private"
    why = str(error.__cause__ or error).strip().partition("\n")[0][:200] or type(error).__name__
    return f"is not in the local Hugging Face cache and the hub did not deliver it ({why})"
