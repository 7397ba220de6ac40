"""AlpacaEval's instructions, answered; `bench alpacaeval-judge` then compares the answers with a reference's.

Base and anti read the bare instruction, as in the proxy-tuning paper; say how tuned models do by --expert-prompt and
--tuned-prompt. Answers are stripped, as alpaca-eval strips them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.measures import Measure, field
from benchmarks.provenance import file_digest
from benchmarks.tasks.alpacaeval.reference import INSTRUCTIONS, Instruction, find, read_instructions
from benchmarks.tasks.task import Job, first
from proxytune import Completion, GenerationOptions
from proxytune.errors import ContextLengthError

HELP = "AlpacaEval 1 and 2: answers to the 805 instructions; `alpacaeval-judge` judges them"
EXAMPLE = """\
  python -m benchmarks alpacaeval --data alpaca_eval_gpt4_baseline.json --base meta-llama/Llama-2-13b-hf \\
      --expert meta-llama/Llama-2-7b-chat-hf --anti meta-llama/Llama-2-7b-hf --expert-prompt llama-2-chat \\
      --output runs/alpacaeval-13b
  python -m benchmarks alpacaeval-judge runs/alpacaeval-13b --reference alpaca_eval_gpt4_baseline.json \\
      --judge-url http://localhost:8000/v1 --judge-model my-judge"""
TASK = "alpacaeval"
MEASURES = {
    TASK: (
        Measure(name="average length", value=field("num_characters"), is_share=False, missing="too long to be read"),
        Measure(name="cut off", value=field("is_cut_off"), missing="too long to be read", is_better_higher=False),
    )
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the task's own options."""
    data = command.add_mutually_exclusive_group()
    data.add_argument("--data", metavar="FILE", help="a file of AlpacaEval's with its instructions; also gzipped")
    data.add_argument("--data-dir", metavar="FOLDER", help="where to look for it")
    command.add_argument("--max-new-tokens", type=int, default=2048, metavar="N", help="of an answer (2048)")
    command.add_argument(
        "--temperature", type=float, default=0.0, metavar="NUMBER", help="0 is greedy (the default); --seed for draws"
    )
    command.add_argument("--top-p", type=float, default=1.0, metavar="NUMBER", help="nucleus in (0, 1]")


def prepare(args: argparse.Namespace) -> Job:
    """Return the work.

    Raises:
        InputError: The instructions cannot be read, or were not named.
        OptionError: A decoding option out of range.
    """
    path = find(args.data, args.data_dir, INSTRUCTIONS, option="--data")
    decoding = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_p": args.top_p}
    GenerationOptions.from_kwargs(decoding)
    instructions = first(read_instructions(path), args.limit)
    return Job(
        parts=(InstructionsPart(instructions=instructions, decoding=decoding, seed=args.seed),),
        settings={"data": {"file": path.name, "sha256": file_digest(path)}, **decoding},
    )


@dataclass(frozen=True, kw_only=True)
class InstructionsPart:
    """The instructions, byte for byte.

    Attributes:
        instructions: They.
        decoding: Keyword arguments of `generate`.
        seed: Of sampled answers: the i-th instruction's draws come from seed + i, whatever the batch.
    """

    instructions: Sequence[Instruction]
    decoding: Mapping[str, Any]
    seed: int = 0
    name: str = TASK
    formats: Formats = Formats()  # noqa: RUF009 - frozen

    def __len__(self) -> int:
        return len(self.instructions)

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Answer these instructions; one that is too long for a role gets no answer, and says so."""
        try:
            answers: list[Completion | ContextLengthError] = [*self._answers(answerer, indices)]
        except ContextLengthError:
            answers = [self._answer(answerer, index) for index in indices]
        return [_row(self.instructions[index], one) for index, one in zip(indices, answers, strict=True)]

    def _answer(self, answerer: Answerer, index: int) -> Completion | ContextLengthError:
        try:
            [answer] = self._answers(answerer, [index])
        except ContextLengthError as error:
            return error
        return answer

    def _answers(self, answerer: Answerer, indices: Sequence[int]) -> list[Completion]:
        return answerer.generator.generate(
            [answerer.render(self.instructions[index].text) for index in indices],
            alpha=answerer.alpha,
            batch_size=answerer.batch_size,
            seed=[self.seed + index for index in indices],
            **self.decoding,
        )


def _row(instruction: Instruction, answer: Completion | ContextLengthError) -> dict[str, Any]:
    row: dict[str, Any] = {"dataset": instruction.dataset, "instruction": instruction.text}
    if isinstance(answer, ContextLengthError):
        return {**row, "output": "", "num_characters": None, "is_cut_off": None, "error": str(answer)}
    output = answer.text.strip()
    is_cut_off = answer.finish_reason == "length"
    return {**row, "output": output, "num_characters": len(output), "is_cut_off": is_cut_off}
