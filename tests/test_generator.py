"""ProxyGenerator end to end: what goes in, and every field of what comes out."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import proxytune
from proxytune import Completion, ProxyGenerator
from proxytune.errors import PromptFormatError
from tests import tiny
from tests.reference import Reference

OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}


def test_a_completion_says_everything() -> None:
    """Prompt as passed, text, ids, reason, place, timing; log-probabilities only when asked for."""
    [done] = tiny.generator().generate("w1 w2 w3", **OPTIONS)
    assert isinstance(done, Completion)
    assert (done.prompt, done.index, done.sequence, done.finish_reason) == ("w1 w2 w3", 0, 0, "length")
    assert done.text.split() == tiny.word_tokenizer().decode(done.token_ids, skip_special_tokens=True).split()
    assert done.logprobs is None
    timing = done.timing
    assert (timing.batch_size, timing.num_prompt_tokens, timing.num_new_tokens) == (1, 4, 6)
    assert 0 < timing.first_token_seconds <= timing.seconds


@pytest.mark.parametrize("logprobs", [0, 1, 7])
def test_log_probabilities_are_as_many_as_asked_for(logprobs: int) -> None:
    """One per token, with the k likeliest, likeliest first; greedy's own is the first of them."""
    [done] = tiny.generator().generate("w1 w2", logprobs=logprobs, **OPTIONS)
    assert len(done.logprobs) == 6
    for entry in done.logprobs:
        values = list(entry.top.values())
        assert len(values) == logprobs
        assert values == sorted(values, reverse=True)
        assert entry.logprob <= 0
        if logprobs:
            assert next(iter(entry.top.items())) == (entry.token_id, entry.logprob)


def test_every_kind_of_prompt() -> None:
    """A text, messages, token ids, or a list of them, mixed too: equal content gives equal tokens."""
    generator = tiny.generator()
    messages = [{"role": "user", "content": "w1 w2"}]
    ids = [1, 5, 6]
    [alone] = generator.generate("w1 w2", **OPTIONS)
    assert generator.generate(messages, **OPTIONS)[0].token_ids == alone.token_ids
    assert generator.generate(ids, **OPTIONS)[0].token_ids == alone.token_ids
    rows = generator.generate(["w1 w2", messages, ids, tuple(ids)], **OPTIONS)
    assert [row.token_ids for row in rows] == [alone.token_ids] * 4
    assert rows[1].prompt == messages


def test_roles_read_one_conversation_each_in_its_format() -> None:
    """Chat template for the expert, a named text for the anti, raw for the base: the reference over those ids."""
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "<s> w30 {{ messages[-1]['content'] }} w31"
    trio = tiny.trio()
    generator = ProxyGenerator(*trio, tokenizer=tokenizer, expert_prompt="chat", anti_prompt="w9 {prompt}")
    [done] = generator.generate("w1 w2", **OPTIONS)
    ids = [[1, 5, 6], [1, 34, 5, 6, 35], [1, 13, 5, 6]]
    assert list(done.token_ids) == Reference(trio[0], [trio[1:]], tiny.VOCAB_SIZE).greedy(ids, [1.0], 6)


def test_chat_format_without_a_template_fails_before_weights_load(folders: dict[str, Path], tmp_path: Path) -> None:
    """It is told of roles whose weights nobody could read, and of loaded ones; the message says what to do instead."""
    shutil.copytree(folders["expert"], tmp_path / "expert")
    (tmp_path / "expert" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(PromptFormatError, match="needs a chat template"):
        ProxyGenerator(folders["base"], tmp_path / "expert", folders["anti"], expert_prompt="chat")
    with pytest.raises(PromptFormatError, match="needs a chat template"):
        tiny.generator(expert_prompt="chat")


def test_reprs_are_short_and_marked_in_notebooks() -> None:
    """Completion and trace show a line in a console; in a notebook the text, its characters escaped."""
    [done] = tiny.generator().generate("w1 w2 <b>", trace=True, **OPTIONS)
    assert repr(done) == f"Completion({done.text!r}, 6 tokens, length)"
    assert repr(done.trace).startswith(f"Trace({done.text!r}, 6 tokens, ")
    page = done._repr_html_()
    assert "&lt;b&gt;" in page
    assert page.count("<mark") == sum(token.is_changed for token in done.trace.tokens)
    assert repr(replace(done, text="x" * 10_000, error="it broke")).endswith("x…', 6 tokens, it broke)")


def test_the_tokenizer_that_was_given_encodes_for_roles_without_one(folders: dict[str, Path]) -> None:
    """As folder, as text or as object."""
    trio = tiny.trio()
    wanted = tiny.generator().generate("w1 w2", **OPTIONS)[0]
    for tokenizer in (folders["base"], str(folders["base"]), tiny.word_tokenizer()):
        [done] = ProxyGenerator(*trio, tokenizer=tokenizer).generate("w1 w2", **OPTIONS)
        assert (done.token_ids, done.text) == (wanted.token_ids, wanted.text)


def test_score_of_text() -> None:
    """A continuation in words is split behind the prompt and scored after every role's own prompt."""
    trio = tiny.trio()
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), expert_prompt="w9 w8 {prompt} w7")
    [score] = generator.score("w1 w2", " w3 w4 w5")
    assert score.token_ids == (7, 8, 9)
    ids = [[1, 5, 6], [1, 13, 12, 5, 6, 11], [1, 5, 6]]
    wanted = Reference(trio[0], [trio[1:]], tiny.VOCAB_SIZE).logprobs(ids, [1.0], [7, 8, 9])
    assert score.logprobs == pytest.approx(wanted, abs=1e-4)
    assert score.total == pytest.approx(sum(wanted), abs=3e-4)


