"""From the ids a runtime decoded for one sequence to a finished row: where it ends, its text, and why it ended."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxytune.completion import FinishReason, Request, Row, Timing
from proxytune.detokenize import cut_at_stop, decode
from proxytune.errors import RemoteBudgetError, RemoteError
from proxytune.options import GenerationOptions


@dataclass(frozen=True)
class RowCutter:
    """Cuts what a runtime decoded down to what counts.

    Attributes:
        tokenizer: Turns generated ids into text (all roles share ids).
        eos_token_ids: Ids that end a row.
    """

    tokenizer: Any
    eos_token_ids: tuple[int, ...]

    def row(
        self,
        token_ids: Sequence[int],
        request: Request,
        options: GenerationOptions,
        *,
        seconds: float,
        first_token_seconds: float,
        batch_size: int = 1,
        error: RemoteError | None = None,
    ) -> Row:
        """Return a finished row without log-probabilities, from all the ids its batch gave it and what they took.

        `error` is what ended it before its time.
        """
        ids, text, reason = self.cut(token_ids, request, options)
        if error is not None:
            reason = "budget" if isinstance(error, RemoteBudgetError) else "error"
        timing = Timing(
            seconds=seconds,
            first_token_seconds=first_token_seconds,
            batch_size=batch_size,
            num_prompt_tokens=len(request.role_ids[0]),
            num_new_tokens=len(ids),
        )
        return Row(
            token_ids=tuple(ids),
            text=text,
            finish_reason=reason,
            logprobs=None,
            timing=timing,
            error=None if error is None else str(error),
        )

    def cut(
        self, token_ids: Sequence[int], request: Request, options: GenerationOptions
    ) -> tuple[list[int], str, FinishReason]:
        """Return what of a row counts: its ids, its text, and why it ended there."""
        ids = list(token_ids[: request.max_new_tokens])
        before = request.role_ids[0][-1]
        reason: FinishReason = "length"
        ends = options.end_ids(self.eos_token_ids)
        first_eos = next((index for index, token_id in enumerate(ids) if token_id in ends), None)
        if first_eos is not None:
            is_eos = not options.ignore_eos and ids[first_eos] in self.eos_token_ids
            ids, reason = ids[: first_eos + 1], "eos" if is_eos else "stop"
        # An id that ends the row is no text, whether or not the tokenizer calls it special.
        shown = ids if first_eos is None else ids[:-1]
        text, is_stopped = cut_at_stop(decode(self.tokenizer, shown, before), options.stop)
        if not is_stopped:
            return ids, text, reason

        def has_stop(count: int) -> bool:
            return cut_at_stop(decode(self.tokenizer, ids[:count], before), options.stop)[1]

        # The row ended with the token that completed the stop text; what follows is padding of the batch.
        return ids[: bisect_left(range(len(ids)), True, key=has_stop)], text, "stop"
