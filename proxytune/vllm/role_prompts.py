"""Prompts that differ between roles, for an engine whose requests have one token sequence each.

All prompts of a request end at the same token, so its sequence is as long as the longest. A role whose prompt is `d`
tokens shorter skips the first `d`; of every later token its position, its slot in the request's KV blocks and its
number of keys are `d` smaller. The role's own ids travel in the request's `extra_args`.

A role therefore writes the KV of a token up to `d` slots before the token's own, perhaps into a block that vLLM took
for full: such blocks must not be shared with other requests, see `private`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from proxytune.errors import OptionError
from proxytune.vllm.plan import Plan

_KEY = "proxytune_prompt_"  # and the index of a role in the plan; flat lists, as HTTP's vllm_xargs takes no others


@dataclass(frozen=True, eq=False)
class RolePrompts:
    """The prompt of each role of a request, in the plan's order, base first."""

    role_ids: tuple[Sequence[int], ...]

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> "RolePrompts | None":
        """Return what `arguments` made; None for a request whose roles read the sequence itself.

        Raises:
            OptionError: A role has no prompt, or one that holds no token ids.
        """
        given = {name: ids for name, ids in (extra_args or {}).items() if name.startswith(_KEY)}
        if not given:
            return None
        role_ids = tuple(given.get(f"{_KEY}{index}") for index in range(len(given)))
        for ids in role_ids:
            if not isinstance(ids, Sequence) or not ids or not all(type(index) is int and index >= 0 for index in ids):
                raise OptionError(
                    f"{_KEY}… are {sorted(given)} and not one list of token ids per role: leave them out."
                )
        return cls(role_ids)  # type: ignore[arg-type]  # none is None here

    @property
    def length(self) -> int:
        """Number of tokens of the longest."""
        return max(len(ids) for ids in self.role_ids)

    @property
    def are_equal(self) -> bool:
        """True if all roles read the same ids."""
        return all(list(ids) == list(self.role_ids[0]) for ids in self.role_ids)

    def fits(self, plan: Plan, token_ids: Sequence[int]) -> bool:
        """Return whether a composite has as many roles, and these prompts the sequence `token_ids`."""
        return len(self.role_ids) == len(plan.roles) and list(token_ids) == self.sequence()

    def shift(self, role_index: int) -> int:
        """Return how many tokens of the sequence a role skips."""
        return self.length - len(self.role_ids[role_index])

    def arguments(self) -> dict[str, Any]:
        """Return what a request carries in its `extra_args`; nothing where all roles read the same ids."""
        return {} if self.are_equal else {f"{_KEY}{index}": list(ids) for index, ids in enumerate(self.role_ids)}

    def sequence(self) -> list[int]:
        """Return the token sequence: the base's ids behind copies of its first, which change no repetition penalty."""
        base = list(self.role_ids[0])
        return base[:1] * self.shift(0) + base


def has_arguments(extra_args: Mapping[str, Any]) -> bool:
    """Return whether a request already carries what only the runtime may add."""
    return any(name.startswith(_KEY) for name in extra_args)


def private(sampling_params: Any) -> str:
    """Keep a request's KV blocks from others, now and after it; return the cache salt it has to be given."""
    # Sequences of one `n` share their salt, so that the salt alone does not keep them apart.
    sampling_params.skip_reading_prefix_cache = True
    return uuid4().hex


