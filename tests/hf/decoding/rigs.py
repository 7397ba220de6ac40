"""Generators for tests of the loop: fixed widths, scripted widths, and transformers' generate in its place."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from proxytune import ProxyGenerator
from proxytune.hf.decoding.controller import Controller, Plan
from tests import tiny

FORMATS = {"base_prompt": "w1 {prompt}", "expert_prompt": "w2 w3 w4 w5 {prompt} w6", "anti_prompt": "{prompt} w7 w8"}


class Scripted(Controller):
    """Goes through a list of widths, over and over."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__("auto")
        self._widths = list(widths)
        self._place = 0

    def width(self, num_rows: int) -> int:
        """Return the next width of the list."""
        self._place += 1
        return self._widths[self._place % len(self._widths)]

    def plan(self, num_rows: int, *, is_free: bool) -> Plan:
        """Likewise."""
        return Plan(self.width(num_rows))


class Whimsical(Controller):
    """Ends drafts of up to five by chance."""

    def __init__(self) -> None:
        super().__init__("auto")
        self._draws = random.Random(0)

    def plan(self, num_rows: int, *, is_free: bool) -> Plan:
        """Return an open plan."""
        return Plan(6, is_fixed=False)

    def goes_on(self, num_rows: int, width: int, survival: Sequence[float]) -> bool:
        """Toss a coin."""
        return self._draws.random() < 0.6


def scripted(generator: ProxyGenerator, widths: Sequence[int]) -> ProxyGenerator:
    """Make a generator's loop use these widths in turn."""
    return _controlled(generator, Scripted(widths))


def whimsical(generator: ProxyGenerator) -> ProxyGenerator:
    """Make a generator's loop end its drafts by chance, as they come."""
    return _controlled(generator, Whimsical())


def _controlled(generator: ProxyGenerator, controller: Controller) -> ProxyGenerator:
    runtime = generator._runtime
    generator._runtime = replace(runtime, loop=replace(runtime.loop, controller=controller))
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
