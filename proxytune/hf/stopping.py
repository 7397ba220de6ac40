"""When a row ends, as transformers stopping criteria; each row on its own."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from proxytune.detokenize import cut_at_stop, decode


class StopFinder:
    """Finds stop texts in an answer as it grows.

    Only the last tokens are decoded: a stop text of n bytes lies in the last n tokens, since a token has at least one.
    """

    _SLACK = 4  # for a character cut in two where the window begins

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        """`stop`: the texts, at least one."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window = max(len(text.encode()) for text in stop) + self._SLACK

    def is_in(self, token_ids: Sequence[int], last_prompt_id: int, num_new: int = 1) -> bool:
        """Return whether the answer `token_ids` has a stop text that its last `num_new` tokens completed."""
        first = max(0, len(token_ids) - self._window - num_new + 1)
        before = token_ids[first - 1] if first else last_prompt_id
        return cut_at_stop(decode(self._tokenizer, token_ids[first:], before), self._stop)[1]


class StopTexts(StoppingCriteria):
    """Ends a row when a stop text appears in what it generated."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        """`prompt_length`: width of the base's prompts, whose text is not searched."""
        self._finder = StopFinder(tokenizer, stop)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which rows of `input_ids` `[B, T]` end here."""
        rows = input_ids[:, self._prompt_length - 1 :].tolist()
        ends = [self._finder.is_in(row[1:], row[0]) for row in rows]
        return torch.tensor(ends, dtype=torch.bool, device=input_ids.device)


class RowLimits(StoppingCriteria):
    """Ends each row at its own number of new tokens, where contexts end at different places."""

    def __init__(self, limits: Sequence[int], prompt_length: int, device: torch.device) -> None:
        """`limits`: most new tokens per row."""
        self._limits = torch.tensor(limits, device=device)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which rows of `input_ids` `[B, T]` have reached their limit."""
        limits = self._limits.repeat_interleave(input_ids.shape[0] // len(self._limits))
        return input_ids.shape[1] - self._prompt_length >= limits


class Cancelled(StoppingCriteria):
    """Ends every row once the consumer of a stream has gone."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return all rows, or none."""
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)
