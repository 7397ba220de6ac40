"""When rows end: end-of-text ids, stop texts, limits; and the repetition penalty by hand."""

from typing import Any

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.errors import OptionError, ProxyTuneWarning
from proxytune.hf.sampling import PromptAwareRepetitionPenalty
from tests import tiny
from tests.reference import Reference

PROMPT = tiny.prompt_ids(6)
LONG: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}


def free_run(generator: ProxyGenerator, prompt: list[int] = PROMPT) -> tuple[list[int], list[str]]:
    """Return what comes without any end: ids and words."""
    [done] = generator.generate(prompt, **LONG)
    words = done.text.split(" ")[1:]  # The text continues the prompt's last word, so it begins with a space.
    assert len(words) == len(done.token_ids)
    return list(done.token_ids), words


def fresh_place(words: list[Any], least: int) -> int:
    """Return the first place from `least` on whose word did not come before."""
    return next(place for place in range(least, len(words)) if words[place] not in words[:place])


def test_length() -> None:
    """Without an end the limit is one, to the token."""
    [done] = tiny.generator().generate(PROMPT, **LONG)
    assert (len(done.token_ids), done.finish_reason) == (12, "length")


def test_eos_ends_a_row_and_counts_as_its_last_token() -> None:
    """An end-of-text id ends the row, stays in token_ids but not in the text, and `ignore_eos` goes on past it."""
    ids, words = free_run(tiny.generator())
    place = fresh_place(ids, 3)
    generator = tiny.generator(eos_token_ids=[ids[place]])
    [done] = generator.generate(PROMPT, max_new_tokens=12)
    assert list(done.token_ids) == ids[: place + 1]
    assert done.text.split() == words[:place]
    assert done.finish_reason == "eos"
    [past] = generator.generate(PROMPT, **LONG)
    assert (list(past.token_ids), past.finish_reason) == (ids, "length")


def test_eos_as_the_very_last_token_is_an_eos() -> None:
    """A row that ends at its limit with an end-of-text id says eos."""
    ids, _ = free_run(tiny.generator())
    place = fresh_place(ids, 3)
    [done] = tiny.generator(eos_token_ids=[ids[place]]).generate(PROMPT, max_new_tokens=place + 1)
    assert done.finish_reason == "eos"


def test_eos_text_is_left_out() -> None:
    """Special tokens are no part of the text."""
    trio = [tiny.new_model("llama", seed) for seed in (1, 2, 3)]
    for model in trio[:1]:
        model.lm_head.weight.data[2] = 40 * model.lm_head.weight.data[2]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    rows = generator.generate([tiny.prompt_ids(4, seed=seed) for seed in range(8)], max_new_tokens=12)
    ended = [row for row in rows if row.finish_reason == "eos"]
    assert ended
    for row in ended:
        assert row.token_ids[-1] == tiny.EOS
        assert "</s>" not in row.text
        assert len(row.text.split()) == sum(index > 3 for index in row.token_ids)


def test_eos_ids_of_all_roles_together() -> None:
    """A base that ends documents with one id and an expert that ends turns with others: any of them ends the text."""
    trio = [tiny.new_model("llama", seed, eos_token_id=eos) for seed, eos in ((1, 7), (2, [8, 9]), (3, 7))]
    trio[1].generation_config.eos_token_id = [8, 10]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    assert set(generator.eos_token_ids) == {7, 8, 9, 10, tiny.EOS}
    assert set(generator.model.generation_config.eos_token_id) == {7, 8, 9, 10, tiny.EOS}
    given = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), eos_token_ids=[11])
    assert given.eos_token_ids == (11,)
    assert given.model.generation_config.eos_token_id == [11]


def test_eos_beyond_the_shared_ids_is_left_out() -> None:
    """An id that cannot be generated ends nothing, and a warning says so."""
    trio = [tiny.new_model("llama", seed, vocab_size=80, eos_token_id=[2, 70]) for seed in (1, 2, 3)]
    with pytest.warns(ProxyTuneWarning, match="base and expert and anti end with id 70, which is beyond the 64 ids"):
        assert ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer()).eos_token_ids == (2,)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_stop_text(length: int) -> None:
    """Text is cut before a stop text of one, two or three tokens; the ids end with the token that completed it."""
    generator = tiny.generator()
    ids, words = free_run(generator)
    place = fresh_place(words, 3)
    stop = " ".join(words[place : place + length])
    [done] = generator.generate(PROMPT, stop=["not there", stop], **LONG)
    assert done.text == " ".join(["", *words[:place], ""])
    assert list(done.token_ids) == ids[: place + length]
    assert (done.finish_reason, done.timing.num_new_tokens) == ("stop", place + length)


