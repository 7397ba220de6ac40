"""The whole chain: neft makes an adapter from M−, the engine steers M with it, merged weights do the same."""

import json
from pathlib import Path

import pytest

from neft.cli import main as neft
from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from proxytune.demo.evaluate import MAX_NEW_TOKENS, score
from proxytune.demo.live import held_out_questions
from proxytune.demo.recipe import Recipe
from proxytune.demo.text import Question
from proxytune.demo.tuning import tuning_questions

LORA = ["--lora-r", "16", "--learning-rate", "3e-3", "--alpha", "5", "--max-steps", "150", "--batch-size", "32"]
STOP = ["--eval-every", "10", "--early-stopping-patience", "3"]


def write_rows(path: Path, questions: list[Question]) -> str:
    """Write prompt-completion rows and return the path as text."""
    path.write_text("".join(json.dumps(question.row()) + "\n" for question in questions), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_an_adapter_made_by_neft_steers_as_the_demo_does(tmp_path: Path) -> None:
    """A LoRA expert over the bundled M− brings M to the demo's accuracy; merged, it gives the very same tokens."""
    world = Recipe().world()
    learned, stopping = tuning_questions(world)
    data, held_out = write_rows(tmp_path / "data.jsonl", learned), write_rows(tmp_path / "held-out.jsonl", stopping)
    trio, adapter, merged = trio_path(), tmp_path / "adapter", tmp_path / "merged"
    files = ["--model", str(trio / "anti"), "--data", data, "--eval-data", held_out, "--output", str(adapter)]
    assert neft(["train", *files, *LORA, *STOP, "--quiet"]) == 0
    assert neft(["merge", "--adapter", str(adapter), "--output", str(merged), "--quiet"]) == 0

    questions = held_out_questions(world)
    prompts = [question.prompt for question in questions]
    answers = {}
    for name, expert in (("adapter", adapter), ("merged", merged)):
        steered = ProxyGenerator(trio / "base", expert, trio / "anti")
        answers[name] = steered.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, batch_size=100)
    reached = score([done.text for done in answers["adapter"]], questions)
    assert reached.accuracy >= 0.9
    assert reached.format_rate >= 0.95
    assert [done.token_ids for done in answers["adapter"]] == [done.token_ids for done in answers["merged"]]
