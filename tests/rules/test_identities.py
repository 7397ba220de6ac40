"""What every rule keeps to, on numbers: strength 0, constants, infinities and NaN; and what the rule's text may say."""

import pytest
import torch

from proxytune.errors import OptionError
from proxytune.rules import Rule, rule_names, rule_of
from tests.rules.test_proxy import draws
from tests.rules.test_second_rule import Threefold

INF, NAN = float("inf"), float("nan")
NAMES = [name for name in rule_names() if not issubclass(type(rule_of(name)), Threefold)]
OVER_TIME = "contrastive,beta=0.3,gate=best:0.9,anti_temperature=2"


def tables(seed: int = 0, num_rows: int = 3) -> list[torch.Tensor]:
    """Return logits `[B, 4, 11]` of base, expert and anti."""
    return [draws(seed + number, num_rows, 4, 11) for number in range(3)]


def combined(rule: Rule, logits: list[torch.Tensor], strengths: object) -> torch.Tensor:
    """Return the rule's logits of one pair."""
    return rule(logits[0], [(logits[1], logits[2])], torch.as_tensor(strengths))


@pytest.mark.parametrize("text", [*NAMES, OVER_TIME])
def test_strength_zero_is_base(text: str) -> None:
    """Exactly, by row and by position, whatever expert and anti are; the other positions are another distribution."""
    rule, logits = rule_of(text), tables()
    strengths = torch.full((3, 4, 1), 0.5)
    strengths[0] = strengths[1, 2] = 0
    logits[1][0], logits[2][1, 2] = NAN, INF
    found = combined(rule, logits, strengths)
    assert torch.equal(found[0], logits[0][0])
    assert torch.equal(found[1, 2], logits[0][1, 2])
    assert not torch.allclose(found[2].softmax(-1), logits[0][2].softmax(-1), atol=1e-3)
    assert torch.equal(combined(rule, logits, [[0.0]] * 3), logits[0])
    assert torch.equal(rule(logits[0], [], torch.zeros(3, 0)), logits[0])


@pytest.mark.parametrize("text", [*NAMES, OVER_TIME])
def test_constants_infinities_and_nan(text: str) -> None:
    """Constants change no probability; a token that base rules out stays so; NaN of any role shows in its row alone."""
    rule, logits, strengths = rule_of(text), tables(3), [[0.5]] * 3
    logits[0][:, :, 4] = -INF
    expected = combined(rule, logits, strengths).softmax(-1)
    assert not expected[..., 4].any()
    moved = [table + draws(9 + number, 3, 4, 1) for number, table in enumerate(logits)]
    assert torch.allclose(combined(rule, moved, strengths).softmax(-1), expected, atol=1e-5)
    for role in range(1, 3):
        broken = [table.clone() for table in logits]
        broken[role][1, 0, 6] = NAN
        found = combined(rule_of(rule.name), broken, strengths)
        assert found[1, 0].isnan().any()
        assert not found[[0, 2]].isnan().any()


@pytest.mark.parametrize("text", [*NAMES, OVER_TIME])
def test_rows_and_positions_stand_alone(text: str) -> None:
    """A strength `[1, P]` is that of all rows, and a position's logits depend on no other position."""
    rule, logits = rule_of(text), tables(5)
    found = combined(rule, logits, [[0.7]])
    assert torch.equal(found, combined(rule, logits, [[0.7]] * 3))
    alone = combined(rule, [table[1:2, 2:3] for table in logits], [[0.7]])
    assert torch.equal(found[1:2, 2:3], alone)


def test_shards_and_differences() -> None:
    """Only proxy tuning's sum may see a shard of the vocabulary; a rule of p(expert) needs more than a difference."""
    assert [name for name in NAMES if rule_of(name).is_elementwise] == ["proxy"]
    assert not rule_of("proxy,gate=best:0.5").is_elementwise
    assert [name for name in NAMES if rule_of(name).is_of_differences] == ["contrastive", "nucleus", "proxy"]
    for setting in ("gate=disagreement:1", "anti_temperature=2"):
        assert not rule_of(f"proxy,{setting}").is_of_differences


@pytest.mark.parametrize("text", [*NAMES, OVER_TIME, "nucleus,schedule=linear:8:0:1,p=0.5"])
def test_a_rule_is_its_text(text: str) -> None:
    """A rule's text makes the same rule."""
    assert rule_of(str(rule_of(text))) == rule_of(text) == rule_of(rule_of(text))
    assert rule_of(None) == rule_of("proxy,schedule=constant") == rule_of("proxy")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("proxy,beta=0.1", "rule 'proxy' is given 'beta=0.1': write field=value once per field, of "),
        ("contrastive,beta", "is given 'beta'"),
        ("contrastive,beta=1,beta=1", "once per field"),
        ("contrastive,beta=much", "beta of rule 'contrastive' is 'much': it must be a number."),
        ("contrastive,beta=0", "beta of rule 'contrastive' is 0.0: it must be above 0, and at most 1."),
        ("nucleus,p=1.5", "p of rule 'nucleus' is 1.5"),
        ("proxy,anti_temperature=-1", "anti_temperature of rule 'proxy' is -1.0: it must be above 0."),
        ("proxy,schedule=first", "schedule is 'first': it must be constant, first:TOKENS or linear:TOKENS"),
        ("proxy,schedule=linear:1.5", "schedule is 'linear:1.5'"),
        ("proxy,schedule=linear:4:nan:1", "schedule is 'linear:4:nan:1'"),
        ("proxy,gate=entropy", "gate is 'entropy': it must be entropy:NATS, best:PROBABILITY or disagreement:NATS"),
    ],
)
def test_a_text_that_is_no_rule(text: str, problem: str) -> None:
    """One sentence that names field and value."""
    with pytest.raises(OptionError) as caught:
        rule_of(text)
    assert problem in str(caught.value)
