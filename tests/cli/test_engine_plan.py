"""`proxytune doctor --runtime vllm`: blocks, tokens and requests worked out by hand, on machines made up for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from proxytune.cli.engine_plan import EnginePlan, plan_engine
from proxytune.cli.engine_settings import EngineSettings
from proxytune.cli.footprint import Footprint, footprints
from proxytune.cli.machine import Memory
from proxytune.errors import OptionError
from proxytune.roles import Pair, Role
from tests.cli.console import Run, assert_refused

GIB = 2**30
H200S = [Memory(place=f"cuda:{number}", name="", total_bytes=140 * GIB, free_bytes=139 * GIB) for number in range(4)]
CPU = Memory(place="cpu", name="", total_bytes=64 * GIB, free_bytes=60 * GIB)
FORMATS = {f"{role}_prompt": "raw" for role in ("base", "expert", "anti")}
# Llama-2: layers, width, width inside, heads, heads of keys.
LLAMA = {
    "7b": (32, 4096, 11008, 32, 32),
    "13b": (40, 5120, 13824, 40, 40),
    "70b": (80, 8192, 28672, 64, 8),
}


def save_config(folder: Path, size: str) -> Role:
    """A folder with a config and an empty file where weights would be: nothing reads them."""
    layers, width, inside, heads, kv_heads = LLAMA[size]
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inside,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return Role(str(folder))


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Footprint]]:
    """The footprints of base/7B/7B for two bases, from configs alone."""
    root = tmp_path_factory.mktemp("llamas")
    expert, anti = (save_config(root / name, "7b") for name in ("expert", "anti"))
    return {size: footprints(save_config(root / size, size), [Pair(expert, anti)], FORMATS) for size in ("13b", "70b")}


def plan(roles: list[Footprint], machine: list[Memory], space: str | None = None, **options: Any) -> EnginePlan:
    """The plan with these engine options; `space` is VLLM_CPU_KVCACHE_SPACE."""
    environment = {} if space is None else {"VLLM_CPU_KVCACHE_SPACE": space}
    return plan_engine(roles, machine, EngineSettings.of(options, machine, environment))


@pytest.mark.parametrize(
    ("size", "kv_bytes", "weight_gb"), [("13b", 1_867_776, (26.03, 13.48)), ("70b", 1_376_256, (137.95, 13.48))]
)
def test_published_sizes(
    llamas: dict[str, list[Footprint]], size: str, kv_bytes: int, weight_gb: tuple[float, float]
) -> None:
    """The Llama-2 trios in bfloat16: 1.87 and 1.38 MB of cache per token, and the weights of the published sizes."""
    found = plan(llamas[size], H200S, tensor_parallel_size=1)
    assert found.kv_bytes_per_token == kv_bytes
    assert [round(role.weight_bytes / 1e9, 2) for role in found.roles] == [weight_gb[0], *(weight_gb[1:] * 2)]


def test_one_gpu(llamas: dict[str, list[Footprint]]) -> None:
    """On one H200 the cache has what 0.92 of the memory leaves beside the weights, in whole blocks of 16 tokens."""
    found = plan(llamas["13b"], H200S)
    cache = int(140 * GIB * 0.92) - found.weight_bytes
    assert found.num_blocks == cache // (1_867_776 * 16)
    assert found.num_tokens == found.num_blocks * 16
    assert found.num_requests(4096) == (found.num_blocks - 1) // 256
    assert found.num_requests(17) == (found.num_blocks - 1) // 2
    assert found.problem() is None
    assert found.text().startswith(f"fits: {found.num_tokens:,} tokens")


def test_tensor_parallel(llamas: dict[str, list[Footprint]]) -> None:
    """70B does not fit one H200 and fits four, each with a quarter of heads and weights; 16 would share 8 key heads."""
    alone = plan(llamas["70b"], H200S)
    assert "--tensor-parallel-size" in (alone.problem() or "")
    four = plan(llamas["70b"], H200S, tensor_parallel_size=4)
    assert four.problem() is None
    assert four.kv_bytes_per_token == 1_376_256 // 4
    assert four.weight_bytes == sum(-(-role.weight_bytes // 4) for role in llamas["70b"])
    sixteen = plan(llamas["70b"], H200S, tensor_parallel_size=16)
    assert sixteen.roles[0].kv_bytes_per_token == 2 * 80 * 1 * 128 * 2
    assert "there are 4" in (sixteen.problem() or "")


def test_settings(llamas: dict[str, list[Footprint]]) -> None:
    """Block size, memory, dtype of the cache, longest request and number of blocks are those that were asked for."""
    whole = plan(llamas["13b"], H200S, kv_cache_memory_bytes=40 * GIB, block_size=32)
    assert whole.num_blocks == 40 * GIB // (1_867_776 * 32)
    small = plan(llamas["13b"], H200S, kv_cache_memory_bytes=40 * GIB, block_size=32, kv_cache_dtype="fp8")
    assert small.num_blocks == 40 * GIB // (1_867_776 // 2 * 32)
    assert plan(llamas["13b"], H200S, max_model_len=1000).max_model_len == 1000
    assert plan(llamas["13b"], H200S, num_gpu_blocks_override=12).num_tokens == 192
    assert plan(llamas["13b"], H200S, gpu_memory_utilization=0.5).cache_bytes == 70 * GIB - whole.weight_bytes


def test_cpu(llamas: dict[str, list[Footprint]]) -> None:
    """On a CPU the environment says what the cache gets, in blocks of 128, and without it vLLM wants 0.92 of all."""
    found = plan(llamas["13b"], [CPU], "4")
    assert (found.settings.block_size, found.num_blocks) == (128, 4 * GIB // (1_867_776 * 128))
    assert "max_model_len=2048" in (found.problem() or "")
    assert plan(llamas["13b"], [CPU], "4", max_model_len=2048).problem() is None
    assert "VLLM_CPU_KVCACHE_SPACE" in (plan(llamas["13b"], [CPU], "12").problem() or "")
    busy = Memory(place="cpu", name="", total_bytes=64 * GIB, free_bytes=58 * GIB)
    assert "or set VLLM_CPU_KVCACHE_SPACE" in (plan(llamas["13b"], [busy]).problem() or "")


@pytest.mark.parametrize(
    ("options", "space", "part"),
    [
        ({"tensor_parallel_size": 0}, None, "tensor_parallel_size is 0"),
        ({"block_size": "16"}, None, "block_size is '16'"),
        ({"gpu_memory_utilization": 1.5}, None, "above 0 and at most 1"),
        ({"kv_cache_dtype": "nvfp4"}, None, "'nvfp4'"),
        ({}, "1.5", "VLLM_CPU_KVCACHE_SPACE is '1.5'"),
    ],
)
def test_bad_settings(options: dict[str, Any], space: str | None, part: str) -> None:
    """A setting out of range is refused by its name and value."""
    environment = {} if space is None else {"VLLM_CPU_KVCACHE_SPACE": space}
    with pytest.raises(OptionError, match=part):
        EngineSettings.of(options, [CPU], environment)


def doctor(run: Run, *arguments: object, code: int) -> dict[str, Any]:
    """The JSON report for vLLM."""
    result = run("doctor", "--runtime", "vllm", "--json", *arguments)
    assert result.code == code, result.err + result.out
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_report(run: Run, monkeypatch: pytest.MonkeyPatch, llamas: dict[str, list[Footprint]]) -> None:
    """The report names roles, blocks and requests; without tokenizers in the folders that is told too."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    sources = [part for role in llamas["13b"] for part in (f"--{role.name}", role.source)]
    found = doctor(run, *sources, "--tokens-per-request", 100, code=1)
    engine = found["engine"]
    assert [role["name"] for role in engine["roles"]] == ["base", "expert", "anti"]
    assert (engine["num_blocks"], engine["num_requests"]) == (GIB // (1_867_776 * 128), GIB // (1_867_776 * 128) - 1)
    assert "does not fit" in found["verdict"]["text"]
    assert found["refusals"] == []
    table = run("doctor", "--runtime", "vllm", *sources)
    assert (table.code, table.err) == (1, "")
    assert "blocks" in table.out


def test_refusals(run: Run, roles: list[str], tmp_path: Path) -> None:
    """What the vllm runtime would refuse is listed, each with the way out, and the exit code is 2."""
    arguments = ["--expert-prompt", "alpaca", "--load-in-8bit", "--base-dtype", "bfloat16", "--alpha", "1e9"]
    found = doctor(run, *roles, *arguments, "--tensor-parallel-size", 3, code=2)
    text = "\n".join(found["refusals"])
    for part in ("quantization='8bit'", "(alpaca, raw)", "(bfloat16, float32)", "=3 does not", "65504", "heads 8 wide"):
        assert part in text
    assert all("hf" in reason or "take one" in reason or "at most" in reason for reason in found["refusals"])
    windowed = MistralConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    windowed.architectures = ["MistralForCausalLM"]
    windowed.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    found = doctor(run, "--base", tmp_path, *roles[2:], "--dtype", "float32", code=2)
    assert any("sliding window" in reason for reason in found["refusals"])


def test_models_loaded_once_or_twice(llamas: dict[str, list[Footprint]]) -> None:
    """A merged adapter takes the anti's bytes; one model in two roles loads once, a drafting expert twice."""
    base, expert, anti = llamas["13b"]
    adapter = Footprint(**{**vars(expert), "source": "adapter", "weight_bytes": 7, "weights_from": "anti"})
    settings = EngineSettings.of({}, H200S, {})
    assert plan_engine([base, adapter, anti], H200S, settings).roles[1].weight_bytes == 7
    merged = plan_engine([base, adapter, anti], H200S, settings, merged=["expert"])
    assert merged.roles[1].weight_bytes == anti.weight_bytes
    assert merged.kv_bytes_per_token == 1_867_776
    twice = Footprint(**{**vars(expert), "source": anti.source, "weight_bytes": 0, "weights_from": "anti"})
    assert [role.name for role in plan([base, twice, anti], H200S).roles] == ["base", "anti"]
    drafted = plan_engine([base, expert, anti], H200S, settings, has_draft=True)
    assert [role.name for role in drafted.roles] == ["base", "expert", "anti", "draft"]
    assert drafted.kv_bytes_per_token == 1_867_776 + 524_288


def test_adapter_shares_or_is_merged(run: Run, trio: Path, tmp_path: Path) -> None:
    """A LoRA expert adds its own weights where vLLM lets it share the anti's, and all of the anti's where it cannot."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(trio / "anti"), config).save_pretrained(tmp_path)
    roles = ["--base", trio / "base", "--expert", tmp_path, "--anti", trio / "anti"]
    shared = doctor(run, *roles, code=2)
    assert shared["engine"]["roles"][1]["weight_bytes"] == shared["roles"][1]["weight_bytes"] > 0
    option = ["--engine-option", 'additional_config={"proxytune_share_adapters": false}']
    merged = doctor(run, *roles, *option, code=2)
    assert merged["engine"]["roles"][1]["weight_bytes"] == merged["roles"][2]["weight_bytes"]
    draft = ["--engine-option", 'speculative_config={"num_speculative_tokens": 2}']
    assert doctor(run, *roles, *draft, code=2)["engine"]["roles"][-1]["name"] == "draft"


def test_vllms_options_need_it(run: Run, roles: list[str]) -> None:
    """Options for vLLM without it are refused rather than ignored, as is a request longer than the context."""
    assert_refused(run("doctor", *roles, "--tensor-parallel-size", 2), "--tensor-parallel-size", "--runtime vllm")
    assert_refused(run("doctor", *roles, "--tokens-per-request", 2), "--tokens-per-request", "--runtime vllm")
    assert_refused(run("doctor", "--runtime", "vllm", *roles, "--tokens-per-request", 900), "900", "at most 160")
