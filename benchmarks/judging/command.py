"""Judge the open answers of a run: whether they are true, and whether they inform.

A judge is a local model (run by proxytune itself), or any model behind an OpenAI-compatible server.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from benchmarks.columns import alone
from benchmarks.judging.judge import QUESTIONS, Judge, LocalJudge
from benchmarks.judging.judgements import judge_missing, judged_rows
from benchmarks.judging.server import ServerJudge
from benchmarks.registry import TASKS
from benchmarks.run import RunFolder
from benchmarks.tables import table
from proxytune.cli.role_arguments import add_role_arguments
from proxytune.cli.stderr import is_watched
from proxytune.errors import OptionError

EXAMPLE = """\
  python -m benchmarks judge runs/truthfulqa-13b --truth-judge allenai/truthfulqa-truth-judge-llama2-7B \\
      --info-judge allenai/truthfulqa-info-judge-llama2-7B"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("run_folder", metavar="RUN", help="the folder of a complete run with open answers")
    for name in QUESTIONS:
        command.add_argument(f"--{name}-judge", metavar="MODEL", help=f"judge of {name}: a hub id or folder, or a name")
    server = command.add_argument_group("server", "with --judge-url the judges are names that a server knows")
    server.add_argument("--judge-url", metavar="URL", help="as in http://localhost:8000/v1")
    server.add_argument("--judge-api", choices=("completions", "chat"), default="completions", help="(completions)")
    server.add_argument("--judge-key-env", metavar="NAME", help="environment variable that holds the server's key")
    server.add_argument("--max-attempts", type=int, default=4, metavar="N", help="tries per answer, then missing (4)")
    command.add_argument("--retry-missing", action="store_true", help="ask again where a judge failed before")
    command.add_argument("--batch-size", type=int, default=8, metavar="N", help="answers at a time (8)")
    command.add_argument("--progress", action=argparse.BooleanOptionalAction, help="a bar on stderr")
    add_role_arguments(command, has_model=False, has_formats=False)


def run(args: argparse.Namespace) -> int:
    """Judge what is missing, make the figures anew, and print them."""
    folder = RunFolder.at(Path(args.run_folder).expanduser())
    names = [name for name in QUESTIONS if getattr(args, f"{name}_judge")]
    if not names:
        raise OptionError("no judge was named: pass --truth-judge, --info-judge, or both.")
    has_progress = is_watched() if args.progress is None else args.progress
    with ExitStack() as stack:
        judges = {name: _judge(args, getattr(args, f"{name}_judge")) for name in names}
        for judge in judges.values():
            stack.callback(judge.close)
        judge_missing(folder, judges, is_retried=args.retry_missing, has_progress=has_progress)
    task = import_module(TASKS[folder.configuration.task].module)
    sys.stdout.write(table(folder.measure(task.MEASURES, judged_rows(folder))))
    return 0


def _judge(args: argparse.Namespace, model: str) -> Judge:
    if not args.judge_url:
        return LocalJudge(alone(args, model), batch_size=args.batch_size)
    return ServerJudge(
        url=args.judge_url,
        model=model,
        api=args.judge_api,
        key=os.environ.get(args.judge_key_env) if args.judge_key_env else None,
        batch_size=args.batch_size,
        max_attempts=args.max_attempts,
    )
