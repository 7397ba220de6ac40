"""Every type of peft adapter over an anti: the tokens of `PeftModel` on a fresh anti, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from transformers import AutoModelForCausalLM

from proxytune import Pair, ProxyGenerator
from proxytune.errors import ProxyTuneWarning, RoleError
from tests import tiny
from tests.reference import Reference

TARGETS = ["q_proj", "v_proj"]
PROMPTS = [tiny.prompt_ids(3), tiny.prompt_ids(9)]
NUM_TOKENS = 8

# What is trained of LoRA, by the fields that differ from plain.
LORA: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "eva": {"init_lora_weights": "eva"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "bias": {"bias": "all"},
    "bias of adapted layers": {"bias": "lora_only"},
    "bias of its own": {"lora_bias": True},
    "head trained in full": {"modules_to_save": ["lm_head"]},
    "embedding trained in full": {"modules_to_save": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": PROMPTS[1][1:3]},
    "embedding": {"target_modules": [*TARGETS, "embed_tokens"]},
    "head": {"target_modules": [*TARGETS, "lm_head"]},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 2}},
    "layers": {"layers_to_transform": [1]},
    "all linear": {"target_modules": "all-linear"},
    "parameters": {"target_modules": [], "target_parameters": ["mlp.up_proj.weight"]},
    "qalora": {"use_qalora": True, "qalora_group_size": 8},
    "velora": {"velora_config": VeloraConfig()},
    "kasa": {"kasa_config": KasaConfig()},
    "monteclora": {"monteclora_config": MontecloraConfig()},
    "bdlora": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)},
}
# They start from a part of the base's weights, replicate its layers or train its biases.
OWN_COPY = ("bias", "bias of adapted layers", "kasa", "layer_replication", "mica", "olora", "pissa")

EQUAL: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAMSS": {"r": 8, "num_subspaces": 2, "subspace_rank": 2},
    "ADAPTION_PROMPT": {"target_modules": None, "adapter_len": 4, "adapter_layers": 2, "task_type": "CAUSAL_LM"},
    "BEFT": {"target_modules": ["v_proj"]},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 8, "gralora_k": 2},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4},
    "OSF": {"effective_rank": 8},
    "PEANUT": {"r": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "SUPERTUNING": {"sparsity": 0.5},
    "TINYLORA": {"r": 4},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": PROMPTS[1][1:3]},
    "UNILORA": {"r": 4},
    "VBLORA": {"r": 4, "num_vectors": 16, "vector_length": 8, "topk": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}
_PROMPT_TOKENS = {"target_modules": None, "num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "LILY": ({"r": 4}, "LILY adapter, which mixes its weights by an average over all rows"),
    "POLY": ({"r": 4, "task_type": "CAUSAL_LM"}, "POLY adapter, which chooses by a task id"),
    "SHADOW": ({"r": 4}, "does not run"),
    "PREFIX_TUNING": (_PROMPT_TOKENS, "PREFIX_TUNING adapter, which adds prompt tokens"),
    "PROMPT_TUNING": (_PROMPT_TOKENS, "PROMPT_TUNING adapter, which adds prompt tokens"),
    "P_TUNING": ({**_PROMPT_TOKENS, "encoder_hidden_size": 16}, "P_TUNING adapter, which adds prompt tokens"),
    "MULTITASK_PROMPT_TUNING": (_PROMPT_TOKENS, "MULTITASK_PROMPT_TUNING adapter, which adds prompt tokens"),
    "CARTRIDGE": ({**_PROMPT_TOKENS, "num_frozen_tokens": 1}, "CARTRIDGE adapter, which adds prompt tokens"),
    "CPT": (
        {
            "target_modules": None,
            "task_type": "CAUSAL_LM",
            "cpt_token_ids": [1, 2, 3],
            "cpt_mask": [1, 1, 1],
            "cpt_tokens_type_mask": [1, 2, 3],
        },
        "CPT adapter, which adds prompt tokens",
    ),
}
REFUSED_LORA = {
    "alora_invocation_tokens": ([5, 6], "aLoRA adapter, which acts on the tokens from an invocation"),
    "init_lora_weights": ("pissa_niter_4", r"PiSSA \(pissa_niter_4\) adapter, which starts from a random"),
}


def lora(**settings: Any) -> LoraConfig:
    """Return a LoRA config."""
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **settings})


def config_of(kind: str, settings: dict[str, Any]) -> Any:
    """Return the config of a peft type."""
    given = {key: value for key, value in {"target_modules": TARGETS, **settings}.items() if value is not None}
    return next(found for name, found in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name.value == kind)(**given)


def save(anti: Path, folder: Path, config: Any) -> Path:
    """Save an adapter over a saved model, every trained number moved by noise, as one step of training would."""
    torch.manual_seed(5)  # peft's own start
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(anti), config)
    draws = torch.Generator().manual_seed(5)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=draws), alpha=0.15)
    adapted.save_pretrained(folder)
    return folder


def require_tokens_of_peft(folders: dict[str, Path], adapter: Path) -> None:
    """Compare a batch of two lengths, drafts, beams and scores with plain models that share nothing."""
    base, anti = (AutoModelForCausalLM.from_pretrained(folders[name]) for name in ("base", "anti"))
    expert = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["anti"]), adapter).eval()
    reference = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    expected = [reference.greedy([prompt] * 3, [1.0], NUM_TOKENS) for prompt in PROMPTS]
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        assert (expert(input_ids=ids).logits - anti(input_ids=ids).logits).abs().max() > 0.01, "the adapter must matter"
    options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    for speculation in (2, "off"):
        generator = ProxyGenerator(folders["base"], adapter, folders["anti"], speculation=speculation)
        assert [list(done.token_ids) for done in generator.generate(PROMPTS, **options)] == expected
    beams = reference.beams([PROMPTS[0]] * 3, [1.0], 2, 4)[0][0]
    [done] = generator.generate([PROMPTS[0]], num_beams=2, max_new_tokens=4, ignore_eos=True)
    assert list(done.token_ids) == beams
    for score, prompt, tokens in zip(generator.score(PROMPTS, expected), PROMPTS, expected, strict=True):
        assert score.logprobs == pytest.approx(reference.logprobs([prompt] * 3, [1.0], tokens), abs=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's, of its own types
@pytest.mark.parametrize("kind", LORA)
def test_lora_of_every_kind_equals_its_peft_model(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Starts, variants and what else LoRA may train; what changes the base gets a copy, and a warning says so."""
    adapter = save(folders["anti"], tmp_path / "adapter", lora(**LORA[kind]))
    if kind in OWN_COPY:
        with pytest.warns(ProxyTuneWarning, match="expert is an adapter that changes its base's own weights"):
            require_tokens_of_peft(folders, adapter)
    else:
        require_tokens_of_peft(folders, adapter)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", EQUAL)
