"""A document as token ids and labels."""

from __future__ import annotations

from dataclasses import dataclass

IGNORED = -100
"""The label of a token without a loss."""


@dataclass(frozen=True, slots=True)
class Example:
    """One document as ids, with equally many labels (`IGNORED` where nothing is learned)."""

    input_ids: list[int]
    labels: list[int]
