"""Roles from folders, loaded models and adapters; each wrong one with its own error."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from proxytune import Pair, ProxyGenerator, Role
from proxytune.errors import OptionError, RoleError, RoleNotFoundError, UnknownOptionError
from tests import tiny
from tests.conftest import save_adapter
from tests.reference import Reference

PROMPT = tiny.prompt_ids(6)
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True}


def tokens(generator: ProxyGenerator, **options: Any) -> list[int]:
    """Return the ids generated for PROMPT."""
    [done] = generator.generate(PROMPT, **OPTIONS, **options)
    return list(done.token_ids)


def reference_tokens(base: Any, expert: Any, anti: Any) -> list[int]:
    """Return what plain models give for PROMPT."""
    return Reference(base, [(expert, anti)], tiny.VOCAB_SIZE).greedy([PROMPT] * 3, [1.0], 8)


def trio_of(folders: dict[str, Path], **changed: Any) -> dict[str, Any]:
    """Return the saved trio as arguments, with some replaced."""
    return {name: folders[name] for name in ("base", "expert", "anti")} | changed


@pytest.mark.parametrize("name", ["base", "expert", "anti"])
@pytest.mark.parametrize("nothing", [None, ""])
def test_a_missing_role_says_what_to_pass(folders: dict[str, Path], name: str, nothing: Any) -> None:
    """None and the empty text are no role."""
    with pytest.raises(RoleError, match=f"{name} is missing: pass a hub id, a folder or a loaded model"):
        ProxyGenerator(**trio_of(folders, **{name: nothing}))


def test_folders_loaded_models_and_roles_are_the_same(folders: dict[str, Path]) -> None:
    """A folder as text or Path, a loaded model and a Role object give the tokens of the plain models."""
    wanted = reference_tokens(*tiny.trio())
    assert tokens(ProxyGenerator(**trio_of(folders))) == wanted
    assert tokens(ProxyGenerator(*(str(folders[name]) for name in ("base", "expert", "anti")))) == wanted
    loaded = [AutoModelForCausalLM.from_pretrained(folders[name]) for name in ("base", "expert", "anti")]
    assert tokens(ProxyGenerator(*loaded)) == wanted
    mixed = ProxyGenerator(Role(folders["base"]), loaded[1], Role(loaded[2]))
    assert tokens(mixed) == wanted


def test_a_loaded_model_in_training_mode_runs_without_dropout() -> None:
    """Roles are put into evaluation mode."""
    trio = [tiny.new_model("gpt2", seed).train() for seed in (1, 2, 3)]
    found = tokens(ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer()))
    assert found == reference_tokens(*(tiny.new_model("gpt2", seed) for seed in (1, 2, 3)))


def test_equal_folders_are_loaded_once(folders: dict[str, Path]) -> None:
    """One folder in three roles is one model, one role and one pass; in another format it is a second role."""
    folder = folders["base"]
    one = ProxyGenerator(folder, folder, folder)
    assert len(one.model.roles) == len(one.model.models) == 1
    two = ProxyGenerator(folder, folder, folder, expert_prompt="w1 {prompt}")
    assert (len(two.model.roles), len(two.model.models)) == (2, 1)
    assert two.model.roles[0].model is two.model.roles[1].model


def test_one_folder_written_in_several_ways(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, text, relative, with a slash behind, dtype by name or object: still one model."""
    monkeypatch.chdir(folders["base"].parent)
    roles = [
        Role(folders["base"], dtype="float32"),
        Role(str(folders["base"]) + "/", dtype=torch.float32),
        Role("base", dtype="float32"),
    ]
    assert len(ProxyGenerator(*roles).model.models) == 1
    assert len(ProxyGenerator(roles[0], roles[1], Role("base", dtype="bfloat16")).model.models) == 2


def test_the_same_model_in_other_settings_is_another_model(folders: dict[str, Path]) -> None:
    """Equal folders with different settings of transformers are not merged."""
    folder = folders["base"]
    eager = Role(folder, model_kwargs={"attn_implementation": "eager"})
    generator = ProxyGenerator(folder, eager, folder)
    found = [role.model.config._attn_implementation for role in generator.model.roles]
    assert found == ["proxytune_grouped", "eager"], "what sdpa becomes where several queries share a key"


def test_missing_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    """The error names role and path; it is a FileNotFoundError too."""
    for name in ("base", "expert", "anti"):
        with pytest.raises(RoleNotFoundError, match=f"{name} folder .*absent.* does not exist") as error:
            ProxyGenerator(**trio_of(folders, **{name: tmp_path / "absent"}))
        assert isinstance(error.value, FileNotFoundError)


