"""`merge`: an adapter's change added to the weights of its base, as a model folder of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from neft.adapters import quantization_config
from neft.data import checksum
from neft.errors import InputError
from neft.kinds import DType
from neft.models import DTYPES, from_pretrained
from neft.output import check_output, read_record, whole_folder, write_record
from neft.recording import now, versions
from neft.writable import ensure_writable

_GENERATION_FILE = "generation_config.json"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def merge(
    adapter: Path, output: Path, *, model: str | None = None, dtype: DType | None = None, overwrite: bool = False
) -> Path:
    """Writes the base with the adapter merged in, its tokenizer, and the adapter's `neft.json`; returns the folder.

    The sum is made in float32 and rounded once to `dtype`. An adapter that was trained over weights that neft
    quantised is merged into what those weights stand for: they are what it corrects.

    Args:
        adapter: A folder that `neft train` or PEFT wrote.
        output: The folder for the merged model; it appears whole or not at all.
        model: The base; the one the adapter names if not given.
        dtype: Type of the merged weights; that of training if known, else the base's own.
        overwrite: Replace an output folder that holds something else.

    Raises:
        InputError: the adapter or its base cannot be used, or the base is stored in a quantised form.
        OutputError: the output folder is taken.
    """
    adapter, output = Path(adapter), Path(output)
    settings = _settings(adapter)
    record = read_record(adapter)
    identity = {"merged_from": {"adapter": checksum(_weights_file(adapter))}}
    name = model or settings.get("base_model_name_or_path")
    if not name:
        raise InputError(f"{adapter} does not name its base; give model.")
    inputs = [path for path in (adapter, Path(name)) if path.exists()]
    check_output(output, identity=identity, inputs=inputs, overwrite=overwrite)
    trained = record.get("config", {})
    base, base_dtype = _base(name, trained.get("quantize"))
    merged = _merged(base, adapter)
    merged_dtype = DTYPES[dtype or trained.get("dtype", "auto")]
    merged.to(base_dtype if isinstance(merged_dtype, str) else merged_dtype)
    tokenizer = from_pretrained(AutoTokenizer, str(adapter) if _has_tokenizer(adapter) else name, "tokenizer")
    if (adapter / _GENERATION_FILE).is_file():
        merged.generation_config = from_pretrained(GenerationConfig, str(adapter), "generation config")
    ensure_writable(merged, tokenizer, output)
    with whole_folder(output) as folder:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        origin = {**identity["merged_from"], "base": name, "versions": versions(), "finished": now()}
        write_record(folder, {**record, "merged_from": origin})
    return output


def _base(name: str, quantize: str | None) -> tuple[PreTrainedModel, torch.dtype]:
    """Returns the base in float32, and the type it is stored in."""
    config = from_pretrained(AutoConfig, name, "model")
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"the base {name} is stored in a quantised form, which takes no exact sum; keep the adapter apart (every "
            "command takes adapters), or give the unquantised base as model."
        )
    base_dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    options: dict[str, Any] = {"dtype": torch.float32}
    if quantize is not None:
        options["quantization_config"] = quantization_config(quantize, torch.float32)
    model: PreTrainedModel = from_pretrained(AutoModelForCausalLM, name, "model", **options)
    if quantize is not None:
        model = model.dequantize().float()
    return model, base_dtype


def _merged(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel

    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(base, str(adapter.resolve())).merge_and_unload()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the adapter {adapter} does not fit its base ({reason}).") from error
    return merged


def _settings(adapter: Path) -> dict[str, Any]:
    path = adapter / "adapter_config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{adapter} is no adapter folder: {path.name} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    return settings


def _weights_file(adapter: Path) -> Path:
    for name in _ADAPTER_FILES:
        if (adapter / name).is_file():
            return adapter / name
    raise InputError(f"{adapter} is no adapter folder: it has no {' or '.join(_ADAPTER_FILES)}.")


def _has_tokenizer(adapter: Path) -> bool:
    return (adapter / "tokenizer_config.json").is_file()
