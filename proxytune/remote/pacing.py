"""When a request may go out: the limit per second, and the waits between repetitions."""

import math
import random
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 20.0
_LONGEST_ASKED_WAIT_S = 60.0  # what a server may ask for by Retry-After


class Clock:
    """Time that only goes forward, and waits that closing ends. Tests put one of their own in its place."""

    def now(self) -> float:
        """Return seconds since some moment."""
        return time.monotonic()

    def wait(self, seconds: float, closed: threading.Event) -> None:
        """Wait, or until `closed` is set."""
        closed.wait(seconds)


class Pace:
    """A token bucket that holds one token: in t seconds at most 1 + t · `per_second` requests may go out."""

    def __init__(self, per_second: float | None, clock: Clock) -> None:
        self._gap_s = 0.0 if per_second is None else 1.0 / per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._next = -math.inf

    def reserve(self) -> float:
        """Take the next free moment; return the seconds until then."""
        with self._lock:
            now = self._clock.now()
            moment = max(now, self._next)
            self._next = moment + self._gap_s
            return moment - now


def backoff_s(num_failures: int, retry_after: str | None, draws: random.Random) -> float:
    """Return how long to wait after so many failures: twice as long each time, by a draw, up to a limit.

    `retry_after` is the answer's header: seconds or a date; a wait is not shorter than it, up to a limit of its own.
    """
    longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(num_failures - 1, 16))
    # Rows that failed together must not come back together.
    wait = longest * draws.uniform(0.5, 1.0)
    return max(wait, min(_asked_s(retry_after), _LONGEST_ASKED_WAIT_S))


def _asked_s(retry_after: str | None) -> float:
    """Return the seconds that a Retry-After header asks for, 0 for none that can be read.

    >>> _asked_s("7"), _asked_s("soon"), _asked_s("Wed, 21 Oct 2015 07:28:00 GMT")
    (7.0, 0.0, 0.0)
    """
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            moment = parsedate_to_datetime(retry_after)
        except ValueError:
            return 0.0
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
