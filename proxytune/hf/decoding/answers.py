"""The answers of a batch on the host: tokens, log-probabilities, and which rows a stop text has ended."""

from collections.abc import Sequence
from typing import Any

from proxytune.completion import TokenLogprob
from proxytune.errors import RemoteError
from proxytune.hf.stopping import StopFinder


class Answers:
    """What each row has so far, in the order of the requests; `alive` are those that the batch still holds.

    Attributes:
        token_ids: Per request.
        logprobs: Per request, None unless they are recorded.
        masses: Per request the seen share of a remote base's probability at each token; empty for a base here.
        errors: Why a request's row ended early, by request.
        alive: For each row of the batch, its request.
    """

    def __init__(self, last_ids: Sequence[int], stop: StopFinder | None, *, has_logprobs: bool) -> None:
        """`last_ids`: the last token of each prompt, which the answer's text continues."""
        self.token_ids: list[list[int]] = [[] for _ in last_ids]
        self.logprobs: list[list[TokenLogprob]] | None = [[] for _ in last_ids] if has_logprobs else None
        self.masses: list[list[float]] = [[] for _ in last_ids]
        self.errors: dict[int, RemoteError] = {}
        self.alive = list(range(len(last_ids)))
        self._last_ids = list(last_ids)
        self._stop = stop

    @property
    def counts(self) -> list[int]:
        """Number of tokens of each row of the batch."""
        return [len(self.token_ids[request]) for request in self.alive]

    def add(
        self,
        row: int,
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprob] = (),
        masses: Sequence[float] = (),
    ) -> bool:
        """Add tokens to a row of the batch and return whether a stop text ends it."""
        request = self.alive[row]
        self.token_ids[request] += token_ids
        self.masses[request] += masses
        if self.logprobs is not None:
            self.logprobs[request] += logprobs
        if self._stop is None or not token_ids:
            return False
        return self._stop.is_in(self.token_ids[request], self._last_ids[request], len(token_ids))

    def fail(self, row: int, error: RemoteError) -> None:
        """Let a row of the batch end with what it has."""
        self.errors[self.alive[row]] = error

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows in the batch."""
        self.alive = [self.alive[row] for row in rows]


def read_logprobs(
    table: tuple[list[Any], list[Any], list[Any]], row: int, token_ids: Sequence[int]
) -> list[TokenLogprob]:
    """Return the entries of one row's tokens from lists over rows and places: values, and those of the likeliest K.

    Args:
        table: Log-probabilities `[B][T]`, the likeliest ones `[B][T][K]`, and their ids `[B][T][K]`; K may be 0.
        row: Which row.
        token_ids: Its tokens, from the first place on.
    """
    values, top_values, top_ids = (part[row] for part in table)
    return [
        TokenLogprob(
            token_id=token_id,
            logprob=values[place],
            top=dict(zip(top_ids[place], top_values[place], strict=True)),
        )
        for place, token_id in enumerate(token_ids)
    ]
