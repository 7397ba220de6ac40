"""GSM8K as the proxy-tuning paper ran it: no examples, greedy, the last number of the answer against the true one.

Source: Liu et al. 2024, section 5.2, and the per-question files published with it, whose exact match this is; see
`benchmarks.scoring.gsm8k`, which also scores a run's rows and anybody else's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.measures import Measure, field
from benchmarks.provenance import file_digest
from benchmarks.scoring.gsm8k import is_exact_match, last_number, parse_number, true_number
from benchmarks.scoring.rows import read_rows
from benchmarks.tasks.task import Job, find_file, first
from benchmarks.truthfulqa_prompts import OPEN_CUE, chat_prompt
from proxytune.errors import InputError

HELP = "grade-school mathematics, as the proxy-tuning paper ran it"
EXAMPLE = """\
  python -m benchmarks gsm8k --data gsm8k/test.jsonl --base meta-llama/Llama-2-13b-hf --chat-expert \\
      --expert meta-llama/Llama-2-7b-chat-hf --anti meta-llama/Llama-2-7b-hf --output runs/gsm8k-13b"""
MEASURES = {
    "gsm8k": (
        Measure(name="exact match", value=field("is_exact_match")),
        Measure(name="numeric match", value=field("is_numeric_match")),
    )
}
# Where the paper cuts an answer: models go on with questions of their own, or with comments.
CUTS = ("Answer the following question", "Question:", "Comment:")
_NAMES = ("gsm8k/test.jsonl", "test.jsonl")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the task's own options."""
    data = command.add_mutually_exclusive_group()
    data.add_argument("--data", metavar="FILE", help="GSM8K's test.jsonl, also gzipped")
    data.add_argument("--data-dir", metavar="FOLDER", help="where to look for gsm8k/test.jsonl")
    command.add_argument(
        "--chat-expert", action="store_true", help="expert and tuned models are Llama-2 chat models: give them a turn"
    )
    command.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of an answer (512)")


def prepare(args: argparse.Namespace) -> Job:
    """Return the work.

    Raises:
        InputError: The data cannot be read, or were not named.
    """
    path = find_file(args.data, args.data_dir, _NAMES, option="--data", data="GSM8K's test.jsonl")
    questions = first([_question(row.text("question"), row.text("answer")) for row in read_rows(path)], args.limit)
    part = Gsm8kPart(questions=questions, is_chat_expert=args.chat_expert, max_new_tokens=args.max_new_tokens)
    return Job(
        parts=[part],
        settings={
            "data": {"file": path.name, "sha256": file_digest(path)},
            "is_chat_expert": args.chat_expert,
            "max_new_tokens": args.max_new_tokens,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, and its answer as a number without commas."""

    question: str
    answer: str

    @property
    def body(self) -> str:
        """The prompt without its cue."""
        return f"Answer the following question.\n\nQuestion: {self.question.strip()}"


@dataclass(frozen=True, kw_only=True)
class Gsm8kPart:
    """The questions; `is_chat_expert` gives tuned models a turn of Llama-2 chat."""

    questions: Sequence[Question]
    is_chat_expert: bool = False
    max_new_tokens: int = 512
    name: str = "gsm8k"

    @property
    def formats(self) -> Formats:
        """The cue on a line of its own, or behind a turn, which is spaced differently beside a base, as published."""
        plain = f"{{prompt}}\n{OPEN_CUE}"
        if not self.is_chat_expert:
            return Formats(base=plain, expert=plain, anti=plain, alone=plain)
        beside = f"[INST]{{prompt}} [/INST] {OPEN_CUE}"
        return Formats(base=plain, expert=beside, anti=plain, alone=chat_prompt("{prompt}", cue=OPEN_CUE))

    def __len__(self) -> int:
        return len(self.questions)

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Answer these questions; the rows are those of the published files, with a verdict."""
        chosen = [self.questions[index] for index in indices]
        outputs = answerer.generate(
            [question.body for question in chosen], max_new_tokens=self.max_new_tokens, stop=CUTS
        )
        return [answer_row(question, output) for question, output in zip(chosen, outputs, strict=True)]


def answer_row(question: Question, output: str) -> dict[str, Any]:
    """Return the row of an answer; one without a number is wrong.

    >>> row = answer_row(Question(question="?", answer="18"), "It makes $2 x 9 = $18 a day.")
    >>> row["prediction"], row["is_exact_match"], row["is_numeric_match"]
    ('18', True, True)
    """
    number = parse_number(output)
    return {
        "question": question.question,
        "answer": question.answer,
        "model_output": output,
        # The published files repeat the whole answer where they found no number.
        "prediction": output if number is None else number,
        "is_exact_match": number is not None and is_exact_match(number, question.answer),
        "is_numeric_match": last_number(output) == Decimal(question.answer),
    }


def _question(question: str, answer: str) -> Question:
    number = true_number(answer)
    if number is None:
        raise InputError(f"an answer ends in {answer[-40:]!r}, not in #### and a number: give GSM8K's test.jsonl.")
    return Question(question=question, answer=number)
