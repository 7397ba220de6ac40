"""Text as it comes: the same as generate's, never taken back, and a thread that ends."""

import threading
from typing import Any

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.detokenize import TextStream, decode
from tests import tiny

OPTIONS: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
TOKENIZERS = {
    "words": tiny.word_tokenizer,
    "bytes": tiny.byte_tokenizer,
    "sentencepiece": tiny.sentencepiece_like_tokenizer,
}


def generator_for(name: str, **settings: Any) -> ProxyGenerator:
    """Return a generator whose vocabulary is that tokenizer's."""
    tokenizer = TOKENIZERS[name]()
    trio = [tiny.model("llama", seed, vocab_size=len(tokenizer), context=64) for seed in (1, 2, 3)]
    return ProxyGenerator(*trio, tokenizer=tokenizer, **settings)


def no_stream_runs() -> bool:
    """Return whether every streaming thread has ended."""
    return not any(thread.name == "proxytune-stream" for thread in threading.enumerate())


@pytest.mark.parametrize("prompt", [[1], [1, 20, 30], [1, 40, 50, 60]])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_join_to_the_text_of_generate(name: str, prompt: list[int]) -> None:
    """Greedy and sampled, for tokenizers that join words, bytes or marked pieces."""
    generator = generator_for(name)
    for options in ({}, {"temperature": 1.0, "seed": 4}, {"repetition_penalty": 1.5}):
        [done] = generator.generate([prompt], **OPTIONS, **options)
        pieces = list(generator.stream(prompt, **OPTIONS, **options))
        assert "".join(pieces) == done.text
        assert all(pieces)
        assert len(pieces) > 1
    assert no_stream_runs()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_stop_text_is_held_back(name: str) -> None:
    """No part of a stop text is shown, wherever it begins; without it everything is."""
    generator = generator_for(name)
    [free] = generator.generate([[1, 20, 30]], **OPTIONS)
    for first in range(4, len(free.text) - 3):
        stop = free.text[first : first + 3]
        if "\ufffd" in stop:  # What a broken character looks like cannot be asked for.
            continue
        [done] = generator.generate([[1, 20, 30]], stop=stop, **OPTIONS)
        shown = "".join(generator.stream([1, 20, 30], stop=[stop, "never this"], **OPTIONS))
        assert shown == done.text == free.text[: free.text.index(stop)]


def test_end_of_text_is_not_shown() -> None:
    """An end-of-text id ends the stream; the text is generate's."""
    [free] = generator_for("words").generate([[1, 20]], **OPTIONS)
    generator = generator_for("words", eos_token_ids=[free.token_ids[7]])
    [done] = generator.generate([[1, 20]], max_new_tokens=30)
    assert done.finish_reason == "eos"
    assert "".join(generator.stream([1, 20], max_new_tokens=30)) == done.text


