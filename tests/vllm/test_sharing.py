"""Adapter experts that run on their anti's weights in the real engine: equal tokens, or a reason why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from proxytune import Pair, ProxyGenerator
from proxytune.errors import ProxyTuneWarning, RoleError
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.roles import Role
from proxytune.vllm.adapter import LowRank, read_factors
from proxytune.vllm.composite import new_composite
from tests import tiny
from tests.conftest import save_adapter
from tests.vllm.conftest import ENGINE, largest_difference, save_trio

PROMPTS = [tiny.prompt_ids(3 + 4 * seed, seed=seed) for seed in range(8)]
ALL_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MERGE = {"additional_config": {"proxytune_share_adapters": False}}


def save_lora(anti: Path, folder: Path, **settings: Any) -> None:
    """Save an adapter of these settings with random weights."""
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(anti), LoraConfig(**settings))
    draws = torch.Generator().manual_seed(9)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2, generator=draws)
    adapted.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trio, two adapters over its anti (some layers; rank-stabilised, all), and `over`, one over its expert."""
    root = tmp_path_factory.mktemp("sharing")
    base, expert, anti = save_trio(root, ("llama", "mistral", "qwen3"), (72, 64, 64))
    save_adapter(expert, root / "over", seed=6)
    save_adapter(anti, root / "lora", seed=5)
    save_lora(anti, root / "rslora", r=6, lora_alpha=3, use_rslora=True, target_modules=ALL_LAYERS)
    trio = {"base": base, "expert": expert, "anti": anti}
    return trio | {name: root / name for name in ("lora", "rslora", "over")}


def trio_engine(base: Path, expert: Path, anti: Path, **options: Any) -> tuple[ProxyGenerator, ProxyGenerator]:
    """Return both runtimes over an adapter expert."""
    hf = ProxyGenerator(base, expert, anti, dtype="float32")
    engine_options = {**ENGINE, **options}
    return hf, ProxyGenerator(base, expert, anti, dtype="float32", runtime="vllm", engine_options=engine_options)


def require_equal(hf: ProxyGenerator, vllm: ProxyGenerator, **settings: Any) -> None:
    """Fail unless greedy tokens are equal and log-probabilities agree to 1e-3."""
    options: dict[str, Any] = {"max_new_tokens": 32, "ignore_eos": True, "logprobs": 2, **settings}
    expected, found = hf.generate(PROMPTS, **options), vllm.generate(PROMPTS, **options)
    assert [row.token_ids for row in found] == [row.token_ids for row in expected]
    assert largest_difference(found, expected) < 1e-3


