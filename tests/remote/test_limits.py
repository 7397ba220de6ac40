"""The limit per second and the budgets hold over all rows, exactly."""

import asyncio

import pytest

from proxytune.errors import RemoteBudgetError
from proxytune.remote.budget import Budget, Cost
from proxytune.remote.client import RateLimiter
from tests.remote.clients import VirtualClock, client, queries, require_likeliest, server
from tests.remote.faulty_proxy import FaultyProxy


def test_limiter_spaces_requests() -> None:
    """By a clock of the test's own: 40 requests at 5 per second take the moments 0, 0.2 … 7.8 s."""
    limiter = RateLimiter(5.0, VirtualClock())
    assert [limiter.reserve() for _ in range(40)] == pytest.approx([0.2 * place for place in range(40)])


def test_limiter_saves_nothing_up() -> None:
    """A minute without requests earns no burst: the second request behind it waits again."""
    clock = VirtualClock()
    limiter = RateLimiter(2.0, clock)
    assert limiter.reserve() == 0.0
    asyncio.run(clock.sleep(60.0))
    assert [limiter.reserve(), limiter.reserve()] == [0.0, 0.5]
    assert RateLimiter(None, clock).reserve() == 0.0


def test_client_keeps_to_its_requests_per_second() -> None:
    """Every request but the first waits for its turn, those of construction among them, and the waits are counted."""
    clock = VirtualClock()
    with server() as found:
        model = client(found.url, clock=clock, requests_per_second=10.0, max_in_flight=1)
        for future in model.submit(queries() * 3):
            future.result(timeout=60)
        num_sent = len(found.recorded)
        model.close()
    assert clock.now() == pytest.approx((num_sent - 1) / 10.0)
    assert model.usage.waited_s == pytest.approx(clock.now())


def test_budget_of_requests_is_exact_of_sixteen_at_once() -> None:
    """Of 60 rows exactly as many are sent as the budget has left; the others end unsent, nothing received is lost."""
    with server(max_logprobs=20) as found:
        spent = client(found.url).usage.num_requests
        found.recorded.clear()
        model = client(found.url, max_requests=spent + 23, max_in_flight=16)
        asked = queries() * 15
        futures = model.submit(asked)
        results = [future.exception(timeout=60) for future in futures]
        refused = [error for error in results if error is not None]
        assert len(found.completions) == spent + 23 == model.usage.num_requests
        assert len(refused) == 60 - 23
        assert all(isinstance(error, RemoteBudgetError) and "max_requests" in str(error) for error in refused)
        for query, future, error in zip(asked, futures, results, strict=True):
            if error is None:
                require_likeliest(future.result(), query, 20)
        model.close()


def test_budget_counts_retries() -> None:
    """A row that has to be repeated spends one request per try, and ends when none is left."""
    with server() as behind, FaultyProxy(behind.url, is_active=False) as proxy:
        spent = client(proxy.url).usage.num_requests
        model = client(proxy.url, clock=VirtualClock(), max_requests=spent + 3)
        proxy.given.clear()
        proxy.script, proxy.is_active = ("500",) * 9, True
        [future] = model.submit(queries()[:1])
        assert isinstance(future.exception(timeout=60), RemoteBudgetError)
        assert proxy.given == ["500"] * 3
        model.close()


def test_budget_of_tokens_is_never_exceeded() -> None:
    """The tokens that the server counts stay within max_tokens, with 16 in flight, and what is left is too little."""
    with server(max_logprobs=20) as found:
        first = client(found.url)
        spent = first.usage.num_tokens
        budget = spent + 150
        model = client(found.url, max_tokens=budget, max_in_flight=16)
        asked = queries() * 15
        errors = [future.exception(timeout=60) for future in model.submit(asked)]
        usage = model.usage
        assert usage.num_tokens <= budget
        assert any(errors)
        assert not all(errors)
        longest = max(len(query.token_ids) for query in asked) + 1
        assert budget - usage.num_tokens < longest
        model.close()


def test_budget_too_small_for_construction() -> None:
    """Where not even the first questions fit, construction says so."""
    with server() as found, pytest.raises(RemoteBudgetError, match="max_requests=1 is spent"):
        client(found.url, max_requests=1)


def test_budget_counts_what_was_spent() -> None:
    """By hand: 10 of 25 set aside leave 15, not 16; what was spent counts, the rest comes free."""
    budget = Budget(None, 25)
    budget.reserve(Cost(9, 1), is_retry=False)
    with pytest.raises(RemoteBudgetError, match="15 left, and the next request needs 16"):
        budget.reserve(Cost(15, 1), is_retry=False)
    budget.commit(Cost(9, 1), Cost(4, 1))
    budget.reserve(Cost(19, 1), is_retry=True)
    assert (budget.usage.num_requests, budget.usage.num_retries, budget.usage.num_tokens) == (2, 1, 5)
