"""A base behind an API against the same base here: the same tokens, whatever is drafted, drawn or batched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxytune import Pair, ProxyGenerator
from tests import tiny
from tests.remote import rig
from tests.remote.completions_server import CompletionsServer

ALPHAS = [0.0, 0.5, 1.0, 1.5, 0.5, 1.0, 0.0, 2.0]
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "seed": [3, 4, 5, 6, 7, 8, 9, 10]}


@pytest.fixture(scope="module")
def whole() -> Iterator[CompletionsServer]:
    """A server that gives the whole vocabulary."""
    with rig.server() as server:
        yield server


@pytest.fixture(scope="module")
def top() -> Iterator[CompletionsServer]:
    """A server that gives the 20 likeliest tokens."""
    with rig.server(max_logprobs=20) as server:
        yield server


@pytest.mark.parametrize(("batch_size", "speculation"), [(1, "off"), (1, 4), (8, "off"), (8, 4), (8, "auto")])
def test_greedy_tokens_are_the_local_ones(whole: CompletionsServer, speculation: Any, batch_size: int) -> None:
    """Over the whole vocabulary, 16 answers of 32 tokens equal those of the local composite."""
    generator = rig.remote(whole.url, speculation=speculation)
    found = generator.generate(rig.questions(), batch_size=batch_size, **rig.EXACT)
    assert rig.tokens(found) == rig.greedy()
    assert all(mass == pytest.approx(1.0, abs=1e-5) for row in found for mass in row.base_mass)
    assert {row.error for row in found} == {None}


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo", "prompts", "single"])
def test_every_way_to_check_drafts_gives_the_local_tokens(whole: CompletionsServer, way: str) -> None:
    """However a server is asked for the places of several drafts."""
    generator = rig.remote(whole.url, speculation=4, verification=way)
    found = generator.generate(rig.questions()[:2], max_new_tokens=10, ignore_eos=True)
    assert generator.model.base.remote.verification == way
    assert rig.tokens(found) == [ids[:10] for ids in rig.greedy()[:2]]


@pytest.mark.parametrize("speculation", ["off", 4])
def test_draws_strengths_and_formats_are_the_local_ones(whole: CompletionsServer, speculation: Any) -> None:
    """Seeded draws, an α per row (two of them 0) and a prompt per role give the local composite's tokens."""
    options = {"max_new_tokens": 20, "alpha": ALPHAS, **SAMPLED}
    wanted = rig.local(formats=True).generate(rig.questions(8), **options)
    generator = rig.remote(whole.url, speculation=speculation, roles=rig.FORMATS)
    found = generator.generate(rig.questions(8), **options)
    assert rig.tokens(found) == rig.tokens(wanted)
    assert len({len(row.token_ids) for row in found}) > 1  # rows that end at different places


def test_log_probabilities_are_the_local_ones(whole: CompletionsServer) -> None:
    """The tokens' log-probabilities under the combination are the local ones to 1e-4."""
    wanted = rig.local().generate(rig.questions(4), max_new_tokens=8, logprobs=3)
    found = rig.remote(whole.url, speculation=3).generate(rig.questions(4), max_new_tokens=8, logprobs=3)
    for one, other in zip(found, wanted, strict=True):
        assert [token.logprob for token in one.logprobs] == pytest.approx(
            [token.logprob for token in other.logprobs], abs=1e-4
        )


def test_penalties_and_stop_texts_work(whole: CompletionsServer) -> None:
    """What our loop does with logits it does with these: a penalty, a stop text."""
    options: dict[str, Any] = {"max_new_tokens": 16, "repetition_penalty": 1.3, "stop": ["."]}
    wanted = rig.local().generate(rig.questions(4), **options)
    found = rig.remote(whole.url, speculation=4).generate(rig.questions(4), **options)
    assert [(row.text, row.finish_reason) for row in found] == [(row.text, row.finish_reason) for row in wanted]
    assert "stop" in {row.finish_reason for row in found}


def test_with_20_likeliest_the_choice_is_the_local_one_where_it_was_seen(top: CompletionsServer) -> None:
    """Place by place behind the same text: where the local choice is among the base's 20, it is the remote choice."""
    generator = rig.remote(top.url)
    num_seen = num_places = 0
    for text, ids in zip(rig.questions(8), rig.greedy()[:8], strict=True):
        prompt = rig.prompt_ids(text)
        seen = rig.likeliest(top, [*prompt, *ids[:-1]], 20)[len(prompt) - 1 :]
        here = rig.local().trace(text, continuation=list(ids), trace=1)
        there = generator.trace(text, continuation=list(ids), trace=1)
        for place, (one, other) in enumerate(zip(here.tokens, there.tokens, strict=True)):
            choice = max(one.candidates, key=lambda candidate: candidate.probabilities[-1]).token_id
            num_places += 1
            if choice in seen[place]:
                num_seen += 1
                assert max(other.candidates, key=lambda each: each.probabilities[-1]).token_id == choice
    assert num_places == 8 * 32
    assert num_seen > num_places // 2  # else this would show nothing


