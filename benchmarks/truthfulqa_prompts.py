"""TruthfulQA's letter and open-ended prompts as the proxy-tuning paper ran them: pure functions on the rows of its CSV.

Source: Liu et al. 2024, "Tuning Language Models by Proxy" (section 4.2 and the per-question files published with it);
questions: Lin et al. 2022, `TruthfulQA.csv`. All 817 letter prompts equal the published ones byte for byte.
"""

import csv
import io
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scoring.rows import read_text
from proxytune.errors import InputError

LETTERS = "ABCD"
LETTER_CUE = "The answer is:"
OPEN_CUE = "Answer:"
_COLUMNS = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
_SEED = 42
_MAX_WRONG = 3


@dataclass(frozen=True, kw_only=True)
class LetterQuestion:
    """A question with two to four lettered choices, one of them true.

    Attributes:
        question: The question as the CSV spells it, trailing blanks included.
        choices: The choices in the order of their letters, each ending in a full stop.
        answer: The letter of the true choice.
    """

    question: str
    choices: tuple[str, ...]
    answer: str

    @property
    def body(self) -> str:
        """The question and its lettered choices, without the cue."""
        lines = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False))
        return "\n".join((self.question, *lines))

    @property
    def prompt(self) -> str:
        """Prompt of a base or anti model, ending in the cue."""
        return f"{self.body}\n\n{LETTER_CUE}"


def read_questions(path: Path) -> list[dict[str, str]]:
    """Return the rows of `TruthfulQA.csv` (or `.csv.gz`), in order; columns that newer releases add are kept.

    Raises:
        InputError: The file cannot be read, or lacks a column or a question.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as TruthfulQA.csv: {error}.") from error
    missing = [column for column in _COLUMNS if not rows or rows[0].get(column) is None]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}: give TruthfulQA.csv, also gzipped.")
    return rows


def letter_questions(rows: Iterable[Mapping[str, str]]) -> list[LetterQuestion]:
    """Return the letter form of all rows; they must be the whole CSV in its order, because one generator serves all.

    Python's `random`, seeded once with 42, draws up to three wrong answers for each row and then shuffles them with the
    best one.
    """
    draws = random.Random(_SEED)
    return [_letter_question(row, draws) for row in rows]


def open_prompt(question: str) -> str:
    r"""Return what a base or anti model sees of an open-ended question.

    >>> open_prompt("Why?")
    'Why?\n\nAnswer:'
    """
    return f"{question}\n\n{OPEN_CUE}"


def chat_prompt(body: str, *, cue: str, system: str | None = None) -> str:
    r"""Return what a Llama-2 chat model alone sees: one user turn, with the cue as the start of its answer.

    It equals the published prompts of Llama-2-7B-chat, whose system text holds a backslash and an n for its line end.

    >>> chat_prompt("Why?", cue="Answer:", system="Be brief.")
    '[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST] Answer:'
    """
    turn = body if system is None else f"<<SYS>>\n{system}\n<</SYS>>\n\n{body}"
    return f"[INST] {turn} [/INST] {cue}"


def split_answers(answers: str) -> list[str]:
    """Return the answers of a cell that separates them by semicolons, each ending in a full stop.

    >>> split_answers("Nothing; You die.; ")
    ['Nothing.', 'You die.']
    """
    return [_with_full_stop(answer.strip()) for answer in answers.split(";") if answer.strip()]


def _letter_question(row: Mapping[str, str], draws: random.Random) -> LetterQuestion:
    best = _with_full_stop(row["Best Answer"].strip())
    wrong = split_answers(row["Incorrect Answers"])
    choices = [best, *draws.sample(wrong, min(_MAX_WRONG, len(wrong)))]
    draws.shuffle(choices)
    return LetterQuestion(question=row["Question"], choices=tuple(choices), answer=LETTERS[choices.index(best)])


def _with_full_stop(answer: str) -> str:
    return answer if answer.endswith(".") else f"{answer}."
