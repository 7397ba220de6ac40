"""The README tells the truth: its Python runs, its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from proxytune.cli.parser import parse

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_python_blocks_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Every block marked python runs as it stands and prints something."""
    found = blocks("python")
    assert found
    for block in found:
        exec(compile(block, str(README), "exec"), {})
        assert capsys.readouterr().out.strip()


def test_commands_parse() -> None:
    """Every `proxytune` line of the README is accepted by the command's own parser."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("proxytune ")]
    assert len(lines) >= 5
    for line in lines:
        parse(shlex.split(line, comments=True)[1:])


def test_make_targets_exist() -> None:
    """The set-up commands named first are targets of the Makefile."""
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    named = [line.split()[1] for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")]
    assert named == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in named)
