"""`timings.jsonl`: what questions cost, through kills and merges."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.files import append_rows
from benchmarks.run import TIMINGS, costs
from tests.benchmarks.conftest import Bench


def line(column: str, first: int, seconds: float) -> dict[str, object]:
    """Return a line of two questions."""
    return {"column": column, "part": "mc", "first": first, "num_questions": 2, "seconds": seconds}


def test_a_chunk_counts_once(tmp_path: Path) -> None:
    """A chunk that a resumed run did again counts by its later time: (5 + 3) s over 4 questions is 2 s each."""
    append_rows(tmp_path / TIMINGS, [line("base", 0, 5.0), line("base", 2, 9.0)])
    append_rows(tmp_path / TIMINGS, [line("base", 2, 3.0)])
    assert costs(tmp_path)["base", "mc"].seconds_per_question == 2.0


def test_a_torn_line_is_cut(tmp_path: Path) -> None:
    """What a kill left of a line is gone when the next is written, and the next is whole."""
    append_rows(tmp_path / TIMINGS, [line("base", 0, 1.0)])
    with (tmp_path / TIMINGS).open("a", encoding="utf-8") as stream:
        stream.write('{"column": "ba')
    append_rows(tmp_path / TIMINGS, [line("base", 2, 3.0)])
    assert costs(tmp_path)["base", "mc"].seconds_per_question == 1.0


def test_shards_keep_their_times(tmp_path: Path, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """A merged run knows the times of all its shards' questions."""
    from benchmarks.cli import main

    for number in (1, 2):
        bench(tmp_path / str(number), "--parts", "mc", "--compare", "base", "--limit", "4", "--shard", f"{number}/2")
    assert main(["merge", str(tmp_path / "whole"), str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    seconds = sum(costs(tmp_path / name)["base", "mc"].seconds for name in ("1", "2"))
    assert costs(tmp_path / "whole")["base", "mc"].num_questions == 4
    assert costs(tmp_path / "whole")["base", "mc"].seconds == pytest.approx(seconds)
