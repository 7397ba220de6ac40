r"""Segments as token ids, so that a completion follows its prompt as it does when a model writes it.

The prompt's ids are those that inference gives it, and the completion's are those of its own text: no token spans the
boundary. Encoding the joined text instead changes the prompt for many tokenizers (GPT-2 reads `"\n\n"` before a
letter as two tokens and before an answer yet to come as one). Encoding the completion like any text puts a space in
front of it with SentencePiece-like tokenizers, which a model that answers would not write: inside a document that
prefix is switched off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


class SegmentEncoder:
    """Encodes text by its position in a document, many texts per call (fast tokenizers then use every core)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes a tokenizer with an end-of-sequence token."""
        self._tokenizer = tokenizer
        self._eos_id: int = tokenizer.eos_token_id
        self._backend = _without_prefix(tokenizer.backend_tokenizer) if tokenizer.is_fast else None
        self._numbers: dict[int, int] = {}
        self._is_closing = self._closes_texts()

    def beginnings(self, texts: list[str], *, has_own_markers: bool) -> list[Ids]:
        """Returns the ids of texts at the beginning of a document, with the tokenizer's own BOS unless they have it."""
        encoded = self._encode(texts, has_markers=not has_own_markers)
        if self._is_closing and not has_own_markers:
            return [ids[:-1] for ids in encoded]
        return encoded

    def continuations(self, texts: list[str], befores: Sequence[str]) -> list[Ids]:
        """Returns the ids of texts that directly follow others, without a prefix of the tokenizer's."""
        if self._backend is not None:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        # Tokenizers in Python have no switch for the prefix: take what the text adds to the one before it.
        alone = self._encode(texts, has_markers=False)
        heads = self._encode(list(befores), has_markers=False)
        joined = self._encode([a + b for a, b in zip(befores, texts, strict=True)], has_markers=False)
        return [
            both[len(head) :] if both[: len(head)] == head else ids
            for head, both, ids in zip(heads, joined, alone, strict=True)
        ]

    def after_end(self, texts: list[str]) -> list[Ids]:
        """Returns the ids of texts that follow an end-of-sequence token, as the tokenizer reads them there."""
        encoded = self._encode([self._tokenizer.eos_token + text for text in texts], has_markers=False)
        is_read = [ids[:1] == [self._eos_id] for ids in encoded]
        if all(is_read):
            return [ids[1:] for ids in encoded]
        return self.continuations(texts, [""] * len(texts))

    def shared(self, ids: Ids) -> Ids:
        """Returns the ids as numbers that all documents share: a fresh one per token takes four times the memory."""
        return list(map(self._numbers.setdefault, ids, ids))

    def _encode(self, texts: list[str], *, has_markers: bool) -> list[Ids]:
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=has_markers, return_attention_mask=False, verbose=False)
        ids: list[Ids] = encoded["input_ids"]
        return ids

    def _closes_texts(self) -> bool:
        """Returns whether the tokenizer puts an end-of-sequence token after every text (it may also be its BOS)."""
        (bare,) = self._encode(["a"], has_markers=False)
        (closed,) = self._encode(["a"], has_markers=True)
        if bare:
            return closed[-1] == self._eos_id and closed[-len(bare) :] != bare
        return closed[-1:] == [self._eos_id] and self._eos_id != self._tokenizer.bos_token_id


def _without_prefix(backend: Tokenizer) -> Tokenizer:
    """Returns a copy of the tokenizer that puts no space before a text."""
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None
    for step in ("normalizer", "pre_tokenizer"):
        state[step] = _unprefixed(state[step])
    return Tokenizer.from_str(json.dumps(state))


def _unprefixed(step: Any) -> Any:
    """Returns a normalizer or pre-tokenizer, in its JSON form, without its prefix; None if it did nothing else."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        parts = [part for part in map(_unprefixed, step[key]) if part is not None]
        return {**step, key: parts} if parts else None
    return step
