"""Models, configs and tokenizers of roles, read from a hub id or a folder; whatever is wrong is one sentence."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxytune.adapters import adapter_base, load_adapter, require_weight_adapter
from proxytune.errors import DependencyError, ProxyTuneError, ProxyTuneWarning, RoleError, RoleNotFoundError
from proxytune.folder_checks import (
    require_bounded_counts,
    require_plausible_size,
    require_sound_files,
    weight_files,
)
from proxytune.gguf_file import dequantizing, gguf_path, prepend_bos, require_gguf
from proxytune.hub import looks_local, require_available
from proxytune.library_errors import reason_of
from proxytune.roles import Role, peft_config_of

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_LAYER = re.compile(r"(?P<list>.+?)\.\d+\.")
_WAY_OUT = "check the id or the path, or get its files again."
_NUM_NAMED = 3  # tensors in an error


def load_model(role: Role, name: str) -> Any:
    """Return the role's causal LM, in evaluation mode; of an adapter the PeftModel over the model that it names.

    Raises:
        RoleNotFoundError: The folder or its weights are not there.
        RoleError: It loads, but not as a causal LM; transformers refused it; or its files lack tensors, or hold some of
            another shape.
        DependencyError: Quantisation without bitsandbytes.
    """
    if role.is_loaded:
        require_weight_adapter(peft_config_of(role.source), name)
        return role.source.eval()
    if role.is_adapter:
        require_files(role, name)
        below = adapter_base(role, name)
        return load_adapter(role, name, load_model(below, name), below)[0]
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(role, name)
    kwargs = _load_kwargs(role)
    if kwargs.get("local_files_only"):
        kwargs["adapter_kwargs"] = {"local_files_only": True}  # it looks for an adapter by arguments of its own
    try:
        _require_size_of_files(role, name, config)
        loaded = AutoModelForCausalLM.from_pretrained(
            # Shapes that differ would be reported in a log; here they are named in the error below.
            str(role.source),
            **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True},
        )
    except (ProxyTuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RoleError(f"{name} {str(role.source)!r} cannot be loaded ({reason_of(error)}): {_WAY_OUT}") from error
    model, info = loaded if isinstance(loaded, tuple) else (loaded, {})
    _require_complete(info, name, str(role.source))
    _require_all_used(model, info, name, str(role.source))
    return model.eval()


def read_config(role: Role, name: str, *, needs_weights: bool = True) -> Any:
    """Return the transformers config of a role that is a hub id or a folder of a model.

    A plan does not need the weights to be there.

    Raises:
        RoleNotFoundError: The folder or its weights are not there.
        RoleError: A file of the folder is damaged, or transformers refused the config.
    """
    from transformers import AutoConfig, PreTrainedConfig

    if needs_weights:
        require_files(role, name)
    source = str(role.source)
    try:
        if not Path(source).is_dir() and role.gguf_file is None:
            entry, _ = PreTrainedConfig.get_config_dict(source, **role.hub_location)
            require_bounded_counts(entry, f"the config of {name} {source!r}")
        return AutoConfig.from_pretrained(source, **role.location)
    except ProxyTuneError:
        raise
    except Exception as error:
        raise RoleError(f"{name} {source!r} cannot be loaded ({reason_of(error)}): {_WAY_OUT}") from error


def load_tokenizer(role: Role) -> Any | None:
    """Return the role's own tokenizer, or None when it has no file of one (an adapter, a model never saved, an API).

    Raises:
        RoleError: It has one that cannot be loaded.
    """
    from transformers import AutoTokenizer

    source = role.name_or_path
    if not source or role.is_remote:
        return None
    if role.gguf_file is None and Path(source).is_dir():
        require_sound_files(Path(source), "the folder")
    if role.gguf_file is None and not _has_tokenizer(source, role.hub_location):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **role.location)
        if role.gguf_file is None:
            return tokenizer
        return prepend_bos(tokenizer, gguf_path(source, role.gguf_file, role.revision))
    except Exception as error:
        raise RoleError(
            f"the tokenizer of {source!r} cannot be loaded, so its token ids cannot be compared ({reason_of(error)}): "
            "get its files again, or delete all of them to go without."
        ) from error


def require_files(role: Role, name: str) -> None:
    """Raise early and plainly for a folder that is missing, empty of weights, or damaged.

    Raises:
        RoleNotFoundError: There is no folder, no config.json or no weights; or a hub id that is not in the cache while
            the hub does not answer.
        RoleError: As in `require_sound_files`.
    """
    if role.is_loaded or role.is_remote:
        return
    path = Path(str(role.source))
    if role.gguf_file is not None:
        require_gguf(role.gguf_file)
        if not (path / role.gguf_file).is_file() and (path.is_dir() or str(path).count("/") != 1):
            raise RoleNotFoundError(f"{name} file {str(path / role.gguf_file)!r} does not exist: check the path.")
        return
    if path.is_dir():
        require_sound_files(path, name)
        if role.is_adapter:
            return
        if not (path / "config.json").is_file():
            raise RoleNotFoundError(f"{name} folder {str(path)!r} has no config.json: it is not a saved model.")
        if not weight_files(path):
            raise RoleNotFoundError(
                f"{name} folder {str(path)!r} has no weights (*.safetensors or *.bin): save the model there first."
            )
        return
    if looks_local(str(role.source)):
        raise RoleNotFoundError(f"{name} folder {str(role.source)!r} does not exist: check the path.")
    require_available(name, str(role.source))


def _has_tokenizer(source: str, location: Mapping[str, Any]) -> bool:
    """Return whether a folder or a hub id has a file of a tokenizer."""
    if Path(source).is_dir():
        return any((Path(source) / file).is_file() for file in _TOKENIZER_FILES)
    from transformers.utils import cached_file

    missing: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    try:
        return any(cached_file(source, file, **location, **missing) is not None for file in _TOKENIZER_FILES)
    except (OSError, ValueError):
        # No such repository: loading its model says so.
        return False


def _require_size_of_files(role: Role, name: str, config: Any) -> None:
    """Raise RoleError where a folder's config asks for far more than its weights hold."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(str(role.source))
    if not folder.is_dir() or role.gguf_file is not None:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=role.trust_remote_code)
    is_quantized = getattr(config, "quantization_config", None) is not None
    require_plausible_size(model, folder, name, is_quantized=is_quantized)


