"""McNemar's test of two columns on the same questions."""

from __future__ import annotations

import math

from proxytune.errors import InputError


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar's test: how often one column is right where the other is wrong.

    >>> mcnemar(1, 5)
    0.21875
    >>> mcnemar(3, 3)
    1.0

    Raises:
        InputError: A count is negative.
    """
    if min(only_first, only_second) < 0:
        raise InputError(f"the counts {only_first} and {only_second} must be 0 or more.")
    total = only_first + only_second
    tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail / 2**total))
