"""`RequestRules`: the ASGI layer before vLLM's endpoints, named to its server by `--middleware`."""

import copy
import json
from collections.abc import Awaitable, Callable, Set
from functools import lru_cache
from typing import Any

from proxytune.errors import InputError, OptionError, ProxyTuneError
from proxytune.vllm.plan import ALPHA_KEY, Plan
from proxytune.vllm.serving.answers import Message, Send, refuse, with_blame
from proxytune.vllm.serving.body import BodyRules, read_json

Receive = Callable[[], Awaitable[Message]]

_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"
_OPEN = ("/health", "/ping")  # for those who only look whether the server runs
_RENDER = "/render"  # the same body, answered with token ids
# Takes vllm_xargs too, but renders prompts in ways of its own, which nothing here has compared with the hf runtime.
_STEERED = (_COMPLETIONS, _CHAT)

# Of the server's arguments.
ADDS_SPECIAL_TOKENS = "proxytune_adds_special_tokens"
CHATS = "proxytune_chats"


class RequestRules:
    """Reads the JSON of a request, refuses what would be ignored or harm the engine, and moves α to its place."""

    def __init__(self, app: Any) -> None:
        """Wrap an ASGI application."""
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand a request on, its body checked and perhaps changed, or answer it with status 400 or 401."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif not _may_enter(scope):
            await refuse(send, "this needs the server's API key: Authorization: Bearer KEY.", 401, scope["type"])
        elif scope["type"] == "http" and scope["method"] == "POST":
            await self._ruled(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _ruled(self, scope: Message, receive: Receive, send: Send) -> None:
        data = await _body(receive)
        if data is None:
            return
        try:
            body, changed = _checked(scope, data)
        except ProxyTuneError as error:
            await refuse(send, str(error))
            return
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(len(changed)).encode()))
        await self._app({**scope, "headers": headers}, _replayed(changed, receive), with_blame(send, body))


def _may_enter(scope: Message) -> bool:
    """Return whether a request has the API key or needs none; vLLM's own check leaves /invocations and others open."""
    from starlette.datastructures import Headers
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    tokens = [key for key in (scope["app"].state.args.api_key or [envs.VLLM_API_KEY]) if key]
    if not tokens or scope.get("method") == "OPTIONS" or _path(scope) in _OPEN:
        return True
    return bool(AuthenticationMiddleware(None, tokens).verify_token(Headers(scope=scope)))


async def _body(receive: Receive) -> bytes | None:
    """Return the whole body; None where the client has left before its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(data: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body, then whatever comes (a client that leaves)."""
    waiting: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _checked(scope: Message, data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the fields of a request for a completion, none for other endpoints, and the body to hand on."""
    path = _path(scope)
    endpoint = path.removesuffix(_RENDER)
    if not data or not _is_json(scope):
        return {}, data
    body = read_json(data)
    if not isinstance(body, dict):
        raise InputError("the body is no JSON object: send one.")
    if endpoint not in _STEERED:
        if ALPHA_KEY in body:
            raise OptionError(f"alpha is taken by {' and '.join(_STEERED)}, not by {path}: leave it out here.")
        return {}, data
    changed = _rules(scope["app"].state).checked(body, _known(endpoint))
    _require_readable(endpoint, changed)
    return changed, data if changed == body else json.dumps(changed).encode()


def _path(scope: Message) -> str:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.rstrip("/")


def _is_json(scope: Message) -> bool:
    kinds = [value.split(b";")[0].strip().lower() for name, value in scope["headers"] if name == b"content-type"]
    return not kinds or kinds == [b"application/json"]


def _rules(state: Any) -> BodyRules:
    config = state.engine_client.vllm_config
    return BodyRules(
        alphas=Plan.of(config.model_config.hf_config).alphas,
        is_speculative=config.speculative_config is not None,
        adds_special_tokens=getattr(state.args, ADDS_SPECIAL_TOKENS, False),
        chats=getattr(state.args, CHATS, None),
    )


@lru_cache
def _known(endpoint: str) -> Set[str]:
    """Return the fields of an endpoint's requests."""
    fields = _request_type(endpoint).model_fields
    return frozenset({*fields, *(field.alias for field in fields.values() if field.alias)})


def _require_readable(endpoint: str, body: dict[str, Any]) -> None:
    """Raise InputError where vLLM's own reading would break off (status 500) rather than refuse (400)."""
    from vllm.exceptions import VLLMError

    try:
        _request_type(endpoint).model_validate(copy.deepcopy(body))
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"a field of the body is of the wrong kind ({error}): /docs shows what it may be.") from error
    except (ValueError, VLLMError):
        return  # vLLM's to refuse


def _request_type(endpoint: str) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return CompletionRequest if endpoint == _COMPLETIONS else ChatCompletionRequest
