"""Runtime 1: rows in, rows out, in this process: through our own loop, or transformers' `generate`."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxytune.completion import FinishReason, Request, Row, Score, TokenLogprob
from proxytune.errors import RemoteBudgetError, RemoteError, RuntimeUnsupportedError
from proxytune.hf.batching import rows_per_batch, run_in_batches
from proxytune.hf.decoding.batch_state import GenerationOutputs
from proxytune.hf.decoding.decoder import LoopDecoder, require_no_demand
from proxytune.hf.generating import GenerateDecoder
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.hf.scoring import prompts_together, score_batch
from proxytune.hf.stopping import Cancelled
from proxytune.hf.streaming import QueueStreamer, stream_tokens
from proxytune.hf.tracing import trace_continuation
from proxytune.options import GenerationOptions, LoopSettings
from proxytune.rows import RowCutter
from proxytune.trace import Trace


@dataclass(frozen=True)
class HfRuntime:
    """Decodes requests with a composite.

    Attributes:
        model: The composite.
        tokenizer: Turns generated ids into text (all roles share ids).
        eos_token_ids: Ids that end a row.
        pad_token_id: Fills short rows.
        settings: Settings of the loop.
        loop: Our own loop, None where the roles need transformers' generate.
    """

    model: ProxyTunedForCausalLM
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    settings: LoopSettings
    loop: LoopDecoder | None

    def generate(self, requests: Sequence[Request], options: GenerationOptions) -> Iterator[tuple[Request, list[Row]]]:
        """Yield each request with its rows, a batch at a time, in the order in which they are done.

        Rows left when the budget of a base behind an API is spent are answered without text.
        """
        require_no_demand(self.settings, options)
        if options.num_beams > 1 and self.model.roles[0].is_remote:
            raise RuntimeUnsupportedError(
                f"num_beams={options.num_beams}: a base behind an API has no beam search, as it keeps no cache; "
                "set num_beams=1, or load the base here."
            )
        spent: list[RemoteBudgetError] = []

        def run(batch: Sequence[Request]) -> list[list[Row]]:
            if spent:
                return self._rows(_nothing(len(batch), options, spent[0]), batch, options, 0.0, 0.0)
            return self._generate_batch(batch, options, spent)

        num_rows = rows_per_batch(self.model, requests, options.batch_size)
        for batch, rows in run_in_batches(requests, num_rows, run):
            for request, request_rows in zip(batch, rows, strict=True):
                yield request, [self._with_trace(row, request, options) for row in request_rows]

    def trace(self, request: Request, token_ids: Sequence[int], num_candidates: int) -> Trace:
        """Return what steering did at each of `token_ids` behind the request's prompt."""
        return trace_continuation(self.model, request, token_ids, self.tokenizer, num_candidates)

    def stream(self, request: Request, options: GenerationOptions) -> Iterator[int]:
        """Yield the token ids of one request as they are chosen; closing the iterator ends the work."""
        cancelled = Cancelled()
        loop = self.loop

        def run(streamer: QueueStreamer) -> None:
            if loop is None:
                self._by_generate().decode([request], options, streamer=streamer, cancelled=cancelled)
                return
            decoded = loop.decode([request], options, on_tokens=streamer.push, is_cancelled=cancelled.event.is_set)
            # In a batch a row tells it; a stream has given its text, and this is why there is no more.
            for error in decoded.errors.values():
                raise error

        return stream_tokens(run, cancelled.event)

    def score(self, requests: Sequence[Request], batch_size: int) -> Iterator[tuple[Request, Score]]:
        """Yield each request with its continuation's log-probabilities: one pass, teacher-forced."""

        def run(batch: Sequence[Request]) -> list[Score]:
            return score_batch(self.model, batch, self.pad_token_id)

        num_rows = rows_per_batch(self.model, requests, batch_size)
        for batch, scores in run_in_batches(requests, num_rows, run, prompts_together(requests)):
            yield from zip(batch, scores, strict=True)

    def close(self) -> None:
        """End what a base behind an API has open; models in this process hold nothing."""
        if self.model.roles[0].is_remote:
            self.model.base.remote.close()

    def _generate_batch(
        self, batch: Sequence[Request], options: GenerationOptions, spent: list[RemoteBudgetError]
    ) -> list[list[Row]]:
        """Return the rows of a batch; an error that says that the budget is spent goes to `spent`."""
        started = time.perf_counter()
        if self.loop is None or options.num_beams > 1:
            decoded = self._by_generate().decode(batch, options)
        else:
            decoded = self.loop.decode(batch, options)
        seconds = time.perf_counter() - started
        first = seconds if decoded.first_token_at is None else decoded.first_token_at - started
        spent += [error for error in decoded.errors.values() if isinstance(error, RemoteBudgetError)]
        return self._rows(decoded, batch, options, seconds, first)

    def _rows(
        self,
        decoded: GenerationOutputs,
        batch: Sequence[Request],
        options: GenerationOptions,
        seconds: float,
        first: float,
    ) -> list[list[Row]]:
        """Return the rows of each request from what its batch gave in `seconds`, `first` of them to the first token."""
        per_request = len(decoded.token_ids) // len(batch)
        cutter = RowCutter(self.tokenizer, self.eos_token_ids)
        grouped: list[list[Row]] = [[] for _ in batch]
        for index, token_ids in enumerate(decoded.token_ids):
            number = index // per_request
            row = cutter.row(
                token_ids,
                batch[number],
                options,
                seconds=seconds,
                first_token_seconds=first,
                batch_size=len(batch),
                error=decoded.errors.get(index),
            )
            mass = None if decoded.masses is None else tuple(decoded.masses[index][: len(row.token_ids)])
            logprobs = None if decoded.logprobs is None else tuple(decoded.logprobs[index][: len(row.token_ids)])
            if options.num_beams > 1:
                logprobs = self._beam_logprobs(batch[number], row, options)
            timing = replace(row.timing, stats=decoded.stats)
            grouped[number].append(replace(row, logprobs=logprobs, timing=timing, base_mass=mass))
        return grouped

    def _with_trace(self, row: Row, request: Request, options: GenerationOptions) -> Row:
        if options.trace is False or row.error is not None:
            return row
        try:
            return replace(row, trace=self.trace(request, row.token_ids, options.num_trace_candidates))
        except RemoteError as error:
            reason: FinishReason = "budget" if isinstance(error, RemoteBudgetError) else "error"
            return replace(row, finish_reason=reason, error=f"it has its text and no trace: {error}")

    def _beam_logprobs(self, request: Request, row: Row, options: GenerationOptions) -> tuple[TokenLogprob, ...] | None:
        if options.logprobs is None:
            return None
        return self._by_generate().scored_logprobs(request, row.token_ids, options.logprobs)

    def _by_generate(self) -> GenerateDecoder:
        return GenerateDecoder(self.model, self.tokenizer, self.eos_token_ids, self.pad_token_id)


def _nothing(num_rows: int, options: GenerationOptions, error: RemoteBudgetError) -> GenerationOutputs:
    """Return what a batch gave that was not begun."""
    empty: list[list[Any]] = [[] for _ in range(num_rows)]
    logprobs = None if options.logprobs is None else empty
    return GenerationOutputs(empty, logprobs, None, errors=dict.fromkeys(range(num_rows), error), masses=empty)
