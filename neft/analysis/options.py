"""Options of an analysis with their defaults, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neft.config import TrainingConfig
from neft.errors import InputError

_READ = (
    *(
        "data",
        "eval_data",
        "eval_fraction",
        "format",
        "template",
        "chat_template",
        "columns",
        "text_column",
        "dataset_split",
        "loss_on",
    ),
    *("max_length", "overlong", "on_bad_row", "noise", "seed", "batch_size", "dtype"),
)


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """One analysis of several models on the same data; a wrong value raises `InputError`.

    Attributes:
        models: Model or adapter folders, or hub ids.
        data: The options that say how the data is read, batched and noised, as `neft.train` takes them; its `model`
            and `output` are not read.
        output: The folder for tables, plots and texts.
        max_rows: Rows of each set for losses and flips, drawn by the seed; all of them if None.
        num_texts: Rows of each set to generate for, drawn by the seed; 0 for none.
        max_new_tokens: Length at which an output is cut.
        repetition_penalty: 1 for plain greedy decoding; the paper's outputs had 1.2.
        flip_alphas: The strengths of the noise at inference; empty for none.
        has_plots: Draw the plots.
        overwrite: Write into a folder that holds something else.
        show_progress: Draw progress bars on stderr.
    """

    models: tuple[str, ...]
    data: TrainingConfig
    output: Path
    max_rows: int | None = 1000
    num_texts: int = 64
    max_new_tokens: int = 128
    repetition_penalty: float = 1.0
    flip_alphas: tuple[float, ...] = (5.0, 10.0, 15.0)
    has_plots: bool = True
    overwrite: bool = False
    show_progress: bool = True
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Checks every option and names the models."""
        if not self.models:
            raise InputError("no model is given; give at least one folder.")
        for name, limit in (("max_rows", 1), ("num_texts", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < limit:
                raise InputError(f"{name} is {value}; give at least {limit}.")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InputError(f"repetition_penalty is {self.repetition_penalty}; give more than 0 (1 for none).")
        wrong = [alpha for alpha in self.flip_alphas if not (math.isfinite(alpha) and alpha >= 0)]
        if wrong:
            raise InputError(f"flip_alphas has {wrong[0]}; give finite numbers, at least 0.")
        object.__setattr__(self, "names", _names(self.models))

    def record(self) -> dict[str, Any]:
        """Returns the options that decide a model's figures, as JSON values."""
        data = self.data.record()
        return {
            "data": {name: data[name] for name in _READ},
            "max_rows": self.max_rows,
            "num_texts": self.num_texts,
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "flip_alphas": list(self.flip_alphas),
        }


def _names(models: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a short name per model: the last part of its path, numbered where two are the same.

    >>> _names(("runs/a/", "runs/b", "other/a"))
    ('a', 'b', 'a-2')
    """
    names: list[str] = []
    for model in models:
        short = Path(model).resolve().name if Path(model).is_dir() else Path(model).name
        name, number = short, 1
        while name in names:
            number += 1
            name = f"{short}-{number}"
        names.append(name)
    return tuple(names)
