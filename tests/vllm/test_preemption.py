"""An engine with too little KV cache for its batch: requests are thrown out, begun again, and give the same tokens."""

from pathlib import Path
from typing import Any

import pytest

from proxytune import ProxyGenerator
from tests import tiny
from tests.vllm.conftest import ENGINE, both_runtimes, save_trio

# Eight requests grow to four blocks of 32 tokens each.
SMALL = {**ENGINE, "block_size": 32, "num_gpu_blocks_override": 13, "disable_log_stats": False}


def test_preempted_requests_give_the_same_tokens(engine_settings: None, tmp_path: Path) -> None:
    """Greedy and sampled rows equal the hf runtime's although they were begun anew, and preemption did happen."""
    hf, vllm = both_runtimes(save_trio(tmp_path, ("llama",) * 3, (64, 64, 64)), engine_options=SMALL)
    prompts = [tiny.prompt_ids(30 + seed, seed=seed) for seed in range(8)]
    options: dict[str, Any] = {"max_new_tokens": 64, "ignore_eos": True, "alpha": [0.5, 1.0, 1.5, 2.0] * 2}
    try:
        for sampling in ({}, {"temperature": 1.0, "seed": list(range(8))}):
            expected, found = (gen.generate(prompts, **options, **sampling) for gen in (hf, vllm))
            assert [row.token_ids for row in found] == [row.token_ids for row in expected]
        assert num_preemptions(vllm) > 0
    finally:
        vllm.close()


def num_preemptions(generator: ProxyGenerator) -> float:
    """Return how often the engine threw a request out, by its own count."""
    metrics = generator._runtime._engine._engine.get_metrics()
    return sum(metric.value for metric in metrics if metric.name == "vllm:num_preemptions")


pytestmark = pytest.mark.slow
