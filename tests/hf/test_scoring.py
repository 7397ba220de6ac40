"""Scoring answers that share a prompt: read once, the log-probabilities of each answer alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from proxytune import ProxyGenerator
from tests import tiny
from tests.hf.test_reference import TRIOS, generator_of, reference_of, require_equal

PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (9, 3, 6)]
ANSWERS = [tiny.prompt_ids(length, seed=40 + length)[1:] for length in (2, 7, 4, 5)]


@contextmanager
def tokens_read(generator: ProxyGenerator) -> Iterator[list[int]]:
    """Collect how many tokens (padding included) each forward pass of the base reads."""
    counts: list[int] = []

    def note(_module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        counts.append(kwargs["input_ids"].numel())

    hook = generator.model.base.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield counts
    finally:
        hook.remove()


@pytest.mark.parametrize("name", TRIOS)
def test_answers_behind_a_shared_prompt_equal_the_reference(name: str) -> None:
    """Prompts and answers of different length, repeated in any order, in one batch and in small ones."""
    trio = TRIOS[name]()
    rows = [(prompt, answer) for answer in ANSWERS for prompt in PROMPTS]
    prompts, answers = zip(*rows, strict=True)
    generator, reference = generator_of(trio), reference_of(trio)
    wanted = [reference.logprobs([prompt] * 3, [1.5], answer) for prompt, answer in rows]
    for batch_size in (32, 5):
        scores = generator.score(prompts, answers, alpha=1.5, batch_size=batch_size)
        for score, answer, logprobs in zip(scores, answers, wanted, strict=True):
            assert score.token_ids == tuple(answer)
            require_equal(score.logprobs, logprobs)


def test_alpha_parts_prompts_that_look_alike() -> None:
    """Rows of one prompt under several α, 0 among them, are each scored under their own."""
    trio = next(iter(TRIOS.values()))()
    alphas = [0.0, 1.0, 0.0, 2.0, 1.0, -1.0]
    answers = [ANSWERS[place % 4] for place in range(6)]
    scores = generator_of(trio).score([PROMPTS[0]] * 6, answers, alpha=alphas)
    for score, answer, alpha in zip(scores, answers, alphas, strict=True):
        require_equal(score.logprobs, reference_of(trio).logprobs([PROMPTS[0]] * 3, [alpha], answer))


def test_each_role_keeps_its_own_prompt_in_front_of_shared_answers() -> None:
    """Formats of different length per role: answers scored together equal each scored alone."""
    generator = tiny.generator(expert_prompt="alpaca")
    texts = ["w1 w2 w3", "w4"]
    rows = [(text, answer) for text in texts for answer in ANSWERS]
    prompts, answers = zip(*rows, strict=True)
    together = generator.score(prompts, answers)
    for (prompt, answer), score in zip(rows, together, strict=True):
        [alone] = generator.score(prompt, [answer])
        require_equal(score.logprobs, alone.logprobs)
        assert score.is_greedy == alone.is_greedy


def test_single_token_answers_need_no_second_pass() -> None:
    """Letters behind one question are judged by the prompt's own logits."""
    generator = tiny.generator()
    letters = [(index,) for index in (5, 6, 7, 8)]
    with tokens_read(generator) as counts:
        scores = generator.score([PROMPTS[0]] * 4, letters)
    assert counts == [len(PROMPTS[0])]
    for letter, score in zip(letters, scores, strict=True):
        require_equal(score.logprobs, generator.score(PROMPTS[0], [letter])[0].logprobs)


def test_a_prompt_is_read_once_for_all_its_answers() -> None:
    """Two questions with four answers each: two prompts and eight answers are read, not eight prompts."""
    generator = tiny.generator()
    prompts = [tiny.prompt_ids(30, seed=seed) for seed in (1, 2)]
    rows = [(prompt, answer) for answer in ANSWERS for prompt in prompts]
    with tokens_read(generator) as counts:
        generator.score(*map(list, zip(*rows, strict=True)))
    longest = max(len(answer) for answer in ANSWERS)
    assert counts == [2 * 30, 6 * (longest - 1)], "the two answers of one token need no second pass"


def test_answers_of_unlike_length_are_read_in_groups() -> None:
    """Eight answers of 2 tokens and four of 40 are two passes, not twelve rows of 40; each scores as alone."""
    generator = tiny.generator()
    answers = [tiny.prompt_ids(length, seed=seed)[:length] for seed, length in enumerate([2] * 8 + [40] * 4)]
    with tokens_read(generator) as counts:
        together = generator.score([PROMPTS[0]] * 12, answers)
    assert counts == [len(PROMPTS[0]), 8 * 1, 4 * 39]
    for answer, score in zip(answers, together, strict=True):
        require_equal(score.logprobs, generator.score(PROMPTS[0], [answer])[0].logprobs)


@pytest.mark.parametrize("name", TRIOS)
def test_examples_in_front_of_every_question_are_read_once(name: str) -> None:
    """Prompts that begin with the same 20 tokens, of different length and with repeats, equal the reference."""
    trio = TRIOS[name]()
    examples = tiny.prompt_ids(20, seed=9)
    prompts = [examples + prompt for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[1], PROMPTS[2])]
    generator, reference = generator_of(trio), reference_of(trio)
    alphas = [0.0, 1.5, 1.5, -1.0]
    with tokens_read(generator) as counts:
        scores = generator.score(prompts, ANSWERS, alpha=alphas)
    if name not in ("mistral", "gemma2"):  # windows count padding, so there it is read row by row
        assert counts[0] >= 20
        assert sum(counts) < sum(len(prompt) for prompt in prompts)
    for prompt, answer, alpha, score in zip(prompts, ANSWERS, alphas, scores, strict=True):
        require_equal(score.logprobs, reference.logprobs([prompt] * 3, [alpha], answer))
