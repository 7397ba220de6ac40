"""The command behind every task: columns of models, a run's folder, and its figures."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import plan
from benchmarks.columns import Column, Session, alphas, columns_of, has_roles, names
from benchmarks.judging.judgements import judged_rows
from benchmarks.provenance import session
from benchmarks.run import Chunk, Configuration, RunFolder, Shard
from benchmarks.tables import table
from benchmarks.tasks.task import Job, Part, Task
from proxytune.cli.role_arguments import ROLES, add_role_arguments
from proxytune.cli.stderr import is_watched, note
from proxytune.demo import trio_path
from proxytune.errors import OptionError

_ENGINE_CHUNK = 256


def add_arguments(command: argparse.ArgumentParser, task: Task) -> None:
    """Add the options of the task, of the run, and of the models."""
    task.add_arguments(command)
    run = command.add_argument_group("run")
    run.add_argument("--output", metavar="FOLDER", help="keep config, predictions and metrics here")
    run.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    run.add_argument("--shard", type=_shard, default=Shard(), metavar="I/N", help="do the I-th of N shares alone")
    run.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each part")
    run.add_argument("--batch-size", type=int, default=16, metavar="N", help="most rows in one batch (16)")
    run.add_argument("--chunk-size", type=int, metavar="N", help="questions stored at a time (the batch; 256 in vLLM)")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="of bootstrap intervals (0)")
    plan.add_arguments(run)
    run.add_argument("--progress", action=argparse.BooleanOptionalAction, help="a bar on stderr")
    columns = command.add_argument_group("columns")
    columns.add_argument(
        "--compare",
        type=names,
        metavar="NAMES",
        help="of base, expert, anti, steered, and NAME=MODEL for any other, with commas",
    )
    columns.add_argument("--tuned-prompt", metavar="FORMAT", help="how NAME=MODEL columns read prompts")
    add_role_arguments(command)
    for action in command._actions:
        if action.dest == "alpha":
            action.type, action.metavar, action.help = alphas, "NUMBERS", "one steered column per strength, with commas"


def run(args: argparse.Namespace, task: Task, name: str) -> int:
    """Do what is missing of the run, make its figures, and print them; everything is checked before models load."""
    if args.batch_size < 1:
        raise OptionError(f"batch_size is {args.batch_size}: it must be a whole number of at least 1.")
    if args.dry_run:
        sys.stdout.write(_dry_run(args, task, name))
        return 0
    if args.judge_url:
        raise OptionError("--judge-url is for --dry-run: answers are judged afterwards, by `bench judge` and others.")
    if args.output is None and (args.resume or args.shard != Shard()):
        raise OptionError("--resume and --shard need the run's folder: name it with --output.")
    with ExitStack() as stack:
        if args.output is None:
            args.output = stack.enter_context(tempfile.TemporaryDirectory(prefix="proxytune-bench-"))
        _take_bundled_trio(args)
        has_progress = is_watched() if args.progress is None else args.progress
        metrics = _run(args, task, name, has_progress=has_progress)
    sys.stdout.write(table(metrics))
    return 0


def _dry_run(args: argparse.Namespace, task: Task, name: str) -> str:
    """Return the plan of a run; nothing is written, and no weights need to be there."""
    _take_bundled_trio(args)
    if args.is_bundled:
        raise OptionError("--dry-run needs the models' names or folders: pass --base, --expert and --anti.")
    columns, parts, configuration = _prepared(args, task, name)
    if args.output is not None:
        RunFolder.check(Path(args.output).expanduser(), configuration, is_resumed=args.resume)
    return plan.plan(args, list(columns.values()), list(parts.values()), batch_size=args.batch_size)


def _prepared(
    args: argparse.Namespace, task: Task, name: str
) -> tuple[dict[str, Column], dict[str, Part], Configuration]:
    job = task.prepare(args)
    args.compare = list(job.columns) or args.compare
    columns = {column.name: column for column in columns_of(args, default=_default_columns(args))}
    parts = {part.name: part for part in job.parts}
    configuration = Configuration(
        task=name,
        settings=_settings(args, job, {key: column.describe() for key, column in columns.items()}),
        columns=list(columns),
        sizes={key: len(part) for key, part in parts.items()},
        chunk_size=_chunk_size(args),
        shard=args.shard,
        sessions=[session()],
    )
    return columns, parts, configuration


def _run(args: argparse.Namespace, task: Task, name: str, *, has_progress: bool) -> dict[str, Any]:
    columns, parts, configuration = _prepared(args, task, name)
    folder = RunFolder.open(Path(args.output).expanduser(), configuration, is_resumed=args.resume)
    with Session(args) as models:

        def predict(chunk: Chunk) -> Sequence[Mapping[str, Any]]:
            part = parts[chunk.part]
            answerer = models.answerer(columns[chunk.column], part.formats)
            return part.predict(answerer, chunk.indices)

        folder.predict_missing(predict, has_progress=has_progress)
    return folder.measure(task.MEASURES, judged_rows(folder))


def _settings(args: argparse.Namespace, job: Job, columns: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **job.settings,
        "models": dict(columns),
        "prompt_formats": {f"{role}_prompt": getattr(args, f"{role}_prompt") for role in (*ROLES, "tuned")},
        "tokenizer": args.tokenizer,
        "runtime": args.runtime,
        "engine_options": dict(args.engine_options or ()),
        "speculation": args.speculation,
        "draft": args.draft,
        "limit": args.limit,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _chunk_size(args: argparse.Namespace) -> int:
    if args.chunk_size is not None:
        return int(args.chunk_size)
    return int(args.batch_size) if args.runtime == "hf" else max(_ENGINE_CHUNK, args.batch_size)


def _take_bundled_trio(args: argparse.Namespace) -> None:
    """Name the bundled trio's roles where the user named no model at all."""
    is_about_roles = args.compare is None or any("=" not in name for name in args.compare)
    args.is_bundled = is_about_roles and not has_roles(args)
    if args.is_bundled:
        note("no roles were named: this is the tiny trio that comes with proxytune.")
        for role in ROLES:
            setattr(args, role, str(trio_path() / role))


def _default_columns(args: argparse.Namespace) -> list[str]:
    """Return what can be compared with the roles that were given."""
    if args.model or all(getattr(args, role) for role in ROLES):
        return ["base", "expert", "steered"]
    return [role for role in ROLES if getattr(args, role)]
