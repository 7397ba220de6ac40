"""Strength over time: a schedule over the positions of an answer, and gates by what the roles say at a position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxytune.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

_SHAPES = ("first", "linear")
_GATES = ("entropy", "best", "disagreement")


@dataclass(frozen=True)
class Schedule:
    """A factor of every strength by a token's position in its answer, the first being 0.

    `first` is `start` before `num_tokens` and `end` from there on, `linear` goes from one to the other and stays.
    """

    shape: str
    num_tokens: int
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        are_finite = math.isfinite(self.start) and math.isfinite(self.end)
        if self.shape not in _SHAPES or self.num_tokens < 1 or not are_finite:
            raise OptionError(
                f"schedule is {str(self)!r}: it must be constant, first:TOKENS or linear:TOKENS, with a whole number "
                "above 0 and perhaps :START:END, as in linear:32:0:1."
            )

    @classmethod
    def of(cls, text: str) -> Schedule | None:
        """Return the schedule of a text; None for a constant strength.

        Raises:
            OptionError: It is none.

        >>> Schedule.of("linear:32:0:1")
        Schedule(shape='linear', num_tokens=32, start=0.0, end=1.0)
        """
        if text == "constant":
            return None
        shape, *numbers = text.split(":")
        try:
            count, *factors = map(float, numbers)
            if not count.is_integer() or len(factors) not in (0, 2):
                raise ValueError(text)
        except (ValueError, OverflowError):
            return cls(text, 0)
        return cls(shape, int(count), *factors)

    @property
    def ends_at(self) -> float:
        """Position from which nothing is steered any more; infinite where there is none."""
        return self.num_tokens if self.end == 0 else math.inf

    def at(self, strengths: Tensor, positions: Tensor) -> Tensor:
        """Return strengths `[B, P]` or `[1, P]` at `positions` `[B, T]` or `[1, T]`: `[B, T, P]`."""
        share = positions.float() / self.num_tokens
        share = share.clamp(0, 1) if self.shape == "linear" else (share >= 1).float()
        return strengths[:, None] * (self.start + (self.end - self.start) * share)[..., None]

    def __str__(self) -> str:
        if self.num_tokens < 1:
            return self.shape
        factors = "" if (self.start, self.end) == (1.0, 0.0) else f":{self.start:g}:{self.end:g}"
        return f"{self.shape}:{self.num_tokens}{factors}"


@dataclass(frozen=True)
class Gate:
    """Positions that are steered: every strength is 0 at the others.

    `entropy`: where the base's entropy is at least `bound` nats; `best`: where the base's largest probability is below
    `bound`; `disagreement`: per pair, where KL(expert ‖ anti) is at least `bound` nats.

    Source of the first two: "Nudging" (arXiv 2410.09300), where the small model takes over from an uncertain base;
    here it steers.
    """

    by: str
    bound: float

    def __post_init__(self) -> None:
        if self.by not in _GATES or not math.isfinite(self.bound):
            raise OptionError(
                f"gate is {self.by!r}: it must be entropy:NATS, best:PROBABILITY or disagreement:NATS, as in "
                "entropy:1.5."
            )

    @classmethod
    def of(cls, text: str) -> Gate:
        """Return the gate of a text.

        Raises:
            OptionError: It is none.
        """
        by, _, bound = text.partition(":")
        try:
            return cls(by, float(bound))
        except ValueError as error:
            if isinstance(error, OptionError):
                raise
            return cls(text, math.nan)

    def at(self, strengths: Tensor, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return strengths `[B, P]` or `[B, T, P]` behind the gate, for logits `[B, T, V]`: `[B, T, P]`."""
        import torch

        from proxytune.steering import kl_divergence

        strengths = strengths[:, None] if strengths.dim() == 2 else strengths
        if not pairs:
            return strengths
        if self.by == "disagreement":
            apart = [kl_divergence(expert, anti) for expert, anti in pairs]
            return strengths * (torch.stack(apart, dim=-1) >= self.bound)
        probs = base.float().softmax(-1)
        is_open = probs.amax(-1) < self.bound
        if self.by == "entropy":
            entropy: Tensor = torch.special.entr(probs)
            is_open = entropy.sum(-1) >= self.bound
        return strengths * is_open[..., None]

    def __str__(self) -> str:
        return f"{self.by}:{self.bound:g}"
