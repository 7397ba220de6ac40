"""What a client says of a next token is what the model behind the server says, in every dialect, drafts or not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from proxytune.errors import RemoteError, RoleError
from proxytune.remote.answers import Reader, UnclearError
from proxytune.remote.distribution import Distribution, Query
from proxytune.remote.token_names import TokenNames
from tests.remote.clients import (
    answers,
    base_tokenizer,
    client,
    log_probs,
    queries,
    require_likeliest,
    server,
    token_ids,
)
from tests.remote.completions_server import DIALECTS, VLLM

# Dialect, its most log-probabilities, how many a client finds, and the first way for several positions.
KINDS = [
    ("vllm", -1, None, "prompts"),
    ("vllm", 20, 20, "prompt_logprobs"),
    ("prompts", 20, 20, "prompts"),
    ("llamacpp", 100_000, None, "single"),
]


@pytest.mark.parametrize(("dialect", "most", "count", "way"), KINDS)
def test_distributions_are_the_models_own(dialect: str, most: int, count: int | None, way: str) -> None:
    """Exactly the k likeliest tokens, or all, with the model's log-probabilities, for one place and for four."""
    if dialect == "prompts":
        dialect = replace(DIALECTS["prompts"], fields=VLLM - {"prompt_logprobs"})
    with server(dialect, max_logprobs=most) as found:
        model = client(found.url)
        assert (model.num_logprobs, model.verification, model.max_context) == (count, way, 256)
        for num_positions in (1, 4):
            asked = queries(num_positions)
            for query, distributions in zip(asked, answers(model, asked), strict=True):
                require_likeliest(distributions, query, count)
        model.close()


@pytest.mark.parametrize("dialect", ["echo", "prompts", "text"])
def test_names_by_text_bring_the_tokens_that_have_a_text_of_their_own(dialect: str) -> None:
    """Without ids a client sees of the likeliest tokens those whose text is no other's; drafts change nothing."""
    texts = [base_tokenizer().decode([index]) for index in range(base_model_width())]
    with server(dialect) as found:
        model = client(found.url)
        asked = queries(3)
        for query, distributions in zip(asked, answers(model, asked), strict=True):
            for place, distribution in enumerate(distributions):
                row = log_probs(query.token_ids)[len(query.token_ids) - query.num_positions + place]
                likeliest = row.topk(found.can.max_logprobs).indices.tolist()
                clear = [
                    index for index in likeliest if texts.count(texts[index]) == 1 and "\ufffd" not in texts[index]
                ]
                assert sorted(distribution.token_ids.tolist()) == sorted(clear)
                assert np.abs(distribution.logprobs - row[distribution.token_ids].numpy()).max() < 1e-4
        model.close()


def base_model_width() -> int:
    """Return how many ids the tokenizer has."""
    return len(base_tokenizer())


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo", "prompts", "single"])
def test_every_verification_sees_what_plain_requests_see(way: Any) -> None:
    """Each way of asking for five places gives the distributions of five plain requests, in its number of requests."""
    with server(max_logprobs=20) as found:
        model = client(found.url, verification=way)
        query = queries(5)[0]
        found.recorded.clear()
        [together] = answers(model, [query])
        assert len(found.completions) == (5 if way == "single" else 1)
        alone = [each[0] for each in answers(model, query.prefixes())]
        for first, second in zip(together, alone, strict=True):
            assert first.token_ids.tolist() == second.token_ids.tolist()
            assert np.allclose(first.logprobs, second.logprobs, atol=1e-5)
        model.close()


def test_long_rows_are_verified_by_prompts() -> None:
    """Where prompt_logprobs would send 200,000 entries for a row, several prompts are sent instead."""
    with server(max_logprobs=-1) as found:
        model = client(found.url, top_logprobs=1100)
        long = Query(token_ids("The")[:1] * 200, 3)
        short = Query(long.token_ids[:20], 3)
        found.recorded.clear()
        for query in (long, short):
            [distributions] = answers(model, [query])
            require_likeliest(distributions, query, 1100)
        first, second = (request.body for request in found.completions)
        assert [len(prompt) for prompt in first["prompt"]] == [198, 199, 200]
        assert "prompt_logprobs" not in first
        assert second["prompt_logprobs"] == 1100
        model.close()


