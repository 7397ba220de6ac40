"""α per request: known by row of the batch, spread over tokens, carried exactly beside the hidden states."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from proxytune.errors import OptionError
from proxytune.strength import Schedule
from proxytune.vllm.plan import Plan, request_alphas

COLUMNS_PER_ALPHA = 3  # three bfloat16 numbers hold the 24 bits of a float32

_OF_PAIRS = "AlphaRowsOf"

# Processor and model live in one worker process, made by one runner, and have nothing else in common.
_by_engine: dict[str, "AlphaRows"] = {}


class AlphaRows(LogitsProcessor):
    """Follows which row of the batch asks for which α. It changes no logits: the composite reads it.

    Of composites with several pairs there is a class each, see `processor_name`.
    """

    num_pairs: ClassVar[int] = 1

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Start with the configured α in every row."""
        self._plan = Plan.of(vllm_config.model_config.hf_config)
        if len(self._plan.pairs) != self.num_pairs:
            raise OptionError(
                f"logits_processors name the class for {self.num_pairs} pair(s), and the composite has "
                f"{len(self._plan.pairs)}: take {processor_name(len(self._plan.pairs))!r}."
            )
        # Per row α, and the length of the prompt.
        self._rows = [(self._plan.alphas, 0)] * vllm_config.scheduler_config.max_num_seqs
        self._device = device
        _by_engine[vllm_config.instance_id] = self

    @staticmethod
    def of(vllm_config: Any) -> "AlphaRows | None":
        """Return the processor of an engine, None if it was started without."""
        return _by_engine.get(vllm_config.instance_id)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise OptionError (over HTTP: status 400) unless α is a finite number, or a list of one per pair."""
        request_alphas(sampling_params.extra_args, cls.num_pairs)

    def is_argmax_invariant(self) -> bool:
        """Return True: nothing is changed."""
        return True

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits as they are."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come, and rows that move (a row left empty keeps what it had)."""
        if batch_update is None:
            return
        for row, params, prompt_ids, _ in batch_update.added:
            self._rows[row] = self._plan.alphas_of(params.extra_args), len(prompt_ids or ())
        for first, second, direction in batch_update.moved:
            moved = self._rows[first]
            if direction == MoveDirectionality.SWAP:
                self._rows[first] = self._rows[second]
            self._rows[second] = moved

    def per_token(self, positions: Tensor, starts: Tensor | None, schedule: Schedule | None = None) -> Tensor:
        """Return α `[T, pairs]`, float32, of every token, by which the logits after it are combined.

        Args:
            positions: `[T]`, in prompt and answer.
            starts: `[B + 1]` as in `compat.query_starts`.
            schedule: The rule's.
        """
        num_tokens = positions.shape[0]
        if starts is None:
            return torch.tensor([self._plan.alphas], device=self._device).expand(num_tokens, -1)
        num_rows = starts.shape[0] - 1
        alphas, prompt_lengths = zip(*self._rows[:num_rows], strict=True)
        rows = torch.tensor(alphas, dtype=torch.float32, device=self._device)
        tokens = torch.arange(num_tokens, device=self._device)
        # Padded tokens lie behind the last row and are read by nobody.
        row_of_token = torch.bucketize(tokens, starts[1:].to(tokens.dtype), right=True).clamp(max=num_rows - 1)
        if schedule is None:
            return rows[row_of_token]
        lengths = torch.tensor(prompt_lengths, device=self._device)[row_of_token]
        answer_positions = (positions + 1 - lengths).clamp(min=0)
        return schedule.at(rows[row_of_token], answer_positions[:, None])[:, 0]


def processor_name(num_pairs: int) -> str:
    """Return the name under which vLLM loads the `AlphaRows` of a composite, in each of its processes.

    vLLM validates a request by the class alone, without a config, so the class has to know the number of pairs.
    """
    return f"{__name__}:{_OF_PAIRS}{num_pairs}"


def __getattr__(name: str) -> type[AlphaRows]:
    """Return the class that `processor_name` names."""
    number = name.removeprefix(_OF_PAIRS)
    if name == number or not number.isdecimal():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return type(name, (AlphaRows,), {"num_pairs": int(number), "__doc__": AlphaRows.__doc__})


def to_columns(alphas: Tensor, dtype: torch.dtype) -> Tensor:
    """Return α `[T, pairs]` float32 as `[T, 3 · pairs]` of another dtype, whose float32 sums are exact.

    >>> import torch
    >>> alphas = torch.tensor([[0.1, -1.7]])
    >>> torch.equal(from_columns(to_columns(alphas, torch.bfloat16)), alphas)
    True
    """
    parts = []
    rest = alphas
    for _ in range(COLUMNS_PER_ALPHA):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].float()
    return torch.stack(parts, dim=-1).flatten(1)


def from_columns(columns: Tensor) -> Tensor:
    """Return α `[T, pairs]`, float32, from `to_columns`."""
    return columns.float().reshape(columns.shape[0], -1, COLUMNS_PER_ALPHA).sum(-1)
