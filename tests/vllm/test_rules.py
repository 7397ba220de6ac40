"""A rule over time, and terms that are the base or missing, in the real engine: the hf runtime's tokens."""

from collections.abc import Iterator

import pytest

from proxytune import Pair, ProxyGenerator
from tests import tiny
from tests.vllm.conftest import ENGINE, largest_difference, save_trio

RULE = "contrastive,beta=0.05,schedule=first:9,gate=best:0.98,anti_temperature=1.5"
PROMPTS = [tiny.prompt_ids(4 + 5 * seed, seed=seed) for seed in range(6)]

Runtimes = tuple[ProxyGenerator, ProxyGenerator]


@pytest.fixture(scope="module")
def runtimes(engine_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtimes]:
    """Both runtimes, with a pair of two models, one whose expert is the base, and one without an anti."""
    base, expert, anti = save_trio(tmp_path_factory.mktemp("rules"), ("llama",) * 3, (64,) * 3)
    pairs = [Pair(expert, anti, 0.7), Pair("base", anti, 0.3), Pair(expert, "none", 0.2)]
    settings = {"pairs": pairs, "rule": RULE, "dtype": "float32"}
    hf = ProxyGenerator(base, **settings)
    vllm = ProxyGenerator(base, **settings, runtime="vllm", engine_options=ENGINE)
    yield hf, vllm
    vllm.close()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampled"])
def test_a_rule_over_time_equals_the_hf_runtime(runtimes: Runtimes, options: dict[str, float]) -> None:
    """Prompts read in chunks, α per prompt and pair: tokens are equal, log-probabilities nearly, and steering ends."""
    hf, vllm = runtimes
    assert len(vllm.model.plan().roles) == 3
    alpha = [[0.4 * index, 0.3, 0.2 * (index % 2)] for index in range(len(PROMPTS))]
    arguments = {"max_new_tokens": 24, "ignore_eos": True, "logprobs": 2, "alpha": alpha, **options}
    expected, found = (gen.generate(PROMPTS, **arguments) for gen in (hf, vllm))
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    assert largest_difference(found, expected) < 1e-3
