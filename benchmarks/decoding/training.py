"""Variants of fine-tuning: NEFTune's noise and packed windows against padded rows, by one epoch of the same documents.

A small random Llama is trained by transformers' Trainer. `train` pads to the batch's longest row, `train_noise` adds
noise to that, `train_window` pads to the window, `train_packed` packs documents into windows.
"""

import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import neft
from benchmarks.decoding.naive import Decoded
from benchmarks.decoding.variants import Variant, VariantError
from benchmarks.decoding.workloads import Requests
from neft.data import Example, PackingCollator, PaddingCollator, pack
from proxytune.errors import InputError

NAMES = ("train", "train_noise", "train_window", "train_packed")
LABEL = "Llama of width 128 and 4 layers, random weights; fine-tuning"
_WINDOW, _ALPHA = 512, 5.0
_VOCABULARY = 2000
_TEMPLATE_CHARACTERS, _CHARACTERS_PER_TOKEN = 160, 4
_MEDIAN, _SIGMA = 90.0, 0.6


def documents(num_rows: int, *, batch: int, lengths_of: Path | None) -> Requests:
    """Return documents of random ids with the lengths of an Alpaca file's rows (characters by four), or lognormal ones.

    Raises:
        InputError: The file cannot be read, or has too few rows.
    """
    draw = random.Random(0)
    if lengths_of is None:
        lengths = [int(_MEDIAN * draw.lognormvariate(0.0, _SIGMA)) for _ in range(num_rows)]
    else:
        try:
            opened = gzip.open if lengths_of.suffix == ".gz" else open
            with opened(lengths_of, "rt", encoding="utf-8") as stream:
                rows = draw.sample(json.load(stream), num_rows)
        except (OSError, ValueError) as error:
            raise InputError(f"{str(lengths_of)!r} gives no lengths ({error}): pass Alpaca's JSON.") from error
        characters = [_TEMPLATE_CHARACTERS + sum(map(len, row.values())) for row in rows]
        lengths = [count // _CHARACTERS_PER_TOKEN for count in characters]
    prompts = [[draw.randrange(1, _VOCABULARY) for _ in range(min(_WINDOW, max(8, length)))] for length in lengths]
    return Requests(prompts=prompts, counts=[0] * num_rows, batch=batch)


def training_variants(names: Sequence[str]) -> list[Variant]:
    """Return the variants of these names.

    Raises:
        VariantError: A name is unknown.
    """
    unknown = next((name for name in names if name not in NAMES), None)
    if unknown is not None:
        raise VariantError(f"variant {unknown!r} is unknown: take some of {', '.join(NAMES)}.")
    taken = [name for name in NAMES if name in names]
    return [Variant(name=name, run=partial(_train, name), reference=NAMES[0], tokens_of=name) for name in taken]


def _train(name: str, requests: Requests) -> Decoded:
    """Train a fresh model on every document once; nothing is decoded."""
    rows: Sequence[Any] = [Example(list(ids), list(ids)) for ids in requests.prompts]
    batch, collator = requests.batch, _collator(name)
    if name == "train_packed":
        # A window holds about four documents: batches of equal work.
        rows, batch = pack(rows, max_length=_WINDOW).packs, max(1, batch // 4)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=_WINDOW,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=list(rows), data_collator=collator)
        with nullcontext() if name == "train" else neft.noise(model, alpha=_ALPHA):
            started = time.perf_counter()
            trainer.train()
            return Decoded(token_ids=[], seconds=time.perf_counter() - started)


def _collator(name: str) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
    if name == "train_packed":
        packed: Callable[[Sequence[Any]], dict[str, torch.Tensor]] = PackingCollator(0, width=_WINDOW)
        return packed
    padded = PaddingCollator(0)

    def to_window(batch: Sequence[Any]) -> dict[str, torch.Tensor]:
        tensors = padded(batch)
        filled = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        gap = _WINDOW - tensors["input_ids"].shape[1]
        return {key: torch.nn.functional.pad(tensors[key], (0, gap), value=value) for key, value in filled.items()}

    return to_window if name == "train_window" else padded
