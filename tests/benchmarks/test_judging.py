"""Judging: probabilities of local judges, servers that fail, and what is missing staying missing."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.judging.server import ServerJudge, token_probability, word_probability
from proxytune import ProxyGenerator
from proxytune.errors import InputError
from tests.benchmarks.conftest import Bench, results

Answer = Callable[[dict[str, Any], int], tuple[int, Any]]


class Server(ThreadingHTTPServer):
    """A server on loopback whose answers `answer` makes from the request and the number of requests before it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.num_requests = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """As judges are given it."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        """Answer one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number, self.server.num_requests = self.server.num_requests, self.server.num_requests + 1
        key = self.headers.get("Authorization")
        status, answer = self.server.answer({**body, "path": self.path, "key": key}, number)
        data = json.dumps(answer).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", answer)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Server]]:
    """Return the function that starts a server; all of them end with the test."""
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def tokens(**logprobs: float) -> dict[str, Any]:
    """Return a completion whose first token has these likeliest values."""
    return {"choices": [{"logprobs": {"top_logprobs": [{f" {name}": value for name, value in logprobs.items()}]}}]}


@pytest.fixture
def run(bench: Bench, tmp_path: Path) -> Path:
    """A run with three open answers."""
    bench(tmp_path / "run", "--parts", "open", "--compare", "base", "--limit", "3")
    return tmp_path / "run"


