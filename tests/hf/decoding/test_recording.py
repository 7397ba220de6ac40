"""Forwards recorded as their kernels and replayed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from proxytune.hf.decoding.arena import Arena
from proxytune.hf.decoding.operators import UnrecordableError
from proxytune.hf.decoding.recording import record

WEIGHT = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def _layer(states: Tensor) -> Tensor:
    """Run kernels of every kind: into new memory, in place, through views, in several results, in another dtype."""
    scale = torch.arange(1, 5).float() / 7
    mask = torch.zeros(states.shape)
    mask.masked_fill_(states > 0, -1.0)
    product = (states * scale + mask) @ WEIGHT.t()
    left, right = product.chunk(2, dim=-1)
    heads = left.reshape(1, 1, -1, 3)
    mixed = scaled_dot_product_attention(heads, heads, heads)[0, 0]
    highest, place = right.bfloat16().float().sort(dim=-1)
    normed = torch.nn.functional.layer_norm(mixed + highest, (3,))
    return torch.cat([normed * torch.rsqrt(mixed.pow(2).mean(-1, keepdim=True) + 1e-6), place.float()], dim=-1)


@torch.no_grad()
def test_a_replay_does_the_same_bit_for_bit() -> None:
    """It gives what the function gives for the inputs' new contents, in memory of its own each time."""
    states = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    recording, first = record(lambda: _layer(states), [states], Arena())
    assert torch.equal(first, _layer(states))
    kept = first.clone()
    for seed in range(3):
        states.copy_(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)))
        assert torch.equal(recording.replay(), _layer(states))
    assert torch.equal(first, kept)
    # Views, the range and what is made of it are not run again.
    assert recording.num_kernels < 0.7 * recording.num_operators


@torch.no_grad()
def test_what_is_outside_is_read_and_written_anew() -> None:
    """A buffer that the function adds to goes on growing; a weight that was changed in place since counts as it is."""
    step, weight, total = torch.ones(3), torch.ones(3), torch.zeros(2, 3)

    def run() -> Tensor:
        total[0].add_(step * (weight + 1))
        return total[0] * 2

    recording, _ = record(run, [step], Arena())
    assert total[0].tolist() == [2, 2, 2]
    step.fill_(10)
    assert recording.replay().tolist() == [44, 44, 44]
    weight.data.zero_()
    assert recording.replay().tolist() == [64, 64, 64]
    assert total[1].tolist() == [0, 0, 0]


@torch.no_grad()
def test_what_nothing_depends_on_is_not_run() -> None:
    """A result that is dropped costs nothing at a replay."""
    states = torch.randn(4)

    def run() -> Tensor:
        states.exp().log()
        return states + 1

    assert record(run, [states], Arena())[0].num_kernels == 1


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda states: states * states.sum().item(), "depends on the values"),
        (lambda states: states[states > 0], "depends on the values"),
        (lambda states: dropout(states, 0.5), "draws at random"),
        (lambda states: states + torch.rand(4), "draws at random"),
        (lambda states: states.to("meta"), "on meta"),
        (lambda states: states * torch.nn.Buffer(torch.ones(4)).as_subclass(_Own), "a _Own"),
    ],
    ids=["a number", "a selection", "dropout", "noise", "another device", "a subclass"],
)
def test_what_a_replay_would_not_repeat(run: Callable[[Tensor], Tensor], reason: str) -> None:
    """Such a function is refused, with what it is that cannot be repeated."""
    states = torch.ones(4)
    with torch.no_grad(), pytest.raises(UnrecordableError, match=reason):
        record(lambda: run(states), [states], Arena())


class _Own(Tensor):
    """A tensor of another kind."""
