"""Where roles go and whether they fit, on machines made up for it; for vLLM, with the Llama-2 trios' configs."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from proxytune.cli.footprint import Footprint, footprints
from proxytune.cli.memory import Memory, Verdict, judge, judge_engine, size_cpu_cache
from proxytune.errors import OptionError
from proxytune.roles import Pair, Role
from tests.cli.console import Run, assert_refused

GIB = 2**30
CPU = Memory(place="cpu", name="", total_bytes=2000, free_bytes=1000)
GPUS = [Memory(place=f"cuda:{number}", name="", total_bytes=500, free_bytes=400) for number in range(2)]
H200S = [Memory(place=f"cuda:{number}", name="", total_bytes=140 * GIB, free_bytes=139 * GIB) for number in range(4)]
LARGE_CPU = Memory(place="cpu", name="", total_bytes=64 * GIB, free_bytes=60 * GIB)
FORMATS = {f"{role}_prompt": "raw" for role in ("base", "expert", "anti")}
# Llama-2: layers, width, width inside, heads, heads of keys.
LLAMA = {"7b": (32, 4096, 11008, 32, 32), "13b": (40, 5120, 13824, 40, 40), "70b": (80, 8192, 28672, 64, 8)}


def role(name: str, weight_bytes: int, device_map: Any = None) -> Footprint:
    """A role that takes 10 bytes of cache per token."""
    return Footprint(
        name=name,
        source=name,
        dtype="float32",
        quantization=None,
        num_parameters=weight_bytes // 4,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=10,
        max_context=8,
        vocab_size=300,
        device_map=device_map,
    )


def test_cpu_alone() -> None:
    """Without a GPU all is on the CPU: (1000 − 700) / 30 tokens of cache."""
    verdict = judge([role("base", 500), role("expert", 100), role("anti", 100, "cpu")], [CPU])
    [need] = verdict.needs
    assert (need.place, need.weight_bytes, need.kv_bytes_per_token) == ("cpu", 700, 30)
    assert (verdict.fits, verdict.num_cache_tokens, verdict.max_context) == (True, 10, 8)
    assert verdict.row()["text"].startswith("fits: 10 tokens of cache beside the weights, 1 requests of 8")


def test_first_gpu() -> None:
    """With GPUs and no device map all goes to the first, as it is loaded, though both together have enough."""
    verdict = judge([role("base", 300), role("expert", 60), role("anti", 60)], [*GPUS, CPU])
    assert [need.place for need in verdict.needs] == ["cuda:0"]
    assert not verdict.fits
    assert "cuda:0" in verdict.row()["text"]
    assert judge([role("base", 300, "auto"), role("expert", 60, "auto"), role("anti", 60, "auto")], [*GPUS, CPU]).fits


@pytest.mark.parametrize("second", [1, "cuda:1", {"": 1}])
def test_devices_of_their_own(second: Any) -> None:
    """Roles on devices of their own are judged one by one; the tightest decides how much cache fits."""
    verdict = judge([role("base", 300), role("expert", 60, second), role("anti", 60, "cpu")], [*GPUS, CPU])
    places = [(need.place, need.num_cache_tokens) for need in verdict.needs]
    assert places == [("cuda:0", 10), ("cuda:1", 34), ("cpu", 94)]
    assert verdict.num_cache_tokens == 10


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


def plan(roles: list[Footprint], machine: list[Memory], space: str | None = None, **options: Any) -> Verdict:
    """The verdict with these engine options; `space` is VLLM_CPU_KVCACHE_SPACE."""
    return judge_engine(roles, machine, options, {} if space is None else {"VLLM_CPU_KVCACHE_SPACE": space})


@pytest.mark.parametrize(
    ("size", "kv_bytes", "weight_gb"),
    [("13b", 1_867_776, [26.03, 13.48, 13.48]), ("70b", 1_376_256, [137.95, 13.48, 13.48])],
)
def test_published_sizes(llamas: dict[str, list[Footprint]], size: str, kv_bytes: int, weight_gb: list[float]) -> None:
    """The Llama-2 trios in bfloat16: 1.87 and 1.38 MB of cache per token, and the weights of the published sizes."""
    assert sum(role.kv_bytes_per_token for role in llamas[size]) == kv_bytes
    assert [round(role.weight_bytes / 1e9, 2) for role in llamas[size]] == weight_gb


def test_one_gpu(llamas: dict[str, list[Footprint]]) -> None:
    """On one H200 the cache has what 0.92 of the memory leaves beside the weights."""
    weights = sum(role.weight_bytes for role in llamas["13b"])
    found = plan(llamas["13b"], H200S)
    assert found.num_cache_tokens == (int(140 * GIB * 0.92) - weights) // 1_867_776
    assert found.row()["num_requests"] == found.num_cache_tokens // 4096
    assert plan(llamas["13b"], H200S, kv_cache_memory_bytes=40 * GIB).num_cache_tokens == 40 * GIB // 1_867_776
    small = plan(llamas["13b"], H200S, kv_cache_memory_bytes=40 * GIB, kv_cache_dtype="fp8")
    assert small.num_cache_tokens == 40 * GIB // (1_867_776 // 2)
    assert plan(llamas["13b"], H200S, max_model_len=1000).max_context == 1000


def test_tensor_parallel(llamas: dict[str, list[Footprint]]) -> None:
    """70B does not fit one H200 and fits four, each with a quarter; sixteen are not there."""
    assert "--tensor-parallel-size" in (plan(llamas["70b"], H200S).reason() or "")
    four = plan(llamas["70b"], H200S, tensor_parallel_size=4)
    assert four.fits
    assert four.needs[0].kv_bytes_per_token == 1_376_256 // 4
    assert "there are 4" in (plan(llamas["70b"], H200S, tensor_parallel_size=16).reason() or "")


def test_engine_on_a_cpu(llamas: dict[str, list[Footprint]]) -> None:
    """On a CPU the environment says what the cache gets, and without it vLLM wants 0.92 of all."""
    found = plan(llamas["13b"], [LARGE_CPU], "4")
    assert found.num_cache_tokens == 4 * GIB // 1_867_776
    assert "max_model_len=2299" in (found.reason() or "")
    assert plan(llamas["13b"], [LARGE_CPU], "4", max_model_len=2048).fits
    assert "VLLM_CPU_KVCACHE_SPACE" in (plan(llamas["13b"], [LARGE_CPU], "12").reason() or "")
    busy = Memory(place="cpu", name="", total_bytes=64 * GIB, free_bytes=58 * GIB)
    assert "VLLM_CPU_KVCACHE_SPACE" in (plan(llamas["13b"], [busy]).reason() or "")


@pytest.mark.parametrize(
    ("free_gib", "space"),
    [(60, "8"), (45, "1")],  # half of what 53 GB of weights leave, in whole GiB, and at least one
)
def test_cache_on_a_cpu_is_sized(llamas: dict[str, list[Footprint]], free_gib: int, space: str) -> None:
    """Where nothing was said of the cache it gets a part of what is free, and what was said stays."""
    memory = Memory(place="cpu", name="", total_bytes=64 * GIB, free_bytes=(free_gib + 6) * GIB)
    environment: dict[str, str] = {}
    size_cpu_cache(llamas["13b"], {"max_model_len": 256}, environment, memory)
    assert environment == {"VLLM_CPU_KVCACHE_SPACE": space}
    environment["VLLM_CPU_KVCACHE_SPACE"] = "3"
    size_cpu_cache(llamas["13b"], {}, environment, memory)
    assert environment == {"VLLM_CPU_KVCACHE_SPACE": "3"}


def test_roles_too_large_for_a_cpu(llamas: dict[str, list[Footprint]]) -> None:
    """What does not fit is told before vLLM starts."""
    with pytest.raises(OptionError, match="do not fit into this machine"):
        size_cpu_cache(llamas["70b"], {}, {}, LARGE_CPU)


@pytest.mark.parametrize(
    ("options", "space", "part"),
    [
        ({"tensor_parallel_size": 0}, None, "tensor_parallel_size is 0"),
        ({"gpu_memory_utilization": 1.5}, None, "above 0 and at most 1"),
        ({}, "1.5", "VLLM_CPU_KVCACHE_SPACE is '1.5'"),
    ],
)
def test_bad_settings(options: dict[str, Any], space: str | None, part: str) -> None:
    """A setting out of range is refused by its name and value."""
    with pytest.raises(OptionError, match=part):
        plan([role("base", 500)], [CPU], space, **options)


def doctor(run: Run, *arguments: object, code: int) -> dict[str, Any]:
    """The JSON report for vLLM."""
    result = run("doctor", "--runtime", "vllm", "--json", *arguments)
    assert result.code == code, result.err + result.out
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_refusals(run: Run, roles: list[str], tmp_path: Path) -> None:
    """What the vllm runtime would refuse is listed, each with the way out, and the exit code is 2."""
    arguments = ["--load-in-8bit", "--base-dtype", "bfloat16", "--alpha", "1e9"]
    found = doctor(run, *roles, *arguments, "--tensor-parallel-size", 3, code=2)
    text = "\n".join(found["refusals"])
    for part in ("quantization='8bit'", "(bfloat16, float32)", "=3 does not", "65504", "heads 8 wide"):
        assert part in text
    windowed = MistralConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    windowed.architectures = ["MistralForCausalLM"]
    windowed.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    found = doctor(run, "--base", tmp_path, *roles[2:], "--dtype", "float32", code=2)
    assert any("sliding window" in reason for reason in found["refusals"])


def test_adapters_and_drafts(run: Run, trio: Path, tmp_path: Path) -> None:
    """A LoRA expert adds its own weights where it shares the anti's, else, or under another prompt, the anti's."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(trio / "anti"), config).save_pretrained(tmp_path)
    roles = ["--base", trio / "base", "--expert", tmp_path, "--anti", trio / "anti"]
    shared = doctor(run, *roles, code=2)["roles"]
    assert 0 < shared[1]["weight_bytes"] < shared[2]["weight_bytes"]
    option = ["--engine-option", 'additional_config={"proxytune_share_adapters": false}']
    merged = doctor(run, *roles, *option, code=2)["roles"]
    assert merged[1]["weight_bytes"] == merged[2]["weight_bytes"]
    prompted = doctor(run, *roles, "--expert-prompt", "alpaca", code=2)["roles"]
    assert prompted[1]["weight_bytes"] == merged[1]["weight_bytes"]
    draft = ["--engine-option", 'speculative_config={"num_speculative_tokens": 2}']
    assert doctor(run, *roles, *draft, code=2)["roles"][-1]["name"] == "draft"


def test_vllms_options_need_it(run: Run, roles: list[str]) -> None:
    """Options for vLLM without it are refused rather than ignored, as is a request longer than the context."""
    assert_refused(run("doctor", *roles, "--tensor-parallel-size", 2), "--tensor-parallel-size", "--runtime vllm")
    assert_refused(run("doctor", *roles, "--tokens-per-request", 2), "--tokens-per-request", "--runtime vllm")
    assert_refused(run("doctor", "--runtime", "vllm", *roles, "--tokens-per-request", 900), "900", "at most 160")
