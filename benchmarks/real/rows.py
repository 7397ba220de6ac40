"""The rows of the experiment: GSM8K solutions and Alpaca answers to tune on and to hold out, and text to heal on."""

import gzip
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxytune.errors import DependencyError, InputError

_SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
_SEED = 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt and its reference answer; a tuned model ends the answer with its end token."""

    prompt: str
    completion: str

    @property
    def entry(self) -> dict[str, str]:
        """The row as neft's prompt-completion format has it."""
        return {"prompt": self.prompt, "completion": self.completion}


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Rows of one behaviour: `tuning` is all that tunings see, `validation` chooses α, `held_out` is measured."""

    tuning: list[Row]
    validation: list[Row]
    held_out: list[Row]


def gsm8k(tokenizer: Any, *, max_tokens: int, sizes: tuple[int, int, int]) -> Behaviour:
    """Return grade-school questions and worked solutions; the held-out rows are of the public test split."""
    train = [_gsm8k_row(row) for row in _read("instruct/gsm8k_train.jsonl.gz", "openai/gsm8k", "main", "train")]
    test = [_gsm8k_row(row) for row in _read("gsm8k/test.jsonl.gz", "openai/gsm8k", "main", "test")]
    num_tuning, num_validation, num_held_out = sizes
    chosen = _choose(train, num_tuning + num_validation, tokenizer, max_tokens)
    return Behaviour(
        tuning=chosen[:num_tuning],
        validation=chosen[num_tuning:],
        held_out=_choose(test, num_held_out, tokenizer, max_tokens),
    )


def alpaca(tokenizer: Any, *, max_tokens: int, sizes: tuple[int, int, int]) -> Behaviour:
    """Return instructions and answers in the base's chat template; instructions occur in one part only."""
    rows, seen = [], set()
    for row in _alpaca_entries():
        if row["instruction"] not in seen and row["output"].strip():
            seen.add(row["instruction"])
            rows.append(alpaca_row(tokenizer, row))
    num_tuning, num_validation, num_held_out = sizes
    chosen = _choose(rows, sum(sizes), tokenizer, max_tokens)
    split = num_tuning + num_validation
    return Behaviour(
        tuning=chosen[:num_tuning], validation=chosen[num_tuning:split], held_out=chosen[split : split + num_held_out]
    )


BEHAVIOURS: dict[str, Callable[..., Behaviour]] = {"gsm8k": gsm8k, "alpaca": alpaca}


def healing_texts(tokenizer: Any, held_out: set[str]) -> Iterator[str]:
    """Yield texts to heal on, forever: of eight, three solutions, three chat answers, two pieces of text.

    None has a prompt of `held_out`.
    """
    draws = random.Random(_SEED)
    solutions = [_gsm8k_row(row) for row in _read("instruct/gsm8k_train.jsonl.gz", "openai/gsm8k", "main", "train")]
    answers = [alpaca_row(tokenizer, row) for row in _alpaca_entries()]
    rows = [[row for row in kind if row.prompt not in held_out] for kind in (solutions, answers)]
    pieces = _wikitext()
    for kind in (*rows, pieces):
        draws.shuffle(kind)
    ends = tokenizer.eos_token
    of_kind = [
        (row.prompt + row.completion + ends for row in itertools.cycle(rows[0])),
        (row.prompt + row.completion + ends for row in itertools.cycle(rows[1])),
        itertools.cycle(pieces),
    ]
    for kind_index in itertools.cycle((0, 1, 2, 0, 1, 0, 1, 2)):
        yield next(of_kind[kind_index])


def alpaca_row(tokenizer: Any, row: dict[str, Any]) -> Row:
    """Return an Alpaca row in the chat template."""
    question = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return Row(prompt=prompt, completion=row["output"].strip())


def _gsm8k_row(row: dict[str, Any]) -> Row:
    return Row(prompt=f"Question: {row['question'].strip()}\nAnswer:", completion=f" {row['answer'].strip()}")


def _alpaca_entries() -> list[dict[str, Any]]:
    return _read("instruct/alpaca_data.json.gz", "tatsu-lab/alpaca", None, "train")


def _wikitext() -> list[Any]:
    path = _SHARED / "text/wikitext2_valid.txt.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            text = file.read()
    else:
        rows = _read("", "Salesforce/wikitext", "wikitext-2-raw-v1", "validation")
        text = "".join(row["text"] for row in rows)
    return [text[start : start + 600] for start in range(0, len(text) - 600, 600)]


def _choose(rows: list[Row], count: int, tokenizer: Any, max_tokens: int) -> list[Row]:
    """Return `count` rows of at most `max_tokens` tokens, in an order that a seed fixes."""
    order = list(range(len(rows)))
    random.Random(_SEED).shuffle(order)
    chosen: list[Row] = []
    for index in order:
        if len(chosen) == count:
            break
        if len(tokenizer(rows[index].prompt + rows[index].completion).input_ids) < max_tokens:
            chosen.append(rows[index])
    return chosen


def _read(file: str, hub_id: str, subset: str | None, split: str) -> list[dict[str, Any]]:
    """Return rows of a file of `../shared/data`, or of the same data set on the hub."""
    path = _SHARED / file
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as opened:
            return [json.loads(line) for line in opened] if ".jsonl" in file else json.load(opened)
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DependencyError("the data comes from the hub by `datasets`: pip install 'proxytune[neft]'.") from error
    try:
        return list(datasets.load_dataset(hub_id, subset, split=split))
    except Exception as error:
        raise InputError(
            f"{hub_id} ({split}) cannot be had from the hub ({type(error).__name__}): connect, or put {file} where "
            "../shared/data has it."
        ) from error
