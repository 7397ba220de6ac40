"""What goes to standard error: our notes, one line each; other libraries' only where they help."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proxytune.errors import ProxyTuneWarning


def note(text: str) -> None:
    """Write one line for the user to read."""
    sys.stderr.write(f"proxytune: {text}\n")
    sys.stderr.flush()


def is_watched() -> bool:
    """Whether someone looks at stderr, so that progress bars are worth drawing."""
    return sys.stderr.isatty()


@contextmanager
def quiet_libraries(*, is_debug: bool) -> Iterator[None]:
    """Run with our own warnings as notes and, unless debugging, without those of other libraries."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    if is_debug:
        yield
        return
    disabled, had_bars = logging.root.manager.disable, is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    if not is_watched():
        disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ProxyTuneWarning)
            warnings.showwarning = _show
            yield
    finally:
        logging.disable(disabled)
        if had_bars:
            enable_progress_bar()


def _show(message: Any, category: type[Warning], *place: Any, **kwargs: Any) -> None:
    note(f"warning: {message}")
