"""The sampler all runtimes share: by hand, row by row, and with drafts."""

from typing import Any

import pytest
import torch

from proxytune.options import GenerationOptions
from proxytune.sampling import ExponentialNoise, Sampler, draw, penalised, seen_ids
from tests import tiny
from tests.hf.decoding.rigs import by_generate

CPU = torch.device("cpu")
SIZE = 12
SEEDS = [3, 4, 5]
PROMPTS = [[1, 5], [2, 6, 99], [7]]
OPTIONS: dict[str, Any] = {"temperature": 0.8, "top_k": 9, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.3}


def draws(seed: int, *shape: int) -> torch.Tensor:
    """Return normal numbers of one seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def sampler(seeds: list[int], prompts: list[list[int]], max_positions: int = 4, **options: Any) -> Sampler:
    """Return a sampler over 12 ids."""
    checked = GenerationOptions(**options)
    return Sampler(checked, seeds, prompts, vocab_size=SIZE, max_positions=max_positions, device=CPU)


def token_by_token(row: int, logits: torch.Tensor, **options: Any) -> list[int]:
    """Return the tokens of one row alone for logits `[T, V]`, one position at a time."""
    alone = sampler([SEEDS[row]], [PROMPTS[row]], 1, **options)
    tokens = []
    for position in range(len(logits)):
        alone.prepare([position], 1)
        token = alone.sample(logits[None, position : position + 1], torch.tensor([[position]]))
        alone.update_seen(token, torch.ones_like(token, dtype=torch.bool))
        tokens.append(int(token))
    return tokens


def test_a_token_by_hand() -> None:
    """Penalty, then temperature, then the largest ratio of probability to noise."""
    logits = torch.tensor([[2.0, 1.0, -1.0]])
    seen = seen_ids([[0, 2, 7]], 3, CPU)
    scores = penalised(logits, seen, 2.0)
    assert scores.tolist() == [[1.0, 1.0, -2.0]]
    probabilities = (scores / 0.5).softmax(-1)
    assert probabilities[0, 0] == probabilities[0, 1]
    assert draw(scores / 0.5, torch.tensor([[1.0, 0.9, 1.0]])).tolist() == [1]


def test_greedy_is_the_likeliest_token() -> None:
    """At temperature 0 noise, filters and seeds play no part."""
    logits = draws(0, 3, 2, SIZE)
    greedy = sampler(SEEDS, PROMPTS, top_k=3, top_p=0.5)
    greedy.prepare([0, 0, 0], 2)
    assert torch.equal(greedy.sample(logits, torch.zeros(3, 2)), logits.argmax(-1))


@pytest.mark.parametrize("options", [{"temperature": 1.0}, OPTIONS, {"repetition_penalty": 1.5}], ids=str)
def test_several_positions_at_once_equal_one_at_a_time(options: dict[str, Any]) -> None:
    """Where every draft is the token itself, a pass over four positions gives each row's tokens of four passes."""
    logits = draws(1, 3, 4, SIZE)
    expected = torch.tensor([token_by_token(row, logits[row], **options) for row in range(3)])
    together = sampler(SEEDS, PROMPTS, **options)
    together.prepare([0, 0, 0], 4)
    positions = torch.arange(4).expand(3, -1)
    assert torch.equal(together.sample(logits, positions, expected[:, :3]), expected)


def test_rows_that_are_kept_go_on_as_before() -> None:
    """Rows that stay, in another order, sample what they sample alone: noise and seen tokens move with them."""
    logits = draws(2, 3, 4, SIZE)
    expected = [token_by_token(row, logits[row], **OPTIONS) for row in range(3)]
    batch = sampler(SEEDS, PROMPTS, **OPTIONS)
    rows = [0, 1, 2]
    for position in range(4):
        if position == 2:
            batch.select_rows([2, 0])
            rows = [2, 0]
        batch.prepare([position] * len(rows), 1)
        at = torch.full((len(rows), 1), position)
        token = batch.sample(logits[rows, position : position + 1], at)
        batch.update_seen(token, torch.ones_like(token, dtype=torch.bool))
        assert token[:, 0].tolist() == [expected[row][position] for row in rows]


def test_only_new_tokens_are_seen() -> None:
    """A token that was rejected is not penalised afterwards."""
    logits = torch.full((1, 1, SIZE), 1.0)
    logits[0, 0, 3] = 1.1
    row = sampler([0], [[5]], repetition_penalty=2.0)
    position = torch.zeros(1, 1, dtype=torch.long)
    row.update_seen(torch.tensor([[4, 3]]), torch.tensor([[True, False]]))
    assert row.sample(logits, position).item() == 3
    row.update_seen(torch.tensor([[3]]), torch.tensor([[True]]))
    assert row.sample(logits, position).item() == 0


def test_noise_of_a_position_does_not_depend_on_how_it_was_drawn() -> None:
    """Position by position, or many at once: the same numbers, of which a ring holds the last."""
    one, many = ExponentialNoise([7], 5, 1, CPU), ExponentialNoise([7], 5, 4, CPU)
    many.draw([4])
    for position in range(4):
        one.draw([position + 1])
        assert torch.equal(one.latest(), many.at(torch.tensor([[position]]))[:, 0])
    one.draw([2])
    assert torch.equal(one.latest(), many.at(torch.tensor([[3]]))[:, 0])


@pytest.mark.parametrize(
    "options", [{"temperature": 0.9, "top_p": 0.8}, {"temperature": 1.0, "repetition_penalty": 1.4}]
)
def test_transformers_generate_samples_as_our_loop_does(options: dict[str, Any]) -> None:
    """Both ways of the hf runtime share the sampler: equal seeds, equal tokens, rows of unequal prompts included."""
    prompts = [tiny.prompt_ids(length, seed=length) for length in (3, 8, 5)]
    arguments = {"max_new_tokens": 12, "ignore_eos": True, "temperature": 0.9, "seed": [1, 2, 3], **options}
    ours = tiny.generator().generate(prompts, **arguments)
    theirs = by_generate(tiny.generator()).generate(prompts, **arguments)
    assert [row.token_ids for row in ours] == [row.token_ids for row in theirs]
