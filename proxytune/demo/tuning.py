"""Tuning a folder's model with NEFTune on the world's questions, as a process of its own: `python -m neft train`."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from proxytune.demo.text import Question, questions_about
from proxytune.demo.world import World
from proxytune.errors import InputError, ProxyTuneError

_QUESTIONS_SEED = 17


@dataclass(frozen=True, kw_only=True)
class TuningPlan:
    """Settings of a model's tuning; `noise_alpha` is NEFTune's α, small because noise hits a narrow model harder."""

    learning_rate: float
    noise_alpha: float
    max_steps: int
    batch_size: int = 32
    eval_every: int = 10
    patience: int = 3


def tuning_questions(world: World) -> tuple[list[Question], list[Question]]:
    """The questions tuning learns from, and those of other people that decide when it stops."""
    learned = questions_about(world.facts_of(world.tuning), seed=_QUESTIONS_SEED)
    stopping = questions_about(world.facts_of(world.stopping), seed=_QUESTIONS_SEED + 1)
    return learned, stopping


def tune(source: Path, output: Path, world: World, plan: TuningPlan, *, seed: int, progress: TextIO) -> None:
    """Tune the model in `source` into the model folder `output`, with a held-out stop; neft reports to `progress`.

    Raises:
        InputError: if `output` already exists.
        ProxyTuneError: if the tuning process fails; the message ends with its last words.
    """
    if output.exists():
        raise InputError(f"{output} already exists: choose a folder that does not")
    learned, stopping = tuning_questions(world)
    with tempfile.TemporaryDirectory(prefix="proxytune-demo-") as folder:
        data, held_out = Path(folder, "tuning.jsonl"), Path(folder, "stopping.jsonl")
        _write_rows(data, learned)
        _write_rows(held_out, stopping)
        _run_neft(_command(source, data, held_out, output, plan, seed), progress)


def copy_model(source: Path, output: Path) -> None:
    """Copy a model folder's weights, config and tokenizer, and nothing else (no logs)."""
    output.mkdir(parents=True)
    names = (
        "config.json",
        "generation_config.json",
        "tokenizer*.json",
        "special_tokens_map.json",
        "*.safetensors",
        "*.safetensors.index.json",
    )
    for pattern in names:
        for path in sorted(source.glob(pattern)):
            shutil.copy2(path, output / path.name)


def _write_rows(path: Path, questions: Sequence[Question]) -> None:
    lines = [json.dumps(question.row(), ensure_ascii=False) for question in questions]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _command(source: Path, data: Path, held_out: Path, output: Path, plan: TuningPlan, seed: int) -> list[str]:
    options = {
        "--model": source,
        "--data": data,
        "--eval-data": held_out,
        "--output": output,
        "--alpha": plan.noise_alpha,
        "--learning-rate": plan.learning_rate,
        "--max-steps": plan.max_steps,
        "--batch-size": plan.batch_size,
        "--eval-every": plan.eval_every,
        "--early-stopping-patience": plan.patience,
        "--log-every": plan.eval_every,
        "--seed": seed,
    }
    return [sys.executable, "-m", "neft", "train", *(str(part) for option in options.items() for part in option)]


def _run_neft(command: Sequence[str], progress: TextIO) -> None:
    last_words = "no message"
    # One thread: models this narrow gain little from more, busy cores stall it less, and the weights are the same.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as process,
        # newline="" keeps the carriage returns that redraw neft's progress bar.
        io.TextIOWrapper(process.stderr or io.BytesIO(), encoding="utf-8", errors="replace", newline="") as messages,
    ):
        for line in messages:
            progress.write(line)
            progress.flush()
            last_words = line.strip() or last_words
    if process.returncode:
        raise ProxyTuneError(f"tuning the expert failed (exit {process.returncode}): {last_words}")
