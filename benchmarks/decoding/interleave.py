"""Taking turns: variants run one after the other in every round, so that a busy minute touches all of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each run gave in each round; every second round goes backwards, so that no one always comes last.

    >>> order = []
    >>> _ = in_turns({name: (lambda name=name: order.append(name)) for name in "ab"}, 2)
    >>> "".join(order)
    'abba'
    """
    found: dict[str, list[T]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            found[name].append(runs[name]())
    return found


def median_ratio(values: Sequence[float], references: Sequence[float]) -> float:
    """Return the median over rounds of a value by the reference of the same round.

    >>> median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    3.0
    """
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))