@pytest.mark.slow
def test_adapters_over_shared_antis_equal_the_hf_runtime(engine_settings: None, folders: dict[str, Path]) -> None:
    """Two adapters over one anti and one over another add up, each pair under its own α; so do scores."""
    given = (("lora", "anti", 0.8), ("rslora", "anti", -0.5), ("over", "expert", 0.4))
    pairs = [Pair(folders[expert], folders[anti], alpha) for expert, anti, alpha in given]
    hf = ProxyGenerator(folders["base"], pairs=pairs, dtype="float32")
    vllm = ProxyGenerator(folders["base"], pairs=pairs, dtype="float32", runtime="vllm", engine_options=ENGINE)
    try:
        require_equal(hf, vllm)
        require_equal(hf, vllm, alpha=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.7, 0.8, 0.9]] * 2)
        scores = [gen.score(PROMPTS, [PROMPTS[-1][1:]] * len(PROMPTS)) for gen in (hf, vllm)]
    finally:
        vllm.close()
    for mine, theirs in zip(*scores, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


@pytest.mark.slow
def test_a_compiled_pair_equals_the_hf_runtime(engine_settings: None, tmp_path: Path) -> None:
    """Equal under torch.compile, with biases, and in steps as long as a batch may be (twice that inside the pair)."""
    base, _, anti = save_trio(tmp_path, ("qwen2",) * 3, (64, 64, 64))
    save_lora(anti, tmp_path / "lora", r=3, lora_alpha=5, target_modules=["k_proj", "o_proj", "gate_proj", "down_proj"])
    hf, vllm = trio_engine(base, tmp_path / "lora", anti, enforce_eager=False)
    try:
        require_equal(hf, vllm, alpha=[1.0, 0.5, 0.0, 1.5] * 2)
    finally:
        vllm.close()


def composite(folders: dict[str, Path], expert: Path, engine_options: dict[str, Any] | None = None) -> Any:
    """Return the composite of an adapter expert, as it is before its engine starts."""
    config = ProxyTunedConfig(base={"source": "b"}, pairs=[{"expert": {}, "anti": {}}])
    base, anti = Role(str(folders["base"])), Role(str(folders["anti"]))
    return new_composite(base, [(Role(str(expert)), anti)], config, engine_options)


def test_a_shared_expert_is_planned_over_its_anti(folders: dict[str, Path]) -> None:
    """It has no weights of its own; one that the user wants merged has, and nothing is said of it."""
    [base, expert, anti] = composite(folders, folders["lora"]).plan().roles
    assert (expert.model, expert.adapter_of) == (str(folders["lora"]), "anti")
    assert base.adapter_of is anti.adapter_of is None
    merged = composite(folders, folders["lora"], MERGE)
    assert merged.plan().roles[1].adapter_of is None
    assert str(merged.plan().roles[1].model).startswith(merged.merged.name)


@pytest.mark.parametrize(
    ("settings", "engine_options", "reason"),
    [
        ({}, {"tensor_parallel_size": 2}, "tensor_parallel_size is 2"),
        ({}, {"speculative_config": {"num_speculative_tokens": 2}}, "it drafts"),
        ({"use_dora": True}, {}, "use_dora is True"),
        ({"alpha_pattern": {"q_proj": 3}}, {}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, {}, "pissa"),
        ({"target_modules": ["lm_head"]}, {}, "it holds .*lm_head"),
    ],
    ids=["tensor", "drafts", "dora", "alphas", "saved", "pissa", "head"],
)
def test_what_cannot_be_shared_is_merged_and_said(
    folders: dict[str, Path], tmp_path: Path, settings: dict[str, Any], engine_options: dict[str, Any], reason: str
) -> None:
    """More than plain LoRA on the layers of a decoder, or an engine that does not share: the reason stands there."""
    save_lora(folders["anti"], tmp_path / "lora", **{"target_modules": ["q_proj"], **settings})
    with pytest.warns(ProxyTuneWarning, match=f"merged into a second copy of its anti, as .*{reason}"):
        made = composite(folders, tmp_path / "lora", engine_options)
    assert made.plan().roles[1].adapter_of is None


def test_an_adapter_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """By its config, and by the shapes of its weights where the config was told to be trusted."""
    other = tmp_path / "other"
    tiny.new_model("llama", 7, hidden_size=64).save_pretrained(other)
    save_lora(other, tmp_path / "lora", target_modules=["q_proj"])
    with pytest.raises(RoleError, match="is an adapter over"):
        composite(folders, tmp_path / "lora")
    config = ProxyTunedConfig(base={"source": "b"}, pairs=[{"expert": {}, "anti": {}}])
    trusted = Role(str(tmp_path / "lora"), trust_adapter_base=True)
    with pytest.raises(RoleError, match=r"does not fit the anti: .*q_proj"):
        new_composite(Role(str(folders["base"])), [(trusted, Role(str(folders["anti"])))], config, None)


def test_packed_factors_compute_what_each_layer_does(engine_settings: None) -> None:
    """Side by side in one layer, with a middle part that has no adapter, factors of two ranks give each its own sum."""
    from proxytune.vllm.pair import Pack

    draws = torch.Generator().manual_seed(0)
    parts = {
        path: LowRank(torch.randn(rank, 5, generator=draws), torch.randn(size, rank, generator=draws))
        for path, rank, size in (("q", 2, 4), ("v", 3, 6))
    }
    joined = Pack(("q", "k", "v"), (4, 7, 6)).joined(parts)
    x = torch.randn(5, generator=draws)
    expected = torch.cat([parts["q"].up @ parts["q"].down @ x, torch.zeros(7), parts["v"].up @ parts["v"].down @ x])
    assert joined is not None
    torch.testing.assert_close(joined.up @ joined.down @ x, expected)
    assert Pack(("o",), (4,)).joined(parts) is None


def test_factors_carry_the_adapters_scale(folders: dict[str, Path]) -> None:
    """α/r for LoRA, α/√r for its rank-stabilised form: 8/4 and 3/√6, against peft's own merge."""
    for name in ("lora", "rslora"):
        model = AutoModelForCausalLM.from_pretrained(folders["anti"])
        before = model.model.layers[1].self_attn.v_proj.weight.clone()
        merged = PeftModel.from_pretrained(model, str(folders[name])).merge_and_unload()
        factors = read_factors(str(folders[name]), None)["model.layers.1.self_attn.v_proj"]
        added = merged.model.layers[1].self_attn.v_proj.weight - before
        torch.testing.assert_close(factors.up @ factors.down, added, atol=1e-5, rtol=1e-4)
