"""What the server answers to requests that are wrong."""

import json
import random
from typing import Any

import httpx
import pytest

from tests.serve.conftest import QUESTION, Server

_PROMPT = QUESTION.format(1)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"alpha": "1"}, "alpha is '1': it must be a finite number"),
        ({"alpha": True}, "alpha is True"),
        ({"alpha": [1, 2]}, "alpha lists 2 numbers for 1 pair(s)"),
        ({"alpha": []}, "alpha lists 0 numbers"),
        ({"alpha": {"a": 1}}, "alpha is {'a': 1}"),
        ({"alpha": 1e9}, "takes at most 65504"),
        ({"vllm_xargs": {"alpha": "x"}}, "alpha is 'x'"),
        ({"vllm_xargs": {"proxytune_prompt_0": [1]}}, "which only the server makes"),
        ({"vllm_xargs": {"alpha": None}}, "alpha in vllm_xargs is null"),
        ({"alpha": 1, "vllm_xargs": {"alpha": 2}}, "given twice"),
        ({"alhpa": 1}, "unknown field 'alhpa'"),
        ({"use_beam_search": True}, "take runtime hf"),
        ({"prompt": _PROMPT * 40}, "maximum context length"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_400_with_a_sentence(server: Server, extra: dict[str, Any], sentence: str) -> None:
    """Each of these is a 400 whose message says what is wrong."""
    response = server.completion(**{"prompt": _PROMPT, **extra})
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"prompt": "a", "alpha": NaN}', "NaN"),
        (b'{"prompt": "a", "temperature": 1e999}', "no finite number"),
        (b'{"prompt": "a", "top_k": 99999999999999999999}', "beyond 64 bits"),
        (b"[" * 200_000, "nested too deep"),
        (b"[]", "no JSON object"),
        (b'{"prompt"', "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_bodies_that_are_no_request(server: Server, data: bytes, sentence: str) -> None:
    """Each of these is a 400, before any of it reaches the engine."""
    headers = {**server.headers, "content-type": "application/json"}
    response = httpx.post(server.url + "/v1/chat/completions", content=data, headers=headers, timeout=60)
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


def test_chat_is_refused_alike(server: Server) -> None:
    """Chats have the same rules; a conversation that the prompt format cannot hold is a 400 too."""
    user = {"role": "user", "content": "Where?"}
    for body, sentence in (
        ({"messages": [user], "alpha": "x"}, "alpha is 'x'"),
        ({"messages": [user], "foo": 1}, "unknown field 'foo'"),
        ({"messages": [user, {"role": "system", "content": "Be brief."}]}, "system (only the first)"),
    ):
        response = server.post("/v1/chat/completions", body)
        assert response.status_code == 400
        assert sentence in response.json()["error"]["message"]


def test_alpha_is_never_ignored(server: Server) -> None:
    """An endpoint that does not steer by the request's α refuses one."""
    for path in ("/tokenize", "/v1/responses", "/v1/messages"):
        response = server.post(path, {"model": "m", "prompt": "a", "input": "a", "messages": [], "alpha": 2})
        assert response.status_code == 400
        assert "alpha is taken by" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "extra",
    [
        {"structured_outputs": {"json": {"$ref": "#"}}},
        {"structured_outputs": {"grammar": "root ::= root"}},
        {"structured_outputs": {"grammar": 'root ::= "a" dead\ndead ::= dead'}},
    ],
)
def test_recursion_without_end(server: Server, extra: dict[str, Any]) -> None:
    """A schema or grammar that only names itself is a 400, and the engine lives on."""
    response = server.completion(prompt=_PROMPT, **extra)
    assert response.status_code == 400, response.text
    assert server.text(prompt=_PROMPT)


def test_keys(server: Server) -> None:
    """Without the key, and with a wrong one, the status is 401 whatever the body; /health needs none."""
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
        for body in ({"prompt": _PROMPT}, {"alpha": "x"}):
            response = httpx.post(server.url + "/v1/completions", json=body, headers=headers, timeout=60)
            assert response.status_code == 401
        assert httpx.get(server.url + "/v1/models", headers=headers, timeout=60).status_code == 401
    assert httpx.get(server.url + "/health", timeout=60).status_code == 200


def test_2000_malformed_requests(server: Server) -> None:
    """After 2,000 seeded malformed requests, none answered by a 5xx, the server gives the same text as before."""
    before = server.text(prompt=_PROMPT)
    fuzzer = _Fuzzer(httpx.get(server.url + "/openapi.json", headers=server.headers, timeout=60).json())
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=server.url, headers=server.headers, timeout=120) as client:
        for number in range(2000):
            path, data = fuzzer.request(number)
            response = client.post(path, content=data, headers={"content-type": "application/json"})
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert response.status_code < 500, (number, path, data[:500], response.text[:500])
    assert statuses[400] > 1000
    assert server.text(prompt=_PROMPT) == before
    assert server.num_running() == 0


class _Fuzzer:
    """Requests that follow the OpenAPI description but for a field or three."""

    _PATHS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
    _VALUES: tuple[Any, ...] = (
        None, True, "", "x", "\x00", "é" * 50, -1, 0, 2, 10**9, 2**63 - 1, -(2**63), 10**30, 0.5, -2.5, 1e308,
        [], [[]], [1], [-1], [10**9], ["x"], [None], {}, {"a": 1}, {"1": 100.0}, {"-1": 1}, {"alpha": []}, [[1], [2]],
    )  # fmt: skip

    def __init__(self, description: dict[str, Any]) -> None:
        schemas = description["components"]["schemas"]
        self._fields = {
            "/v1/completions": sorted(schemas["CompletionRequest"]["properties"]),
            "/v1/chat/completions": sorted(schemas["ChatCompletionRequest"]["properties"]),
            "/tokenize": ["prompt", "messages", "add_special_tokens", "return_token_strs"],
            "/detokenize": ["tokens"],
        }

    def request(self, number: int) -> tuple[str, bytes]:
        """Return path and body of one request."""
        draw = random.Random(number)
        path = draw.choices(self._PATHS, weights=(6, 6, 1, 1))[0]
        body: dict[str, Any] = {"max_tokens": 2} if path.startswith("/v1") else {}
        body |= {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
        for _ in range(draw.randint(1, 3)):
            body[draw.choice([*self._fields[path], "alpha", "vllm_xargs", "zzz"])] = draw.choice(self._VALUES)
        data = json.dumps(body).encode()
        if draw.random() < 0.1:
            place = draw.randrange(len(data))
            data = data[:place] + draw.randbytes(draw.randint(0, 4)) + data[place + draw.randint(0, 3) :]
        return path, data
