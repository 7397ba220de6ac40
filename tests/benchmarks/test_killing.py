"""Runs that are killed: SIGKILL at twenty random moments, then the same file as an uninterrupted run."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from benchmarks.cli import main
from tests.benchmarks.conftest import command, predictions

NUM_KILLS = 20
_DEADLINE_S = 240.0


@pytest.mark.slow
def test_killed_runs_end_with_the_same_file(readers: dict[str, Path], questions_csv: Path, tmp_path: Path) -> None:
    """Twenty kills at random moments spread over the run lose and double nothing: the bytes equal an unkilled run's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.cli", "tests.benchmarks.conftest"])
    options = ["--chunk-size", "1", "--no-progress"]
    whole = tmp_path / "whole"
    assert main([*command(readers, questions_csv, whole), *options]) == 0
    size = len(predictions(whole))
    draws = random.Random(0)
    killed = tmp_path / "killed"
    arguments = [*command(readers, questions_csv, killed), *options, "--resume"]
    num_mid_run = 0
    for number in range(NUM_KILLS):
        process = context.Process(target=_main, args=(arguments,))
        process.start()
        # One moment in each twentieth of the file, and a random while behind it; some while the models still load.
        _wait_for(killed / "predictions.jsonl", int(size * (number + draws.random()) / (NUM_KILLS + 1)), process)
        time.sleep(draws.uniform(0.0, 0.02))
        process.kill()
        process.join()
        num_mid_run += process.exitcode == -9 and not (killed / "metrics.json").exists()
    assert num_mid_run == NUM_KILLS
    assert main(arguments) == 0
    assert predictions(killed) == predictions(whole)
    assert (killed / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def _main(arguments: list[str]) -> None:
    """Run on one thread, as the tests do: another number of them moves the last digits of sums."""
    torch.set_num_threads(1)
    main(arguments)


def _wait_for(path: Path, size: int, process: BaseProcess) -> None:
    """Return once the file is larger than `size`, or its process has ended."""
    ends = time.monotonic() + _DEADLINE_S
    while process.is_alive() and time.monotonic() < ends:
        if path.exists() and path.stat().st_size >= size:
            return
        time.sleep(0.001)