def _require_complete(info: dict[str, Any], name: str, source: str) -> None:
    """Raise RoleError for tensors that the files lack or hold in another shape, which transformers fills at random."""
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise RoleError(
            f"{name} {source!r} lacks {len(missing)} tensors that its config.json asks for ({_named(missing)}): its "
            "files are incomplete, or belong to another model; get them again."
        )
    different = [
        f"{key} is {list(shape)} and not {list(expected)}"
        for key, shape, expected in sorted(info.get("mismatched_keys", ()))
    ]
    if different:
        raise RoleError(
            f"{name} {source!r} has {len(different)} tensors of another shape than its config.json asks for "
            f"({_named(different)}): its files belong to different models; get them again."
        )


def _require_all_used(model: Any, info: dict[str, Any], name: str, source: str) -> None:
    """Raise RoleError for layers in the files that the config does not count; warn of other tensors without a use."""
    unused = sorted(info.get("unexpected_keys", ()))
    modules = {path for path, module in model.named_modules() if type(module).__name__ == "ModuleList"}
    beyond = [key for key in unused if (match := _LAYER.match(key)) and match["list"] in modules]
    if beyond and not getattr(model.config, "num_nextn_predict_layers", 0):
        raise RoleError(
            f"{name} {source!r} holds {len(beyond)} tensors of layers that its config.json does not count "
            f"({_named(beyond)}): its files belong to different models; get them again."
        )
    if unused:
        warnings.warn(
            f"{name} {source!r} holds {len(unused)} tensors that a causal LM of its config has no use for "
            f"({_named(unused)}): they are left out.",
            ProxyTuneWarning,
            stacklevel=2,
        )


def _named(items: list[str]) -> str:
    more = len(items) - _NUM_NAMED
    return ", ".join(items[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def _load_kwargs(role: Role) -> dict[str, Any]:
    import torch

    device_map = role.device_map
    if device_map is None and torch.cuda.is_available():
        device_map = {"": 0}
    dtype = role.dtype if role.dtype is not None else "auto"
    kwargs = {
        "dtype": getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype,
        "device_map": device_map,
        **role.location,
        **role.model_kwargs,
    }
    if role.gguf_file is not None:
        kwargs["quantization_config"] = dequantizing()
    if role.quantization is not None:
        kwargs["quantization_config"] = _quantization_config(role)
    return {key: value for key, value in kwargs.items() if value is not None}


def _quantization_config(role: Role) -> Any:
    if not isinstance(role.quantization, str):
        return role.quantization
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise DependencyError(
            f"quantization={role.quantization!r} needs bitsandbytes: pip install 'proxytune[bnb]', or load without it."
        )
    if role.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = getattr(torch, role.dtype) if isinstance(role.dtype, str) and role.dtype != "auto" else role.dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute if isinstance(compute, torch.dtype) else torch.bfloat16,
    )
