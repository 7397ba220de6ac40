"""What decoding must cost: the cost model's arithmetic against the figures of Llama 2."""

import pytest
import torch

from benchmarks.decoding.floor import (
    FloorError,
    TrioBytes,
    adapter_bytes,
    kv_bytes_per_token,
    lora_bytes,
    shape_bytes,
    step_bytes,
    tokens_per_cycle,
)
from benchmarks.decoding.shapes import SHAPES, ShapeError, parse_shape, parse_shapes
from benchmarks.decoding.trios import shape_trio
from tests import tiny

BF16 = torch.bfloat16


def llama2(name: str) -> TrioBytes:
    """A Llama-2 base with two 7B and a rank-64 LoRA, in bf16."""
    small = SHAPES["llama2-7b"].config()
    num_bytes = shape_bytes(small, BF16)
    base = shape_bytes(SHAPES[name].config(), BF16)
    return TrioBytes(base=base, expert=num_bytes, anti=num_bytes, adapter=lora_bytes(small, 64, BF16))


def test_bytes_per_token_of_llama_2() -> None:
    """7B, 13B and 70B read 13.21, 25.70 and 137.43 GB per token in bf16, a rank-64 LoRA on 7B 0.32 GB."""
    found = [round(shape_bytes(SHAPES[f"llama2-{size}"].config(), BF16) / 1e9, 2) for size in ("7b", "13b", "70b")]
    assert found == [13.21, 25.70, 137.43]
    assert round(llama2("llama2-13b").adapter / 1e9, 2) == 0.32


@pytest.mark.parametrize(("name", "plain", "pair"), [("llama2-13b", 2.03, 1.53), ("llama2-70b", 1.19, 1.10)])
def test_floor_of_the_trio_and_of_the_pair(name: str, plain: float, pair: float) -> None:
    """Three models cost 2.03 and 1.19 times the base, with a LoRA pair 1.53 and 1.10 times."""
    trio = llama2(name)
    assert round(trio.plain / trio.base, 2) == plain
    assert round(trio.pair / trio.base, 2) == pair


@pytest.mark.parametrize(
    ("name", "acceptance", "speed_up"),
    [("llama2-13b", 0.8, 1.67), ("llama2-70b", 0.8, 2.54), ("llama2-13b", 0.9, 2.03), ("llama2-70b", 0.9, 3.10)],
)
def test_speculation_against_the_plain_trio(name: str, acceptance: float, speed_up: float) -> None:
    """Four drafts by a full-weights expert gain what the formula says: 1.67 to 3.10 times."""
    whole = llama2(name)
    trio = TrioBytes(base=whole.base, expert=whole.expert, anti=whole.anti)
    cost = trio.speculative(num_drafted=4, tokens_per_cycle=tokens_per_cycle(acceptance, 4))
    assert trio.plain / cost == pytest.approx(speed_up, abs=0.006)


def test_speculation_makes_70b_cheaper_than_its_base() -> None:
    """From an acceptance of 0.6 up a steered 70B reads less per token than the base alone; at 0.3 it reads more."""
    whole = llama2("llama2-70b")
    trio = TrioBytes(base=whole.base, expert=whole.expert, anti=whole.anti)
    assert trio.speculative(num_drafted=4, tokens_per_cycle=tokens_per_cycle(0.6, 4)) < trio.base
    assert trio.speculative(num_drafted=4, tokens_per_cycle=tokens_per_cycle(0.3, 4)) > trio.base


def test_an_adapter_drafts_on_the_antis_weights() -> None:
    """With a pair the drafting steps read the anti and the adapter, not an expert of its own."""
    trio = TrioBytes(base=100, expert=50, anti=10, adapter=1)
    assert trio.speculative(num_drafted=1, tokens_per_cycle=2.0) == (2 * 11 + 100 + 10) / 2


def test_no_pair_without_an_adapter() -> None:
    """The pair's floor of full-weights experts is an error, not a number."""
    with pytest.raises(FloorError, match="adapter"):
        _ = TrioBytes(base=1, expert=1, anti=1).pair


def test_kv_bytes_per_token() -> None:
    """The Llama-2 trio keeps 1.87 MB per token at 13B (2.28 times the base's) and 1.38 MB at 70B (4.2 times)."""
    small, base, large = (kv_bytes_per_token(SHAPES[f"llama2-{size}"].config(), BF16) for size in ("7b", "13b", "70b"))
    assert round((base + 2 * small) / 1e6, 2) == 1.87
    assert round((base + 2 * small) / base, 2) == 2.28
    assert round((large + 2 * small) / 1e6, 2) == 1.38
    assert round((large + 2 * small) / large, 1) == 4.2


def test_step_bytes_leave_out_what_is_looked_up() -> None:
    """Input and position embeddings are not read in a step, a head tied to them is, and adapters count apart."""
    untied = tiny.new_model("llama")
    whole = sum(weight.numel() for weight in untied.parameters()) * 4
    assert step_bytes(untied) == whole - untied.get_input_embeddings().weight.numel() * 4
    tied = tiny.new_model("gpt2")
    whole = sum(weight.numel() for weight in tied.parameters()) * 4
    assert step_bytes(tied) == whole - tied.transformer.wpe.weight.numel() * 4


def test_an_adapters_bytes_are_its_own() -> None:
    """A model with a LoRA inside reads the same bytes as without; the LoRA's are rank · (in + out) per layer."""
    shape = SHAPES["llama-2m"]
    trio = shape_trio((shape, shape, shape), dtype=torch.float32, device=torch.device("cpu"), rank=4)
    assert trio.adapted is not None
    assert step_bytes(trio.adapted.get_base_model()) == step_bytes(trio.anti) == trio.num_bytes.anti
    assert adapter_bytes(trio.adapted) == lora_bytes(shape.config(), 4, torch.float32) == trio.num_bytes.adapter


def test_shapes_are_read_from_text() -> None:
    """A shape can be cut to fewer layers and says so; unknown ones, odd counts and unlike vocabularies are errors."""
    assert parse_shape("llama2-70b:20").num_layers == 20
    assert "20 of 80 layers" in parse_shape("llama2-70b:20").label
    for text in ("llama2-8b", "llama2-7b:0", "llama2-7b:33", "llama2-7b:x"):
        with pytest.raises(ShapeError):
            parse_shape(text)
    for text in ("llama2-7b,llama2-7b", "llama2-13b,llama2-7b,llama-25m"):
        with pytest.raises(ShapeError):
            parse_shapes(text)
