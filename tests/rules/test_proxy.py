"""Proxy tuning's rule: numbers worked out by hand, and its identities."""

import pytest
import torch

from proxytune import steer
from proxytune.rules import rule_of

INF, NAN = float("inf"), float("nan")


def draws(seed: int, *shape: int) -> torch.Tensor:
    """Return normal numbers of one seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 5


def test_the_rule_by_hand() -> None:
    """Base + α(expert − anti), worked out for four tokens and the five strengths."""
    base = torch.tensor([[1.0, 2.0, -3.0, 0.5]])
    expert = torch.tensor([[0.0, 4.0, 1.0, 0.25]])
    anti = torch.tensor([[2.0, 1.0, 1.0, -0.25]])
    wanted = {
        0.0: [1.0, 2.0, -3.0, 0.5],
        0.5: [0.0, 3.5, -3.0, 0.75],
        1.0: [-1.0, 5.0, -3.0, 1.0],
        2.0: [-3.0, 8.0, -3.0, 1.5],
        -1.0: [3.0, -1.0, -3.0, 0.0],
    }
    for alpha, line in wanted.items():
        assert steer(base, expert, anti, alpha).tolist() == [line]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("alpha", [0, 0.0, torch.tensor(0.0), torch.tensor([0.0, 0.0])])
def test_alpha_zero_is_base_whatever_the_others_are(alpha: object, bad: float) -> None:
    """With strength 0 not even NaN or infinite logits of expert and anti reach the result."""
    base, other = draws(0, 2, 7), torch.full((2, 7), bad)
    assert torch.equal(steer(base, other, -other, alpha), base)
    assert torch.equal(steer(base, other, other, alpha), base)


def test_only_rows_of_alpha_zero_ignore_the_others() -> None:
    """In one batch the row of strength 0 is base although its small models are NaN; the other row is steered."""
    base, expert, anti = draws(0, 2, 5), draws(1, 2, 5), draws(2, 2, 5)
    expert[0] = NAN
    found = steer(base, expert, anti, torch.tensor([0.0, 2.0]))
    assert torch.equal(found[0], base[0])
    assert torch.allclose(found[1], base[1] + 2 * (expert[1] - anti[1]))


@pytest.mark.parametrize("seed", range(20))
def test_expert_equal_to_anti_is_base(seed: int) -> None:
    """Equal small models change nothing, exactly, at any strength, also where both rule tokens out."""
    base, both = draws(seed, 3, 11), draws(seed + 100, 3, 11)
    both[0, 4] = -INF
    assert torch.equal(steer(base, both, both, float(draws(seed, 1))), base)


@pytest.mark.parametrize("seed", range(20))
def test_row_constants_change_no_probability(seed: int) -> None:
    """A constant added to any argument's row leaves the distribution as it was."""
    base, expert, anti = (draws(seed + number, 4, 9) for number in range(3))
    first, second, third = (draws(seed + number, 4, 1) for number in (10, 11, 12))
    wanted = steer(base, expert, anti, 1.5).softmax(-1)
    found = steer(base + first, expert + second, anti + third, 1.5).softmax(-1)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, -1.0, torch.tensor([1.0, -2.0, 0.0])])
@pytest.mark.parametrize("seed", range(10))
def test_infinities_never_become_nan_or_plus_infinity(seed: int, alpha: object) -> None:
    """Wherever tokens are ruled out, base's −inf survives, both-ruled-out adds nothing, and nothing else breaks."""
    base, expert, anti = (draws(seed + number, 3, 40) for number in range(3))
    for number, logits in enumerate((base, expert, anti)):
        logits[draws(seed + 50 + number, 3, 40) > 3] = -INF
    found = steer(base, expert, anti, alpha)
    assert not torch.isnan(found).any()
    assert not (found == INF).any()
    assert (found[base == -INF] == -INF).all()
    neither = (expert == -INF) & (anti == -INF)
    assert neither.any()
    assert torch.equal(found[neither], base[neither])


