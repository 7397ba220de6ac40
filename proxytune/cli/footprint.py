"""Number of bytes the roles need, from their configs and file headers alone: no weights are loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from proxytune.checkpoints import read_config
from proxytune.errors import RoleError
from proxytune.library_errors import reason_of
from proxytune.prompts import PromptFormat
from proxytune.roles import BASE, Pair, Role

# What bitsandbytes keeps per weight: nf4 in blocks of 64, their scales quantised again in blocks of 256.
_BYTES_PER_4BIT_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)
_SCALE_BYTES = 4  # one float32 scale per output row in 8 bits


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Memory needs of one role.

    Attributes:
        name: base, expert or anti (numbered where there are several pairs).
        source: Hub id or folder.
        dtype: Type it computes in, and keeps its cache in.
        quantization: 4bit, 8bit, stored (quantised on disk) or None.
        num_parameters: Number of its own parameters; an adapter's without the model below.
        weight_bytes: Of what it adds: 0 for a model that another role loads already.
        kv_bytes_per_token: Of keys and values in all layers, for one token of one row; 0 with another role's cache.
        max_context: Longest sequence, None if it states none.
        vocab_size: Width of its logits.
        device_map: Device it was asked to go to.
        weights_from: The role whose weights it uses, if any.
        cache_from: The role whose cache it shares (the same model under the same format), if any.
        config: Of its model, or of the model below an adapter.
    """

    name: str
    source: str
    dtype: str
    quantization: str | None
    num_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    max_context: int | None
    vocab_size: int
    device_map: Any = None
    weights_from: str | None = None
    cache_from: str | None = None
    config: Any = field(default=None, repr=False)

    def row(self) -> dict[str, Any]:
        """Return the footprint as JSON has it."""
        return {name: value for name, value in asdict(self).items() if name != "config"}


@dataclass(frozen=True)
class _Model:
    dtype: torch.dtype
    quantization: str | None
    num_parameters: int
    weight_bytes: int
    config: Any


def footprints(base: Role, pairs: Sequence[Pair], formats: Any, *, needs_weights: bool = True) -> list[Footprint]:
    """Return the footprint of every role here, base first; what two roles share is counted with the first.

    Without `needs_weights` configurations are enough.

    Raises:
        RoleNotFoundError: A folder or its weights are not there.
        RoleError: A config cannot be read.
    """
    role_footprints: list[Footprint] = []
    weights: dict[Any, str] = {}
    caches: dict[Any, str] = {}
    for name, role, prompt_format in _named_roles(base, pairs, formats):
        below = pairs[_pair_index(name)].anti if name.startswith("expert") and role.is_adapter else None
        below = base if below == BASE else below
        model = measure(below or role, name, needs_weights=needs_weights)
        owner = below or role
        key = (owner.name_or_path, str(owner.dtype), str(owner.quantization), str(owner.location))
        cache_key = (key, role.name_or_path if below else None, PromptFormat(prompt_format).name)
        num_parameters, weight_bytes, weights_from = model.num_parameters, model.weight_bytes, weights.get(key)
        if below is not None:
            num_parameters = _num_adapter_parameters(Path(role.name_or_path))
            weight_bytes, weights_from = num_parameters * model.dtype.itemsize, "anti" + name.removeprefix("expert")
        elif weights_from is not None:
            weight_bytes = 0
        cache_from = caches.get(cache_key)
        role_footprints.append(
            Footprint(
                name=name,
                source=role.name_or_path,
                dtype=str(model.dtype).removeprefix("torch."),
                quantization=model.quantization,
                num_parameters=num_parameters,
                weight_bytes=weight_bytes,
                kv_bytes_per_token=0 if cache_from else kv_bytes_per_token(model.config, model.dtype),
                max_context=getattr(model.config, "max_position_embeddings", None),
                vocab_size=model.config.vocab_size,
                device_map=role.device_map,
                weights_from=weights_from,
                cache_from=cache_from,
                config=model.config,
            )
        )
        caches.setdefault(cache_key, name)
        if below is None:
            weights.setdefault(key, name)
    return role_footprints


