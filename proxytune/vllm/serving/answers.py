"""Answers of vLLM's endpoints on their way to the client, where vLLM blames itself for the client's request."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]

# Fields under which a request brings a schema or a grammar.
_GRAMMARS = ("response_format", "structured_outputs", "tools")
_FAILED = b"Internal server error"  # vLLM's word for a request that ended in the engine
_DEAD_END = (
    "the schema or grammar of this request leads where no token is allowed, as a rule or $ref that only names itself "
    "does: give every recursion an end."
)


def with_blame(send: Send, body: Mapping[str, Any]) -> Send:
    """Return a `send` that makes 400 of vLLM's 500 where the request's own schema or grammar ended it.

    vLLM checks that a grammar can be read, and finds out that it leads nowhere when no token is left.
    """
    if not any(body.get(name) for name in _GRAMMARS):
        return send
    held: list[Message] = []

    async def relay(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            held.append(message)
            return
        data = message.get("body", b"")
        if held:
            start = held.pop()
            if _FAILED in data:
                await refuse(send, _DEAD_END)
                return
            await send(start)
        elif data.startswith(b'data: {"error"') and _FAILED in data:  # in a stream, whose status was sent before
            message = {**message, "body": b"data: " + error_body(_DEAD_END, 400) + b"\n\n"}
        await send(message)

    return relay


async def refuse(send: Send, text: str, status: int = 400, kind: str = "http") -> None:
    """Answer with an error in the form that vLLM's own have."""
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    data = error_body(text, status)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def error_body(text: str, status: int) -> bytes:
    """Return the JSON of an error."""
    names = {400: "BadRequestError", 401: "AuthenticationError"}
    error = {"message": text, "type": names.get(status, "InternalServerError"), "param": None, "code": status}
    return json.dumps({"error": error}).encode()
