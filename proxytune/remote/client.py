"""Requests to one server within the limit per second and the budget, sent again where that may help."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

from proxytune.errors import RemoteError
from proxytune.remote.budget import Budget, Cost, RemoteUsage, stated_cost
from proxytune.remote.settings import RemoteSettings
from proxytune.remote.transport import TransientError, Transport

_T = TypeVar("_T")
_FREE = Cost(0, 0)
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 20.0
_LONGEST_ASKED_WAIT_S = 60.0  # what a server may ask for by Retry-After


class Clock:
    """Time that only goes forward, and waits. Tests put one of their own in its place."""

    def now(self) -> float:
        """Return seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class RateLimiter:
    """A token bucket that holds one token: in t seconds at most 1 + t · `per_second` requests may go out."""

    def __init__(self, per_second: float | None, clock: Clock) -> None:
        self._gap_s = 0.0 if per_second is None else 1.0 / per_second
        self._clock = clock
        self._next = -math.inf

    def reserve(self) -> float:
        """Take the next free moment; return the seconds until then."""
        now = self._clock.now()
        moment = max(now, self._next)
        self._next = moment + self._gap_s
        return moment - now


@dataclass(frozen=True)
class Call(Generic[_T]):
    """A request for completions.

    Attributes:
        body: Sent as JSON.
        read: Turns the answer into what was asked for. Raises TransientError for one that is not valid.
        cost: As we count it.
    """

    body: Mapping[str, Any]
    read: Callable[[Any], _T]
    cost: Cost


class Client:
    """Sends requests to one server; all run in the transport's thread, and cancelling one ends it where it is."""

    def __init__(self, settings: RemoteSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self._transport = Transport(settings)
        self._limiter = RateLimiter(settings.requests_per_second, self._clock)
        self._budget = Budget(settings.max_requests, settings.max_tokens)
        self._slots = asyncio.Semaphore(settings.max_in_flight)
        self._draws = random.Random()

    @property
    def usage(self) -> RemoteUsage:
        """Cost of completions until now."""
        return self._budget.usage

    def submit(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        """Return the future of a coroutine; after `close`, it has a RemoteError."""
        return self._transport.submit(work)

    async def complete(self, call: Call[_T]) -> _T:
        """Return what a completion request brings.

        Raises:
            RemoteError: It failed for good, or the client is closed.
            RemoteBudgetError: The budget has not enough left for it.
        """
        url = f"{self._settings.base_url}/completions"

        async def attempt(num_failures: int) -> _T:
            self._budget.require(call.cost)
            await self._take_turn()
            self._budget.reserve(call.cost, is_retry=num_failures > 0)
            spent = call.cost
            try:
                answer = await self._transport.send("POST", url, call.body)
                spent = stated_cost(answer, call.cost)
                return await asyncio.to_thread(call.read, answer)
            except TransientError as error:
                spent = spent if error.may_have_cost else _FREE
                raise
            except RemoteError as error:
                spent = _FREE if error.status is not None else spent
                raise
            finally:
                self._budget.commit(call.cost, spent)

        return await self._persist(attempt, url, self._settings.max_retries)

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
            RemoteError: It failed for good, or the client is closed.
        """

        async def attempt(_: int) -> _T:
            await self._take_turn()
            return read(await self._transport.send(method, url, body))

        most = self._settings.max_retries if max_retries is None else max_retries
        return self.submit(self._persist(attempt, url, most)).result()

    def close(self) -> None:
        """Send nothing more, and end all connections; who waits for an answer gets a RemoteError."""
        self._transport.close()

    async def _persist(self, attempt: Callable[[int], Coroutine[Any, Any, _T]], url: str, max_retries: int) -> _T:
        """Return what an attempt brings, or one of `max_retries` more after such as may pass."""
        num_failures = 0
        while True:
            try:
                async with self._slots:
                    return await attempt(num_failures)
            except TransientError as error:
                num_failures += 1
                if num_failures > max_retries:
                    raise RemoteError(self._farewell(url, error, num_failures), status=error.status) from error
                await self._wait(backoff_s(num_failures, error.retry_after, self._draws))

    async def _take_turn(self) -> None:
        """Wait until the limit per second allows a request."""
        await self._wait(self._limiter.reserve())

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._clock.sleep(seconds)
            self._budget.add_wait(seconds)

    def _farewell(self, url: str, error: TransientError, num_failures: int) -> str:
        times = "once" if num_failures == 1 else f"{num_failures} times"
        return (
            f"{url} failed {times}, the last time with {error}: check the server, or raise max_retries "
            f"({self._settings.max_retries}) or timeout_s ({self._settings.timeout_s:g})."
        )


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
