"""Compiled, tensor-parallel and pipeline-parallel engines: each gives the tokens of the hf runtime."""

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.vllm.conftest import ENGINE, both_runtimes, largest_difference, save_trio

COMPILED: dict[str, Any] = {**ENGINE, "enforce_eager": False}
PROMPTS = [tiny.prompt_ids(3 + 4 * seed, seed=seed) for seed in range(8)]
ALPHAS = [1.0, 0.5, 0.0, 1.5] * 2


@pytest.mark.parametrize(
    ("engine_options", "widths"),
    [
        (COMPILED, (72, 64, 64)),
        ({**ENGINE, "tensor_parallel_size": 2}, (64, 64, 64)),
        ({**ENGINE, "tensor_parallel_size": 2}, (72, 64, 64)),
        # vLLM's pipelines on a CPU assert in eager mode, with plain models too.
        ({**COMPILED, "pipeline_parallel_size": 2}, (64, 64, 64)),
    ],
    ids=["compiled", "tensor", "tensor-unequal-vocabularies", "pipeline"],
)
def test_tokens_equal_the_hf_runtimes(
    engine_settings: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    engine_options: dict[str, Any],
    widths: tuple[int, int, int],
) -> None:
    """Greedy tokens under an α per request are equal, and so are their log-probabilities to 1e-3."""
    if {"tensor_parallel_size", "pipeline_parallel_size"} & set(engine_options):
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # one core for each of the two workers
    hf, vllm = both_runtimes(save_trio(tmp_path, ("llama",) * 3, widths), engine_options=engine_options)
    options: dict[str, Any] = {"max_new_tokens": 32, "ignore_eos": True, "logprobs": 2, "alpha": ALPHAS}
    try:
        expected, found = hf.generate(PROMPTS, **options), vllm.generate(PROMPTS, **options)
        scores = [gen.score(PROMPTS, [PROMPTS[-1][1:]] * len(PROMPTS), alpha=ALPHAS) for gen in (hf, vllm)]
    finally:
        vllm.close()
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    assert largest_difference(found, expected) < 1e-3
    for mine, theirs in zip(*scores, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


pytestmark = pytest.mark.slow
