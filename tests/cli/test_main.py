"""The command line as a whole: help, version, exit codes, and what is quiet."""

import io
import json
import logging
import subprocess
import sys
import warnings

import pytest
from transformers.utils.logging import is_progress_bar_enabled

from proxytune.cli import _reason, generate, main
from proxytune.cli.stderr import quiet_libraries
from proxytune.errors import ProxyTuneWarning
from tests.cli.console import Run

_COMMANDS = ["generate", "chat", "score", "save", "tune-alpha", "demo", "doctor"]


@pytest.mark.parametrize("command", _COMMANDS)
def test_help(run: Run, command: str) -> None:
    """Every command explains itself, with an example."""
    result = run(command, "--help")
    assert result.code == 0
    assert f"usage: proxytune {command}" in result.out
    assert "example:" in result.out


def test_version(run: Run) -> None:
    """The version goes to standard output."""
    result = run("--version")
    assert result.code == 0
    assert result.out.startswith("proxytune ")


def test_module_is_the_command() -> None:
    """`python -m proxytune` is `proxytune`, its exit code included."""
    done = subprocess.run([sys.executable, "-m", "proxytune", "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("proxytune: ")


def test_debug_shows_where(run: Run, roles: list[str]) -> None:
    """A traceback appears under --debug and only there."""
    arguments = ["generate", *roles, "--prompt", "", "--debug"]
    assert "Traceback" in run(*arguments).err
    assert "Traceback" not in run(*arguments[:-1]).err


def test_other_errors(run: Run, roles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nobody's mistake has exit code 1, its kind in one sentence, and the way to see more."""

    def fail(options: object) -> int:
        raise RuntimeError("wires\ncrossed")

    monkeypatch.setattr(generate, "run", fail)
    result = run("generate")
    assert (result.code, result.out) == (1, "")
    assert result.err == "proxytune: RuntimeError: wires crossed (--debug shows where)\n"


def test_stdout_is_utf8(run: Run, roles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are UTF-8 even where the locale has another encoding."""
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert main(["generate", *roles, "--prompt", "naïve", "--max-new-tokens", "1"]) == 0
    assert json.loads(buffer.getvalue().decode("utf-8"))["prompt"] == "naïve"


def test_warnings_are_notes(capsys: pytest.CaptureFixture[str]) -> None:
    """Our warnings become a line on stderr, other libraries' are left out, and settings are put back."""
    disabled, had_bars = logging.root.manager.disable, is_progress_bar_enabled()
    with quiet_libraries(is_debug=False):
        logging.getLogger("elsewhere").warning("from a logger")
        warnings.warn("half the batch.", ProxyTuneWarning, stacklevel=1)
        warnings.warn("from elsewhere", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "proxytune: warning: half the batch.\n"
    assert (logging.root.manager.disable, is_progress_bar_enabled()) == (disabled, had_bars)


def test_out_of_memory_sentence() -> None:
    """Running out of memory tells what to lower."""
    assert "--load-in-8bit" in _reason(MemoryError(), is_debug=False)
