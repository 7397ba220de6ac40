"""The real engine against the hf runtime, in float32: equal tokens, equal log-probabilities, whatever the batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import OptionError, RuntimeUnsupportedError, UnknownOptionError
from tests import tiny
from tests.vllm.conftest import both_runtimes, largest_difference, save_trio

NUM_PROMPTS, NUM_TOKENS = 16, 64
TOLERANCE = 1e-3  # of log-probabilities, in nats

Runtimes = tuple[ProxyGenerator, ProxyGenerator]


@pytest.fixture(scope="module")
def runtimes(engine_settings: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtimes]:
    """Both runtimes over one Llama trio whose base has a padded vocabulary."""
    hf, vllm = both_runtimes(save_trio(tmp_path_factory.mktemp("llama"), ("llama",) * 3, (72, 64, 64)))
    yield hf, vllm
    vllm.close()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Prompts of 3 to 48 tokens, half of them beginning with the same 32."""
    shared = tiny.prompt_ids(32, seed=99)
    own = [tiny.prompt_ids(3 + 2 * seed, seed=seed) for seed in range(NUM_PROMPTS // 2)]
    return own + [shared + tiny.prompt_ids(3 + 2 * seed, seed=seed)[1:] for seed in range(NUM_PROMPTS // 2)]


def test_greedy_tokens_and_logprobs_equal_the_hf_runtimes(runtimes: Runtimes, prompts: list[list[int]]) -> None:
    """1024 greedy tokens are equal and their log-probabilities agree, with chunked prefill and prefix caching on."""
    hf, vllm = runtimes
    options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, "logprobs": 5}
    expected, found = hf.generate(prompts, **options), vllm.generate(prompts, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    assert [row.text for row in found] == [row.text for row in expected]
    assert {row.finish_reason for row in found} == {"length"}
    assert largest_difference(found, expected) < TOLERANCE
    again = vllm.generate(prompts, **options)
    assert [row.token_ids for row in again] == [row.token_ids for row in expected]


def test_alphas_mixed_in_one_batch_equal_each_alone(runtimes: Runtimes, prompts: list[list[int]]) -> None:
    """Every request is steered by its own α, also while rows come, end and move in the batch."""
    hf, vllm = runtimes
    alphas = [(-0.5, 0.0, 0.3, 1.0, 1.7)[place % 5] for place in range(len(prompts))]
    expected = hf.generate(prompts, max_new_tokens=24, alpha=alphas, logprobs=1)
    found = vllm.generate(prompts, max_new_tokens=24, alpha=alphas, logprobs=1, batch_size=5)
    alone = [vllm.generate([prompts[place]], max_new_tokens=24, alpha=alphas[place])[0] for place in range(5)]
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    assert [row.finish_reason for row in found] == [row.finish_reason for row in expected]
    assert [row.token_ids for row in alone] == [row.token_ids for row in expected[:5]]
    assert largest_difference(found, expected) < TOLERANCE


def test_scores_equal_the_hf_runtimes(runtimes: Runtimes, prompts: list[list[int]]) -> None:
    """Teacher-forced log-probabilities agree through chunked prefill, each row under its own α."""
    hf, vllm = runtimes
    continuations = [tiny.prompt_ids(9, seed=50 + place)[1:] for place in range(len(prompts))]
    continuations[3] = list(hf.generate([prompts[3]], max_new_tokens=8, ignore_eos=True)[0].token_ids)
    alphas = [1.0, 0.0, 2.0, 1.0] * (len(prompts) // 4)
    expected, found = (gen.score(prompts, continuations, alpha=alphas) for gen in (hf, vllm))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=TOLERANCE)
        assert mine.is_greedy == theirs.is_greedy
    assert found[3].is_greedy


def test_ends_are_the_hf_runtimes(runtimes: Runtimes, prompts: list[list[int]]) -> None:
    """Rows end at the same token for the same reason, with the same text: stop text, end token, or length."""
    hf, vllm = runtimes
    [first] = hf.generate([prompts[0]], max_new_tokens=NUM_TOKENS, ignore_eos=True)
    options: dict[str, Any] = {"max_new_tokens": 32, "stop": [first.text.split()[5] + " ", "w9"]}
    expected, found = hf.generate(prompts, **options), vllm.generate(prompts, **options)
    assert [(row.token_ids, row.text, row.finish_reason) for row in found] == [
        (row.token_ids, row.text, row.finish_reason) for row in expected
    ]
    assert "stop" in {row.finish_reason for row in found}


def test_stream_yields_the_completion(runtimes: Runtimes, prompts: list[list[int]]) -> None:
    """The pieces join to the text that generate returns, and a stream left early leaves the engine free."""
    _, vllm = runtimes
    [whole] = vllm.generate([prompts[2]], max_new_tokens=16)
    pieces = vllm.stream(prompts[2], max_new_tokens=16)
    next(pieces)
    pieces.close()
    assert "".join(vllm.stream(prompts[2], max_new_tokens=16)) == whole.text


@pytest.mark.parametrize(
    "options",
    [{"temperature": 3.0}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3}],
    ids=["hot", "filtered"],
)
def test_equal_seeds_draw_the_texts_of_the_hf_runtime(
    runtimes: Runtimes, prompts: list[list[int]], options: dict[str, Any]
) -> None:
    """A sampled row depends on its seed and nothing else, in both runtimes alike, and holds only ids that all share."""
    hf, vllm = runtimes
    options = {"max_new_tokens": 24, "ignore_eos": True, "seed": list(range(len(prompts))), **options}
    expected, found = hf.generate(prompts, **options), vllm.generate(prompts, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    [alone] = vllm.generate([prompts[7]], **{**options, "seed": 7})
    assert alone.token_ids == found[7].token_ids
    assert max(index for row in found for index in row.token_ids) < tiny.VOCAB_SIZE
    assert (
        len({row.token_ids for row in vllm.generate([prompts[0]], **{**options, "seed": 1, "num_return_sequences": 3})})
        == 3
    )


def test_a_repetition_penalty_is_the_hf_runtimes(runtimes: Runtimes, prompts: list[list[int]]) -> None:
    """Greedy tokens under a penalty are equal: both count prompt and answer."""
    hf, vllm = runtimes
    options: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True, "repetition_penalty": 1.5}
    expected, found = hf.generate(prompts, **options), vllm.generate(prompts, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]


def test_what_the_engine_cannot_do_names_the_runtime_that_can(runtimes: Runtimes, prompts: list[list[int]]) -> None:
    """Beam search and an α that is no number are refused, and the engine goes on."""
    _, vllm = runtimes
    with pytest.raises(RuntimeUnsupportedError, match='runtime="hf"'):
        vllm.generate(prompts[:1], num_beams=2)
    with pytest.raises(OptionError, match="alpha"):
        vllm.generate(prompts[:1], alpha="much")
    assert len(vllm.generate(prompts[:1], max_new_tokens=2)) == 1


@pytest.mark.parametrize(
    ("engine_options", "error"),
    [
        ({"model": "other"}, OptionError),
        ({"tensor_paralel_size": 2}, UnknownOptionError),
        ({"enable_lora": True}, RuntimeUnsupportedError),
        ({"max_model_len": 100_000}, RuntimeUnsupportedError),
    ],
)
def test_engine_options_that_do_not_fit_are_refused_at_once(
    engine_settings: None, folders: dict[str, Path], engine_options: dict[str, Any], error: type[Exception]
) -> None:
    """No process is started for settings that cannot be."""
    with pytest.raises(error, match=r"leave it out|EngineArgs|enable_lora|did not start"):
        ProxyGenerator(
            folders["base"], folders["expert"], folders["anti"], runtime="vllm", engine_options=engine_options
        )


@pytest.mark.parametrize(
    ("architectures", "widths"),
    [
        (("qwen2", "qwen2", "qwen2"), (64, 80, 72)),
        (("qwen3", "qwen3", "qwen3"), (64, 64, 64)),
        (("mistral", "mistral", "mistral"), (64, 64, 64)),
        (("opt", "opt", "opt"), (64, 64, 64)),
        (("gpt2", "gpt2", "gpt2"), (64, 64, 64)),
        (("llama", "qwen2", "qwen3"), (64, 68, 72)),
    ],
    ids=["qwen2", "qwen3", "mistral", "opt", "gpt2", "mixed"],
)
@pytest.mark.slow
def test_other_architectures_equal_the_hf_runtime(
    engine_settings: None,
    tmp_path: Path,
    prompts: list[list[int]],
    architectures: tuple[str, str, str],
    widths: tuple[int, int, int],
) -> None:
    """Padded vocabularies of several widths, learned positions, and families mixed in one composite: equal tokens."""
    hf, vllm = both_runtimes(save_trio(tmp_path, architectures, widths))
    options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, "logprobs": 2}
    try:
        expected, found = hf.generate(prompts, **options), vllm.generate(prompts, **options)
    finally:
        vllm.close()
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    assert largest_difference(found, expected) < TOLERANCE
