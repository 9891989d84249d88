"""From what `--out` or DIR names to the place it means: a folder on a disk, or a prefix in an object store."""

from __future__ import annotations

import re
from pathlib import Path

from kvstream.records.bucket import Bucket
from kvstream.records.disk import Folder
from kvstream.records.storage import Storage

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
CREDENTIALS = re.compile(r"^[^?]*@|[?&][^=&]*(key|secret|token|password)[^=&]*=", re.IGNORECASE)


def storage_at(where: str | Path) -> Storage:
    """The folder or prefix that `where` names; ValueError if its scheme is unknown or it holds credentials."""
    if not (text := str(where)):
        raise ValueError("out: '' names no folder; give one, or leave the flag away")
    if not text.isprintable():
        raise ValueError(f"out: {text!r} holds characters that no folder should have; give another")
    if not SCHEME.match(text):
        return Folder(Path(where))
    if CREDENTIALS.search(text):
        raise ValueError("out: the address holds credentials; give them in the environment, such as AWS_ACCESS_KEY_ID")
    return Bucket(text)
