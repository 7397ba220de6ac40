"""The shared-id contract: the three roles mean the same token by the same id, or nothing works."""

from collections.abc import Mapping
from typing import Any

from proxytune.errors import VocabularyError

_SHOWN = 3


def shared_size(tokenizers: Mapping[str, Any], widths: Mapping[str, int]) -> int:
    """Return how many ids, counted from 0, every role shares; the padded tail beyond is never sampled.

    The size is the shortest of the logits' widths and of the tokenizers' id ranges: Qwen pads its head to 151936 or
    152064, Llama derivatives add tokens at 32000, and only what all roles know can be combined.

    Args:
        tokenizers: Role name to tokenizer (`get_vocab()` gives token string to id). A role without a tokenizer of its
            own is left out by the caller.
        widths: Role name to the width of its logits.

    Raises:
        VocabularyError: A token has different ids, or an id different tokens; the text names the first of them.
    """
    vocabularies = {role: tokenizer.get_vocab() for role, tokenizer in tokenizers.items()}
    limit: int = min([*widths.values(), *(max(vocab.values()) + 1 for vocab in vocabularies.values())])
    roles = list(vocabularies)
    for role in roles[1:]:
        _require_same(roles[0], vocabularies[roles[0]], role, vocabularies[role], limit)
    return limit


def _require_same(
    first: str, first_vocab: Mapping[str, int], second: str, second_vocab: Mapping[str, int], limit: int
) -> None:
    """Raise VocabularyError where the two disagree on an id below `limit`."""
    first_tokens = {index: token for token, index in first_vocab.items()}
    second_tokens = {index: token for token, index in second_vocab.items()}
    different = [
        index
        for index in range(limit)
        if first_tokens.get(index) != second_tokens.get(index) and index in first_tokens and index in second_tokens
    ]
    moved = [
        token
        for token, index in first_vocab.items()
        if second_vocab.get(token, index) != index and min(index, second_vocab[token]) < limit
    ]
    if not different and not moved:
        return
    shown = "; ".join(
        f"id {index} is {first_tokens[index]!r} in {first} and {second_tokens[index]!r} in {second}"
        for index in different[:_SHOWN]
    ) or "; ".join(
        f"{token!r} is id {first_vocab[token]} in {first} and {second_vocab[token]} in {second}"
        for token in moved[:_SHOWN]
    )
    raise VocabularyError(
        f"{first} and {second} do not share token ids ({max(len(different), len(moved))} differences; {shown}): "
        "proxy tuning adds logits id by id, so choose models of one family with the same tokenizer."
    )
