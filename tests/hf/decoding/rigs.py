"""Generators for tests of the loop: fixed and scripted numbers of drafts, and transformers' generate in its place."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from proxytune import ProxyGenerator
from proxytune.hf.decoding.speculation import Drafting, SpeculationPolicy
from tests import tiny

FORMATS = {"base_prompt": "w1 {prompt}", "expert_prompt": "w2 w3 w4 w5 {prompt} w6", "anti_prompt": "{prompt} w7 w8"}


class Scripted(SpeculationPolicy):
    """Goes through a list of numbers of drafts, over and over."""

    def __init__(self, nums_draft_tokens: Sequence[int]) -> None:
        super().__init__("auto")
        self._nums = list(nums_draft_tokens)
        self._index = 0

    def begin(self, remaining_tokens: Sequence[int], roles: Any) -> Drafting:
        """Return the next number of the list."""
        self._index += 1
        limit = max(remaining_tokens) - 1
        return Drafting(min(self._nums[self._index % len(self._nums)], limit), remaining_tokens=remaining_tokens)


class Whimsical(SpeculationPolicy):
    """Ends drafts of up to five by chance."""

    def __init__(self) -> None:
        super().__init__("auto")
        self._draws = random.Random(0)

    def begin(self, remaining_tokens: Sequence[int], roles: Any) -> Drafting:
        """Return a plan that asks."""
        return Drafting(min(5, max(remaining_tokens) - 1), is_open=True, remaining_tokens=remaining_tokens)

    def should_continue(self, drafting: Drafting, logits: torch.Tensor, token: torch.Tensor) -> bool:
        """Toss a coin."""
        return self._draws.random() < 0.6


def scripted(generator: ProxyGenerator, nums_draft_tokens: Sequence[int]) -> ProxyGenerator:
    """Make a generator's loop draft these numbers of tokens in turn."""
    return _controlled(generator, Scripted(nums_draft_tokens))


def whimsical(generator: ProxyGenerator) -> ProxyGenerator:
    """Make a generator's loop end its drafts by chance, as they come."""
    return _controlled(generator, Whimsical())


def _controlled(generator: ProxyGenerator, policy: SpeculationPolicy) -> ProxyGenerator:
    runtime = generator._runtime
    generator._runtime = replace(runtime, loop=replace(runtime.loop, policy=policy))
    return generator


def by_generate(generator: ProxyGenerator) -> ProxyGenerator:
    """Make a generator use transformers' generate in place of the loop."""
    generator._runtime = replace(generator._runtime, loop=None)
    return generator


def agreeing(**settings: Any) -> ProxyGenerator:
    """Return a generator whose expert is its base and its anti, so that every draft is right."""
    model = tiny.model("llama", 1)
    twins = [tiny.new_model("llama", 1) for _ in range(2)]
    return ProxyGenerator(model, *twins, tokenizer=tiny.word_tokenizer(), **settings)


def disagreeing(**settings: Any) -> ProxyGenerator:
    """Return a generator whose expert likes best what the base likes least, and whose anti undoes it."""
    contrary = [tiny.new_model("llama", 1, tie_word_embeddings=False) for _ in range(2)]
    model = tiny.new_model("llama", 1, tie_word_embeddings=False)
    with torch.no_grad():
        for twin in contrary:
            twin.load_state_dict(model.state_dict())
            twin.lm_head.weight.neg_()
    return ProxyGenerator(model, *contrary, tokenizer=tiny.word_tokenizer(), **settings)


def tokens(rows: Sequence[Any]) -> list[tuple[int, ...]]:
    """Return the ids of every row."""
    return [row.token_ids for row in rows]
