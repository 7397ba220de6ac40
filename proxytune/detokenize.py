"""From token ids to text, all at once or piece by piece, with stop texts cut out."""

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a character whose last are still to come
_MAX_BYTES = 4  # of one character


def decode(tokenizer: Any, token_ids: Sequence[int], before: int | None = None) -> str:
    """Return the text of generated tokens as it continues the token `before`; special tokens are left out.

    SentencePiece tokenizers drop the space of a text's first word, so without what stood before it, "One day Lily" and
    "and Ben" would join without one.
    """
    text = _continuation(tokenizer, token_ids, before)
    if _UNFINISHED not in text:
        return text
    # A decoder with byte fallback gives up all bytes in a row for one that is wrong; piece by piece only that is lost.
    stream = TextStream(tokenizer, before=before)
    return "".join([*map(stream.push, token_ids), stream.finish()])


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop text in it, and whether there was one.

    >>> cut_at_stop("one. two", [" t", "."])
    ('one', True)
    """
    starts = [start for start in (text.find(mark) for mark in stop) if start >= 0]
    return (text[: min(starts)], True) if starts else (text, False)


class TextStream:
    """Turns tokens into text as they come, never showing what a later token could change.

    Held back are the first bytes of an unfinished character and the beginning of a possible stop text.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), before: int | None = None) -> None:
        """`before`: the prompt's last token."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._before = before
        self._token_ids: list[int] = []
        self._held = ""
        self._is_stopped = False

    def push(self, token_id: int) -> str:
        """Return the text that has become certain with this token."""
        self._token_ids.append(token_id)
        text = _continuation(self._tokenizer, self._token_ids, self._before)
        if len(self._token_ids) >= _MAX_BYTES and text and not text.strip(_UNFINISHED):
            # No character has so many tokens, so the first of them will never be text.
            self._before = self._token_ids.pop(0)
            return self._release(_UNFINISHED)
        if not text or text.endswith(_UNFINISHED):
            return ""
        # What comes next needs only the last token, so a long text costs no more per token.
        self._before, self._token_ids = token_id, []
        return self._release(text)

    def finish(self) -> str:
        """Return the text still held back."""
        piece = self._release(_continuation(self._tokenizer, self._token_ids, self._before))
        rest, self._held = self._held, ""
        return piece + rest

    def _release(self, text: str) -> str:
        """Return what of the held text and this one can be shown: nothing that may belong to a stop text."""
        if self._is_stopped:
            return ""
        held, self._is_stopped = cut_at_stop(self._held + text, self._stop)
        certain = len(held) if self._is_stopped else len(held) - _begun(held, self._stop)
        self._held = held[certain:]
        return held[:certain]


def _continuation(tokenizer: Any, token_ids: Sequence[int], before: int | None) -> str:
    """Return the tokens' text in one piece, with the space that parts it from `before`."""

    def plain(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    if before is None or not token_ids:
        return plain(token_ids)
    head = plain([before])
    if _UNFINISHED in head:
        # A byte of a character has no text of its own: any whole word shows as well whether there is a space.
        before, head = next(
            ((index, text) for index in token_ids if _is_complete(text := plain([index]))), (before, "")
        )
    text = plain([before, *token_ids]) if head else ""
    return text[len(head) :] if head and text.startswith(head) else plain(token_ids)


def _is_complete(text: str) -> bool:
    return text != "" and _UNFINISHED not in text


def _begun(text: str, stop: Sequence[str]) -> int:
    """Return how many last characters may turn out to belong to a stop text."""
    begun = [
        length for mark in stop for length in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:length])
    ]
    return max(begun, default=0)
