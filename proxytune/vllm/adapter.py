"""A LoRA adapter as low-rank factors by linear layer, and whether it can run beside its anti's weights.

Source: "LoRA" (arXiv 2106.09685), eq. 3: W x + (α/r) · B A x; rank-stabilised (arXiv 2312.03732): α/√r.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from proxytune.adapters import read_adapter_config
from proxytune.errors import RoleError
from proxytune.library_errors import reason_of
from proxytune.roles import Role

SHARE_OPTION = "proxytune_share_adapters"  # of vLLM's additional_config; False merges at load

# Decoders of one build, whose targets lie where `_LAYER` says; tests compare each with the hf runtime.
_SHARED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_LAYER = re.compile(
    r"base_model\.model\.(?P<path>model\.layers\.(?P<index>\d+)\.(?:self_attn\.(?:q|k|v|o)|mlp\.(?:gate|up|down))_proj)"
    r"\.lora_(?P<factor>[AB])\.weight"
)
# Fields of peft's config that say nothing of what the weights compute once they are trained.
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_version",
        "r",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
_PLAIN_STARTS = (True, False, "gaussian")  # others change the anti's own weights as the adapter is loaded


@dataclass(frozen=True, eq=False)
class LowRank:
    """Low-rank factors of an adapter, which adds `up @ down @ x` to one linear layer.

    Attributes:
        down: `[R, in]`.
        up: `[out, R]`, times the adapter's scale.
    """

    down: Tensor
    up: Tensor


def read_factors(source: str, revision: str | None) -> dict[str, LowRank]:
    """Return an adapter's factors by the path of their linear layer (`model.layers.0.self_attn.q_proj`), on the CPU."""
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(source, revision=revision)
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    halves: dict[str, dict[str, Tensor]] = {}
    for name, weight in _weights(source, revision).items():
        match = _LAYER.fullmatch(name)
        if match is None:
            raise RoleError(f"adapter {source!r} holds {name}, which is no factor of a linear layer: merge it first.")
        halves.setdefault(match["path"], {})[match["factor"]] = weight
    return {
        path: LowRank(down=half["A"], up=(half["B"].float() * scale).to(half["B"].dtype))
        for path, half in halves.items()
    }


def merge_reason(expert: Role, name: str, anti: Role, anti_config: Any, options: Mapping[str, Any]) -> str | None:
    """Return why an adapter expert cannot share its anti's weights in this engine; None if it can.

    Raises:
        RoleError: It belongs to another model than the anti, or is no adapter that can be read.
    """
    for option in ("tensor_parallel_size", "pipeline_parallel_size"):
        if options.get(option, 1) > 1:
            return f"{option} is {options[option]}"
    if options.get("speculative_config") is not None:
        return "it drafts for the composite"
    [architecture, *_] = getattr(anti_config, "architectures", None) or ["unknown"]
    if architecture not in _SHARED:
        return f"its anti is a {architecture}"
    if getattr(anti_config, "quantization_config", None) is not None:
        return "its anti is quantised"
    try:
        config = read_adapter_config(expert, name, anti)
        return _not_plain_reason(config) or _not_fitting_reason(str(expert.source), expert.revision, anti_config)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, RoleError):
            raise
        raise RoleError(
            f"adapter {str(expert.source)!r} cannot be read ({reason_of(error)}): get its files again."
        ) from error


def is_asked_to_merge(options: Mapping[str, Any]) -> bool:
    """Return whether the engine's options say that adapters are to be merged."""
    return (options.get("additional_config") or {}).get(SHARE_OPTION, True) is False


def _not_plain_reason(config: Any) -> str | None:
    """Return what makes an adapter more than plain LoRA on linear layers."""
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        return f"it is a {config.peft_type} adapter"
    if config.init_lora_weights not in _PLAIN_STARTS:
        return f"init_lora_weights={config.init_lora_weights!r} changes its anti's weights"
    plain = LoraConfig().to_dict()
    other_fields = {name: value for name, value in config.to_dict().items() if name not in _HARMLESS}
    other = [name for name, value in other_fields.items() if value and (name not in plain or value != plain[name])]
    return f"its {other[0]} is {other_fields[other[0]]!r}" if other else None


def _not_fitting_reason(source: str, revision: str | None, anti_config: Any) -> str | None:
    """Return which weight is of no linear layer of the anti's decoder; raise RoleError where a shape does not fit."""
    shapes = _shapes(anti_config)
    for name, weight in _weights(source, revision).items():
        match = _LAYER.fullmatch(name)
        if match is None or int(match["index"]) >= anti_config.num_hidden_layers:
            return f"it holds {name}"
        outputs, inputs = shapes[match["path"].rpartition(".")[2]]
        is_fitting = weight.shape[1] == inputs if match["factor"] == "A" else weight.shape[0] == outputs
        if not is_fitting:
            raise RoleError(
                f"adapter {source!r} does not fit the anti: {name} is {list(weight.shape)}, and the layer has {inputs} "
                f"inputs and {outputs} outputs."
            )
    return None


def _shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of each linear layer of a decoder."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads * head
    keys = (config.num_key_value_heads or config.num_attention_heads) * head
    hidden, wide = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (wide, hidden),
        "up_proj": (wide, hidden),
        "down_proj": (hidden, wide),
    }


def _weights(source: str, revision: str | None) -> dict[str, Tensor]:
    from peft.utils.save_and_load import load_peft_weights

    with torch.device("cpu"):
        weights: dict[str, Tensor] = load_peft_weights(source, device="cpu", revision=revision)
    return weights
