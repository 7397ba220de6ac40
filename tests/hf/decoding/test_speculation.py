"""Speculation at its edges: drafts all right, all wrong, ends inside a draft; and sampled tokens' distribution."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from proxytune import ProxyGenerator
from tests import tiny
from tests.hf.decoding.rigs import agreeing, disagreeing, tokens
from tests.reference import Reference

PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (9, 3, 6)]
LONG: dict[str, Any] = {"max_new_tokens": 13, "ignore_eos": True}
NUM_DRAWS = 50_000
SIZE = 8


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_drafts_that_are_all_right(options: dict[str, Any]) -> None:
    """An expert that is base and anti keeps every draft: after the first token, cycles of k + 1."""
    wanted = agreeing(speculation="off").generate(PROMPTS, **LONG, **options)
    found = agreeing(speculation=3).generate(PROMPTS, stats=True, **LONG, **options)
    assert tokens(found) == tokens(wanted)
    stats = found[0].timing.stats
    assert stats.acceptance == (1.0, 1.0, 1.0)
    assert (stats.num_cycles, stats.tokens_per_cycle, stats.num_drafted) == (3, 4.0, 3.0)


def test_drafts_that_are_all_wrong() -> None:
    """An expert that contradicts: no draft is kept, each cycle gives one token, and it is the plain one."""
    wanted = disagreeing(speculation="off").generate(PROMPTS, **LONG)
    found = disagreeing(speculation=3).generate(PROMPTS, stats=True, **LONG)
    assert tokens(found) == tokens(wanted)
    stats = found[0].timing.stats
    assert set(stats.acceptance) == {0.0}
    assert (stats.num_cycles, stats.tokens_per_cycle) == (12, 1.0)


def test_an_end_inside_a_draft() -> None:
    """Wherever in a draft the end-of-text token falls, the row ends with it and its neighbours go on."""
    ids = agreeing(speculation="off").generate(PROMPTS, **LONG)[0].token_ids
    fresh = [place for place in range(1, 12) if ids[place] not in ids[:place]]
    assert {place % 4 for place in fresh} == {0, 1, 2, 3}
    for place in fresh:
        plain, drafting = (
            agreeing(speculation=speculation, eos_token_ids=[ids[place]]).generate(PROMPTS, max_new_tokens=13)
            for speculation in ("off", 3)
        )
        assert tokens(drafting) == tokens(plain)
        assert (drafting[0].token_ids, drafting[0].finish_reason) == (ids[: place + 1], "eos")


@pytest.mark.parametrize("place", range(1, 10))
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_stop_text_across_a_drafts_end(place: int, length: int) -> None:
    """A stop text anywhere, over the end of a draft too: text, ids and log-probabilities end as in plain decoding."""
    [free] = agreeing(speculation="off").generate(PROMPTS[:1], **LONG)
    stop = " ".join(free.text.split()[place : place + length])
    plain, drafting = (
        agreeing(speculation=speculation).generate(PROMPTS, stop=stop, logprobs=2, **LONG) for speculation in ("off", 3)
    )
    assert drafting[0].finish_reason == "stop"
    for one, other in zip(drafting, plain, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        assert [entry.token_id for entry in one.logprobs] == list(one.token_ids)
        for entry, wanted in zip(one.logprobs, other.logprobs, strict=True):
            assert entry.logprob == pytest.approx(wanted.logprob, abs=1e-4)
            assert list(entry.top) == list(wanted.top)


def test_limits_of_their_own() -> None:
    """Rows that may give fewer tokens than a draft has give so many, and never one more."""
    for count in range(1, 7):
        rows = agreeing(speculation=5).generate(PROMPTS, max_new_tokens=count, ignore_eos=True)
        assert [len(row.token_ids) for row in rows] == [count] * 3


def test_a_stream_of_drafts() -> None:
    """Streamed text is that of generate, in as many pieces as it has words; closing ends the work."""
    generator = agreeing(speculation=3)
    [done] = generator.generate(PROMPTS[:1], **LONG)
    pieces = list(generator.stream(PROMPTS[0], **LONG))
    assert "".join(pieces) == done.text
    assert len(pieces) == 13
    stream = generator.stream(PROMPTS[0], **LONG)
    next(stream)
    stream.close()


def test_many_rows_that_end_at_different_times() -> None:
    """Forty rows of random ends leave the batch in groups: each equals itself alone, sampled by its seed."""
    generator = tiny.generator(speculation=2, eos_token_ids=[5, 6, 7, 8])
    prompts = [tiny.prompt_ids(2 + index % 9, seed=index) for index in range(40)]
    options: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.0, "repetition_penalty": 1.1}
    together = generator.generate(prompts, seed=list(range(40)), batch_size=40, **options)
    assert len({len(row.token_ids) for row in together}) > 5
    for index in range(0, 40, 5):
        [alone] = tiny.generator(speculation="off", eos_token_ids=[5, 6, 7, 8]).generate(
            prompts[index], seed=index, **options
        )
        assert together[index].token_ids == alone.token_ids


@pytest.fixture(scope="module")
def draws() -> tuple[list[tuple[int, ...]], Reference]:
    """50,000 seeded answers of three tokens to one prompt, two of them from drafting cycles; and the reference."""
    trio = [tiny.model("llama", seed, vocab_size=SIZE, scale=0.12) for seed in (21, 22, 23)]
    tokenizer = tiny.word_tokenizer([f"w{index}" for index in range(SIZE - 4)])
    generator = ProxyGenerator(*trio, tokenizer=tokenizer, speculation=2)
    rows = generator.generate(
        [[1, 5, 6]] * NUM_DRAWS,
        max_new_tokens=3,
        temperature=0.8,
        seed=list(range(NUM_DRAWS)),
        ignore_eos=True,
        batch_size=5000,
    )
    return tokens(rows), Reference(trio[0], [(trio[1], trio[2])], SIZE)


def test_the_distribution_of_the_first_three_tokens(draws: tuple[list[tuple[int, ...]], Reference]) -> None:
    """Chi-square of each place's counts, and of first and second together, against exact probabilities: p > 0.001."""
    found, reference = draws

    def following(prefix: list[int]) -> torch.Tensor:
        return (reference.logits([[1, 5, 6, *prefix]] * 3, [1.0]).double() / 0.8).softmax(-1)

    first = following([])
    second = torch.stack([following([one]) for one in range(SIZE)])
    third = torch.stack([following([one, two]) for one in range(SIZE) for two in range(SIZE)])
    joint = (first[:, None] * second).flatten()
    for place, exact in enumerate((first, first @ second, joint @ third)):
        require_likely([row[place] for row in found], exact)
    require_likely([row[0] * SIZE + row[1] for row in found], joint)


def require_likely(outcomes: list[int], exact: torch.Tensor) -> None:
    """Fail if the outcomes' counts are unlikely (p ≤ 0.001); outcomes expected less than five times are one."""
    counts = torch.tensor(outcomes).bincount(minlength=len(exact)).double()
    expected = exact * len(outcomes)
    rare = expected < 5
    cells, wanted = counts[~rare].tolist(), expected[~rare].tolist()
    if rare.any():
        cells, wanted = [*cells, float(counts[rare].sum())], [*wanted, float(expected[rare].sum())]
    assert len(cells) >= 5
    assert chisquare(cells, wanted).pvalue > 0.001
