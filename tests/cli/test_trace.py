"""`proxytune trace`."""

import json
from pathlib import Path

import pytest

from proxytune import ProxyGenerator
from proxytune.demo import trio_path
from tests.cli.console import Run, assert_refused, write_rows

_PROMPTS = ["Question: Where was Jora Quillmere born?\nAnswer:", "In truth,"]


@pytest.fixture(scope="module")
def bundled() -> ProxyGenerator:
    """The trio that comes with the package."""
    return ProxyGenerator(**{role: trio_path() / role for role in ("base", "expert", "anti")})


def test_several_strengths(run: Run, bundled: ProxyGenerator) -> None:
    """Every prompt is traced at every strength, each row what the generator's own trace says."""
    parts = [part for prompt in _PROMPTS for part in ("--prompt", prompt)]
    rows = run("trace", *parts, "--alphas", "0,1.5", "--max-new-tokens", 6, "--candidates", 2).rows
    assert [(row["prompt"], row["alpha"]) for row in rows] == [(p, a) for p in _PROMPTS for a in (0.0, 1.5)]
    for row in rows:
        trace = bundled.trace(row["prompt"], alpha=row["alpha"], max_new_tokens=6, trace=2)
        assert row["text"] == trace.text
        assert {key: row[key] for key in trace.row()} == json.loads(json.dumps(trace.row()))


def test_given_texts(run: Run, bundled: ProxyGenerator, tmp_path: Path) -> None:
    """Texts that were given are traced as they stand: one for all prompts, or each row's own with its own α."""
    [row] = run("trace", "--prompt", _PROMPTS[0], "--continuation", " In truth, nobody knows.").rows
    trace = bundled.trace(_PROMPTS[0], continuation=" In truth, nobody knows.")
    assert row["tokens"] == json.loads(json.dumps(trace.row()))["tokens"]
    given = [{"prompt": "In", "continuation": " truth,", "alpha": 0.5}, {"id": 7, "prompt": "In", "continuation": [9]}]
    rows = run("trace", "--given", "--prompts", write_rows(tmp_path / "a.jsonl", given)).rows
    assert (rows[0]["alpha"], rows[0]["text"]) == (0.5, " truth,")
    assert rows[1]["id"] == 7
    assert [token["token_id"] for token in rows[1]["tokens"]] == [9]


def test_draws_are_shared(run: Run) -> None:
    """Without a seed a prompt is drawn with one seed at all strengths, and a row's seed makes it again."""
    options = ["--temperature", 1, "--max-new-tokens", 8]
    rows = run("trace", "--prompt", "In", "--prompt", "They", "--alphas", "1,1.001", *options).rows
    assert rows[0]["seed"] == rows[1]["seed"] != rows[2]["seed"] == rows[3]["seed"]
    [again] = run("trace", "--prompt", "In", *options, "--seed", rows[0]["seed"]).rows
    assert again["text"] == rows[0]["text"]


def test_resume(run: Run, tmp_path: Path) -> None:
    """A torn run goes on where it was cut and ends in the same file."""
    output = tmp_path / "a.jsonl"
    command = ["trace", "--prompt", "In", "--prompt", "They", "--alphas", "0,1", "--max-new-tokens", "4"]
    assert run(*command, "--output", output).code == 0
    whole = output.read_bytes()
    output.write_bytes(whole[: whole.index(b"\n") + 30])
    assert run(*command, "--output", output, "--resume").code == 0
    assert output.read_bytes() == whole


def test_refusals(run: Run) -> None:
    """What cannot be traced is refused before a model loads."""
    assert_refused(run("trace", "--prompt", "a", "--runtime", "vllm"), "--runtime hf")
    assert_refused(run("trace", "--prompt", "a", "--alphas", "1,x"), "'1,x'", "0,1,2")
    assert_refused(run("trace", "--prompt", "a", "--alphas", "1,1"), "twice")
    assert_refused(run("trace", "--prompt", "a", "--alphas", "1", "--alpha", "1"), "--alpha and --alphas")
    assert_refused(run("trace", "--prompt", "a", "--candidates", "0"), "trace", "0")
    assert_refused(run("trace", "--prompt", "a", "--continuation", ""), "empty")
