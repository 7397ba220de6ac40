"""The model to tune and its tokenizer, loaded, under a fresh adapter if one is requested."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from neft.adapters import quantization, with_adapter
from neft.config import TrainingConfig
from neft.errors import InputError
from neft.locating import located
from neft.notices import notify

if TYPE_CHECKING:
    from peft import PeftModel

    from neft.rl.options import TuningOptions

TunedModel: TypeAlias = "PreTrainedModel | PeftModel"
"""What a run trains; both save themselves and know their input embedding."""

DTYPES: dict[str, torch.dtype | str] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
_DEFAULT_WINDOW = 512


def load_tokenizer(model: str, *, chat_template: Path | None = None) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a model folder or hub id; the network is not used for a folder.

    Args:
        model: The folder or hub id.
        chat_template: A Jinja file that replaces the tokenizer's chat template, and is saved with it.

    Raises:
        InputError: there is none, or the template file cannot be read.
    """
    tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, model, "tokenizer")
    if chat_template is not None:
        try:
            tokenizer.chat_template = chat_template.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"chat_template is {chat_template}, which cannot be read: {error}.") from error
    return tokenizer


def load_model(config: TrainingConfig) -> TunedModel:
    """Returns the model to tune, with a fresh adapter if `lora_r` is given (only that is trainable then).

    Raises:
        InputError: there is no such model, or it has none of the modules to adapt.
    """
    model = load_pretrained(config, config.model, "model")
    return model if config.lora_r is None else with_adapter(model, config, config.lora_r)


def load_pretrained(config: TrainingConfig, name: str, role: str) -> PreTrainedModel:
    """Returns a model in the run's type and quantisation, from its folder or hub id.

    Raises:
        InputError: there is no such model; the message names the role.
    """
    dtype = DTYPES[config.dtype]
    options = quantization(config, dtype if isinstance(dtype, torch.dtype) else torch.bfloat16)
    model: PreTrainedModel = from_pretrained(AutoModelForCausalLM, name, role, dtype=dtype, **options)
    return model


def declare_end_tokens(model: TunedModel, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> bool:
    """Adds the tokens that answers end with to the generation config, or the tuned model would never stop.

    Returns whether one was missing. A chat template may end an answer with another token than the tokenizer's
    end-of-sequence (`<|im_end|>` over a base model).
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return False
    listed = config.eos_token_id
    declared = [] if listed is None else list(listed) if isinstance(listed, (list, tuple)) else [listed]
    missing = sorted(set(end_ids) - set(declared))
    if not missing:
        return False
    config.eos_token_id = [*declared, *missing]
    names = ", ".join(repr(tokenizer.convert_ids_to_tokens(token_id)) for token_id in missing)
    notify(
        f"the answers end with {names}, which the model's generation config does not list as an end token; added to "
        "the output, so that the tuned model stops."
    )
    return True


def window(config: TrainingConfig | TuningOptions, model: Any) -> int:
    """Returns the training window in tokens.

    Raises:
        InputError: `max_length` is more than the model can read.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if config.max_length is None:
        return _DEFAULT_WINDOW if limit is None else min(_DEFAULT_WINDOW, limit)
    if limit is not None and config.max_length > limit:
        raise InputError(f"max_length is {config.max_length}, but the model reads {limit} tokens; give at most that.")
    return config.max_length


def from_pretrained(auto_class: Any, model: str, what: str, **options: Any) -> Any:
    """Returns what an auto class loads from a model folder or hub id.

    Raises:
        InputError: there is no such folder, or nothing can be loaded from it.
    """
    name, where = located(model)
    try:
        return auto_class.from_pretrained(name, **where, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"no {what} can be loaded from {model}; give a model folder or a hub id ({reason})."
        ) from error
