"""Sampling inside transformers' generate, as logits processors.

A step goes: log-probabilities are noted, then `SamplerProcessor` samples a token per row and leaves it as the only one
allowed, so that `generate`'s own argmax returns it. Beam search compares sums of log-probabilities, so there only the
penalty applies.
"""

import time

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from proxytune.options import GenerationOptions
from proxytune.sampling import Sampler, penalised


class PromptAwareRepetitionPenalty(LogitsProcessor):
    """Repetition penalty over prompt and answer that never counts padding, for beams, which change rows.

    The one in transformers reads padded ids as text: where pad is the end-of-text token, a padded row would be kept
    from ending.
    """

    def __init__(self, penalty: float, attention_mask: Tensor | None) -> None:
        """Take the penalty and the prompts' mask `[B, T]` (None: no padding)."""
        self.penalty = penalty
        self.attention_mask = attention_mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[B, V]` with the seen tokens' divided (positive) or multiplied (negative) by the penalty."""
        seen = torch.zeros_like(scores, dtype=torch.bool)
        # The base's prompt may hold ids of its own behind the shared ones, which are never sampled.
        is_text = input_ids < scores.shape[-1]
        ids = input_ids.clamp(max=scores.shape[-1] - 1)
        if self.attention_mask is not None:
            # Beams repeat rows.
            mask = self.attention_mask.repeat_interleave(ids.shape[0] // self.attention_mask.shape[0], dim=0)
            is_text[:, : mask.shape[1]] &= mask.bool()
        seen.scatter_reduce_(1, ids, is_text, reduce="amax")
        return penalised(scores, seen, self.penalty)


class LogprobRecorder:
    """Log-probabilities of the tokens chosen at each step, and of the likeliest.

    Attributes:
        num_top: Number of likeliest tokens that are kept.
        chosen: `[B]` per step.
        top_values: `[B, num_top]` per step; empty where none are kept.
        top_ids: Likewise.
    """

    def __init__(self, num_top: int) -> None:
        """Start with no step."""
        self.num_top = num_top
        self.chosen: list[Tensor] = []
        self.top_values: list[Tensor] = []
        self.top_ids: list[Tensor] = []

    def record(self, logits: Tensor, token_ids: Tensor) -> None:
        """Keep of the log-probabilities of logits `[B, V]` those of `token_ids` `[B]` and of the likeliest."""
        table = logits.log_softmax(-1)
        self.chosen.append(table.gather(1, token_ids[:, None])[:, 0])
        if self.num_top:
            values, ids = table.topk(min(self.num_top, table.shape[-1]), dim=-1)
            self.top_values.append(values)
            self.top_ids.append(ids)


class SamplerProcessor(LogitsProcessor):
    """One step of a sampler over a batch whose rows have answers of equal length.

    Attributes:
        first_token_at: The time of the first step, None before it.
    """

    def __init__(self, sampler: Sampler, recorder: LogprobRecorder | None) -> None:
        """Take the sampler, and where log-probabilities go, if anywhere."""
        self.first_token_at: float | None = None
        self._sampler = sampler
        self._recorder = recorder
        self._length = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[B, V]` that allow only each row's sampled token."""
        self._sampler.prepare([self._length] * scores.shape[0], 1)
        positions = torch.full((scores.shape[0], 1), self._length, device=scores.device)
        token_ids = self._sampler.sample(scores[:, None], positions)
        self._sampler.update_seen(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
        self._length += 1
        if self._recorder is not None:
            self._recorder.record(scores, token_ids[:, 0])
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        return torch.full_like(scores, -torch.inf).scatter_(1, token_ids, 0.0)


def beam_processors(options: GenerationOptions, attention_mask: Tensor | None) -> LogitsProcessorList:
    """Return the processors of a batch of beams whose padded prompts have `attention_mask` `[B, T]`."""
    if options.repetition_penalty == 1.0:
        return LogitsProcessorList()
    return LogitsProcessorList([PromptAwareRepetitionPenalty(options.repetition_penalty, attention_mask)])