def test_stop_text_inside_a_token() -> None:
    """A stop text that begins and ends in the middle of tokens is found."""
    generator = tiny.generator()
    ids, words = free_run(generator)
    place = fresh_place(words, 4)
    stop = words[place - 1][-1] + " " + words[place][:2]
    text = " ".join(["", *words])
    [done] = generator.generate(PROMPT, stop=stop, **LONG)
    assert done.text == text[: text.index(stop)]
    assert done.finish_reason == "stop"
    assert len(done.token_ids) < len(ids)


def test_stop_text_of_the_prompt_does_not_count() -> None:
    """Only generated text is searched."""
    generator = tiny.generator()
    prompt = "w5 w6 w7"
    [free] = generator.generate(prompt, **LONG)
    stop = next(word for word in ("w5", "w6", "w7") if word not in free.text.split())
    [done] = generator.generate(prompt, stop=f"{stop} ", **LONG)
    assert (done.text, done.finish_reason) == (free.text, "length")


def test_stop_in_the_middle_of_a_batch() -> None:
    """Rows that stop, end and run on in one padded batch equal each alone, log-probabilities counted to the end."""
    generator = tiny.generator()
    prompts = [tiny.prompt_ids(length, seed=length) for length in (5, 8, 3, 6)]
    words = [generator.generate(prompt, **LONG)[0].text.split() for prompt in prompts]
    stop = words[1][fresh_place(words[1], 4)]
    ids = list(generator.generate(prompts[2], **LONG)[0].token_ids)
    ending = tiny.generator(eos_token_ids=[ids[fresh_place(ids, 2)]])
    options: dict[str, Any] = {"max_new_tokens": 12, "stop": stop, "logprobs": 0}
    rows = ending.generate(prompts, batch_size=4, **options)
    assert {row.finish_reason for row in rows} == {"stop", "eos", "length"}
    for prompt, row in zip(prompts, rows, strict=True):
        [alone] = ending.generate(prompt, **options)
        assert (row.token_ids, row.text, row.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
        assert len(row.logprobs) == len(row.token_ids) == row.timing.num_new_tokens
        assert [entry.token_id for entry in row.logprobs] == list(row.token_ids)


def test_stop_with_beams() -> None:
    """A beam that contains the stop text ends there, and the text is cut."""
    generator = tiny.generator()
    [free] = generator.generate(PROMPT, num_beams=3, **LONG)
    words = free.text.split()
    place = fresh_place(words, 2)
    [done] = generator.generate(PROMPT, num_beams=3, stop=words[place], **LONG)
    assert words[place] not in done.text
    if done.finish_reason == "stop":
        assert done.token_ids[-1] == tiny.word_tokenizer().convert_tokens_to_ids(words[place])


class TestRepetitionPenalty:
    """CTRL's rule, over prompt and answer, never over padding."""

    def test_by_hand(self) -> None:
        """Seen tokens with positive logits are divided, with negative ones multiplied; others stay."""
        penalty = PromptAwareRepetitionPenalty(2.0, None)
        found = penalty(torch.tensor([[0, 2, 2]]), torch.tensor([[4.0, 4.0, -3.0, -3.0]]))
        assert found.tolist() == [[2.0, 4.0, -6.0, -3.0]]

    def test_padding_is_not_text(self) -> None:
        """A pad id on the left is not seen; the same id as text is."""
        penalty = PromptAwareRepetitionPenalty(2.0, torch.tensor([[0, 1], [1, 1]]))
        found = penalty(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.full((2, 4), 4.0))
        assert found.tolist() == [[4.0, 2.0, 2.0, 4.0], [2.0, 2.0, 2.0, 4.0]]

    def test_padding_of_beams(self) -> None:
        """Rows that beams repeat keep their mask."""
        penalty = PromptAwareRepetitionPenalty(2.0, torch.tensor([[0, 1], [1, 1]]))
        found = penalty(torch.tensor([[0, 1]] * 4), torch.full((4, 2), 4.0))
        assert found.tolist() == [[4.0, 2.0], [4.0, 2.0], [2.0, 2.0], [2.0, 2.0]]

    @pytest.mark.parametrize("penalty", [0.7, 1.0, 1.8])
    def test_greedy_equals_a_loop_by_hand(self, penalty: float) -> None:
        """Token by token: the reference's logits, changed for everything that stands before."""
        base, expert, anti = tiny.trio()
        reference = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
        chosen: list[int] = []
        for _ in range(8):
            logits = reference.logits([[*PROMPT, *chosen]] * 3, [1.0]).tolist()
            for index in {*PROMPT, *chosen}:
                logits[index] = logits[index] / penalty if logits[index] > 0 else logits[index] * penalty
            chosen.append(max(range(len(logits)), key=logits.__getitem__))
        [done] = tiny.generator().generate(PROMPT, max_new_tokens=8, ignore_eos=True, repetition_penalty=penalty)
        assert list(done.token_ids) == chosen

    def test_batched_equals_alone_where_pad_is_eos(self) -> None:
        """With padding by the end-of-text id, a padded row still ends as readily as alone."""
        trio = [tiny.new_model("llama", seed, pad_token_id=tiny.EOS) for seed in (1, 2, 3)]
        generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(pad_token="</s>"))
        assert generator.model.generation_config.pad_token_id == tiny.EOS
        prompts = [tiny.prompt_ids(length, seed=length) for length in (3, 12, 5, 9)]
        # The end is close to the top everywhere, so a penalty on it would show.
        trio[0].lm_head.weight.data[tiny.EOS] *= 6
        options: dict[str, Any] = {"max_new_tokens": 10, "repetition_penalty": 3.0, "logprobs": 0}
        rows = generator.generate(prompts, **options)
        assert "eos" in {row.finish_reason for row in rows}
        for prompt, row in zip(prompts, rows, strict=True):
            [alone] = generator.generate(prompt, **options)
            assert (row.token_ids, row.finish_reason) == (alone.token_ids, alone.finish_reason)


