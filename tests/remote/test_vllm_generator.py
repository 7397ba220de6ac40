"""Generation with the base in a real vLLM server on this machine."""

from typing import Any

import pytest

from tests.remote import rig


@pytest.mark.parametrize(
    ("batch_size", "count", "speculation", "way"),
    [(8, 16, "off", "auto"), (8, 16, 4, "prompts"), (1, 3, "off", "auto"), (1, 3, 4, "prompt_logprobs")],
)
def test_greedy_tokens_are_the_local_ones(
    vllm_completions_url: str, batch_size: int, count: int, speculation: Any, way: str
) -> None:
    """With the whole vocabulary, answers of 32 tokens equal the local composite's, drafts or not."""
    generator = rig.remote(vllm_completions_url, speculation=speculation, verification=way)
    assert generator.model.base.remote.num_logprobs is None
    found = generator.generate(rig.questions()[:count], batch_size=batch_size, **rig.EXACT)
    assert rig.tokens(found) == rig.greedy()[:count]
    generator.close()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_drafts_need_a_request_for_two_tokens_at_most(vllm_completions_url: str, batch_size: int) -> None:
    """On the demo's own answers, up to their end, four drafts need at most half a request per token."""
    generator = rig.remote(vllm_completions_url, speculation=4, top_logprobs=20)
    found = generator.generate(rig.questions(8), max_new_tokens=32, batch_size=batch_size, stats=True)
    num_requests = sum(
        row.timing.stats.requests_per_token * row.timing.stats.num_tokens / row.timing.batch_size for row in found
    )
    assert num_requests <= 0.5 * sum(len(row.token_ids) for row in found)
    generator.close()


def test_draws_are_the_local_ones(vllm_completions_url: str) -> None:
    """Seeded draws, an α per row and a prompt per role give the local composite's tokens."""
    options: dict[str, Any] = {"max_new_tokens": 16, "temperature": 0.9, "seed": [1, 2, 3, 4], "alpha": [0.0, 1, 1, 2]}
    wanted = rig.local(formats=True).generate(rig.questions(4), **options)
    generator = rig.remote(vllm_completions_url, speculation=3, roles=rig.FORMATS)
    assert rig.tokens(generator.generate(rig.questions(4), **options)) == rig.tokens(wanted)
    generator.close()


def test_with_the_20_likeliest_the_choice_is_the_local_one_where_it_was_seen(vllm_completions_url: str) -> None:
    """Place by place behind the same text: a local choice among the base's 20 is the remote choice, drafts or not."""
    generator = rig.remote(vllm_completions_url, top_logprobs=20)
    num_seen = 0
    for text, ids in zip(rig.questions(4), rig.greedy()[:4], strict=True):
        here = rig.local().trace(text, continuation=list(ids), trace=20)
        there = generator.trace(text, continuation=list(ids), trace=1)
        for one, other in zip(here.tokens, there.tokens, strict=True):
            choice = max(one.candidates, key=lambda candidate: candidate.probabilities[-1])
            base = sorted((candidate.probabilities[0] for candidate in one.candidates), reverse=True)
            # The trace keeps the 20 likeliest of every distribution, so the base's 20 are the first 20 of its order.
            if choice.probabilities[0] >= base[19]:
                num_seen += 1
                assert max(other.candidates, key=lambda each: each.probabilities[-1]).token_id == choice.token_id
    assert num_seen > 60
    plain = generator.generate(rig.questions(4), max_new_tokens=16)
    drafted = rig.remote(vllm_completions_url, top_logprobs=20, speculation=4).generate(
        rig.questions(4), max_new_tokens=16
    )
    assert rig.tokens(drafted) == rig.tokens(plain)
    assert all(0.0 < mass < 1.0 for row in plain for mass in row.base_mass)
    generator.close()


def test_scores_are_the_local_ones(vllm_completions_url: str) -> None:
    """Log-probabilities of a continuation are the local ones to 1e-3."""
    wanted = rig.local().score(rig.questions(2), [" In the north.", " No"])
    found = rig.remote(vllm_completions_url).score(rig.questions(2), [" In the north.", " No"])
    for one, other in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
