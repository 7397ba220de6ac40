"""The pair pass: expert and anti in one forward give what two passes give."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from proxytune.errors import RuntimeUnsupportedError
from proxytune.hf.pair import PairPass, pair_unsupported_reason
from tests import tiny

ADAPTED = {
    "attention": ("llama", ["q_proj", "k_proj", "v_proj", "o_proj"], {}),
    "mlp": ("llama", ["gate_proj", "up_proj", "down_proj"], {}),
    "rslora": ("llama", ["q_proj", "down_proj"], {"use_rslora": True}),
    "head": ("llama", ["q_proj", "lm_head"], {}),
    "qwen2": ("qwen2", ["q_proj", "up_proj"], {}),
    "gpt2": ("gpt2", ["c_attn", "c_fc"], {"fan_in_fan_out": True}),
    "opt": ("opt", ["q_proj", "fc1", "fc2"], {}),
}
IDS = torch.randint(4, tiny.VOCAB_SIZE, (4, 7), generator=torch.Generator().manual_seed(0))
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [1] * 7, [0, 1, 1, 1, 1, 1, 1]])
MASKS = {"none": None, "left": LEFT, "right": LEFT.flip(1)}


def adapted(architecture: str, targets: list[str], **options: Any) -> Any:
    """Return a PeftModel with a random adapter over a new model."""
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **options)
    return get_peft_model(tiny.new_model(architecture, scale=0.1), config).eval()


def two_passes(model: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return peft's logits: the first half of the rows with the adapter, the others without."""
    half = len(ids) // 2
    masks = (None, None) if mask is None else (mask[:half], mask[half:])
    expert = model(input_ids=ids[:half], attention_mask=masks[0]).logits
    with model.disable_adapter():
        return torch.cat([expert, model(input_ids=ids[half:], attention_mask=masks[1]).logits])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", ADAPTED)
@torch.no_grad()
def test_one_pass_gives_the_logits_of_two(case, mask):
    """Every kind of layer, other prompts in each half, padded on either side: equal to 1e-5 on real tokens."""
    architecture, targets, options = ADAPTED[case]
    model = adapted(architecture, targets, **options)
    wanted = two_passes(model, IDS, MASKS[mask])
    got = PairPass(model, "default").model(input_ids=IDS, attention_mask=MASKS[mask]).logits
    real = torch.ones_like(IDS, dtype=torch.bool) if mask == "none" else MASKS[mask].bool()
    torch.testing.assert_close(got[real], wanted[real], atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert (model(input_ids=IDS[:2]).logits - wanted[:2]).abs().max() > 1e-2, "the adapter must matter"


@torch.no_grad()
def test_rows_switches_between_expert_anti_and_pair():
    """All rows, none, or half: each choice gives peft's logits, and peft's own model stays usable throughout."""
    model = adapted("llama", ["q_proj", "up_proj"])
    pair = PairPass(model, "default")
    expert = model(input_ids=IDS).logits
    with model.disable_adapter():
        anti = model(input_ids=IDS).logits
    for which, wanted in {"expert": expert, "anti": anti, "pair": torch.cat([expert[:2], anti[2:]])}.items():
        pair.rows(which)
        torch.testing.assert_close(pair.model(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(input_ids=IDS).logits, expert)


@torch.no_grad()
def test_two_adapters_over_one_anti_have_a_pass_each():
    """Each pass applies its own adapter, whichever one peft holds active."""
    model = adapted("llama", ["q_proj"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj", "down_proj"], init_lora_weights=False))
    passes = {name: PairPass(model, name) for name in ("default", "other")}
    for name, pair in passes.items():
        model.set_adapter(name)
        wanted = two_passes(model, IDS, None)
        model.set_adapter("default")
        torch.testing.assert_close(pair.model(input_ids=IDS).logits, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ADAPTED)
@torch.no_grad()
def test_the_difference_is_that_of_two_head_products(case):
    """Head of h⁺ − h⁻ is expert − anti to 1e-5; one product unless the head is adapted."""
    architecture, targets, options = ADAPTED[case]
    pair = PairPass(adapted(architecture, targets, **options), "default")
    output = pair.model(input_ids=IDS, output_hidden_states=True)
    got = pair.difference(output.hidden_states[-1])
    torch.testing.assert_close(got, output.logits[:2] - output.logits[2:], atol=1e-5, rtol=1e-5)
    assert pair.head_is_shared == (case != "head")


@torch.no_grad()
def test_capped_logits_have_no_difference_of_one_product():
    """Gemma 2 caps its logits, so the head is not shared and difference says None; the pass itself still holds."""
    model = adapted("gemma2", ["q_proj"])
    pair = PairPass(model, "default")
    assert not pair.head_is_shared
    assert pair.difference(torch.zeros(2, 1, 32)) is None
    torch.testing.assert_close(pair.model(input_ids=IDS).logits, two_passes(model, IDS, None), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "Dora"),
        ({"modules_to_save": ["lm_head"]}, "trained whole"),
        ({"trainable_token_indices": [5]}, "trained whole"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "LoRA bias"),
    ],
)
def test_what_does_not_slice_says_why(options, reason):
    """DoRA, whole modules and biases are named, and PairPass refuses them with the way out."""
    model = adapted("llama", ["q_proj"], **options)
    assert reason in str(pair_unsupported_reason(model, "default"))
    with pytest.raises(RuntimeUnsupportedError, match="two passes"):
        PairPass(model, "default")


def test_embeddings_merged_adapters_and_wrong_names_say_why():
    """An adapted embedding, merged weights, an unknown adapter: each has its reason."""
    assert "embedding" in str(pair_unsupported_reason(adapted("llama", ["embed_tokens"]), "default"))
    model = adapted("llama", ["q_proj"])
    assert "'missing'" in str(pair_unsupported_reason(model, "missing"))
    assert pair_unsupported_reason(model, "default") is None
    model.merge_adapter()
    assert "merged" in str(pair_unsupported_reason(model, "default"))


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_bf16_bases_keep_their_dtype(adapter_dtype):
    """A bf16 base with a float32 or bf16 adapter: bf16 out, within bf16 rounding of peft's two passes."""
    model = adapted("llama", ["q_proj", "down_proj"]).bfloat16()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter_dtype)
    got = PairPass(model, "default").model(input_ids=IDS).logits
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, two_passes(model, IDS, None), atol=0.05, rtol=0.05)


def test_weights_are_shared():
    """The pass holds no tensor of its own."""
    model = adapted("llama", ["q_proj"])
    theirs = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    pair = PairPass(model, "default").model
    assert {tensor.data_ptr() for tensor in [*pair.parameters(), *pair.buffers()]} <= theirs
