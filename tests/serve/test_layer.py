"""The layer before vLLM's endpoints, around an application that takes whatever comes."""

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from proxytune.errors import RuntimeUnsupportedError, UnknownOptionError
from proxytune.vllm.serving.body import BodyRules
from tests.vllm.conftest import IS_INSTALLED

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not IS_INSTALLED, reason="vLLM is not installed")]

_KEY = "sk-of-a-layer"


def _ask(method: str, path: str, *, key: str | None = None, content: bytes = b"") -> tuple[httpx.Response, list[str]]:
    """Return the answer to a request, and the paths that reached the application."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from proxytune.vllm.serving.middleware import RequestRules

    reached: list[str] = []

    async def take(request: Any) -> PlainTextResponse:
        reached.append(request.url.path)
        return PlainTextResponse("taken")

    app = Starlette(routes=[Route("/{path:path}", take, methods=["GET", "POST", "DELETE"])])
    app.add_middleware(RequestRules)
    app.state.args = SimpleNamespace(api_key=[_KEY])
    headers = {"content-type": "application/json", **({} if key is None else {"Authorization": f"Bearer {key}"})}

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(send()), reached


@pytest.mark.parametrize("key", [None, "sk-of-another"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/invocations"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/scale_elastic_ep"),
        ("POST", "/health/../invocations"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/version"),
        ("GET", "/docs"),
        ("DELETE", "/v1/responses/1"),
    ],
)
def test_every_route_asks_for_the_key(method: str, path: str, key: str | None) -> None:
    """Whatever computes or tells something answers 401 without the key, and nothing behind it is reached."""
    response, reached = _ask(method, path, key=key, content=b"{}" if method == "POST" else b"")
    assert (response.status_code, reached) == (401, [])


@pytest.mark.parametrize(("path", "key"), [("/health", None), ("/invocations", _KEY), ("/metrics", _KEY)])
def test_health_and_the_key_are_let_in(path: str, key: str | None) -> None:
    """Health needs no key; with it all is open."""
    assert _ask("GET", path, key=key)[1] == [path]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[]", "no JSON object"),
        (b'{"id": "\\ud800"}', "half of a surrogate pair"),
        (b'{"stop": ["a", "\\udfff"]}', "half of a surrogate pair"),
        (b"null", "no JSON object"),
    ],
)
def test_bodies_that_no_endpoint_can_read(content: bytes, sentence: str) -> None:
    """What would break an endpoint is a 400 with a sentence, at any of them."""
    response, reached = _ask("POST", "/scale_elastic_ep", key=_KEY, content=content)
    assert (response.status_code, reached) == (400, [])
    assert sentence in response.json()["error"]["message"]


KNOWN = frozenset({"prompt", "n", "seed", "temperature"})
OPENAI = {
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
    "best_of": 1,
}


def test_fields_of_openais_client_are_taken() -> None:
    """What its client sends and changes no answer here is no error."""
    assert BodyRules(alphas=(1.0,)).checked({"prompt": "a", **OPENAI}, KNOWN)["prompt"] == "a"


@pytest.mark.parametrize(
    ("extra", "error", "sentence"),
    [
        ({"alhpa": 1}, UnknownOptionError, "did you mean 'alpha'"),
        ({"temprature": 1}, UnknownOptionError, "did you mean 'temperature'"),
        ({"best_of": 4, "n": 1}, RuntimeUnsupportedError, "best_of is 4"),
    ],
)
def test_fields_that_would_be_ignored(extra: dict[str, Any], error: type[Exception], sentence: str) -> None:
    """What would change the answer and is not known is an error with the nearest name."""
    with pytest.raises(error, match=sentence):
        BodyRules(alphas=(1.0,)).checked({"prompt": "a", **extra}, KNOWN)
