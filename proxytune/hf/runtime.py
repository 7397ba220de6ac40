"""Runtime 1: rows in, rows out, through transformers' `generate` on the composite."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from proxytune.completion import FinishReason, Request, Row, Score, Timing, TokenLogprob
from proxytune.detokenize import cut_at_stop, decode
from proxytune.hf.batching import alpha_of, left_pad, role_prompts, run_in_batches
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.hf.sampling import LogprobRecorder, processors
from proxytune.hf.stopping import Cancelled, RowLimits, StopTexts
from proxytune.hf.streaming import QueueStreamer, stream_tokens
from proxytune.options import GenerationOptions


@dataclass(frozen=True)
class HfRuntime:
    """Decodes requests with a composite.

    Attributes:
        model: The composite.
        tokenizer: Turns generated ids into text (all roles share ids).
        eos_token_ids: Ids that end a row.
        pad_token_id: Fills the left of short rows.
    """

    model: ProxyTunedForCausalLM
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    def generate(self, requests: Sequence[Request], options: GenerationOptions) -> Iterator[tuple[Request, list[Row]]]:
        """Yield each request with its rows, a batch at a time, in the order in which they are done."""
        batches = run_in_batches(requests, options.batch_size, lambda batch: self._generate_batch(batch, options))
        for batch, rows in batches:
            yield from zip(batch, rows, strict=True)

    def stream(self, request: Request, options: GenerationOptions) -> Iterator[int]:
        """Yield the token ids of one request as they are chosen; closing the iterator ends the work."""
        cancelled = Cancelled()

        def run(streamer: QueueStreamer) -> None:
            self._decode([request], options, streamer=streamer, cancelled=cancelled)

        return stream_tokens(run, cancelled.event)

    def score(self, requests: Sequence[Request], batch_size: int) -> Iterator[tuple[Request, Score]]:
        """Yield each request with its continuation's log-probabilities: one pass, teacher-forced."""
        for batch, scores in run_in_batches(requests, batch_size, self._score_batch):
            yield from zip(batch, scores, strict=True)

    def cut(
        self, token_ids: Sequence[int], request: Request, options: GenerationOptions
    ) -> tuple[list[int], str, FinishReason]:
        """Return what of a row counts: its ids, its text, and why it ended there."""
        ids = list(token_ids[: request.max_new_tokens])
        before = request.role_ids[0][-1]
        reason: FinishReason = "length"
        ends = () if options.ignore_eos else self.eos_token_ids
        first_eos = next((place for place, index in enumerate(ids) if index in ends), None)
        if first_eos is not None:
            ids, reason = ids[: first_eos + 1], "eos"
        # An id that ends the row is no text, whether or not the tokenizer calls it special.
        shown = ids if first_eos is None else ids[:-1]
        text, is_stopped = cut_at_stop(decode(self.tokenizer, shown, before), options.stop)
        if not is_stopped:
            return ids, text, reason

        def has_stop(count: int) -> bool:
            return cut_at_stop(decode(self.tokenizer, ids[:count], before), options.stop)[1]

        # The row ended with the token that completed the stop text; what follows is padding of the batch.
        return ids[: bisect_left(range(len(ids)), True, key=has_stop)], text, "stop"

    def row(
        self,
        token_ids: Sequence[int],
        request: Request,
        options: GenerationOptions,
        *,
        seconds: float,
        first_token_seconds: float,
        batch_size: int = 1,
    ) -> Row:
        """Return a finished row without log-probabilities, from all the ids its batch gave it and what they took."""
        ids, text, reason = self.cut(token_ids, request, options)
        timing = Timing(
            seconds=seconds,
            first_token_seconds=first_token_seconds,
            batch_size=batch_size,
            num_prompt_tokens=len(request.role_ids[0]),
            num_new_tokens=len(ids),
        )
        return Row(token_ids=tuple(ids), text=text, finish_reason=reason, logprobs=None, timing=timing)

    def _generate_batch(self, batch: Sequence[Request], options: GenerationOptions) -> list[list[Row]]:
        started = time.perf_counter()
        sequences, recorder, first_token_at = self._decode(batch, options)
        seconds = time.perf_counter() - started
        first = seconds if first_token_at is None else first_token_at - started
        per_request = len(sequences) // len(batch)
        rows = []
        for place, token_ids in enumerate(sequences):
            request = batch[place // per_request]
            row = self.row(
                token_ids, request, options, seconds=seconds, first_token_seconds=first, batch_size=len(batch)
            )
            rows.append(replace(row, logprobs=_logprobs(recorder, place, row.token_ids)))
        grouped = [rows[first : first + per_request] for first in range(0, len(rows), per_request)]
        if options.num_beams > 1 and options.logprobs is not None:
            return [
                self._with_scored_logprobs(request, found, options)
                for request, found in zip(batch, grouped, strict=True)
            ]
        return grouped

    def _decode(
        self,
        batch: Sequence[Request],
        options: GenerationOptions,
        *,
        streamer: QueueStreamer | None = None,
        cancelled: Cancelled | None = None,
    ) -> tuple[list[list[int]], LogprobRecorder | None, float | None]:
        """Return the generated ids of every row, the recorder of log-probabilities, and when the first token came."""
        device = self.model.device
        base, prompts = role_prompts([request.role_ids for request in batch], self.pad_token_id, device)
        prompt_length = base.input_ids.shape[1]
        limits = [request.max_new_tokens for request in batch]
        chain, chooser, recorder = processors(options, [request.seed for request in batch], base.attention_mask, device)
        criteria = StoppingCriteriaList([RowLimits(limits, prompt_length, device)])
        if options.stop:
            criteria.append(StopTexts(self.tokenizer, options.stop, prompt_length))
        if cancelled is not None:
            criteria.append(cancelled)
        ids = self.model.generate(
            base.input_ids,
            attention_mask=_mask(base.input_ids, base.attention_mask),
            role_prompts=prompts,
            prompt_length=prompt_length,
            clamp_positions=True,
            alpha=alpha_of(batch, device),
            max_new_tokens=max(limits),
            do_sample=False,
            num_beams=options.num_beams,
            num_return_sequences=options.num_return_sequences if options.num_beams > 1 else 1,
            length_penalty=options.length_penalty if options.num_beams > 1 else None,
            eos_token_id=None if options.ignore_eos else list(self.eos_token_ids) or None,
            pad_token_id=self.pad_token_id,
            logits_processor=chain,
            stopping_criteria=criteria,
            streamer=streamer,
        )
        return ids[:, prompt_length:].tolist(), recorder, None if chooser is None else chooser.first_token_at

    @torch.no_grad()
    def _score_batch(self, batch: Sequence[Request]) -> list[Score]:
        device = self.model.device
        # The last token predicts nothing that is asked for; the one before the continuation predicts its first.
        read = [tuple(ids + request.continuation_ids[:-1] for ids in request.role_ids) for request in batch]
        base, prompts = role_prompts(read, self.pad_token_id, device)
        logits = self.model(
            base.input_ids,
            attention_mask=base.attention_mask,
            role_prompts=prompts,
            logits_to_keep=max(len(request.continuation_ids) for request in batch),
            alpha=alpha_of(batch, device),
        ).logits
        targets = left_pad([request.continuation_ids for request in batch], 0, logits.device).input_ids
        logprobs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        is_likeliest = logits.argmax(-1) == targets
        return [
            Score(
                token_ids=request.continuation_ids,
                logprobs=tuple(logprobs[row, -len(request.continuation_ids) :].tolist()),
                is_greedy=bool(is_likeliest[row, -len(request.continuation_ids) :].all()),
            )
            for row, request in enumerate(batch)
        ]

    def _with_scored_logprobs(self, request: Request, rows: list[Row], options: GenerationOptions) -> list[Row]:
        """Return beam rows with the log-probabilities of their tokens, from one teacher-forced pass each."""
        scored = []
        for row in rows:
            whole = Request(role_ids=request.role_ids, alphas=request.alphas, continuation_ids=row.token_ids)
            logprobs = [
                TokenLogprob(token_id=index, logprob=logprob, top=top)
                for index, logprob, top in self._scored_tokens(whole, options.logprobs or 0)
            ]
            scored.append(Row(**{**vars(row), "logprobs": tuple(logprobs)}))
        return scored

    @torch.no_grad()
    def _scored_tokens(self, request: Request, num_top: int) -> Iterator[tuple[int, float, dict[int, float]]]:
        read = [tuple(ids + request.continuation_ids[:-1] for ids in request.role_ids)]
        base, prompts = role_prompts(read, self.pad_token_id, self.model.device)
        keep = len(request.continuation_ids)
        outputs = self.model(base.input_ids, role_prompts=prompts, logits_to_keep=keep, alpha=list(request.alphas))
        table = outputs.logits[0].log_softmax(-1)
        for token_id, line in zip(request.continuation_ids, table, strict=True):
            values, ids = line.topk(min(num_top, line.shape[-1]))
            yield token_id, float(line[token_id]), dict(zip(ids.tolist(), values.tolist(), strict=True))


def _mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return a mask for generate, which would otherwise guess one from the ids that equal the pad token."""
    return torch.ones_like(input_ids) if attention_mask is None else attention_mask


def _logprobs(recorder: LogprobRecorder | None, row: int, ids: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
    if recorder is None:
        return None
    found = []
    for step, token_id in enumerate(ids):
        top: dict[int, float] = {}
        if recorder.num_top:
            top = dict(zip(recorder.top_ids[step][row].tolist(), recorder.top_values[step][row].tolist(), strict=True))
        found.append(TokenLogprob(token_id=token_id, logprob=float(recorder.chosen[step][row]), top=top))
    return tuple(found)
