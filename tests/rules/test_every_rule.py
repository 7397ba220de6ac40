"""Every rule equals a reference of a few lines, however its tokens are made: loop, drafts, beams, score, trace."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor

from proxytune import ProxyGenerator
from tests import tiny
from tests.hf.decoding.rigs import by_generate
from tests.reference import Reference

NUM_TOKENS = 12
ALPHA = 0.6
PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (7, 4, 10)]
BATCH = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}

Formula = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def plain(base: Tensor, expert: Tensor, anti: Tensor, alpha: float) -> Tensor:
    """Proxy tuning."""
    return base + alpha * (expert - anti)


def contrastive(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Tokens below a fifth of the base's best probability go."""
    logits, probs = plain(base, expert, anti, ALPHA), base.softmax(0)
    logits[probs < 0.2 * max(probs)] = -math.inf
    return logits


def nucleus(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """The fewest of the base's likeliest tokens that have 0.8 together."""
    probs, kept, total = base.softmax(0), [], 0.0
    for token in sorted(range(len(base)), key=lambda token: -float(probs[token])):
        kept.append(token)
        total += float(probs[token])
        if total > 0.8:
            break
    logits = torch.full_like(base, -math.inf)
    logits[kept] = plain(base, expert, anti, ALPHA)[kept]
    return logits


def mixture(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Probabilities add, and none is below 0."""
    return (base.softmax(0) + ALPHA * (expert.softmax(0) - anti.softmax(0))).clamp(min=0).log()


def union(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Only what the expert likes better."""
    ratio = expert.log_softmax(0) - anti.log_softmax(0)
    return base + ALPHA * ratio * (ratio > 0)


def intersection(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Only what the expert likes less."""
    ratio = expert.log_softmax(0) - anti.log_softmax(0)
    return base + ALPHA * ratio * (ratio < 0)


def tempered(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Each role has its temperature."""
    return plain(base / 1.5, expert / 0.8, anti / 2.0, ALPHA)


def first_five(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Five tokens are steered."""
    return plain(base, expert, anti, ALPHA if position < 5 else 0.0)


def falling(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Strength falls by an eighth per token."""
    return plain(base, expert, anti, ALPHA * max(0.0, 1 - position / 8))


def rising(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Strength rises from a fifth of α to twice α within four tokens."""
    return plain(base, expert, anti, ALPHA * (0.2 + 1.8 * min(1.0, position / 4)))


def unsure(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Steered where the base's entropy is 0.5 nats or more."""
    probs = base.softmax(0)
    return plain(base, expert, anti, ALPHA if -float((probs * probs.log()).sum()) >= 0.5 else 0.0)


def below_best(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Steered where the base's best probability is below 0.8."""
    return plain(base, expert, anti, ALPHA if max(base.softmax(0)) < 0.8 else 0.0)


def disagreeing(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """Steered where expert and anti are 8 nats apart or more."""
    ratio = expert.log_softmax(0) - anti.log_softmax(0)
    return plain(base, expert, anti, ALPHA if float((expert.softmax(0) * ratio).sum()) >= 8 else 0.0)


def masked_and_timed(base: Tensor, expert: Tensor, anti: Tensor, position: int) -> Tensor:
    """A mask, a schedule, a gate and a temperature together; no mask where nothing is steered."""
    is_open = position < 6 and max(base.softmax(0)) < 0.9
    if not is_open:
        return base
    logits, probs = plain(base, expert, anti / 2.0, ALPHA), base.softmax(0)
    logits[probs < 0.1 * max(probs)] = -math.inf
    return logits


RULES: dict[str, Formula] = {
    "contrastive,beta=0.2": contrastive,
    "nucleus,p=0.8": nucleus,
    "mixture": mixture,
    "union": union,
    "intersection": intersection,
    "proxy,base_temperature=1.5,expert_temperature=0.8,anti_temperature=2": tempered,
    "proxy,schedule=first:5": first_five,
    "proxy,schedule=linear:8": falling,
    "proxy,schedule=linear:4:0.2:2": rising,
    "proxy,gate=entropy:0.5": unsure,
    "proxy,gate=best:0.8": below_best,
    "proxy,gate=disagreement:8": disagreeing,
    "contrastive,schedule=first:6,gate=best:0.9,anti_temperature=2": masked_and_timed,
}


@dataclass(frozen=True)
class Expected(Reference):
    """The reference under another formula, for a prompt that all roles read alike."""

    formula: Formula = field(kw_only=True)
    prompt: Sequence[int] = field(kw_only=True)

    def logits(self, role_ids: Sequence[Sequence[int]], alphas: Sequence[float]) -> Tensor:
        """Return the formula's logits."""
        [(expert, anti)] = self.pairs
        tables = [self._last(model, ids) for model, ids in zip((self.base, expert, anti), role_ids, strict=True)]
        return self.formula(*tables, len(role_ids[0]) - len(self.prompt))

    def drawn(self, seed: int, temperature: float) -> list[int]:
        """Return the continuation that Exp(1) noise of a seed draws, a row of noise per token."""
        chosen: list[int] = []
        generator = torch.Generator().manual_seed(seed)
        for _ in range(NUM_TOKENS):
            logits = self.logits([[*self.prompt, *chosen]] * 3, [])
            noise = torch.empty(self.width).exponential_(generator=generator)
            chosen.append(int(((logits / temperature).softmax(0) / noise).argmax()))
        return chosen


def expected(rule: str, prompt: Sequence[int]) -> Expected:
    """Return the reference of a rule."""
    base, expert, anti = tiny.trio()
    return Expected(base, [(expert, anti)], tiny.VOCAB_SIZE, formula=RULES[rule], prompt=prompt)


@cache
def greedy(rule: str) -> list[list[int]]:
    """Return the reference's likeliest continuation of every prompt."""
    return [expected(rule, prompt).greedy([prompt] * 3, [], NUM_TOKENS) for prompt in PROMPTS]


def generator(rule: str, **settings: object) -> ProxyGenerator:
    """Return a generator by a rule."""
    return tiny.generator(rule=rule, alpha=ALPHA, **settings)


@pytest.mark.parametrize("rule", RULES)
def test_greedy(rule: str) -> None:
    """The loop, without drafts and with three, and transformers' generate give the reference's tokens, as a batch."""
    ways = [generator(rule, speculation="off"), generator(rule, speculation=3), by_generate(generator(rule))]
    for way in ways:
        assert [list(row.token_ids) for row in way.generate(PROMPTS, **BATCH)] == greedy(rule)


def test_the_rules_differ() -> None:
    """No two rules give the same tokens for every prompt, nor do the base alone and plain proxy tuning."""
    answers = [greedy(rule) for rule in RULES]
    answers += [[list(row.token_ids) for row in generator("proxy").generate(PROMPTS, **BATCH, alpha=a)] for a in (0, 1)]
    assert all(answers.count(answer) == 1 for answer in answers)


@pytest.mark.parametrize("rule", RULES)
def test_sampling_by_seed(rule: str) -> None:
    """Seeded draws are the reference's, with drafts and without."""
    drawn = [expected(rule, prompt).drawn(5, 1.2) for prompt in PROMPTS]
    for speculation in ("off", 2):
        rows = generator(rule, speculation=speculation).generate(PROMPTS, temperature=1.2, seed=5, **BATCH)
        assert [list(row.token_ids) for row in rows] == drawn


@pytest.mark.parametrize("rule", RULES)
def test_beams(rule: str) -> None:
    """Beam search ranks what the reference ranks first."""
    [(best, _), *_] = expected(rule, PROMPTS[0]).beams([PROMPTS[0]] * 3, [], 3, 6)
    [row] = generator(rule).generate(PROMPTS[:1], num_beams=3, max_new_tokens=6, ignore_eos=True)
    assert list(row.token_ids) == best


@pytest.mark.parametrize("rule", RULES)
def test_score_and_trace(rule: str) -> None:
    """Log-probabilities of a continuation, alone and sharing its prompt, and the combined probabilities of a trace."""
    gen, prompt, answer = generator(rule), PROMPTS[0], greedy(rule)[0]
    logprobs = expected(rule, prompt).logprobs([prompt] * 3, [], answer)
    scores = gen.score([prompt, PROMPTS[1]], [answer, answer[:4]])
    shared = gen.score([prompt] * 3, [answer, answer[:1], answer[:7]])
    for score, count in zip([scores[0], *shared], (NUM_TOKENS, NUM_TOKENS, 1, 7), strict=True):
        assert score.logprobs == pytest.approx(logprobs[:count], abs=1e-3)
    trace = gen.trace(prompt, continuation=answer)
    probs = [token.chosen.probabilities[-1] for token in trace.tokens]
    assert probs == pytest.approx([math.exp(value) for value in logprobs], abs=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_transformers_own_generate(rule: str) -> None:
    """`model.generate` on the composite, alone and with an assistant, knows where the answer begins."""
    composite = generator(rule).model
    ids = torch.tensor(PROMPTS[:1])
    for assistant in (None, tiny.trio()[1]):
        found = composite.generate(ids, max_new_tokens=NUM_TOKENS, eos_token_id=None, assistant_model=assistant)
        assert found[0, ids.shape[1] :].tolist() == greedy(rule)[0]
