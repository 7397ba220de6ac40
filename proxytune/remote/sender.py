"""Requests that are sent within the pace and the budget, and again where that may help."""

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from proxytune.errors import RemoteError
from proxytune.remote.ledger import Cost, Ledger, RemoteUsage, stated_cost
from proxytune.remote.pacing import Clock, Pace, backoff_s
from proxytune.remote.settings import RemoteSettings
from proxytune.remote.transport import TransientError, Transport

_T = TypeVar("_T")
_FREE = Cost(0, 0)


@dataclass(frozen=True)
class Call(Generic[_T]):
    """A request for completions.

    Attributes:
        body: Sent as JSON.
        read: Turns the whole answer into what is wanted. Raises TransientError for one that is not valid.
        cost: As we count it.
    """

    body: Mapping[str, Any]
    read: Callable[[Any], _T]
    cost: Cost


def always() -> bool:
    """Return that an answer is still wanted."""
    return True


class Sender:
    """Sends requests to one server from any number of threads."""

    def __init__(self, settings: RemoteSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self._transport = Transport(settings)
        self._pace = Pace(settings.requests_per_second, self._clock)
        self._ledger = Ledger(settings.max_requests, settings.max_tokens)
        self._closed = threading.Event()
        self._draws = random.Random()

    @property
    def usage(self) -> RemoteUsage:
        """What completions have cost until now."""
        return self._ledger.usage

    def complete(self, call: Call[_T], is_wanted: Callable[[], bool] = always) -> _T:
        """Return what a completion request brings.

        Raises:
            RemoteError: It failed for good, nobody wants it any more, or the sender is closed.
            RemoteBudgetError: The budget has no room for it.
        """
        url = f"{self._settings.base_url}/completions"

        def attempt(num_failures: int) -> _T:
            is_retry = num_failures > 0
            self._ledger.reserve(call.cost, is_retry=is_retry)
            try:
                self._take_turn(is_wanted)
            except RemoteError:
                self._ledger.withdraw(call.cost, is_retry=is_retry)
                raise
            spent = call.cost
            try:
                answer = self._transport.exchange("POST", url, call.body)
                spent = stated_cost(answer, call.cost)
                return call.read(answer)
            except TransientError as error:
                spent = spent if error.may_have_cost else _FREE
                raise
            except RemoteError as error:
                spent = _FREE if error.status is not None else spent
                raise
            finally:
                self._ledger.settle(call.cost, spent)

        return self._persist(attempt, url, is_wanted)

    def fetch(
        self,
        method: str,
        url: str,
        body: Mapping[str, Any] | None,
        read: Callable[[Any], _T],
        max_retries: int | None = None,
    ) -> _T:
        """Return what `read` makes of the answer to a request that costs nothing.

        Raises:
            RemoteError: It failed for good, or the sender is closed.
        """

        def attempt(_: int) -> _T:
            self._take_turn(always)
            return read(self._transport.exchange(method, url, body))

        return self._persist(attempt, url, always, max_retries)

    def close(self) -> None:
        """Send nothing more, and let go of all connections."""
        self._closed.set()
        self._transport.close()

    def _persist(
        self,
        attempt: Callable[[int], _T],
        url: str,
        is_wanted: Callable[[], bool],
        max_retries: int | None = None,
    ) -> _T:
        """Return what an attempt brings, or one of `max_retries` more after such as may pass."""
        most = self._settings.max_retries if max_retries is None else max_retries
        num_failures = 0
        while True:
            self._require_open(is_wanted)
            try:
                return attempt(num_failures)
            except TransientError as error:
                num_failures += 1
                if num_failures > most:
                    raise RemoteError(self._farewell(url, error, num_failures), status=error.status) from error
                self._require_open(is_wanted)
                self._wait(backoff_s(num_failures, error.retry_after, self._draws))

    def _take_turn(self, is_wanted: Callable[[], bool]) -> None:
        """Wait until the limit per second has room.

        Raises:
            RemoteError: Closed or taken back meanwhile.
        """
        self._wait(self._pace.reserve())
        self._require_open(is_wanted)

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._clock.wait(seconds, self._closed)
            self._ledger.add_wait(seconds)

    def _require_open(self, is_wanted: Callable[[], bool]) -> None:
        if self._closed.is_set():
            raise closed_error()
        if not is_wanted():
            raise RemoteError("the request was taken back: whoever asked for it has gone.")

    def _farewell(self, url: str, error: TransientError, num_failures: int) -> str:
        times = "once" if num_failures == 1 else f"{num_failures} times"
        return (
            f"{url} failed {times}, the last time with {error}: check the server, or raise max_retries "
            f"({self._settings.max_retries}) or timeout_s ({self._settings.timeout_s:g})."
        )


def closed_error() -> RemoteError:
    """Return what a request meets behind `close`."""
    return RemoteError("the connection to the base's server was closed: make a new generator to go on.")
