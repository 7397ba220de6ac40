"""Rows of a batch on the host: their tokens, what ends them, and which of a step's tokens count."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxytune.completion import DecodingStats, TokenLogprob
from proxytune.errors import RemoteError
from proxytune.hf.stopping import StopFinder

Logprobs = tuple[list[Any], list[Any], list[Any]]


@dataclass(frozen=True)
class GenerationOutputs:
    """Outputs of a batch, per request.

    Attributes:
        token_ids: Of the answers.
        logprobs: None unless they were asked for.
        first_token_at: Clock (`time.perf_counter`) of the first token.
        stats: None unless asked for.
        errors: With a base behind an API: requests that ended early, and why.
        masses: Likewise the seen share of its probability per token.
    """

    token_ids: list[list[int]]
    logprobs: list[list[TokenLogprob]] | None
    first_token_at: float | None
    stats: DecodingStats | None = None
    errors: Mapping[int, RemoteError] = field(default_factory=dict)
    masses: list[list[float]] | None = None


class BatchState:
    """Answers of a batch, by request; `alive` are the requests whose rows the batch still holds.

    Attributes:
        token_ids: Per request.
        logprobs: Per request, None unless they are recorded.
        masses: Per request the seen share of a remote base's probability at each token; empty for a local base.
        errors: By request, why its row ended early.
        alive: Per row of the batch its request.
        is_finished: Per row of the batch.
    """

    def __init__(
        self,
        limits: Sequence[int],
        last_prompt_ids: Sequence[int],
        *,
        eos_token_ids: Collection[int] = (),
        stop: StopFinder | None = None,
        has_logprobs: bool = False,
    ) -> None:
        """Take, per request, the most tokens and the last token of the prompt, which the answer's text continues."""
        self.token_ids: list[list[int]] = [[] for _ in limits]
        self.logprobs: list[list[TokenLogprob]] | None = [[] for _ in limits] if has_logprobs else None
        self.masses: list[list[float]] = [[] for _ in limits]
        self.errors: dict[int, RemoteError] = {}
        self.alive = list(range(len(limits)))
        self.is_finished = [False] * len(limits)
        self._limits = list(limits)
        self._last_prompt_ids = list(last_prompt_ids)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._stop = stop

    @property
    def counts(self) -> list[int]:
        """Number of tokens of each row of the batch."""
        return [len(self.token_ids[request]) for request in self.alive]

    @property
    def offsets(self) -> list[int]:
        """Position in its answer of each row's last token, the next that the roles run."""
        return [max(0, len(self.token_ids[request]) - 1) for request in self.alive]

    @property
    def last_tokens(self) -> list[int]:
        """Last token of each row; 0 for a row that failed before its first."""
        return [self.token_ids[request][-1] if self.token_ids[request] else 0 for request in self.alive]

    @property
    def remaining_tokens(self) -> list[int]:
        """Tokens that each row can still take; 0 for finished rows."""
        return [
            0 if is_finished else self._limits[request] - len(self.token_ids[request])
            for request, is_finished in zip(self.alive, self.is_finished, strict=True)
        ]

    def accept(
        self,
        row: int,
        tokens: Sequence[int],
        drafts: Sequence[int],
        logprobs: Logprobs | None = None,
        masses: Sequence[float] = (),
    ) -> tuple[int, int]:
        """Add the tokens of a row's step that count; return how many drafts agreed, and how many tokens count.

        Args:
            row: An unfinished one.
            tokens: Chosen from the combined distribution at each position of the step.
            drafts: The step's drafts, one less.
            logprobs: Tables of the step, as `read_logprobs` takes them.
            masses: Per position.
        """
        request = self.alive[row]
        answer = self.token_ids[request]
        limit = self._limits[request] - len(answer)
        num_agreed, num_new, has_end = accepted(tokens, drafts, limit, self._eos_token_ids)
        kept = tokens[:num_new]
        answer += kept
        self.masses[request] += masses[:num_new]
        if self.logprobs is not None and logprobs is not None:
            self.logprobs[request] += read_logprobs(logprobs, row, kept)
        is_stopped = self._stop is not None and self._stop.is_in(answer, self._last_prompt_ids[request], num_new)
        self.is_finished[row] = has_end or is_stopped or num_new == limit
        return num_agreed, num_new

    def fail(self, row: int, error: RemoteError) -> None:
        """Finish a row of the batch with the tokens it has."""
        self.errors[self.alive[row]] = error
        self.is_finished[row] = True

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep these rows in the batch."""
        self.alive = [self.alive[row] for row in rows]
        self.is_finished = [self.is_finished[row] for row in rows]


def accepted(
    tokens: Sequence[int], drafts: Sequence[int], limit: int, eos_token_ids: Collection[int]
) -> tuple[int, int, bool]:
    """Return how many drafts agree, how many of `tokens` count, and whether one of those ends the text.

    The drafts that agree with the chosen tokens up to the first that does not, and one token more; no more than
    `limit`; none after an end-of-text token.

    >>> accepted([4, 5, 6], [4, 7], 9, {2})
    (1, 2, False)
    >>> accepted([4, 2, 6], [4, 2], 9, {2})
    (2, 2, True)
    """
    num_agreed = 0
    while num_agreed < len(drafts) and tokens[num_agreed] == drafts[num_agreed]:
        num_agreed += 1
    num_new = min(num_agreed + 1, limit)
    end = next((index for index in range(num_new) if tokens[index] in eos_token_ids), None)
    return num_agreed, num_new if end is None else end + 1, end is not None


def read_logprobs(table: Logprobs, row: int, token_ids: Sequence[int]) -> list[TokenLogprob]:
    """Return the entries of one row's tokens from lists over rows and positions.

    Args:
        table: Log-probabilities `[B][T]`, the likeliest ones `[B][T][K]`, and their ids `[B][T][K]`; K may be 0.
        row: Of the batch.
        token_ids: Its tokens, from the first position on.
    """
    values, top_values, top_ids = (part[row] for part in table)
    return [
        TokenLogprob(
            token_id=token_id,
            logprob=values[position],
            top=dict(zip(top_ids[position], top_values[position], strict=True)),
        )
        for position, token_id in enumerate(token_ids)
    ]


def is_broken(peak: float) -> bool:
    """Return whether a sum of the roles' largest logits says that one of them is NaN or infinite."""
    return not math.isfinite(peak)
