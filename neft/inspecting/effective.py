"""The strength that other implementations of NEFTune really give, by the lengths of the documents.

They divide α by √(T·d), with T the width of the batch, where the paper's rule has the document's own length L. A
document then has the noise of α·√(L/T): its effective α.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EffectiveAlpha:
    """The strength that an implementation gives when asked for some α.

    Attributes:
        name: Implementation, and on what batches.
        mean: Mean effective α of the documents.
        lowest: Effective α of the document hit least.
        highest: Effective α of the document hit most.
        noised_padding: Share of all noised positions that are padding.
    """

    name: str
    mean: float
    lowest: float
    highest: float
    noised_padding: float


def effective_alphas(
    lengths: Sequence[int], *, alpha: float, batch_size: int, max_length: int, seed: int = 0
) -> list[EffectiveAlpha]:
    """Returns the effective α of the rule and of the ways that other implementations batch the same documents.

    The README snippet of the paper's repository and transformers' `neftune_noise_alpha` (TRL inherits it) both take the
    width of the batch; they differ in what they are used with. The repository's training code takes each row's real
    length, but does so only under FSDP, and nothing otherwise.

    Args:
        lengths: Of the documents in tokens, at most `max_length`.
        alpha: Requested strength.
        batch_size: Rows per batch.
        max_length: The window.
        seed: Of the order in which documents meet in batches.
    """
    order = list(lengths)
    random.Random(seed).shuffle(order)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    padded = [(length, max(batch)) for batch in batches for length in batch]
    joined = [(length, sum(batch)) for batch in batches for length in batch]
    num_padded = sum(max(batch) * len(batch) for batch in batches)
    num_real = sum(order)
    fixed = [length / max_length for length in order]
    return [
        _effective("neft, and the paper's rule", alpha, [1.0] * len(order), 0.0),
        _effective(
            f"transformers / TRL, {batch_size} rows padded to the longest",
            alpha,
            [length / width for length, width in padded],
            1 - num_real / num_padded,
        ),
        _effective(
            f"README snippet, rows padded to {max_length}", alpha, fixed, 1 - num_real / (max_length * len(order))
        ),
        _effective(f"transformers / TRL, packed to {max_length}", alpha, fixed, 0.0),
        _effective(
            f"transformers / TRL, {batch_size} documents joined in one row (padding-free)",
            alpha,
            [length / width for length, width in joined],
            0.0,
        ),
        _effective(
            f"transformers / TRL, {batch_size} packs of {max_length} joined in one row",
            alpha,
            [share / batch_size for share in fixed],
            0.0,
        ),
    ]


def _effective(name: str, alpha: float, shares: Sequence[float], noised_padding: float) -> EffectiveAlpha:
    """Returns the figures of an implementation, from each document's share of the length that it divides by."""
    values = [alpha * math.sqrt(share) for share in shares]
    return EffectiveAlpha(name, sum(values) / len(values), min(values), max(values), noised_padding)
