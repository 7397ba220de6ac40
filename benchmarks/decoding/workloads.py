"""Workloads: prompt length, new tokens, rows at once; and the prompts that fill them."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from proxytune import ProxyTuneError

Prompts = Callable[[int, int], list[list[int]]]

_FORM = re.compile(r"(\d+)(?:-(\d+))?:(\d+)(?:-(\d+))?@(\d+)(?:x(\d+))?")


class WorkloadError(ProxyTuneError, ValueError):
    """A workload that cannot be read or filled."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Prompts as ids, the new tokens of each, and the rows that are decoded at once."""

    prompts: Sequence[Sequence[int]]
    counts: Sequence[int]
    batch: int

    @property
    def is_ragged(self) -> bool:
        """True if rows differ in length, of the prompt or of the answer."""
        return len({len(prompt) for prompt in self.prompts}) > 1 or len(set(self.counts)) > 1

    def first(self, count: int) -> "Requests":
        """Return the first `count` rows."""
        return Requests(prompts=self.prompts[:count], counts=self.counts[:count], batch=self.batch)

    def batches(self) -> list["Requests"]:
        """Return the rows in batches, in order."""
        starts = range(0, len(self.prompts), self.batch)
        return [
            Requests(
                prompts=self.prompts[start : start + self.batch],
                counts=self.counts[start : start + self.batch],
                batch=self.batch,
            )
            for start in starts
        ]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Lengths as `(least, most)`, rows at once, and rows in all."""

    prompt_tokens: tuple[int, int]
    new_tokens: tuple[int, int]
    batch: int
    num_rows: int

    @property
    def max_len(self) -> int:
        """Tokens of the longest row."""
        return self.prompt_tokens[1] + self.new_tokens[1]

    @property
    def label(self) -> str:
        """The form in which it is written on the command line."""
        lengths = ":".join(
            f"{least}" if least == most else f"{least}-{most}" for least, most in (self.prompt_tokens, self.new_tokens)
        )
        return f"{lengths}@{self.batch}" + ("" if self.num_rows == self.batch else f"x{self.num_rows}")

    def requests(self, prompts: Prompts, *, seed: int = 0) -> Requests:
        """Return the rows; lengths are drawn evenly between their bounds, row by row, from `seed`."""
        if self.prompt_tokens[0] == self.prompt_tokens[1]:
            rows = prompts(self.num_rows, self.prompt_tokens[0])
        else:
            lengths = random.Random(seed)
            rows = [prompts(row + 1, lengths.randint(*self.prompt_tokens))[row] for row in range(self.num_rows)]
        draw = random.Random(seed + 1)
        return Requests(prompts=rows, counts=[draw.randint(*self.new_tokens) for _ in rows], batch=self.batch)


def parse_workload(text: str) -> Workload:
    """Return a workload from `prompt:new@batch`; lengths may be ranges, and `x200` are the rows in all.

    >>> parse_workload("8-128:8-256@64x200")
    Workload(prompt_tokens=(8, 128), new_tokens=(8, 256), batch=64, num_rows=200)

    Raises:
        WorkloadError: It is written otherwise, a number is below 1, or a range runs backwards.
    """
    match = _FORM.fullmatch(text)
    numbers = [None if number is None else int(number) for number in match.groups()] if match else []
    if not numbers or any(number is not None and number < 1 for number in numbers):
        raise WorkloadError(f"workload {text!r} cannot be read: write prompt:new@batch, as in 64:64@8.")
    prompt, most_prompt, new, most_new, batch, num_rows = numbers
    workload = Workload(
        prompt_tokens=(prompt or 1, most_prompt or prompt or 1),
        new_tokens=(new or 1, most_new or new or 1),
        batch=batch or 1,
        num_rows=num_rows or batch or 1,
    )
    if any(least > most for least, most in (workload.prompt_tokens, workload.new_tokens)):
        raise WorkloadError(f"workload {text!r} has a range that runs backwards: write the smaller number first.")
    return workload


def natural_prompts(
    tokenizer: Any, questions: Sequence[str], answered: Sequence[str], *, count: int, length: int
) -> list[list[int]]:
    """Return prompts of exactly `length` ids; row i ends in the i-th question, `answered` texts go before it.

    Raises:
        WorkloadError: There is no text.
    """
    ends = [tokenizer(text).input_ids for text in questions]
    before = [tokenizer(text).input_ids for text in answered]
    if not any(ends) or not any(before):
        raise WorkloadError("there is no text to make prompts of: pass a file with questions, one per line.")
    rows = []
    for row in range(count):
        ids = list(ends[row % len(ends)])
        index = row
        while len(ids) < length:
            ids = before[index % len(before)] + ids
            index += 1
        rows.append(ids[-length:])
    return rows
