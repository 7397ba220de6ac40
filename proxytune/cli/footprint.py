"""How many bytes the roles need, from their configs and file headers alone: no weights are loaded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from proxytune.checkpoints import read_config
from proxytune.errors import RoleError
from proxytune.folder_checks import safetensors_header
from proxytune.library_errors import reason_of
from proxytune.prompts import PromptFormat
from proxytune.roles import Pair, Role

# What bitsandbytes keeps per weight: nf4 in blocks of 64, their scales quantised again in blocks of 256.
_BYTES_PER_4BIT_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)
_SCALE_BYTES = 4  # one float32 scale per output row in 8 bits


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one role needs.

    Attributes:
        name: base, expert or anti (numbered where there are several pairs).
        source: Hub id or folder.
        dtype: What it computes in, and keeps its cache in.
        quantization: 4bit, 8bit, stored (quantised on disk) or None.
        num_parameters: Those of its own; an adapter's without the model below.
        weight_bytes: Of what it adds: 0 for a model that another role loads already.
        kv_bytes_per_token: Of keys and values in all layers, for one token of one row; 0 with another role's cache.
        max_context: Longest sequence, None if it states none.
        vocab_size: Width of its logits.
        device_map: Where it was asked to go.
        num_attention_heads: In each layer.
        num_kv_heads: Of keys and values in each layer.
        head_dim: Width of a head.
        weights_from: The role whose weights it uses, if any.
        cache_from: The role whose cache it shares (the same model under the same format), if any.
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
    device_map: Any
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    weights_from: str | None = None
    cache_from: str | None = None


@dataclass(frozen=True)
class _Model:
    """The size of one model as its role loads it."""

    dtype: torch.dtype
    quantization: str | None
    num_parameters: int
    weight_bytes: int
    config: Any


def footprints(base: Role, pairs: Sequence[Pair], formats: Any) -> list[Footprint]:
    """Return the footprint of every role here, base first; what two roles share is counted with the first.

    Raises:
        RoleNotFoundError: A folder or its weights are not there.
        RoleError: A config cannot be read.
    """
    found: list[Footprint] = []
    weights: dict[Any, str] = {}
    caches: dict[Any, str] = {}
    for name, role, under, form in _with_formats(base, pairs, formats):
        model = measure(role if under is None else under, name)
        adapter = None if under is None else _adapter_size(Path(role.name_or_path), model.dtype)
        key = _key(role if under is None else under)
        cache_key = (key, role.name_or_path if under else None, PromptFormat(form).name)
        weights_from, cache_from = weights.get(key), caches.get(cache_key)
        num_parameters, weight_bytes = model.num_parameters, model.weight_bytes
        if adapter is not None:
            num_parameters, weight_bytes = adapter
        elif weights_from is not None:
            weight_bytes = 0
        num_heads, num_kv_heads, head_dim = _heads(model.config)
        found.append(
            Footprint(
                name=name,
                source=role.name_or_path,
                dtype=_dtype_name(model.dtype),
                quantization=model.quantization,
                num_parameters=num_parameters,
                weight_bytes=weight_bytes,
                kv_bytes_per_token=0 if cache_from else kv_bytes_per_token(model.config, model.dtype),
                max_context=getattr(model.config, "max_position_embeddings", None),
                vocab_size=model.config.vocab_size,
                device_map=role.device_map,
                num_attention_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                weights_from="anti" + name.removeprefix("expert") if adapter else weights_from,
                cache_from=cache_from,
            )
        )
        caches.setdefault(cache_key, name)
        if adapter is None:
            weights.setdefault(key, name)
    return found


def measure(role: Role, name: str) -> _Model:
    """Return the size of a role's model, built without memory from its config."""
    from transformers import AutoModelForCausalLM

    folder = Path(role.name_or_path)
    config = read_config(role, name)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=role.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise RoleError(f"{name} {role.name_or_path!r} cannot be read: {reason_of(error)}") from error
    dtype = _dtype(role, config, folder)
    text_config = config.get_text_config(decoder=True)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if getattr(config, "quantization_config", None) is not None:
        stored = sum(path.stat().st_size for path in _weight_files(folder))
        return _Model(dtype, "stored", num_parameters, stored or num_parameters, text_config)
    weight_bytes = _weight_bytes(model, dtype, role.quantization)
    return _Model(dtype, role.quantization, num_parameters, weight_bytes, text_config)


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes that one token of one row takes in the caches of all layers.

    Layers with a sliding window count in full, though they stop growing at its length; layers without attention do not.
    """
    _, num_kv_heads, head_dim = _heads(config)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    num_layers = sum("attention" in kind and "linear" not in kind for kind in kinds)
    return int(2 * num_layers * num_kv_heads * head_dim * dtype.itemsize)


def _heads(config: Any) -> tuple[int, int, int]:
    """Return how many heads a layer has, how many of keys and values, and their width."""
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return num_heads, num_kv_heads, head_dim


def _with_formats(base: Role, pairs: Sequence[Pair], formats: Any) -> Iterable[tuple[str, Role, Role | None, str]]:
    """Yield name, role, the role below it (for an adapter) and prompt format."""
    if not base.is_remote:
        yield "base", base, None, formats["base_prompt"]
    for number, pair in enumerate(pairs, 1):
        suffix = "" if len(pairs) == 1 else f"_{number}"
        expert: Role = pair.expert
        below = pair.anti if expert.is_adapter else None
        yield f"expert{suffix}", expert, below, pair.expert_prompt or formats["expert_prompt"]
        yield f"anti{suffix}", pair.anti, None, pair.anti_prompt or formats["anti_prompt"]


def _key(role: Role) -> tuple[str, ...]:
    """Return what makes two roles one loaded model."""
    return (role.name_or_path, str(role.dtype), str(role.quantization), str(role.revision), str(role.gguf_file))


def _weight_bytes(model: Any, dtype: torch.dtype, quantization: str | None) -> int:
    """Return the bytes of all parameters; bitsandbytes packs the linear layers, all but the head."""
    whole: int = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if quantization is None:
        return whole
    head = model.get_output_embeddings()
    packed = [module.weight for module in model.modules() if _is_linear(module) and module is not head]
    num_packed: int = sum(weight.numel() for weight in packed)
    if quantization == "8bit":
        scales: int = sum(weight.numel() // weight.shape[-1] for weight in packed) * _SCALE_BYTES
        return whole - num_packed * (dtype.itemsize - 1) + scales
    return whole - num_packed * dtype.itemsize + round(num_packed * _BYTES_PER_4BIT_WEIGHT)


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _dtype(role: Role, config: Any, folder: Path) -> torch.dtype:
    """Return what the role computes in: what was asked for, else what its weights are stored in."""
    wanted = role.dtype if role.dtype not in (None, "auto") else getattr(config, "dtype", None)
    if wanted is None:
        wanted = _stored_dtype(folder)
    return wanted if isinstance(wanted, torch.dtype) else getattr(torch, str(wanted))


def _stored_dtype(folder: Path) -> str:
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    for path in sorted(folder.glob("*.safetensors")):
        for entry in safetensors_header(path).values():
            if entry["dtype"] in names:
                return names[entry["dtype"]]
    return "float32"


def _adapter_size(folder: Path, dtype: torch.dtype) -> tuple[int, int]:
    """Return parameters and bytes of an adapter in a folder; it takes the dtype of the model below."""
    tensors = [entry for path in folder.glob("*.safetensors") for entry in safetensors_header(path).values()]
    num_parameters = sum(torch.Size(entry["shape"]).numel() for entry in tensors)
    return num_parameters, num_parameters * dtype.itemsize


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
