"""The demo's flow: tune an expert from the anti, steer the base with it, measure every role on held-out people."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from proxytune.demo.evaluate import MAX_NEW_TOKENS, gap_closed, greedy_answers, score
from proxytune.demo.recipe import EXPERT_PLAN, Recipe
from proxytune.demo.report import NO_NOISE, DemoReport, SideBySide, read_recorded, recorded_score
from proxytune.demo.text import Question, questions_about
from proxytune.demo.tuning import tune
from proxytune.demo.world import World

TEST_SEED = 5
_BATCH_SIZE = 100
_NUM_EXAMPLES = 3


def run(*, trio: Path, seed: int = 0, alpha: float = 1.0, progress: TextIO | None = None) -> DemoReport:
    """Run the demo on a trio folder; `seed` is the live tuning's, `alpha` the strength of steering.

    Raises:
        InputError: if the folder is not a trio with recorded figures.
        ProxyTuneError: if the tuning process fails.
    """
    start = time.monotonic()
    progress = progress or io.StringIO()
    recorded = read_recorded(trio)
    recipe = Recipe(seed=recorded["seed"])
    world = recipe.world()
    questions = held_out_questions(world)
    tuned = recorded_score(recorded, "tuned")
    with tempfile.TemporaryDirectory(prefix="proxytune-demo-") as folder:
        expert = Path(folder, "expert")
        progress.write("Tuning the expert from the anti with NEFTune, and another without noise ...\n")
        plain = Path(folder, "plain")
        no_noise = replace(EXPERT_PLAN, noise_alpha=0.0)
        with ThreadPoolExecutor() as pool:  # each is a process with one thread
            other = pool.submit(tune, trio / "anti", plain, world, no_noise, seed=seed, progress=io.StringIO())
            tune(trio / "anti", expert, world, EXPERT_PLAN, seed=seed, progress=progress)
            other.result()
        tuning_seconds = time.monotonic() - start
        experts = {"": expert, NO_NOISE: plain}
        with _one_thread():
            answers = _all_answers(trio, experts, questions, alpha=alpha, progress=progress)
    rows = {role: score(texts, questions) for role, texts in answers.items()} | {"tuned": tuned}
    return DemoReport(
        rows=rows,
        gap_closed=gap_closed(rows["base"], rows["steered"], tuned),
        seconds=round(time.monotonic() - start, 2),
        tuning_seconds=round(tuning_seconds, 2),
        num_questions=len(questions),
        num_people=len(world.test),
        alpha=alpha,
        noise_alpha=EXPERT_PLAN.noise_alpha,
        examples=_examples(questions, answers),
    )


def _all_answers(
    trio: Path, experts: Mapping[str, Path], questions: Sequence[Question], *, alpha: float, progress: TextIO
) -> dict[str, list[str]]:
    """The answers by role; those of an expert and of the base it steers have its name behind the role's."""
    answers = {}
    for role in ("base", "anti"):
        progress.write(f"Asking {role} {len(questions)} questions ...\n")
        answers[role] = answers_of(trio / role, questions)
    for name, expert in experts.items():
        progress.write(f"Asking expert{name} and the base it steers {len(questions)} questions ...\n")
        answers[f"expert{name}"] = answers_of(expert, questions)
        answers[f"steered{name}"] = steered_answers(trio / "base", expert, trio / "anti", questions, alpha=alpha)
    return answers


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread for a while: on busy cores, threads that wait for each other cost such models minutes."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def held_out_questions(world: World) -> list[Question]:
    """The demo's questions: every attribute of every test person."""
    return questions_about(world.facts_of(world.test), seed=TEST_SEED)


def load(folder: Path) -> tuple[Any, Any]:
    """A folder's model, in float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def answers_of(folder: Path, questions: Sequence[Question]) -> list[str]:
    """One model's own greedy answers."""
    model, tokenizer = load(folder)
    return greedy_answers(model, tokenizer, [question.prompt for question in questions], batch_size=_BATCH_SIZE)


def steered_answers(base: Path, expert: Path, anti: Path, questions: Sequence[Question], *, alpha: float) -> list[str]:
    """The steered base's greedy answers."""
    from proxytune import ProxyGenerator

    generator = ProxyGenerator(base=str(base), expert=str(expert), anti=str(anti), alpha=alpha, dtype="float32")
    prompts = [question.prompt for question in questions]
    completions = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=_BATCH_SIZE)
    return [completion.text for completion in completions]


def _examples(questions: Sequence[Question], answers: dict[str, list[str]]) -> tuple[SideBySide, ...]:
    """The first questions about different people and attributes: chosen by place, never by how well they went."""
    step = 1 + len(questions) // _NUM_EXAMPLES
    return tuple(
        SideBySide(
            prompt=question.prompt,
            truth=question.fact.truth,
            base=answers["base"][index],
            expert=answers["expert"][index],
            steered=answers["steered"][index],
        )
        for index, question in list(enumerate(questions))[::step]
    )
