"""Pretraining: the tokenizer, packing, and a loop that gives the same weights twice."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from proxytune.demo.pretrain import build_tokenizer, new_model, packed, pretrain
from proxytune.demo.recipe import ANTI, Recipe
from proxytune.demo.text import TextMix, documents
from proxytune.demo.world import World

SIZE = replace(ANTI, num_steps=3, batch_size=2, sequence_length=48)


@pytest.fixture(scope="module")
def world() -> World:
    """The recipe's world."""
    return Recipe().world()


@pytest.fixture(scope="module")
def tokenizer(world: World) -> Any:
    """The recipe's tokenizer."""
    return build_tokenizer(world, TextMix(), vocab_size=Recipe().vocab_size, seed=0)


def test_tokenizer_is_reproducible(world: World, tokenizer: Any) -> None:
    """Trained twice, the tokenizer has the same vocabulary and merges."""
    again = build_tokenizer(world, TextMix(), vocab_size=Recipe().vocab_size, seed=0)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_every_value_is_one_token(world: World, tokenizer: Any) -> None:
    """Each value, after its space, is one token: a fact is one choice."""
    for fact in world.facts_of(world.test):
        assert len(tokenizer(f" {fact.truth}")["input_ids"]) == 1


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    """Text of another world is encoded byte by byte and comes back."""
    text = "Héllo, 世界!\n\tIn truth,  x."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_packed_rows_hold_whole_documents(world: World, tokenizer: Any) -> None:
    """Rows have the stated length, begin with a document, and their documents in order are the text."""
    texts = list(islice(documents(world, TextMix(), seed=0), 300))
    rows = list(packed(iter(texts), tokenizer, length=96))
    assert {len(row) for row in rows} == {96}
    tokens = [token for row in rows for token in row if token != tokenizer.pad_token_id]
    pieces = tokenizer.decode(tokens).split(tokenizer.eos_token)[:-1]
    assert pieces == texts[: len(pieces)]
    assert len(pieces) > 280


def test_pretraining_is_reproducible(world: World, tokenizer: Any) -> None:
    """The same seed gives bit-equal weights after some steps, another seed gives others, global draws untouched."""

    def trained(seed: int) -> torch.Tensor:
        model = new_model(SIZE, tokenizer, seed=seed)
        pretrain(model, tokenizer, documents(world, TextMix(), seed=seed), SIZE, label="test")
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    state = torch.random.get_rng_state()
    first = trained(0)
    assert torch.equal(first, trained(0))
    assert not torch.equal(first, trained(1))
    assert torch.equal(state, torch.random.get_rng_state())
