"""A proxy folder with two pairs in the real engine, one of them with an adapter for its expert."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxytune import Pair, ProxyGenerator
from tests import tiny
from tests.conftest import save_adapter
from tests.vllm.conftest import ENGINE, save_trio

PROMPTS = [tiny.prompt_ids(4 + 3 * seed, seed=seed) for seed in range(8)]

Runtimes = tuple[ProxyGenerator, ProxyGenerator]


@pytest.fixture(scope="module")
def runtimes(engine_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtimes]:
    """Both runtimes, vLLM's from the folder that the other wrote."""
    root = tmp_path_factory.mktemp("pairs")
    base, expert, anti = save_trio(root, ("llama",) * 3, (64, 64, 64))
    save_adapter(anti, root / "lora", seed=5)
    pairs = [Pair(expert, anti, 0.7, expert_prompt="question"), Pair(root / "lora", anti, -0.4)]
    hf = ProxyGenerator(base, pairs=pairs, dtype="float32")
    hf.save_pretrained(root / "proxy")
    vllm = ProxyGenerator.from_pretrained(root / "proxy", runtime="vllm", engine_options=ENGINE)
    yield hf, vllm
    vllm.close()


def test_two_pairs_and_an_adapter_equal_the_hf_runtime(runtimes: Runtimes) -> None:
    """The differences add up, each pair under its own α, and the merged adapter steers as the one beside its anti."""
    hf, vllm = runtimes
    options: dict[str, Any] = {"max_new_tokens": 48, "ignore_eos": True, "logprobs": 1}
    for alpha in (None, [1.2, 0.3], [0.0, 1.0]):
        expected, found = (gen.generate(PROMPTS, alpha=alpha, **options) for gen in (hf, vllm))
        assert [row.token_ids for row in found] == [row.token_ids for row in expected]
        for mine, theirs in zip(found, expected, strict=True):
            assert [entry.logprob for entry in mine.logprobs or ()] == pytest.approx(
                [entry.logprob for entry in theirs.logprobs or ()], abs=1e-3
            )


def test_the_folder_it_writes_is_the_folder_it_read(runtimes: Runtimes, tmp_path: Path) -> None:
    """A generator of runtime vllm saves what either runtime loads: the adapter, not what was merged for the engine."""
    hf, vllm = runtimes
    vllm.save_pretrained(tmp_path / "again")
    again = ProxyGenerator.from_pretrained(tmp_path / "again")
    [expected], [found] = (gen.generate([PROMPTS[0]], max_new_tokens=8) for gen in (hf, again))
    assert found.token_ids == expected.token_ids


def test_a_pair_may_read_another_prompt(runtimes: Runtimes) -> None:
    """One expert of two reads a question, the other roles the text as it is: the hf runtime's tokens."""
    hf, vllm = runtimes
    expected, found = (gen.generate(["w1 w2", "w3"], max_new_tokens=12, ignore_eos=True) for gen in (hf, vllm))
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]


@pytest.mark.parametrize("alpha", [[1.0], [1.0, 2.0, 3.0], [1.0, "much"], "much", float("nan")])
def test_the_engine_refuses_an_alpha_that_fits_no_pairs(runtimes: Runtimes, alpha: Any) -> None:
    """Also what reaches it past our own checks, as over HTTP: a refusal of this request, and the engine goes on."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from proxytune.vllm.role_prompts import RolePrompts

    _, vllm = runtimes
    with pytest.raises(VLLMValidationError, match="alpha"):
        vllm._runtime._engine.add(RolePrompts(((1, 5),)), SamplingParams(extra_args={"alpha": alpha}))
    assert len(vllm.generate(PROMPTS[:1], max_new_tokens=2, alpha=[1.0, 2.0])) == 1
