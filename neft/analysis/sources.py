"""The model to analyse, and the examples that a training run with the same options sees."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from neft.adapters import quantization_config
from neft.analysis.files import read_json
from neft.config import TrainingConfig
from neft.data import Document, PaddingCollator, TokenizedData, tokenize
from neft.errors import InputError
from neft.models import DTYPES, from_pretrained, load_model, load_tokenizer, window
from neft.output import read_record
from neft.preparing import run_documents

_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """A data set as one model reads it.

    Attributes:
        documents: Every row.
        data: The tokenized rows that fit the window.
    """

    documents: list[Document]
    data: TokenizedData


@dataclass(frozen=True)
class Subject:
    """A model with the data to analyse it on.

    Attributes:
        held_out: None if the options hold out nothing.
        max_length: The window in tokens.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    collator: PaddingCollator
    train: Source
    held_out: Source | None
    max_length: int


def load_subject(config: TrainingConfig, *, tuned: Path | None = None) -> Subject:
    """Returns the model, its tokenizer and the data of a training run with these options.

    Args:
        config: Its `output` is not read.
        tuned: A model or adapter folder to load instead of `config.model`, with the tokenizer beside it.

    Raises:
        InputError: the model or the data cannot be used.
    """
    name = config.model if tuned is None else str(tuned)
    tokenizer = load_tokenizer(name, chat_template=config.chat_template)
    train_documents, held_out_documents = run_documents(config, tokenizer)
    model = load_tuned(config, name)
    max_length = window(config, model)
    train = _source(train_documents, tokenizer, config, max_length)
    held_out = None
    if held_out_documents is not None:
        held_out = _source(held_out_documents, tokenizer, config, max_length)
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Subject(model, tokenizer, PaddingCollator(pad_id), train, held_out, max_length)


def load_tuned(config: TrainingConfig, name: str) -> Any:
    """Returns a model in evaluation mode from a folder or hub id; from a folder with an adapter, the two together.

    Raises:
        InputError: there is none.
    """
    folder = Path(name)
    if not (folder / "adapter_config.json").is_file():
        return load_model(_plain(config, name)).eval()
    return _adapted(folder, DTYPES[config.dtype])


def sample(items: Sequence[_T], limit: int | None, seed: int) -> list[_T]:
    """Returns at most `limit` items, drawn by the seed, in their order."""
    if limit is None or len(items) <= limit:
        return list(items)
    indices = sorted(random.Random(seed).sample(range(len(items)), limit))
    return [items[index] for index in indices]


def model_identity(name: str) -> dict[str, Any]:
    """Returns what tells a model folder from another, or from itself after a change: names, sizes and times of files.

    A hub id is its own identity.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {"name": name}
    files = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    return {"name": str(folder.resolve()), "files": {key: [at.st_size, at.st_mtime_ns] for key, at in files.items()}}


def _adapted(folder: Path, dtype: torch.dtype | str) -> Any:
    """Returns a base under its adapter; quantised if the adapter was trained so: it corrects those very weights."""
    from peft import PeftModel

    settings = read_json(folder / "adapter_config.json")
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not base:
        raise InputError(f"the adapter {folder} does not name its base; merge it with `neft merge --model` first.")
    kind = read_record(folder).get("config", {}).get("quantize")
    compute_dtype = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    quantized = {} if kind is None else {"quantization_config": quantization_config(kind, compute_dtype)}
    model = from_pretrained(AutoModelForCausalLM, base, "model", dtype=dtype, **quantized)
    try:
        return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"the adapter {folder} does not load over its base {base} ({reason}).") from error


def _plain(config: TrainingConfig, name: str) -> TrainingConfig:
    """Returns options that load a model as it is: no adapter of its own."""
    return TrainingConfig(model=name, data=config.data, output=config.output, dtype=config.dtype)


def _source(
    documents: list[Document], tokenizer: PreTrainedTokenizerBase, config: TrainingConfig, max_length: int
) -> Source:
    data = tokenize(documents, tokenizer, max_length=max_length, overlong=config.overlong, loss_on=config.loss_on)
    return Source(documents, data)
