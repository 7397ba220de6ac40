"""Same tokens first, then times: every variant is held against the naive loop.

Rows that equal the reference's are right. A row that does not may still be: kernels of other sizes round otherwise, and
where two tokens are as good as tied, one of them wins here and the other there. So each of its tokens is looked up in
one teacher-forced pass of the reference models over that very row, and must be their likeliest up to a tolerance, a
share of the distance between the likeliest logit and the mean one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from proxytune import ProxyTuneError

# In 16 bits each of three models rounds every activation to 8 or 11 bits; random weights tie often.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.05}


class TokensDifferError(ProxyTuneError, ValueError):
    """A variant that does not decode what it should: its speed means nothing."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Comparison of a variant's rows with the reference's.

    `num_equal` of `num_rows` are the same token for token; in the others the worst token lies `largest_gap` below the
    likeliest one, as a share of what the tolerance is a share of.
    """

    num_rows: int
    num_equal: int
    largest_gap: float


def check_tokens(
    name: str,
    rows: Sequence[Sequence[int]],
    reference: Sequence[Sequence[int]],
    *,
    models: Sequence[Any],
    prompts: Sequence[Sequence[int]],
    alpha: float = 1.0,
) -> Agreement:
    """Return how far a variant's rows agree with the reference's.

    Args:
        name: The variant, for the error.
        rows: Its tokens.
        reference: The naive loop's.
        models: Base, expert and anti, the base alone, or none where they are elsewhere: then rows must be equal.
        prompts: Prompt of each row.
        alpha: Strength of steering.

    Raises:
        TokensDifferError: A row is missing or has another length, or a token is not the likeliest.
    """
    if [len(row) for row in rows] != [len(row) for row in reference]:
        raise TokensDifferError(
            f"{name} gave {[len(row) for row in rows]} tokens where {[len(row) for row in reference]} were due: "
            "no time is printed for it."
        )
    largest, num_equal = 0.0, 0
    for number, (row, expected) in enumerate(zip(rows, reference, strict=True)):
        if list(row) == list(expected):
            num_equal += 1
            continue
        if not models:
            raise TokensDifferError(f"{name} gives other tokens than the same variant without drafts: that is a bug.")
        gap, position = largest_gap(models, prompts[number], row, alpha=alpha)
        limit = _TOLERANCES.get(models[0].dtype, _TOLERANCES[torch.float32])
        if gap > limit:
            raise TokensDifferError(
                f"{name} differs from the naive loop: token {position} of row {number} is {row[position]}, whose logit "
                f"lies {gap:.2g} of the spread below the likeliest one (rounding explains {limit:g}); "
                "no time is printed."
            )
        largest = max(largest, gap)
    return Agreement(num_rows=len(rows), num_equal=num_equal, largest_gap=largest)


@torch.inference_mode()
def largest_gap(models: Sequence[Any], prompt: Sequence[int], row: Sequence[int], *, alpha: float) -> tuple[float, int]:
    """Return how far below the likeliest a row's worst token lies, as a share of the spread, and its place."""
    ids = torch.tensor([[*prompt, *row[:-1]]], device=models[0].device)
    logits = [model(ids, logits_to_keep=len(row)).logits[0].float() for model in models]
    combined = logits[0] if len(logits) == 1 else logits[0] + alpha * (logits[1] - logits[2])
    chosen = combined.gather(-1, torch.tensor(list(row), device=combined.device)[:, None])[:, 0]
    best = combined.max(-1).values
    gaps = (best - chosen) / (best - combined.mean(-1))
    position = int(gaps.argmax())
    return float(gaps[position]), position
