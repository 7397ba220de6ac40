"""Llama-shaped decoders called layer by layer, on their own weights, without the Python of transformers' modules.

A forward of transformers' Llama spends about a third of a millisecond of Python per layer, and on a GPU six kernels per
norm and ten per rotary embedding. Here a layer is its seven linear modules (so adapters and quantised weights act as
they do there), `rms_norm`, a rotary embedding of four operations and one attention call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import modules
from torch.nn.functional import embedding, linear, rms_norm

from proxytune.hf.decoding.attention import LayerTypes, attend
from proxytune.hf.decoding.kv_cache import SlotCache

# Same layer: pre-norm attention with rotary embedding (Qwen3 norms each head before), pre-norm gated MLP.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_TABLE = 1024  # positions that a rotary table begins with
# Numbers in a float32 weight, and rows of states, for which oneDNN's product is the faster one on a CPU: SmolLM2's
# head with 4 and 8 rows takes 0.90 and 0.59 of MKL's time on an Intel Xeon, 0.70 and 0.52 on an AMD EPYC.
_LARGE_WEIGHT, _ONEDNN_ROWS = 2**24, range(4, 65)

Operation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Operations and sizes of one layer, looked up once."""

    input_norm: Operation
    q_proj: Operation
    k_proj: Operation
    v_proj: Operation
    q_norm: Operation | None
    k_norm: Operation | None
    o_proj: Operation
    post_attention_norm: Operation
    gate_proj: Operation
    up_proj: Operation
    activation: Operation
    down_proj: Operation
    head_dim: int
    scaling: float

    @classmethod
    def of(cls, layer: Any) -> "_Layer":
        """Return the operations of a decoder layer of transformers."""
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            input_norm=_row_norm(layer.input_layernorm),
            q_proj=_linear(attention.q_proj),
            k_proj=_linear(attention.k_proj),
            v_proj=_linear(attention.v_proj),
            q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            o_proj=_linear(attention.o_proj),
            post_attention_norm=_row_norm(layer.post_attention_layernorm),
            gate_proj=_linear(mlp.gate_proj),
            up_proj=_linear(mlp.up_proj),
            activation=mlp.act_fn,
            down_proj=_linear(mlp.down_proj),
            head_dim=int(attention.head_dim),
            scaling=float(attention.scaling),
        )


@dataclass(frozen=True)
class FunctionalDecoder:
    """Forward of a Llama-shaped causal LM over a slot cache; `of` looks its modules up and says whether it applies.

    It holds references to weights and modules as they are: make a new one where these may have been replaced.
    """

    embed: Operation
    layers: tuple[_Layer, ...]
    norm: Operation
    head: Operation
    rotary: Any
    window: int | None

    @classmethod
    def of(cls, model: Any) -> "FunctionalDecoder | None":
        """Return the functional forward of a causal LM, None where it holds modules that this file does not know."""
        is_watched = modules.module._global_forward_hooks or modules.module._global_forward_pre_hooks
        if is_watched or model.config.model_type not in FAMILIES or not _is_plain(model):
            return None
        backbone = model.model
        return cls(
            embed=_embedding(backbone.embed_tokens),
            layers=tuple(_Layer.of(layer) for layer in backbone.layers),
            norm=_row_norm(backbone.norm),
            head=_linear(model.lm_head),
            rotary=backbone.rotary_emb,
            window=LayerTypes.of(model.config.get_text_config(decoder=True)).window,
        )

    def hidden(self, token_ids: Tensor, rotary: "Rotary", cache: SlotCache, mask: Tensor | None) -> Tensor:
        """Return the last hidden states `[B, T, D]`, normed.

        Args:
            token_ids: `[B, T]`.
            rotary: Of their positions.
            cache: Its slot mapping is set.
            mask: `[B or 1, 1, T, kv_len]`, additive. Without one a single query sees all of `kv_len`, and a prompt is
                causal.
        """
        rows, length = token_ids.shape
        lengths = cache.mapping.lengths
        states = self.embed(token_ids.reshape(-1))
        for index, layer in enumerate(self.layers):
            normed = layer.input_norm(states)
            shape = (rows, length, -1, layer.head_dim)
            query, key = layer.q_proj(normed).view(shape), layer.k_proj(normed).view(shape)
            if layer.q_norm is not None and layer.k_norm is not None:
                query, key = layer.q_norm(query), layer.k_norm(key)
            query, key = rotary.turned(query, key)
            keys, values = cache.write(index, key, layer.v_proj(normed).view(shape))
            attended = attend(query, keys, values, mask, layer.scaling, lengths=lengths, window=self.window)
            states = states + layer.o_proj(attended.reshape(rows * length, -1))
            normed = layer.post_attention_norm(states)
            states = states + layer.down_proj(layer.activation(layer.gate_proj(normed)) * layer.up_proj(normed))
        return self.norm(states).view(rows, length, -1)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and signed sines of the positions of one forward, `[B or 1, T, 1, dim]`."""

    cos: Tensor
    sin: Tensor

    def turned(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[B, T, heads, dim]` rotated: x·cos + swap(x)·sin, where the first half's sine is negated."""
        states = torch.cat([query, key], dim=2)
        swapped = states.view(*states.shape[:-1], 2, -1).flip(-2).flatten(-2)
        num_heads = query.shape[2]
        states = torch.addcmul(states * self.cos, swapped, self.sin)
        return states[:, :, :num_heads], states[:, :, num_heads:]


