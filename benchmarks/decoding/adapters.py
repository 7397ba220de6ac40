"""LoRA experts for the pair pass: random ones, and one that holds what tuning changed in a model."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@torch.no_grad()
def difference_lora(expert: Any, anti: Any, rank: int) -> dict[str, Tensor]:
    """Return the LoRA nearest to `expert − anti` in every linear layer but the head, by truncated SVD.

    The effect of tuning on norms and embeddings is left out.
    """
    tuned = dict(expert.named_parameters())
    lora: dict[str, Tensor] = {}
    for name, weight in anti.named_parameters():
        if name.split(".")[-2] in TARGETS:
            left, scales, right = torch.linalg.svd((tuned[name] - weight).float(), full_matrices=False)
            layer = name.removesuffix(".weight")
            lora[f"{layer}.lora_A"] = right[:rank].clone()
            lora[f"{layer}.lora_B"] = left[:, :rank] * scales[:rank]
    return lora


@torch.no_grad()
def random_lora(anti: Any, rank: int, *, seed: int, size: float = 0.5) -> dict[str, Tensor]:
    """Return a random LoRA on every linear layer but the head, whose product is `size` times the weights in spread."""
    draws = torch.Generator(device=anti.device).manual_seed(seed)
    lora: dict[str, Tensor] = {}
    for name, weight in anti.named_parameters():
        if name.split(".")[-2] in TARGETS:
            width_out, width_in = weight.shape
            layer = name.removesuffix(".weight")
            spread = size * float(weight.float().std()) * (width_in / rank) ** 0.5
            one = torch.randn(rank, width_in, generator=draws, device=anti.device) / width_in**0.5
            other = torch.randn(width_out, rank, generator=draws, device=anti.device) * spread
            lora |= {f"{layer}.lora_A": one, f"{layer}.lora_B": other}
    return lora


@torch.no_grad()
def with_adapter(anti: Any, weights: Mapping[str, Tensor]) -> Any:
    """Return a PeftModel over `anti` (its layers are wrapped in place) with these LoRA weights, in the anti's dtype."""
    [rank, *_] = {weight.shape[0] for name, weight in weights.items() if name.endswith("lora_A")}
    targets = sorted({name.rsplit(".", 2)[-2] for name in weights})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0, bias="none")
    adapted = get_peft_model(anti, config, autocast_adapter_dtype=False)
    for name, module in anti.named_modules():
        if f"{name}.lora_A" in weights:
            module.lora_A["default"].weight.copy_(weights[f"{name}.lora_A"])
            module.lora_B["default"].weight.copy_(weights[f"{name}.lora_B"])
    return adapted.to(anti.dtype).eval()


@torch.no_grad()
def merged(anti: Any, weights: Mapping[str, Tensor]) -> Any:
    """Return a copy of `anti` with the LoRA's products added to its weights: the same expert with its own weights."""
    expert = copy.deepcopy(anti)
    for name, module in expert.named_modules():
        if f"{name}.lora_A" in weights:
            product = weights[f"{name}.lora_B"].float() @ weights[f"{name}.lora_A"].float()
            module.weight += product.to(module.weight)
    return expert
