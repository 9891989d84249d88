"""What a command says on a terminal, and how it ends: one clear line for invalid input.

Exit codes: 0 all is well, 1 something failed or differs, 2 invalid input, 130 Ctrl-C. Knows neither flags nor Ray.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, NoReturn

opened: list[str] = []  # addresses of object stores that this process has a client of; whoever opens one adds it


def visible(text: str) -> str:
    """Write what a terminal would obey or hide, such as line ends and escape codes, as `repr` does.

    Names of models, documents and policies come from files and may hold anything.
    """
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def counted(count: int, thing: str) -> str:
    """So many things in words that agree with the number: `1 cell`, `1,200 cells`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def refuse(message: object) -> NoReturn:
    """End the program with one clear line and exit code 2, whatever the values and errors of others in it hold."""
    line = " ".join(part.strip() for part in str(message).splitlines())
    print(f"error: {visible(line)}", file=sys.stderr)
    leave(2)


def leave(code: int) -> NoReturn:
    """End the program.

    Threads of object stores' clients are left alone: to end them has aborted programs that had done all their work
    ("terminate called without an active exception"). What was written is there.
    """
    if opened:
        from pyarrow import fs

        finalizer: Any = getattr(fs, "ensure_s3_finalized", None)
        if finalizer:  # some builds of pyarrow have no S3
            atexit.unregister(finalizer)
        atexit._run_exitfuncs()  # Ray's end, for one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