def test_scores_are_probabilities() -> None:
    """Over all tokens at one place they sum to one."""
    generator = tiny.generator()
    scores = generator.score(
        [[1, 5, 6]] * tiny.VOCAB_SIZE, [[index] for index in range(tiny.VOCAB_SIZE)], batch_size=64
    )
    assert sum(torch.tensor([score.total for score in scores]).exp()) == pytest.approx(1, abs=1e-5)
    assert sum(score.is_greedy for score in scores) == 1


def test_scoring_one_prompt_with_one_continuation_of_ids() -> None:
    """A list of numbers is one continuation."""
    [score] = tiny.generator().score([1, 5, 6], [7, 8])
    assert score.token_ids == (7, 8)


def test_prompts_may_come_from_a_generator_and_results_are_lazy() -> None:
    """An iterable is read once; generate_as_done decodes a batch when its first row is asked for."""
    generator = tiny.generator()
    calls: list[int] = []
    handle = generator.model.base.register_forward_hook(lambda *_: calls.append(1))
    rows = generator.generate_as_done((f"w{index}" for index in range(4)), batch_size=2, **OPTIONS)
    assert calls == []
    next(rows)
    assert len(calls) == 6
    assert len(list(rows)) == 3
    handle.remove()


def test_no_gradient_is_kept() -> None:
    """Neither generate nor score builds a graph, also over roles that want gradients."""
    trio = tiny.trio()
    assert all(parameter.requires_grad for parameter in trio[0].parameters())
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    generator.generate("w1", **OPTIONS)
    generator.score("w1", " w2")
    assert all(parameter.grad is None for model in trio for parameter in model.parameters())


def test_a_small_change_of_a_role_changes_the_result() -> None:
    """Base, expert and anti each matter, the anti with the opposite sign of the expert."""
    trio = tiny.trio()
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        plain = [model(ids).logits[0, -1] for model in trio]
        found = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), alpha=0.5).model(ids).logits[0, -1]
        swapped = (
            ProxyGenerator(trio[0], trio[2], trio[1], tokenizer=tiny.word_tokenizer(), alpha=0.5)
            .model(ids)
            .logits[0, -1]
        )
    assert torch.allclose(found, plain[0] + 0.5 * (plain[1] - plain[2]), atol=1e-4)
    assert torch.allclose(found + swapped, 2 * plain[0], atol=1e-4)


def test_progress_goes_to_stderr_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is printed otherwise."""
    generator = tiny.generator()
    generator.generate(["w1", "w2"], **OPTIONS)
    assert capsys.readouterr() == ("", "")
    generator.generate(["w1", "w2"], progress=True, **OPTIONS)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err


def test_everything_public_is_there() -> None:
    """What `__all__` names exists, and every error of ours is a ProxyTuneError and a builtin."""
    from proxytune import errors

    assert all(hasattr(proxytune, name) for name in proxytune.__all__)
    own = [value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__]
    for error in own:
        if error in (errors.ProxyTuneError, errors.ProxyTuneWarning):
            continue
        assert issubclass(error, errors.ProxyTuneError)
        assert issubclass(error, ValueError | TypeError | OSError | ImportError | RuntimeError | ArithmeticError)


def test_room_behind_a_prompt() -> None:
    """As many tokens as the role that ends first can read; 0 where the prompt fills it or is too long."""
    trio = [tiny.model("llama", seed, context=context) for seed, context in ((1, 40), (2, 12), (3, 30))]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), expert_prompt="w1 {prompt}")
    assert generator.room("w2 w3") == 12 - 4
    assert generator.room(tiny.prompt_ids(12)) == 0
    assert generator.room(tiny.prompt_ids(99)) == 0
