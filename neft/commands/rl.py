"""`neft rl`: an expert by reward (RLOO, GRPO) or by preference (DPO)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from neft.commands.reward import add_tuning_options
from neft.rl.options import Method, PolicyConfig

HELP = "tune a model by reward (rloo, grpo) or preference (dpo)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `PolicyConfig`."""
    group = parser.add_argument_group("files")
    group.add_argument("--method", required=True, choices=get_args(Method), help="rloo is the nearest to PPO")
    group.add_argument("--model", required=True, metavar="DIR", help="model or adapter folder, or hub id, to tune")
    group.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the expert")
    group.add_argument("--prompts", type=Path, metavar="FILE", help='rloo, grpo: rows {"prompt"}')
    group.add_argument("--reward", metavar="DIR", help="rloo, grpo: what `neft reward` wrote")
    group.add_argument("--data", type=Path, metavar="FILE", help='dpo: rows {"prompt", "chosen", "rejected"}')
    group.add_argument("--ref", metavar="DIR", help="model to stay near to (default: --model as it starts)")
    group = parser.add_argument_group("method")
    group.add_argument("--beta", type=float, metavar="F", help="KL penalty (default: 0.05; dpo: 0.1)")
    group.add_argument("--num-generations", type=int, metavar="N", help="completions per prompt (default: 4)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens of a completion (default: 128)")
    group.add_argument("--temperature", type=float, metavar="F", help="of the sampling (default: 1)")
    add_tuning_options(parser, learning_rate="1e-5", batch="completions (dpo: pairs)")


def run(options: dict[str, Any], *, is_quiet: bool) -> None:
    """Tunes the policy, and writes the result to standard output."""
    config = PolicyConfig(**options, show_progress=not is_quiet)
    # Here, so that --help and wrong options answer without waiting for torch.
    from transformers.utils import logging

    from neft.rl.policies import train_policy

    logging.disable_progress_bar()
    result = train_policy(config)
    if not is_quiet:
        sys.stdout.write(json.dumps(result.to_dict()) + "\n")
