"""Prompts for servers that take text: the text that a tokenizer turns back into the very same ids."""

from collections.abc import Sequence
from typing import Any

from proxytune.errors import RemoteError


class PromptTexts:
    """Writes token ids as text for a server whose tokenizer is ours.

    Attributes:
        adds_special_tokens: True if the server puts special tokens around a text, as the tokenizer does by itself.
    """

    def __init__(self, tokenizer: Any, *, adds_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self.adds_special_tokens = adds_special_tokens
        self._prefix = self.encode("") if adds_special_tokens else []

    def encode(self, text: str) -> list[int]:
        """Return the ids that the server makes of a text."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=self.adds_special_tokens)["input_ids"]
        return list(ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text that the server reads as these ids.

        Raises:
            RemoteError: There is none: the tokenizer would cut it into other tokens.
        """
        ids = list(token_ids)
        has_prefix = ids[: len(self._prefix)] == self._prefix
        rest = ids[len(self._prefix) :] if has_prefix else ids
        text: str = self._tokenizer.decode(rest, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        read = self.encode(text)
        if read != ids:
            index = next((index for index, pair in enumerate(zip(ids, read, strict=False)) if pair[0] != pair[1]), None)
            index = min(len(ids), len(read)) if index is None else index
            raise RemoteError(
                f"this row cannot be sent as text: its {len(ids)} tokens read {text[-60:]!r} at their end, which the "
                f"tokenizer cuts otherwise from token {index} on; a server that takes token ids, as vLLM, has no such "
                "rows."
            )
        return text
