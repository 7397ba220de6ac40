"""Prompts and continuations as token ids: nothing of them is lost, nothing is added behind them."""

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from proxytune import ProxyGenerator
from proxytune.encoding import encode, split_continuation
from proxytune.errors import InputError, PromptFormatError
from tests import tiny

OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "ignore_eos": True}


def byte_generator(**settings: Any) -> ProxyGenerator:
    """Return a generator over the byte-level tokenizer, whose `l l` is one token and so is ` w`."""
    trio = [tiny.model("llama", seed, vocab_size=262, context=256) for seed in (1, 2, 3)]
    return ProxyGenerator(*trio, tokenizer=tiny.byte_tokenizer(), **settings)


@pytest.mark.parametrize("form", ["raw", "Q: {prompt}", "alpaca", "chatml"])
def test_a_blank_at_the_end_of_a_prompt_is_scored_with_the_word_behind_it(form: str) -> None:
    """However the blank is divided between prompt and continuation, every word is scored, by the same tokens."""
    generator = byte_generator(base_prompt=form, expert_prompt="alpaca")
    [good] = generator.score(["a b:"], [" we"])
    [odd] = generator.score(["a b: "], ["we"])
    text = generator.tokenizer.decode(list(odd.token_ids))
    if form in ("raw", "Q: {prompt}"):
        assert odd.token_ids == good.token_ids
        assert (text, generator.tokenizer.convert_ids_to_tokens(odd.token_ids[0])) == (" we", "Ġw")
    else:
        # The blank is inside the template, which goes on behind it.
        assert text == "we"


def test_roles_whose_prompt_ends_otherwise_keep_the_blank() -> None:
    """The anti's template has the prompt in its middle, so its ids are those that generating reads."""
    generator = byte_generator(anti_prompt="{prompt}!")
    [score] = generator.score(["a "], ["b"])
    [whole] = generator.score([generator.tokenizer("a").input_ids], [list(score.token_ids)])
    assert score.token_ids == whole.token_ids
    assert score.logprobs != pytest.approx(whole.logprobs, abs=1e-4), "the anti has read more than the base"


def test_a_continuation_that_would_join_the_last_token_is_encoded_alone() -> None:
    """`l` and `l` are one token; the prompt keeps its own, and the continuation is scored from its first letter."""
    tokenizer = tiny.byte_tokenizer()
    head, ids = split_continuation(tokenizer, "al", "la") or ([], [])
    assert tokenizer.convert_ids_to_tokens(head) == ["a", "l"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["l", "a"]
    [score] = byte_generator().score(["al"], ["la"])
    assert score.token_ids == tuple(ids)


def test_a_continuation_that_cannot_be_cut_off_is_refused() -> None:
    """A tokenizer of whole words has no token for half of one."""
    assert split_continuation(tiny.word_tokenizer(), "w1", "w2") is None


def test_a_tokenizer_that_closes_its_texts() -> None:
    """The end token it adds is dropped, the first token stays, and an end token in the text stays too."""
    tokenizer = tiny.word_tokenizer()
    plain = encode(tokenizer, "w1 w2")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tiny.BOS), ("</s>", tiny.EOS)]
    )
    assert tokenizer("w1 w2").input_ids == [*plain, tiny.EOS]
    assert encode(tokenizer, "w1 w2") == plain
    assert encode(tokenizer, "w1 </s>") == [tiny.BOS, plain[1], tiny.EOS]
    closing = ProxyGenerator(*tiny.trio(), tokenizer=tokenizer)
    [found], [expected] = closing.generate("w1 w2", **OPTIONS), tiny.generator().generate("w1 w2", **OPTIONS)
    assert found.token_ids == expected.token_ids
    assert closing.score("w1", " w2")[0].logprobs == pytest.approx(tiny.generator().score("w1", " w2")[0].logprobs)


def test_half_of_a_surrogate_pair() -> None:
    """In a prompt, a message or a continuation: an error that says where it is."""
    generator, half = byte_generator(), "\ud83d"
    with pytest.raises(InputError, match=r"prompt 0: the prompt holds half of a surrogate pair, .* at character 2"):
        generator.generate(f"ab{half}")
    with pytest.raises(InputError, match="half of a surrogate pair"):
        generator.generate([{"role": "user", "content": half}])
    with pytest.raises(InputError, match="continuation 0 holds half of a surrogate pair"):
        generator.score("a", half)
    with pytest.raises(InputError, match="stop holds half of a surrogate pair"):
        generator.generate("a", stop=half)


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}",  # never closed
        "{{ messages[0]['nothing']['at all'] }}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ raise_exception('no') }}",
        "{{ messages | nothing }}",
        "{{ range(10 ** 12) | list }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "",
        "{# nothing is written #}",
        7,
    ],
)
def test_a_chat_template_with_a_mistake(template: Any) -> None:
    """Whatever the mistake, one sentence that says which tokenizer's template it is."""
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(PromptFormatError, match="chat template"):
        ProxyGenerator(*tiny.trio(), tokenizer=tokenizer, base_prompt="chat").generate("w1")


def test_numbers_of_numpy_and_torch() -> None:
    """Ids, α, seeds and options from arrays are the plain numbers they hold."""
    generator = tiny.generator()
    ids = tiny.prompt_ids(5)
    plain = generator.generate([ids, ids], alpha=[0.5, 1.0], seed=[1, 2], temperature=0.5, max_new_tokens=4)
    for array in (np.array, torch.tensor):
        found = generator.generate(
            array([ids, ids]),
            alpha=array([0.5, 1.0]),
            seed=array([1, 2]),
            temperature=np.float32(0.5),
            max_new_tokens=np.int64(4),
            top_k=np.int32(0),
        )
        assert [done.token_ids for done in found] == [done.token_ids for done in plain]
    [score] = generator.score(np.array(ids), np.array([5, 6]), alpha=np.float32(0.5))
    assert score == generator.score(ids, [5, 6], alpha=0.5)[0]
    assert generator.score([list(np.array(ids))], [list(np.array([5, 6]))], alpha=0.5)[0] == score
