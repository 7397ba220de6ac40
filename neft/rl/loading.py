"""Loading what a run starts from: a policy, a reward model, or an adapter of either."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from neft.adapters import lora_config
from neft.errors import InputError
from neft.models import DTYPES, from_pretrained, load_tokenizer
from neft.rl.options import TuningOptions

if TYPE_CHECKING:
    from peft import LoraConfig

_ADAPTER_FILE = "adapter_config.json"


def load_policy(config: TuningOptions) -> Any:
    """Returns the causal language model to tune, or the PEFT model of an adapter folder, which is then trained on.

    Raises:
        InputError: there is none, or `lora_r` would put a second adapter on the first.
    """
    if not is_adapter(config.model):
        return from_pretrained(AutoModelForCausalLM, config.model, "model", dtype=DTYPES[config.dtype])
    if config.lora_r is not None:
        raise InputError(f"model {config.model} is an adapter and is trained on as it is; leave lora_r out.")
    base = from_pretrained(AutoModelForCausalLM, adapter_base(config.model), "model", dtype=DTYPES[config.dtype])
    return _with_saved_adapter(base, config.model, is_trainable=True)


def load_new_reward_model(config: TuningOptions) -> Any:
    """Returns a sequence classifier with one output, whose head is new.

    Raises:
        InputError: there is no such model, or it is an adapter.
    """
    if is_adapter(config.model):
        raise InputError(f"model {config.model} is an adapter; merge it with its base first, or name the base.")
    with _without_report():
        return from_pretrained(
            AutoModelForSequenceClassification, config.model, "model", dtype=DTYPES[config.dtype], num_labels=1
        )


def load_reward_model(model: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Returns a trained reward model, frozen and in evaluation mode, and its tokenizer.

    Raises:
        InputError: there is none, or it has another number of outputs than one.
    """
    source = adapter_base(model) if is_adapter(model) else model
    options = {"num_labels": 1} if is_adapter(model) else {}
    with _without_report():
        loaded = from_pretrained(AutoModelForSequenceClassification, source, "reward model", dtype="auto", **options)
    if is_adapter(model):
        loaded = _with_saved_adapter(loaded, model, is_trainable=False)
    elif loaded.config.num_labels != 1 or not _is_classifier(loaded):
        raise InputError(f"reward {model} is not a reward model with one output; train one with `neft reward`.")
    return loaded.eval().requires_grad_(False), load_tokenizer(model)


def lora_of(config: TuningOptions, task_type: str) -> LoraConfig | None:
    """Returns the adapter that the options ask for; `task_type` is PEFT's name (`CAUSAL_LM`, `SEQ_CLS`)."""
    return None if config.lora_r is None else lora_config(config, config.lora_r, task_type)


def is_adapter(model: str) -> bool:
    """Returns whether a local folder holds an adapter rather than a model."""
    return (Path(model).expanduser() / _ADAPTER_FILE).is_file()


def adapter_base(model: str) -> str:
    """Returns the model that an adapter folder was trained over.

    Raises:
        InputError: its configuration cannot be read or names none.
    """
    try:
        base = json.loads((Path(model).expanduser() / _ADAPTER_FILE).read_text(encoding="utf-8")).get(
            "base_model_name_or_path"
        )
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{model}/{_ADAPTER_FILE} cannot be read; write the adapter anew.") from error
    if not base:
        raise InputError(f"{model}/{_ADAPTER_FILE} names no base model; set base_model_name_or_path in it.")
    return str(base)


@contextmanager
def kept_config(model: Any, *, names: Sequence[str]) -> Iterator[None]:
    """Puts back what TRL and the Trainer change in a model's configurations, so that none of it is saved."""
    configs = [config for config in (model.config, getattr(model, "generation_config", None)) if config is not None]
    kept = [(config, name, getattr(config, name)) for config in configs for name in names if hasattr(config, name)]
    try:
        yield
    finally:
        for config, name, value in kept:
            setattr(config, name, value)


def _with_saved_adapter(base: PreTrainedModel, adapter: str, *, is_trainable: bool) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(
            base, str(Path(adapter).expanduser()), is_trainable=is_trainable, autocast_adapter_dtype=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the adapter {adapter} does not fit its base {adapter_base(adapter)}: {error}") from error


def _is_classifier(model: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in model.config.architectures or ())


@contextmanager
def _without_report() -> Iterator[None]:
    """Keeps transformers from reporting that a classifier's head is not in the checkpoint: it is not meant to be."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