def test_a_token_one_of_them_rules_out() -> None:
    """Ruled out where the signed ratio is 0; as the base has it where the ratio would be infinite."""
    base, finite, ruled = torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[-INF]])
    assert steer(base, ruled, finite, 1.0).item() == -INF
    assert steer(base, finite, ruled, 1.0).item() == 1.0
    assert steer(base, ruled, finite, -1.0).item() == 1.0
    assert steer(base, finite, ruled, -1.0).item() == -INF


def test_alpha_per_row_broadcasts_over_positions() -> None:
    """α [B] acts on the first dimension of [B, T, V], as each row alone, and of [B, V]."""
    base, expert, anti = (draws(number, 3, 4, 6) for number in range(3))
    alphas = torch.tensor([0.5, -1.0, 2.0])
    found = steer(base, expert, anti, alphas)
    for row, alpha in enumerate(alphas.tolist()):
        assert torch.equal(found[row], steer(base[row], expert[row], anti[row], alpha))
    assert torch.equal(steer(base[:, 0], expert[:, 0], anti[:, 0], alphas), found[:, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_in_float32_out(dtype: torch.dtype) -> None:
    """The sum is taken in float32: half-precision inputs lose nothing further."""
    base, expert, anti = (draws(number, 2, 50).to(dtype) for number in range(3))
    found = steer(base, expert, anti, 0.3)
    assert found.dtype == steer(base, expert, anti, 0).dtype == torch.float32
    assert torch.equal(found, base.float() + 0.3 * (expert.float() - anti.float()))


def test_several_pairs_add_up() -> None:
    """Each pair adds its own difference at the strength of its row, by hand; no pair gives base in float32."""
    base = torch.tensor([[[1.0, 2.0]], [[0.5, -1.0]]])
    first, second = torch.tensor([[[2.0, 1.0]]] * 2), torch.tensor([[[0.0, 4.0]]] * 2)
    anti = torch.tensor([[[1.0, 1.0]]] * 2)
    strengths = torch.tensor([[1.0, 0.5], [2.0, 0.0]])
    combined = rule_of("proxy").combine(base, [(first, anti), (second, anti)], strengths)
    assert combined.tolist() == [[[1.0 + 1.0 - 0.5, 2.0 + 0.0 + 1.5]], [[0.5 + 2.0, -1.0]]]
    alone = rule_of("proxy").combine(base.half(), [], torch.zeros(2, 0))
    assert (alone.dtype, alone.tolist()) == (torch.float32, base.tolist())


def test_one_row_of_strengths_is_for_all_rows() -> None:
    """Strengths `[1, P]` act as the same row `[B, P]`."""
    base, expert, anti = (draws(number, 3, 2, 5) for number in range(3))
    rule = rule_of("proxy")
    expected = rule.combine(base, [(expert, anti)], torch.full((3, 1), 0.7))
    assert torch.equal(rule.combine(base, [(expert, anti)], torch.tensor([[0.7]])), expected)


@pytest.mark.parametrize("role", range(3))
def test_nan_of_any_role_shows(role: int) -> None:
    """A role that computes nothing shows in its row where it is NaN, beside infinities too, and not in other rows."""
    logits = [draws(number, 2, 6) for number in range(3)]
    logits[1][:, 0] = logits[2][:, 0] = -INF
    logits[role][0, 3] = NAN
    combined = steer(*logits, torch.tensor([1.5, 1.5]))
    assert torch.isnan(combined[0, 3])
    assert not torch.isnan(combined[1]).any()


def test_the_arguments_stay_as_they_are() -> None:
    """The rule writes into none of its arguments, float32 ones included."""
    logits = [draws(number, 2, 3, 6) for number in range(3)]
    copies = [entry.clone() for entry in logits]
    rule_of("proxy").combine(logits[0], [(logits[1], logits[2])], torch.tensor([[0.5], [0.0]]))
    assert all(torch.equal(entry, copy) for entry, copy in zip(logits, copies, strict=True))