def measure(role: Role, name: str, *, needs_weights: bool = True) -> _Model:
    """Return the size of a role's model, built without memory from its config."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = read_config(role, name, needs_weights=needs_weights)
    try:
        with init_empty_weights(include_buffers=True):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=role.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise RoleError(f"{name} {role.name_or_path!r} cannot be read: {reason_of(error)}") from error
    folder = Path(role.name_or_path)
    dtype = _dtype(role, config, folder)
    num_parameters = model.num_parameters()
    quantization, weight_bytes = role.quantization, _weight_bytes(model, dtype, role.quantization)
    if getattr(config, "quantization_config", None) is not None:
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        quantization, weight_bytes = "stored", stored or num_parameters
    return _Model(dtype, quantization, num_parameters, weight_bytes, config.get_text_config(decoder=True))


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes that one token of one row takes in the caches of all layers.

    Layers with a sliding window count in full, though they stop growing at its length; layers without attention do not.
    """
    _, num_kv_heads, head_dim = heads(config)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    num_layers = sum("attention" in kind and "linear" not in kind for kind in kinds)
    return int(2 * num_layers * num_kv_heads * head_dim * dtype.itemsize)


def heads(config: Any) -> tuple[int, int, int]:
    """Return how many heads a layer has, how many of keys and values, and their width."""
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return num_heads, num_kv_heads, getattr(config, "head_dim", None) or config.hidden_size // num_heads


def _named_roles(base: Role, pairs: Sequence[Pair], formats: Any) -> Iterator[tuple[str, Role, str]]:
    """Yield name, role and prompt format."""
    if not base.is_remote:
        yield "base", base, formats["base_prompt"]
    for number, pair in enumerate(pairs, 1):
        suffix = "" if len(pairs) == 1 else f"_{number}"
        for name, term in (("expert", pair.expert), ("anti", pair.anti)):
            prompt_format = getattr(pair, f"{name}_prompt") or formats[f"{name}_prompt"]
            if term == BASE and not base.is_remote:
                yield f"{name}{suffix}", base, formats["base_prompt"] if prompt_format == "raw" else prompt_format
            elif isinstance(term, Role):
                yield f"{name}{suffix}", term, prompt_format


def _pair_index(name: str) -> int:
    _, _, number = name.partition("_")
    return int(number or 1) - 1


def _weight_bytes(model: Any, dtype: torch.dtype, quantization: Any) -> int:
    """Return the bytes of all parameters; bitsandbytes packs the linear layers, all but the head."""
    full: int = model.num_parameters() * dtype.itemsize
    if quantization is None:
        return full
    head = model.get_output_embeddings()
    packed = [module.weight for module in model.modules() if _is_linear(module) and module is not head]
    num_packed: int = sum(weight.numel() for weight in packed)
    if quantization == "8bit":
        scales: int = sum(weight.numel() // weight.shape[-1] for weight in packed) * _SCALE_BYTES
        return full - num_packed * (dtype.itemsize - 1) + scales
    return full - num_packed * dtype.itemsize + round(num_packed * _BYTES_PER_4BIT_WEIGHT)


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _dtype(role: Role, config: Any, folder: Path) -> torch.dtype:
    """Return what the role computes in: what was asked for, else what its weights are stored in."""
    asked = role.dtype if role.dtype not in (None, "auto") else getattr(config, "dtype", None)
    if asked is None:
        stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
        dtypes = (stored[kind] for _, kind in _tensors(folder) if kind in stored)
        asked = next(dtypes, "float32")
    return asked if isinstance(asked, torch.dtype) else getattr(torch, str(asked))


def _num_adapter_parameters(folder: Path) -> int:
    return sum(torch.Size(shape).numel() for shape, _ in _tensors(folder))


def _tensors(folder: Path) -> Iterator[tuple[list[int], str]]:
    """Yield shape and dtype of the tensors in a folder's files, without reading them."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                entry = file.get_slice(name)
                yield entry.get_shape(), entry.get_dtype()