@pytest.mark.parametrize(("asked", "expected"), [(3, 3), (20, 20)])
def test_asked_number_of_logprobs_is_what_comes(asked: int, expected: int) -> None:
    """`top_logprobs` decides where the server allows it."""
    with server(max_logprobs=-1) as found:
        model = client(found.url, top_logprobs=asked)
        query = queries()[0]
        require_likeliest(answers(model, [query])[0], query, expected)
        assert model.num_logprobs == expected
        model.close()


def test_more_logprobs_than_the_server_allows_is_an_error_with_its_words() -> None:
    """top_logprobs=50 at a server of 20 ends construction, and the text has the server's limit."""
    with server(max_logprobs=20) as found, pytest.raises(RoleError, match=r"top_logprobs=50.*max allowed: 20"):
        client(found.url, top_logprobs=50)


def test_server_that_sends_fewer_than_asked_is_asked_for_those() -> None:
    """A server that cuts 20 down to 7 without a word is asked for 5, of which exactly 5 are seen."""
    with server(replace(DIALECTS["vllm"], fields=VLLM, max_logprobs=20), cuts_to=7) as found:
        model = client(found.url)
        assert model.num_logprobs == 5
        asked = queries(3)
        for query, distributions in zip(asked, answers(model, asked), strict=True):
            require_likeliest(distributions, query, 5)
        model.close()


def test_ids_beyond_the_shared_vocabulary_are_left_out() -> None:
    """With `vocab_size` no distribution has an id from there on, and the mass is that of the rest."""
    with server(max_logprobs=-1) as found:
        model = client(found.url, vocab_size=1000)
        query = queries()[0]
        [[distribution]] = answers(model, [query])
        row = log_probs(query.token_ids)[-1]
        assert sorted(distribution.token_ids.tolist()) == list(range(1000))
        assert distribution.mass == pytest.approx(float(row[:1000].exp().sum()), abs=1e-4)
        model.close()


def test_mass_and_order_of_a_distribution() -> None:
    """By hand: 0.5 and 0.25 are seen, what a server writes for −inf is not; the likelier comes first."""
    found = Distribution.of([9, 4, 7], [-1.3862943611, -9999.0, -0.6931471806])
    assert found.token_ids.tolist() == [7, 9]
    assert found.mass == pytest.approx(0.75)


def test_row_that_is_no_text_is_an_error_of_its_own() -> None:
    """At a server that takes text, tokens that their own text would not become fail; the row beside them does not."""
    split = tuple(index for letter in "Question" for index in token_ids(letter))
    assert token_ids("Question") != split
    with server("text") as found:
        model = client(found.url)
        right, wrong = model.submit([queries()[0], Query(split)])
        assert right.result(timeout=60)
        with pytest.raises(RemoteError, match="cannot be sent as text"):
            wrong.result(timeout=60)
        model.close()


def test_text_that_the_server_reads_otherwise_is_an_error() -> None:
    """Where the server counts other tokens than we do for a text, its answer is not used."""
    with server("text") as found:
        model = client(found.url)
        found.miscounts = 1
        [future] = model.submit(queries()[:1])
        with pytest.raises(RemoteError, match="the server reads"):
            future.result(timeout=60)
        model.close()


def test_echo_is_not_trusted_where_names_fell_together() -> None:
    """If a name stands for two tokens, the least likely name may be one too many: the answer is called unclear."""
    reader = Reader(3, TokenNames(base_tokenizer()), None)
    choice = {
        "logprobs": {
            "tokens": ["The", " was"],
            "top_logprobs": [None, {" was": -3.0, "\ufffd": -1.0, " the": -1.5}],
        }
    }
    with pytest.raises(UnclearError):
        reader.echoed(choice, token_ids("The"), 1)
    choice["logprobs"]["tokens"][1] = " the"
    [clear] = reader.echoed(choice, token_ids("The"), 1)
    assert len(clear.token_ids) == 2
