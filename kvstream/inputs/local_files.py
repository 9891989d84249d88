"""Which local files a name stands for: one file, all below a folder, or a glob; what is hidden is passed over.

Knows no texts: only names and suffixes.
"""

import functools
import glob
import logging
import os
from pathlib import Path

SUFFIXES = (".txt", ".jsonl", ".parquet")
log = logging.getLogger(__name__)


def local_files(spec: str, kinds: str) -> tuple[list[Path], str]:
    """The files, in order, and the text column, which may follow a colon; `ValueError` if there are none.

    kinds: what could be given instead.
    """
    path, column = spec, "text"
    files, passed_over = _expand(path)
    if not files and ":" in spec and _expand(spec.rpartition(":")[0])[0]:
        path, _, column = spec.rpartition(":")
        files, passed_over = _expand(path)
    if not files:
        raise ValueError(
            f"text: {spec!r} is no file, folder or glob with {', '.join(SUFFIXES)} files in it; give {kinds}"
        )
    if files[0].suffix.lower() not in SUFFIXES:
        raise ValueError(f"text: {str(files[0])!r} is of no known kind; give one of {', '.join(SUFFIXES)}")
    if passed_over:
        listed = ", ".join(map(repr, passed_over[:5])) + (" …" if len(passed_over) > 5 else "")
        _warn_once(f"text: what is hidden in {path!r}, a link to a folder or closed is passed over: {listed}")
    return files, column


@functools.cache
def _warn_once(message: str) -> None:
    """A source is read more than once: to count its documents, and by each model's tokenizer."""
    log.warning(message)


def _expand(path: str) -> tuple[list[Path], list[str]]:
    """The files that a path, folder or glob stands for, and what of it is passed over; no suffix is asked of a file."""
    # os.path answers False to names no file can have; pathlib raises.
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [Path(path)], []
    found = [path] if os.path.isdir(path) else glob.glob(path, recursive=True)
    passed_over = {*glob.glob(path, recursive=True, include_hidden=True)} - {*found, path}
    passed_over = {name for name in passed_over if os.path.dirname(name) not in passed_over}
    files = {file for file in found if os.path.isfile(file)}
    for folder in (place for place in found if os.path.isdir(place)):
        below, others = _walked(folder)
        files.update(below)
        passed_over.update(others)
    told = sorted(name for name in passed_over if os.path.isdir(name) or _is_ours(name))
    return sorted(Path(file) for file in files if _is_ours(file)), told


def _walked(folder: str) -> tuple[list[str], list[str]]:
    """All files below a folder, and what is passed over: what is hidden (`._a.txt`, `.git`), links to folders, and
    folders that nobody may read."""
    files: list[str] = []
    closed: list[OSError] = []
    passed_over: list[str] = []
    for here, folders, names in os.walk(folder, onerror=closed.append):
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        passed_over += [os.path.join(here, name) for name in (*folders, *names) if name.startswith(".")]
        passed_over += [os.path.join(here, name) for name in links if not name.startswith(".")]
        files += [os.path.join(here, name) for name in names if not name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]  # os.walk goes to no links
    return files, passed_over + [str(error.filename) for error in closed]


def _is_ours(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES
