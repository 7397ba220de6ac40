"""A limit on the work of a chat template, which is a program that comes with a model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_MAX_STEPS = 10_000_000  # about a second; a thousand messages take a few thousand
_TEMPLATE_FILE = "<template>"  # as Jinja calls the code that it makes of a template


@contextmanager
def step_limit(max_steps: int = _MAX_STEPS) -> Iterator[None]:
    """Render templates of Jinja in here: at most so many lines of their code run in this thread.

    Jinja's sandbox bounds a `range`, and not loops in loops.

    Raises:
        TimeoutError: A template took more.

    >>> import jinja2
    >>> loops = jinja2.Template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    >>> with step_limit(1000):
    ...     loops.render()
    Traceback (most recent call last):
    TimeoutError: it takes more than 1000 steps
    """
    num_steps = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        if num_steps > max_steps:
            raise TimeoutError(f"it takes more than {max_steps} steps")
        return count

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return count if frame.f_code.co_filename == _TEMPLATE_FILE else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
