"""What is decoded: how many rows, of how many prompt tokens, to how many new ones, and the prompts themselves."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxytune import ProxyTuneError


class WorkloadError(ProxyTuneError, ValueError):
    """A workload that cannot be read or filled."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A batch of equal rows."""

    prompt_tokens: int
    new_tokens: int
    batch: int

    @property
    def label(self) -> str:
        """The form in which it is written on the command line."""
        return f"{self.prompt_tokens}:{self.new_tokens}@{self.batch}"


def parse_workload(text: str) -> Workload:
    """Return a workload from `prompt:new@batch`.

    >>> parse_workload("8:512@1")
    Workload(prompt_tokens=8, new_tokens=512, batch=1)

    Raises:
        WorkloadError: It is written otherwise, or a number is below 1.
    """
    numbers = text.replace("@", ":").split(":")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise WorkloadError(f"workload {text!r} cannot be read: write prompt:new@batch, 64:64@8 for instance.")
    prompt_tokens, new_tokens, batch = (int(number) for number in numbers)
    return Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch=batch)


def natural_prompts(
    tokenizer: Any, questions: Sequence[str], answered: Sequence[str], *, count: int, length: int
) -> list[list[int]]:
    """Return prompts of exactly `length` ids that end in a question, with answered questions before it.

    Args:
        tokenizer: Makes the ids.
        questions: Row i ends with the i-th, going round.
        answered: Texts to fill up with; row i begins its round at another place.
        count: Rows.
        length: Ids per row; what is too long loses its beginning.

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
        place = row
        while len(ids) < length:
            ids = before[place % len(before)] + ids
            place += 1
        rows.append(ids[-length:])
    return rows


@dataclass(frozen=True, kw_only=True)
class RaggedRequest:
    """One request of a ragged workload."""

    prompt: tuple[int, ...]
    new_tokens: int


def ragged_requests(
    count: int, *, prompt_tokens: tuple[int, int], new_tokens: tuple[int, int], vocab_size: int, seed: int
) -> list[RaggedRequest]:
    """Return requests whose lengths are drawn evenly between the two bounds, which are both reached at times."""
    draw = random.Random(seed)
    return [
        RaggedRequest(
            prompt=tuple(draw.randrange(4, vocab_size) for _ in range(draw.randint(*prompt_tokens))),
            new_tokens=draw.randint(*new_tokens),
        )
        for _ in range(count)
    ]
