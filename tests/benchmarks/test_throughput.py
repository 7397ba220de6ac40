"""`bench throughput` and `bench training-speed` on tiny sizes; the real engine where vLLM is installed."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks.cli import main
from benchmarks.decoding.engines import engine_options
from benchmarks.decoding.rows import Row, read_rows
from benchmarks.decoding.variants import NAMES, Options


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Variables that the benchmark sets for vLLM are gone afterwards."""
    with patch.dict(os.environ):
        yield


TINY = ["throughput", "--shape", "llama-2m,llama-2m,llama-2m", "--dtype", "float32", "--quick", "--rounds", "1"]


def by_variant(path: Path, *, is_ragged: bool) -> dict[str, Row]:
    """The rows of a file's ragged workload, or of its last other one."""
    return {row.variant: row for row in read_rows(path) if (row.requests is not None) == is_ragged}


def test_the_loops_without_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without vLLM our loop is measured against the base alone and the naive loop, which does ragged."""
    path = tmp_path / "rows.json"
    workloads = ["--workloads", "16:16@2", "8-12:4-8@3x5"]
    assert main([*TINY, "--variants", "plain", "naive", "base", *workloads, "--json", str(path)]) == 0
    rows = by_variant(path, is_ragged=False)
    assert list(rows) == ["base", "naive", "plain"]
    assert all(row.equal_rows == "2/2" and row.base_variant == "base" for row in rows.values())
    assert rows["base"].ratio_to_base == 1.0
    assert rows["plain"].floor_ratio == pytest.approx(3.0)
    assert rows["naive"].speed_up_over_naive == 1.0
    ragged = by_variant(path, is_ragged=True)
    assert list(ragged) == ["naive"]
    assert (ragged["naive"].requests, ragged["naive"].equal_rows) == (5, "5/5")
    assert "5 rows of" in capsys.readouterr().out


def test_engines_share_their_settings() -> None:
    """Base and composite get the same engine arguments; on a GPU its memory is shared out."""
    options = Options(max_len=64, max_rows=8)
    on_cpu = engine_options(is_eager=True, options=options, num_engines=3, device=torch.device("cpu"))
    assert on_cpu["enable_prefix_caching"] is False
    assert "gpu_memory_utilization" not in on_cpu
    on_gpu = engine_options(is_eager=True, options=options, num_engines=3, device=torch.device("cuda"))
    assert on_gpu["gpu_memory_utilization"] == pytest.approx(0.3)


def test_an_unknown_variant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It is one sentence with the known names, and exit code 2."""
    assert main([*TINY, "--variants", "fast"]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in NAMES)


def test_training_is_timed_over_the_same_documents(tmp_path: Path) -> None:
    """Noise and packing are rows like all others, of one number of tokens, against training without noise."""
    path = tmp_path / "rows.json"
    assert main(["training-speed", "--quick", "--rounds", "1", "--json", str(path)]) == 0
    rows = {row.variant: row for row in read_rows(path)}
    assert list(rows) == ["train", "train_noise", "train_window", "train_packed"]
    assert all(row.tokens_per_s > 0 and row.base_variant == "train" for row in rows.values())
    assert rows["train"].ratio_to_base == 1.0
    assert len({round(row.tokens_per_s * row.seconds) for row in rows.values()}) == 1


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_engines_decode_the_naive_loops_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base alone and the composite, each in a real engine, pass the check on equal and on ragged rows."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    path = tmp_path / "rows.json"
    workloads = ["--workloads", "16:16@4", "8-32:4-32@4x8"]
    assert main([*TINY, "--variants", "vllm_base", "vllm", "naive", *workloads, "--json", str(path)]) == 0
    for is_ragged, num_checked in ((False, 4), (True, 8)):
        rows = by_variant(path, is_ragged=is_ragged)
        assert list(rows) == ["naive", "vllm_base", "vllm"]
        assert all(row.equal_rows.endswith(f"/{num_checked}") and row.tokens_per_s > 0 for row in rows.values())
        assert rows["vllm"].base_variant == "vllm_base"
        assert rows["vllm"].floor_ratio == pytest.approx(3.0)
