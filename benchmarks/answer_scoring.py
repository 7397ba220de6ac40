"""Scoring all answers of a question together against one at a time: `python -m benchmarks.answer_scoring`.

Both go through `ProxyGenerator.score` in one process, in turns, medians. Lengths are TruthfulQA's (characters by four)
behind six examples where ../shared/data is there, else the averages named in the result; models are random, of the
sizes given. Prints one JSON line; the log-probabilities of both ways are compared before any time is.
"""

import argparse
import csv
import gzip
import json
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from proxytune import ProxyGenerator

_DATA = Path("../shared/data/truthfulqa/TruthfulQA.csv.gz")
_CHARACTERS_PER_TOKEN = 4
_NUM_EXAMPLES = 6
_VOCABULARY = 2000
_TYPICAL = (13, (10,) * 9)  # tokens of a question and of its answers, TruthfulQA's means

Question = tuple[int, tuple[int, ...]]


def main() -> int:
    """Compare, print one JSON line, and return 1 if the two ways disagree."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    questions, source = _questions(options.questions + _NUM_EXAMPLES)
    prompts, answers = _rows(questions)
    generator = _generator()
    together: list[float] = []
    alone: list[float] = []
    for _ in range(options.rounds):
        started = time.perf_counter()
        shared = generator.score(prompts, answers, batch_size=options.batch_size)
        together.append(time.perf_counter() - started)
        started = time.perf_counter()
        single = [generator.score(prompt, [answer])[0] for prompt, answer in zip(prompts, answers, strict=True)]
        alone.append(time.perf_counter() - started)
    difference = max(
        abs(one - other)
        for first, second in zip(shared, single, strict=True)
        for one, other in zip(first.logprobs, second.logprobs, strict=True)
    )
    result = {
        "benchmark": "answer_scoring",
        "lengths": source,
        "questions": options.questions,
        "answers": len(answers),
        "prompt_tokens": statistics.mean(len(prompt) for prompt in prompts),
        "seconds_together": statistics.median(together),
        "seconds_one_at_a_time": statistics.median(alone),
        "ratio": statistics.median(one / other for one, other in zip(alone, together, strict=True)),
        "largest_logprob_difference": difference,
        "settings": vars(options),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch": torch.__version__,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0 if difference <= 1e-4 else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser


def _questions(count: int) -> tuple[list[Question], str]:
    """Return the token counts of questions and of their answers, and where they come from."""
    if not _DATA.is_file():
        return [_TYPICAL] * count, "typical"
    with gzip.open(_DATA, "rt", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = random.Random(0).sample(rows, count)
    return [
        (
            _num_tokens(row["Question"]),
            tuple(
                _num_tokens(answer)
                for column in ("Correct Answers", "Incorrect Answers")
                for answer in row[column].split(";")
                if answer.strip()
            ),
        )
        for row in chosen
    ], _DATA.name


def _num_tokens(text: str) -> int:
    return max(1, len(text) // _CHARACTERS_PER_TOKEN)


def _rows(questions: list[Question]) -> tuple[list[list[int]], list[list[int]]]:
    """Return prompts and answers as random ids: examples of the first questions stand in front of all others."""
    draw = random.Random(1)

    def ids(count: int) -> list[int]:
        return [draw.randrange(3, _VOCABULARY) for _ in range(count)]

    examples = ids(sum(question + answers[0] for question, answers in questions[:_NUM_EXAMPLES]))
    prompts, rows = [], []
    for question, answers in questions[_NUM_EXAMPLES:]:
        prompt = examples + ids(question)
        prompts += [prompt] * len(answers)
        rows += [ids(answer) for answer in answers]
    return prompts, rows


def _generator() -> ProxyGenerator:
    """Return a random trio: a base of 29M parameters in its layers, expert and anti of 4M each."""

    def model(seed: int, width: int, depth: int) -> Any:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=depth,
            num_attention_heads=width // 64,
            max_position_embeddings=1024,
        )
        return LlamaForCausalLM(config).eval()

    words = {f"w{index}": index for index in range(_VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")))
    return ProxyGenerator(model(1, 512, 9), model(2, 256, 5), model(3, 256, 5), tokenizer=tokenizer)


if __name__ == "__main__":
    raise SystemExit(main())
