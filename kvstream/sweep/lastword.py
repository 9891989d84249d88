"""Says that a process has ended where it cannot: it was killed, or Ray ended it, as it does if its store is gone."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from types import TracebackType

# It outlives what ends the process it waits for, if not what ends all of a container. A progress bar hides the cursor.
SHELL = r"""
trap "" HUP INT TERM
read -r over && exit
[ -t 2 ] && printf '\033[?25h' >&2
printf '\n%s\n' "$2" >&2
"""


class LastWord:
    """Has a shell say words to stderr if this process ends while this is entered."""

    def __init__(self, words: str) -> None:
        self.words = words
        self._shell: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LastWord:
        """Start the shell, which waits for a line that says that all is over."""
        command = ["/bin/sh", "-c", SHELL, "last word", str(os.getpid()), self.words]
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
