"""vLLM's engine on real weights: the runtime, and `proxytune serve` with a chat request."""

from collections.abc import Iterator
from typing import Any

import pytest

from proxytune import ProxyGenerator
from tests.real.conftest import Cuts
from tests.serve.conftest import Server, free_port, start
from tests.vllm.conftest import both_runtimes

PROMPTS = ["The capital of France is", "Once", "Question: What is 12 times 4?\nAnswer:"]
ENGINE = {"enforce_eager": True, "max_num_batched_tokens": 16, "max_num_seqs": 4, "max_model_len": 256}


@pytest.fixture(scope="module")
def served(cuts: Cuts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`proxytune serve` over the cuts, every role reading the chat template."""
    roles = zip(("--base", "--expert", "--anti"), cuts.folders, strict=True)
    formats = [part for role in ("base", "expert", "anti") for part in (f"--{role}-prompt", "chat")]
    command = ["proxytune", "serve", *(part for pair in roles for part in pair), *formats, "--dtype", "float32"]
    found = start(tmp_path_factory.mktemp("served") / "log", command, port=free_port())
    yield found
    found.stop()


def test_the_vllm_runtime_writes_the_hf_runtimes_tokens(cuts: Cuts, engine_settings: None) -> None:
    """Prompts in chunks, an α of each row's own, in float32."""
    folders: Any = cuts.folders
    hf, vllm = both_runtimes(folders, engine_options=ENGINE)
    options: dict[str, Any] = {"max_new_tokens": 10, "ignore_eos": True, "alpha": [1.0, 0.5, 0.0]}
    try:
        found = vllm.generate(PROMPTS, **options)
    finally:
        vllm.close()
    assert [row.token_ids for row in found] == [row.token_ids for row in hf.generate(PROMPTS, **options)]


def test_a_chat_request_is_answered_as_in_the_hf_runtime(served: Server, cuts: Cuts) -> None:
    """/v1/chat/completions renders SmolLM2's own template for every role, and steers with the request's α."""
    formats = {f"{role}_prompt": "chat" for role in ("base", "expert", "anti")}
    hf = ProxyGenerator(*cuts.folders, dtype="float32", **formats)
    messages = [{"role": "user", "content": "Name a city in France."}]
    for alpha in (1.0, 0.3):
        [expected] = hf.generate([messages], alpha=alpha, max_new_tokens=12)
        body = {"messages": messages, "temperature": 0, "max_tokens": 12, "alpha": alpha, "model": _model(served)}
        answer = served.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == expected.text


def _model(server: Server) -> str:
    import httpx

    name: str = httpx.get(server.url + "/v1/models", headers=server.headers, timeout=60).json()["data"][0]["id"]
    return name
