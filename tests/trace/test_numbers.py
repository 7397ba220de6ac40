"""A trace's numbers are those of the models."""

import math

import pytest

from proxytune import Pair, ProxyGenerator
from proxytune.hf import tracing
from tests import tiny
from tests.trace.independent import Independent

_PROMPT = tiny.prompt_ids(6)


def _read_by_all(prompt: list[int], num_roles: int) -> list[list[int]]:
    return [prompt] * num_roles


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma2"])
@pytest.mark.parametrize("alpha", [0.0, 0.7, -1.5])
def test_generated(architecture: str, alpha: float) -> None:
    """Over a text longer than a chunk, and than a sliding window, every number is that of one plain pass per model."""
    models = tiny.trio(architecture)
    generator = tiny.generator(architecture)
    [done] = generator.generate([_PROMPT], max_new_tokens=70, ignore_eos=True, alpha=alpha, trace=3)
    assert done.trace is not None
    assert len(done.token_ids) == 70 > 2 * tracing._CHUNK
    assert (done.trace.alphas, done.trace.pairs) == ((alpha,), (("expert", "anti"),))
    independent = Independent(models, _read_by_all(_PROMPT, 3), [alpha], tiny.VOCAB_SIZE)
    independent.check(done.trace, done.token_ids, 3)
    if alpha == 0:
        assert done.trace.changed_share == 0.0
        assert {token.kl_combined_base for token in done.trace.tokens} == {0.0}
        assert min(token.kl_expert_anti[0] for token in done.trace.tokens) > 0.01


def test_padded_vocabularies() -> None:
    """Roles of different padded widths are compared over the ids they share, each renormalised over these."""
    widths = (72, 64, 80)
    models = [tiny.model("llama", seed, vocab_size=width) for seed, width in enumerate(widths, 1)]
    generator = ProxyGenerator(*models, tokenizer=tiny.word_tokenizer())
    [done] = generator.generate([_PROMPT], max_new_tokens=9, ignore_eos=True, trace=4)
    assert done.trace is not None
    Independent(models, _read_by_all(_PROMPT, 3), [1.0], 64).check(done.trace, done.token_ids, 4)


def test_prompts_of_roles() -> None:
    """Roles that read the prompt in formats of different length are traced each behind its own."""
    generator = tiny.generator(expert_prompt="w5 w6 w7 {prompt} w8", anti_prompt="w9 {prompt}")
    [done] = generator.generate(["w1 w2"], max_new_tokens=8, ignore_eos=True, trace=True)
    ids = [tiny.word_tokenizer()(text).input_ids for text in ("w1 w2", "w5 w6 w7 w1 w2 w8", "w9 w1 w2")]
    assert done.trace is not None
    Independent(tiny.trio(), ids, [1.0], tiny.VOCAB_SIZE).check(done.trace, done.token_ids, 5)


def test_two_pairs() -> None:
    """Two pairs at strengths of their own: both divergences, all five roles, one combination."""
    base, expert, anti = tiny.trio()
    others = (tiny.model("llama", 8), tiny.model("llama", 9))
    generator = ProxyGenerator(
        base, pairs=[Pair(expert, anti, 0.8), Pair(*others, -0.4)], tokenizer=tiny.word_tokenizer()
    )
    [done] = generator.generate([_PROMPT], max_new_tokens=8, ignore_eos=True, trace=2)
    assert done.trace is not None
    assert done.trace.distributions == ("base", "expert_1", "anti_1", "expert_2", "anti_2", "combined")
    models = [base, expert, anti, *others]
    Independent(models, _read_by_all(_PROMPT, 5), [0.8, -0.4], tiny.VOCAB_SIZE).check(done.trace, done.token_ids, 2)


def test_pairs_that_share_an_anti() -> None:
    """An anti that two pairs share is one distribution, and everything is as if each pair had its own."""
    base, expert, anti = tiny.trio()
    other = tiny.model("llama", 8)
    shared = ProxyGenerator(
        base, pairs=[Pair(expert, anti, 0.8), Pair(other, anti, -0.4)], tokenizer=tiny.word_tokenizer()
    )
    trace = shared.trace(_PROMPT, max_new_tokens=6, ignore_eos=True, trace=2)
    assert trace.distributions == ("base", "expert_1", "anti_1", "expert_2", "combined")
    assert trace.pairs == (("expert_1", "anti_1"), ("expert_2", "anti_1"))
    pairs = [Pair(expert, anti, 0.8), Pair(other, tiny.new_model("llama", 3), -0.4)]
    apart = ProxyGenerator(base, pairs=pairs, tokenizer=tiny.word_tokenizer())
    own = apart.trace(_PROMPT, max_new_tokens=6, ignore_eos=True, trace=2)
    for one, two in zip(trace.tokens, own.tokens, strict=True):
        assert (one.token_id, one.is_changed, one.base_rank) == (two.token_id, two.is_changed, two.base_rank)
        assert one.kl_combined_base == pytest.approx(two.kl_combined_base, abs=1e-5)
        assert one.kl_expert_anti == pytest.approx(two.kl_expert_anti, abs=1e-5)
        assert [c.probabilities[-1] for c in one.candidates] == pytest.approx(
            [c.probabilities[-1] for c in two.candidates], abs=1e-5
        )


def test_rows_at_their_own_alpha() -> None:
    """In one batch of prompts of different length each row has its own α, and is what it would be alone."""
    prompts = [tiny.prompt_ids(4), tiny.prompt_ids(9, seed=1), tiny.prompt_ids(6, seed=2)]
    alphas = [0.0, 1.0, 2.5]
    found = tiny.generator().generate(prompts, max_new_tokens=6, ignore_eos=True, alpha=alphas, trace=3)
    for prompt, alpha, done in zip(prompts, alphas, found, strict=True):
        assert done.trace is not None
        independent = Independent(tiny.trio(), _read_by_all(prompt, 3), [alpha], tiny.VOCAB_SIZE)
        independent.check(done.trace, done.token_ids, 3)


def test_given_continuation() -> None:
    """A text that was given is traced as it stands, with the log-probabilities that `score` gives it."""
    generator = tiny.generator()
    trace = generator.trace("w1 w2", continuation=" w3 w4 w5", alpha=1.5, trace=4)
    [score] = generator.score(["w1 w2"], [" w3 w4 w5"], alpha=1.5)
    ids = tiny.word_tokenizer()("w1 w2").input_ids
    Independent(tiny.trio(), _read_by_all(ids, 3), [1.5], tiny.VOCAB_SIZE).check(trace, score.token_ids, 4)
    logprobs = [math.log(token.chosen.probabilities[-1]) for token in trace.tokens]
    assert logprobs == pytest.approx(score.logprobs, abs=1e-4)


def test_adapter_expert(folders: dict) -> None:
    """An expert that is an adapter over the anti is traced with it on, the anti with it off."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    generator = ProxyGenerator(*(str(folders[name]) for name in ("base", "lora", "anti")))
    [done] = generator.generate([_PROMPT], max_new_tokens=6, ignore_eos=True, trace=3)
    base, anti, below = (AutoModelForCausalLM.from_pretrained(folders[name]) for name in ("base", "anti", "anti"))
    expert = PeftModel.from_pretrained(below, folders["lora"])
    assert done.trace is not None
    models = [base, expert, anti]
    Independent(models, _read_by_all(_PROMPT, 3), [1.0], tiny.VOCAB_SIZE).check(done.trace, done.token_ids, 3)
