"""Where roles go and whether they fit, on machines made up for it."""

from typing import Any

import pytest

from proxytune.cli.footprint import Footprint
from proxytune.cli.machine import Memory
from proxytune.cli.verdict import judge

CPU = Memory(place="cpu", name="", total_bytes=2000, free_bytes=1000)
GPUS = [Memory(place=f"cuda:{number}", name="", total_bytes=500, free_bytes=400) for number in range(2)]


def role(name: str, weight_bytes: int, device_map: Any = None, *, context: int | None = 8) -> Footprint:
    """A role that takes 10 bytes of cache per token."""
    return Footprint(
        name=name,
        source=name,
        dtype="float32",
        quantization=None,
        num_parameters=weight_bytes // 4,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=10,
        max_context=context,
        vocab_size=300,
        device_map=device_map,
        num_attention_heads=4,
        num_kv_heads=2,
        head_dim=8,
    )


def test_cpu_alone() -> None:
    """Without a GPU all is on the CPU: (1000 − 700) / 30 tokens of cache."""
    verdict = judge([role("base", 500), role("expert", 100), role("anti", 100, "cpu")], [CPU])
    [need] = verdict.needs
    assert (need.place, need.weight_bytes, need.kv_bytes_per_token) == ("cpu", 700, 30)
    assert (verdict.fits, verdict.num_cache_tokens, verdict.max_context) == (True, 10, 8)
    assert verdict.text().startswith("fits: 10 tokens of cache beside the weights, 1 rows of 8")


def test_first_gpu() -> None:
    """With GPUs and no device map all goes to the first, as it is loaded, though the machine as a whole had room."""
    verdict = judge([role("base", 300), role("expert", 60), role("anti", 60)], [*GPUS, CPU])
    assert [need.place for need in verdict.needs] == ["cuda:0"]
    assert not verdict.fits
    assert "cuda:0" in verdict.text()


@pytest.mark.parametrize("second", [1, "cuda:1", {"": 1}])
def test_own_places(second: Any) -> None:
    """Roles in places of their own are judged place by place; the tightest decides how much cache fits."""
    verdict = judge([role("base", 300), role("expert", 60, second), role("anti", 60, "cpu")], [*GPUS, CPU])
    assert [(need.place, need.num_cache_tokens) for need in verdict.needs] == [
        ("cuda:0", 10),
        ("cuda:1", 34),
        ("cpu", 94),
    ]
    assert verdict.num_cache_tokens == 10


def test_spread() -> None:
    """A base spread by `auto` has what the GPUs have together, less what is pinned there."""
    verdict = judge([role("base", 600, "auto"), role("expert", 60, 1), role("anti", 60, 1)], [*GPUS, CPU])
    spread, pinned = verdict.needs
    assert (spread.free_bytes, spread.num_cache_tokens) == (800 - 120, 8)
    assert (pinned.place, pinned.num_cache_tokens) == ("cuda:1", 14)
    assert verdict.fits


def test_place_that_is_not_there() -> None:
    """A device this machine lacks has no room."""
    assert not judge([role("base", 1, "cuda:7", context=None)], [CPU]).fits
