"""A prompt per role in vLLM: the step that each role sees, by hand, and the real engine against the hf runtime."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.errors import OptionError, ProxyTuneWarning
from proxytune.vllm.role_prompts import RolePrompts, RoleStep
from tests import tiny
from tests.conftest import save_adapter
from tests.vllm.conftest import ENGINE, largest_difference, save_trio

FORMATS = {
    "base_prompt": "raw",
    "expert_prompt": " ".join(f"w{index}" for index in range(20)) + " {prompt} w7 w8",
    "anti_prompt": "w9 {prompt}",
}
# For the base 2 to 45 tokens; the expert's 22 more span two chunks of 16 and most of a block.
TEXTS = [" ".join(f"w{(7 * seed + step) % 60}" for step in range(1 + 3 * seed)) for seed in range(15)]
ALPHAS = [1.0, 0.5, 0.0, 1.5, -0.5] * 3

Runtimes = tuple[ProxyGenerator, ProxyGenerator]


def test_a_sequence_is_as_long_as_the_longest_prompt() -> None:
    """The base's ids end it, behind copies of its first; equal prompts need no arguments of their own."""
    prompts = RolePrompts(((1, 5, 6), (1, 9, 8, 7, 6), (4,)))
    assert prompts.sequence() == [1, 1, 1, 5, 6]
    assert [prompts.shift(role) for role in range(3)] == [2, 0, 4]
    again = RolePrompts.of({"alpha": 1.0, **prompts.arguments()})
    assert again is not None
    assert again.role_ids == ([1, 5, 6], [1, 9, 8, 7, 6], [4])
    assert RolePrompts(((1, 2),) * 3).arguments() == {}
    assert RolePrompts.of({"alpha": 1.0}) is RolePrompts.of(None) is None


@pytest.mark.parametrize("given", [{"0": [1], "2": [1]}, {"0": []}, {"0": [-1]}, {"0": [1.5]}, {"0": "1"}, {"x": [1]}])
def test_prompts_that_nothing_here_made_are_refused(given: dict[str, Any]) -> None:
    """A role left out, and what is no list of ids."""
    with pytest.raises(OptionError, match="leave them out"):
        RolePrompts.of({f"proxytune_prompt_{name}": ids for name, ids in given.items()})


def test_a_steps_tokens_are_put_in_order_by_hand() -> None:
    """Row 0 skips three tokens and reads one of its prompt, row 1 reads one of its answer, row 2 skips both."""
    prompts = [RolePrompts(((1, 1, 1, 1, 1), (41, 42))), RolePrompts(((1, 2), (3,))), RolePrompts(((1,) * 9, (7,)))]
    starts, lengths = torch.tensor([0, 4, 5, 7]), torch.tensor([4, 6, 2])
    step = RoleStep.of(prompts, 1, starts, lengths, num_tokens=8)
    assert step is not None
    assert (step.order.tolist(), step.num_tokens) == ([3, 4, 0, 1, 2, 5, 6, 7], 2)
    assert step.positions.tolist() == [0, 4, 0, 0, 0, 0, 0, 0]
    assert (step.starts.tolist(), step.lengths.tolist()) == ([0, 1, 2, 2], [1, 5, 0])
    ids = step.inputs(torch.arange(50, 58), vocab_size=64)
    assert ids is not None
    assert ids.tolist() == [41, 54, 0, 0, 0, 0, 0, 0]
    blocks = torch.tensor([[5, 6], [7, 8], [9, 1]])
    assert step.slots(blocks, block_size=4).tolist() == [20, 32, *[-1] * 6]
    rows = torch.arange(1.0, 9.0)[:, None]
    assert step.outputs(rows)[:, 0].tolist() == [0, 0, 0, 1, 2, 0, 0, 0]


