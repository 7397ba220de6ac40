"""Runtime 2: rows in, rows out, through vLLM's engine. Same requests, options and rows as the other runtime."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from proxytune.completion import Request, Row, Score, TokenLogprob
from proxytune.detokenize import cut_at_stop, decode
from proxytune.errors import ContextLengthError, RuntimeUnsupportedError
from proxytune.options import GenerationOptions
from proxytune.rows import RowCutter
from proxytune.trace import Trace
from proxytune.vllm.composite import VllmComposite
from proxytune.vllm.engine import Engine
from proxytune.vllm.plan import ALPHA_KEY, check_alphas
from proxytune.vllm.role_prompts import RolePrompts
from proxytune.vllm.seeded_sampling import draw_arguments
from proxytune.vllm.speculation import Acceptance, require_verifiable

_NO_TRACE = (
    "a trace needs the logits of every role, and vLLM's engine gives those of the combination only: "
    'take runtime="hf" for it.'
)
_SLACK = 4  # tokens of a character cut in two where the searched window begins


@dataclass
class _Running:
    """A request in the engine and what it has given so far."""

    request: Request
    started: float
    first_token_at: float | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class VllmRuntime:
    """Decodes requests in one engine, with continuous batching."""

    def __init__(
        self, composite: VllmComposite, tokenizer: Any, eos_token_ids: tuple[int, ...], pad_token_id: int
    ) -> None:
        """Start the engine. `pad_token_id` is what the other runtime needs; nothing is padded here."""
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self._vocab_size: int = composite.config.vocab_size
        self._merged = composite.merged
        self._fixed_alphas = check_alphas(composite.config.alphas) if composite.is_speculative else None
        self._engine = Engine(composite)

    def close(self) -> None:
        """End the engine and remove what was merged for it."""
        self._engine.close()
        if self._merged is not None:
            self._merged.cleanup()

    def acceptance(self) -> Acceptance | None:
        """Return what became of the drafts so far; None for an engine that does not speculate."""
        return None if self._fixed_alphas is None else Acceptance.of(self._engine.metrics())

    def generate(self, requests: Sequence[Request], options: GenerationOptions) -> Iterator[tuple[Request, list[Row]]]:
        """Yield each request with its row, in the order in which they are done; at most `batch_size` run at once."""
        _require_no_beams(options)
        if options.trace:
            raise RuntimeUnsupportedError(_NO_TRACE)
        waiting = [(request, RolePrompts(request.role_ids), self._params(request, options)) for request in requests][
            ::-1
        ]
        running: dict[str, _Running] = {}
        try:
            while waiting or running:
                while waiting and len(running) < options.batch_size:
                    request, prompts, params = waiting.pop()
                    running[self._engine.add(prompts, params)] = _Running(request, time.perf_counter())
                num_rows = len(running)
                for name, output in self._engine.outputs(set(running)):
                    if name in running and self._take(running[name], output, options):
                        done = running.pop(name)
                        self._engine.drop(name)
                        yield done.request, [self._finished(done, options, num_rows)]
        finally:
            for name in running:
                self._engine.drop(name)

    def trace(self, request: Request, token_ids: Sequence[int], num_candidates: int) -> Trace:
        """Raise RuntimeUnsupportedError: the engine gives the combination's logits only, not those of the roles."""
        raise RuntimeUnsupportedError(_NO_TRACE)

    def stream(self, request: Request, options: GenerationOptions) -> Iterator[int]:
        """Yield the token ids of one request as they are chosen; closing the iterator ends the work."""
        _require_no_beams(options)
        params = self._params(request, options)
        row = _Running(request, time.perf_counter())
        name = self._engine.add(RolePrompts(request.role_ids), params)
        try:
            is_done = False
            while not is_done:
                for _, output in self._engine.outputs({name}):
                    given = len(row.token_ids)
                    is_done = self._take(row, output, options)
                    yield from row.token_ids[given:]
                    if is_done:
                        break
        finally:
            self._engine.drop(name)

    def score(self, requests: Sequence[Request], batch_size: int) -> Iterator[tuple[Request, Score]]:
        """Yield each request with its continuation's log-probabilities: one pass, teacher-forced."""
        waiting = [(request, self._scored_prompts(request), self._score_params(request)) for request in requests][::-1]
        running: dict[str, Request] = {}
        try:
            while waiting or running:
                while waiting and len(running) < batch_size:
                    request, prompts, params = waiting.pop()
                    running[self._engine.add(prompts, params)] = request
                for name, output in self._engine.outputs(set(running)):
                    if output.finished:
                        request = running.pop(name)
                        self._engine.drop(name)
                        yield request, self._score(request, output)
        finally:
            for name in running:
                self._engine.drop(name)

    def _take(self, row: _Running, output: Any, options: GenerationOptions) -> bool:
        """Add an output's tokens to a row; return whether the row has ended."""
        [part] = output.outputs
        if self._engine.marks is not None:
            lengths = [len(ids) + len(row.token_ids) for ids in row.request.role_ids]
            self._engine.marks.require_none(part.token_ids, row.request.index, lengths)
        if row.first_token_at is None and part.token_ids:
            row.first_token_at = time.perf_counter()
        for index, token_id in enumerate(part.token_ids):
            row.token_ids.append(token_id)
            if options.logprobs is not None:
                row.logprobs.append(_token_logprob(token_id, part.logprobs[index], options.logprobs))
            if self._has_stop(row, options):
                return True
        return bool(output.finished)

    def _has_stop(self, row: _Running, options: GenerationOptions) -> bool:
        """Return whether a stop text stands at the row's end; only the last tokens can hold one, as each has a byte."""
        if not options.stop:
            return False
        window = max(len(text.encode()) for text in options.stop) + _SLACK
        before = row.token_ids[-window - 1] if len(row.token_ids) > window else row.request.role_ids[0][-1]
        return cut_at_stop(decode(self.tokenizer, row.token_ids[-window:], before), options.stop)[1]

    def _finished(self, done: _Running, options: GenerationOptions, batch_size: int) -> Row:
        now = time.perf_counter()
        first = now if done.first_token_at is None else done.first_token_at
        row = RowCutter(self.tokenizer, self.eos_token_ids).row(
            done.token_ids,
            done.request,
            options,
            seconds=now - done.started,
            first_token_seconds=first - done.started,
            batch_size=batch_size,
        )
        return row if options.logprobs is None else replace(row, logprobs=tuple(done.logprobs[: len(row.token_ids)]))

    def _params(self, request: Request, options: GenerationOptions) -> SamplingParams:
        return _checked_params(
            max_tokens=request.max_new_tokens,
            # The draws are ours: to the engine every request is greedy.
            temperature=0.0,
            repetition_penalty=1.0 if options.is_sampled else options.repetition_penalty,
            # What ends a row was settled over all roles; the engine knows only the base's.
            ignore_eos=True,
            stop_token_ids=list(options.end_ids(self.eos_token_ids)),
            logprobs=None if options.logprobs is None else min(options.logprobs, self._vocab_size),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=self._extra_args(request, options),
        )

    def _score_params(self, request: Request) -> SamplingParams:
        return _checked_params(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=1,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=self._extra_args(request, None),
        )

    def _extra_args(self, request: Request, options: GenerationOptions | None) -> dict[str, Any]:
        """Return what our logits processors read: α, and how to draw; nothing where the engine has none of them."""
        if self._fixed_alphas is not None:
            require_verifiable(request, options, self._fixed_alphas)
            return {}
        draw = {} if options is None else draw_arguments(options, request.seed)
        return {ALPHA_KEY: list(check_alphas(request.alphas))} | draw

    def _scored_prompts(self, request: Request) -> RolePrompts:
        """Return prompt and continuation; the engine reads all of it and has to have room for one token more."""
        prompts = RolePrompts(tuple(ids + request.continuation_ids for ids in request.role_ids))
        if prompts.length >= self._engine.max_length:
            raise ContextLengthError(
                f"row {request.index} has {prompts.length} tokens, and the vllm runtime scores at most "
                f'{self._engine.max_length - 1}: shorten it, or take runtime="hf".'
            )
        return prompts

    def _score(self, request: Request, output: Any) -> Score:
        entries = output.prompt_logprobs[-len(request.continuation_ids) :]
        if self._engine.marks is not None:
            likeliest = [next(index for index, one in entry.items() if one.rank == 1) for entry in entries]
            self._engine.marks.require_none(likeliest, request.index, [len(ids) for ids in request.role_ids])
        logprobs = [entry[index] for entry, index in zip(entries, request.continuation_ids, strict=True)]
        return Score(
            token_ids=request.continuation_ids,
            logprobs=tuple(entry.logprob for entry in logprobs),
            is_greedy=all(entry.rank == 1 for entry in logprobs),
        )


def _require_no_beams(options: GenerationOptions) -> None:
    if options.num_beams > 1:
        raise RuntimeUnsupportedError(
            f'num_beams={options.num_beams}: the vllm runtime has no beam search; take runtime="hf" for it.'
        )


def _checked_params(**params: Any) -> SamplingParams:
    """Return vLLM's parameters; raise RuntimeUnsupportedError for a value outside what it takes."""
    try:
        return SamplingParams(**params)
    except (ValueError, VLLMValidationError) as error:
        raise RuntimeUnsupportedError(
            f'the vllm runtime refuses this request ({str(error).rstrip(".")}): change it, or take runtime="hf".'
        ) from error


def _token_logprob(token_id: int, logprobs: Any, num_top: int) -> TokenLogprob:
    """Return a token's log-probability and the `num_top` likeliest, of what vLLM gives (these and the chosen one)."""
    ranked = sorted(logprobs.items(), key=lambda item: item[1].rank or 0)
    top = {index: entry.logprob for index, entry in ranked if (entry.rank or 0) <= num_top}
    return TokenLogprob(token_id=token_id, logprob=logprobs[token_id].logprob, top=top)
