"""`neft train`: a data file to a model folder or adapter."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from neft.config import TrainingConfig
from neft.kinds import DType, LossOn, MixedPrecision, NoiseKind, OnBadRow, Overlong, Quantization, Schedule
from neft.notices import is_first_process

HELP = "tune a model with noise on its input embeddings"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option of `TrainingConfig`."""
    _add_files(parser)
    _add_steering(parser)
    _add_noise(parser)
    _add_optimization(parser)
    _add_processes(parser)
    _add_evaluation(parser)
    _add_adapter(parser)


def words(text: str) -> tuple[str, ...]:
    """Returns the words of a comma-separated list.

    >>> words("uniform, gaussian")
    ('uniform', 'gaussian')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def run(options: dict[str, Any], *, is_quiet: bool) -> None:
    """Trains; one process of several writes the result to standard output."""
    config = TrainingConfig(**options, show_progress=not is_quiet)
    # Here, so that --help and wrong options answer without waiting for torch.
    from transformers.utils import logging

    from neft.training import train

    logging.disable_progress_bar()
    result = train(config)
    if not is_quiet and is_first_process():
        sys.stdout.write(json.dumps(result.to_dict()) + "\n")


def _add_files(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files")
    group.add_argument("--model", required=True, metavar="DIR", help="model folder or hub id to tune")
    group.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="FILE",
        help="training rows: json, jsonl, csv, tsv, txt (also .gz), parquet or a folder",
    )
    group.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the tuned model")
    group.add_argument("--format", metavar="NAME", help="data format (default: by the columns of the first row)")
    group.add_argument("--template", metavar="TEXT", help="how rows become text (default: the format's own)")
    group.add_argument("--chat-template", type=Path, metavar="FILE", help="Jinja file for the template chat")
    group.add_argument(
        "--columns", type=words, metavar="LIST", help="names in the file, as prompt=question,completion=answer"
    )
    group.add_argument("--text-column", metavar="NAME", help="column of the format text (default: text)")
    group.add_argument("--dataset-split", metavar="NAME", help="which split of a datasets folder to train on")
    group.add_argument("--loss-on", choices=get_args(LossOn), help="tokens to learn (default: completion)")
    group.add_argument("--packing", action="store_true", help="several documents in one window")
    group.add_argument("--max-length", type=int, metavar="N", help="window in tokens (default: 512 or the model's)")
    group.add_argument("--overlong", choices=get_args(Overlong), help="rows longer than the window (default: drop)")
    group.add_argument("--on-bad-row", choices=get_args(OnBadRow), help="rows that do not fit (default: error)")
    group.add_argument("--overwrite", action="store_true", help="replace an output folder that holds something else")
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint, if there is one")
    group.add_argument(
        "--save-every", type=int, metavar="N", help="steps between checkpoints in OUTPUT.partial (default: on Ctrl-C)"
    )
    group.add_argument("--keep-checkpoints", type=int, metavar="N", help="how many of them stay (default: 1)")


def _add_steering(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tuning against a base", "the loss is that of M + alpha * (M+ - M-)")
    group.add_argument("--base", metavar="DIR", help="M: the model to be steered, folder or hub id")
    group.add_argument("--anti", metavar="DIR", help="M- (default: --model before tuning)")
    group.add_argument("--steering-alpha", type=float, metavar="F", help="alpha of the sum (default: 1)")
    group.add_argument("--eval-with-base", action="store_true", help="only the held-out loss is steered")


def _add_noise(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("noise")
    strength = group.add_mutually_exclusive_group()
    strength.add_argument("--alpha", type=float, metavar="F", help="noise strength, 0 for none (default: 5)")
    strength.add_argument("--alpha-rel", type=float, metavar="F", help="noise-to-signal ratio, instead of --alpha")
    group.add_argument("--noise", choices=get_args(NoiseKind), help="noise distribution (default: uniform)")
    group.add_argument("--seed", type=int, metavar="N", help="of noise, data order and adapter (default: 0)")


def _add_optimization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--epochs", type=float, metavar="F", help="passes over the data (default: 3)")
    group.add_argument("--max-steps", type=int, metavar="N", help="optimizer steps, instead of --epochs")
    group.add_argument("--learning-rate", type=float, metavar="F", help="peak learning rate (default: 5e-5)")
    group.add_argument("--schedule", choices=get_args(Schedule), help="learning rate schedule (default: cosine)")
    group.add_argument("--warmup-ratio", type=float, metavar="F", help="share of the steps (default: 0.03)")
    group.add_argument("--weight-decay", type=float, metavar="F", help="AdamW weight decay (default: 0)")
    group.add_argument("--max-grad-norm", type=float, metavar="F", help="gradient clipping (default: 1)")
    group.add_argument("--batch-size", type=int, metavar="N", help="rows per forward pass (default: 8)")
    group.add_argument("--gradient-accumulation", type=int, metavar="N", help="passes per step (default: 1)")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    group.add_argument("--dtype", choices=get_args(DType), help="type of the weights (default: float32)")
    group.add_argument(
        "--mixed-precision", choices=get_args(MixedPrecision), help="type to compute in, where safe (default: no)"
    )
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "launch with torchrun or accelerate; the effective batch is batch size x accumulation x processes",
    )
    shard = group.add_mutually_exclusive_group()
    shard.add_argument(
        "--fsdp", type=Path, metavar="FILE", help="shard by FSDP2, with the fsdp_config of this JSON file"
    )
    shard.add_argument("--deepspeed", type=Path, metavar="FILE", help="a DeepSpeed configuration, as JSON")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("evaluation and log")
    held_out = group.add_mutually_exclusive_group()
    held_out.add_argument("--eval-data", type=Path, metavar="FILE", help="held-out rows")
    held_out.add_argument("--eval-fraction", type=float, metavar="F", help="share of the training rows to hold out")
    group.add_argument("--eval-every", type=int, metavar="N", help="steps between evaluations (default: each epoch)")
    group.add_argument(
        "--early-stopping-patience", type=int, metavar="N", help="stop after N worse evaluations, keep the best weights"
    )
    group.add_argument("--log-every", type=int, metavar="N", help="steps between log lines (default: 10)")
    group.add_argument("--tensorboard", type=Path, metavar="DIR", help="folder for TensorBoard's event files")


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("adapter")
    group.add_argument("--lora-r", type=int, metavar="N", help="train a LoRA adapter of this rank")
    group.add_argument("--lora-alpha", type=float, metavar="F", help="LoRA alpha (default: twice the rank)")
    group.add_argument("--lora-dropout", type=float, metavar="F", help="LoRA dropout (default: 0)")
    group.add_argument("--lora-targets", nargs="+", metavar="NAME", help="modules to adapt (default: all-linear)")
    group.add_argument("--lora-seed", type=int, metavar="N", help="of the adapter's first weights (default: --seed)")
    group.add_argument("--use-rslora", action="store_true", help="rank-stabilised scale, lora alpha / sqrt(rank)")
    group.add_argument("--use-dora", action="store_true", help="train magnitudes apart from directions (DoRA)")
    group.add_argument(
        "--quantize", choices=get_args(Quantization), help="hold the frozen weights in 4 bits (QLoRA) or 8"
    )
