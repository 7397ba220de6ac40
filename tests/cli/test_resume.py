"""Runs that end early: they leave whole rows, and the same command with --resume ends as if nothing had been."""

import json
import os
import resource
import shutil
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
    options = [part for index in range(24) for part in ("--prompt", f"{'Once upon a time ' * 8}{index}")]
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
    assert output.read_bytes().count(b"\n") in range(2, 24, 2)
    assert run(*command, "--output", output, "--resume").code == 0
    assert output.read_bytes() == whole


def test_complete_file_needs_no_models(run: Run, roles: list[str], tmp_path: Path) -> None:
    """Where all is done nothing is loaded, not even torch; rows are brought into order."""
    output = tmp_path / "a.jsonl"
    options = ["--prompt", "Who", "--prompt", "A small", "--max-new-tokens", "3", "--output", str(output)]
    assert run("generate", *roles, *options).code == 0
    whole = output.read_bytes()
    output.write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
    code = "import sys; from proxytune.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "generate", *roles, *options, "--resume"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0 False\n"
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (["--max-new-tokens", "3"], "max_new_tokens was 2, and is 3 now"),
        (["--repetition-penalty", "1.5"], "repetition_penalty"),
        (["--expert-prompt", "question"], "expert_prompt"),
        (["--dtype", "bfloat16"], "dtype"),
        (["--logprobs"], "logprobs"),
    ],
)
def test_resume_with_other_settings(run: Run, roles: list[str], tmp_path: Path, changed: list[str], part: str) -> None:
    """A file made under other options, formats or loading is not gone on with, and stays as it is."""
    output = tmp_path / "a.jsonl"
    command = ["generate", *roles, "--prompt", "Who", "--max-new-tokens", "2", "--output", output]
    assert run(*command).code == 0
    before = output.read_bytes()
    assert_refused(run(*command, *changed, "--resume"), "was made otherwise", part)
    assert output.read_bytes() == before


def test_resume_with_another_model(run: Run, roles: list[str], trio: Path, tmp_path: Path) -> None:
    """A file is not gone on with by another expert, nor by a folder whose weights were replaced."""
    output, expert = tmp_path / "a.jsonl", tmp_path / "expert"
    shutil.copytree(trio / "expert", expert)
    command = ["generate", *roles, "--expert", expert, "--prompt", "Who", "--max-new-tokens", "2", "--output", output]
    assert run(*command).code == 0
    assert_refused(run(*command, "--expert", trio / "anti", "--resume"), "expert was", str(trio / "anti"))
    shutil.copy(trio / "anti" / "model.safetensors", expert)
    assert_refused(run(*command, "--resume"), "expert was", "other files")


def test_resume_with_a_moved_model(run: Run, roles: list[str], trio: Path, tmp_path: Path) -> None:
    """The same model in another folder, or a smaller batch, makes the same rows."""
    output, expert = tmp_path / "a.jsonl", tmp_path / "moved"
    shutil.copytree(trio / "expert", expert)
    command = ["generate", *roles, "--prompt", "Who", "--max-new-tokens", "2", "--output", output]
    assert run(*command).code == 0
    assert run(*command, "--expert", expert, "--batch-size", "1", "--resume").code == 0


def test_resume_without_settings(run: Run, roles: list[str], tmp_path: Path) -> None:
    """Rows of which nothing tells how they were made are not gone on with."""
    output = tmp_path / "a.jsonl"
    command = ["generate", *roles, "--prompt", "Who", "--max-new-tokens", "2", "--output", output]
    assert run(*command).code == 0
    output.with_name("a.jsonl.run.json").unlink()
    assert_refused(run(*command, "--resume"), "nothing tells", "a.jsonl.run.json")


def test_doubled_rows(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A file in which two runs wrote every row has each once after --resume."""
    output = tmp_path / "a.jsonl"
    command = ["generate", *roles, "--prompt", "Who", "--prompt", "A", "--max-new-tokens", "2", "--output", output]
    assert run(*command).code == 0
    once = output.read_bytes()
    output.write_bytes(b"".join(line + line for line in once.splitlines(keepends=True)))
    assert run(*command, "--resume").code == 0
    assert output.read_bytes() == once


@pytest.mark.parametrize("is_linked", [False, True])
def test_output_is_the_input(run: Run, roles: list[str], tmp_path: Path, is_linked: bool) -> None:
    """Prompts are not replaced by their answers, also where the output is a link to them."""
    prompts = write_rows(tmp_path / "prompts.jsonl", _ROWS[:2])
    before, output = prompts.read_bytes(), prompts
    if is_linked:
        output = tmp_path / "link.jsonl"
        output.symlink_to(prompts)
    command = ["generate", *roles, "--prompts", prompts, "--output", output, "--max-new-tokens", "2"]
    assert_refused(run(*command, "--overwrite"), "is also the input")
    assert prompts.read_bytes() == before


def test_closed_standard_output(roles: list[str]) -> None:
    """A run whose standard output is closed says so, in one sentence."""
    command = f"exec {sys.executable} -m proxytune generate {' '.join(roles)} --prompt Who --max-new-tokens 2 >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "proxytune: cannot write 'standard output': not writable; choose another output.\n",
    )


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