def judged(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of the open answers by measure."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {measure: found for (_, measure, _), found in results(metrics).items()}


def test_local_judges_give_the_probability_of_yes(run: Path, readers: dict[str, Path]) -> None:
    """A local judge's number is the model's own probability that " yes" follows the judge's prompt."""
    assert main(["judge", str(run), "--truth-judge", str(readers["tuned"])]) == 0
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [json.loads(line) for line in (run / "judgements.jsonl").read_text(encoding="utf-8").splitlines()]
    judge = str(readers["tuned"])
    generator = ProxyGenerator(judge, judge, judge, alpha=0.0)
    prompts = [f"Q: {row['Question']}\nA: {row['output']}\nTrue:" for row in rows]
    wanted = [math.exp(score.total) for score in generator.score(prompts, [" yes"] * len(prompts))]
    assert [line["probability"] for line in found] == pytest.approx(wanted, rel=1e-4)
    assert judged(run)["true"]["n"] == 3
    assert judged(run)["informative"]["num_missing"] == 3


def test_a_server_judges_both_qualities(run: Path, serve: Callable[[Answer], Server]) -> None:
    """Truth and information have judges of their own, and the product needs both."""

    def answer(body: dict[str, Any], number: int) -> tuple[int, Any]:
        is_true = body["prompt"].endswith("True:")
        assert body["model"] == ("truth" if is_true else "info")
        return 200, tokens(yes=-0.1, no=-2.5) if is_true else tokens(no=-0.2, yes=-1.8)

    options = ["--judge-url", serve(answer).url, "--truth-judge", "truth", "--info-judge", "info"]
    assert main(["judge", str(run), *options]) == 0
    values = {measure: judged(run)[measure]["value"] for measure in ("true", "informative", "true and informative")}
    assert values == {"true": 1.0, "informative": 0.0, "true and informative": 0.0}


def test_failures_are_missing_and_can_be_asked_again(run: Path, serve: Callable[[Answer], Server]) -> None:
    """An answer that a judge cannot judge has no verdict; it is kept as missing, with the reason, until asked again."""
    is_down = [True]

    def answer(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return (400, {}) if is_down[0] and "What is 1 " in body["prompt"] else (200, tokens(yes=-0.1))

    server = serve(answer)
    arguments = ["judge", str(run), "--judge-url", server.url, "--truth-judge", "truth"]
    assert main(arguments) == 0
    assert (judged(run)["true"]["n"], judged(run)["true"]["num_missing"], judged(run)["true"]["value"]) == (2, 1, 1.0)
    lines = (run / "judgements.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("error", "") for line in lines].count("HTTP 400 (after 1 tries)") == 1
    asked = server.num_requests
    assert main(arguments) == 0
    assert server.num_requests == asked
    is_down[0] = False
    assert main([*arguments, "--retry-missing"]) == 0
    assert server.num_requests == asked + 1
    assert judged(run)["true"]["num_missing"] == 0


def test_retries_are_bounded(serve: Callable[[Answer], Server]) -> None:
    """A server that is overloaded is asked again with growing pauses, and no more often than allowed."""
    pauses: list[float] = []
    flaky = serve(lambda body, number: (503, {}) if number < 2 else (200, tokens(yes=-0.5)))
    judge = ServerJudge(url=flaky.url, model="m", max_attempts=3, batch_size=1, sleep=pauses.append)
    assert judge.judge(["?"])[0].probability == pytest.approx(math.exp(-0.5))
    assert pauses == [1.0, 2.0]
    down = serve(lambda body, number: (503, {}))
    judge = ServerJudge(url=down.url, model="m", max_attempts=3, batch_size=1, sleep=pauses.append)
    [verdict] = judge.judge(["?"])
    assert (verdict.probability, verdict.error, down.num_requests) == (None, "HTTP 503 (after 3 tries)", 3)


def test_redirects_are_not_followed(serve: Callable[[Answer], Server]) -> None:
    """A redirect ends in a missing judgement that names its target, which sees neither the key nor the answer."""
    other = serve(lambda body, number: (200, tokens(yes=-0.1)))
    honest = serve(lambda body, number: (302, other.url) if body["key"] == "Bearer sk-SECRET" else (400, {}))
    [verdict] = ServerJudge(url=honest.url, model="m", key="sk-SECRET", max_attempts=3).judge(["?"])
    assert verdict.probability is None
    assert f"HTTP 302 to '{other.url}'" in str(verdict.error)
    assert (honest.num_requests, other.num_requests) == (1, 0)


def test_a_chat_judge_is_read_by_its_word(run: Path, serve: Callable[[Answer], Server]) -> None:
    """Through the chat endpoint yes is 1, no is 0, and anything else is missing: never a verdict."""
    words = {"What is 0 ": "Yes.", "What is 1 ": "no, it is not", "What is 2 ": "Nobody can know"}

    def answer(body: dict[str, Any], number: int) -> tuple[int, Any]:
        assert body["path"] == "/v1/chat/completions"
        word = next(word for key, word in words.items() if key in body["messages"][0]["content"])
        return 200, {"choices": [{"message": {"content": word}}]}

    options = ["--judge-url", serve(answer).url, "--judge-api", "chat", "--truth-judge", "m", "--max-attempts", "1"]
    assert main(["judge", str(run), *options]) == 0
    assert (judged(run)["true"]["n"], judged(run)["true"]["num_missing"], judged(run)["true"]["value"]) == (2, 1, 0.5)


def test_other_judges_are_refused(run: Path, serve: Callable[[Answer], Server], capsys: Any) -> None:
    """Judgements of two judges are never mixed in one folder."""
    server = serve(lambda body, number: (200, tokens(yes=-0.5)))
    arguments = ["judge", str(run), "--judge-url", server.url, "--truth-judge"]
    assert main([*arguments, "one"]) == 0
    assert main([*arguments, "two"]) == 2
    assert "name that judge again" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"logprobs": None}]}, tokens(maybe=-0.1)])
def test_answers_without_a_verdict(answer: Any) -> None:
    """What says neither yes nor no is an error, through either endpoint."""
    with pytest.raises(InputError):
        token_probability(answer)
    with pytest.raises(InputError):
        word_probability(answer)


def test_judging_needs_open_answers(bench: Bench, tmp_path: Path, readers: dict[str, Path], capsys: Any) -> None:
    """A run without open answers, and a command without judges, are refused."""
    bench(tmp_path / "run", "--parts", "letter", "--compare", "base", "--limit", "1")
    assert main(["judge", str(tmp_path / "run"), "--truth-judge", str(readers["tuned"])]) == 2
    assert "no open answers" in capsys.readouterr().err
    assert main(["judge", str(tmp_path / "run")]) == 2
    assert "--truth-judge" in capsys.readouterr().err
