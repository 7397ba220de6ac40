"""The cells of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from neft.config import TrainingConfig
from neft.errors import InputError
from neft.kinds import NoiseKind

NO_NOISE = "none"


@dataclass(frozen=True)
class Cell:
    """One run: a strength, a distribution (None at strength 0, where all are the same) and a seed."""

    alpha: float
    noise: NoiseKind | None
    seed: int

    @property
    def name(self) -> str:
        """The cell's folder.

        >>> Cell(2.5, "gaussian", 0).name, Cell(0.0, None, 1).name
        ('alpha-2.5_gaussian_seed-0', 'alpha-0_none_seed-1')
        """
        return f"alpha-{self.alpha:g}_{self.noise or NO_NOISE}_seed-{self.seed}"

    def config(self, base: TrainingConfig, output: Path) -> TrainingConfig:
        """Returns the options of the run, which is the base's with this cell's noise and seed."""
        return replace(
            base,
            alpha=self.alpha,
            alpha_rel=None,
            noise=self.noise or "uniform",
            seed=self.seed,
            output=output,
            # An interrupted cell goes on where it stopped.
            resume=not base.overwrite,
            show_progress=False,
        )


def cells(alphas: Sequence[float], noises: Sequence[NoiseKind], num_seeds: int, *, first_seed: int = 0) -> list[Cell]:
    """Returns the grid, all seeds of a setting together; strength 0 is run once, not once per distribution.

    Raises:
        InputError: the grid is empty, or a value is impossible or given twice.

    >>> [cell.name for cell in cells([0.0, 5.0], ["uniform", "gaussian"], 1)]
    ['alpha-0_none_seed-0', 'alpha-5_uniform_seed-0', 'alpha-5_gaussian_seed-0']
    """
    _check(alphas, noises, num_seeds)
    seeds = range(first_seed, first_seed + num_seeds)
    settings = [(alpha, noise) for alpha in alphas for noise in (noises if alpha else [None])]
    return [Cell(alpha, noise, seed) for alpha, noise in settings for seed in seeds]


def _check(alphas: Sequence[float], noises: Sequence[str], num_seeds: int) -> None:
    for name, values in (("alphas", alphas), ("noise", noises)):
        if not values:
            raise InputError(f"{name} is empty; give at least one.")
        if len(set(values)) != len(values):
            raise InputError(f"{name} has a value twice: {', '.join(map(str, values))}.")
    wrong = [alpha for alpha in alphas if not (math.isfinite(alpha) and alpha >= 0)]
    if wrong:
        raise InputError(f"alphas has {wrong[0]}; give finite numbers, at least 0.")
    unknown = [noise for noise in noises if noise not in get_args(NoiseKind)]
    if unknown:
        raise InputError(f"noise has {unknown[0]!r}; choose from {', '.join(get_args(NoiseKind))}.")
    if num_seeds < 1:
        raise InputError(f"seeds is {num_seeds}; give at least 1 (3 or more for an interval worth its name).")
