"""What a model supports is measured at load: for little, the same in low precision, and kept to by the composite."""

from dataclasses import astuple
from typing import Any

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.errors import NonFiniteLogitsError, ProxyTuneWarning, RuntimeUnsupportedError
from proxytune.hf.probing import probed
from proxytune.hf.role import RoleModel
from proxytune.hf.support import EXACT, Support
from tests import families, tiny
from tests.reference import Reference


def counted(model: Any) -> list[int]:
    """Return a list that gets the number of token ids of every forward of the model."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True)
    return sizes


def generator_of(name: str) -> tuple[ProxyGenerator, Reference]:
    """Return a generator over a family's trio, and its reference."""
    base, expert, anti = (families.new_model(name, seed) for seed in (1, 2, 3))
    generator = ProxyGenerator(base, expert, anti, tokenizer=tiny.word_tokenizer())
    return generator, Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_an_architecture_of_our_own_loop_is_not_probed(architecture: str) -> None:
    """No forward runs at load: tests prove these."""
    model = tiny.new_model(architecture)
    sizes = counted(model)
    assert probed(RoleModel("base", model)).support == EXACT
    assert sizes == []


def test_another_architecture_costs_four_forwards_of_33_tokens_once_per_config() -> None:
    """A model that supports all costs a full text, padded rows, a chunk and a token; its like costs nothing."""
    model = families.new_model("olmo2")
    model.config.note = "of this test alone"
    sizes = counted(model)
    assert probed(RoleModel("base", model)).support == Support(gaps=False)
    assert sizes == [9, 18, 4, 2]
    assert probed(RoleModel("expert", model)).support == Support(gaps=False)
    assert len(sizes) == 4


@pytest.mark.parametrize("name", ["bart", "deepseek_v4", "falcon_h1", "jamba", "mamba", "phi3", "qwen3_moe", "rwkv"])
def test_bfloat16_gives_the_outcome_of_float32(name: str) -> None:
    """Rounding is told from what padding, caches and chunks change."""
    outcomes = [
        astuple(probed(RoleModel("base", families.new_model(name).to(dtype))).support)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert outcomes[0] == outcomes[1]


def test_a_model_without_an_exact_cache_is_named_with_what_it_costs() -> None:
    """The warning at load says that every token reads the full text."""
    with pytest.warns(ProxyTuneWarning, match="base is a rwkv, whose cache .* every token reads all of it again"):
        generator_of("rwkv")


@pytest.mark.filterwarnings("ignore:.*every token reads all of it again")
@pytest.mark.parametrize("name", ["bart", "mamba", "rwkv", "qwen4_exp"])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_generate_of_transformers_keeps_to_what_is_supported(name: str, num_beams: int) -> None:
    """The composite's own `generate` gives the arithmetic's tokens, with beams too."""
    generator, reference = generator_of(name)
    prompt = tiny.prompt_ids(6, seed=3)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "num_beams": num_beams, "eos_token_id": None}
    [row] = generator.model.generate(torch.tensor([prompt]), **options).tolist()
    assert row[len(prompt) :] == reference.beams([prompt] * 3, [1.0], num_beams, 3)[0][0]


def test_padding_that_would_shift_positions_is_refused() -> None:
    """A padded batch passed to the composite itself is an error that names role, family and way out."""
    model = generator_of("bart")[0].model
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(
        RuntimeUnsupportedError, match=r"base \(bart\) reads a padded row otherwise .* one row at a time"
    ):
        model(torch.tensor([[0, 5, 6], [7, 8, 9]]), attention_mask=mask)
    model(torch.tensor([[4, 5, 6], [7, 8, 9]]), attention_mask=torch.ones_like(mask))


@pytest.mark.filterwarnings("ignore:.*every token reads all of it again")
def test_a_cache_that_would_lose_a_state_is_refused() -> None:
    """A cache is not made where it gives other logits than the full text."""
    with pytest.raises(RuntimeUnsupportedError, match="pass use_cache=False and all of the tokens"):
        generator_of("rwkv")[0].model.new_cache()


def test_rejected_drafts_cannot_be_taken_from_a_state() -> None:
    """Assisted decoding over a state-space model is refused in a sentence."""
    model = generator_of("mamba")[0].model
    cache = model.new_cache()
    model(torch.tensor([[4, 5, 6]]), past_key_values=cache)
    with pytest.raises(RuntimeUnsupportedError, match="generate without an assistant"):
        cache.crop(-1)


def test_cached_tokens_with_frequencies_of_a_shorter_text_are_refused() -> None:
    """A cache that a longrope model filled below its limit cannot be gone on from beyond it."""
    model = generator_of("phi3:longrope")[0].model
    cache = model.new_cache()
    model(torch.tensor([tiny.prompt_ids(10)]), past_key_values=cache)
    with pytest.raises(RuntimeUnsupportedError, match="reads 13 tokens, and beyond 12 its rotary frequencies change"):
        model(torch.tensor([[4, 5, 6]]), past_key_values=cache)


def test_damaged_weights_are_refused_where_they_are_read() -> None:
    """A probe whose logits are NaN judges nothing; the error at the first prompt names role and position."""
    base, expert, anti = (families.new_model("phi3", seed) for seed in (1, 2, 3))
    expert.lm_head.weight.data[:] = torch.nan
    expert.config.note = "of this test alone"
    generator = ProxyGenerator(base, expert, anti, tokenizer=tiny.word_tokenizer())
    with pytest.raises(NonFiniteLogitsError, match="the logits of the expert are NaN"):
        generator.generate([tiny.prompt_ids(4)], max_new_tokens=1)


def test_no_cache_is_made_unasked_where_it_would_change_logits() -> None:
    """The composite makes a cache by itself, but not one whose rotary frequencies the text has outgrown."""
    generator, reference = generator_of("phi3:longrope")
    ids = tiny.prompt_ids(15)
    output = generator.model(torch.tensor([ids]))
    assert output.past_key_values is None
    assert torch.allclose(output.logits[0, -1], reference.logits([ids] * 3, [1.0]), atol=1e-3)