@pytest.mark.parametrize("pad", [-1, None, 63, 99])
def test_any_pad_id_in_the_config_will_do(pad: int | None) -> None:
    """Configs name pad ids such as −1 or one beyond the shared ids: padded rows still equal each alone."""
    trio = [tiny.new_model("llama", seed, vocab_size=100 if pad == 99 else 64) for seed in (1, 2, 3)]
    for model in trio:
        model.config.pad_token_id = model.generation_config.pad_token_id = pad
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    prompts = [tiny.prompt_ids(3), tiny.prompt_ids(9)]
    for prompt, row in zip(prompts, generator.generate(prompts, **LONG), strict=True):
        assert row.token_ids == generator.generate(prompt, **LONG)[0].token_ids


def test_stop_token_ids() -> None:
    """An id ends its row as a stop text does, with drafts and in streams, whatever `ignore_eos` says."""
    for settings in ({"speculation": "off"}, {"speculation": 3}):
        generator = tiny.generator(**settings)
        ids, words = free_run(generator)
        place = fresh_place(ids, 3)
        [done] = generator.generate(PROMPT, stop_token_ids=[ids[place], 63], **LONG)
        assert (list(done.token_ids), done.finish_reason) == (ids[: place + 1], "stop")
        assert done.text.split() == words[:place]
        assert "".join(generator.stream(PROMPT, stop_token_ids=[ids[place]], **LONG)) == done.text


def test_a_special_token_as_stop_text() -> None:
    """Decoded text does not show it, so its id ends the row; together with other text it is refused."""
    tokenizer = tiny.word_tokenizer()
    generator = tiny.generator()
    ids, words = free_run(generator)
    place = fresh_place(ids, 3)
    mark = tokenizer.convert_ids_to_tokens(ids[place])
    tokenizer.add_special_tokens({"additional_special_tokens": [mark]})
    special = ProxyGenerator(*tiny.trio(), tokenizer=tokenizer)
    [done] = special.generate(PROMPT, stop=mark, **LONG)
    assert (list(done.token_ids), done.finish_reason) == (ids[: place + 1], "stop")
    assert done.text.split() == words[:place]
    assert "".join(special.stream(PROMPT, stop=mark, **LONG)) == done.text
    with pytest.raises(OptionError, match=f"stop is .*{mark}.* is a special token, .* stop_token_ids=.{ids[place]}"):
        special.generate(PROMPT, stop=f"{mark} {words[place + 1]}")
    with pytest.raises(OptionError, match="stop_token_ids has 64, but the ids all roles share go from 0 to 63"):
        generator.generate(PROMPT, stop_token_ids=[64])
