"""Cost of requests so far, and the budget they must keep to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from proxytune.errors import RemoteBudgetError


@dataclass(frozen=True, kw_only=True)
class RemoteUsage:
    """Counts of requests and tokens for completions until a moment.

    Attributes:
        num_requests: Requests sent, repetitions and those of construction among them.
        num_retries: Requests that repeated one that had failed.
        num_prompt_tokens: Tokens read, as the server counts them, or as we do where it does not.
        num_completion_tokens: Tokens generated, likewise.
        waited_s: Seconds in which requests waited to be sent: back-off and the limit per second, over all rows.
    """

    num_requests: int = 0
    num_retries: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    waited_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Tokens read and generated."""
        return self.num_prompt_tokens + self.num_completion_tokens


@dataclass(frozen=True)
class Cost:
    """Cost of one request as far as we can count: tokens of all its prompts, and one generated for each."""

    num_prompt_tokens: int
    num_completion_tokens: int

    @property
    def num_tokens(self) -> int:
        """Both."""
        return self.num_prompt_tokens + self.num_completion_tokens


class Budget:
    """Counts what is spent; a request's cost is set aside before it goes out. For one thread, which sends all."""

    def __init__(self, max_requests: int | None, max_tokens: int | None) -> None:
        self.usage = RemoteUsage()
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._num_reserved_tokens = 0

    def require(self, cost: Cost) -> None:
        """Raise RemoteBudgetError unless there is enough left for a request."""
        if self._max_requests is not None and self.usage.num_requests >= self._max_requests:
            raise RemoteBudgetError(f"the budget of max_requests={self._max_requests} is spent: raise it to go on.")
        num_tokens = self.usage.num_tokens + self._num_reserved_tokens
        if self._max_tokens is not None and num_tokens + cost.num_tokens > self._max_tokens:
            raise RemoteBudgetError(
                f"the budget of max_tokens={self._max_tokens} has {max(0, self._max_tokens - num_tokens)} left, "
                f"and the next request needs {cost.num_tokens}: raise it to go on."
            )

    def reserve(self, cost: Cost, *, is_retry: bool) -> None:
        """Count a request that is about to be sent, and set its tokens aside; errors as in `require`."""
        self.require(cost)
        self._num_reserved_tokens += cost.num_tokens
        self._add(num_requests=1, num_retries=int(is_retry))

    def commit(self, cost: Cost, spent: Cost) -> None:
        """Take back what was set aside, and count what the request has cost in the end."""
        self._num_reserved_tokens -= cost.num_tokens
        self._add(**vars(spent))

    def add_wait(self, seconds: float) -> None:
        """Count time in which a request waited to be sent."""
        self._add(waited_s=seconds)

    def _add(self, **amounts: float) -> None:
        # A new object each time: other threads may be reading the last one.
        self.usage = replace(self.usage, **{name: getattr(self.usage, name) + more for name, more in amounts.items()})


def stated_cost(answer: Any, counted: Cost) -> Cost:
    """Return the cost that an answer states, or the one that was counted where it states none.

    >>> stated_cost({"usage": {"prompt_tokens": 7, "completion_tokens": 1}}, Cost(5, 1))
    Cost(num_prompt_tokens=7, num_completion_tokens=1)
    """
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    if not isinstance(usage, Mapping):
        return counted
    numbers = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    counts = [number for number in numbers if type(number) is int and number >= 0]
    return Cost(*counts) if len(counts) == len(numbers) else counted
