"""Pairs as token ids, cut where `neft train` cuts them: prompt and answer by themselves, the answer closed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neft.data import IGNORED, Document, tokenize
from neft.errors import DataError
from neft.rl.pairs import AnswerPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as ids; both answers end with end-of-sequence."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


def encode_pairs(
    pairs: Sequence[AnswerPair], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[list[EncodedPair], int]:
    """Returns the pairs that fit the window, and how many do not.

    TRL's own way adds end-of-sequence as text and tokenizes prompt and answer together, so a policy would see other
    ids than in `neft train`, and a word at the border could belong to both.

    Raises:
        InputError: the tokenizer has no end-of-sequence token.
        DataError: no pair is left.
    """
    chosen = _encoded([pair.document(pair.chosen) for pair in pairs], tokenizer)
    rejected = _encoded([pair.document(pair.rejected) for pair in pairs], tokenizer)
    encoded = [
        EncodedPair(prompt_ids, better, worse)
        for (prompt_ids, better), (_, worse) in zip(chosen, rejected, strict=True)
    ]
    kept = [pair for pair in encoded if pair.length <= max_length]
    if not kept:
        raise DataError(
            f"none of {len(pairs)} pairs fits the window of {max_length} tokens (the shortest has "
            f"{min(pair.length for pair in encoded)}); raise max_length."
        )
    return kept, len(encoded) - len(kept)


def encode_answered(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Returns the ids of whole documents, each with its end-of-sequence."""
    return [prompt_ids + answer_ids for prompt_ids, answer_ids in _encoded(documents, tokenizer)]


def reward_rows(pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """Returns the columns that TRL's reward trainer reads: prompt and answer in one."""
    return {
        "chosen_ids": [pair.prompt_ids + pair.chosen_ids for pair in pairs],
        "rejected_ids": [pair.prompt_ids + pair.rejected_ids for pair in pairs],
    }


def preference_rows(pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """Returns the columns that TRL's DPO trainer reads."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {name: [getattr(pair, name) for pair in pairs] for name in names}


def _encoded(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    """Returns the ids of prompt and answer of each document."""
    # Without a window, so that no document is dropped and the order is kept.
    data = tokenize(documents, tokenizer, max_length=sys.maxsize, overlong="error")
    parts = []
    for example in data.examples:
        start = next(index for index, label in enumerate(example.labels) if label != IGNORED)
        parts.append((example.input_ids[:start], example.input_ids[start:]))
    return parts
