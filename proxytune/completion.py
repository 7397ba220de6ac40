"""What goes into a runtime and what comes out: plain data, the same for every runtime."""

from dataclasses import dataclass, field
from typing import Literal

from proxytune.prompts import Prompt

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """One token under the combined distribution (natural log), with the likeliest tokens at its place.

    `top` maps token id to log-probability, likeliest first; empty unless asked for.
    """

    token_id: int
    logprob: float
    top: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of the batch a row was part of; rows of one batch share them."""

    seconds: float
    first_token_seconds: float
    batch_size: int
    num_prompt_tokens: int
    num_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished row.

    Attributes:
        prompt: What the caller passed.
        text: The generated text, without special tokens and without the stop text.
        token_ids: The generated ids, up to and including the one that ended the row.
        finish_reason: `"eos"`, `"stop"` or `"length"`.
        logprobs: One per token id when asked for.
        timing: Seconds and sizes.
        index: Place of the prompt in the call.
        sequence: Which of the prompt's `num_return_sequences` this is.
    """

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    timing: Timing
    index: int = 0
    sequence: int = 0


@dataclass(frozen=True, kw_only=True)
class Score:
    """The log-probabilities (natural log) of one continuation under the combined distribution, teacher-forced.

    `is_greedy` says whether each of its tokens was the likeliest at its place.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_greedy: bool

    @property
    def total(self) -> float:
        """The sum over the tokens."""
        return sum(self.logprobs)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One row as a runtime sees it.

    Attributes:
        role_ids: Token ids of the prompt for each role of the composite, in its order of roles.
        alphas: Strength for each pair.
        seed: Seed of the row's draws.
        max_new_tokens: Limit of this row (its context may end before the batch does).
        index: Place of the prompt in the call.
        sequence: Number among the prompt's completions.
        continuation_ids: Only for scoring: what to score.
    """

    role_ids: tuple[tuple[int, ...], ...]
    alphas: tuple[float, ...]
    seed: int = 0
    max_new_tokens: int = 0
    index: int = 0
    sequence: int = 0
    continuation_ids: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """The longest role's prompt."""
        return max(len(ids) for ids in self.role_ids)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a runtime generated for one sequence of one request."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    timing: Timing