class RotaryTable:
    """Rotary values of all positions up to a length, by the model's own module, computed once."""

    def __init__(self, module: Any, like: Tensor) -> None:
        """`module`: transformers' rotary embedding; `like`: a tensor of the model's dtype and device."""
        self._module = module
        self._like = like
        self._cos = self._sin = like[:0]

    def require(self, length: int) -> None:
        """Ensure values for `length` positions."""
        if length <= len(self._cos):
            return
        size = max(_TABLE, 1 << (length - 1).bit_length())
        cos, sin = (part[0] for part in self._module(self._like, torch.arange(size, device=self._like.device)[None]))
        half = sin.shape[-1] // 2
        self._cos, self._sin = cos, torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)

    def at(self, positions: Tensor | slice) -> Rotary:
        """Return the values at `[B, T]` positions, or at a slice that all rows share; they have been required."""
        if isinstance(positions, slice):
            return Rotary(self._cos[None, positions, None], self._sin[None, positions, None])
        return Rotary(self._cos[positions][:, :, None], self._sin[positions][:, :, None])


def _is_plain(model: Any) -> bool:
    """Return whether everything but linear modules and embedding is transformers' own, unwrapped, without hooks."""
    family = f"transformers.models.{model.config.model_type}."
    backbone = getattr(model, "model", None)
    if backbone is None:
        return False
    parts = [model, backbone, backbone.norm, backbone.rotary_emb]
    for layer in backbone.layers:
        attention = layer.self_attn
        norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        parts += [layer, attention, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm, *norms]
    return all(type(part).__module__.startswith(family) and not has_hooks(part) for part in parts)


def has_hooks(module: Any) -> bool:
    """Return whether Python is to run before or after a module's forward: torch's hooks, or accelerate's."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or hasattr(module, "_hf_hook")


def _linear(module: Any) -> Operation:
    """Return the operation of a linear layer: torch's function for torch's class, else the module itself."""
    if type(module) is not torch.nn.Linear or has_hooks(module):
        operation: Operation = module
        return operation
    weight, bias = module.weight, module.bias
    plain = partial(linear, weight=weight, bias=bias)
    is_float32_on_cpu = weight.device.type == "cpu" and weight.dtype is torch.float32
    if not is_float32_on_cpu or weight.numel() < _LARGE_WEIGHT or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return plain

    def large(states: Tensor) -> Tensor:
        if states.numel() // states.shape[-1] not in _ONEDNN_ROWS:
            return plain(states)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states.contiguous(), weight, bias, "none", [], "")
        return product

    return large


def _embedding(module: Any) -> Operation:
    if type(module) is torch.nn.Embedding and not has_hooks(module):
        return partial(embedding, weight=module.weight)
    operation: Operation = module
    return operation


def _norm(module: Any) -> Operation:
    """Return the operation of an RMS norm over `[..., D]`."""
    weight, eps = module.weight, float(module.variance_epsilon)
    return partial(rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps)


def _row_norm(module: Any) -> Operation:
    """Return the same over `[N, D]`.

    torch has no kernel of its own for it on a CPU, where six small operations take 10 µs: four take 6.
    """
    weight, eps = module.weight, float(module.variance_epsilon)
    if weight.device.type != "cpu" or weight.dtype is not torch.float32:
        return _norm(module)
    mean, offset = torch.full((len(weight), 1), 1 / len(weight)), torch.tensor([eps])

    def normed(states: Tensor) -> Tensor:
        scale = torch.addmm(offset, states * states, mean).rsqrt_()
        return (states * scale).mul_(weight)

    return normed
