"""A small HTTP server in several dialects of OpenAI's /v1/completions, over a real causal LM."""

import json
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

STANDARD = frozenset({"model", "prompt", "max_tokens", "temperature", "top_p", "n", "logprobs", "echo", "stop", "seed"})
VLLM = STANDARD | {"prompt_logprobs", "return_tokens_as_token_ids", "return_token_ids", "add_special_tokens"}
_LEAST = -9999.0  # what vLLM writes for -inf, which JSON does not have


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a server can do.

    Attributes:
        fields: Those of a request that it knows; others are ignored, or refused as OpenAI does.
        refuses_unknown: Whether an unknown field is an error.
        takes_ids: Whether a prompt may be token ids.
        takes_lists: Whether a request may have several prompts.
        takes_echo: Whether the prompt can come back with log-probabilities.
        max_logprobs: Most per position; -1 is the whole vocabulary.
        has_models: Whether there is /v1/models.
        has_tokenize: Whether there is /tokenize beside /v1.
        sends_usage: Whether answers count tokens.
        entries: How log-probabilities come: OpenAI's `top_logprobs`, or llama.cpp's `content` with ids.
    """

    fields: frozenset[str] = STANDARD
    refuses_unknown: bool = False
    takes_ids: bool = True
    takes_lists: bool = True
    takes_echo: bool = False
    max_logprobs: int = 5
    has_models: bool = True
    has_tokenize: bool = False
    sends_usage: bool = True
    entries: str = "top_logprobs"


DIALECTS: Mapping[str, Dialect] = {
    "vllm": Dialect(fields=VLLM, takes_echo=True, max_logprobs=20, has_tokenize=True),
    "echo": Dialect(refuses_unknown=True, takes_echo=True),
    "prompts": Dialect(max_logprobs=20),
    "text": Dialect(takes_ids=False, takes_lists=False),
    "llamacpp": Dialect(takes_lists=False, max_logprobs=100_000, entries="content"),
}


@dataclass(frozen=True)
class Recorded:
    """A request as it came, and the status it was answered with."""

    path: str
    body: Any
    headers: Mapping[str, str]
    status: int


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


@dataclass
class CompletionsServer:
    """Serves one model on a free port of this machine while it is entered.

    Attributes:
        model: A causal LM.
        tokenizer: Its tokenizer.
        dialect: One of `DIALECTS`, or one of its own.
        name: What the model is called.
        max_logprobs: Instead of the dialect's.
        key: Clients must send it; None takes everybody.
        tls: Serve https with this context.
        recorded: Requests in the order in which they were answered.
        num_connections: How many were opened.
        refused_fields: Answered with 400 from now on (a server that changes its mind).
        cuts_to: Gives no more log-probabilities than these, without a word.
        miscounts: Added to the number of prompt tokens that it states.
    """

    model: Any
    tokenizer: Any
    dialect: str | Dialect = "vllm"
    name: str = "base"
    max_logprobs: int | None = None
    key: str | None = None
    tls: ssl.SSLContext | None = None
    recorded: list[Recorded] = field(default_factory=list)
    num_connections: int = 0
    refused_fields: set[str] = field(default_factory=set)
    cuts_to: int | None = None
    miscounts: int = 0

    def __post_init__(self) -> None:
        self.can = DIALECTS[self.dialect] if isinstance(self.dialect, str) else self.dialect
        if self.max_logprobs is not None:
            self.can = replace(self.can, max_logprobs=self.max_logprobs)
        self.max_model_len = int(self.model.config.max_position_embeddings)
        self.vocab_size = int(self.model.config.vocab_size)
        self._lock = threading.Lock()
        self._draws = torch.Generator().manual_seed(0)

    def __enter__(self) -> "CompletionsServer":
        server = self

        class Handler(_Handler):
            owner = server

        self._http = _Server(("127.0.0.1", 0), Handler)
        if self.tls is not None:
            self._http.socket = self.tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """What a client is given as `base_url`."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}/v1"

    @property
    def completions(self) -> list[Recorded]:
        """The requests for completions among those recorded."""
        return [request for request in self.recorded if request.path == "/v1/completions"]

    def log_probs(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the model's log-probabilities after each of the prompt's prefixes: float32 [T, V]."""
        with self._lock, torch.inference_mode():
            return self.model(torch.tensor([list(token_ids)])).logits[0].float().log_softmax(-1)

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        """Return what a request is answered with; raise RefusedError for one that cannot be."""
        if path == "/v1/models" and self.can.has_models:
            card = {"id": self.name, "object": "model"}
            return {"object": "list", "data": [{**card, "max_model_len": self.max_model_len}]}
        if path == "/tokenize" and self.can.has_tokenize:
            ids = self._encode(body["prompt"], body.get("add_special_tokens", True))
            return {"count": len(ids), "max_model_len": self.max_model_len, "tokens": ids}
        if path == "/v1/completions":
            return self._complete(body)
        raise RefusedError(404, "Not Found")

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("model") != self.name:
            raise RefusedError(404, f"The model `{body.get('model')}` does not exist.", "model")
        unknown = set(body) - self.can.fields
        if unknown and self.can.refuses_unknown:
            raise RefusedError(400, f"Unrecognized request argument supplied: {min(unknown)}")
        if refused := set(body) & self.refused_fields:
            raise RefusedError(400, f"{min(refused)} is switched off on this server", min(refused))
        known = {name: value for name, value in body.items() if name in self.can.fields}
        for name in ("logprobs", "prompt_logprobs"):
            self._check_count(name, known.get(name))
        if known.get("echo") and not self.can.takes_echo:
            raise RefusedError(400, "echo is not supported", "echo")
        prompts = self._prompts(known)
        choices = [self._choice(index, ids, known) for index, ids in enumerate(prompts)]
        answer = {"id": "cmpl-1", "object": "text_completion", "model": self.name, "choices": choices}
        if self.can.sends_usage:
            count = sum(map(len, prompts)) + self.miscounts
            answer["usage"] = {
                "prompt_tokens": count,
                "completion_tokens": len(prompts),
                "total_tokens": count + len(prompts),
            }
        return answer

    def _check_count(self, name: str, count: int | None) -> None:
        """Refuse as vLLM does: -1 stands for the whole vocabulary, and that is more than any other limit."""
        if count is None:
            return
        if count < -1:
            raise RefusedError(400, f"`{name}` must be a positive value or -1.", name)
        wanted = self.vocab_size if count == -1 else count
        most = self.vocab_size if self.can.max_logprobs == -1 else self.can.max_logprobs
        if wanted > most:
            kind = "sample" if name == "logprobs" else "prompt"
            raise RefusedError(
                400, f"Requested {kind} logprobs of {wanted}, which is greater than max allowed: {most}", name
            )

    def _prompts(self, body: Mapping[str, Any]) -> list[list[int]]:
        prompt = body["prompt"]
        is_single = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
        prompts = [prompt] if is_single else prompt
        if not is_single and not self.can.takes_lists:
            raise RefusedError(400, "prompt must be a single one", "prompt")
        if not self.can.takes_ids and any(not isinstance(each, str) for each in prompts):
            raise RefusedError(400, "prompt must be a string", "prompt")
        found = [
            self._encode(each, body.get("add_special_tokens", True)) if isinstance(each, str) else each
            for each in prompts
        ]
        for ids in found:
            if len(ids) + body.get("max_tokens", 16) > self.max_model_len:
                raise RefusedError(
                    400, f"This model's maximum context length is {self.max_model_len} tokens.", "prompt"
                )
            if not ids or max(ids) >= self.vocab_size:
                raise RefusedError(400, "Token id out of vocabulary, or no token", "prompt")
        return found

    def _choice(self, index: int, ids: Sequence[int], body: Mapping[str, Any]) -> dict[str, Any]:
        rows = self.log_probs(ids)
        if body.get("temperature", 1.0) == 0:
            drawn = int(rows[-1].argmax())
        else:
            with self._lock:
                drawn = int(torch.multinomial(rows[-1].exp(), 1, generator=self._draws))
        count = body.get("logprobs")
        places: list[tuple[int, torch.Tensor | None]] = [(drawn, rows[-1])]
        if body.get("echo"):
            before = [None, *rows[:-1]]
            places = [*zip(ids, before, strict=True), *places]
        names = bool(body.get("return_tokens_as_token_ids"))
        choice = {
            "index": index,
            "text": self._decode([token for token, _ in places]),
            "finish_reason": "length",
            "logprobs": None if count is None else self._logprobs(places, count, names),
        }
        if body.get("return_token_ids"):
            choice["prompt_token_ids"] = list(ids)
        if (wanted := body.get("prompt_logprobs")) is not None:
            choice["prompt_logprobs"] = [None, *map(self._prompt_entry, ids[1:], rows[:-1], [wanted] * (len(ids) - 1))]
        return choice

    def _logprobs(self, places: Sequence[tuple[int, torch.Tensor | None]], count: int, as_ids: bool) -> dict[str, Any]:
        def name(token_id: int) -> str:
            return f"token_id:{token_id}" if as_ids else self._decode([token_id])

        if self.can.entries == "content":
            token, row = places[-1]
            return {"content": [{**self._content(token, row), "top_logprobs": self._contents(row, count)}]}
        tokens = [name(token) for token, _ in places]
        tops = [None if row is None else self._top(token, row, count) for token, row in places]
        return {
            "tokens": tokens,
            "text_offset": [sum(map(len, tokens[:place])) for place in range(len(tokens))],
            "token_logprobs": [
                None if top is None else top[token] for (token, _), top in zip(places, tops, strict=True)
            ],
            "top_logprobs": [None if top is None else {name(index): lp for index, lp in top.items()} for top in tops],
        }

    def _prompt_entry(self, token: int, row: torch.Tensor, count: int) -> dict[str, Any]:
        top = self._top(token, row, count)
        return {
            str(index): {"logprob": lp, "rank": int((row >= row[index]).sum()), "decoded_token": self._decode([index])}
            for index, lp in top.items()
        }

    def _contents(self, row: Any, count: int) -> list[dict[str, Any]]:
        best = row.topk(min(count, self.vocab_size)).indices.tolist() if count > 0 else []
        return [self._content(index, row) for index in best]

    def _content(self, token: int, row: Any) -> dict[str, Any]:
        return {"id": token, "token": self._decode([token]), "logprob": max(float(row[token]), _LEAST)}

    def _top(self, token: int, row: torch.Tensor, count: int) -> dict[int, float]:
        """Return the token that stands there and the `count` most probable, by falling probability."""
        most = self.vocab_size if count == -1 else min(count, self.vocab_size)
        best = row.topk(most if self.cuts_to is None else min(most, self.cuts_to)).indices.tolist()
        return {index: max(float(row[index]), _LEAST) for index in [token, *best]}

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    owner: CompletionsServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Count the connection."""
        super().setup()
        with self.owner._lock:
            self.owner.num_connections += 1

    def do_GET(self) -> None:
        """Answer."""
        self._respond(None)

    def do_POST(self) -> None:
        """Answer."""
        self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _respond(self, body: Any) -> None:
        status, answer = 200, {}
        try:
            if self.owner.key is not None and self.headers["Authorization"] != f"Bearer {self.owner.key}":
                raise RefusedError(401, f"Incorrect API key provided: {self.headers['Authorization']}")
            answer = self.owner.answer(self.path, body)
        except RefusedError as refusal:
            status = refusal.status
            kind = "NotFoundError" if status == 404 else "BadRequestError"
            answer = {"error": {"message": str(refusal), "type": kind, "param": refusal.param, "code": status}}
        data = json.dumps(answer).encode()
        with self.owner._lock:
            self.owner.recorded.append(Recorded(self.path, body, dict(self.headers), status))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Write nothing to standard error."""
