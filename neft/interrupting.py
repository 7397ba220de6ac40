"""Ctrl-C and SIGTERM in training: the step is finished and saved, and only then the run ends."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """The user stopped the run, and a checkpoint was saved; the message says how to go on."""


class Interruption:
    """The user's request to stop the run."""

    def __init__(self) -> None:
        self.is_requested = False


@contextmanager
def graceful(*, is_quiet: bool) -> Iterator[Interruption]:
    """Makes the first Ctrl-C or SIGTERM a request, until the block ends; the second acts at once.

    Outside of the main thread, where Python allows no handlers, signals keep what they do.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def request(number: int, frame: FrameType | None) -> None:
        if interruption.is_requested:
            raise KeyboardInterrupt
        interruption.is_requested = True
        if not is_quiet:
            sys.stderr.write("\nneft: stopping after this step, with a checkpoint; once more to stop at once.\n")

    before: dict[signal.Signals, Callable[..., Any] | int | None] = {
        number: signal.signal(number, request) for number in _SIGNALS
    }
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            # None is a handler that was not installed from Python, which cannot be put back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
