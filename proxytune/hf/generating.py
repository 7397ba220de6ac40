"""Transformers' own generate on the composite: for beams, and for roles that our loop is not proved for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from proxytune.completion import Request, TokenLogprob
from proxytune.hf.batching import role_prompts, strengths_of
from proxytune.hf.decoding.batch_state import GenerationOutputs
from proxytune.hf.finite import rows_named
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.hf.sampling import LogprobRecorder, SamplerProcessor, beam_processors
from proxytune.hf.stopping import Cancelled, RowLimits, StopTexts
from proxytune.hf.streaming import QueueStreamer
from proxytune.options import GenerationOptions
from proxytune.sampling import Sampler


@dataclass(frozen=True)
class GenerateDecoder:
    """Decodes batches of a composite with `generate`.

    Attributes:
        model: The composite.
        tokenizer: Reads stop texts.
        eos_token_ids: Ids that end a row.
        pad_token_id: Fills the left of short rows.
    """

    model: ProxyTunedForCausalLM
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    pad_token_id: int

    def decode(
        self,
        batch: Sequence[Request],
        options: GenerationOptions,
        *,
        streamer: QueueStreamer | None = None,
        cancelled: Cancelled | None = None,
    ) -> GenerationOutputs:
        """Return what every row gave: with beams `num_return_sequences` per request, else one."""
        device = self.model.device
        base, prompts = role_prompts([request.role_ids for request in batch], self.pad_token_id, device)
        prompt_length = base.input_ids.shape[1]
        limits = [request.max_new_tokens for request in batch]
        has_beams = options.num_beams > 1
        sampler, recorder = (None, None) if has_beams else self._sampler(batch, options)
        chain = beam_processors(options, base.attention_mask) if sampler is None else LogitsProcessorList([sampler])
        criteria = StoppingCriteriaList([RowLimits(limits, prompt_length, device)])
        if options.stop:
            criteria.append(StopTexts(self.tokenizer, options.stop, prompt_length))
        if cancelled is not None:
            criteria.append(cancelled)
        with rows_named(batch, options.num_beams):
            ids = self.model.generate(
                base.input_ids,
                attention_mask=_mask(base.input_ids, base.attention_mask),
                role_prompts=prompts,
                prompt_length=prompt_length,
                clamp_positions=True,
                alpha=strengths_of(batch).values,
                max_new_tokens=max(limits),
                do_sample=False,
                num_beams=options.num_beams,
                num_return_sequences=options.num_return_sequences if has_beams else 1,
                length_penalty=options.length_penalty if has_beams else None,
                eos_token_id=list(options.end_ids(self.eos_token_ids)) or None,
                pad_token_id=self.pad_token_id,
                logits_processor=chain,
                stopping_criteria=criteria,
                streamer=streamer,
            )
        sequences = ids[:, prompt_length:].tolist()
        logprobs = None if recorder is None else [_logprobs(recorder, row, ids) for row, ids in enumerate(sequences)]
        return GenerationOutputs(sequences, logprobs, None if sampler is None else sampler.first_token_at)

    def _sampler(
        self, batch: Sequence[Request], options: GenerationOptions
    ) -> tuple[SamplerProcessor, LogprobRecorder | None]:
        """Return what samples the tokens of a batch, and what records their log-probabilities where asked for."""
        sampler = Sampler(
            options,
            [request.seed for request in batch],
            [request.role_ids[0] for request in batch],
            vocab_size=int(self.model.config.vocab_size or 0),
            device=self.model.device,
        )
        recorder = None if options.logprobs is None else LogprobRecorder(options.logprobs)
        return SamplerProcessor(sampler, recorder), recorder

    @torch.no_grad()
    def scored_logprobs(self, request: Request, token_ids: Sequence[int], num_top: int) -> tuple[TokenLogprob, ...]:
        """Return the log-probabilities of a beam's tokens, from one teacher-forced pass."""
        return tuple(self._scored(request, list(token_ids), num_top))

    def _scored(self, request: Request, token_ids: list[int], num_top: int) -> Iterator[TokenLogprob]:
        read = [tuple([*ids, *token_ids[:-1]] for ids in request.role_ids)]
        base, prompts = role_prompts(read, self.pad_token_id, self.model.device)
        keep = len(token_ids)
        outputs = self.model(
            base.input_ids,
            role_prompts=prompts,
            logits_to_keep=keep,
            alpha=list(request.alphas),
            answer_position=keep - 1,
        )
        table = outputs.logits[0].log_softmax(-1)
        for token_id, line in zip(token_ids, table, strict=True):
            values, ids = line.topk(min(num_top, line.shape[-1]))
            top = dict(zip(ids.tolist(), values.tolist(), strict=True))
            yield TokenLogprob(token_id=token_id, logprob=float(line[token_id]), top=top)


def _mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return a mask for generate, which would otherwise guess one from the ids that equal the pad token."""
    return torch.ones_like(input_ids) if attention_mask is None else attention_mask


def _logprobs(recorder: LogprobRecorder, row: int, ids: Sequence[int]) -> list[TokenLogprob]:
    entries = []
    for step, token_id in enumerate(ids):
        top: dict[int, float] = {}
        if recorder.num_top:
            top = dict(zip(recorder.top_ids[step][row].tolist(), recorder.top_values[step][row].tolist(), strict=True))
        entries.append(TokenLogprob(token_id=token_id, logprob=float(recorder.chosen[step][row]), top=top))
    return entries