def test_hub_id_that_cannot_be_reached(folders: dict[str, Path]) -> None:
    """An unknown hub id is an error of ours, with the role and the id."""
    with pytest.raises(RoleError, match="anti is 'nobody/nothing': no folder here, and not in the hub's cache"):
        ProxyGenerator(**trio_of(folders, anti="nobody/nothing"))


def test_folder_without_weights_or_config(folders: dict[str, Path], tmp_path: Path) -> None:
    """What is missing in the folder is named."""
    for missing, wanted in (("model.safetensors", "has no weights"), ("config.json", "has no config.json")):
        folder = tmp_path / missing
        shutil.copytree(folders["expert"], folder)
        (folder / missing).unlink()
        with pytest.raises(RoleNotFoundError, match=f"expert folder .* {wanted}"):
            ProxyGenerator(**trio_of(folders, expert=folder))


@pytest.mark.parametrize(
    ("file", "text"),
    [("config.json", "{"), ("config.json", '{"model_type": "nothing"}'), ("model.safetensors", "not weights")],
)
def test_broken_folder(folders: dict[str, Path], tmp_path: Path, file: str, text: str) -> None:
    """A damaged file is a RoleError that names the role, not a traceback of a library."""
    folder = tmp_path / "broken"
    shutil.copytree(folders["anti"], folder)
    (folder / file).write_text(text)
    with pytest.raises(RoleError, match=r"anti .* cannot be loaded"):
        ProxyGenerator(**trio_of(folders, anti=folder))


def test_pairs_instead_of_expert_and_anti(folders: dict[str, Path]) -> None:
    """Both at once, or an empty list, is an error."""
    pair = Pair(folders["expert"], folders["anti"])
    with pytest.raises(UnknownOptionError, match="either expert and anti, or pairs"):
        ProxyGenerator(**trio_of(folders), pairs=[pair])
    with pytest.raises(RoleError, match="pairs is empty"):
        ProxyGenerator(folders["base"], pairs=[])
    with pytest.raises(RoleError, match="anti is missing"):
        ProxyGenerator(folders["base"], pairs=[Pair(folders["expert"], None)])
    with pytest.raises(OptionError, match="finite"):
        ProxyGenerator(folders["base"], pairs=[Pair(folders["expert"], folders["anti"], float("nan"))])


def test_alpha_with_pairs_does_not_vanish(folders: dict[str, Path]) -> None:
    """With pairs the strength stands in each pair; one beside them is refused rather than ignored."""
    with pytest.raises(UnknownOptionError, match=r"alpha=0.5 with pairs"):
        ProxyGenerator(folders["base"], pairs=[Pair(folders["expert"], folders["anti"])], alpha=0.5)


def test_no_tokenizer_anywhere() -> None:
    """Loaded models without a folder need one, and the error says so."""
    with pytest.raises(RoleError, match="pass tokenizer="):
        ProxyGenerator(*tiny.trio())


def test_dtype_of_each_role(folders: dict[str, Path]) -> None:
    """The generator's dtype is the default, a Role's own goes before it; logits are float32."""
    generator = ProxyGenerator(
        folders["base"],
        Role(folders["expert"], dtype="float32"),
        Role(folders["anti"], dtype=torch.float16),
        dtype="bfloat16",
    )
    assert [role.model.dtype for role in generator.model.roles] == [torch.bfloat16, torch.float32, torch.float16]
    assert generator.model(torch.tensor([PROMPT])).logits.dtype == torch.float32
    assert len(tokens(generator)) == 8


@pytest.mark.parametrize("settings", [{"dtype": "int8"}, {"dtype": "float33"}, {"quantization": "2bit"}])
def test_settings_that_do_not_exist(folders: dict[str, Path], settings: dict[str, Any]) -> None:
    """A wrong dtype or quantisation names what there is."""
    name = next(iter(settings))
    with pytest.raises(OptionError, match=f"{name} is .*: it must be"):
        ProxyGenerator(**trio_of(folders), **settings)


