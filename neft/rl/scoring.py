"""Rewards of answers: a trained reward model on the ids that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from neft.rl.encoding import EncodedPair, encode_answered
from neft.rl.loading import load_reward_model
from neft.rl.pairs import answered


class RewardScorer:
    """A reward model that scores answers to prompts.

    TRL scores prompt and answer as one text, without the tokenizer's beginning and without end-of-sequence; a model
    trained on both would be asked about texts it has never seen. Here the ids are those of its training; an answer
    that was cut off at its limit has no end-of-sequence.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 8) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length: int | None = getattr(model.config, "max_position_embeddings", None)

    @classmethod
    def from_pretrained(cls, model: str, *, batch_size: int = 8) -> RewardScorer:
        """Loads what `neft reward` wrote.

        Raises:
            InputError: there is none, or it is not a reward model.
        """
        loaded, tokenizer = load_reward_model(model)
        return cls(loaded, tokenizer, batch_size=batch_size)

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], *, are_finished: Sequence[bool] | None = None
    ) -> list[float]:
        """Returns the reward of each answer; all are finished if it is not said.

        Of texts longer than the model's window the end is read.
        """
        documents = [answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        rows = encode_answered(documents, self.tokenizer)
        if are_finished is not None:
            rows = [ids if is_finished else ids[:-1] for ids, is_finished in zip(rows, are_finished, strict=True)]
        return rewards_of(
            self.model,
            [ids if self.max_length is None else ids[-self.max_length :] for ids in rows],
            pad_id=padding_id(self.tokenizer),
            batch_size=self.batch_size,
        )


def pair_accuracy(model: Any, pairs: Sequence[EncodedPair], *, pad_id: int, batch_size: int) -> float:
    """Returns the share of pairs whose chosen answer has the higher reward; equal rewards are wrong."""
    options = {"pad_id": pad_id, "batch_size": batch_size}
    chosen = rewards_of(model, [pair.prompt_ids + pair.chosen_ids for pair in pairs], **options)
    rejected = rewards_of(model, [pair.prompt_ids + pair.rejected_ids for pair in pairs], **options)
    return sum(better > worse for better, worse in zip(chosen, rejected, strict=True)) / len(pairs)


@torch.no_grad()
def rewards_of(model: Any, rows: Sequence[list[int]], *, pad_id: int, batch_size: int) -> list[float]:
    """Returns the reward of each row of ids, in evaluation mode; the model's mode is kept."""
    device = next(model.parameters()).device
    was_training = model.training
    # The classifier finds a row's last token by the padding id of its configuration.
    kept_pad_id, model.config.pad_token_id = model.config.pad_token_id, pad_id
    model.eval()
    rewards: list[float] = []
    try:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            width = max(len(ids) for ids in batch)
            padded = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in batch], device=device)
            mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=device)
            rewards += model(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, 0].float().tolist()
    finally:
        model.config.pad_token_id = kept_pad_id
        model.train(was_training)
    return rewards


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the padding id; end-of-sequence where there is none, as in TRL."""
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return int(pad_id)
