"""Text of single tokens: of those in a text, and of those that never came."""

from collections.abc import Sequence
from typing import Any

from proxytune.detokenize import TextStream, decode

_BROKEN = "\ufffd"


def added_texts(tokenizer: Any, token_ids: Sequence[int], before: int) -> list[str]:
    """Return what each token adds to the text behind the token `before`; joined they are the text.

    A character of several tokens comes with its last; special tokens add nothing.
    """
    stream = TextStream(tokenizer, before=before)
    texts = [stream.push(token_id) for token_id in token_ids]
    if texts:
        texts[-1] += stream.finish()
    return texts


class TokenReader:
    """Reads single tokens as they would continue a text, each only once."""

    def __init__(self, tokenizer: Any, around: Sequence[int]) -> None:
        """`around` are tokens of the text: SentencePiece drops a word's space where no word stands before it."""
        self._tokenizer = tokenizer
        self._before = next((index for index in around if decode(tokenizer, [index]).strip(_BROKEN)), None)
        self._texts: dict[int, str] = {}

    def text(self, token_id: int) -> str:
        """Return how a token reads, never empty: special tokens and parts of characters by their name."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._read(token_id)
        return text

    def _read(self, token_id: int) -> str:
        text = decode(self._tokenizer, [token_id], self._before)
        if text and _BROKEN not in text:
            return text
        return self._tokenizer.convert_ids_to_tokens(token_id) or f"<{token_id}>"
