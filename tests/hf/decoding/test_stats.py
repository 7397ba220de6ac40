"""The figures of a batch: they fit one another and what can be counted by hand."""

from typing import Any

import pytest
import torch

from proxytune.hf.decoding.stats import memory_roofline
from tests import tiny
from tests.hf.decoding.rigs import agreeing

PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (9, 3, 6)]
LONG: dict[str, Any] = {"max_new_tokens": 13, "ignore_eos": True}


def test_figures_fit_one_another() -> None:
    """Tokens, cycles and seconds of a batch with drafts; every row of it has the same."""
    rows = tiny.generator(speculation=3).generate(PROMPTS, stats=True, **LONG)
    stats = rows[0].timing.stats
    assert all(row.timing.stats == stats for row in rows)
    assert stats.num_tokens == 39
    assert 4 <= stats.num_cycles <= 12
    assert len(stats.acceptance) == 3
    assert all(0 <= share <= 1 for share in stats.acceptance)
    assert list(stats.acceptance) == sorted(stats.acceptance, reverse=True)
    assert set(stats.role_seconds) == {"base", "expert", "anti"}
    assert 0 < sum(stats.role_seconds.values()) <= rows[0].timing.seconds
    assert stats.tokens_per_second == pytest.approx(39 / rows[0].timing.seconds, rel=0.2)


def test_tokens_per_cycle_count_the_drafts_that_stood() -> None:
    """Thirteen tokens by four a cycle: the first from the prompt, then three cycles."""
    stats = agreeing(speculation=3).generate(PROMPTS, stats=True, **LONG)[0].timing.stats
    assert (stats.num_cycles, stats.tokens_per_cycle, stats.num_drafted, stats.num_tokens) == (3, 4.0, 3.0, 39)


def test_nothing_is_measured_unless_asked_for() -> None:
    """No stats without `stats=True`; without speculation there is no acceptance."""
    generator = tiny.generator(speculation="off")
    assert generator.generate(PROMPTS, **LONG)[0].timing.stats is None
    stats = generator.generate(PROMPTS, stats=True, **LONG)[0].timing.stats
    assert (stats.acceptance, stats.tokens_per_cycle, stats.num_drafted, stats.num_cycles) == ((), 1.0, 0.0, 12)


def test_the_floor_by_hand() -> None:
    """Bytes of all weights but those that are only looked up; a tied head is read whole; shared weights count once."""
    generator = tiny.generator()
    base, expert, anti = tiny.trio()

    def size(model: Any) -> int:
        return (
            sum(4 * parameter.numel() for parameter in model.parameters()) - 4 * model.model.embed_tokens.weight.numel()
        )

    floor = memory_roofline(generator.model)
    assert floor.bytes_per_token == size(base) + size(expert) + size(anti)
    assert floor.ratio == pytest.approx(floor.bytes_per_token / size(base))
    tied = tiny.new_model("llama", 5, tie_word_embeddings=True)
    whole = sum(4 * parameter.numel() for parameter in tied.parameters())
    shared = type(generator)(tied, tied, anti, tokenizer=tiny.word_tokenizer(), expert_prompt="w1 {prompt}")
    assert memory_roofline(shared.model).bytes_per_token == whole + size(anti)
    assert torch.is_tensor(tied.lm_head.weight)
