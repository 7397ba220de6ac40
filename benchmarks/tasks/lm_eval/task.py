"""Tasks of lm-evaluation-harness: ARC, HellaSwag, MMLU, TruthfulQA, GSM8K and whatever else it has on texts.

Questions, prompts, examples and verdicts are the harness's own (0.4.13); with --data-dir the data of those five come
from files, else from the hub. Groups that count every question alike, as mmlu, are one line.
"""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.columns import names
from benchmarks.tasks.lm_eval.selection import HarnessMeasures, figures, select
from benchmarks.tasks.task import Job
from proxytune.errors import InputError, OptionError

HELP = "tasks of lm-evaluation-harness: MMLU, ARC, HellaSwag, TruthfulQA, GSM8K and others"
EXAMPLE = """\
  python -m benchmarks lm-eval --tasks arc_challenge,hellaswag,mmlu,truthfulqa_mc1,gsm8k --data-dir data \\
      --base meta-llama/Llama-2-13b-hf --expert meta-llama/Llama-2-7b-chat-hf --anti meta-llama/Llama-2-7b-hf \\
      --output runs/lm-eval-13b"""
MEASURES = HarnessMeasures()


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the task's own options."""
    command.add_argument("--tasks", type=names, metavar="NAMES", help="the harness's names, with commas")
    command.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="files in place of the hub: arc/, hellaswag/, gsm8k/, mmlu/dev and test/, truthfulqa/; also gzipped",
    )
    command.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question (the task's own)")
    command.add_argument(
        "--response-cache", metavar="FOLDER", help="keep answers for other runs with the same models and formats"
    )


def prepare(args: argparse.Namespace) -> Job:
    """Return the work, with every request built.

    Raises:
        OptionError: No task was named.
        InputError: A task is unknown, or its data cannot be had.
        DependencyError: lm-eval is not installed.
    """
    if not args.tasks:
        raise OptionError("--tasks is missing: name some, as in --tasks arc_challenge,hellaswag,mmlu.")
    selections = select(args.tasks)
    for selection in selections:
        figures(selection.leaves[0])
    from benchmarks.tasks.lm_eval.loading import load_documents
    from benchmarks.tasks.lm_eval.part import HarnessPart

    documents = load_documents(selections, data_dir=_data_dir(args), num_fewshot=args.num_fewshot, limit=args.limit)
    cache = Path(args.response_cache).expanduser() if args.response_cache else None
    parts = [
        HarnessPart(
            name=selection.name,
            documents=[document for leaf in selection.leaves for document in documents[leaf]],
            cache=cache,
        )
        for selection in selections
    ]
    return Job(
        parts=parts,
        settings={
            "lm_eval": metadata.version("lm_eval"),
            "num_fewshot": args.num_fewshot,
            "tasks": {part.name: _described(part) for part in parts},
        },
    )


def _data_dir(args: argparse.Namespace) -> Path | None:
    if not args.data_dir:
        return None
    folder = Path(args.data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(f"{args.data_dir!r} is no folder: name the one that holds arc/, mmlu/ and the others.")
    return folder


def _described(part: Any) -> dict[str, Any]:
    """Return what config.json says of a part: versions and numbers of examples, and a digest of all that is asked."""
    tasks = {document.task.config.task: document.task for document in part.documents}
    return {
        "requests_sha256": part.digest,
        "tasks": {
            name: {"version": task.VERSION, "num_fewshot": task.config.num_fewshot} for name, task in tasks.items()
        },
    }
