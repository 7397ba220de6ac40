"""Inflation: a grown model computes what the small one does, and costs what a large one does."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.decoding.adapters import difference_lora, merged, with_adapter
from benchmarks.decoding.inflate import (
    BASE_SIZE,
    PAIR_SIZE,
    InflationError,
    Size,
    inflate,
    inflate_adapter,
    inflated_config,
)
from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from proxytune.demo.evaluate import MAX_NEW_TOKENS, score
from proxytune.demo.live import held_out_questions
from proxytune.demo.recipe import Recipe
from tests import tiny


def bundled(role: str) -> Any:
    """One of the bundled trio."""
    return AutoModelForCausalLM.from_pretrained(trio_path() / role, dtype=torch.float32).eval()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a model without a cache."""
    with torch.inference_mode():
        return model(ids).logits


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Logits within 1e-5 of the largest one's size (what float32 rounds), and the same likeliest token everywhere."""
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


IDS = torch.randint(2, 1252, (2, 48), generator=torch.Generator().manual_seed(0))
# Wider by powers of four, by two (whose root is irrational), and not at all.
SIZES = {
    "base": [
        Size(num_layers=5, hidden_size=1024, num_heads=6, intermediate_size=700),
        Size(num_layers=3, hidden_size=512, num_heads=4, intermediate_size=640),
        Size(num_layers=4, hidden_size=256, num_heads=8, intermediate_size=1000),
    ],
    "anti": [Size(num_layers=6, hidden_size=512, num_heads=5, intermediate_size=300)],
}


@pytest.mark.parametrize(("role", "size"), [(role, size) for role, sizes in SIZES.items() for size in sizes])
def test_an_inflated_model_has_the_same_logits(role: str, size: Size) -> None:
    """Layers, heads, MLP and hidden width are added, and the logits stay."""
    model = bundled(role)
    grown = inflate(model, size)
    assert sum(weight.numel() for weight in grown.parameters()) > sum(weight.numel() for weight in model.parameters())
    assert_same(logits(grown, IDS), logits(model, IDS))


def test_shared_key_heads_stay_shared() -> None:
    """A model whose query heads share key heads, with a head of its own, is grown in the same proportion."""
    model = tiny.new_model("llama")
    grown = inflate(model, Size(num_layers=3, hidden_size=128, num_heads=8, intermediate_size=64))
    assert grown.config.num_key_value_heads == 4
    ids = torch.tensor([tiny.prompt_ids(20)])
    assert_same(logits(grown, ids), logits(model, ids))


@pytest.mark.parametrize(
    ("role", "size", "at_least", "at_most"), [("base", BASE_SIZE, 300, 330), ("anti", PAIR_SIZE, 20, 30)]
)
def test_the_sizes_that_are_measured(role: str, size: Size, at_least: float, at_most: float) -> None:
    """The base is grown to 0.3 billion parameters and more, each of the pair to 30 million at most."""
    config = inflated_config(bundled(role).config, size)
    with torch.device("meta"):
        grown = LlamaForCausalLM(config)
    assert at_least <= sum(weight.numel() for weight in grown.parameters()) / 1e6 <= at_most


def test_an_inflated_adapter_is_the_same_expert() -> None:
    """An adapter beside a grown anti, and merged into it, gives the small expert's logits; without it the anti's."""
    tuned, anti = bundled("expert"), bundled("anti")
    lora = difference_lora(tuned, anti, rank=8)
    expert = merged(anti, lora)
    grown = inflate(anti, SIZES["anti"][0])
    grown_lora = inflate_adapter(lora, grown)
    wanted = logits(expert, IDS)
    assert float((wanted - logits(anti, IDS)).abs().max()) > 0.5
    assert_same(logits(merged(grown, grown_lora), IDS), wanted)
    adapted = with_adapter(grown, grown_lora)
    assert_same(logits(adapted, IDS), wanted)
    with adapted.disable_adapter():
        assert_same(logits(grown, IDS), logits(anti, IDS))


def test_the_expert_that_is_measured_steers_as_the_bundled_one() -> None:
    """The rank-8 LoRA of what tuning changed brings the bundled base to the demo's accuracy."""
    tuned, anti = bundled("expert"), bundled("anti")
    expert = merged(anti, difference_lora(tuned, anti, rank=8))
    steered = ProxyGenerator(trio_path() / "base", expert, anti, tokenizer=trio_path() / "base")
    questions = held_out_questions(Recipe().world())[::10]
    answers = steered.generate([one.prompt for one in questions], max_new_tokens=MAX_NEW_TOKENS, batch_size=50)
    assert score([answer.text for answer in answers], questions).accuracy >= 0.95


def test_what_cannot_be_inflated() -> None:
    """Other architectures, sizes below the model's and heads that cannot be shared out are errors."""
    with pytest.raises(InflationError, match="gpt2"):
        inflate(tiny.model("gpt2"), BASE_SIZE)
    with pytest.raises(InflationError, match="hidden_size"):
        inflate(bundled("base"), Size(num_layers=3, hidden_size=128, num_heads=4, intermediate_size=640))
    with pytest.raises(InflationError, match="num_heads"):
        inflate(tiny.model("llama"), Size(num_layers=3, hidden_size=128, num_heads=7, intermediate_size=64))
