"""Many rows: their order, batches of like length, memory that runs out, and contexts that end at different places."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.completion import Request
from proxytune.errors import ProxyTuneWarning
from proxytune.hf.batching import run_in_batches
from tests import tiny
from tests.reference import Reference

OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}
PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (4, 11, 3, 8, 8, 2, 14)]


def request(length: int, index: int) -> Request:
    """Return a row of that many tokens."""
    return Request(role_ids=((5,) * length,), alphas=(1.0,), index=index)


def test_batches_are_of_like_length_longest_first() -> None:
    """Rows are sorted by length before they are cut into batches; equal lengths keep their order."""
    requests = [request(length, index) for index, length in enumerate((4, 11, 3, 8, 8))]
    batches = [[row.index for row in batch] for batch, _ in run_in_batches(requests, 2, len)]
    assert batches == [[1, 3], [4, 0], [2]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_results_are_in_the_order_of_the_prompts(batch_size: int) -> None:
    """Whatever the batches, completions and scores come as the prompts went, each as alone."""
    generator = tiny.generator()
    rows = generator.generate(iter(PROMPTS), batch_size=batch_size, **OPTIONS)
    assert [row.index for row in rows] == list(range(7))
    assert [row.prompt for row in rows] == PROMPTS
    assert max(row.timing.batch_size for row in rows) == min(batch_size, 7)
    assert [row.timing.num_prompt_tokens for row in rows] == [len(prompt) for prompt in PROMPTS]
    continuations = [list(row.token_ids) for row in rows]
    scores = generator.score(PROMPTS, continuations, batch_size=batch_size)
    for prompt, row, score in zip(PROMPTS, rows, scores, strict=True):
        [alone] = generator.generate(prompt, **OPTIONS)
        assert row.token_ids == alone.token_ids == score.token_ids
        assert score.is_greedy


def test_rows_are_yielded_as_they_are_done() -> None:
    """generate_as_done gives whole batches, the longest prompts first, each row once."""
    generator = tiny.generator()
    seen = [done.index for done in generator.generate_as_done(PROMPTS, batch_size=2, **OPTIONS)]
    assert seen == [6, 1, 3, 4, 0, 2, 5]


@contextmanager
def memory_for(model: Any, num_rows: int) -> Iterator[list[int]]:
    """Let a model run out of memory with more rows than that; gives the sizes of the batches that came."""
    sizes: list[int] = []

    def check(module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        sizes.append(ids.shape[0])
        if ids.shape[0] > num_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


CALLS: dict[str, Callable[[ProxyGenerator], list[Any]]] = {
    "greedy": lambda generator: [row.token_ids for row in generator.generate(PROMPTS, **OPTIONS)],
    "sampled": lambda generator: [
        row.token_ids for row in generator.generate(PROMPTS, temperature=1.0, seed=list(range(7)), **OPTIONS)
    ],
    "unseeded": lambda generator: [
        row.token_ids for row in (torch.manual_seed(3), generator.generate(PROMPTS, temperature=1.0, **OPTIONS))[1]
    ],
    "score": lambda generator: [score.is_greedy for score in generator.score(PROMPTS, [[5, 6]] * 7)],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_out_of_memory_halves_the_batch_and_goes_on(call: str, num_rows: int) -> None:
    """With a warning, and with the result of a run that had memory enough."""
    generator = tiny.generator()
    wanted = CALLS[call](generator)
    with memory_for(generator.model.roles[1].model, num_rows) as sizes, pytest.warns(ProxyTuneWarning) as told:
        found = CALLS[call](generator)
    assert found == wanted
    steps = {5: ["7 rows: going on with 3"], 2: ["7 rows: going on with 3", "3 rows: going on with 1"]}
    steps[1] = steps[2]
    assert [str(warning.message) for warning in told] == [f"out of memory with {step}." for step in steps[num_rows]]
    assert max(size for size in sizes if size <= num_rows) <= num_rows


@pytest.mark.parametrize(
    "message",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_every_librarys_word_for_out_of_memory(message: str) -> None:
    """The batch is halved whoever ran out: torch on either device, cuBLAS, cuDNN."""
    sizes: list[int] = []

    def run(batch: Sequence[Request]) -> int:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError(message)
        return len(batch)

    requests = [request(3, index) for index in range(5)]
    with pytest.warns(ProxyTuneWarning, match="5 rows: going on with 2"):
        assert [result for _, result in run_in_batches(requests, 5, run)] == [2, 2, 1]
    assert sizes == [5, 2, 2, 1]


def test_a_single_row_that_does_not_fit_raises() -> None:
    """There is nothing to halve: the error of torch comes through."""
    generator = tiny.generator()
    with memory_for(generator.model.base, 0), pytest.raises(torch.OutOfMemoryError):
        generator.generate(PROMPTS[0], **OPTIONS)


def test_other_errors_are_not_taken_for_memory() -> None:
    """An error of the model is raised at once, without a warning."""
    generator = tiny.generator()

    def fail(*_: Any) -> None:
        raise RuntimeError("a broken kernel")

    handle = generator.model.base.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="a broken kernel"):
            generator.generate(PROMPTS, **OPTIONS)
    finally:
        handle.remove()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "neox"])
def test_contexts_that_end_rows_at_different_places(architecture: str) -> None:
    """In one batch each row may use up the context: as alone, to the token, learned positions too."""
    trio = [tiny.model(architecture, seed, context=16) for seed in (1, 2, 3)]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    prompts = [tiny.prompt_ids(length, seed=length) for length in (3, 15, 9)]
    rows = generator.generate(prompts, max_new_tokens=40, ignore_eos=True, batch_size=3)
    reference = Reference(trio[0], [(trio[1], trio[2])], tiny.VOCAB_SIZE)
    for prompt, row in zip(prompts, rows, strict=True):
        assert len(row.token_ids) == 16 - len(prompt)
        assert row.finish_reason == "length"
        assert list(row.token_ids) == reference.greedy([prompt] * 3, [1.0], 16 - len(prompt))
        assert row.token_ids == generator.generate(prompt, max_new_tokens=40, ignore_eos=True)[0].token_ids


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_beams_to_the_end_of_the_context(architecture: str) -> None:
    """Beams of rows with different room end in time."""
    trio = [tiny.model(architecture, seed, context=16) for seed in (1, 2, 3)]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    prompts = [tiny.prompt_ids(12, seed=1), tiny.prompt_ids(14, seed=2)]
    rows = generator.generate(prompts, max_new_tokens=40, ignore_eos=True, num_beams=3)
    assert [len(row.token_ids) for row in rows] == [4, 2]
    reference = Reference(trio[0], [(trio[1], trio[2])], tiny.VOCAB_SIZE)
    for prompt, row in zip(prompts, rows, strict=True):
        assert list(row.token_ids) == reference.beams([prompt] * 3, [1.0], 3, 16 - len(prompt))[0][0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("formats", [{}, {"expert_prompt": "w1 w2 {prompt}"}], ids=["same", "per-role"])
def test_scoring_to_the_end_of_the_context(architecture: str, formats: dict[str, str]) -> None:
    """The last token is only predicted: a continuation may reach one past the context, padded rows too."""
    trio = [tiny.model(architecture, seed, context=16) for seed in (1, 2, 3)]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), **formats)
    extra = 2 if formats else 0
    first, second = "w9 w8 w7", "w5"
    continuations = [tiny.prompt_ids(13 - extra + 1, seed=1)[1:], [20, 21]]
    scores = generator.score([first, second], continuations)
    reference = Reference(trio[0], [(trio[1], trio[2])], tiny.VOCAB_SIZE)
    for ids, continuation, score in zip([[1, 13, 12, 11], [1, 9]], continuations, scores, strict=True):
        roles = [ids, [1, 5, 6, *ids[1:]] if formats else ids, ids]
        wanted = reference.logprobs(roles, [1.0], continuation)
        assert score.logprobs == pytest.approx(wanted, abs=1e-4)


def test_roles_of_different_context() -> None:
    """The room is that of the role that ends first, its own prompt counted."""
    trio = [tiny.model("gpt2", seed, context=context) for seed, context in ((1, 40), (2, 20), (3, 24))]
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), anti_prompt="w1 w1 w1 w1 w1 w1 w1 {prompt}")
    [done] = generator.generate("w9 w8", max_new_tokens=50, ignore_eos=True)
    assert len(done.token_ids) == 24 - 10
