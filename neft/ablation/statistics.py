"""Means with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
_T_95 = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963),
    *(2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272),
)
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A mean with the half width of its 95 % confidence interval (None for a single value)."""

    mean: float
    half_width: float | None
    num_values: int

    def text(self, digits: int = 3) -> str:
        """Returns it for a table.

        >>> Interval(1.5, 0.25, 3).text(), Interval(1.5, None, 1).text()
        ('1.500 ± 0.250', '1.500')
        """
        mean = f"{self.mean:.{digits}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:.{digits}f}"


def t_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of at least one value and its 95 % t interval.

    It assumes that the values (one per seed) are about normal; with three of them it is wide, 4.3 standard errors.

    >>> t_interval([1.0, 2.0, 3.0]).text()  # 4.303 standard errors of 1 / √3
    '2.000 ± 2.484'
    """
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return Interval(mean, None, 1)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return Interval(mean, t_quantile_95(count - 1) * math.sqrt(variance / count), count)


def t_quantile_95(degrees: int) -> float:
    """Returns the t value with 2.5 % beyond it; above 30 degrees by the expansion around the normal's.

    Source: Abramowitz and Stegun 26.7.5, to its third term; its error is below 1e-5 there.
    """
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    x = _NORMAL_95
    terms: tuple[float, ...] = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
    )
    return math.fsum(term / float(degrees) ** power for power, term in enumerate(terms))