TEXTS = ["naïve 🙂 test 👩‍👩‍👧 ended", "日本語、テスト。", "🙂🙂", "a\u00a0b\nc\t", "ends open 👩‍👩‍👧"]


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_characters_of_several_tokens_come_whole(name: str, text: str) -> None:
    """Bytes of one character are held until it is complete: U+FFFD never shows, and nothing is lost."""
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > len(text) or text.isascii()
    stream = TextStream(tokenizer, before=ids[0])
    pieces = [stream.push(index) for index in ids[1:]]
    pieces.append(stream.finish())
    assert "".join(pieces) == decode(tokenizer, ids[1:], ids[0])
    whole = decode(tokenizer, ids)
    if "\ufffd" not in decode(tokenizer, ids[1:], ids[0]):
        assert not any("\ufffd" in piece for piece in pieces)
        assert whole.endswith("".join(pieces))


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
def test_a_character_cut_off_by_the_limit(name: str) -> None:
    """What was held back at the end comes as the tokenizer writes it, as in generate."""
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer("ab🙂", add_special_tokens=False).input_ids[:-1]
    stream = TextStream(tokenizer, before=tiny.BOS)
    pieces = [stream.push(index) for index in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == decode(tokenizer, ids, tiny.BOS)


@pytest.mark.parametrize("cut", range(1, 12))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_tokens_join_whatever_the_prompt(name: str, cut: int) -> None:
    """For random ids, special ones among them, the pieces join to the text decoded at once."""
    tokenizer = TOKENIZERS[name]()
    draws = torch.Generator().manual_seed(cut)
    ids = torch.randint(0, len(tokenizer), (60,), generator=draws).tolist()
    stream = TextStream(tokenizer, before=ids[cut - 1])
    pieces = "".join(stream.push(index) for index in ids[cut:]) + stream.finish()
    assert pieces == decode(tokenizer, ids[cut:], ids[cut - 1])


def test_the_space_between_prompt_and_answer() -> None:
    """A tokenizer that drops a text's first space keeps the one between the prompt's last word and the answer."""
    tokenizer = tiny.sentencepiece_like_tokenizer()
    word = tokenizer.convert_tokens_to_ids("▁the")
    assert decode(tokenizer, [word, word]) == "the the"
    assert decode(tokenizer, [word, word], before=word) == " the the"
    assert decode(tokenizer, [word], before=tiny.BOS) == "the"


def test_closing_early_ends_the_work() -> None:
    """After close() no thread runs and the model is called no more."""
    generator = generator_for("words")
    calls: list[int] = []
    handle = generator.model.base.register_forward_hook(lambda *_: calls.append(1))
    stream = generator.stream([1, 20], max_new_tokens=50, ignore_eos=True)
    assert next(stream)
    stream.close()
    handle.remove()
    assert no_stream_runs()
    assert len(calls) < 50


def test_a_stream_that_is_never_read_does_nothing() -> None:
    """No thread starts before the first piece is asked for."""
    stream = generator_for("words").stream([1, 20], **OPTIONS)
    assert no_stream_runs()
    stream.close()


def test_an_error_of_the_model_reaches_the_reader() -> None:
    """Raised in the thread, it comes out where the text is read, behind what came before it."""
    generator = generator_for("words")
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("a broken kernel")

    handle = generator.model.base.register_forward_pre_hook(fail)
    stream = generator.stream([1, 20], **OPTIONS)
    pieces = []
    with pytest.raises(RuntimeError, match="a broken kernel"):
        pieces.extend(stream)
    handle.remove()
    assert no_stream_runs()
    assert "".join(generator.stream([1, 20], **OPTIONS)) != ""


def test_two_streams_at_once() -> None:
    """Each has its own cache and thread: read in turn, they give what each gives alone."""
    generator = generator_for("words")
    prompts = [[1, 20, 21], [1, 30]]
    wanted = [generator.generate([prompt], **OPTIONS)[0].text for prompt in prompts]
    streams = [generator.stream(prompt, **OPTIONS) for prompt in prompts]
    found = ["", ""]
    for pieces in zip(*streams, strict=False):
        for place, piece in enumerate(pieces):
            found[place] += piece
    for place, stream in enumerate(streams):
        found[place] += "".join(stream)
    assert all(text.startswith(part) or text == part for text, part in zip(wanted, found, strict=True))
    assert no_stream_runs()


def test_errors_of_the_call_come_at_the_call() -> None:
    """A prompt that cannot be read is refused before anything is iterated."""
    with pytest.raises(ValueError, match="the prompt is empty"):
        generator_for("words").stream("")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4}, {"stop": "w2"}])
def test_the_completion_is_the_streams_return_value(options: dict[str, Any]) -> None:
    """It equals generate's in text, ids and reason, and is there once the stream has ended by itself."""
    generator = generator_for("words")
    [wanted] = generator.generate([[1, 20, 30]], **OPTIONS, **options)
    finished: list[Any] = []

    def collect() -> Any:
        finished.append((yield from generator.stream([1, 20, 30], **OPTIONS, **options)))

    assert "".join(collect()) == wanted.text
    [done] = finished
    assert (done.text, done.token_ids, done.finish_reason) == (wanted.text, wanted.token_ids, wanted.finish_reason)
    assert done.prompt == [1, 20, 30]
    assert 0 < done.timing.first_token_seconds <= done.timing.seconds


def test_an_end_of_text_is_part_of_the_streams_ids() -> None:
    """As in generate: in token_ids, not in the text."""
    [free] = generator_for("words").generate([[1, 20]], **OPTIONS)
    generator = generator_for("words", eos_token_ids=[free.token_ids[7]])

    finished: list[Any] = []

    def collect() -> Any:
        finished.append((yield from generator.stream([1, 20], max_new_tokens=30)))

    list(collect())
    [wanted] = generator.generate([[1, 20]], max_new_tokens=30)
    assert (finished[0].token_ids, finished[0].finish_reason) == (wanted.token_ids, "eos")
