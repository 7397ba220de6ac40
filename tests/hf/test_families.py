"""Every causal family of the installed transformers against cache-less arithmetic: equal in every mode, or refused."""

from collections.abc import Callable
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import RoleError, RuntimeUnsupportedError
from tests import families, tiny
from tests.reference import Reference

pytestmark = pytest.mark.filterwarnings("ignore:.*every token reads all of it again")
TOLERANCE = 2e-3
NUM_TOKENS = 4
ALPHAS = [1.0]
# No kind of forward of these gives a text's next token; the reason names why.
REFUSED = {
    **dict.fromkeys(families.ENCODERS, "set is_decoder to true"),
    **dict.fromkeys(("cpmant", "prophetnet"), "change with the tokens after it"),
    **dict.fromkeys(("xlm", "xlm:causal", "xlnet"), "its own generate reads more than the tokens"),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "inputs_embeds and shared_kv_states"),
    "reformer": "hashed attention gives tokens other neighbours as the text grows",
    **dict.fromkeys(("musicgen", "musicgen_melody"), "a forward over token ids alone fails"),
}
CAUSAL = [name for name in families.VARIANTS if name not in REFUSED]


def _trio(name: str) -> list[Any]:
    try:
        return [families.new_model(name, seed) for seed in (1, 2, 3)]
    except ImportError as error:
        pytest.skip(f"{name} cannot be built here: {error}")


def _generator(trio: list[Any], **settings: Any) -> ProxyGenerator:
    return ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), **settings)


def _alone(generator: ProxyGenerator, reference: Reference) -> None:
    prompt = tiny.prompt_ids(7, seed=70)
    [done] = generator.generate([prompt], max_new_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    expected = reference.greedy([prompt] * 3, ALPHAS, NUM_TOKENS)
    assert list(done.token_ids) == expected
    logprobs = reference.logprobs([prompt] * 3, ALPHAS, expected)
    assert [entry.logprob for entry in done.logprobs] == pytest.approx(logprobs, abs=TOLERANCE)


def _ragged(generator: ProxyGenerator, reference: Reference) -> None:
    prompts = [tiny.prompt_ids(length, seed=length) for length in (9, 3, 6)]
    done = generator.generate(prompts, max_new_tokens=NUM_TOKENS, ignore_eos=True, batch_size=3)
    for prompt, completion in zip(prompts, done, strict=True):
        assert list(completion.token_ids) == reference.greedy([prompt] * 3, ALPHAS, NUM_TOKENS)


def _beams(generator: ProxyGenerator, reference: Reference) -> None:
    prompts = [tiny.prompt_ids(length, seed=length) for length in (8, 5)]
    done = generator.generate(prompts, max_new_tokens=3, ignore_eos=True, num_beams=2, batch_size=2)
    for prompt, completion in zip(prompts, done, strict=True):
        assert list(completion.token_ids) == reference.beams([prompt] * 3, ALPHAS, 2, 3)[0][0]


def _score(generator: ProxyGenerator, reference: Reference) -> None:
    beginning, other = tiny.prompt_ids(17, seed=5), tiny.prompt_ids(4, seed=6)
    rows = [([*beginning, 7], [5, 6, 9]), ([*beginning, 7], [8]), ([*beginning, 9, 8], [11, 12]), (other, [13, 14])]
    for part in (rows[:3], rows[2:]):
        for (prompt, continuation), score in zip(part, generator.score(*zip(*part, strict=True)), strict=True):
            expected = reference.logprobs([prompt] * 3, ALPHAS, continuation)
            assert score.logprobs == pytest.approx(expected, abs=TOLERANCE)


def _trace(generator: ProxyGenerator, reference: Reference) -> None:
    prompt, continuation = tiny.prompt_ids(5, seed=9), tiny.prompt_ids(35, seed=8)[1:]
    tokens = generator.trace(prompt, continuation=continuation).tokens
    for place in (0, 31, 32, 33):  # on both sides of the end of a chunk
        read = [[*prompt, *continuation[:place]]] * 3
        probabilities = reference.logits(read, ALPHAS).softmax(-1)
        [candidate] = [entry for entry in tokens[place].candidates if entry.token_id == int(probabilities.argmax())]
        assert candidate.probabilities[-1] == pytest.approx(float(probabilities.max()), abs=TOLERANCE)


MODES: dict[str, Callable[[ProxyGenerator, Reference], None]] = {
    "alone": _alone,
    "ragged": _ragged,
    "beams": _beams,
    "score": _score,
    "trace": _trace,
}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_family_gives_the_tokens_of_the_arithmetic_in_every_mode(name: str) -> None:
    """One row, a ragged batch, beams, score and trace equal plain models recomputed token by token."""
    trio = _trio(name)
    generator = _generator(trio)
    reference = Reference(trio[0], [(trio[1], trio[2])], int(generator.model.config.vocab_size))
    for check in MODES.values():
        check(generator, reference)


def test_the_most_used_families_are_all_steered() -> None:
    """None of today's 25 most used is among those refused."""
    assert len(families.MOST_USED) == 25
    assert set(families.MOST_USED) <= set(CAUSAL)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_no_causal_language_model_is_refused_by_name(name: str) -> None:
    """The error names role, family and reason."""
    with pytest.raises(RoleError, match=f"^base is a {_trio(name)[0].config.model_type} .*{REFUSED[name]}"):
        _generator(_trio(name))


@pytest.mark.parametrize("name", ["phi3", "mamba", "rwkv", "phi3:longrope"])
def test_speculation_is_refused_where_the_loop_is_not_proved(name: str) -> None:
    """A number of drafts that was asked for is never passed over."""
    with pytest.raises(RuntimeUnsupportedError, match="no speculation here: base"):
        _generator(_trio(name), speculation=3)
