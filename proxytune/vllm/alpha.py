"""α and prompts per request, known by row of the batch; α is spread over tokens, exact beside the hidden states."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from proxytune.errors import OptionError
from proxytune.strength import Schedule
from proxytune.vllm.plan import Plan, request_alphas
from proxytune.vllm.role_prompts import RolePrompts, RoleStep

COLUMNS_PER_ALPHA = 3  # three bfloat16 numbers hold the 24 bits of a float32

_OF_PAIRS = "AlphaRowsOf"

# Processor and model live in one worker process, made by one runner, and have nothing else in common.
_by_engine: dict[str, "AlphaRows"] = {}


@dataclass(frozen=True, eq=False)
class RoleInput:
    """A role's part of the running step on the device, and the KV slot of each of its tokens `[T]`."""

    step: RoleStep
    slots: Tensor


class AlphaRows(LogitsProcessor):
    """Follows which row of the batch has which α and prompts. It changes no logits: the composite reads it.

    Of composites with several pairs there is a class each, see `processor_name`.

    Attributes:
        role_inputs: By a role's index, for roles that do not read the running step as it is.
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
        num_rows = vllm_config.scheduler_config.max_num_seqs
        self._rows = torch.tensor([self._plan.alphas], dtype=torch.float32).repeat(num_rows, 1)
        self._prompt_lengths = torch.zeros(num_rows, dtype=torch.int64)
        # At one address for good, so that a CUDA graph reads what holds at its replay and not at its capture.
        self._device_rows = self._rows.to(device, copy=True)
        self._device_lengths = self._prompt_lengths.to(device, copy=True)
        self._is_pinned = is_pin_memory
        self._is_stale = False
        self._prompts: list[RolePrompts | None] = [None] * num_rows
        self._starts: Tensor | None = None
        self.role_inputs: dict[int, RoleInput] = {}
        _by_engine[vllm_config.instance_id] = self

    @staticmethod
    def of(vllm_config: Any) -> "AlphaRows | None":
        """Return the processor of an engine, None if it was started without."""
        return _by_engine.get(vllm_config.instance_id)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise OptionError (over HTTP: status 400) unless α is a finite number, or a list of one per pair."""
        request_alphas(sampling_params.extra_args, cls.num_pairs)
        RolePrompts.of(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """Return True: nothing is changed."""
        return True

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits as they are."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come and go, and rows that move (a row left empty keeps its α)."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._prompts[row] = None
        for row, params, prompt_ids, _ in batch_update.added:
            self._rows[row] = torch.tensor(self._plan.alphas_of(params.extra_args))
            self._prompt_lengths[row] = len(prompt_ids or ())
            prompts = RolePrompts.of(params.extra_args)
            # Prompts that a client made up do not fit the request's sequence, and must not end the engine.
            self._prompts[row] = prompts if prompts is None or prompts.fits(self._plan, prompt_ids or ()) else None
        for first, second, direction in batch_update.moved:
            is_swap = direction == MoveDirectionality.SWAP
            source = [second if is_swap else first, first]
            self._rows[[first, second]] = self._rows[source]
            self._prompt_lengths[[first, second]] = self._prompt_lengths[source]
            self._prompts[first], self._prompts[second] = (
                self._prompts[second] if is_swap else None,
                self._prompts[first],
            )
        self._is_stale = True

    def begin_step(self, starts: Tensor) -> None:
        """Take the first token of each request and the number of tokens of a step, `[B + 1]` on the device.

        Comes before a CUDA graph is replayed and outside of it. Never waits for the device: what is copied lies in
        memory that nothing writes to again, as rows may change while the copy is still to come.
        """
        self._starts = starts
        if self._is_stale:
            for held, rows in ((self._device_rows, self._rows), (self._device_lengths, self._prompt_lengths)):
                held.copy_(rows.pin_memory() if self._is_pinned else rows, non_blocking=True)
            self._is_stale = False

    def role_step(self, role_index: int, starts: Tensor, lengths: Tensor, num_tokens: int) -> RoleStep | None:
        """Return a role's part of a step; arguments and result as in `RoleStep.of`."""
        return RoleStep.of(self._prompts[: len(lengths)], role_index, starts, lengths, num_tokens)

    def per_token(self, positions: Tensor, schedule: Schedule | None = None, *, is_dummy: bool) -> Tensor:
        """Return α `[T, pairs]`, float32, of every token, by which the logits after it are combined.

        Args:
            positions: `[T]`, in the request's sequence.
            schedule: The rule's.
            is_dummy: The run has no requests; α is the configured one.
        """
        num_tokens = positions.shape[0]
        if is_dummy or self._starts is None:
            return self._rows.new_tensor([self._plan.alphas], device=self._device_rows.device).expand(num_tokens, -1)
        num_rows = self._starts.shape[0] - 1
        tokens = torch.arange(num_tokens, device=self._starts.device)
        # Padded tokens lie behind the last row and are read by nobody.
        row_of_token = torch.bucketize(tokens, self._starts[1:].to(tokens.dtype), right=True).clamp(max=num_rows - 1)
        alphas = self._device_rows[row_of_token]
        if schedule is None:
            return alphas
        answer_positions = (positions + 1 - self._device_lengths[row_of_token]).clamp(min=0)
        return schedule.at(alphas, answer_positions[:, None])[:, 0]


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
