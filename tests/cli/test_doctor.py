"""`proxytune doctor`: the numbers, worked out by hand for the tiny trio."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from proxytune.checkpoints import load_model
from proxytune.cli.footprint import measure
from proxytune.roles import Role
from tests.cli.console import CONTEXT, SIZES, Run, assert_refused


def report(run: Run, *arguments: object, code: int = 0) -> dict[str, Any]:
    """The JSON report."""
    result = run("doctor", *arguments, "--json")
    assert result.code == code, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def num_parameters(layers: int, width: int, heads: int, kv_heads: int, vocab: int) -> tuple[int, int]:
    """A Llama's parameters, and those of them in linear layers but the head's, counted by hand."""
    kv_width = width // heads * kv_heads
    linear = layers * (2 * width * width + 2 * width * kv_width + 3 * width * 2 * width)
    return 2 * vocab * width + linear + (2 * layers + 1) * width, linear


def test_machine(run: Run) -> None:
    """Without roles it tells versions and memory, and loads nothing."""
    found = report(run)
    assert set(found) == {"versions", "memory"}
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["memory"][-1]["place"] == "cpu"
    assert 0 < found["memory"][-1]["free_bytes"] <= found["memory"][-1]["total_bytes"]


def test_sizes(run: Run, roles: list[str], trio: Path) -> None:
    """Parameters, bytes and cache per token are those counted by hand: 2 · layers · kv heads · head width · 4 bytes."""
    found = report(run, *roles)
    vocab = found["vocabulary"]["size"]
    for role in found["roles"]:
        layers, width, heads, kv_heads = SIZES[role["name"]]
        whole, _ = num_parameters(*SIZES[role["name"]], vocab)
        assert role["num_parameters"] == whole
        assert role["weight_bytes"] == 4 * whole
        assert role["kv_bytes_per_token"] == 2 * layers * kv_heads * (width // heads) * 4
        assert role["max_context"] == CONTEXT
        loaded = AutoModelForCausalLM.from_pretrained(trio / role["name"])
        assert loaded.num_parameters() == whole
    assert [role["kv_bytes_per_token"] for role in found["roles"]] == [384, 256, 256]
    assert found["total"]["kv_bytes_per_token"] == 896
    assert found["verdict"]["fits"] is True


def test_dtype_and_bits(run: Run, roles: list[str]) -> None:
    """Half precision halves weights and cache; 8 bits pack the linear layers alone, with a scale per row."""
    half = report(run, *roles, "--dtype", "bfloat16", "--base-dtype", "float32")
    assert [role["dtype"] for role in half["roles"]] == ["float32", "bfloat16", "bfloat16"]
    assert [role["kv_bytes_per_token"] for role in half["roles"]] == [384, 128, 128]
    eight = report(run, *roles, "--dtype", "bfloat16", "--base-quantization", "8bit")
    layers, width, heads, kv_heads = SIZES["base"]
    whole, linear = num_parameters(*SIZES["base"], eight["vocabulary"]["size"])
    rows = layers * (2 * width + 2 * width // heads * kv_heads + 2 * 2 * width + width)
    assert eight["roles"][0]["weight_bytes"] == 2 * (whole - linear) + linear + 4 * rows
    assert [role["quantization"] for role in eight["roles"]] == ["8bit", None, None]


def test_bits_as_loaded(trio: Path) -> None:
    """The bytes counted for 8 bits are those bitsandbytes holds: packed weights, scales, and the rest as it was."""
    pytest.importorskip("bitsandbytes")
    role = Role(str(trio / "base"), quantization="8bit", dtype="bfloat16")
    model = load_model(role, "base")
    scales = [weight.SCB for module in model.modules() if hasattr(weight := getattr(module, "weight", None), "SCB")]
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *scales])
    assert measure(role, "base").weight_bytes == held


def test_quantised_on_disk(trio: Path, tmp_path: Path) -> None:
    """A model saved in 8 bits counts what its file holds, and keeps its cache in the dtype it computes in."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "base"
    load_model(Role(str(trio / "base"), quantization="8bit", dtype="float32"), "base").save_pretrained(folder)
    found = measure(Role(str(folder)), "base")
    assert (found.quantization, found.dtype) == ("stored", torch.float32)
    assert found.weight_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_dtype_of_the_file(trio: Path, tmp_path: Path) -> None:
    """Where the config states no dtype, that of the stored weights counts."""
    shutil.copytree(trio / "anti", tmp_path / "anti")
    config = json.loads((tmp_path / "anti" / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (tmp_path / "anti" / "config.json").write_text(json.dumps(config))
    assert measure(Role(str(tmp_path / "anti")), "anti").dtype == torch.float32


def test_unknown_hub_id(run: Run, roles: list[str]) -> None:
    """A hub id that cannot be read is refused by its role and name."""
    assert_refused(run("doctor", "--base", "nobody/nothing", *roles[2:]), "base", "nobody/nothing")


def test_equal_roles_count_once(run: Run, trio: Path) -> None:
    """A model in two roles is loaded once, and under one format has one cache; under two formats it has two."""
    sources = ["--base", trio / "base", "--expert", trio / "base", "--anti", trio / "anti"]
    base, expert, _ = report(run, *sources)["roles"]
    assert (expert["weight_bytes"], expert["kv_bytes_per_token"]) == (0, 0)
    assert (expert["weights_from"], expert["cache_from"]) == ("base", "base")
    _, expert, _ = report(run, *sources, "--expert-prompt", "alpaca")["roles"]
    assert (expert["weight_bytes"], expert["kv_bytes_per_token"]) == (0, base["kv_bytes_per_token"])


def test_adapter(run: Run, trio: Path, tmp_path: Path) -> None:
    """An adapter over the anti adds its own weights alone, but a cache of its own."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(trio / "anti"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    )
    model.save_pretrained(tmp_path / "adapter")
    found = report(run, "--base", trio / "base", "--expert", tmp_path / "adapter", "--anti", trio / "anti")
    layers, width, _, _ = SIZES["anti"]
    expert = found["roles"][1]
    assert expert["num_parameters"] == layers * 2 * (2 * width + 2 * width)
    assert expert["weight_bytes"] == 4 * expert["num_parameters"]
    assert (expert["weights_from"], expert["kv_bytes_per_token"]) == ("anti", 256)


def test_does_not_fit(run: Run, trio: Path, tmp_path: Path) -> None:
    """A base far too large for this machine does not fit, says what it needs, and nothing of it is loaded."""
    huge = tmp_path / "huge"
    shutil.copytree(trio / "base", huge)
    config = json.loads((huge / "config.json").read_text())
    config |= {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 60, "head_dim": 16384}
    (huge / "config.json").write_text(json.dumps(config))
    found = report(run, "--base", huge, "--expert", trio / "expert", "--anti", trio / "anti", code=1)
    assert found["verdict"]["fits"] is False
    assert found["verdict"]["text"].startswith("does not fit: ")


def test_other_vocabulary(run: Run, trio: Path, tmp_path: Path) -> None:
    """Tokens that moved are shown, and the exit code is that of a user's mistake."""
    shutil.copytree(trio / "expert", tmp_path / "expert")
    path = tmp_path / "expert" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["!"], vocab["?"] = vocab["?"], vocab["!"]
    path.write_text(json.dumps(tokenizer))
    result = run("doctor", "--base", trio / "base", "--expert", tmp_path / "expert", "--anti", trio / "anti")
    assert result.code == 2
    assert "do not share token ids" in result.out


def test_folder_without_weights(run: Run, trio: Path, tmp_path: Path) -> None:
    """A folder that could not be loaded is refused here too."""
    (tmp_path / "config.json").write_text((trio / "base" / "config.json").read_text())
    assert_refused(
        run("doctor", "--base", tmp_path, "--expert", trio / "expert", "--anti", trio / "anti"), "no weights"
    )


@pytest.mark.parametrize("arguments", [[], ["--load-in-8bit"], ["--load-in-4bit"]])
def test_table(run: Run, roles: list[str], arguments: list[str]) -> None:
    """People get a table that ends with the verdict on memory and vocabulary."""
    result = run("doctor", *roles, *arguments)
    assert (result.code, result.err) == (0, "")
    assert "memory      fits: " in result.out
    assert "vocabulary  shared, " in result.out
