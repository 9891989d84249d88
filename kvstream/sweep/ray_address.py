"""Does anybody answer where a running Ray is said to be? Asked here, because Ray itself waits for minutes.

A Ray server speaks HTTP/2 (gRPC) and greets whoever does. The greeting comes from the connection's own thread, also
while the cluster is busy: this tells a dead address from a slow one. Knows nothing else of Ray.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path

PATIENCE_S = 3.0  # for a connection and a greeting, which a machine on another continent sends within one
# A client's opening, and that it has no settings. https://www.rfc-editor.org/rfc/rfc9113#section-3.4
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4  # the type of the frame a server begins with, in its fourth byte


def answering() -> str | None:
    """Where a running Ray answers: RAY_ADDRESS, else what the last `ray start` here left behind; None if nowhere.

    Raises ValueError if RAY_ADDRESS is set and no Ray answers there: a sweep must not run elsewhere than it was told.
    """
    asked = os.environ.get("RAY_ADDRESS") or None
    if asked == "local":
        return None
    if asked and asked != "auto":
        _check(asked)
        return asked
    left = _left_behind()
    why = unanswered(left) if left else "no Ray was started on this machine"
    if not why:
        return left
    if asked:
        raise ValueError(f"RAY_ADDRESS: 'auto' asked, but {why}; run `ray start --head` first, or unset RAY_ADDRESS")
    if left:
        print(f"Ray: an earlier cluster left the address {left} behind, and {why}; starting Ray anew")
    return None


def _check(asked: str) -> None:
    if "://" in asked:
        use = "`ray job submit` alone" if asked.startswith("http") else "Ray Client, which sweeps do not use"
        raise ValueError(
            f"RAY_ADDRESS: {asked!r} is an address for {use}; "
            "give host:port of the cluster's head, on a machine of the cluster, or unset RAY_ADDRESS"
        )
    if not _parts(asked):
        raise ValueError(f"RAY_ADDRESS: {asked!r} is not host:port, such as 10.0.0.1:6379; correct or unset it")
    if why := unanswered(asked):
        raise ValueError(
            f"RAY_ADDRESS: no Ray answers at {asked!r} ({why}); start that cluster again, or unset RAY_ADDRESS"
        )


def _left_behind() -> str | None:
    """What `ray start` wrote into Ray's folder, whether or not that cluster still runs."""
    folder = Path(os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp")
    try:
        return (folder / "ray" / "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def _parts(address: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", address)
    return (match[1].strip("[]"), int(match[2])) if match and 0 < int(match[2]) < 65536 else None


def unanswered(address: str) -> str | None:
    """Why no Ray seems to be there; None if one greets."""
    if not (parts := _parts(address)):
        return f"{address!r} is not host:port"
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return None  # the greeting comes after certificates, which are Ray's to check
    end = time.monotonic() + PATIENCE_S
    greeting = b""
    try:
        with socket.create_connection(parts, PATIENCE_S) as connection:
            connection.sendall(HELLO)
            while len(greeting) < 4:
                connection.settimeout(max(end - time.monotonic(), 0.01))
                if not (more := connection.recv(64)):
                    return "what listens there hangs up"
                greeting += more
    except TimeoutError:
        return f"no answer within {PATIENCE_S:.0f} s"
    except (OSError, UnicodeError) as error:  # the latter for names that are none
        return (getattr(error, "strerror", None) or str(error)).lower()
    return None if greeting[3] == SETTINGS else "what answers there is no Ray"
