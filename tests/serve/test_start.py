"""What `proxytune serve` refuses before it loads anything."""

import os
import socket
from pathlib import Path

import pytest

from proxytune.cli import main
from proxytune.demo import trio_path


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for vLLM is taken back."""
    for name in ("VLLM_LOGGING_STREAM", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--expert-prompt", "alpaca", "--", "--chat-template", "{{ messages }}"], "formats of their own"),
        (["--", "--chat-template", "x"], "chat template"),
        (["--alpha", "nan"], "alpha is nan"),
        (["--port", "0"], "--port is 0"),
        (["no-such-folder"], "no-such-folder"),
        (["folder", "--model", "folder"], "given twice"),
        (["--api-key-file", "no-such-file"], "no-such-file"),
        (["--load-in-8bit"], "vLLM runs weights that are quantised on disk"),
        (["--prot", "80"], "did you mean --port?"),
        (["--", "--api-key", "secret"], "--api-key-file FILE"),
        (["--", "--dtype", "float16"], "base, expert and anti decide it"),
        (["--", "--no-such-option", "1"], "no-such-option"),
        (["--", "--max-num-seqs", "many"], "max-num-seqs"),
        (["--", "--max-model-len", "100000"], "100000"),
        (["--", "--enable-lora"], "enable_lora"),
    ],
)
def test_refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is exit code 2 and one sentence, and no engine starts."""
    assert main(["serve", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert sentence in told.err.splitlines()[-1]
    assert "secret" not in told.err


def test_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that another program listens on is refused before the engine starts."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert main(["serve", "--port", str(port), "--", "--enforce-eager"]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_empty_key_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty key file is refused rather than taken as no key."""
    (tmp_path / "key").write_text("\n")
    assert main(["serve", "--base", str(trio_path() / "base"), "--api-key-file", str(tmp_path / "key")]) == 2
    assert "must hold one key" in capsys.readouterr().err
