"""Logits that are NaN or infinite: an error that names role, row and position, by every way through the composite."""

from typing import Any

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.errors import NonFiniteLogitsError, ProxyTuneError
from tests import tiny

MARK = 60  # the token after which a broken role gives no number
PROMPTS = [tiny.prompt_ids(5, seed=1, vocab_size=60), [*tiny.prompt_ids(7, seed=2, vocab_size=60), MARK]]


def broken(seed: int, value: float = float("nan")) -> Any:
    """Return a model whose last hidden states are `value` where it reads MARK, and sound elsewhere.

    A NaN that enters before attention spreads to earlier positions of the same forward, since 0 · NaN is NaN.
    """
    model = tiny.new_model("llama", seed)
    read: list[torch.Tensor] = []

    def note(_model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        read[:] = [kwargs["input_ids"]]

    def spoil(_norm: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.masked_fill((read[0] == MARK)[..., None], value)

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.model.norm.register_forward_hook(spoil)
    return model


def generator_of(role: str, **settings: Any) -> ProxyGenerator:
    """Return a generator of which one role is broken."""
    roles = dict(zip(("base", "expert", "anti"), (broken(seed) for seed in (1, 2, 3)), strict=True))
    sound = dict(zip(roles, tiny.trio(), strict=True))
    return ProxyGenerator(**{**sound, role: roles[role]}, tokenizer=tiny.word_tokenizer(), **settings)


@pytest.mark.parametrize("role", ["base", "expert", "anti"])
def test_scoring_names_role_prompt_and_position(role: str) -> None:
    """Of two prompts in one batch the second is broken at its last token, the eighth."""
    with pytest.raises(NonFiniteLogitsError, match=rf"logits of the {role} are NaN .* in row 1 at position 7") as error:
        generator_of(role).score(PROMPTS, [[5, 6], [7]])
    assert (error.value.role, error.value.row, error.value.position) == (role, 1, 7)
    assert isinstance(error.value, ProxyTuneError)
    assert isinstance(error.value, FloatingPointError)


def test_scoring_continuations_of_one_prompt_names_the_continuation() -> None:
    """The prompt is sound, and the second of its answers is broken at its first token."""
    prompt = PROMPTS[0]
    with pytest.raises(NonFiniteLogitsError) as error:
        generator_of("anti").score([prompt, prompt], [[5, 6, 7], [MARK, 7]])
    assert (error.value.row, error.value.position) == (1, len(prompt))


def test_beams_name_the_prompt() -> None:
    """Beam search has several rows per prompt; the error has the prompt's number."""
    with pytest.raises(NonFiniteLogitsError, match=r"expert .* row 1 at position 7"):
        generator_of("expert").generate(PROMPTS, num_beams=3, max_new_tokens=4)


def test_a_trace_names_the_position() -> None:
    """Tracing reads roles one by one, and refuses as scoring does."""
    with pytest.raises(NonFiniteLogitsError, match=r"base .* row 0 at position 5"):
        generator_of("base").trace(PROMPTS[0], continuation=[MARK, 6])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_forward_of_the_composite_refuses(value: float) -> None:
    """Transformers' own callers get the error too; an infinite hidden state becomes NaN or infinite logits."""
    base, _, anti = tiny.trio()
    model = ProxyGenerator(base, broken(2, value), anti, tokenizer=tiny.word_tokenizer()).model
    with pytest.raises(NonFiniteLogitsError, match=r"expert .* row 0 at position 2"):
        model(torch.tensor([[1, 5, MARK, 7]]))


def test_a_row_without_steering_does_not_mind_a_broken_expert() -> None:
    """Rows whose α is 0 read neither expert nor anti, whatever else is in their batch."""
    scores = generator_of("expert").score(PROMPTS, [[5, 6], [7]], alpha=[1.0, 0.0])
    sound = tiny.generator().score(PROMPTS, [[5, 6], [7]], alpha=[1.0, 0.0])
    assert [score.logprobs for score in scores] == [pytest.approx(score.logprobs, abs=1e-5) for score in sound]


def test_padding_does_not_count() -> None:
    """A pad token that gives NaN says nothing of a text."""
    model = generator_of("base").model
    ids, mask = torch.tensor([[MARK, 1, 5], [1, 6, 7]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(NonFiniteLogitsError):
        model(ids)
    assert model(ids, attention_mask=mask).logits[1].isfinite().all()
