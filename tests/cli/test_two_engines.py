"""Bulk work on two engines at once, each a process with a part of the rows: one is killed half-way."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.cli.console import Run, write_rows

# As in this process: with another number of threads, sums come out differently in the last digit.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ROWS = [
    {"id": f"row-{index}", "prompt": "Once upon a time there was " * (1 + index % 3) + str(index), "alpha": index % 3}
    for index in range(24)
]


def test_no_row_is_lost_or_doubled(run: Run, roles: list[str], tmp_path: Path) -> None:
    """A SIGKILL of one leaves the other's rows alone; it goes on with --resume, and both give what one engine gives."""
    command = ["generate", *roles, "--max-new-tokens", "60", "--ignore-eos", "--batch-size", "4"]
    command += ["--temperature", "0.9", "--seed", "4", "--expert-prompt", "question"]
    full = run(*command, "--prompts", write_rows(tmp_path / "all.jsonl", ROWS), "--output", tmp_path / "full.jsonl")
    assert full.code == 0
    parts = [[*command, "--prompts", str(write_rows(tmp_path / f"{part}.jsonl", ROWS[part::2]))] for part in range(2)]
    outputs = [tmp_path / f"answers-{part}.jsonl" for part in range(2)]
    engines = [
        subprocess.Popen([sys.executable, "-m", "proxytune", *part, "--output", str(output)], env=ENVIRONMENT)
        for part, output in zip(parts, outputs, strict=True)
    ]
    while engines[1].poll() is None and not (outputs[1].exists() and outputs[1].stat().st_size):
        time.sleep(0.01)
    engines[1].kill()
    engines[1].wait()
    assert len(outputs[1].read_bytes().splitlines()) < len(ROWS[1::2])
    assert engines[0].wait() == 0
    assert run(*parts[1], "--output", outputs[1], "--resume").code == 0
    found = [json.loads(line) for output in outputs for line in output.read_bytes().splitlines()]
    assert sorted(row["id"] for row in found) == sorted(row["id"] for row in ROWS)
    expected = {row["id"]: row["text"] for row in map(json.loads, (tmp_path / "full.jsonl").read_text().splitlines())}
    assert {row["id"]: row["text"] for row in found} == expected
