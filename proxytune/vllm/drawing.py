"""Seeded sampling inside the engine, with the draws of the hf runtime: equal seeds give equal text in both.

vLLM's own seeded sampling ends the engine on a CPU as soon as a prompt is read in two chunks ("CPU Generator does not
use offset"). So a sampled request is a greedy one to vLLM, of whose logits all but the drawn token's are −inf.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from proxytune.errors import OptionError
from proxytune.options import GenerationOptions
from proxytune.vllm.plan import Plan

DRAW_KEY = "proxytune_draw"

_MIN_TEMPERATURE = 1e-6
_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def draw_arguments(options: GenerationOptions, seed: int) -> dict[str, Any]:
    """Return what a sampled request carries in its `extra_args`; nothing for a greedy one."""
    if not options.is_sampled:
        return {}
    return {DRAW_KEY: {"seed": seed, **{name: getattr(options, name) for name in _NAMES}}}


class SeededDraws(LogitsProcessor):
    """Draws the next token of each request that asks for it by `draw_arguments`, from a generator of its own."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Start with an empty batch."""
        self._width = Plan.of(vllm_config.model_config.hf_config).vocab_size
        self._device = device
        self._rows: dict[int, _Draws] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise OptionError for draw arguments that `draw_arguments` cannot have made."""
        given = (sampling_params.extra_args or {}).get(DRAW_KEY)
        if given is not None:
            _checked(given)

    def is_argmax_invariant(self) -> bool:
        """Return False: the drawn token becomes the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come and go, and rows that move."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, prompt_ids, output_ids in batch_update.added:
            self._rows.pop(row, None)
            given = (params.extra_args or {}).get(DRAW_KEY)
            if given is not None:
                self._rows[row] = _Draws(*_checked(given), self._device, prompt_ids or [], output_ids)
        for first, second, direction in batch_update.moved:
            leaving, staying = self._rows.pop(first, None), self._rows.pop(second, None)
            if leaving is not None:
                self._rows[second] = leaving
            if direction == MoveDirectionality.SWAP and staying is not None:
                self._rows[first] = staying

    def apply(self, logits: Tensor) -> Tensor:
        """Return logits `[B, V]` that allow only the drawn token in rows that are sampled."""
        for row, draws in self._rows.items():
            token_id = draws.choose(logits[row, : self._width])
            logits[row] = -torch.inf
            logits[row, token_id] = 0.0
        return logits


@dataclass
class _Draws:
    """The draws of one request: one race per token of its answer, however often a step is run."""

    options: GenerationOptions
    seed: int
    device: torch.device
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]

    def __post_init__(self) -> None:
        self._generator = torch.Generator(device=self.device).manual_seed(self.seed)
        self._num_races = 0
        self._race = torch.empty(0)

    def choose(self, logits: Tensor) -> int:
        """Return the token drawn for logits `[V]`: argmax of p / e with e ~ Exp(1) is distributed as p."""
        # A prompt's chunks each end in a step whose token is thrown away; a preempted request begins again in between.
        while self._num_races <= len(self.output_ids):
            self._race = torch.empty_like(logits).exponential_(generator=self._generator)
            self._num_races += 1
        return int((self._warped(logits).softmax(-1) / self._race).argmax())

    def _warped(self, logits: Tensor) -> Tensor:
        """Return the logits after penalty, temperature, top-k, top-p and min-p, in this order."""
        scores = logits[None]
        options = self.options
        if options.repetition_penalty != 1.0:
            seen = [index for index in {*self.prompt_ids, *self.output_ids} if 0 <= index < scores.shape[-1]]
            found = scores[:, seen]
            scores = scores.clone()
            scores[:, seen] = torch.where(
                found > 0, found / options.repetition_penalty, found * options.repetition_penalty
            )
        for warper in _warpers(options):
            scores = warper(None, scores)
        return scores[0]


def _warpers(options: GenerationOptions) -> list[Any]:
    warpers: list[Any] = []
    if options.temperature != 1.0:
        # Below the floor float32 overflows, and the likeliest token is drawn either way.
        warpers.append(TemperatureLogitsWarper(max(float(options.temperature), _MIN_TEMPERATURE)))
    if options.top_k:
        warpers.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        warpers.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        warpers.append(MinPLogitsWarper(options.min_p))
    return warpers


def _checked(given: Any) -> tuple[GenerationOptions, int]:
    """Return options and seed from what `draw_arguments` made; raise OptionError for anything else."""
    if not isinstance(given, Mapping) or set(given) != {"seed", *_NAMES}:
        raise OptionError(f"{DRAW_KEY} is {given!r}: leave it to the runtime, and pass seed and temperature.")
    seed = given["seed"]
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise OptionError(f"seed is {seed!r}: pass a whole number from 0 to 2**63 - 1.")
    return GenerationOptions(**{name: given[name] for name in _NAMES}), seed