def test_other_adapters_equal_their_peft_model(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Each type that changes weights."""
    require_tokens_of_peft(folders, save(folders["anti"], tmp_path / "adapter", config_of(kind, EQUAL[kind])))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_adapters_that_cannot_be_combined_are_refused(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """The error names the type and the reason, as expert and as base."""
    settings, reason = REFUSED[kind]
    adapter = save(folders["anti"], tmp_path / "adapter", config_of(kind, settings))
    with pytest.raises(RoleError, match=f"expert is an? .*{reason}"):
        ProxyGenerator(folders["base"], adapter, folders["anti"])
    with pytest.raises(RoleError, match=f"base is an? .*{reason}"):
        ProxyGenerator(adapter, folders["expert"], folders["anti"], tokenizer=folders["base"])


@pytest.mark.parametrize("field", REFUSED_LORA)
def test_lora_that_cannot_be_combined_is_refused(folders: dict[str, Path], tmp_path: Path, field: str) -> None:
    """Activated LoRA, and starts that are drawn anew at every load."""
    value, reason = REFUSED_LORA[field]
    adapter = save(folders["anti"], tmp_path / "adapter", lora(**{field: value}))
    with pytest.raises(RoleError, match=f"expert is an? {reason}"):
        ProxyGenerator(folders["base"], adapter, folders["anti"])


@pytest.mark.parametrize(
    "setting", [{"init_lora_weights": "pissa_niter_99999999"}, {"r": 10**9}, {"rank_pattern": {"q_proj": 10**8}}]
)
def test_a_config_that_would_never_end_is_refused(folders: dict[str, Path], tmp_path: Path, setting: Any) -> None:
    """Rounds of a decomposition and ranks come from a file that anybody may have written."""
    path = save(folders["anti"], tmp_path / "adapter", lora()) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(RoleError, match="expert "):
        ProxyGenerator(folders["base"], path.parent, folders["anti"])


def test_an_adapter_that_lacks_tensors_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Alone over its anti, and as the second adapter over one that is there already."""
    from safetensors.torch import load_file, save_file

    adapter = save(folders["anti"], tmp_path / "adapter", lora())
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1" not in name}, file)
    with pytest.raises(RoleError, match=r"lacks tensors .*layers\.1\.self_attn"):
        ProxyGenerator(folders["base"], adapter, folders["anti"])
    with pytest.raises(RoleError, match=r"lacks tensors .*layers\.1\.self_attn"):
        ProxyGenerator(folders["base"], pairs=[Pair(folders["lora"], folders["anti"]), Pair(adapter, folders["anti"])])


def test_a_loaded_adapter_that_changed_its_base_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """What is left of the base is no anti, and no copy of it can be made."""
    adapter = save(folders["anti"], tmp_path / "adapter", lora(init_lora_weights="pissa"))
    anti = AutoModelForCausalLM.from_pretrained(folders["anti"])
    expert = PeftModel.from_pretrained(anti, adapter)
    with pytest.raises(RoleError, match="has changed its base's own weights"):
        ProxyGenerator(folders["base"], expert, anti)


def test_the_base_may_be_the_anti_of_an_adapter_that_changes_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """One folder as base and anti is loaded once, and neither sees what the adapter did to its copy."""
    adapter = save(folders["anti"], tmp_path / "adapter", lora(init_lora_weights="olora"))
    with pytest.warns(ProxyTuneWarning, match="copy of the anti"):
        require_tokens_of_peft({**folders, "base": folders["anti"]}, adapter)


def test_every_type_of_the_installed_peft_is_here() -> None:
    """A new version's types are not taken on trust; X-LoRA, a mixture of other adapters, is refused by its name."""
    known = {"LORA", "XLORA", *EQUAL, *REFUSED}
    assert {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING} == known
