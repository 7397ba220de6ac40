"""`proxytune save`, and commands that read what it wrote."""

from pathlib import Path

import pytest

from proxytune import ProxyGenerator
from tests.cli.console import Run


@pytest.fixture
def folder(run: Run, roles: list[str], tmp_path: Path) -> Path:
    """A proxy folder with α and a format of its own."""
    target = tmp_path / "proxy"
    result = run("save", *roles, "--alpha", 0.5, "--expert-prompt", "question", "--output", target)
    assert (result.code, result.out) == (0, "")
    return target


def test_saved_folder_answers_the_same(run: Run, roles: list[str], folder: Path) -> None:
    """`--model` stands for the roles, α and formats it was saved with, and reads as the library reads it."""
    prompt = ["--prompt", "Who", "--max-new-tokens", 9]
    [row] = run("generate", "--model", folder, *prompt).rows
    [plain] = run("generate", *roles, *prompt, "--alpha", 0.5, "--expert-prompt", "question").rows
    assert row == plain
    [done] = ProxyGenerator.from_pretrained(folder).generate(["Who"], max_new_tokens=9)
    assert list(done.token_ids) == row["token_ids"]


def test_options_override_the_folder(run: Run, roles: list[str], folder: Path) -> None:
    """α and a role's format can be given anew beside `--model`."""
    prompt = ["--prompt", "Who", "--max-new-tokens", 9]
    [row] = run("generate", "--model", folder, *prompt, "--alpha", 2, "--expert-prompt", "raw").rows
    [plain] = run("generate", *roles, *prompt, "--alpha", 2).rows
    assert row == plain


def test_doctor_of_a_folder(run: Run, folder: Path, trio: Path) -> None:
    """`doctor --model` looks at the roles the folder names."""
    result = run("doctor", "--model", folder)
    assert result.code == 0
    assert all(str(trio / role) in result.out for role in ("base", "expert", "anti"))


def test_save_again(run: Run, roles: list[str], folder: Path) -> None:
    """--overwrite writes into a folder that holds something."""
    assert run("save", *roles, "--alpha", 0.25, "--output", folder, "--overwrite").code == 0
    assert run("generate", "--model", folder, "--prompt", "Who", "--max-new-tokens", 1).rows[0]["alpha"] == 0.25
