"""TruthfulQA: choice by log-probability (mc), by letter as the paper ran it (letter), and open answers (open).

Without --data and without models it asks the bundled demo trio the questions of its own world. Open answers are judged
afterwards, by `bench judge`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.provenance import file_digest
from benchmarks.tasks import demo_world, truthfulqa_mc, truthfulqa_paper
from benchmarks.tasks.task import Job, Part, find_file, first
from benchmarks.tasks.truthfulqa_mc import McPart, read_mc_questions
from benchmarks.truthfulqa_prompts import letter_questions, read_questions
from proxytune.errors import OptionError

HELP = "choice by log-probability and by letter, and open answers; the demo trio's own questions without options"
EXAMPLE = """\
  python -m benchmarks truthfulqa --data TruthfulQA.csv --base meta-llama/Llama-2-13b-hf --chat-expert \\
      --expert meta-llama/Llama-2-7b-chat-hf --anti meta-llama/Llama-2-7b-hf --output runs/truthfulqa-13b"""
PARTS = ("mc", "letter", "open")
MEASURES = {
    "mc": truthfulqa_mc.MEASURES,
    "letter": truthfulqa_paper.LETTER_MEASURES,
    "open": truthfulqa_paper.OPEN_MEASURES,
    demo_world.MC: truthfulqa_mc.MEASURES,
    demo_world.OPEN: demo_world.OPEN_MEASURES,
}
_NAMES = ("TruthfulQA.csv", "truthfulqa/TruthfulQA.csv")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the task's own options."""
    data = command.add_mutually_exclusive_group()
    data.add_argument("--data", metavar="FILE", help="TruthfulQA.csv, or mc_task.json for mc alone; also gzipped")
    data.add_argument("--data-dir", metavar="FOLDER", help="where to look for TruthfulQA.csv")
    command.add_argument("--parts", metavar="NAMES", help="of mc, letter, open, with commas (all that the data allow)")
    command.add_argument(
        "--chat-expert",
        action="store_true",
        help="expert and tuned models are Llama-2 chat models: give them the paper's system prompt",
    )
    command.add_argument(
        "--truncate", action="store_true", help="mc: cut the start of prompts that are too long for a role, and say so"
    )
    command.add_argument("--max-new-tokens", type=int, metavar="N", help="of open answers (512)")


def prepare(args: argparse.Namespace) -> Job:
    """Return the work: the demo world's where nothing was named.

    Raises:
        InputError: The data cannot be read, or were not named.
        OptionError: A part that does not exist, or that the data do not allow.
    """
    if args.is_bundled and not (args.data or args.data_dir):
        _refuse(args)
        return demo_world.prepare(Path(args.output), limit=args.limit, compare=args.compare)
    path = find_file(args.data, args.data_dir, _NAMES, option="--data", data="TruthfulQA.csv or mc_task.json")
    parts = [_part(name, path, args) for name in _part_names(args, is_csv=".csv" in path.suffixes)]
    return Job(
        parts=parts,
        settings={
            "data": {"file": path.name, "sha256": file_digest(path)},
            "is_chat_expert": args.chat_expert,
            "is_truncated": args.truncate,
            "max_new_tokens": _max_new_tokens(args),
        },
    )


def _refuse(args: argparse.Namespace) -> None:
    """Raise OptionError for what means nothing to the demo world's questions."""
    given = [("--parts", args.parts), ("--chat-expert", args.chat_expert), ("--truncate", args.truncate)]
    given.append(("--max-new-tokens", args.max_new_tokens))
    unused = next((option for option, value in given if value), None)
    if unused:
        raise OptionError(f"{unused} is for TruthfulQA's own questions: name TruthfulQA.csv with --data.")


def _part_names(args: argparse.Namespace, *, is_csv: bool) -> Sequence[str]:
    allowed = PARTS if is_csv else PARTS[:1]
    if not args.parts:
        return allowed
    asked = [name.strip() for name in args.parts.split(",")]
    wrong = next((name for name in asked if name not in allowed), None)
    if wrong is not None:
        raise OptionError(f"--parts has {wrong!r}: these data have {', '.join(allowed)}.")
    return list(dict.fromkeys(asked))


def _part(name: str, path: Path, args: argparse.Namespace) -> Part:
    if name == "mc":
        return McPart(questions=first(read_mc_questions(path), args.limit), is_truncated=args.truncate)
    rows = read_questions(path)
    if name == "letter":
        # All of them first: one generator of random numbers serves the whole file.
        questions = first(letter_questions(rows), args.limit)
        return truthfulqa_paper.LetterPart(questions=questions, is_chat_expert=args.chat_expert)
    return truthfulqa_paper.OpenPart(
        questions=first([row["Question"] for row in rows], args.limit),
        is_chat_expert=args.chat_expert,
        max_new_tokens=_max_new_tokens(args),
    )


def _max_new_tokens(args: argparse.Namespace) -> int:
    given = args.max_new_tokens
    return truthfulqa_paper.MAX_NEW_TOKENS["open"] if given is None else int(given)
