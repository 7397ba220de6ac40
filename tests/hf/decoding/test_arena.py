"""The memory that recordings of one pass share."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proxytune.hf.decoding.arena import Arena
from proxytune.hf.decoding.recording import record


def _program(seed: int) -> Callable[[Tensor], Tensor]:
    """Return a function of many steps at random: new memory, views, changes in place, other sizes and dtypes."""

    def run(states: Tensor) -> Tensor:
        choose = random.Random(seed)
        known = [states * 2]
        for _ in range(40):
            one, other = choose.choice(known), choose.choice(known)
            match choose.randrange(7):
                case 0:
                    new = one + other
                case 1:
                    new = one[:, : choose.randint(1, one.shape[1])].repeat(1, 8)[:, : one.shape[1]]
                case 2:
                    new = torch.empty_like(one).copy_(other).add_(1)
                case 3:
                    new = one.transpose(0, 1).contiguous().view(one.shape[1], -1).double().t().float().cos()
                case 4:
                    new = torch.zeros(3, 8).index_copy_(1, torch.arange(7, -1, -1), one)
                case 5:
                    new = one.sort(dim=1)[0] + one.sum(dim=1, keepdim=True)
                case _:
                    # Whoever has read it before has read what it was.
                    new = one.mul_(0.5)
            known.append(new)
        return known[-1] + known[-2][:, :1]

    return run


@torch.no_grad()
@pytest.mark.parametrize("seed", range(20))
def test_what_lives_at_the_same_time_lies_apart(seed: int) -> None:
    """Programs at random, three in one arena and in any order, give what they give without it, bit for bit."""
    arena = Arena()
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    programs = [_program(3 * seed + number) for number in range(3)]
    recordings = [record(lambda run=run: run(states), [states], arena)[0] for run in programs]  # type: ignore[misc]
    for step, place in enumerate([0, 2, 1, 1, 0, 2]):
        states.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(step)))
        assert torch.equal(recordings[place].replay(), programs[place](states))


@torch.no_grad()
def test_layers_take_the_memory_of_one() -> None:
    """A hundred layers need what one needs, a smaller recording no more; a larger one changes nothing for those."""
    arena = Arena()

    def run(states: Tensor) -> Tensor:
        for _ in range(100):
            states = states + (states * 3).tanh()
        return states

    small, large = torch.ones(1000), torch.ones(5000)
    first, _ = record(lambda: run(small), [small], arena)
    assert first.num_kernels == 300
    assert arena.num_bytes <= 4 * small.nbytes + 4 * 64
    num_bytes = arena.num_bytes
    second, _ = record(lambda: run(small[:500]), [small], arena)
    assert arena.num_bytes == num_bytes
    third, _ = record(lambda: run(large), [large], arena)
    assert arena.num_bytes <= 4 * large.nbytes + 4 * 64
    small.fill_(0.1)
    assert torch.equal(third.replay(), run(large))
    assert torch.equal(first.replay(), run(small))
    assert torch.equal(second.replay(), run(small[:500]))
