"""Tokens of ProxyGenerator on real weights against the arithmetic without caches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from proxytune import ProxyGenerator
from tests.real.conftest import Cuts
from tests.reference import Reference

NUM_TOKENS = 10
LONG: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
PROMPTS = [
    "The capital of France is",
    "Question: Natalia sold 48 clips in April and half as many in May. How many is that together?\nAnswer:",
    "Once",
]


def test_the_fetched_model_knows_the_capital_of_france(smollm: Path) -> None:
    """The converted weights and tokenizer write " Paris" after its question, with all 30 layers."""
    gen = ProxyGenerator(*[str(smollm)] * 3, dtype="float32")
    assert gen.generate("The capital of France is", max_new_tokens=2)[0].text.startswith(" Paris")


def test_all_thirty_layers_steer_as_the_arithmetic(smollm: Path, cuts: Cuts) -> None:
    """The uncut base, steered by a pair of two layers: tokens of plain forwards without caches."""
    base = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    models = cuts.models
    reference = Reference(base, [(models["expert"], models["anti"])], base.config.vocab_size)
    gen = ProxyGenerator(base, models["expert"], models["anti"], tokenizer=cuts.tokenizer)
    ids = cuts.tokenizer(PROMPTS[1]).input_ids
    [done] = gen.generate([ids], alpha=0.5, **LONG)
    assert list(done.token_ids) == reference.greedy([ids] * 3, [0.5], NUM_TOKENS)


def test_a_ragged_batch_equals_the_arithmetic(cuts: Cuts) -> None:
    """Rows of 1 to 24 tokens in one batch, each with an α of its own: tokens and log-probabilities."""
    gen = ProxyGenerator(*cuts.folders, dtype="float32", speculation="off")
    prompts = [cuts.tokenizer(prompt).input_ids for prompt in PROMPTS]
    alphas = [1.0, 0.4, 0.0]
    done = gen.generate(prompts, alpha=alphas, logprobs=0, **LONG)
    expected = [
        cuts.reference.greedy([ids] * 3, [alpha], NUM_TOKENS) for ids, alpha in zip(prompts, alphas, strict=True)
    ]
    assert [list(row.token_ids) for row in done] == expected
    for ids, alpha, row in zip(prompts, alphas, done, strict=True):
        logprobs = cuts.reference.logprobs([ids] * 3, [alpha], row.token_ids)
        assert [entry.logprob for entry in row.logprobs] == pytest.approx(logprobs, abs=1e-3)


def test_chat_for_the_expert_and_raw_for_the_base(cuts: Cuts) -> None:
    """Roles that read a prompt in formats of their own, of different length."""
    formats = {"base_prompt": "raw", "expert_prompt": "chat", "anti_prompt": "raw"}
    gen = ProxyGenerator(*cuts.folders, dtype="float32", **formats)
    raw = cuts.tokenizer(PROMPTS[0]).input_ids
    text = cuts.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], tokenize=False, add_generation_prompt=True
    )
    chat = cuts.tokenizer(text, add_special_tokens=False).input_ids
    [done] = gen.generate([PROMPTS[0]], **LONG)
    assert list(done.token_ids) == cuts.reference.greedy([raw, chat, raw], [1.0], NUM_TOKENS)


def test_a_lora_expert_equals_its_merged_weights(cuts: Cuts) -> None:
    """An adapter over the anti, run with it in one weight read: the tokens of the merged model."""
    anti = AutoModelForCausalLM.from_pretrained(cuts.anti, dtype=torch.float32)
    merged = PeftModel.from_pretrained(anti, str(cuts.lora)).merge_and_unload().eval()
    models = cuts.models
    reference = Reference(models["base"], [(merged, models["anti"])], models["base"].config.vocab_size)
    gen = ProxyGenerator(str(cuts.base), str(cuts.lora), str(cuts.anti), dtype="float32")
    ids = cuts.tokenizer(PROMPTS[1]).input_ids
    [done] = gen.generate([ids], **LONG)
    expected = reference.greedy([ids] * 3, [1.0], NUM_TOKENS)
    assert list(done.token_ids) == expected
    assert expected != cuts.reference.greedy([ids] * 3, [0.0], NUM_TOKENS)


def test_speculation_changes_no_token(cuts: Cuts) -> None:
    """Drafts of four tokens in a ragged batch, greedy and sampled by seed."""
    plain = ProxyGenerator(*cuts.folders, dtype="float32", speculation="off")
    drafting = ProxyGenerator(*cuts.folders, dtype="float32", speculation=4)
    for options in ({}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}):
        expected, found = (gen.generate(PROMPTS, **LONG, **options) for gen in (plain, drafting))
        assert [row.token_ids for row in found] == [row.token_ids for row in expected]


def test_beams_equal_the_arithmetic(cuts: Cuts) -> None:
    """Beam search of four beams over 49,152 tokens, for rows of different length whose beams change places."""
    gen = ProxyGenerator(*cuts.folders, dtype="float32")
    prompts = [cuts.tokenizer(prompt).input_ids for prompt in PROMPTS]
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 4, "ignore_eos": True}
    done = gen.generate(prompts, alpha=0.5, **options)
    expected = [cuts.reference.beams([ids] * 3, [0.5], 4, 8)[0][0] for ids in prompts]
    assert [list(row.token_ids) for row in done] == expected
