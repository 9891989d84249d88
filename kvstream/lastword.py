"""Says that a process has ended where it cannot say so itself: killed, or ended by Ray, which has its reasons."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from types import TracebackType


class LastWord:
    """Has a shell say words to stderr if this process ends while this is entered, whatever ends it."""

    def __init__(self, words: str) -> None:
        self.words = words
        self._shell: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LastWord:
        """Start the shell, which waits for a line that says that all is over."""
        command = ["/bin/sh", "-c", r"""read -r over || printf '\n%s\n' "$1" >&2""", "sh", self.words]
        quiet = subprocess.DEVNULL
        with suppress(OSError):  # one can do without
            # In a session of its own, no Ctrl-C and no signal to this process's group reaches it.
            self._shell = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, start_new_session=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say that line."""
        if self._shell:
            self._shell.communicate(b"over\n")
