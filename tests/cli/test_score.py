"""`proxytune score`."""

import json
from pathlib import Path

import pytest

from proxytune import ProxyGenerator
from tests.cli.console import Run, write_rows

_ROWS = [
    {"id": 1, "prompt": "Once upon", "continuation": " a time"},
    {"prompt": "Who", "continuation": " lives there", "alpha": 0.0},
    {"prompt": [0, 7, 8], "continuation": [9, 10]},
]


def test_scores(run: Run, roles: list[str], trio: Path, tmp_path: Path) -> None:
    """Rows carry what the engine's `score` returns, each at its own α."""
    found = run("score", *roles, "--prompts", write_rows(tmp_path / "a.jsonl", _ROWS)).rows
    generator = ProxyGenerator(**{role: str(trio / role) for role in ("base", "expert", "anti")})
    scores = generator.score(
        [row["prompt"] for row in _ROWS], [row["continuation"] for row in _ROWS], alpha=[[1.0], [0.0], [1.0]]
    )
    for row, score, given in zip(found, scores, _ROWS, strict=True):
        assert row["logprobs"] == pytest.approx(score.logprobs)
        assert row["total"] == pytest.approx(sum(row["logprobs"]))
        assert (tuple(row["token_ids"]), row["is_greedy"]) == (score.token_ids, score.is_greedy)
        assert all(row[key] == value for key, value in given.items())


def test_greedy_continuation(run: Run, roles: list[str], tmp_path: Path) -> None:
    """What `generate` said greedily scores as greedy, with the log-probabilities it had."""
    [done] = run("generate", *roles, "--prompt", "Who", "--max-new-tokens", 5, "--logprobs").rows
    [ids] = run("generate", *roles, "--prompt", "Who", "--max-new-tokens", 5, "--ignore-eos").rows
    rows = [{"prompt": "Who", "continuation": ids["token_ids"]}]
    [row] = run("score", *roles, "--prompts", write_rows(tmp_path / "a.jsonl", rows)).rows
    assert row["is_greedy"] is True
    assert row["logprobs"][: len(done["logprobs"])] == pytest.approx(
        [entry["logprob"] for entry in done["logprobs"]], abs=1e-4
    )


def test_resume(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A scoring run goes on where it was cut and ends in the same file; standard input is JSONL."""
    output = tmp_path / "a.jsonl"
    command = ["score", *roles, "--output", str(output), "--batch-size", "1"]
    stdin = "".join(json.dumps(row) + "\n" for row in _ROWS)
    assert run(*command, stdin=stdin).code == 0
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.index(b"\n") + 30])
    assert run(*command, "--resume", "--progress", stdin=stdin).code == 0
    assert output.read_bytes() == whole
