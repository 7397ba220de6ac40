"""AlpacaEval 2's length-controlled win rate, from the published weights of its regression.

Source: Dubois et al. 2024, "Length-Controlled AlpacaEval". The published regression predicts each instruction's
preference from the model's strength, the instruction's difficulty and the length difference; a length difference of
zero leaves logistic(strength + weight * difficulty), whose mean over the instructions is the rate. Fitting the weights
of a new model needs `df_gamed.csv`, which the package does not hold: here only models with published weights have a
rate.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoring.rows import read_text
from proxytune.errors import InputError

_STRENGTH, _DIFFICULTY = "not_gamed_baseline.astype(float)", "instruction_difficulty"


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    """Weights of one model in the published regression, its baseline being zero.

    Attributes:
        strength: The constant.
        difficulty: Weight of one unit of an instruction's difficulty.
    """

    strength: float
    difficulty: float


def predict(weights: ModelWeights, difficulties: Sequence[float]) -> list[float]:
    """Return the preference (0 to 1) for each instruction as if both outputs were equally long.

    >>> predict(ModelWeights(strength=0.0, difficulty=1.0), [0.0])
    [0.5]
    """
    return [_logistic(weights.strength + weights.difficulty * difficulty) for difficulty in difficulties]


def read_weights(path: Path) -> dict[str, ModelWeights]:
    """Return the weights by model, from the package's `baseline_gpt4_1106_preview.csv`.

    Raises:
        InputError: The file cannot be read or a cell is no number; the text names its line.
    """
    return {
        row[""]: ModelWeights(
            strength=_number(row, _STRENGTH, location), difficulty=_number(row, _DIFFICULTY, location)
        )
        for row, location in _csv_rows(path, ("", _STRENGTH, _DIFFICULTY))
    }


def read_difficulties(path: Path) -> list[float]:
    """Return the difficulty of each instruction in AlpacaEval's order, from `instruction_difficulty.csv`.

    Raises:
        InputError: The file cannot be read, a cell is no number, or the indices do not run from 0; it names the line.
    """
    difficulties: list[float] = []
    for row, location in _csv_rows(path, ("", _DIFFICULTY), first="index"):
        if row[""] != str(len(difficulties)):
            raise InputError(f"{location}: the index is {row['']!r}, not {len(difficulties)}.")
        difficulties.append(_number(row, _DIFFICULTY, location))
    return difficulties


def _csv_rows(path: Path, columns: Sequence[str], *, first: str = "") -> list[tuple[dict[str, str], str]]:
    """Return the rows of a CSV and their places; its first column, whose name may be `first`, is renamed to ''."""
    try:
        lines = list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    header = ["" if name == first else name for name in lines[0]] if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(
            f"{path}, line 1: there is no column {missing[0] or 'of names'!r}; there are {', '.join(header)}."
        )
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: has {len(cells)} cells, the header {len(header)}.")
        rows.append((dict(zip(header, cells, strict=True)), f"{path}, line {number}"))
    return rows


def _number(row: dict[str, str], column: str, location: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{location}: column {column!r} is {row[column]!r}, not a finite number.")
    return value


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(value))
