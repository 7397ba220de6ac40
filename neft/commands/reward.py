"""`neft reward`: a reward model from answer pairs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from neft.kinds import DType, Schedule
from neft.rl.options import RewardConfig

HELP = "train a reward model on answer pairs"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `RewardConfig`."""
    group = parser.add_argument_group("files")
    group.add_argument("--model", required=True, metavar="DIR", help="model folder or hub id to start from")
    group.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help='pairs, rows {"prompt", "chosen", "rejected"}'
    )
    group.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the reward model")
    held_out = group.add_mutually_exclusive_group()
    held_out.add_argument("--eval-data", type=Path, metavar="FILE", help="held-out pairs")
    held_out.add_argument("--eval-fraction", type=float, metavar="F", help="share of the pairs to hold out")
    add_tuning_options(parser, learning_rate="2e-5", batch="pairs")


def run(options: dict[str, Any], *, is_quiet: bool) -> None:
    """Trains the reward model, and writes the result to standard output."""
    config = RewardConfig(**options, show_progress=not is_quiet)
    # Here, so that --help and wrong options answer without waiting for torch.
    from transformers.utils import logging

    from neft.rl.rewarding import train_reward

    logging.disable_progress_bar()
    result = train_reward(config)
    if not is_quiet:
        sys.stdout.write(json.dumps(result.to_dict()) + "\n")


def add_tuning_options(parser: argparse.ArgumentParser, *, learning_rate: str, batch: str) -> None:
    """Adds the options that `neft reward` and `neft rl` share (`TuningOptions`)."""
    group = parser.add_argument_group("optimization")
    group.add_argument("--epochs", type=float, metavar="F", help="passes over the data (default: 1)")
    group.add_argument("--max-steps", type=int, metavar="N", help="optimizer steps, instead of --epochs")
    group.add_argument("--learning-rate", type=float, metavar="F", help=f"peak rate (default: {learning_rate})")
    group.add_argument("--schedule", choices=get_args(Schedule), help="learning rate schedule (default: cosine)")
    group.add_argument("--warmup-ratio", type=float, metavar="F", help="share of the steps (default: 0.03)")
    group.add_argument("--max-grad-norm", type=float, metavar="F", help="gradient clipping (default: 1)")
    group.add_argument("--batch-size", type=int, metavar="N", help=f"{batch} per forward pass (default: 8)")
    group.add_argument("--gradient-accumulation", type=int, metavar="N", help="passes per step (default: 1)")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    group.add_argument("--max-length", type=int, metavar="N", help="window in tokens (default: 512 or the model's)")
    group.add_argument("--dtype", choices=get_args(DType), help="type of the weights (default: float32)")
    group.add_argument("--seed", type=int, metavar="N", help="of sampling, data order and adapter (default: 0)")
    group.add_argument("--log-every", type=int, metavar="N", help="steps between log lines (default: 1)")
    group = parser.add_argument_group("adapter")
    group.add_argument("--lora-r", type=int, metavar="N", help="train a LoRA adapter of this rank")
    group.add_argument("--lora-alpha", type=float, metavar="F", help="LoRA alpha (default: twice the rank)")
    group.add_argument("--lora-dropout", type=float, metavar="F", help="LoRA dropout (default: 0)")
    group.add_argument("--lora-targets", nargs="+", metavar="NAME", help="modules to adapt (default: all-linear)")
    parser.add_argument("--overwrite", action="store_true", help="replace an output folder that holds something else")
