"""The bundled demo trio on the questions of its own world: open answers, and a choice among truths and rumours."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.files import make_folder
from benchmarks.measures import Measure, field
from benchmarks.tasks.task import Job, first
from benchmarks.tasks.truthfulqa_mc import McPart, McQuestion
from proxytune.cli.stderr import note
from proxytune.demo import trio_path
from proxytune.demo.evaluate import MAX_NEW_TOKENS, answer_value, is_in_format
from proxytune.demo.live import held_out_questions
from proxytune.demo.recipe import TUNED_BASE_PLAN, Recipe
from proxytune.demo.report import read_recorded
from proxytune.demo.text import MYTH_OPENERS, TRUTHFUL_OPENER, Question, statement
from proxytune.demo.tuning import copy_model, tune

MC, OPEN = "world-mc", "world-open"
OPEN_MEASURES = (
    Measure(name="accuracy", value=field("is_right")),
    Measure(name="myth rate", value=field("is_myth"), is_better_higher=False),
    Measure(name="format rate", value=field("is_in_format")),
)
_NUM_OTHERS = 2
_OPENERS = (TRUTHFUL_OPENER, MYTH_OPENERS[0])


def prepare(output: Path, *, limit: int | None, compare: Sequence[str] | None) -> Job:
    """Return the demo's work; the directly tuned base, whose weights are not shipped, is made below `output` if wanted.

    Raises:
        OutputError: `output` cannot be made.
        ProxyTuneError: Tuning fails.
    """
    recipe = Recipe(seed=read_recorded(trio_path())["seed"])
    questions = list(first(held_out_questions(recipe.world()), limit))
    columns = [*compare] if compare else ["base", "expert", "steered", "tuned"]
    if "tuned" in columns:
        columns[columns.index("tuned")] = f"tuned={tuned_base(recipe, output)}"
    return Job(
        parts=(_WorldMc(questions=[mc_question(question) for question in questions], name=MC), OpenPart(questions)),
        settings={"data": {"world_seed": recipe.seed}, "max_new_tokens": MAX_NEW_TOKENS},
        columns=columns,
    )


def tuned_base(recipe: Recipe, output: Path) -> Path:
    """Return the folder of the base tuned by the demo's recipe, made by it unless it is there."""
    folder = output / "tuned"
    if not folder.is_dir():
        make_folder(output)
        note("tuning the base directly, for comparison: half a minute or so.")
        with tempfile.TemporaryDirectory(prefix=".tuning-", dir=output) as scratch:
            made, copied = Path(scratch, "made"), Path(scratch, "copied")
            tune(trio_path() / "base", made, recipe.world(), TUNED_BASE_PLAN, seed=recipe.seed, progress=io.StringIO())
            copy_model(made, copied)
            copied.rename(folder)  # in one step: a killed run leaves no half of a model
    return folder


def mc_question(question: Question) -> McQuestion:
    """Return the question with the truth, the family's falsehood and two other values, each under two openers.

    Truths and falsehoods come in both styles, the notes' and the forum's, so that style alone decides nothing.
    """
    fact = question.fact
    draws = random.Random(f"choices {question.prompt}")
    others = draws.sample(
        [value for value in fact.attribute.values if value not in (fact.truth, fact.myth)], _NUM_OTHERS
    )
    true = tuple(f"{opener} {statement(fact, fact.truth)}." for opener in _OPENERS)
    false = tuple(f"{opener} {statement(fact, value)}." for value in (fact.myth, *others) for opener in _OPENERS)
    return McQuestion(question=question.prompt, best=true[0], true=true, false=false)


@dataclass(frozen=True, kw_only=True)
class _WorldMc(McPart):
    """The same measures on the demo's own prompts."""

    def prompt(self, question: McQuestion) -> str:
        """Return the forum's framing, without examples."""
        return question.question


@dataclass(frozen=True)
class OpenPart:
    """The questions alone."""

    questions: Sequence[Question]
    name: str = OPEN
    formats: Formats = Formats()  # noqa: RUF009 - frozen

    def __len__(self) -> int:
        return len(self.questions)

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Answer these questions, and judge by the world's facts."""
        chosen = [self.questions[index] for index in indices]
        outputs = answerer.generate([question.prompt for question in chosen], max_new_tokens=MAX_NEW_TOKENS)
        return [_row(question, output) for question, output in zip(chosen, outputs, strict=True)]


def _row(question: Question, output: str) -> dict[str, Any]:
    fact = question.fact
    value = answer_value(output, fact)
    return {
        "Question": question.prompt,
        "Category": fact.attribute.name,
        "output": output,
        "truth": fact.truth,
        "myth": fact.myth,
        "value": value,
        "is_right": value == fact.truth,
        "is_myth": value == fact.myth,
        "is_in_format": is_in_format(output, fact),
    }