def test_the_seen_mass_is_that_of_the_20_likeliest(top: CompletionsServer) -> None:
    """`base_mass` is, per token, the sum of the base's 20 largest probabilities at its place."""
    [found] = rig.remote(top.url, speculation=3).generate(rig.questions(1), max_new_tokens=12)
    prompt = rig.prompt_ids(rig.questions(1)[0])
    rows = top.log_probs([*prompt, *found.token_ids[:-1]])[len(prompt) - 1 :]
    assert found.base_mass == pytest.approx(rows.topk(20).values.exp().sum(-1).tolist(), abs=1e-5)
    assert len(found.base_mass) == len(found.token_ids)


@pytest.mark.parametrize("dialect", ["echo", "prompts", "text", "llamacpp"])
def test_drafts_change_nothing_with_any_server(dialect: str) -> None:
    """However a server is asked for several places, tokens and seen mass are those of plain decoding against it."""
    with rig.server(dialect) as server:
        plain = rig.remote(server.url).generate(rig.questions(4), max_new_tokens=12)
        drafted = rig.remote(server.url, speculation=4).generate(rig.questions(4), max_new_tokens=12)
    assert rig.tokens(drafted) == rig.tokens(plain)
    for one, other in zip(drafted, plain, strict=True):
        assert one.base_mass == pytest.approx(other.base_mass, abs=1e-5)


@pytest.mark.parametrize("speculation", ["off", 3])
def test_pairs_and_adapters_are_the_local_ones(folders: dict[str, Path], speculation: Any) -> None:
    """Two pairs, one of them an adapter over the anti: the tokens of the composite with its base here."""
    pairs = [Pair(folders["expert"], folders["anti"], 0.7), Pair(folders["lora"], folders["anti"], 0.5)]
    prompts = [tiny.prompt_ids(length, seed=length) for length in (5, 9, 3)]
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    wanted = ProxyGenerator(folders["base"], pairs=pairs, speculation="off").generate(prompts, **options)
    owner = CompletionsServer(tiny.model("llama", 1, hidden_size=48), tiny.word_tokenizer(), max_logprobs=-1)
    with owner as server:
        generator = ProxyGenerator("openai:base", base_url=server.url, pairs=pairs, speculation=speculation)
        assert rig.tokens(generator.generate(prompts, **options)) == rig.tokens(wanted)


def test_scores_are_the_local_ones(whole: CompletionsServer) -> None:
    """Log-probabilities of continuations of different length are the local ones to 1e-3."""
    prompts = rig.questions()[:4]
    answers = [" In Norway.", " She was born there, in the north.", " No", " It is said to be so."]
    wanted = rig.local().score(prompts, answers, alpha=[0.0, 1.0, 0.7, 1.0])
    found = rig.remote(whole.url).score(prompts, answers, alpha=[0.0, 1.0, 0.7, 1.0])
    for one, other in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert one.is_greedy == other.is_greedy


def test_scoring_asks_for_the_places_of_the_continuation_alone() -> None:
    """Of a server that is asked place by place, each row costs as many prompts as its continuation has tokens."""
    with rig.server("prompts", max_logprobs=20) as server:
        generator = rig.remote(server.url, verification="single")
        before = len(server.completions)
        generator.score(rig.questions(2), [[40, 41, 42], [43]])
        assert len(server.completions) - before == 3 + 1


def test_traces_are_the_local_ones(whole: CompletionsServer) -> None:
    """Of a text longer than one chunk, all numbers of the trace are the local ones to 1e-3."""
    ids = list(rig.greedy(16)[0]) + list(rig.greedy(16)[1])[:8]
    [text] = rig.questions(16)[:1]
    wanted = rig.local().trace(text, continuation=ids)
    found = rig.remote(whole.url).trace(text, continuation=ids)
    assert found.distributions == wanted.distributions
    for one, other in zip(found.tokens, wanted.tokens, strict=True):
        assert (one.token_id, one.is_changed, one.base_rank) == (other.token_id, other.is_changed, other.base_rank)
        assert one.kl_combined_base == pytest.approx(other.kl_combined_base, abs=1e-3)
        assert one.chosen.probabilities == pytest.approx(other.chosen.probabilities, abs=1e-3)
    assert len(found.tokens) == 40


def test_streams_are_the_local_ones(whole: CompletionsServer) -> None:
    """A stream's pieces join to the local text."""
    [wanted] = rig.local().generate(rig.questions(1), max_new_tokens=16)
    assert "".join(rig.remote(whole.url).stream(rig.questions(1)[0], max_new_tokens=16)) == wanted.text
