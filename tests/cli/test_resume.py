"""Runs that end early: they leave whole rows, and the same command with --resume ends as if nothing had been."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.console import Run, assert_refused, write_rows

_ROWS = [{"id": index, "prompt": "Once upon a time there was " * (1 + index % 3) + str(index)} for index in range(24)]
# As in this process: with another number of threads, sums come out differently in the last digit.
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture
def command(roles: list[str], tmp_path: Path) -> list[str]:
    """A seeded run in six batches, without its output."""
    prompts = write_rows(tmp_path / "prompts.jsonl", _ROWS)
    options = ["--max-new-tokens", "60", "--batch-size", "4", "--temperature", "0.9", "--seed", "4", "--logprobs", "1"]
    return ["generate", *roles, "--prompts", str(prompts), *options, "--ignore-eos"]


def test_killed_run_goes_on(run: Run, command: list[str], tmp_path: Path) -> None:
    """A run ended by a real SIGINT exits with 1, leaves whole rows, and goes on to the bytes of an unbroken run."""
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "proxytune", *command, "--output", str(broken)],
        stderr=subprocess.PIPE,
        text=True,
        env=_ENVIRONMENT,
    )
    _wait_for_rows(process, broken)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    left = broken.read_bytes()
    assert left.endswith(b"\n")
    rows = [json.loads(line) for line in left.splitlines()]
    assert 0 < len(rows) < len(_ROWS)
    told = f"interrupted; {len(rows)} of {len(_ROWS)} rows are in {str(broken)!r}"
    assert err == f"proxytune: {told}: the same command with --resume goes on.\n"
    assert run(*command, "--output", whole).code == 0
    assert run(*command, "--output", broken, "--resume").code == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert [json.loads(line)["index"] for line in whole.read_bytes().splitlines()] == list(range(len(_ROWS)))


def test_torn_line_is_cut_off(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A half-written last line, and a prompt only some of whose answers are there, are made again."""
    output = tmp_path / "a.jsonl"
    options = ["--prompt", "Who", "--prompt", "A small", "--temperature", "1", "--seed", "1", "--max-new-tokens", "5"]
    command = ["generate", *roles, *options, "--num-return-sequences", "2", "--output", str(output)]
    assert run(*command).code == 0
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    for left in (b"".join(lines[:3]) + lines[3][:20], b"".join(lines[:1]), lines[3] + lines[0] + lines[2], b"", b"{"):
        output.write_bytes(left)
        assert run(*command, "--resume").code == 0
        assert output.read_bytes() == whole


def test_full_disk_leaves_whole_rows(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A batch that does not fit on the disk is not half written, and the run goes on once there is room."""
    output = tmp_path / "a.jsonl"
    options = [part for index in range(6) for part in ("--prompt", f"Who {index}")]
    command = ["generate", *roles, *options, "--max-new-tokens", "5", "--batch-size", "2"]
    assert run(*command, "--output", tmp_path / "whole.jsonl").code == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        result = run(*command, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_refused(result, "cannot write", "File too large")
    assert output.read_bytes().endswith(b"\n")
    assert output.read_bytes().count(b"\n") == 2
    assert run(*command, "--output", output, "--resume").code == 0
    assert output.read_bytes() == whole


def test_complete_file_needs_no_models(run: Run, roles: list[str], tmp_path: Path) -> None:
    """Where all is done nothing is loaded: the base's folder need not exist any more; rows are brought into order."""
    output = tmp_path / "a.jsonl"
    options = ["--prompt", "Who", "--prompt", "A small", "--max-new-tokens", "3", "--output", str(output)]
    assert run("generate", *roles, *options).code == 0
    whole = output.read_bytes()
    output.write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
    assert run("generate", "--base", "/nowhere", *roles[2:], *options, "--resume").code == 0
    assert output.read_bytes() == whole


def test_resume_begins_a_new_file(run: Run, roles: list[str], tmp_path: Path) -> None:
    """--resume without a file is a first run, so that one command serves a loop."""
    output = tmp_path / "a.jsonl"
    assert run("generate", *roles, "--prompt", "Who", "--max-new-tokens", 2, "--output", output, "--resume").code == 0
    assert len(output.read_text().splitlines()) == 1


def test_overwrite(run: Run, roles: list[str], tmp_path: Path) -> None:
    """--overwrite replaces what was there, however long."""
    output = tmp_path / "a.jsonl"
    output.write_text("old\n" * 500)
    assert (
        run("generate", *roles, "--prompt", "Who", "--max-new-tokens", 2, "--output", output, "--overwrite").code == 0
    )
    assert [json.loads(line)["prompt"] for line in output.read_text().splitlines()] == ["Who"]


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (["--prompt", "Whom"], "prompt"),
        (["--prompt", "Who", "--alpha", "2"], "alpha"),
        (["--prompt", "Who", "--temperature", "1", "--seed", "9"], "seed"),
    ],
)
def test_resume_of_another_run(run: Run, roles: list[str], tmp_path: Path, changed: list[str], part: str) -> None:
    """A file made from another prompt, α or seed is not gone on with, and stays as it is."""
    output = tmp_path / "a.jsonl"
    assert run("generate", *roles, "--prompt", "Who", "--max-new-tokens", 2, "--output", output).code == 0
    before = output.read_bytes()
    assert_refused(run("generate", *roles, *changed, "--output", output, "--resume"), "line 1", f"another {part}")
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("not json", "is no row"),
        ('{"index": 7, "sequence": 0}', "belongs to prompt 7"),
        ('{"index": 0, "sequence": 1}', "answer 1"),
    ],
)
def test_resume_of_something_else(run: Run, roles: list[str], tmp_path: Path, line: str, part: str) -> None:
    """A file that this command cannot have made is refused by its line."""
    output = tmp_path / "a.jsonl"
    output.write_text(line + "\n")
    assert_refused(run("generate", *roles, "--prompt", "Who", "--output", output, "--resume"), "line 1", part)


def test_closed_pipe_is_quiet(roles: list[str]) -> None:
    """When the reader of standard output leaves, the run ends at once without a word."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "proxytune", "generate", *roles, "--prompt", "Who", "--max-new-tokens", "2"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=_ENVIRONMENT, timeout=60, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def _wait_for_rows(process: "subprocess.Popen[str]", path: Path) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_size > 0:
            return
        time.sleep(0.01)
    pytest.fail(f"no rows came: {process.communicate()}")
