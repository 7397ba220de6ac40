"""Each value out of range has its own error, before anything runs."""

import math
from typing import Any

import pytest
import torch

from proxytune import GenerationOptions, ProxyTuneError
from proxytune.errors import InputError, OptionError, UnknownOptionError
from tests import tiny

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *[("max_new_tokens", value, "whole number of at least 1") for value in (0, -1, 2.0, "8", None, True)],
        *[("num_beams", value, "whole number of at least 1") for value in (0, -2, 1.5, None)],
        *[("num_return_sequences", value, "whole number of at least 1") for value in (0, -2, 1.5)],
        *[("batch_size", value, "whole number of at least 1") for value in (0, -2, 1.5)],
        *[("temperature", value, "0 or more") for value in (-0.1, NAN, INF, "1", None)],
        *[("top_p", value, r"in \(0, 1\]") for value in (0, -0.5, 1.1, NAN, None)],
        *[("top_k", value, "whole number of at least 0") for value in (-1, 2.5, None)],
        *[("min_p", value, r"in \[0, 1\]") for value in (-0.1, 1.1, NAN, None)],
        *[("repetition_penalty", value, "above 0") for value in (0, -1, NAN, INF, None)],
        *[("length_penalty", value, "a finite number") for value in (NAN, INF, None)],
        *[("logprobs", value, "whole number of at least 0") for value in (-1, 1.5, True)],
        *[("stop", value, "at least one character") for value in ("", ["a", ""], [3])],
    ],
)
def test_value_out_of_range(name: str, value: Any, wanted: str) -> None:
    """The error names the option, the value and what it must be."""
    with pytest.raises(OptionError, match=f"^{name} is .*: it must be .*{wanted}"):
        GenerationOptions.from_kwargs({name: value})


def test_values_at_the_limit() -> None:
    """The ends of each range are inside."""
    options = GenerationOptions(temperature=0, top_p=1, top_k=0, min_p=1, logprobs=0, max_new_tokens=1, stop=["a"])
    assert options.stop == ("a",)
    assert GenerationOptions(stop="ab").stop == ("ab",)
    assert not options.is_sampled


@pytest.mark.parametrize(
    ("name", "near"), [("max_tokens", "max_new_tokens"), ("temprature", "temperature"), ("num_beam", "num_beams")]
)
def test_unknown_option_suggests_the_nearest(name: str, near: str) -> None:
    """A misspelt option is an error that names the right one; it is a TypeError too."""
    with pytest.raises(UnknownOptionError, match=f"unknown option '{name}': did you mean '{near}'") as error:
        tiny.generator().generate("w1", **{name: 1})  # type: ignore[arg-type]
    assert isinstance(error.value, TypeError)


def test_unknown_option_like_no_other_lists_all() -> None:
    """Where nothing is near, the known options are listed."""
    with pytest.raises(UnknownOptionError, match=r"unknown option 'xyz': known options: max_new_tokens, temperature"):
        tiny.generator().stream("w1", xyz=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"num_beams": 2, "temperature": 0.5}, "beam search is deterministic"),
        ({"num_return_sequences": 2}, "under greedy decoding gives equal texts"),
        ({"num_beams": 2, "num_return_sequences": 3}, "exceeds num_beams=2"),
        ({"seed": [1]}, "one for each of the 2 prompts"),
        ({"seed": [1, 2, 3]}, "one for each of the 2 prompts"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": [1, "2"]}, "seed is"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64, "temperature": 1.0}, "seed is"),
        ({"alpha": NAN}, "alpha is nan: it must be a finite number"),
        ({"alpha": INF}, "alpha is inf: it must be a finite number"),
        ({"alpha": "1"}, "alpha is '1': it must be a finite number"),
        ({"alpha": [1.0, -INF]}, "alpha is -inf: it must be a finite number"),
        ({"alpha": torch.tensor([NAN, 1.0])}, "alpha is nan: it must be a finite number"),
        ({"alpha": [1.0]}, "alpha has 1 entries for 2 prompts"),
        ({"alpha": [1.0, 2.0, 3.0]}, "alpha has 3 entries for 2 prompts"),
        ({"alpha": [[1.0, 2.0], 1.0]}, r"alpha lists 2 numbers for 1 pair\(s\)"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], wanted: str) -> None:
    """Options that contradict each other or the prompts are refused by name."""
    with pytest.raises(OptionError, match=wanted):
        tiny.generator().generate(["w1", "w2"], **options)


@pytest.mark.parametrize("alpha", [NAN, INF, -INF, "1", None, True])
def test_configured_alpha_must_be_finite(alpha: Any) -> None:
    """α of the generator is checked before loading."""
    with pytest.raises(OptionError, match="it must be a finite number"):
        tiny.generator(alpha=alpha)


