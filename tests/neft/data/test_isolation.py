"""Packed documents do not see each other: measured on the models themselves."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)

from neft.data import Example, PackingCollator, PaddingCollator
from neft.data.isolation import check_packing, packing_leak, packs_cleanly
from neft.errors import InputError

BASE = {"vocab_size": 44, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROTARY = {
    **BASE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CLEAN = {
    "llama": LlamaConfig(**ROTARY),
    "mistral with a sliding window": MistralConfig(**ROTARY, sliding_window=4),
    "qwen2": Qwen2Config(**ROTARY),
    "gpt2": GPT2Config(**BASE, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
OPT = OPTConfig(
    **BASE,
    hidden_size=32,
    ffn_dim=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    word_embed_proj_dim=32,
)
OPT_350M = OPTConfig(
    **BASE,
    hidden_size=64,
    ffn_dim=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=64,
    word_embed_proj_dim=32,
    do_layer_norm_before=False,
)
FALCON = FalconConfig(**BASE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
LEAKING = {"OPTForCausalLM": OPT, "FalconForCausalLM": FALCON}
WITHOUT_POSITIONS = {
    "BloomForCausalLM": BloomConfig(**BASE, hidden_size=32, n_layer=2, n_head=4),
    "MambaForCausalLM": MambaConfig(**BASE, hidden_size=32, num_hidden_layers=2, state_size=4),
}


def _model(config, attention="sdpa"):
    torch.manual_seed(0)
    options = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForCausalLM.from_config(config, **options).train()


def _scaled(model):
    """Makes attention matter: at their initial size the weights of so small a model hardly look around."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CLEAN)
def test_packed_logits_are_those_of_each_document_alone(name, attention):
    """Largest difference below 2e-6 in float32, in training mode too after the check; the model is left as it was."""
    model = _model(CLEAN[name], attention)
    assert packing_leak(model) < 2e-6
    assert packs_cleanly(_scaled(model))
    check_packing(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", LEAKING)
def test_models_that_leak_are_refused_by_name(name):
    """OPT and Falcon drop the position ids on the way to the mask: found by running them, and named."""
    model = _scaled(_model(LEAKING[name], None))
    assert packing_leak(model) > 0.5
    assert not packs_cleanly(model)
    with pytest.raises(InputError, match=rf"{name} does not keep packed documents apart \(their logits move by"):
        check_packing(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_leak_is_found_in_untrained_models_too(dtype):
    """At initial weights, where attention hardly matters, the leak of opt-350m's architecture shows in every dtype."""
    assert not packs_cleanly(_model(OPT_350M).to(dtype))


@pytest.mark.parametrize("name", WITHOUT_POSITIONS)
def test_models_without_position_ids_are_refused(name):
    """ALiBi and recurrent models cannot be told where a document begins."""
    model = _model(WITHOUT_POSITIONS[name], None)
    assert packing_leak(model) == math.inf
    with pytest.raises(InputError, match=f"{name} .*it takes no position_ids"):
        check_packing(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_tolerance_follows_the_dtype(dtype):
    """Rounding in bfloat16 is not taken for a leak, and a leak is found in every dtype."""
    assert packs_cleanly(_scaled(_model(CLEAN["llama"])).to(dtype))
    assert not packs_cleanly(_scaled(_model(OPT)).to(dtype))


def test_an_adapter_changes_nothing():
    """A PEFT model is checked through its wrapper, and keeps documents apart like its base."""
    model = get_peft_model(_model(CLEAN["llama"]), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5))
    assert packing_leak(model) < 2e-6
    assert model.training
    with pytest.raises(InputError, match="OPTForCausalLM"):
        check_packing(get_peft_model(_scaled(_model(OPT)), LoraConfig(r=2, target_modules=["q_proj"])))


def test_an_attention_mask_would_leak():
    """Why the collator gives none: with a mask of ones the same batch mixes its documents."""
    model = _scaled(_model(CLEAN["llama"])).eval()
    packs = [(Example([5, 6, 7], [5, 6, 7]), Example([8, 9, 10], [8, 9, 10]))]
    batch = PackingCollator(pad_id=0)(packs)
    ids, positions = batch["input_ids"], batch["position_ids"]
    with torch.no_grad():
        alone = model(ids[:, 3:], use_cache=False).logits
        clean = model(ids, position_ids=positions, use_cache=False).logits[:, 3:]
        mixed = model(ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 3:]
    assert (clean - alone).abs().max() < 5e-6
    assert (mixed - alone).abs().max() > 0.1


def test_packed_and_padded_batches_have_the_same_loss_and_gradient():
    """One padded batch and the same documents packed: equal loss, and equal gradient of every weight."""
    examples = [Example(list(range(4, 4 + n)), [-100, *range(5, 4 + n)]) for n in (5, 9, 3, 7)]
    model = _scaled(_model(CLEAN["llama"]))
    results = []
    for batch in (PaddingCollator(0)(examples), PackingCollator(0)([tuple(examples[:2]), tuple(examples[2:])])):
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        results.append((loss.item(), [parameter.grad.clone() for parameter in model.parameters()]))
    (padded, padded_grads), (packed, packed_grads) = results
    assert packed == pytest.approx(padded, abs=1e-5)
    for one, other in zip(padded_grads, packed_grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
