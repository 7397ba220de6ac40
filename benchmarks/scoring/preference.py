"""A judge's preference between two outputs, from the log-probabilities of its answer (AlpacaEval 2).

The judge is shown two outputs as m and M in an order drawn from the instruction, and answers with one token. Source:
AlpacaEval's weighted annotator (Dubois et al. 2024); a preference runs from 1 (the reference is better) to 2 (the model
is), 1.5 is a draw.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

DRAW = 1.5
_FIRST, _SECOND = "m", "M"


def is_switched(instruction: str, *, seed: int = 0) -> bool:
    """Return whether the judge saw the model's output first; drawn from the instruction, so always the same."""
    return random.Random(f"is_switched_outputs{instruction}{seed}").choices([False, True])[0]


def weighted_preference(logprobs: Mapping[str, float], *, switched: bool) -> float | None:
    """Return the preference a judge's token log-probabilities (nats) stand for, None if they hold neither m nor M.

    It is 2 - P(m) / (P(m) + P(M)), and 3 minus that where the order was switched; a token that is not listed has
    probability 0.

    >>> round(weighted_preference({"m": math.log(0.1), "M": math.log(0.3)}, switched=False), 12)
    1.75
    >>> round(weighted_preference({"m": math.log(0.1), "M": math.log(0.3)}, switched=True), 12)
    1.25
    """
    first, second = (logprobs.get(token, -math.inf) for token in (_FIRST, _SECOND))
    if max(first, second) == -math.inf:
        return None
    # P(m) / (P(m) + P(M)), safe where both are far below the smallest float.
    share = 1 / (1 + math.exp(second - first)) if second <= first else 1 - 1 / (1 + math.exp(first - second))
    preference = 2 - share
    return 3 - preference if switched else preference


def answer_logprobs(completion: Any) -> dict[str, float] | None:
    """Return the log-probabilities of a raw completion's first token, None if it holds none.

    `completion` is what an OpenAI-compatible server answered: `logprobs.content[0].top_logprobs`.
    """
    try:
        top = completion["logprobs"]["content"][0]["top_logprobs"]
        return {entry["token"]: float(entry["logprob"]) for entry in top}
    except (TypeError, KeyError, IndexError, ValueError):
        return None
