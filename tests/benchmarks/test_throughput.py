"""`python -m benchmarks.throughput` on tiny shapes: the loops here, and the real engine where vLLM is installed."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks import throughput
from benchmarks.decoding.contestants import REFERENCES, naive_batches
from benchmarks.decoding.engines import engine_options
from benchmarks.decoding.rows import Row, read_rows
from benchmarks.decoding.shapes import SHAPES
from benchmarks.decoding.trios import Trio, shape_trio
from benchmarks.decoding.workloads import ragged_requests
from tests import tiny
from tests.reference import Reference


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What the benchmark sets for vLLM is gone afterwards."""
    with patch.dict(os.environ):
        yield


TINY = ["--shape", "llama-2m,llama-2m,llama-2m", "--dtype", "float32", "--quick", "--rounds", "1"]


def by_variant(path: Path, *, is_ragged: bool) -> dict[str, Row]:
    """The rows of a file's ragged workload, or of its last other one."""
    return {row.variant: row for row in read_rows(path) if (row.requests is not None) == is_ragged}


def test_the_loops_without_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without vLLM the hf runtime is measured against the base alone in transformers and the naive loop."""
    path = tmp_path / "rows.json"
    options = ["--variants", "hf", "naive", "hf_base", "--batches", "2", "--no-ragged", "--json", str(path)]
    assert throughput.main([*TINY, *options]) == 0
    rows = by_variant(path, is_ragged=False)
    assert list(rows) == ["hf_base", "hf", "naive"]
    assert all(row.equal_rows == "2/2" and row.base_variant == "hf_base" for row in rows.values())
    assert rows["hf_base"].ratio_to_base == 1.0
    assert rows["hf"].floor_ratio == pytest.approx(3.0)
    assert rows["naive"].speed_up_over_naive == 1.0
    assert "hf_base" in capsys.readouterr().out


def test_the_naive_loop_drops_what_a_short_request_did_not_ask_for() -> None:
    """Requests of many lengths, three to a batch, get their own number of tokens, and the reference's ones."""
    base, expert, anti = tiny.trio()
    requests = ragged_requests(7, prompt_tokens=(3, 8), new_tokens=(2, 9), vocab_size=tiny.VOCAB_SIZE, seed=4)
    shape = SHAPES["llama-2m"]
    settings = shape_trio((shape, shape, shape), dtype=torch.float32, device=torch.device("cpu"))
    trio = Trio(**{**vars(settings), "base": base, "expert": expert, "anti": anti})
    plain = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    wanted = [plain.greedy([one.prompt] * 3, [1.0], one.new_tokens) for one in requests]
    assert naive_batches(trio, requests, batch=3).token_ids == wanted


def test_engines_share_their_settings() -> None:
    """Base and composite get the same engine arguments; on a GPU its memory is shared out."""
    given = {"is_eager": True, "max_length": 64, "max_rows": 8, "num_engines": 3}
    on_cpu = engine_options(**given, device=torch.device("cpu"))
    assert on_cpu["enable_prefix_caching"] is False
    assert "gpu_memory_utilization" not in on_cpu
    assert engine_options(**given, device=torch.device("cuda"))["gpu_memory_utilization"] == pytest.approx(0.3)


def test_an_unknown_variant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It is one sentence with the known names, and exit code 2."""
    assert throughput.main([*TINY, "--variants", "fast"]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in REFERENCES)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_engines_decode_the_naive_loops_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base alone and the composite, each in a real engine, pass the check on equal and on ragged rows."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    path = tmp_path / "rows.json"
    options = ["--variants", "vllm_base_eager", "vllm_eager", "naive", "--batches", "4", "--json", str(path)]
    assert throughput.main([*TINY, *options]) == 0
    for is_ragged, num_checked in ((False, 4), (True, 8)):
        rows = by_variant(path, is_ragged=is_ragged)
        assert list(rows) == ["vllm_base_eager", "vllm_eager", "naive"]
        assert all(row.equal_rows.endswith(f"/{num_checked}") and row.tokens_per_s > 0 for row in rows.values())
        assert rows["vllm_eager"].base_variant == "vllm_base_eager"
        assert rows["vllm_eager"].floor_ratio == pytest.approx(3.0)
