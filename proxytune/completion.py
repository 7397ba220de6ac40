"""Requests to a runtime and its results: plain data, the same for every runtime."""

from dataclasses import dataclass, field
from html import escape
from typing import Literal

from proxytune.prompts import Prompt
from proxytune.trace import Trace, shortened

# The last two: a remote base's request failed for good, or its budget is spent.
FinishReason = Literal["eos", "stop", "length", "error", "budget"]


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """One token under the combined distribution (natural log), with the likeliest tokens at its position.

    `top` maps token id to log-probability, likeliest first; empty unless asked for.
    """

    token_id: int
    logprob: float
    top: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DecodingStats:
    """Counts and costs of decoding one batch.

    Attributes:
        tokens_per_second: Of the batch, reading the prompts included.
        tokens_per_cycle: Of a row, behind its first token: 1 without speculation, up to k + 1 with k drafts.
        num_drafted: Drafts per cycle of a row, in the mean: k, or less where cycles without drafts came between.
        acceptance: For each position of a draft, the share of drafts kept there; empty without speculation.
        num_cycles: Passes of the base over the batch, that over the prompts left out.
        num_tokens: Generated in the batch.
        role_seconds: By role, or by roles that share a pass ("expert+anti"), the prompts included.
        floor_bytes: Bytes of weights that one step of plain decoding must read, input embeddings excluded.
        floor_ratio: The same as a multiple of the base's alone: what steering costs at least while weights are all.
            None where the base's are elsewhere.
        ratio: Seconds of the batch as a multiple of those in the base's own passes: without speculation, what
            `floor_ratio` is to be compared with.
        requests_per_token: HTTP requests to a remote base, retries among them, per generated token; None for a local
            one. Streams that run at the same time count each other's.
    """

    tokens_per_second: float
    tokens_per_cycle: float
    acceptance: tuple[float, ...]
    num_drafted: float
    num_cycles: int
    num_tokens: int
    role_seconds: dict[str, float]
    floor_bytes: int
    floor_ratio: float | None
    ratio: float | None
    requests_per_token: float | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of the batch a row was part of; rows of one batch share them.

    `stats` is there where `generate(..., stats=True)` asked for it.
    """

    seconds: float
    first_token_seconds: float
    batch_size: int
    num_prompt_tokens: int
    num_new_tokens: int
    stats: DecodingStats | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Completion:
    """One finished row.

    Attributes:
        prompt: The caller's prompt.
        text: The generated text, without special tokens and without the stop text.
        token_ids: The generated ids, up to and including the one that ended the row.
        finish_reason: `"eos"`, `"stop"` or `"length"`; with a remote base also `"error"` or `"budget"`, and then
            the row has what came before.
        logprobs: One per token id when asked for.
        timing: Seconds and sizes.
        index: Index of the prompt in the call.
        sequence: Index among the prompt's `num_return_sequences`.
        trace: Effect of steering at every token, when asked for; None for a row that ended with an error.
        error: Why the row ended, where that is `"error"` or `"budget"`.
        base_mass: With a remote base, the share of its probability that was seen at each token's position; else None.
    """

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    timing: Timing
    index: int = 0
    sequence: int = 0
    trace: Trace | None = None
    error: str | None = None
    base_mass: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        """Return the text's beginning, its length, and why it ended."""
        return f"Completion({shortened(self.text)!r}, {len(self.token_ids)} tokens, {self.error or self.finish_reason})"

    def _repr_html_(self) -> str:
        """Return prompt and text for a notebook, with the trace's marks where there is one."""
        text = f'<div style="white-space: pre-wrap">{escape(self.text)}</div><small>{escape(repr(self))}</small>'
        prompt = f'<div style="white-space: pre-wrap; opacity: 0.6">{escape(shortened(str(self.prompt)))}</div>'
        return prompt + (text if self.trace is None else self.trace._repr_html_())


@dataclass(frozen=True, kw_only=True)
class Score:
    """The log-probabilities (natural log) of one continuation under the combined distribution, teacher-forced.

    `is_greedy` says whether each of its tokens was the likeliest at its position.
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
        index: Index of the prompt in the call.
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
    """The output of a runtime for one sequence of one request."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    timing: Timing
    trace: Trace | None = None
    error: str | None = None
    base_mass: tuple[float, ...] | None = None

    def completion(self, prompt: Prompt, index: int, sequence: int) -> Completion:
        """Return the row as the answer to `prompt`, the call's number `index`."""
        return Completion(prompt=prompt, index=index, sequence=sequence, **vars(self))
