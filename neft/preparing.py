"""Everything a run needs, loaded: data, tokenizer, model, collator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from neft.config import TrainingConfig
from neft.data import (
    Document,
    PackedData,
    PackingCollator,
    PaddingCollator,
    TokenizedData,
    num_shared_prompts,
    pack,
    read_documents,
    split,
    tokenize,
)
from neft.data.isolation import check_packing
from neft.models import TunedModel, load_model, load_tokenizer, window
from neft.noising import embedding_sigma, input_embedding, noise_to_signal


@dataclass(frozen=True)
class Prepared:
    """What `prepare` loaded.

    Attributes:
        config: The run's options.
        model: The model, under its adapter if there is one.
        tokenizer: Its tokenizer.
        pad_id: What padding is filled with.
        train_data: Training rows.
        eval_data: Held-out rows, which are never packed.
        packed: The training rows in windows, if they are packed.
        num_shared_prompts: Held-out rows whose prompt is also trained on.
    """

    config: TrainingConfig
    model: TunedModel
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    train_data: TokenizedData
    eval_data: TokenizedData | None
    packed: PackedData | None
    num_shared_prompts: int

    @property
    def rows(self) -> Sequence[Any]:
        """What the training loop draws its batches from: examples, or packs of them."""
        return self.train_data.examples if self.packed is None else self.packed.packs

    @property
    def collator(self) -> PaddingCollator | PackingCollator:
        """Makes training batches."""
        return PaddingCollator(self.pad_id) if self.packed is None else PackingCollator(self.pad_id)

    @property
    def num_eval_rows(self) -> int:
        """Held-out rows in use."""
        return 0 if self.eval_data is None else len(self.eval_data.examples)

    @property
    def num_dropped(self) -> int:
        """Rows left out of both parts."""
        return self.train_data.num_dropped + (0 if self.eval_data is None else self.eval_data.num_dropped)

    def report(self) -> dict[str, Any]:
        """Returns what became of the rows, as JSON values."""
        report: dict[str, Any] = {"train": self.train_data.report().to_dict()}
        if self.eval_data is not None:
            report["eval"] = self.eval_data.report().to_dict() | {"num_shared_prompts": self.num_shared_prompts}
        if self.packed is not None:
            report["packs"] = {"num_packs": len(self.packed.packs), "efficiency": round(self.packed.efficiency, 4)}
        return report

    def noise_to_signal(self) -> float:
        """Returns the ratio of noise to embedding weights at the mean document length."""
        if self.config.alpha is None:
            return self.config.alpha_rel or 0.0
        embedding = input_embedding(self.model)
        dim = next(embedding.parameters()).shape[1]
        length = self.train_data.mean_length
        return noise_to_signal(alpha=self.config.alpha, sigma=embedding_sigma(embedding), length=length, dim=dim)


def prepare(config: TrainingConfig) -> Prepared:
    """Loads what a run needs.

    Raises:
        InputError: the model or the data cannot be used.
        NoiseError: the model has no input embedding that could take noise.
    """
    # Data before the model: its mistakes are the user's most common, and cost little to find.
    tokenizer = load_tokenizer(config.model)
    documents, held_out = _documents(config, tokenizer)
    model = load_model(config)
    input_embedding(model)
    max_length = window(config, model)

    def tokenized(part: Sequence[Document]) -> TokenizedData:
        return tokenize(part, tokenizer, max_length=max_length, overlong=config.overlong, loss_on=config.loss_on)

    train_data = tokenized(documents)
    packed = None
    if config.packing:
        check_packing(model)
        packed = pack(train_data.examples, max_length=max_length, seed=config.seed)
    return Prepared(
        config=config,
        model=model,
        tokenizer=tokenizer,
        pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        train_data=train_data,
        eval_data=None if held_out is None else tokenized(held_out),
        packed=packed,
        num_shared_prompts=0 if held_out is None else num_shared_prompts(documents, held_out),
    )


def _documents(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Document], list[Document] | None]:
    options: dict[str, Any] = {"format": config.format, "template": config.template, "tokenizer": tokenizer}
    if config.text_column is not None:
        options["text_column"] = config.text_column
    documents = read_documents(config.data, dataset_split=config.dataset_split, **options)
    if config.eval_data is not None:
        return documents, read_documents(config.eval_data, **options)
    if config.eval_fraction:
        return split(documents, eval_fraction=config.eval_fraction, seed=config.seed)
    return documents, None
