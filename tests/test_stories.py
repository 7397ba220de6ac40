"""A real trained model: where expert and anti are the same, the composite writes what the plain model writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxytune import ProxyGenerator
from tests import tiny

PROMPT = "Once upon a time"
NUM_TOKENS = 200


@pytest.fixture
def stories(data: Path) -> str:
    """The folder of stories260K."""
    folder = data / "models/stories260K/hf"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    return str(folder)


def plain(folder: str, model: Any) -> tuple[list[int], str]:
    """Return the plain model's greedy ids and text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(
        inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    new = ids[0, inputs.input_ids.shape[1] :].tolist()
    return new, tokenizer.decode(ids[0], skip_special_tokens=True)


def loaded(folder: str) -> Any:
    """Return a separately loaded model, float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("alpha", [1.0, -2.0])
@pytest.mark.parametrize("kind", ["one-folder", "separate-models", "other-expert"])
def test_greedy_text_of_200_tokens(stories: str, kind: str, alpha: float) -> None:
    """Expert ≡ anti: one merged role, three separate copies, or the same other model twice, whatever it is."""
    if kind == "one-folder":
        generator = ProxyGenerator(stories, stories, stories, alpha=alpha, dtype="float32")
        assert len(generator.model.roles) == 1
    else:
        settings: dict[str, Any] = {"vocab_size": 512, "context": 512}
        others = (
            [loaded(stories), loaded(stories)]
            if kind == "separate-models"
            else [
                tiny.new_model("gpt2", 9, **settings),
                tiny.new_model("gpt2", 9, **settings),
            ]
        )
        generator = ProxyGenerator(loaded(stories), *others, alpha=alpha)
        assert len(generator.model.models) == 3
    ids, text = plain(stories, loaded(stories))
    [done] = generator.generate(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True)
    assert list(done.token_ids) == ids
    assert PROMPT + done.text == text
    assert "".join(generator.stream(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True)) == done.text


def test_steering_a_real_model_changes_its_text(stories: str) -> None:
    """With an expert that differs from the anti the text differs, so the equality above is no accident."""
    settings: dict[str, Any] = {"vocab_size": 512, "context": 512}
    pair = [tiny.new_model("llama", seed, **settings) for seed in (1, 2)]
    [done] = ProxyGenerator(loaded(stories), *pair).generate(PROMPT, max_new_tokens=50, ignore_eos=True)
    assert list(done.token_ids) != plain(stories, loaded(stories))[0][:50]


def test_a_batch_of_real_prompts_equals_each_alone(stories: str) -> None:
    """Texts of different length, two strengths, one batch."""
    expert, anti = loaded(stories), tiny.new_model("llama", 1, vocab_size=512, context=512, scale=0.02)
    generator = ProxyGenerator(stories, expert, anti, alpha=0.5, dtype="float32")
    prompts = ["Once upon a time", "Lily", "One day, a little boy went to the park with his mom and his dog"]
    options: dict[str, Any] = {"max_new_tokens": 60, "logprobs": 0}
    for prompt, row in zip(prompts, generator.generate(prompts, **options), strict=True):
        [alone] = generator.generate(prompt, **options)
        assert (row.text, row.token_ids) == (alone.text, alone.token_ids)
        differences = [abs(a.logprob - b.logprob) for a, b in zip(row.logprobs, alone.logprobs, strict=True)]
        assert max(differences) < 1e-4
