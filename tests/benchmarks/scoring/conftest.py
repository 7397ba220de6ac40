"""The published per-question files, which stand beside the repository."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring.rows import Row


def _folder(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(f"no published files at {path}")
    return path


@pytest.fixture
def published(data: Path) -> Path:
    """The proxy-tuning paper's 13B results."""
    return _folder(data / "published_proxy_tuning_13b")


@pytest.fixture
def alpaca_eval(data: Path) -> Path:
    """AlpacaEval's annotations, leaderboards and weights."""
    return _folder(data / "alpaca_eval")


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
    """Rows of the given fields, as if read from lines 1, 2 and so on of `made.jsonl`."""
    return lambda *fields: [
        Row(place=f"made.jsonl, line {line}", fields=row) for line, row in enumerate(fields, start=1)
    ]


@pytest.fixture
def metrics_of() -> Callable[[Path], dict[str, Any]]:
    """Reads a published file of metrics."""
    return lambda path: json.loads(path.read_text(encoding="utf-8"))
