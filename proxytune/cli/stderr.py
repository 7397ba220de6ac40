"""Text on standard error: our notes, one line each; other libraries' only where they help."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proxytune.errors import ProxyTuneWarning


def note(text: str) -> None:
    """Write one line for the user to read."""
    if sys.stderr is not None:  # it may be closed
        sys.stderr.write(f"proxytune: {text}\n")
        sys.stderr.flush()


def is_watched() -> bool:
    """True if someone looks at stderr, so that progress bars are worth drawing."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def quiet_libraries(*, is_debug: bool) -> Iterator[None]:
    """Run with our own warnings as notes and, unless debugging, without those of other libraries."""
    if is_debug:
        yield
        return
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ProxyTuneWarning)
            warnings.showwarning = _show
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Load models in here: their progress bars are drawn only where someone looks at stderr."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    had_bars = is_progress_bar_enabled()
    if not is_watched():
        disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            enable_progress_bar()


@contextmanager
def starting_engine(*, is_debug: bool) -> Iterator[None]:
    """Start vLLM's engine in here: what it and its processes ever print goes to stderr, and Ctrl-C is ours alone.

    vLLM logs to standard output, which is for results; its processes inherit ours. They end at a SIGINT, which a
    terminal sends to them too: chat would lose its engine with the first answer that is stopped. A Ctrl-C in the
    meantime counts once the engine stands.
    """
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    if not is_debug:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    sys.stdout.flush()
    stdout = os.dup(1)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _show(message: Any, category: type[Warning], *location: Any, **kwargs: Any) -> None:
    note(f"warning: {message}")
