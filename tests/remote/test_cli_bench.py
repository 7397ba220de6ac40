"""`bench remote` against a small server: it measures, compares tokens, and ends where they differ."""

from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.decoding.rows import read_rows
from tests.remote import rig

NAMES = ["remote", "remote:4", "remote@20", "remote@20:4"]
SHORT = ["--rounds", "1", "--workloads", "12:12@1x3", "12:12@8x3", "--variants", *NAMES]


def test_rows_have_requests_and_equal_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain decoding takes a request per token, four drafts fewer; all rows equal those of the base here."""
    path = tmp_path / "rows.json"
    with rig.server() as server:
        given = ["--base", "openai:base", "--base-url", server.url, "--local-base", str(rig.TRIO / "base")]
        assert main(["remote", *given, *SHORT, "--json", str(path)]) == 0
    rows = read_rows(path)
    assert [(row.batch, row.variant) for row in rows] == [(batch, name) for batch in (1, 8) for name in NAMES]
    for row in rows:
        assert row.requests_per_token is not None
        assert row.requests_per_token < 0.8 if row.variant.endswith(":4") else row.requests_per_token == 1.0
        assert row.equal_rows == "3/3"
        assert 0 < (row.least_mass or 0) <= (row.mean_mass or 0) <= 1
    assert "requests/token" in capsys.readouterr().out


def test_other_tokens_than_the_local_ones_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A local base that is another model than the server's is found by its tokens."""
    with rig.server() as server:
        given = ["--base", "openai:base", "--base-url", server.url, "--local-base", str(rig.TRIO / "anti")]
        assert main(["remote", *given, *SHORT]) == 2
    assert "remote differs from the naive loop" in capsys.readouterr().err


def test_a_base_that_is_nowhere_else_is_measured(tmp_path: Path) -> None:
    """Without the same base here drafts are compared with plain decoding at the server, and no floor is told."""
    path = tmp_path / "rows.json"
    with rig.server() as server:
        given = ["--base", "openai:base", "--base-url", server.url]
        assert main(["remote", *given, *SHORT, "--json", str(path)]) == 0
    assert all(row.equal_rows == "3/3" and row.floor_ratio is None for row in read_rows(path))


def test_half_a_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A base without its URL is one sentence and code 2."""
    assert main(["remote", "--base", "openai:base", *SHORT]) == 2
    assert "--base openai:MODEL and --base-url go together" in capsys.readouterr().err
