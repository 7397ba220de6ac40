"""The layer before vLLM's endpoints, around an application that takes whatever comes."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from proxytune.errors import (
    ContextLengthError,
    InputError,
    OptionError,
    RuntimeUnsupportedError,
    UnknownOptionError,
)
from proxytune.prompts import PromptFormat
from proxytune.requests import RequestBuilder, RoleReader
from proxytune.vllm.plan import Plan, RolePlan
from proxytune.vllm.role_prompts import RolePrompts
from proxytune.vllm.serving.body import BodyRules
from tests import tiny
from tests.vllm.conftest import IS_INSTALLED

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not IS_INSTALLED, reason="vLLM is not installed")]

_KEY = "sk-of-a-layer"
_PLAN = Plan(roles=tuple(RolePlan(name=name, model=name) for name in "abc"), pairs=((1, 2),), alphas=(1.0,))
_FAILED = '{"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}'


def _ask(
    method: str, path: str, *, key: str | None = None, content: bytes = b"", status: int = 200, text: str = "taken"
) -> tuple[httpx.Response, list[str]]:
    """Return the answer to a request, and the paths that reached the application, whose answer is `text`."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from proxytune.vllm.serving.middleware import RequestRules

    reached: list[str] = []

    async def take(request: Any) -> PlainTextResponse:
        reached.append(request.url.path)
        return PlainTextResponse(text, status)

    app = Starlette(routes=[Route("/{path:path}", take, methods=["GET", "POST", "DELETE"])])
    app.add_middleware(RequestRules)
    app.state.args = SimpleNamespace(api_key=[_KEY])
    model_config = SimpleNamespace(hf_config=SimpleNamespace(**_PLAN.overrides()))
    config = SimpleNamespace(model_config=model_config, speculative_config=None)
    app.state.engine_client = SimpleNamespace(vllm_config=config)
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


_RECURSIVE: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"$ref": "#"}}}},
    {"structured_outputs": {"grammar": "root ::= root"}},
]


@pytest.mark.parametrize("extra", _RECURSIVE)
def test_grammar_that_leads_nowhere_is_the_clients(extra: dict[str, Any]) -> None:
    """A request that its own schema or grammar ended in the engine is a 400, in a stream an error of that code."""
    ask = {"method": "POST", "path": "/v1/completions", "key": _KEY}
    content = json.dumps({"prompt": "a", **extra}).encode()
    response, _ = _ask(**ask, content=content, status=500, text=_FAILED)
    assert response.status_code == 400
    assert "no token is allowed" in response.json()["error"]["message"]
    streamed, _ = _ask(**ask, content=content, text=f"data: {_FAILED}\n\n")
    assert json.loads(streamed.text.removeprefix("data: "))["error"]["code"] == 400


def test_other_failures_stay_the_servers() -> None:
    """Without a grammar, or with another reason, a 500 is handed on as it is."""
    ask = {"method": "POST", "path": "/v1/completions", "key": _KEY, "status": 500}
    assert _ask(**ask, content=b'{"prompt": "a"}', text=_FAILED)[0].text == _FAILED
    content = json.dumps({"prompt": "a", **_RECURSIVE[0]}).encode()
    response, _ = _ask(**ask, content=content, text="the engine is dead")
    assert (response.status_code, response.text) == (500, "the engine is dead")


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


def chats() -> RequestBuilder:
    """Return what encodes chats for three roles, each in a format of its own."""
    formats = {"base": "raw", "expert": "w1 {prompt} w2", "anti": "w3 {prompt}"}
    readers = [RoleReader(name, PromptFormat(form), tiny.word_tokenizer(), 64, 64) for name, form in formats.items()]
    return RequestBuilder(readers, 64, (1.0,))


CHAT = frozenset({"messages", "tools", "add_generation_prompt", "vllm_xargs"})
MESSAGES = [{"role": "user", "content": "w5 w6"}]


def test_a_chat_carries_the_prompt_of_each_role() -> None:
    """The conversation is encoded as each role reads it, beside the request's α; texts for completions are not."""
    rules = BodyRules(alphas=(1.0,), chats=chats())
    extra = rules.checked({"messages": MESSAGES, "alpha": 0.5}, CHAT)["vllm_xargs"]
    prompts = RolePrompts.of(extra)
    assert prompts is not None
    assert list(prompts.role_ids) == [[1, 9, 10], [1, 5, 9, 10, 6], [1, 7, 9, 10]]
    assert extra["alpha"] == 0.5
    assert rules.checked({"prompt": "w5"}, KNOWN) == {"prompt": "w5"}


@pytest.mark.parametrize(
    ("extra", "error", "sentence"),
    [
        ({"tools": [{"type": "function"}]}, RuntimeUnsupportedError, "tools: .*leave it out"),
        ({"add_generation_prompt": False}, RuntimeUnsupportedError, "add_generation_prompt: "),
        ({"messages": [{"role": "user", "content": "w1 " * 70}]}, ContextLengthError, "shorten it"),
        ({"messages": [{"role": "user", "content": None}]}, InputError, "message 0"),
        ({"vllm_xargs": {"proxytune_prompt_0": [1]}}, OptionError, "only the server makes"),
    ],
)
def test_a_chat_that_no_format_of_the_roles_holds(extra: dict[str, Any], error: type[Exception], sentence: str) -> None:
    """What only a model's own template reads is refused, as are prompts that the client made up."""
    with pytest.raises(error, match=sentence):
        BodyRules(alphas=(1.0,), chats=chats()).checked({"messages": MESSAGES, **extra}, CHAT)


def test_the_engine_gets_the_sequence_that_all_prompts_fit() -> None:
    """A request with a prompt per role ends with the base's ids and has no part in the prefix cache; others stay."""
    from vllm import SamplingParams

    from proxytune.vllm.serving.role_engine import RoleEngine

    taken: list[Any] = []
    client = SimpleNamespace(generate=lambda prompt, params, name: taken.append((prompt, params, name)), errored=False)
    engine = RoleEngine(client)
    prompts = RolePrompts(((1, 5), (1, 6, 7, 8)))
    engine.generate({"type": "token"}, SamplingParams(extra_args=prompts.arguments()), "a")
    engine.generate({"type": "token"}, SamplingParams(), "b")
    [(first, params, _), (second, _, _)] = taken
    assert first["prompt_token_ids"] == [1, 1, 1, 5]
    assert first["cache_salt"]
    assert params.skip_reading_prefix_cache
    assert second == {"type": "token"}
    assert engine.errored is False
