"""An expert that is a peft adapter over its anti: loading it, and refusing what cannot share the anti's weights."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxytune.errors import ProxyTuneError, RoleError
from proxytune.library_errors import reason_of
from proxytune.roles import Role, peft_config_of

_MISSING = "missing adapter keys"  # in peft's warning
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
_UNBOUNDED = ("seed", "key", "alpha", "frequency", "token", "_ids", "layers")  # in names of numbers that may be large
_MAX_SIZE = 2**16  # of ranks, blocks, vectors
_MAX_ROUNDS = 100  # of a decomposition
_PLAIN_LORA_FIELDS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_version",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    }
)
_REFUSED = {
    "LILY": "mixes its weights by an average over all rows of a batch",
    "XLORA": "mixes other adapters by a pass of its own",
    "POLY": "chooses by a task id that no prompt has",
}


def load_adapter(role: Role, name: str, anti: Any, anti_role: Role, wrapper: Any = None) -> tuple[Any, str]:
    """Return the PeftModel that holds the expert's adapter, and the adapter's name in it.

    The adapter's layers go into `anti` itself, so the weights are held once; it keeps the dtype of its base (peft would
    make it float32). `wrapper` is the PeftModel already around this anti when several pairs share it.

    Raises:
        RoleError: The adapter belongs to another model than the anti, or is of a kind that is refused.
    """
    import torch
    from peft import PeftModel

    if role.is_loaded:
        require_weight_adapter(peft_config_of(role.source), name)
        if role.source.get_base_model() is not anti:
            raise RoleError(
                f"{name} is a PeftModel over another model object than the anti: "
                "pass anti=expert.get_base_model(), or both as folders."
            )
        if changes_base(peft_config_of(role.source)):
            raise RoleError(
                f"{name} is a PeftModel whose adapter has changed its base's own weights, so that base is no anti any "
                "more: pass expert and anti as folders."
            )
        return role.source.eval(), role.source.active_adapter
    if wrapper is None and getattr(anti, "peft_config", None):
        raise RoleError(
            f"the anti of {name} carries an adapter already, perhaps of another generator: pass the anti's folder, "
            "or load it anew."
        )
    options = {**role.hub_location, "autocast_adapter_dtype": False}
    read_adapter_config(role, name, anti_role)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if wrapper is None:
                wrapper = PeftModel.from_pretrained(anti, str(role.source), adapter_name=name, **options)
                missing = [str(one.message) for one in caught if _MISSING in str(one.message)]
            else:
                missing = wrapper.load_adapter(str(role.source), adapter_name=name, **options).missing_keys
    except (ProxyTuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RoleError(
            f"adapter {str(role.source)!r} does not fit the anti {anti_role.name_or_path!r} ({reason_of(error)}): pass "
            "the model that it was trained over, or get its files again."
        ) from error
    if missing:
        raise RoleError(
            f"adapter {str(role.source)!r} lacks tensors that its adapter_config.json asks for "
            f"({', '.join(missing)[:200]}): its files are incomplete; get them again."
        )
    return wrapper.eval(), name


def read_adapter_config(role: Role, name: str, anti: Role) -> Any:
    """Return the peft config of an expert's adapter that is not loaded.

    Raises:
        RoleError: It cannot be read, belongs to another model than the anti, or is of a kind that is refused.
    """
    from peft import PeftConfig

    source = str(role.source)
    try:
        config: Any = PeftConfig.from_pretrained(source, **role.hub_location)
    except Exception as error:
        raise RoleError(
            f"{name} {source!r} has an adapter_config.json that cannot be read ({reason_of(error)}): get it again."
        ) from error
    require_weight_adapter(config, name)
    _require_bounded(config, role, name)
    if anti.source:
        _require_base(config.base_model_name_or_path, role, name, anti)
    return config


def adapter_base(role: Role, name: str) -> Role:
    """Return the model below an adapter that is not loaded, as its own config names it.

    Raises:
        RoleError: It names none, or as in `read_adapter_config`.
    """
    config = read_adapter_config(role, name, replace(role, source=""))
    if not config.base_model_name_or_path:
        raise RoleError(f"{name} {str(role.source)!r} is an adapter that names no base: merge it into its model first.")
    return replace(role, source=config.base_model_name_or_path, revision=config.revision)


def require_weight_adapter(config: Any, name: str) -> None:
    """Raise RoleError for an adapter that is no change of weights that rows share; None is no adapter."""
    if config is None:
        return
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    reason = _REFUSED.get(kind)
    if config.is_prompt_learning:
        raise RoleError(f"{name} is a {kind} adapter, which adds prompt tokens: use one that changes weights, as LoRA.")
    if getattr(config, "alora_invocation_tokens", None):
        kind, reason = "aLoRA", "acts on the tokens from an invocation in the prompt on, which steering does not track"
    elif "pissa_niter" in str(getattr(config, "init_lora_weights", "")):
        kind = f"PiSSA ({config.init_lora_weights})"
        reason = (
            "starts from a random decomposition that is not stored; convert it with "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if reason is not None:
        raise RoleError(
            f"{name} is a {kind} adapter, which {reason}: use one that changes weights, as LoRA, or merge it into a "
            "model of its own and pass that."
        )


def changes_base(config: Any) -> bool:
    """Return whether loading an adapter of this config changes the base's own weights or layers."""
    # LoRA's starts other than these decompose the base's weights and keep the rest of them in it.
    start = getattr(config, "init_lora_weights", True)
    return bool(
        (isinstance(start, str) and start.lower() not in _PLAIN_STARTS)
        or getattr(config, "layer_replication", None)
        or getattr(config, "kasa_config", None)
        or getattr(config, "bias", "none") not in ("none", None, False)
    )


def is_plain_lora(config: Any) -> bool:
    """Return whether an adapter is low-rank factors on modules and nothing else, as most are."""
    from peft import LoraConfig

    plain = LoraConfig().to_dict()
    fields = config.to_dict()
    return isinstance(config, LoraConfig) and all(
        not value or key in _PLAIN_LORA_FIELDS or value == plain.get(key) for key, value in fields.items()
    )


def _require_bounded(config: Any, role: Role, name: str) -> None:
    """Raise RoleError for a rank or a number of rounds that no adapter has: it would fill the memory, or never end."""
    for key, value in config.to_dict().items():
        limit = _MAX_ROUNDS if "iter" in key else _MAX_SIZE
        values = value.values() if isinstance(value, dict) else [value]
        if any(part in key for part in _UNBOUNDED):
            continue
        if any(isinstance(each, int | float) and not each <= limit for each in values):
            raise RoleError(
                f"{name} {str(role.source)!r} has {key}={value} in its adapter_config.json: no adapter has more than "
                f"{limit}; get it again."
            )


def _require_base(base: str | None, role: Role, name: str, anti: Role) -> None:
    """Raise RoleError unless the adapter was trained over the anti."""
    if not isinstance(base, str | None):
        raise RoleError(f"{name} {str(role.source)!r} names {base!r} as its base, which is no model: get it again.")
    if role.trust_adapter_base or not base:
        return
    given = anti.name_or_path
    is_same = base == given or (Path(base).exists() and Path(given).exists() and Path(base).samefile(given))
    if not is_same:
        raise RoleError(
            f"{name} {str(role.source)!r} is an adapter over {base!r}, but the anti is {given!r}: pass that model as "
            "anti, or Role(..., trust_adapter_base=True) if it is the same one under another name."
        )
