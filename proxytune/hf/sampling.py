"""Choosing the next token of each row, as transformers logits processors.

A step goes: log-probabilities are noted, the warpers of transformers run, `Chooser` takes or draws a token per row and
leaves it as the only one allowed, so that `generate`'s own argmax returns it. Each row draws from a generator of its
own: what else is in the batch changes nothing.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from proxytune.options import GenerationOptions

_MIN_TEMPERATURE = 1e-6


class PromptAwareRepetitionPenalty(LogitsProcessor):
    """Repetition penalty over prompt and answer, CTRL's rule (arXiv 1909.05858), that never counts padding.

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
        penalised = torch.where(scores > 0, scores / self.penalty, scores * self.penalty)
        return torch.where(seen, penalised, scores)


class LogprobRecorder(LogitsProcessor):
    """Keeps the raw log-probabilities of one step until the choice is made, then only what was asked for."""

    def __init__(self, num_top: int) -> None:
        """Keep the chosen token and the `num_top` likeliest per step."""
        self.num_top = num_top
        self.current: Tensor | None = None
        self.chosen: list[Tensor] = []
        self.top_values: list[Tensor] = []
        self.top_ids: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note the log-probabilities `[B, V]` and pass the scores on."""
        self.current = scores.log_softmax(-1)
        return scores

    def choose(self, token_ids: Tensor) -> None:
        """Store the step's log-probability of `token_ids` `[B]` and of the likeliest."""
        if self.current is None:
            return
        self.chosen.append(self.current.gather(1, token_ids[:, None])[:, 0])
        if self.num_top:
            values, ids = self.current.topk(min(self.num_top, self.current.shape[-1]), dim=-1)
            self.top_values.append(values)
            self.top_ids.append(ids)
        self.current = None


class Chooser(LogitsProcessor):
    """Takes the likeliest token of each row, or draws one by the row's own generator."""

    def __init__(self, generators: Sequence[torch.Generator] | None, recorder: LogprobRecorder | None) -> None:
        """`generators`: one per row to sample, None for greedy."""
        self.generators = generators
        self.recorder = recorder
        self.first_token_at: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[B, V]` that allow only each row's chosen token."""
        token_ids = scores.argmax(-1) if self.generators is None else self._draw(scores, self.generators)
        if self.recorder is not None:
            self.recorder.choose(token_ids)
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        return torch.full_like(scores, -torch.inf).scatter_(1, token_ids[:, None], 0.0)

    @staticmethod
    def _draw(scores: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw by the exponential race: argmax of p / e with e ~ Exp(1) is distributed as p, without a host sync."""
        race = torch.empty_like(scores)
        for row, generator in enumerate(generators):
            race[row].exponential_(generator=generator)
        return (scores.softmax(-1) / race).argmax(-1)


def row_generators(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """Return one seeded generator per row."""
    return [torch.Generator(device=device).manual_seed(seed) for seed in seeds]


def processors(
    options: GenerationOptions, seeds: Sequence[int], attention_mask: Tensor | None, device: torch.device
) -> tuple[LogitsProcessorList, Chooser | None, LogprobRecorder | None]:
    """Return the processors of one batch in order, and the two of them that hold results.

    Beam search compares sums of log-probabilities, so there nothing is chosen row by row.
    """
    chain = LogitsProcessorList()
    recorder = None
    if options.logprobs is not None and options.num_beams == 1:
        recorder = LogprobRecorder(options.logprobs)
        chain.append(recorder)
    if options.repetition_penalty != 1.0:
        chain.append(PromptAwareRepetitionPenalty(options.repetition_penalty, attention_mask))
    if options.num_beams > 1:
        return chain, None, None
    if options.is_sampled:
        chain.extend(warpers(options))
    chooser = Chooser(row_generators(seeds, device) if options.is_sampled else None, recorder)
    chain.append(chooser)
    return chain, chooser, recorder


def warpers(options: GenerationOptions) -> list[LogitsProcessor]:
    """Return transformers' warpers in its and vLLM's order: temperature, top-k, top-p, min-p."""
    found: list[LogitsProcessor] = []
    if options.temperature != 1.0:
        # Below the floor float32 overflows, and the likeliest token is drawn either way.
        found.append(TemperatureLogitsWarper(max(float(options.temperature), _MIN_TEMPERATURE)))
    if options.top_k:
        found.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        found.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        found.append(MinPLogitsWarper(options.min_p))
    return found
