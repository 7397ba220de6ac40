"""A judge on loopback whose verdict is a length rule: the longer output is better, with probability 0.9."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WIN = 0.9
_WEIGHTED = re.compile(r'"instruction": """(.*?)""",.*?"output": """(.*?)""".*?"output": """(.*?)"""', re.DOTALL)
_RANKING = re.compile(r'"instruction": """(.*?)""",.*?"answer": """(.*?)""".*?"answer": """(.*?)"""', re.DOTALL)


class LengthJudge(ThreadingHTTPServer):
    """The server, which keeps what it was asked.

    Attributes:
        trouble: What goes wrong, by instruction: an HTTP status, "flaky" (a 500, once), or what the answer's body is.
        delay_s: Seconds before each answer.
        stall_s: Seconds that "stall" takes.
        asked: How often it was asked about each instruction.
        keys: The Authorization headers it was sent.
    """

    def __init__(self) -> None:
        self.trouble: dict[str, Any] = {}
        self.delay_s = 0.0
        self.stall_s = 30.0
        self.asked: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.prompts: list[str] = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """As judges are given it."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *args: Any) -> None:
        """Say nothing of clients that went away."""


@contextmanager
def length_judge() -> Iterator[LengthJudge]:
    """Run the server."""
    server = LengthJudge()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


def win_by_length(output: str, reference: str) -> float:
    """Return the probability that the output is better, by the rule."""
    if len(output) == len(reference):
        return 0.5
    return WIN if len(output) > len(reference) else 1 - WIN


class _Handler(BaseHTTPRequestHandler):
    server: LengthJudge

    def do_POST(self) -> None:
        """Answer one request as a chat server does."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        instruction, first, second = (_WEIGHTED.search(prompt) or _RANKING.search(prompt)).groups()  # type: ignore[union-attr]
        with self.server.lock:
            self.server.asked[instruction] += 1
            self.server.keys.add(self.headers.get("Authorization", ""))
            self.server.prompts.append(prompt)
            number = self.server.asked[instruction]
        time.sleep(self.server.delay_s)
        trouble = self.server.trouble.get(instruction)
        if trouble == "stall":
            self.server.over.wait(self.server.stall_s)
            return
        if isinstance(trouble, int) or (trouble == "flaky" and number == 1):
            status = trouble if isinstance(trouble, int) else 500
            self._send(status, json.dumps({"error": {"message": f"no luck for {self.headers['Authorization']}"}}))
        elif trouble not in (None, "flaky"):
            self._send(200, trouble)
        else:
            self._send(200, json.dumps(_completion(body, win_by_length(first, second))))

    def _send(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def chat_answer(text: str, logprobs: Any = None) -> dict[str, Any]:
    """Return the body of a chat server's answer."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": logprobs,
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "length-rule",
        "choices": [choice],
        "usage": usage,
    }


def _completion(body: dict[str, Any], first_wins: float) -> dict[str, Any]:
    if not body.get("logprobs"):
        order = (1, 2) if first_wins >= 0.5 else (2, 1)
        ranking = [{"model": f"model_{number}", "rank": rank} for number, rank in zip((1, 2), order, strict=True)]
        return chat_answer(str(ranking))
    shares = {"m": first_wins, "M": 1 - first_wins, "The": 0.001}
    top = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in shares.items()]
    return chat_answer("m", {"content": [{**top[0], "top_logprobs": top}], "refusal": None})