class TestAdapters:
    """An expert that is an adapter over the anti."""

    def merged(self, folders: dict[str, Path], adapter: str = "lora") -> Any:
        """Return the expert with the adapter merged into plain weights."""
        anti = AutoModelForCausalLM.from_pretrained(folders["anti"])
        return PeftModel.from_pretrained(anti, folders[adapter]).merge_and_unload().eval()

    def wanted(self, folders: dict[str, Path]) -> list[int]:
        """Return the tokens of plain models, the merged expert among them."""
        return reference_tokens(tiny.trio()[0], self.merged(folders), tiny.trio()[2])

    def test_folder_equals_the_merged_expert(self, folders: dict[str, Path]) -> None:
        """Same tokens and log-probabilities; without the adapter the tokens differ, so it is really applied."""
        generator = ProxyGenerator(**trio_of(folders, expert=folders["lora"]))
        assert tokens(generator) == self.wanted(folders)
        assert self.wanted(folders) != reference_tokens(tiny.trio()[0], tiny.trio()[2], tiny.trio()[2])
        reference = Reference(tiny.trio()[0], [(self.merged(folders), tiny.trio()[2])], tiny.VOCAB_SIZE)
        [score] = generator.score([PROMPT], [[9, 8, 7]])
        assert score.logprobs == pytest.approx(reference.logprobs([PROMPT] * 3, [1.0], [9, 8, 7]), abs=1e-4)

    def test_weights_of_the_anti_are_held_once(self, folders: dict[str, Path]) -> None:
        """Expert and anti run the same model object; parameters are base + anti + adapter."""
        generator = ProxyGenerator(**trio_of(folders, expert=folders["lora"]))
        _, expert, anti = generator.model.roles
        assert expert.model is anti.model
        adapter = sum(parameter.numel() for name, parameter in expert.adapter.named_parameters() if "lora_" in name)
        plain = sum(tiny.trio()[place].num_parameters() for place in (0, 2))
        assert adapter > 0
        assert sum(parameter.numel() for parameter in generator.model.parameters()) == plain + adapter

    def test_the_anti_does_not_feel_the_adapter(self, folders: dict[str, Path]) -> None:
        """With base ≡ anti and α = 1 the steered logits are exactly the expert's: base and anti ran unadapted."""
        generator = ProxyGenerator(folders["anti"], folders["lora"], folders["anti"])
        ids = torch.tensor([PROMPT])
        with torch.no_grad():
            wanted = self.merged(folders)(ids).logits
            plain = tiny.trio()[2](ids).logits
            assert torch.allclose(generator.model(ids).logits, wanted, atol=1e-3)
            assert torch.allclose(generator.model(ids, alpha=0).logits, plain, atol=1e-4)
            assert not torch.allclose(wanted, plain, atol=0.1)

    def test_loaded_peft_model(self, folders: dict[str, Path]) -> None:
        """A PeftModel over the very anti that is passed gives the same tokens."""
        anti = AutoModelForCausalLM.from_pretrained(folders["anti"])
        expert = PeftModel.from_pretrained(anti, folders["lora"])
        generator = ProxyGenerator(folders["base"], expert, anti)
        assert tokens(generator) == self.wanted(folders)
        assert generator.model.roles[1].model is generator.model.roles[2].model

    def test_loaded_peft_model_over_another_object(self, folders: dict[str, Path]) -> None:
        """Over a copy of the anti it would be held twice: the error says what to pass."""
        expert = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["anti"]), folders["lora"])
        with pytest.raises(RoleError, match=r"pass anti=expert.get_base_model\(\)"):
            ProxyGenerator(**trio_of(folders, expert=expert))

    def test_adapter_of_another_model(self, folders: dict[str, Path], tmp_path: Path) -> None:
        """An adapter whose base is not the anti is refused by both names; on request it is taken."""
        copy = tmp_path / "same-anti-elsewhere"
        shutil.copytree(folders["anti"], copy)
        with pytest.raises(RoleError, match=r"is an adapter over .*anti', but the anti is .*elsewhere"):
            ProxyGenerator(**trio_of(folders, expert=folders["lora"], anti=copy))
        trusted = Role(folders["lora"], trust_adapter_base=True)
        assert tokens(ProxyGenerator(**trio_of(folders, expert=trusted, anti=copy))) == self.wanted(folders)

    def test_adapter_that_does_not_fit(self, folders: dict[str, Path]) -> None:
        """Trusted wrongly, its shapes tell."""
        trusted = Role(folders["lora"], trust_adapter_base=True)
        with pytest.raises(RoleError, match="does not fit the anti"):
            ProxyGenerator(folders["base"], trusted, folders["base"])

    @pytest.mark.parametrize("kind", ["folder", "loaded"])
    @pytest.mark.parametrize("name", ["base", "anti"])
    def test_adapter_in_another_role(self, folders: dict[str, Path], name: str, kind: str) -> None:
        """A tuned base or anti given as adapter runs as its merged model does, padded batches and scores included."""
        tuned: Any = folders["lora"]
        if kind == "loaded":
            tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders["anti"]), tuned)
        roles = dict(zip(("base", "expert", "anti"), tiny.trio(), strict=True))
        reference = Reference(
            *(
                (self.merged(folders), [(roles["expert"], roles["anti"])])
                if name == "base"
                else (roles["base"], [(roles["expert"], self.merged(folders))])
            ),
            tiny.VOCAB_SIZE,
        )
        generator = ProxyGenerator(**trio_of(folders, **{name: tuned}), tokenizer=tiny.word_tokenizer())
        prompts = [tiny.prompt_ids(3), tiny.prompt_ids(9)]
        for prompt, done in zip(prompts, generator.generate(prompts, **OPTIONS), strict=True):
            assert list(done.token_ids) == reference.greedy([prompt] * 3, [1.0], 8)
            [score] = generator.score([prompt], [done.token_ids])
            wanted = reference.logprobs([prompt] * 3, [1.0], done.token_ids)
            assert score.logprobs == pytest.approx(wanted, abs=1e-4)

    def test_two_adapters_over_one_anti(self, folders: dict[str, Path], tmp_path: Path) -> None:
        """Two pairs share the anti's weights and each runs its own adapter."""
        save_adapter(folders["anti"], tmp_path / "second", seed=9)
        both = {**folders, "second": tmp_path / "second"}
        pairs = [Pair(both["lora"], both["anti"], 0.6), Pair(both["second"], both["anti"], -0.5)]
        generator = ProxyGenerator(both["base"], pairs=pairs)
        assert len(generator.model.models) == 2
        base, _, anti = tiny.trio()
        experts = [self.merged(both, "lora"), self.merged(both, "second")]
        reference = Reference(base, [(expert, anti) for expert in experts], tiny.VOCAB_SIZE)
        assert tokens(generator) == reference.greedy([PROMPT] * 5, [0.6, -0.5], 8)

    def test_two_generators_over_one_loaded_anti(self, folders: dict[str, Path], tmp_path: Path) -> None:
        """A second adapter over the same loaded anti is refused: it would overwrite the first generator's."""
        save_adapter(folders["anti"], tmp_path / "second", seed=9)
        anti = AutoModelForCausalLM.from_pretrained(folders["anti"])
        first = ProxyGenerator(folders["base"], folders["lora"], anti)
        before = tokens(first)
        assert before == self.wanted(folders)
        with pytest.raises(RoleError, match="carries an adapter already"):
            ProxyGenerator(folders["base"], tmp_path / "second", anti)
        assert tokens(first) == before

    def test_adapter_that_adds_prompt_tokens(self, folders: dict[str, Path], tmp_path: Path) -> None:
        """Prefix tuning changes no weights and is refused by its type."""
        anti = AutoModelForCausalLM.from_pretrained(folders["anti"])
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        get_peft_model(anti, config).save_pretrained(tmp_path)
        with pytest.raises(RoleError, match="PREFIX_TUNING adapter, which adds prompt tokens"):
            ProxyGenerator(**trio_of(folders, expert=tmp_path))

    def test_adapter_keeps_the_dtype_of_the_anti(self, folders: dict[str, Path]) -> None:
        """In bfloat16 the adapter is bfloat16 too, not float32."""
        generator = ProxyGenerator(**trio_of(folders, expert=folders["lora"]), dtype="bfloat16")
        assert {parameter.dtype for parameter in generator.model.parameters()} == {torch.bfloat16}
        assert len(tokens(generator)) == 8

    def test_building_changes_no_weight(self, folders: dict[str, Path]) -> None:
        """Joining roles initialises nothing: every parameter of user's models and adapter stays bit by bit."""
        anti = AutoModelForCausalLM.from_pretrained(folders["anti"])
        expert = PeftModel.from_pretrained(anti, folders["lora"])
        before = {name: parameter.clone() for name, parameter in expert.named_parameters()}
        ProxyGenerator(folders["base"], expert, anti)
        assert all(torch.equal(before[name], parameter) for name, parameter in expert.named_parameters())

    @pytest.mark.parametrize("broken", ["adapter_model.safetensors", "adapter_config.json", None])
    def test_broken_adapter(self, folders: dict[str, Path], tmp_path: Path, broken: str | None) -> None:
        """An adapter folder without its weights, or with a damaged file, is a RoleError."""
        (tmp_path / "adapter_config.json").write_text((folders["lora"] / "adapter_config.json").read_text())
        if broken is not None:
            (tmp_path / broken).write_text("{ not an adapter")
        with pytest.raises(RoleError, match=r"adapter.* (does not fit the anti|cannot be loaded, as it is no JSON)"):
            ProxyGenerator(**trio_of(folders, expert=tmp_path))

    def test_lora_config_is_what_was_saved(self, folders: dict[str, Path]) -> None:
        """The fixture's adapter is a LoRA over the anti's folder: the tests above rest on it."""
        config = json.loads((folders["lora"] / "adapter_config.json").read_text())
        assert config["peft_type"] == LoraConfig().peft_type.value
        assert Path(config["base_model_name_or_path"]) == folders["anti"]
