"""Seeded sampling inside the engine, with the draws of the hf runtime: equal seeds give equal text in both.

vLLM's own seeded sampling ends the engine on a CPU as soon as a prompt is read in two chunks ("CPU Generator does not
use offset"). So a sampled request is a greedy one to vLLM, of whose logits all but the drawn token's are −inf. Requests
that vLLM's own server or `LLM` made become such ones as they are validated, before they are split by their `n`.
"""

from collections.abc import Iterable, Mapping, Sequence
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
_COUNTING = ("presence_penalty", "frequency_penalty")  # vLLM's, which the hf runtime has not
_GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


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
        """Make a seeded request one of ours; raise OptionError for draw arguments that nothing here has made."""
        given = (sampling_params.extra_args or {}).get(DRAW_KEY)
        if given is None and sampling_params.seed is not None and sampling_params.temperature > 0:
            given = _take_over(sampling_params)
        if given is not None:
            _Draw.of(given, sampling_params.seed)

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
                draw = _Draw.of(given, params.seed)
                self._rows[row] = _Draws(draw, self._device, prompt_ids or [], output_ids)
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


@dataclass(frozen=True)
class _Draw:
    """How one request is drawn: the hf runtime's options, vLLM's penalties, and the seed."""

    options: GenerationOptions
    presence_penalty: float
    frequency_penalty: float
    seed: int

    @classmethod
    def of(cls, given: Any, own_seed: int | None) -> "_Draw":
        """Return it from what `draw_arguments` made, or `_take_over`, which leaves the seed to the request.

        Raises:
            OptionError: Neither made it.
        """
        names = {"seed", *_NAMES} if own_seed is None else {*_NAMES, *_COUNTING}
        if not isinstance(given, Mapping) or set(given) != names:
            raise OptionError(f"{DRAW_KEY} is {given!r}: leave it to the runtime, and pass seed and temperature.")
        seed = given["seed"] if own_seed is None else own_seed % 2**63
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise OptionError(f"seed is {seed!r}: pass a whole number from 0 to 2**63 - 1.")
        penalties = {name: given.get(name, 0.0) for name in _COUNTING}
        return cls(options=GenerationOptions(**{name: given[name] for name in _NAMES}), seed=seed, **penalties)


@dataclass
class _Draws:
    """The draws of one request: one race per token of its answer, however often a step is run."""

    draw: _Draw
    device: torch.device
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]

    def __post_init__(self) -> None:
        self._generator = torch.Generator(device=self.device).manual_seed(self.draw.seed)
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
        """Return the logits after penalties, temperature, top-k, top-p and min-p, in this order."""
        scores = logits[None]
        options = self.draw.options
        if options.repetition_penalty != 1.0:
            seen = self._known({*self.prompt_ids, *self.output_ids})
            found = scores[:, seen]
            scores = scores.clone()
            scores[:, seen] = torch.where(
                found > 0, found / options.repetition_penalty, found * options.repetition_penalty
            )
        if self.draw.presence_penalty or self.draw.frequency_penalty:
            counts = torch.bincount(
                torch.tensor(self._known(self.output_ids), dtype=torch.long, device=scores.device),
                minlength=scores.shape[-1],
            )
            scores = scores - self.draw.frequency_penalty * counts - self.draw.presence_penalty * (counts > 0)
        for warper in _warpers(options):
            scores = warper(None, scores)
        return scores[0]

    def _known(self, token_ids: Iterable[int]) -> list[int]:
        """Return those of these ids that all roles share."""
        return [index for index in token_ids if 0 <= index < self._race.shape[-1]]


def _take_over(params: Any) -> dict[str, Any]:
    """Make a seeded request greedy to vLLM; return how it is drawn. The seed stays: vLLM counts it up over `n`."""
    found = {name: getattr(params, name) for name in (*_NAMES, *_COUNTING)}
    found["top_k"] = max(0, found["top_k"])  # vLLM's -1
    params.extra_args = {**(params.extra_args or {}), DRAW_KEY: found}
    for name, value in (_GREEDY | dict.fromkeys(_COUNTING, 0.0)).items():
        setattr(params, name, value)
    return found


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
