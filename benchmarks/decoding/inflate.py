"""Inflation: a small Llama grown to a large model's cost without changing what it computes.

Random weights accept no draft, and the bundled trio costs nothing to run. So the trio is grown: its weights stand in
the corner of larger matrices, and nothing that is added reaches the residual stream. Added layers, heads and MLP units
write through zero output weights. A wider residual stream holds zeros in the added places; RMSNorm then sees a mean
square smaller by the ratio of widths, which an epsilon divided by that ratio and a gain divided by its root undo.

Real acceptance, real cost; a figure taken this way says "inflated".
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from proxytune import ProxyTuneError

_WRITES_TO_STREAM = ("o_proj", "down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
_EMBEDDING = "embed_tokens"


class InflationError(ProxyTuneError, ValueError):
    """A model that cannot be grown so that it stays the same function."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes a model is grown to; the width of a head stays. `context` is the longest sequence it accepts."""

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    context: int = 2048


# 0.31B against 26M parameters: by bytes the plain trio's floor is 1.17, near that of 70B with two 7B (1.19).
BASE_SIZE = Size(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=2816)
PAIR_SIZE = Size(num_layers=8, hidden_size=512, num_heads=16, intermediate_size=1408)


@torch.no_grad()
def inflate(model: Any, size: Size, *, seed: int = 0) -> Any:
    """Return a Llama of `size` with `model`'s logits (to rounding), in its dtype, in evaluation mode.

    Weights that can change nothing are drawn at random from `seed`: equal seeds and sizes give equal ones, so an expert
    and an anti still differ only where they differed.

    Raises:
        InflationError: Not a Llama without biases, or `size` is smaller than the model.
    """
    config = inflated_config(model.config, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    small = dict(model.named_parameters())
    gain = 1 / math.sqrt(size.hidden_size / model.config.hidden_size)
    for name, weight in grown.named_parameters():
        _fill(name, weight, small.get(name), gain)
    return grown.eval()


def inflate_adapter(weights: dict[str, Tensor], grown: Any) -> dict[str, Tensor]:
    """Return LoRA weights for a grown model from those of the small one: zeros around them, and in added layers.

    Keys and shapes are those of `adapters.lora_weights`: `<layer>.lora_A` `[rank, in]` and `<layer>.lora_B`
    `[out, rank]`.
    """
    [rank, *_] = {weight.shape[0] for name, weight in weights.items() if name.endswith("lora_A")}
    targets = {name.rsplit(".", 2)[-2] for name in weights}
    inflated: dict[str, Tensor] = {}
    for name, module in grown.named_modules():
        if name.rsplit(".", 1)[-1] in targets:
            wide, narrow = f"{name}.lora_A", f"{name}.lora_B"
            inflated[wide] = _cornered(weights.get(wide), (rank, module.in_features))
            inflated[narrow] = _cornered(weights.get(narrow), (module.out_features, rank))
    return inflated


def inflated_config(config: Any, size: Size) -> Any:
    """Return the config of a model grown to `size`.

    Raises:
        InflationError: As in `inflate`.
    """
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        raise InflationError(f"model_type is {config.model_type!r}: only a Llama without biases can be inflated.")
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    heads_per_kv_head = config.num_attention_heads // config.num_key_value_heads
    new_sizes = {
        "num_hidden_layers": size.num_layers,
        "hidden_size": size.hidden_size,
        "num_attention_heads": size.num_heads,
        "intermediate_size": size.intermediate_size,
        "max_position_embeddings": size.context,
    }
    for name, value in new_sizes.items():
        if value < getattr(config, name):
            raise InflationError(f"{name} is {value}, below the model's {getattr(config, name)}: inflate upwards.")
    if size.num_heads % heads_per_kv_head:
        raise InflationError(f"num_heads is {size.num_heads}: it must be a multiple of {heads_per_kv_head}.")
    grown = copy.deepcopy(config)
    for name, value in new_sizes.items():
        setattr(grown, name, value)
    grown.head_dim = head_dim
    grown.num_key_value_heads = size.num_heads // heads_per_kv_head
    grown.rms_norm_eps = config.rms_norm_eps * config.hidden_size / size.hidden_size
    return grown


def _fill(name: str, weight: Tensor, small: Tensor | None, gain: float) -> None:
    """Put a small model's weight into the corner of the grown one; None in a layer that was added."""
    kind = name.split(".")[-2]
    if kind in (*_WRITES_TO_STREAM, _EMBEDDING):
        weight.zero_()
    if small is None:
        return
    corner = weight[tuple(slice(0, length) for length in small.shape)]
    corner.copy_(small * gain if kind in _NORMS else small)


def _cornered(small: Tensor | None, shape: tuple[int, int]) -> Tensor:
    grown = torch.zeros(shape)
    if small is not None:
        grown[: small.shape[0], : small.shape[1]] = small
    return grown