@pytest.mark.parametrize("alpha", [NAN, INF])
def test_the_composite_itself_refuses_a_strength_that_is_not_finite(alpha: float) -> None:
    """Called as a plain transformers model, it does not quietly fall back to the base."""
    with pytest.raises(OptionError, match="finite"):
        tiny.generator().model(torch.tensor([tiny.prompt_ids(4)]), alpha=alpha)


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"num_return_sequences": 2, "temperature": 1.0}, {"logprobs": 0}]
)
def test_what_a_stream_cannot_do(options: dict[str, Any]) -> None:
    """Beams, several sequences and log-probabilities are refused at the call, not at the first token."""
    with pytest.raises(OptionError, match="use generate"):
        tiny.generator().stream("w1", **options)


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        ([], "there is no prompt"),
        ("", "prompt 0: the prompt is empty"),
        (["w1", ""], "prompt 1: the prompt is empty"),
        ([[]], "prompt 0: the prompt is an empty list"),
        ([[5, 64]], "prompt 0 of base holds token id 64, but the ids that it knows go from 0 to 63"),
        ([[5, 6], ["a"]], "prompt 1: item 0"),
        (["w1", 3], "prompt 1: the prompt is 3"),
        (3, "prompts are 3"),
        (None, "prompts are None"),
        ({"role": "user", "content": "w1"}, "prompts are {'role'"),
    ],
)
def test_prompts_that_cannot_be_read(prompts: Any, wanted: str) -> None:
    """No prompt, an empty one, an id no role knows, something that is no prompt: each names the place."""
    with pytest.raises(InputError, match=wanted):
        tiny.generator().generate(prompts)


@pytest.mark.parametrize(
    ("prompts", "continuations", "wanted"),
    [
        (["w1"], ["w2", "w3"], "1 prompts and 2 continuations"),
        (["w1"], [""], "continuation 0 is empty"),
        (["w1", "w2"], [" w3", []], "continuation 1 is empty"),
        (["w1"], ["w3"], r"continuation 0 \('w3'\) joins the last word of its prompt"),
        (["w1"], [[64]], "continuation 0 holds token id 64"),
        (["w1"], [[-1]], "continuation 0 holds token id -1"),
        ([], [], "there is no prompt"),
    ],
)
def test_continuations_that_cannot_be_scored(prompts: Any, continuations: Any, wanted: str) -> None:
    """Counts that differ, nothing to score, ids nobody knows."""
    with pytest.raises(InputError, match=wanted):
        tiny.generator().score(prompts, continuations)


@pytest.mark.parametrize(("shortest", "place"), [("base", 0), ("expert", 1), ("anti", 2)])
def test_prompt_longer_than_the_shortest_context(shortest: str, place: int) -> None:
    """The error names the role whose context is the shortest, both lengths, and by how much to shorten."""
    contexts = [40, 40, 40]
    contexts[place] = 12
    trio = [tiny.model("llama", seed, context=context) for seed, context in zip((1, 2, 3), contexts, strict=True)]
    from proxytune import ProxyGenerator

    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    wanted = f"prompt 1 has 15 tokens for the {shortest}, whose context of 12 is the shortest: shorten it by 4"
    for ask in (generator.generate, lambda prompts: list(generator.generate_as_done(prompts))):
        with pytest.raises(ProxyTuneError, match=wanted):
            ask([tiny.prompt_ids(3), tiny.prompt_ids(15)])
    [done] = generator.generate(tiny.prompt_ids(11), ignore_eos=True)
    assert len(done.token_ids) == 1


@pytest.mark.parametrize("options", [{"temperature": 2, "top_k": 5}, {"repetition_penalty": 2}, {"temperature": 1}])
def test_whole_numbers_do_for_numbers(options: dict[str, Any]) -> None:
    """2 is as good as 2.0."""
    generator = tiny.generator()
    [found] = generator.generate("w1 w2", max_new_tokens=3, seed=1, **options)
    [wanted] = generator.generate(
        "w1 w2",
        max_new_tokens=3,
        seed=1,
        **{key: value if key == "top_k" else float(value) for key, value in options.items()},
    )
    assert found.token_ids == wanted.token_ids


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45])
def test_a_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    """Logits divided by almost nothing do not overflow into nonsense."""
    generator, prompt = tiny.generator(), tiny.prompt_ids(5)
    options: dict[str, Any] = {"max_new_tokens": 5, "ignore_eos": True}
    [greedy] = generator.generate(prompt, **options)
    [cold] = generator.generate(prompt, temperature=temperature, seed=0, **options)
    assert cold.token_ids == greedy.token_ids