@dataclass(frozen=True, eq=False)
class RoleStep:
    """One role's part of an engine step of T tokens and B requests: its tokens in front, then those it skips.

    Attributes:
        order: `[T]`, the index of each of its tokens in the step.
        num_tokens: Number of tokens that it reads.
        positions: `[T]`, its own; 0 where it reads none.
        token_ids: `[T]`, ids of its prompt; −1 where it reads the step's token.
        requests: `[T]`, the row of each token's request.
        starts: `[B + 1]`, the first token of each request and the number of tokens.
        lengths: `[B]`, its number of keys per request after the step.
    """

    order: Tensor
    num_tokens: int
    positions: Tensor
    token_ids: Tensor
    requests: Tensor
    starts: Tensor
    lengths: Tensor

    @classmethod
    def of(
        cls,
        prompts: Sequence[RolePrompts | None],
        role_index: int,
        starts: Tensor,
        lengths: Tensor,
        num_tokens: int,
    ) -> "RoleStep | None":
        """Return a role's part of a step, on the CPU; None where it is the step as it is.

        Args:
            prompts: One entry per request, B of them.
            role_index: Of the role.
            starts: `[B + 1]`, of the step, on the CPU.
            lengths: `[B]`, number of tokens of each request after the step, on the CPU.
            num_tokens: T; what exceeds `starts[-1]` is padding.
        """
        counts = starts.diff()
        computed = lengths - counts
        begun = computed.tolist()
        is_prompt = [prompt is not None and begun[row] < prompt.length for row, prompt in enumerate(prompts)]
        shifts = torch.tensor([0 if prompt is None else prompt.shift(role_index) for prompt in prompts])
        if not shifts.any() and not any(is_prompt):
            return None
        requests = torch.repeat_interleave(torch.arange(len(prompts)), counts)
        tokens = torch.arange(len(requests))
        positions = tokens - starts[requests] + (computed - shifts)[requests]
        is_read = positions >= 0
        token_ids = torch.full_like(tokens, -1)
        for row, prompt in enumerate(prompts):
            if prompt is not None and is_prompt[row]:
                shift, start = int(shifts[row]), int(starts[row])
                first = max(begun[row], shift)
                end = max(first, min(int(lengths[row]), prompt.length))
                ids = list(prompt.role_ids[role_index][first - shift : end - shift])
                token_ids[start + first - begun[row] : start + end - begun[row]] = torch.tensor(ids, dtype=torch.long)
        # A token that is skipped may be one that the role does not know; 0 every role knows.
        token_ids[~is_read] = 0
        padding = torch.zeros(num_tokens - len(requests), dtype=torch.long)
        is_read = torch.cat([is_read, padding.bool()])
        order = torch.cat([is_read.nonzero()[:, 0], (~is_read).nonzero()[:, 0]])
        ends = (lengths - shifts).clamp(min=0)
        num_read = torch.minimum(counts, ends)
        return cls(
            order=order,
            num_tokens=int(num_read.sum()),
            positions=torch.cat([positions.clamp(min=0), padding])[order],
            token_ids=torch.cat([token_ids, padding])[order],
            requests=torch.cat([requests, padding])[order],
            starts=torch.cat([starts.new_zeros(1), num_read.cumsum(0)]).to(starts.dtype),
            lengths=ends.to(lengths.dtype),
        )

    def to(self, device: torch.device) -> "RoleStep":
        """Return it with its tensors on a device."""
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if name != "num_tokens"
        }
        return RoleStep(num_tokens=self.num_tokens, **moved)

    def slots(self, block_table: Tensor, block_size: int) -> Tensor:
        """Return the KV slot of each token `[T]`, −1 for those it skips; `block_table` `[B, blocks]`."""
        blocks = block_table[self.requests, self.positions // block_size].long()
        slots = blocks * block_size + self.positions % block_size
        slots[self.num_tokens :] = -1
        return slots

    def inputs(self, token_ids: Tensor | None, vocab_size: int) -> Tensor | None:
        """Return what the role, which knows `vocab_size` ids, reads `[T]` where the step's tokens are `[T]`."""
        if token_ids is None:  # a later stage of a pipeline
            return None
        ids = torch.where(self.token_ids < 0, token_ids[self.order], self.token_ids.to(token_ids.dtype))
        return ids.clamp(max=vocab_size - 1)  # one that a client made up must not end the engine

    def outputs(self, rows: Tensor) -> Tensor:
        """Return the role's rows `[T, D]` in the step's order, zeros for the tokens that it skips."""
        ordered = torch.zeros_like(rows)
        ordered[self.order[: self.num_tokens]] = rows[: self.num_tokens]
        return ordered
