"""Experts that are adapters over one anti, inside vLLM: its weights once, all their rows in one pass.

The anti's embedding repeats its T rows, once for itself and once for each expert; every linear layer reads its weight
once for all of them and adds each expert's low-rank part to that expert's rows; every attention layer has a twin per
expert, with a KV cache of its own. All of it lies inside the region that vLLM compiles, whose inputs stay T long.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from proxytune.errors import RuntimeUnsupportedError
from proxytune.vllm.adapter import LowRank

Factors = Mapping[str, LowRank]


@dataclass(frozen=True)
class Pack:
    """Position of an adapter's layers in a linear layer of vLLM's, which may hold several side by side.

    Attributes:
        paths: The layers' paths in the checkpoint, in the order of their outputs.
        sizes: Number of outputs of each.
    """

    paths: tuple[str, ...]
    sizes: tuple[int, ...]

    def joined(self, factors: Factors) -> LowRank | None:
        """Return the factors of the whole, with zeros where a layer has no part in another's rank; None for none."""
        parts = [(index, factors[path]) for index, path in enumerate(self.paths) if path in factors]
        if not parts:
            return None
        starts = [sum(self.sizes[:index]) for index in range(len(self.sizes))]
        down = torch.cat([part.down for _, part in parts])
        up = down.new_zeros(sum(self.sizes), down.shape[0])
        column = 0
        for index, part in parts:
            rank = part.down.shape[0]
            up[starts[index] : starts[index] + self.sizes[index], column : column + rank] = part.up
            column += rank
        return LowRank(down=down, up=up)


class RepeatedEmbedding(UnquantizedEmbeddingMethod):
    """Looks rows up once and repeats them: `[T]` ids to `[copies · T, D]`."""

    def __init__(self, copies: int) -> None:
        """Take the number of models that share the embedding."""
        self._copies = copies

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        """Return one copy of the rows behind the other."""
        rows: Tensor = super().embedding(layer, input_)
        return rows.repeat(self._copies, 1)


class RepeatedRotary(nn.Module):
    """Rotates the rows of all copies by the same positions."""

    def __init__(self, inner: Any, copies: int) -> None:
        """Wrap a rotary embedding, which other models may use as well and which stays as it is."""
        super().__init__()
        self.inner = inner
        self._copies = copies

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> Any:
        """Return query and key `[copies · T, …]` rotated by positions `[T]`."""
        return self.inner(positions.repeat(self._copies), query, key)


class TwinAttention(nn.Module):
    """One attention layer per copy, each with its own rows and its own KV cache."""

    def __init__(self, layers: Sequence[Any]) -> None:
        """Join the anti's layer and the experts'."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the outputs `[copies · T, …]` of `[copies · T, …]`, copy by copy."""
        rows = zip(*(_by_copy(tensor, len(self.layers)) for tensor in (query, key, value)), strict=True)
        return torch.cat([layer(*rows_of_layer) for layer, rows_of_layer in zip(self.layers, rows, strict=True)])


class AdaptedLinear(UnquantizedLinearMethod):
    """A linear layer that adds to each expert's rows what its adapter computes of them."""

    def __init__(self, adapted: Sequence[bool]) -> None:
        """Say which experts have an adapter here."""
        super().__init__()
        self._adapted = tuple(adapted)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return `[copies · T, out]` of `[copies · T, in]`."""
        output: Tensor = super().apply(layer, x, bias)
        copies = len(self._adapted) + 1
        inputs, outputs = _by_copy(x, copies), _by_copy(output, copies)
        for number, is_adapted in enumerate(self._adapted):
            if is_adapted:
                down, up = getattr(layer, _buffer(number, "down")), getattr(layer, _buffer(number, "up"))
                outputs[number + 1].add_(nn.functional.linear(nn.functional.linear(inputs[number + 1], down), up))
        return output


def share(model: Any, anti: str, experts: Mapping[str, Factors]) -> None:
    """Make a model that was just built, not yet loaded, run its own rows and each expert's: `[T]` ids to `[n · T, D]`.

    Raises:
        RuntimeUnsupportedError: The model is not built of the layers that this knows.
    """
    copies = len(experts) + 1
    _replace_method(model.model.embed_tokens, UnquantizedEmbeddingMethod, RepeatedEmbedding(copies))
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.rotary_emb = RepeatedRotary(attention.rotary_emb, copies)
        attention.attn = TwinAttention([attention.attn, *(_twin(attention.attn, anti, name) for name in experts)])
    for path, linear in model.model.layers.named_modules(prefix="model.layers"):
        if getattr(linear, "quant_method", None) is not None and hasattr(linear, "output_partition_sizes"):
            pack = _pack(path, linear, model.packed_modules_mapping)
            _adapt(linear, [pack.joined(factors) for factors in experts.values()])


def fingerprint(experts: Mapping[str, Factors]) -> str:
    """Return what tells a compiled anti with these experts from one with others: layers and ranks, not values."""
    shapes = [
        [(path, tuple(part.down.shape)) for path, part in sorted(factors.items())] for factors in experts.values()
    ]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def _by_copy(tensor: Tensor, copies: int) -> tuple[Tensor, ...]:
    """Return views on the rows of each copy of `[copies · T, …]`."""
    rows = tensor.view(copies, tensor.shape[0] // copies, *tensor.shape[1:])
    return tuple(rows[number] for number in range(copies))


def _twin(attention: Any, anti: str, expert: str) -> Any:
    """Return an attention layer like one of the anti's, under the expert's name, so that it gets its own KV cache."""
    return Attention(
        attention.num_heads,
        attention.head_size,
        attention.impl.scale,
        num_kv_heads=attention.num_kv_heads,
        cache_config=get_current_vllm_config().cache_config,
        prefix=expert + attention.layer_name.removeprefix(anti),
    )


def _pack(path: str, linear: Any, packed: Mapping[str, Sequence[str]]) -> Pack:
    block, _, name = path.rpartition(".")
    return Pack(
        paths=tuple(f"{block}.{part}" for part in packed.get(name, (name,))), sizes=tuple(linear.output_partition_sizes)
    )


def _adapt(linear: Any, parts: Sequence[LowRank | None]) -> None:
    """Give a linear layer the experts' factors, in its dtype and on its device."""
    _replace_method(linear, UnquantizedLinearMethod, AdaptedLinear([part is not None for part in parts]))
    for number, part in enumerate(parts):
        if part is not None:
            for name in ("down", "up"):
                linear.register_buffer(_buffer(number, name), getattr(part, name).to(linear.weight), persistent=False)


def _buffer(number: int, name: str) -> str:
    return f"adapter_{number}_{name}"


def _replace_method(layer: Any, expected: type, method: Any) -> None:
    """Put a method of ours in place of vLLM's plain one."""
    if type(getattr(layer, "quant_method", None)) is not expected:
        raise RuntimeUnsupportedError(
            f"the anti has a {type(layer).__name__} that is not an ordinary layer, so its adapter cannot share it: set "
            'additional_config={"proxytune_share_adapters": False} in engine_options.'
        )
    layer.quant_method = method
