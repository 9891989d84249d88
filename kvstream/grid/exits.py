"""How a command ends: one clear line for invalid input, and no waiting for work that was given up.

Exit codes: 0 all is well, 1 something failed or differs, 2 invalid input, 130 Ctrl-C. Knows neither flags nor Ray.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, NoReturn

from kvstream.grid.visible import visible
from kvstream.inputs.hub import abandoned

opened: list[str] = []  # addresses of object stores that this process has a client of; whoever opens one adds it


def refuse(message: object) -> NoReturn:
    """End the program with one clear line and exit code 2, whatever the values and errors of others in it hold."""
    line = " ".join(part.strip() for part in str(message).splitlines())
    print(f"error: {visible(line)}", file=sys.stderr)
    leave(2)


def leave(code: int, *, at_once: bool = False) -> NoReturn:
    """End the program, also where Python would first wait for threads: a busy hub may ask its client to wait an hour.

    at_once: without releasing objects first, such as buffers of Ray's store.
    """
    if opened or at_once or any(thread.is_alive() for thread in abandoned):
        if opened:
            _leave_clients_alone()
        atexit._run_exitfuncs()  # Ray's end, for one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def _leave_clients_alone() -> None:
    """Do not end the threads of object stores' clients: doing so has aborted programs that had done all their work.

    What was written is there. The abort says "terminate called without an active exception".
    """
    from pyarrow import fs

    finalizer: Any = getattr(fs, "ensure_s3_finalized", None)
    if finalizer:  # some builds of pyarrow have no S3
        atexit.unregister(finalizer)