def test_chunks_of_any_size_read_each_token_once() -> None:
    """However a request is cut into steps, a role reads its prompt and then the answer, at positions from 0 on."""
    prompts = RolePrompts(((1,) * 11, tuple(range(20, 24)), tuple(range(30, 45))))
    sequence = torch.tensor([*prompts.sequence(), 60, 61, 62])
    for size in (1, 2, 3, 5, 18):
        for role, ids in enumerate(prompts.role_ids):
            read: list[tuple[int, int]] = []
            for start in range(0, len(sequence), size):
                chunk = sequence[start : start + size]
                starts, lengths = torch.tensor([0, len(chunk)]), torch.tensor([start + len(chunk)])
                step = RoleStep.of([prompts], role, starts, lengths, len(chunk))
                tokens = chunk if step is None else step.inputs(chunk, 64)[: step.num_tokens]  # type: ignore[index]
                positions = torch.arange(start, start + len(chunk)) if step is None else step.positions
                read += zip(positions.tolist(), tokens.tolist(), strict=False)
            assert read == list(enumerate([*ids, 60, 61, 62]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A trio and an adapter over its anti, whose vocabularies differ."""
    root = tmp_path_factory.mktemp("prompts")
    trio = save_trio(root, ("llama",) * 3, (72, 64, 64))
    save_adapter(trio[2], root / "lora", seed=5)
    return [*trio, root / "lora"]


@pytest.fixture(scope="module")
def runtimes(engine_settings: None, folders: list[Path]) -> Iterator[Runtimes]:
    """Both runtimes over a trio whose roles read prompts of their own."""
    hf, vllm = made(folders[:3], ENGINE)
    yield hf, vllm
    vllm.close()


def made(trio: list[Path], engine_options: dict[str, Any], **settings: Any) -> Runtimes:
    """Return both runtimes with a format per role."""
    options: dict[str, Any] = {"dtype": "float32", **FORMATS, **settings}
    return ProxyGenerator(*trio, **options), ProxyGenerator(
        *trio, **options, runtime="vllm", engine_options=engine_options
    )


def require_equal(hf: ProxyGenerator, vllm: ProxyGenerator, texts: list[Any] = TEXTS, **settings: Any) -> None:
    """Fail unless tokens are equal and log-probabilities agree to 1e-3."""
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "logprobs": 2, **settings}
    expected, found = hf.generate(texts, **options), vllm.generate(texts, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    assert largest_difference(found, expected) < 1e-3


def test_greedy_tokens_equal_the_hf_runtimes(runtimes: Runtimes) -> None:
    """Ragged prompts in chunks of 16 tokens, each under its own α, beside prompts that all roles read alike, twice."""
    texts = [*TEXTS, *(tiny.prompt_ids(5 + 20 * seed, seed=seed) for seed in range(3))]
    for _ in range(2):  # the second time the prefix cache is full
        require_equal(*runtimes, texts=texts, alpha=[*ALPHAS, 1.0, 0.3, 2.0])


def test_seeded_rows_of_one_prompt_share_no_cache(runtimes: Runtimes) -> None:
    """Sequences of one prompt keep their own keys; a repetition penalty counts the base's prompt and the answer."""
    many: list[dict[str, Any]] = [
        {"temperature": 2.0, "seed": 3, "num_return_sequences": 4},
        {"temperature": 1.5, "seed": 4, "num_return_sequences": 4, "repetition_penalty": 1.3},
        {"repetition_penalty": 1.5},
    ]
    for options in many:
        require_equal(*runtimes, texts=TEXTS[9:13], **options)


def test_scores_equal_the_hf_runtimes(runtimes: Runtimes) -> None:
    """A continuation follows each role's own prompt."""
    scores = [gen.score(TEXTS, [" w4 w5 w6 w50"] * len(TEXTS), alpha=ALPHAS) for gen in runtimes]
    for mine, theirs in zip(*scores, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


def test_a_stream_is_the_completion(runtimes: Runtimes) -> None:
    """Pieces join to the text of the hf runtime."""
    hf, vllm = runtimes
    assert "".join(vllm.stream(TEXTS[4], max_new_tokens=16)) == hf.generate(TEXTS[4], max_new_tokens=16)[0].text


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine_options",
    [
        {**ENGINE, "enforce_eager": False},
        {**ENGINE, "tensor_parallel_size": 2},
        {**ENGINE, "enforce_eager": False, "pipeline_parallel_size": 2},
        {**ENGINE, "block_size": 32, "num_gpu_blocks_override": 13},
    ],
    ids=["compiled", "tensor", "pipeline", "preempted"],
)
def test_other_engines_equal_the_hf_runtime(
    engine_settings: None, monkeypatch: pytest.MonkeyPatch, folders: list[Path], engine_options: dict[str, Any]
) -> None:
    """Compiled, over two ranks, in a pipeline, and thrown out of a cache that is too small: equal tokens."""
    if {"tensor_parallel_size", "pipeline_parallel_size"} & set(engine_options):
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # one core for each of the two workers
    hf, vllm = made(folders[:3], engine_options)
    try:
        require_equal(hf, vllm, alpha=ALPHAS, max_new_tokens=32)
    finally:
        vllm.close()


@pytest.mark.slow
def test_an_adapter_shares_its_antis_prompt_or_is_merged(engine_settings: None, folders: list[Path]) -> None:
    """Expert and anti on one set of weights read one prompt, another than the base's; with two they are two models."""
    base, _, anti, adapter = folders
    shared = {"base_prompt": "raw", "expert_prompt": "w3 w4 {prompt}", "anti_prompt": "w3 w4 {prompt}"}
    hf, vllm = made([base, adapter, anti], ENGINE, **shared)
    try:
        require_equal(hf, vllm, texts=TEXTS[:6], max_new_tokens=16)
        assert vllm.model.plan().shared_pairs == ((1, 2),)
    finally:
        vllm.close()
    with pytest.warns(ProxyTuneWarning, match="reads another prompt"):
        hf, vllm = made([base, adapter, anti], ENGINE)
    try:
        require_equal(hf, vllm, texts=TEXTS[:6], max_new_tokens=16)
    finally:
        vllm.close()
