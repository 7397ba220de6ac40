"""Seeded rows of one vLLM batch, without an engine: the tokens of the sampler, whatever else is in the batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from proxytune.options import GenerationOptions
from proxytune.sampling import Sampler
from proxytune.vllm.plan import Plan, RolePlan

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from proxytune.vllm.seeded_sampling import SeededSampling, draw_arguments

SIZE, WIDTH, NUM_TOKENS = 20, 24, 6
ROWS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 8, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0},
    {"temperature": 1.3, "repetition_penalty": 1.4},
]
PROMPTS = [[1, 5], [2, 6, 7], [8], [9, 9, 22]]


def processor() -> SeededSampling:
    """Return the processor of a composite whose 24 logits hold 20 shared ids."""
    roles = tuple(RolePlan(name=name, model=name) for name in ("base", "expert", "anti"))
    plan = Plan(roles=roles, pairs=((1, 2),), alphas=(1.0,), vocab_size=SIZE)
    config = SimpleNamespace(model_config=SimpleNamespace(hf_config=SimpleNamespace(**plan.overrides())))
    return SeededSampling(config, torch.device("cpu"), False)


def params(row: int) -> SamplingParams:
    """Return the parameters of a row as the runtime makes them."""
    return SamplingParams(temperature=0.0, extra_args=draw_arguments(GenerationOptions(**ROWS[row]), seed=30 + row))


def update(added: Any = (), removed: Any = (), moved: Any = ()) -> BatchUpdate:
    """Return a change of the batch."""
    return BatchUpdate(batch_size=4, added=list(added), removed=list(removed), moved=list(moved))


def logits_of(row: int, length: int) -> torch.Tensor:
    """Return the logits `[24]` of a row whose answer has `length` tokens."""
    draws = torch.Generator().manual_seed(100 * row + length)
    return torch.randn(WIDTH, generator=draws) * 2


def expected(row: int) -> list[int]:
    """Return the tokens that the sampler of the hf runtime gives the row alone."""
    options = GenerationOptions(**ROWS[row])
    sampler = Sampler(options, [30 + row], [PROMPTS[row]], vocab_size=SIZE, device=torch.device("cpu"))
    tokens = []
    for length in range(NUM_TOKENS):
        sampler.prepare([length], 1)
        token = sampler.sample(logits_of(row, length)[None, None, :SIZE], torch.tensor([[length]]))
        sampler.update_seen(token, torch.ones_like(token, dtype=torch.bool))
        tokens.append(int(token))
    return tokens


def test_rows_of_different_settings_that_come_go_and_move() -> None:
    """Each gives the hf sampler's tokens while rows join, swap, leave, and a greedy row stays as it is."""
    seeded, outputs = processor(), {row: [] for row in range(4)}  # type: ignore[var-annotated]
    batch = [0, 1]
    seeded.update_state(update([(row, params(row), PROMPTS[row], outputs[row]) for row in batch]))
    for step in range(2 * NUM_TOKENS):
        if step == 2:
            batch += [2, 3]
            seeded.update_state(
                update(
                    [(index, params(batch[index]), PROMPTS[batch[index]], outputs[batch[index]]) for index in (2, 3)]
                )
            )
        if step == 4:
            batch[0], batch[3] = batch[3], batch[0]
            seeded.update_state(update(moved=[(0, 3, MoveDirectionality.SWAP)]))
        if step == NUM_TOKENS:
            # Row 0, in the last place, has its tokens, and row 1 too.
            seeded.update_state(update(removed=[3, 1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)]))
            batch = [batch[0], batch[2]]
        if not any(len(outputs[row]) < NUM_TOKENS for row in batch):
            break
        logits = torch.stack([logits_of(row, len(outputs[row])) for row in batch] + [logits_of(9, step)])
        plain = logits[-1].clone()
        result = seeded.apply(logits)
        assert torch.equal(result[-1], plain)
        for row, line in zip(batch, result, strict=False):
            assert (line > -torch.inf).sum() == 1
            outputs[row].append(int(line.argmax()))
    assert all(outputs[row][:NUM_TOKENS] == expected(row) for row in range(4))


def test_a_step_that_runs_again_draws_the_same() -> None:
    """A prompt's chunks end in steps whose token is thrown away, and a preempted request begins again: same tokens."""
    seeded, output = processor(), [3, 4]
    seeded.update_state(update([(0, params(0), PROMPTS[0], output)]))
    first = seeded.apply(logits_of(0, 2)[None]).argmax().item()
    assert seeded.apply(logits_of(0, 2)[None]).argmax().item() == first == expected(0)[2]


def test_penalties_that_only_vllm_has_count_the_answer() -> None:
    """A seeded request of vLLM's own API: presence and frequency by hand on the logits, then the sampler's draw."""
    own = SamplingParams(temperature=1.0, seed=5, presence_penalty=0.5, frequency_penalty=0.25)
    SeededSampling.validate_params(own)
    assert own.temperature == 0.0
    seeded, output = processor(), [3, 3, 4]
    seeded.update_state(update([(0, own, [1], output)]))
    logits = logits_of(0, 3)
    token = seeded.apply(logits[None].clone()).argmax().item()
    by_hand = logits[:SIZE].clone()
    by_hand[3] -= 0.5 + 2 * 0.25
    by_hand[4] -= 0.5 + 0.25
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        noise = torch.empty(SIZE).exponential_(generator=generator)
    assert token == int((by_hand.softmax(-1) / noise).argmax())
