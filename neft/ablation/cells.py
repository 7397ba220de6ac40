"""One cell of a grid: trained, measured, and not run again once it is finished."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neft.ablation.grid import Cell
from neft.analysis.diversity import text_statistics
from neft.analysis.files import read_json, write_json
from neft.analysis.generating import greedy_outputs, prompts_of
from neft.analysis.losses import document_losses, mean_loss
from neft.analysis.sources import Subject, load_subject, model_identity, sample
from neft.config import TrainingConfig
from neft.errors import DivergenceError, OutputError
from neft.output import read_record
from neft.recording import identity_of
from neft.training import train

CELL_FILE = "cell.json"
_MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Measurements of each tuned model beside its losses.

    Attributes:
        num_texts: Held-out prompts (of the training rows if none are held out) to answer, for lengths; 0 for none.
        max_new_tokens: Length at which an answer is cut.
        repetition_penalty: Of the greedy decoding.
    """

    num_texts: int = 0
    max_new_tokens: int = 128
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class CellResult:
    """A finished cell.

    Attributes:
        cell: The cell.
        metrics: By name; empty if the run diverged.
        failure: Why there are none.
        is_reused: True if it was already finished.
    """

    cell: Cell
    metrics: dict[str, float]
    failure: str | None = None
    is_reused: bool = False


def run_cell(
    cell: Cell, base: TrainingConfig, folder: Path, *, measuring: Measuring, keeps_model: bool = True
) -> CellResult:
    """Trains and measures a cell in its folder, or reads what an earlier run of the same found.

    A run whose loss is no longer finite is a result too: it does not end the grid.

    Raises:
        InputError: the options, the model or the data cannot be used.
        OutputError: the folder holds a cell of other options, and the base has no `overwrite`.
    """
    config = cell.config(base, folder / _MODEL)
    identity = {"run": identity_of(config), "model": model_identity(config.model), "measuring": asdict(measuring)}
    earlier = read_json(folder / CELL_FILE)
    if isinstance(earlier, dict) and earlier.get("identity") == identity:
        return CellResult(cell, earlier["metrics"], earlier["failure"], is_reused=True)
    if earlier is not None and not base.overwrite:
        raise OutputError(
            f"{folder} holds a cell of other options, model or data; choose another output or add --overwrite."
        )
    metrics: dict[str, float] = {}
    failure = None
    try:
        _train_once(config, identity["run"])
        metrics = _measure(load_subject(config, tuned=config.output), config, measuring)
        _require_finite(metrics)
    except DivergenceError as error:
        metrics, failure = {}, str(error)
    write_json(folder / CELL_FILE, {"identity": identity, "metrics": metrics, "failure": failure})
    if not keeps_model:
        shutil.rmtree(config.output, ignore_errors=True)
    return CellResult(cell, metrics, failure)


def _train_once(config: TrainingConfig, identity: dict[str, Any]) -> None:
    """Trains unless the folder holds the result of this very run: the one before may have ended while measuring."""
    record = read_record(config.output)
    if any(record.get(key) != value for key, value in identity.items()):
        train(config)


def _require_finite(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise DivergenceError(f"{name} of the tuned model is {value}; lower learning_rate or alpha.")


def _measure(subject: Subject, config: TrainingConfig, measuring: Measuring) -> dict[str, float]:
    """Returns the noise-free losses of a tuned model, and the lengths of what it writes if they are wanted."""
    parts = {"train_loss": subject.train, "eval_loss": subject.held_out}
    metrics = {
        name: mean_loss(
            document_losses(subject.model, part.data.examples, subject.collator, batch_size=config.batch_size)
        )
        for name, part in parts.items()
        if part is not None
    }
    if not measuring.num_texts:
        return metrics
    documents = (subject.held_out or subject.train).documents
    every = prompts_of(documents, subject.tokenizer, max_prompt_tokens=subject.max_length)
    # Not by the run's seed: every cell answers the same prompts.
    prompts = sample(every, measuring.num_texts, seed=0)
    if not prompts:
        return metrics
    outputs = greedy_outputs(
        subject.model,
        subject.tokenizer,
        prompts,
        max_new_tokens=measuring.max_new_tokens,
        batch_size=config.batch_size,
        repetition_penalty=measuring.repetition_penalty,
    )
    statistics = text_statistics([output.text for output in outputs])
    return metrics | {"num_chars": statistics.num_chars, "num_words": statistics.num_words}
