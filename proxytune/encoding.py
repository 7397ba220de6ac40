"""From text to token ids: prompts without a closing end token, and continuations cut off where their prompt ends."""

from collections.abc import Sequence
from typing import Any

from proxytune.detokenize import decode
from proxytune.errors import InputError


def require_encodable(text: str, what: str) -> None:
    """Raise InputError for half of a surrogate pair, which is no character and which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds half of a surrogate pair, {text[error.start]!r} at character {error.start}, which is no "
            "text: decode the file it comes from as UTF-8, or remove it."
        ) from error


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text that goes on: with the tokenizer's first token, without an end token of its own.

    Some tokenizers close every text (T5's, BERT's, any with `add_eos_token`), and a model that has read its end begins
    another text.
    """
    ids: list[int] = tokenizer(text).input_ids
    num_closing = _num_closing(tokenizer)
    return ids[: len(ids) - num_closing]


def split_continuation(tokenizer: Any, prompt: str, continuation: str) -> tuple[list[int], list[int]] | None:
    """Return the ids of a prompt and of its continuation, tokenised together; None where no cut leaves both whole.

    As in lm-evaluation-harness: both are encoded in one piece and cut behind as many ids as the prompt has alone. If
    the last word of the prompt and the first of the continuation become one token, the harness drops that word; here
    the continuation is encoded alone, if it then reads as it did.
    """
    head, joint = encode(tokenizer, prompt), encode(tokenizer, prompt + continuation)
    if joint[: len(head)] == head and len(joint) > len(head):
        return head, joint[len(head) :]
    alone: list[int] = tokenizer(continuation, add_special_tokens=False).input_ids
    reads_the_same = bool(head and alone) and decode(tokenizer, alone, head[-1]) == continuation
    return (head, alone) if reads_the_same else None


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the tokens by their text that a tokenizer leaves out of what it decodes."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {str(token): index for index, token in added.items() if getattr(token, "special", False)}
    return special | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def as_ids(ids: Any) -> list[Any]:
    """Return token ids as a list of plain numbers, from a list, a NumPy array or a tensor."""
    items: Sequence[Any] = ids.tolist() if hasattr(ids, "tolist") else ids
    return [item.item() if hasattr(item, "item") else item for item in items]


def _num_closing(tokenizer: Any) -> int:
    """Return how many special tokens a tokenizer puts behind every text."""
    with_special: list[int] = tokenizer("a").input_ids
    plain: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return len(with_special) - start - len(plain)
    return 0
