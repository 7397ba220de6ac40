"""Attention of grouped queries that reads keys and values in the cache's own layout.

With a mask, transformers' sdpa repeats them for every query head, which copies the whole cache at every step. Here the
queries of a group are rows before their one key head instead: the same products, nothing copied (measured on one CPU
core, 32 query and 8 key heads of 128, 1,024 keys, one query: 0.6 ms against 13).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "proxytune_grouped"
FULL, SLIDING = "full_attention", "sliding_attention"
_MAX_QUERIES = 64  # of a group; beyond it, for prompts, the kernels for many queries are the better ones


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    *,
    lengths: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Return attention `[B, T, heads, dim]`.

    Args:
        query: `[B, T, heads, dim]`.
        keys: `[B, S, key heads, dim]`; any strides.
        values: Likewise.
        mask: `[B or 1, 1, T, S]`, additive. Without one a single query sees all keys, and several (a prompt) are
            causal.
        scaling: Of the products.
        lengths: `[B]` int32 in place of a mask: keys of each row, the queries' own the last of them. Only where
            `takes_lengths` says so.
        window: With lengths: see only so many keys, the query's own among them.
    """
    if lengths is not None:
        return _by_lengths(query, keys, values, lengths, scaling, window)
    rows, length, heads, size = query.shape
    key_heads = keys.shape[2]
    groups = heads // key_heads
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if groups == 1 or (mask is None and length > 1) or groups * length > _MAX_QUERIES:
        output = scaled_dot_product_attention(
            query.transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            scale=scaling,
            enable_gqa=groups > 1,
        )
        return output.transpose(1, 2)
    folded = query.view(rows, length, key_heads, groups, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
    if mask is not None and length > 1:
        mask = mask.repeat(1, 1, groups, 1)
    output = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
    output = output.view(rows, key_heads, groups, length, size)
    return output.permute(0, 3, 1, 2, 4).reshape(rows, length, heads, size)


def takes_lengths(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether queries can attend by the lengths of their rows, without a mask: FlashAttention on CUDA.

    Its kernel splits long rows over the whole GPU and reads no more columns than a row has. It is used where its
    results on this device are those of the masked product.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return _flash_kernel() is not None and _is_right(device, dtype)


@cache
def _flash_kernel() -> Callable[..., Tensor] | None:
    """Return the package flash-attn's kernel for caches, None where the package is not installed."""
    try:
        from flash_attn import flash_attn_with_kvcache
    except ModuleNotFoundError:
        return None
    kernel: Callable[..., Tensor] = flash_attn_with_kvcache
    return kernel


@cache
def _is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether attention by lengths equals attention by a mask, for two rows, grouped queries and a window."""
    draws = torch.Generator(device=device).manual_seed(0)
    query = torch.randn(2, 3, 4, 64, generator=draws, device=device, dtype=dtype)
    keys, values = torch.randn(2, 2, 40, 2, 64, generator=draws, device=device, dtype=dtype)
    lengths = torch.tensor([9, 33], device=device, dtype=torch.int32)
    positions = lengths[:, None] - 3 + torch.arange(3, device=device)
    for window in (None, 5):
        mask = causal_mask(positions, 40, dtype, window)
        expected = attend(query, keys, values, mask, 0.125)
        output = _by_lengths(query, keys, values, lengths, 0.125, window)
        if not torch.allclose(output.float(), expected.float(), atol=0.03, rtol=0.03):
            return False
    return True


def _by_lengths(
    query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scaling: float, window: int | None
) -> Tensor:
    kernel = _flash_kernel()
    if kernel is None:
        raise RuntimeError("attention by lengths needs flash-attn: ask takes_lengths first.")
    left = -1 if window is None else window - 1
    return kernel(
        query, keys, values, cache_seqlens=lengths, softmax_scale=scaling, causal=True, window_size=(left, -1)
    )


def attention_kernels(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which torch chooses attention kernels for decoding on `device`.

    cuDNN's, its first choice on recent GPUs, builds a plan for every new number of keys, which takes longer than the
    attention: it is left out.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention `[B, T, heads, dim]`, as transformers' sdpa does, for few queries without repeated keys.

    Args:
        module: The attention layer.
        query: `[B, heads, T, dim]`.
        key: `[B, key heads, S, dim]`; any strides.
        value: Likewise.
        attention_mask: `[B or 1, 1, T, S]`; without one it is a prompt's.
        dropout: For training.
        scaling: Of the products; None is 1/√dim.
        **kwargs: Passed on to transformers' own function.
    """
    groups = query.shape[1] // key.shape[1]
    is_prompt = attention_mask is None or attention_mask.shape[1] != 1 or groups * query.shape[2] > _MAX_QUERIES
    if is_prompt or groups == 1 or dropout or kwargs.get("position_bias") is not None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attention_mask, scale)
    return output.contiguous(), None


def group_queries(model: Any) -> None:
    """Let a model with grouped queries that uses sdpa attend by `grouped_attention` from now on.

    By transformers' own registry; whatever else runs the model gets the same results.
    """
    config = model.config.get_text_config(decoder=True)
    key_heads = getattr(config, "num_key_value_heads", None)
    if config._attn_implementation != "sdpa" or key_heads in (None, config.num_attention_heads):
        return
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)


def causal_mask(positions: Tensor, kv_len: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Return an additive mask `[B, 1, T, kv_len]`: 0 where a query sees a key, −inf elsewhere.

    Args:
        positions: `[B, T]` of the queries.
        kv_len: Number of keys, from position 0.
        dtype: Of the model.
        window: See only so many keys, the query's own among them.

    >>> causal_mask(torch.tensor([[1], [2]]), 4, torch.float32, window=2)[:, 0, 0].tolist()
    [[0.0, 0.0, -inf, -inf], [-inf, 0.0, 0.0, -inf]]
    """
    keys = torch.arange(kv_len, device=positions.device)
    queries = positions[:, :, None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None]


@dataclass(frozen=True)
class LayerTypes:
    """Types of attention of a model's layers.

    Attributes:
        types: `FULL` and `SLIDING`, those that occur.
        window: Number of keys a sliding layer sees; None without such layers.
        is_mixed: True if there are several, so that the model reads one mask per type.
    """

    types: frozenset[str]
    window: int | None
    is_mixed: bool

    @classmethod
    def of(cls, config: Any) -> "LayerTypes":
        """Return those of a transformers text config."""
        window = getattr(config, "sliding_window", None)
        named = getattr(config, "layer_types", None)
        if named is None:
            return cls(frozenset({SLIDING if window is not None else FULL}), window, False)
        types = frozenset(named)
        return cls(types, window if SLIDING in types else None, len(types) > 1)

    def masks(self, positions: Tensor, kv_len: int, dtype: torch.dtype) -> Tensor | Mapping[str, Tensor]:
        """Return the model's `attention_mask` for queries at `positions` `[B, T]` over `kv_len` keys."""
        if not self.is_mixed:
            return causal_mask(positions, kv_len, dtype, self.window)
        return {
            kind: causal_mask(positions, kv_len, dtype, self.window if kind == SLIDING else None) for kind in self.types
        }
