"""Data, tokenizer, model and collator of a run, loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from neft.config import TrainingConfig
from neft.data import (
    CHAT,
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
from neft.data.tokenizing import BAD_ROW, NO_TARGET, TARGET_OUTSIDE, TOO_LONG
from neft.models import TunedModel, declare_end_tokens, load_model, load_tokenizer, window
from neft.noising import embedding_sigma, input_embedding, noise_to_signal
from neft.notices import notify
from neft.steered_loss import SteeredLoss, load_steered_loss


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`.

    Attributes:
        config: The run's options.
        model: The model, under its adapter if there is one.
        tokenizer: Its tokenizer.
        pad_id: Id that padding is filled with.
        train_data: Training rows.
        eval_data: Held-out rows, which are never packed.
        packed: The training rows in windows, if they are packed.
        num_shared_prompts: Held-out rows whose prompt is also trained on.
        steered_loss: The loss against the base, if there is one.
        has_new_end_tokens: The answers end with a token that the model's generation config did not list.
    """

    config: TrainingConfig
    model: TunedModel
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    train_data: TokenizedData
    eval_data: TokenizedData | None
    packed: PackedData | None
    num_shared_prompts: int
    steered_loss: SteeredLoss | None
    has_new_end_tokens: bool

    @property
    def rows(self) -> Sequence[Any]:
        """Examples, or packs of them, from which batches are drawn."""
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
    tokenizer = load_tokenizer(config.model, chat_template=config.chat_template)
    documents, held_out = run_documents(config, tokenizer)
    model = load_model(config)
    input_embedding(model)
    steered_loss = None if config.base is None else load_steered_loss(config, model, tokenizer)
    models = [model] if steered_loss is None else [model, *steered_loss.frozen_models]
    max_length = min(window(config, each) for each in models)

    def tokenized(part: Sequence[Document], name: str) -> TokenizedData:
        data = tokenize(part, tokenizer, max_length=max_length, overlong=config.overlong, loss_on=config.loss_on)
        _notify_of_losses(data, part, name, max_length)
        if steered_loss is not None:
            steered_loss.require_shared_ids(data.examples)
        return data

    train_data = tokenized(documents, "training")
    packed = None
    if config.packing:
        for each in models:
            check_packing(each)
        packed = pack(train_data.examples, max_length=max_length, seed=config.seed)
    return Prepared(
        config=config,
        model=model,
        tokenizer=tokenizer,
        pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        train_data=train_data,
        eval_data=None if held_out is None else tokenized(held_out, "held-out"),
        packed=packed,
        num_shared_prompts=0 if held_out is None else num_shared_prompts(documents, held_out),
        steered_loss=steered_loss,
        has_new_end_tokens=declare_end_tokens(model, tokenizer, train_data.end_ids),
    )


def run_documents(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Document], list[Document] | None]:
    """Returns the training and the held-out documents of a run; None where no rows are held out.

    Raises:
        InputError: the data cannot be used.
    """
    options: dict[str, Any] = {"format": config.format, "tokenizer": tokenizer, "on_bad_row": config.on_bad_row}
    options["columns"] = config.column_names
    options["template"] = config.template or (CHAT if config.chat_template else None)
    if config.text_column is not None:
        options["text_column"] = config.text_column
    documents = read_documents(config.data, dataset_split=config.dataset_split, **options)
    if config.eval_data is not None:
        return documents, read_documents(config.eval_data, **options)
    if config.eval_fraction:
        return split(documents, eval_fraction=config.eval_fraction, seed=config.seed)
    return documents, None


def _notify_of_losses(data: TokenizedData, documents: Sequence[Document], name: str, max_length: int) -> None:
    """Says on stderr how many rows are not learned, or not in full, and why."""
    of_all = f"of {len(documents)} {name} rows"
    wider = f"the longest has {max(data.full_lengths)} tokens; raise --max-length to learn them"
    if num := data.dropped.get(TOO_LONG, 0):
        notify(f"{num} {of_all} left out: longer than the window of {max_length} tokens ({wider}).")
    if data.num_truncated:
        notify(f"{data.num_truncated} {of_all} cut at the window of {max_length} tokens ({wider}).")
    if num := data.dropped.get(TARGET_OUTSIDE, 0):
        notify(f"{num} {of_all} left out: the answer begins after the window of {max_length} tokens ({wider}).")
    if num := data.dropped.get(NO_TARGET, 0):
        notify(f"{num} {of_all} left out: no answer to learn.")
    if num := data.dropped.get(BAD_ROW, 0):
        first = next(document.problem for document in documents if document.problem)
        notify(f"{num} {of_all} skipped, they do not fit; the first: {first}")
