"""An HTTP proxy in front of a real server that fails in every way a server on the way can, by a seeded plan."""

import http.client
import json
import random
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

STATUSES = {"429": 429, "429-retry-after": 429, "408": 408, "500": 500, "503": 503}
FAULTS = (
    *STATUSES,
    "drop",  # the connection is reset before the server hears of the request
    "drop-answered",  # the server answers, and nobody hears it
    "half-body",
    "garbage",  # bytes that are not HTTP
    "invalid-json",
    "wrong-shape",
    "stall",  # nothing comes until the client gives up
)


@dataclass
class FaultyProxy:
    """Passes requests on to `target` (a `base_url`) while it is entered, and lets some of them fail.

    Attributes:
        target: The server behind it, as a `base_url`.
        rate: Share of the requests that fail.
        faults: The kinds that come, each as likely as another.
        script: What the first requests get, None for no fault; then `rate` decides.
        seed: Of the plan.
        retry_after: The header's text with "429-retry-after".
        is_active: Switch it off to let everything through.
        path: Only requests to it fail.
        given: What each request to that path got, in the order of arrival; None for an answer passed on.
    """

    target: str
    rate: float = 0.0
    faults: Sequence[str] = FAULTS
    script: Sequence[str | None] = ()
    seed: int = 0
    retry_after: str = "1"
    is_active: bool = True
    path: str = "/v1/completions"
    given: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if unknown := {fault for fault in (*self.faults, *self.script) if fault is not None} - set(FAULTS):
            raise ValueError(f"no such faults: {sorted(unknown)}")
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._draws = random.Random(self.seed)

    def __enter__(self) -> "FaultyProxy":
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._http = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """What a client is given as `base_url`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def next_fault(self) -> str | None:
        """Return what the next request gets."""
        with self._lock:
            place = len(self.given)
            fault = None
            if self.is_active:
                drawn = self._draws.random() < self.rate, self._draws.choice(list(self.faults))
                fault = self.script[place] if place < len(self.script) else drawn[1] if drawn[0] else None
            self.given.append(fault)
            return fault

    def misshapen(self, body: bytes) -> bytes:
        """Return an answer that is JSON and not what was asked for."""
        whole = json.loads(body)
        choice = whole["choices"][0] if whole.get("choices") else {}
        shapes: list[Any] = [
            [],
            {},
            {**whole, "choices": []},
            {**whole, "choices": [*whole.get("choices", []), choice]},
            {**whole, "choices": [{**choice, "index": 7}]},
            {**whole, "choices": [{**choice, "logprobs": None}]},
            {**whole, "choices": [{**choice, "logprobs": {"top_logprobs": [{"token_id:5": 3.5}], "tokens": ["a"]}}]},
            {**whole, "choices": [{**choice, "logprobs": {"top_logprobs": [{"token_id:5": None}], "tokens": [1]}}]},
            {**whole, "choices": [{**choice, "logprobs": {"top_logprobs": [{"token_id:5": float("nan")}]}}]},
            "an answer",
        ]
        with self._lock:
            return json.dumps(self._draws.choice(shapes)).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections end badly here."""


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Pass on, or fail."""
        self._handle(b"")

    def do_POST(self) -> None:
        """Pass on, or fail."""
        self._handle(self.rfile.read(int(self.headers["Content-Length"])))

    def _handle(self, body: bytes) -> None:
        fault = self.owner.next_fault() if self.path == self.owner.path else None
        if fault in STATUSES:
            after = {"Retry-After": self.owner.retry_after} if fault == "429-retry-after" else {}
            self._send(STATUSES[fault], json.dumps({"error": {"message": f"made up: {fault}"}}).encode(), after)
        elif fault == "drop":
            self._reset()
        elif fault == "stall":
            self.owner.closed.wait(60)
            self._reset()
        elif fault == "garbage":
            self.wfile.write(b"\x00\x01 garbage \xff\r\n\r\n")
            self._reset()
        else:
            self._answer(fault, *self._forward(body))

    def _answer(self, fault: str | None, status: int, body: bytes) -> None:
        """Send the server's answer, or what a fault makes of it."""
        if fault == "drop-answered":
            self._reset()
        elif fault == "half-body":
            self._send(status, body, {}, only=len(body) // 2)
            self._reset()
        elif fault == "invalid-json":
            self._send(status, body[: len(body) // 2], {})
        elif fault == "wrong-shape":
            self._send(status, self.owner.misshapen(body), {})
        else:
            self._send(status, body, {})

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        target = urlsplit(self.owner.target)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
        names = ("Authorization", "Content-Type")
        headers = {name: self.headers[name] for name in names if name in self.headers}
        try:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _send(self, status: int, body: bytes, headers: dict[str, str], only: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if only is None else body[:only])

    def _reset(self) -> None:
        """End the connection without a word."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Write nothing to standard error."""
