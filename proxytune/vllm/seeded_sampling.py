"""Seeded sampling inside the engine, by the sampler of the hf runtime: equal seeds give equal text in both.

vLLM's own seeded sampling ends the engine on a CPU as soon as a prompt is read in two chunks ("CPU Generator does not
use offset"). So a sampled request is a greedy one to vLLM, of whose logits all but the drawn token's are −inf. Requests
that vLLM's own server or `LLM` made become such ones as they are validated, before they are split by their `n`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from proxytune.errors import OptionError
from proxytune.options import GenerationOptions
from proxytune.sampling import ExponentialNoise, draw, penalised, seen_ids, warped, warpers
from proxytune.vllm.marks import Marks
from proxytune.vllm.plan import Plan

DRAW_KEY = "proxytune_draw"

_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_COUNTING = ("presence_penalty", "frequency_penalty")  # vLLM's, which the hf runtime has not
_GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def draw_arguments(options: GenerationOptions, seed: int) -> dict[str, Any]:
    """Return what a sampled request carries in its `extra_args`; nothing for a greedy one."""
    if not options.is_sampled:
        return {}
    return {DRAW_KEY: {"seed": seed, **{name: getattr(options, name) for name in _NAMES}}}


class SeededSampling(LogitsProcessor):
    """Samples the next token of each request that asks for it by `draw_arguments`, from a generator of its own."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Start with an empty batch."""
        model_config = vllm_config.model_config
        self._vocab_size = int(Plan.of(model_config.hf_config).vocab_size or model_config.get_vocab_size())
        marks = Marks.of(model_config.hf_config)
        self._first_mark = None if marks is None else marks.first_id  # marks stay, above the drawn token
        self._device = device
        self._rows: dict[int, _Row] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Make a seeded request one of ours; raise OptionError for draw arguments that nothing here has made."""
        given = (sampling_params.extra_args or {}).get(DRAW_KEY)
        if given is None and sampling_params.seed is not None and sampling_params.temperature > 0:
            given = _take_over(sampling_params)
        if given is not None:
            _Settings.of(given, sampling_params.seed)

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
                settings, seed = _Settings.of(given, params.seed)
                noise = ExponentialNoise([seed], self._vocab_size, 1, self._device)
                self._rows[row] = _Row(settings, noise, prompt_ids or [], output_ids)
        for first, second, direction in batch_update.moved:
            leaving, staying = self._rows.pop(first, None), self._rows.pop(second, None)
            if leaving is not None:
                self._rows[second] = leaving
            if direction == MoveDirectionality.SWAP and staying is not None:
                self._rows[first] = staying

    def apply(self, logits: Tensor) -> Tensor:
        """Return logits `[B, V]` that allow only the sampled token in rows that are sampled."""
        groups: dict[tuple[float, ...], list[int]] = {}
        for index, row in self._rows.items():
            groups.setdefault(row.settings.key, []).append(index)
        for indices in groups.values():
            rows = torch.tensor(indices, device=logits.device)
            token_ids = _sampled(logits[rows, : self._vocab_size], [self._rows[index] for index in indices])
            logits[rows, : self._first_mark] = -torch.inf
            logits[rows, token_ids] = 0.0
        return logits


@dataclass(frozen=True, eq=False)
class _Settings:
    """Sampling settings of a row: options, and penalties of vLLM's; rows of equal `key` are sampled at once."""

    options: GenerationOptions
    presence_penalty: float
    frequency_penalty: float
    key: tuple[float, ...]

    @classmethod
    def of(cls, given: Any, request_seed: int | None) -> "tuple[_Settings, int]":
        """Return them and the seed, from what `draw_arguments` made, or `_take_over`, which leaves it to the request.

        Raises:
            OptionError: Neither made it.
        """
        names = {"seed", *_NAMES} if request_seed is None else {*_NAMES, *_COUNTING}
        if not isinstance(given, Mapping) or set(given) != names:
            raise OptionError(f"{DRAW_KEY} is {given!r}: leave it to the runtime, and pass seed and temperature.")
        seed = given["seed"] if request_seed is None else request_seed % 2**63
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise OptionError(f"seed is {seed!r}: pass a whole number from 0 to 2**63 - 1.")
        presence, frequency = (given.get(name, 0.0) for name in _COUNTING)
        options = GenerationOptions(**{name: given[name] for name in _NAMES})
        return cls(options, presence, frequency, (*(given[name] for name in _NAMES), presence, frequency)), seed


@dataclass(frozen=True, eq=False)
class _Row:
    """One request: its settings, noise, prompt, and the answer that vLLM appends to."""

    settings: _Settings
    noise: ExponentialNoise
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]


def _sampled(logits: Tensor, rows: Sequence[_Row]) -> Tensor:
    """Return the tokens `[B]` of rows with equal settings for logits `[B, V]`, without waiting for the device."""
    settings, vocab_size, device = rows[0].settings, logits.shape[-1], logits.device
    penalty = settings.options.repetition_penalty
    if penalty != 1.0:
        seen = seen_ids([[*row.prompt_ids, *row.output_ids] for row in rows], vocab_size, device)
        logits = penalised(logits, seen, penalty)
    if settings.presence_penalty or settings.frequency_penalty:
        counts = _counts([row.output_ids for row in rows], vocab_size, device)
        logits = logits - settings.frequency_penalty * counts - settings.presence_penalty * (counts > 0)
    for row in rows:
        # A prompt's chunks each end in a step whose token is thrown away; a preempted request begins again in between.
        row.noise.draw([len(row.output_ids) + 1])
    noise = torch.cat([row.noise.latest() for row in rows])
    return draw(warped(logits, warpers(settings.options)), noise)


def _counts(rows: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor:
    """Return how often each row holds each id that all roles share, `[B, V]`."""
    pairs = [(row, token_id) for row, ids in enumerate(rows) for token_id in ids if 0 <= token_id < vocab_size]
    index = torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
    counts = torch.zeros(len(rows), vocab_size, device=device)
    return counts.index_put_((index[:, 0], index[:, 1]), torch.ones(len(pairs), device=device), accumulate=True)


def _take_over(params: Any) -> dict[str, Any]:
    """Make a seeded request greedy to vLLM; return how it is drawn. The seed stays: vLLM counts it up over `n`."""
    given = {name: getattr(params, name) for name in (*_NAMES, *_COUNTING)}
    given["top_k"] = max(0, given["top_k"])  # vLLM's -1
    params.extra_args = {**(params.extra_args or {}), DRAW_KEY: given}
    for name, value in (_GREEDY | dict.fromkeys(_COUNTING, 0.0)).items():
        setattr(params, name, value)
    return given
