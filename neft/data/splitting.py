"""The held-out split, and a check of one that the user made."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from neft.data.documents import Document
from neft.errors import DataError


def split(documents: Sequence[Document], *, eval_fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Returns training and held-out documents, in file order; at least one of each.

    Documents with the same prompt (`Document.prompt`) stay together, so that no held-out question was trained on. The
    choice of held-out prompts depends on their text and the seed, not on the order of the rows. Prompts are held out
    in that order as long as they fit the fraction.

    Raises:
        DataError: there is only one document, or only one prompt.
    """
    if len(documents) < 2:
        raise DataError("one row cannot be split into training and held-out rows; give more rows or no eval_fraction.")
    counts: dict[str, int] = defaultdict(int)
    for document in documents:
        counts[document.prompt] += 1
    if len(counts) < 2:
        raise DataError(
            f"all {len(documents)} rows have the same prompt, and the held-out rows must have others; "
            "give eval_data or no eval_fraction."
        )
    num_held_out = min(max(1, round(len(documents) * eval_fraction)), len(documents) - 1)
    held_out = _held_out(counts, num_held_out, seed)
    train = [document for document in documents if document.prompt not in held_out]
    return train, [document for document in documents if document.prompt in held_out]


def num_shared_prompts(train: Sequence[Document], held_out: Sequence[Document]) -> int:
    """Returns how many held-out documents have a prompt that is also trained on (0 after `split`)."""
    trained = {document.prompt for document in train}
    return sum(document.prompt in trained for document in held_out)


def _held_out(counts: dict[str, int], num_held_out: int, seed: int) -> set[str]:
    ordered = sorted(counts, key=lambda prompt: _sort_key(prompt, seed))
    chosen: set[str] = set()
    num_rows = 0
    for prompt in ordered:
        if num_rows + counts[prompt] <= num_held_out:
            chosen.add(prompt)
            num_rows += counts[prompt]
    # Every prompt has more rows than that: the least of them is the nearest to it.
    return chosen or {min(ordered, key=counts.__getitem__)}


def _sort_key(prompt: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{prompt}".encode(), digest_size=16).digest()
