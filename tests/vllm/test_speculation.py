"""The expert drafts for the composite in the real engine: equal tokens, and what it cannot do beside is an error."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import OptionError, ProxyTuneWarning, RuntimeUnsupportedError
from tests import tiny
from tests.conftest import save_adapter
from tests.vllm.conftest import ENGINE, largest_difference, save_trio

NUM_DRAFTED = 3
DRAFTING = {**ENGINE, "speculative_config": {"method": "draft_model", "num_speculative_tokens": NUM_DRAFTED}}
PROMPTS = [tiny.prompt_ids(3 + 4 * seed, seed=seed) for seed in range(8)]

Runtimes = tuple[ProxyGenerator, ProxyGenerator]


@pytest.fixture(scope="module")
def runtimes(engine_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtimes]:
    """Both runtimes over an adapter expert strong enough that some of its drafts are taken and some are not."""
    root = tmp_path_factory.mktemp("speculation")
    base, _, anti = save_trio(root, ("llama",) * 3, (64, 64, 64))
    save_adapter(anti, root / "lora", seed=5)
    options: dict[str, Any] = {"dtype": "float32", "alpha": 2.0}
    hf = ProxyGenerator(base, root / "lora", anti, **options)
    with pytest.warns(ProxyTuneWarning, match="it drafts"):
        vllm = ProxyGenerator(base, root / "lora", anti, **options, runtime="vllm", engine_options=DRAFTING)
    yield hf, vllm
    vllm.close()


def test_drafted_tokens_equal_plain_decoding(runtimes: Runtimes) -> None:
    """Greedy tokens, log-probabilities and scores equal the hf runtime's, though drafts were taken and thrown away."""
    hf, vllm = runtimes
    for penalty in (1.0, 1.4):
        options: dict[str, Any] = {"max_new_tokens": 48, "ignore_eos": True, "repetition_penalty": penalty}
        options["logprobs"] = 2 if penalty == 1.0 else None
        expected, found = hf.generate(PROMPTS, **options), vllm.generate(PROMPTS, **options)
        assert [row.token_ids for row in found] == [row.token_ids for row in expected]
        if penalty == 1.0:
            assert largest_difference(found, expected) < 1e-3
    acceptance = vllm._runtime.acceptance()
    assert 0 < acceptance.num_accepted < acceptance.num_drafted
    scores = [gen.score(PROMPTS, [PROMPTS[-1][1:]] * len(PROMPTS)) for gen in (hf, vllm)]
    for mine, theirs in zip(*scores, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


def test_a_stop_text_ends_a_row_within_a_draft(runtimes: Runtimes) -> None:
    """Rows end at the same token for the same reason although several tokens come in one step."""
    hf, vllm = runtimes
    [first] = hf.generate(PROMPTS[:1], max_new_tokens=32, ignore_eos=True)
    options: dict[str, Any] = {"max_new_tokens": 32, "stop": [first.text.split()[6] + " ", "w9"]}
    expected, found = hf.generate(PROMPTS, **options), vllm.generate(PROMPTS, **options)
    assert [(row.token_ids, row.text, row.finish_reason) for row in found] == [
        (row.token_ids, row.text, row.finish_reason) for row in expected
    ]


def test_another_alpha_and_draws_are_refused(runtimes: Runtimes) -> None:
    """What the engine would ignore beside speculation is an error that says what to leave out."""
    _, vllm = runtimes
    for options in ({"alpha": 1.5}, {"temperature": 0.7, "seed": 1}):
        with pytest.raises(RuntimeUnsupportedError, match=r"leave speculative_config out"):
            vllm.generate(PROMPTS[:1], max_new_tokens=2, **options)
    with pytest.raises(RuntimeUnsupportedError, match="alpha"):
        vllm.score(PROMPTS[:1], [PROMPTS[1]], alpha=0.0)
    assert vllm.generate(PROMPTS[:1], max_new_tokens=2, alpha=2.0)


@pytest.mark.parametrize(
    ("drafting", "error", "named"),
    [
        ({"method": "ngram", "num_speculative_tokens": 2}, RuntimeUnsupportedError, "ngram"),
        ({"method": "draft_model"}, OptionError, "num_speculative_tokens"),
        ({"num_speculative_tokens": 2}, RuntimeUnsupportedError, "64 wide, the base's 72"),
    ],
)
def test_drafts_that_cannot_be_are_refused_at_once(
    engine_settings: None, tmp_path: Path, drafting: dict[str, Any], error: type[Exception], named: str
) -> None:
    """Another method, no length, or an expert of another vocabulary: no process is started."""
    folders = save_trio(tmp_path, ("llama",) * 3, (72, 64, 64))
    with pytest.raises(error, match=named):
        ProxyGenerator(*folders, runtime="vllm", engine_options={"speculative_config": drafting})


pytestmark = pytest.mark.slow
