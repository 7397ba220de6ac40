"""`--speculation`, `--draft` and `--stats`: the same text, and figures beside it."""

from pathlib import Path

import pytest

from tests.cli.console import Run

PROMPTS = ["--prompt", "Once upon a time", "--prompt", "Who lives there?"]


@pytest.mark.parametrize("drafting", [["--speculation", "3"], ["--speculation", "2", "--draft", "anti"]])
def test_the_same_rows(run: Run, roles: list[str], trio: Path, drafting: list[str]) -> None:
    """Drafts of the expert, and of a model of its own, give plain decoding's rows; stats say what they did."""
    drafting = [str(trio / "anti") if part == "anti" else part for part in drafting]
    plain = run("generate", *roles, *PROMPTS, "--max-new-tokens", 8, "--speculation", "off", "--stats", "--ignore-eos")
    drafted = run("generate", *roles, *PROMPTS, "--max-new-tokens", 8, *drafting, "--stats", "--ignore-eos")
    assert (plain.code, drafted.code) == (0, 0)
    assert [row["token_ids"] for row in drafted.rows] == [row["token_ids"] for row in plain.rows]
    assert {row["timing"]["stats"]["tokens_per_cycle"] for row in plain.rows} == {1.0}
    for row in drafted.rows:
        assert len(row["timing"]["stats"]["acceptance"]) == int(drafting[1])
        assert row["timing"]["stats"]["num_tokens"] == 16


def test_what_is_no_number_of_drafts(run: Run, roles: list[str]) -> None:
    """It is refused with what may be."""
    result = run("generate", *roles, *PROMPTS, "--speculation", "0")
    assert result.code == 2
    assert "'0' is not auto, off or a number of drafts above 0" in result.err
