"""The order of a run: columns, in each its parts, in each its questions by chunks; and which chunks a shard takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxytune.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The `number`-th of `total` equal shares of a run, counted from 1."""

    number: int = 1
    total: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise OptionError(f"shard is {self.number}/{self.total}: write i/n with i from 1 to n, as in 2/4.")

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that `i/n` means.

        >>> Shard.parse("2/4")
        Shard(number=2, total=4)

        Raises:
            OptionError: It is not of that form.
        """
        number, _, total = text.partition("/")
        if not (number.isdecimal() and total.isdecimal()):
            raise OptionError(f"shard is {text!r}: write i/n with i from 1 to n, as in 2/4.")
        return cls(number=int(number), total=int(total))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Questions of one part that one column answers in one call."""

    column: str
    part: str
    indices: tuple[int, ...]

    @property
    def keys(self) -> list[tuple[str, str, int]]:
        """Column, part and index of each row."""
        return [(self.column, self.part, index) for index in self.indices]


def chunks_of(
    columns: Sequence[str], sizes: Mapping[str, int], chunk_size: int, shard: Shard | None = None
) -> list[Chunk]:
    """Return a run's chunks in their order; `sizes` has the number of questions of each part.

    A shard takes every n-th chunk whole, so that batches, and with them the last digits of log-probabilities, are
    those of the run that was not divided.
    """
    if chunk_size < 1:
        raise OptionError(f"chunk_size is {chunk_size}: it must be a whole number of at least 1.")
    shard = shard or Shard()
    chunks = [
        Chunk(column=column, part=part, indices=tuple(range(start, min(start + chunk_size, size))))
        for column in columns
        for part, size in sizes.items()
        for start in range(0, size, chunk_size)
    ]
    return chunks[shard.number - 1 :: shard.total]
