"""The trio that comes with the package, which stands in where no roles are named."""

import json

import pytest

from proxytune.demo import trio_path
from proxytune.demo.report import ROLES
from tests.cli.console import Run

pytestmark = pytest.mark.skipif(
    not (trio_path() / "base" / "config.json").is_file(), reason="the bundled trio has not been made here"
)


def test_generate_without_roles(run: Run) -> None:
    """Without roles `generate` runs the bundled trio and says so on stderr."""
    result = run("generate", "--prompt", "Question: Where was", "--max-new-tokens", 4)
    assert (result.code, len(result.rows)) == (0, 1)
    assert "trio that comes with proxytune" in result.err


def test_chat_without_roles(run: Run) -> None:
    """On the bundled trio each turn of a chat is a question of its own."""
    question = "Where was Mira Ashwick born?\n"
    result = run("chat", "--max-new-tokens", 12, stdin=question * 2)
    first, second = result.out.splitlines()
    assert (result.code, first) == (0, second)


@pytest.mark.slow
def test_demo(run: Run) -> None:
    """`demo --json` prints one object with every role's measures, and nothing else."""
    result = run("demo", "--json", "--progress")
    found = json.loads(result.out)
    assert set(found) == {"rows", "gap_closed", "seconds"}
    assert set(found["rows"]) == set(ROLES)
    assert result.err != ""
