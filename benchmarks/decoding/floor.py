"""Least cost of decoding: the bytes of weights that one token reads, and what they say about the time per token.

The regime is the memory-bound one of small batches: a step takes as long as reading every weight once, whatever the
batch. Input embeddings are looked up, not read; a head tied to them is read. An adapter over the anti reads the
anti's weights once for both. With k drafts by the expert and E tokens per cycle, a cycle reads the expert k + 1 times,
base and anti once (Leviathan et al. 2023, arXiv 2211.17192, for one draft model; here the draft is part of the sum).
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from proxytune import ProxyTuneError


class FloorError(ProxyTuneError, ValueError):
    """A cost that cannot be worked out from what is known."""


@dataclass(frozen=True, kw_only=True)
class TrioBytes:
    """Bytes of weights read in one step of each role; `adapter` is 0 where the expert has weights of its own."""

    base: int
    expert: int
    anti: int
    adapter: int = 0

    @property
    def plain(self) -> int:
        """Bytes per token of three models in a row."""
        return self.base + self.expert + self.anti

    @property
    def pair(self) -> int:
        """Bytes per token when the expert is an adapter and one read of the anti's weights serves both.

        Raises:
            FloorError: There is no adapter.
        """
        if not self.adapter:
            raise FloorError("adapter is 0 bytes: a pair pass needs an expert that is an adapter over the anti.")
        return self.base + self.anti + self.adapter

    def speculative(self, *, num_drafted: float, tokens_per_cycle: float) -> float:
        """Bytes per token with `num_drafted` drafts by the expert per cycle; an adapter drafts on the anti's weights.

        >>> trio = TrioBytes(base=10, expert=1, anti=1)
        >>> trio.speculative(num_drafted=4, tokens_per_cycle=4.0)
        4.0
        """
        drafter = self.anti + self.adapter if self.adapter else self.expert
        return ((num_drafted + 1) * drafter + self.base + self.anti) / tokens_per_cycle


def tokens_per_cycle(acceptance: float, num_drafted: int) -> float:
    """Return E = (1 − a^(k+1)) / (1 − a): tokens per cycle when each of k drafts is accepted with probability a.

    >>> round(tokens_per_cycle(0.8, 4), 4)
    3.3616
    """
    return float(sum(acceptance**position for position in range(num_drafted + 1)))


def step_bytes(model: Any) -> int:
    """Return the bytes of weights that one decoding step of a causal LM reads; adapters in it do not count."""
    head = model.get_output_embeddings()
    read = 0 if head is None else _num_bytes(head.weight)
    for module in model.modules():
        if module is head or isinstance(module, torch.nn.Embedding):
            continue
        read += sum(_num_bytes(weight) for weight in module.parameters(recurse=False))
    return read - adapter_bytes(model)


def adapter_bytes(model: Any) -> int:
    """Return the bytes of the LoRA weights inside a model."""
    return sum(_num_bytes(weight) for name, weight in model.named_parameters() if ".lora_" in name)


def shape_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return `step_bytes` of a model that is not built: its config stands for it."""
    with torch.device("meta"):
        return step_bytes(AutoModelForCausalLM.from_config(config, dtype=dtype))


def lora_bytes(config: PretrainedConfig, rank: int, dtype: torch.dtype) -> int:
    """Return the bytes of a LoRA of `rank` on every linear layer of a Llama-type model but its head."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    widths = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + intermediate)
    return int(config.num_hidden_layers * rank * widths * dtype.itemsize)


def kv_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values that one token of one row leaves in a model's cache."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * dtype.itemsize)


def _num_bytes(weight: torch.Tensor) -> int:
    return weight.numel() * weight.element_size()
