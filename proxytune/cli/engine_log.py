"""Standard error of vLLM's processes, kept aside: of 500 lines about an engine that died, one is the cause."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

_ERROR = re.compile(r"(?:^|[\s)])((?:\w+\.)*\w*(?:Error|Exception)): (.+)")
# These tell that another process has failed, and not why.
_ECHOES = ("EngineDeadError", "See root cause above", "Engine core initialization failed", "died with exit code")
_LONGEST = 400


class EngineLog:
    """Standard error of this process and those that it starts, until `release`; theirs goes on here after it."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._terminal: int | None = None
        if file is not None:
            sys.stderr.flush()
            self._terminal = os.dup(2)
            os.dup2(file.fileno(), 2)

    def release(self) -> None:
        """Let this process write to the terminal again."""
        if self._terminal is not None:
            sys.stderr.flush()
            os.dup2(self._terminal, 2)
            os.close(self._terminal)
            self._terminal = None

    def cause(self) -> str | None:
        """Return the first error in the log that says why, as one sentence; None if there is none."""
        self.release()
        if self._file is None:
            return None
        self._file.seek(0)
        return root_cause(self._file.read().decode(errors="replace"))


@contextmanager
def engine_log(*, is_debug: bool) -> Iterator[EngineLog]:
    """Keep the log of what is started in here aside; under --debug it goes where it went."""
    if is_debug:
        yield EngineLog(None)
        return
    with tempfile.TemporaryFile() as file:
        log = EngineLog(file)
        try:
            yield log
        finally:
            log.release()


def root_cause(log: str) -> str | None:
    r"""Return the error that came first.

    >>> root_cause("(EngineCore) ValueError: no such head size.\nRuntimeError: See root cause above: {}")
    'ValueError: no such head size.'
    """
    for line in log.splitlines():
        match = _ERROR.search(line)
        if match is not None and not any(echo in line for echo in _ECHOES):
            return " ".join(f"{match[1]}: {match[2]}".split())[:_LONGEST]
    return None
