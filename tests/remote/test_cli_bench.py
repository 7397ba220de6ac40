"""`bench remote` against a small server: it measures, compares tokens, and ends where they differ."""

import json
from pathlib import Path

import pytest

from benchmarks.cli import main
from tests.remote import rig

SHORT = ["--quick", "--num-prompts", "3", "--max-new-tokens", "12", "--drafts", "off", "4"]


def test_rows_have_requests_and_equal_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain decoding takes a request per token, four drafts at most half; all rows equal those of the base here."""
    path = tmp_path / "rows.json"
    with rig.server() as server:
        given = ["--base", "openai:base", "--base-url", server.url, "--local-base", str(rig.TRIO / "base")]
        assert main(["remote", *given, *SHORT, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())
    assert [(row["num_logprobs"], row["batch"], row["drafts"]) for row in rows] == [
        (seen, batch, drafts) for seen in (None, 20) for batch in (1, 8) for drafts in ("off", 4)
    ]
    for row in rows:
        assert row["requests_per_token"] == 1.0 if row["drafts"] == "off" else row["requests_per_token"] <= 0.5
        assert row["equal_rows"] == "3/3"
        assert 0 < row["least_mass"] <= row["mean_mass"] <= 1
    assert "requests/token" in capsys.readouterr().out


def test_other_tokens_than_the_local_ones_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A local base that is another model than the server's is found by its tokens."""
    with rig.server() as server:
        given = ["--base", "openai:base", "--base-url", server.url, "--local-base", str(rig.TRIO / "anti")]
        assert main(["remote", *given, *SHORT]) == 2
    assert "tokens of the base here" in capsys.readouterr().err


def test_half_a_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A base without its URL is one sentence and code 2."""
    assert main(["remote", "--base", "openai:base", *SHORT]) == 2
    assert "--base and --base-url go together" in capsys.readouterr().err
