"""Proxy folders: what is written, what comes back, and that they can be moved."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from proxytune import Pair, ProxyGenerator, ProxyTunedForCausalLM, Role
from proxytune.errors import OptionError, OutputError, ProxyTuneError, RoleError, RoleNotFoundError
from tests import tiny

PROMPT = "w5 w6 w7"
FORMATS = {"base_prompt": "w1 {prompt}", "expert_prompt": "w2 w3 {prompt}", "anti_prompt": "{prompt} w4"}


def ids_of(generator: ProxyGenerator, **options: Any) -> tuple[int, ...]:
    """Return what it generates for PROMPT."""
    [done] = generator.generate(PROMPT, **{"max_new_tokens": 8, "ignore_eos": True, **options})
    return done.token_ids


def trio_of(folders: dict[str, Path]) -> list[Path]:
    """Return base, expert and anti."""
    return [folders[name] for name in ("base", "expert", "anti")]


def test_round_trip(folders: dict[str, Path], tmp_path: Path) -> None:
    """α, formats, vocabulary, special ids and tokens come back; a second save writes the same config."""
    first = ProxyGenerator(*trio_of(folders), alpha=0.7, **FORMATS)
    first.save_pretrained(tmp_path / "one")
    second = ProxyGenerator.from_pretrained(tmp_path / "one")
    assert ids_of(second) == ids_of(first)
    assert second.model.config.alphas == (0.7,)
    assert second.eos_token_ids == first.eos_token_ids
    second.save_pretrained(tmp_path / "two")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0] == configs[1]
    assert configs[0]["model_type"] == "proxytune"


def test_it_holds_no_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    """Config, generation config and tokenizer, nothing heavy."""
    ProxyGenerator(*trio_of(folders)).save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".safetensors", ".bin")) for name in names)


def test_several_pairs_come_back(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each pair with its strength and format; the shared anti is still one role."""
    pairs = [
        Pair(folders["expert"], folders["anti"], 0.5),
        Pair(folders["lora"], folders["anti"], -0.3, expert_prompt="w9 {prompt}"),
    ]
    first = ProxyGenerator(folders["base"], pairs=pairs)
    first.save_pretrained(tmp_path)
    second = ProxyGenerator.from_pretrained(tmp_path)
    assert ids_of(second) == ids_of(first)
    assert [role.name for role in second.model.roles] == [role.name for role in first.model.roles]
    assert len(second.model.models) == len(first.model.models) == 3


def test_folders_below_are_relative_and_move_along(folders: dict[str, Path], tmp_path: Path) -> None:
    """A proxy folder that contains its roles works wherever it is copied to; others are named absolutely."""
    home = tmp_path / "home"
    for name in ("base", "expert"):
        shutil.copytree(folders[name], home / "models" / name)
    first = ProxyGenerator(home / "models/base", home / "models/expert", folders["anti"])
    first.save_pretrained(home)
    config = json.loads((home / "config.json").read_text())
    assert config["base"]["source"] == "models/base"
    assert config["pairs"][0]["expert"]["source"] == "models/expert"
    assert Path(config["pairs"][0]["anti"]["source"]) == folders["anti"]
    wanted = ids_of(first)
    shutil.move(home, tmp_path / "elsewhere")
    assert ids_of(ProxyGenerator.from_pretrained(tmp_path / "elsewhere")) == wanted


def test_relative_sources_are_saved_absolutely(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles given relative to the working directory are found from any other."""
    monkeypatch.chdir(folders["base"].parent)
    first = ProxyGenerator("base", "./expert", "anti")
    first.save_pretrained(tmp_path / "proxy")
    wanted = ids_of(first)
    monkeypatch.chdir(tmp_path)
    assert ids_of(ProxyGenerator.from_pretrained("proxy")) == wanted


def test_settings_of_roles_come_back(folders: dict[str, Path], tmp_path: Path) -> None:
    """Dtype per role is stored; dtype= at loading goes before it."""
    roles = [Role(folders["base"], dtype="bfloat16"), Role(folders["expert"], dtype=torch.float16), folders["anti"]]
    ProxyGenerator(*roles).save_pretrained(tmp_path)
    again = ProxyGenerator.from_pretrained(tmp_path)
    assert [role.model.dtype for role in again.model.roles] == [torch.bfloat16, torch.float16, torch.float32]
    cast = ProxyGenerator.from_pretrained(tmp_path, dtype="float32")
    assert {role.model.dtype for role in cast.model.roles} == {torch.float32}


def test_a_quantisation_config_comes_back(folders: dict[str, Path], tmp_path: Path) -> None:
    """Not only its short name: a whole transformers config is stored, not dropped."""
    quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0)
    ProxyGenerator(Role(folders["base"], quantization=quantization), *trio_of(folders)[1:]).save_pretrained(tmp_path)
    again = ProxyGenerator.from_pretrained(tmp_path)
    assert again.model.base.config.quantization_config.llm_int8_threshold == 4.0


def test_trust_remote_code_is_never_stored(folders: dict[str, Path], tmp_path: Path) -> None:
    """Neither for the generator nor for a role."""
    roles = [Role(folders["base"], trust_remote_code=True), *trio_of(folders)[1:]]
    ProxyGenerator(*roles, trust_remote_code=True).save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text() + (tmp_path / "generation_config.json").read_text()
    assert "trust_remote_code" not in written


def test_a_trusted_adapter_base_comes_back(folders: dict[str, Path], tmp_path: Path) -> None:
    """An adapter that was taken over an anti of another name is taken again."""
    shutil.copytree(folders["anti"], tmp_path / "renamed")
    first = ProxyGenerator(folders["base"], Role(folders["lora"], trust_adapter_base=True), tmp_path / "renamed")
    first.save_pretrained(tmp_path / "proxy")
    assert ids_of(ProxyGenerator.from_pretrained(tmp_path / "proxy")) == ids_of(first)


def test_given_eos_ids_come_back(folders: dict[str, Path], tmp_path: Path) -> None:
    """An override of what ends a text is not merged away when loaded again."""
    first = ProxyGenerator(*trio_of(folders), eos_token_ids=[9, 11])
    first.save_pretrained(tmp_path)
    assert first.eos_token_ids == ProxyGenerator.from_pretrained(tmp_path).eos_token_ids == (9, 11)


def test_a_loaded_model_without_a_name_cannot_be_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    """There is nothing to refer to: the error says to save it first, and no half folder is left."""
    generator = ProxyGenerator(folders["base"], tiny.model("llama", 2), folders["anti"])
    with pytest.raises(RoleError, match="save that model to a folder and pass the folder"):
        generator.save_pretrained(tmp_path / "proxy")
    assert not (tmp_path / "proxy" / "config.json").exists()


def test_a_loaded_model_with_a_folder_is_referred_to(folders: dict[str, Path], tmp_path: Path) -> None:
    """A model loaded from a folder knows where it came from."""
    loaded = [AutoModelForCausalLM.from_pretrained(folder) for folder in trio_of(folders)]
    first = ProxyGenerator(*loaded)
    first.save_pretrained(tmp_path)
    assert ids_of(ProxyGenerator.from_pretrained(tmp_path)) == ids_of(first)


def test_output_that_cannot_be_written(folders: dict[str, Path], tmp_path: Path) -> None:
    """A file in the way is an OutputError with the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write the proxy folder .*file"):
        ProxyGenerator(*trio_of(folders)).save_pretrained(tmp_path / "file")


class TestBadFolders:
    """Proxy folders that cannot be loaded."""

    @pytest.fixture
    def folder(self, folders: dict[str, Path], tmp_path: Path) -> Path:
        """Return a good proxy folder to break."""
        ProxyGenerator(*trio_of(folders)).save_pretrained(tmp_path / "proxy")
        return tmp_path / "proxy"

    def change(self, folder: Path, **entries: Any) -> None:
        """Overwrite entries of the config."""
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    def test_no_folder(self, tmp_path: Path) -> None:
        """Where there is none, the path is named."""
        with pytest.raises(RoleNotFoundError, match="is no proxy folder"):
            ProxyGenerator.from_pretrained(tmp_path / "absent")

    def test_an_ordinary_model_folder(self, folders: dict[str, Path]) -> None:
        """A plain model is not a proxy folder."""
        with pytest.raises(RoleError, match="no proxy folder"):
            ProxyGenerator.from_pretrained(folders["base"])

    def test_a_role_that_has_gone(self, folder: Path) -> None:
        """The missing role is named."""
        self.change(folder, base={"source": "/no/such/folder"})
        with pytest.raises(RoleNotFoundError, match="base folder '/no/such/folder' does not exist"):
            ProxyGenerator.from_pretrained(folder, trust_paths=True)

    @pytest.mark.parametrize("alpha", [float("nan"), "strong", None])
    def test_a_strength_that_is_none(self, folder: Path, alpha: Any) -> None:
        """α is checked when it is read, not taken for 0."""
        pairs = json.loads((folder / "config.json").read_text())["pairs"]
        self.change(folder, pairs=[{**pairs[0], "alpha": alpha}])
        with pytest.raises(OptionError, match="it must be a finite number"):
            ProxyGenerator.from_pretrained(folder)

    @pytest.mark.parametrize(
        "entries",
        [
            {"base": {"sauce": "x"}},
            {"base": {"source": "x", "trust_remote_code": True}},
            {"base": {"source": "x", "model_kwargs": {"trust_remote_code": True}}},
            {"base": {}},
            {"base": "x"},
            {"pairs": [{"expert": {"source": "x"}}]},
            {"pairs": ["x"]},
            {"pairs": {"expert": {}}},
        ],
    )
    def test_entries_that_do_not_belong(self, folder: Path, entries: dict[str, Any]) -> None:
        """A hand-written config with a wrong entry is an error of ours."""
        self.change(folder, **entries)
        with pytest.raises(ProxyTuneError, match=r"config\.json"):
            ProxyGenerator.from_pretrained(folder)

    def test_an_unknown_format(self, folder: Path) -> None:
        """Formats are checked."""
        self.change(folder, base_prompt="alpacca")
        with pytest.raises(ProxyTuneError, match="unknown prompt format 'alpacca'"):
            ProxyGenerator.from_pretrained(folder)

    def test_code_of_a_role_never_runs_unasked(self, folder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
        """A proxy folder that asks to trust its base's code is refused before a line of that code runs."""
        base = tmp_path / "with-code"
        shutil.copytree(folders["base"], base)
        marker = tmp_path / "it-ran"
        (base / "code.py").write_text(
            f"from pathlib import Path\nPath({str(marker)!r}).write_text('')\nraise OSError\n"
        )
        config = json.loads((base / "config.json").read_text())
        config |= {"model_type": "unknown", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
        (base / "config.json").write_text(json.dumps(config))
        with pytest.raises(RoleError, match="cannot be loaded"):
            ProxyGenerator(base, *trio_of(folders)[1:], trust_remote_code=True)
        assert marker.exists()  # Asked for, it does run: so the marker below would tell.
        marker.unlink()
        self.change(folder, base={"source": str(base), "trust_remote_code": True})
        for load in (ProxyGenerator, AutoModelForCausalLM, ProxyTunedForCausalLM):
            with pytest.raises(RoleError, match=r"config\.json"):
                load.from_pretrained(folder)
        self.change(folder, base={"source": str(base)})
        for load in (ProxyGenerator, AutoModelForCausalLM, ProxyTunedForCausalLM):
            with pytest.raises(RoleError, match="cannot be loaded"):
                load.from_pretrained(folder, trust_paths=True)
        assert not marker.exists()


class TestAuto:
    """transformers' own Auto classes."""

    @pytest.fixture
    def folder(self, folders: dict[str, Path], tmp_path: Path) -> Path:
        """Return a proxy folder."""
        ProxyGenerator(*trio_of(folders), alpha=0.6).save_pretrained(tmp_path)
        return tmp_path

    def test_model_config_and_tokenizer(self, folder: Path) -> None:
        """They read the proxy folder, and generate gives the generator's tokens."""
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert isinstance(model, ProxyTunedForCausalLM)
        assert AutoConfig.from_pretrained(folder).alphas == (0.6,)
        inputs = tokenizer(PROMPT, return_tensors="pt")
        ids = model.generate(inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=8)
        generator = ProxyGenerator.from_pretrained(folder)
        assert tuple(ids[0, inputs.input_ids.shape[1] :].tolist()) == ids_of(generator, ignore_eos=False)

    def test_keyword_arguments_reach_every_role(self, folder: Path) -> None:
        """Dtype and the attention implementation do."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
        assert {role.model.dtype for role in model.roles} == {torch.bfloat16}
        assert {role.model.config._attn_implementation for role in model.roles} == {"eager"}

    def test_a_changed_config_counts(self, folder: Path) -> None:
        """config= goes before what the folder says, as for any model."""
        config = AutoConfig.from_pretrained(folder)
        config.pairs[0]["alpha"] = 0.0
        assert AutoModelForCausalLM.from_pretrained(folder, config=config).config.alphas == (0.0,)

    def test_a_round_trip_of_the_model_alone(self, folder: Path, tmp_path: Path) -> None:
        """save_pretrained of the composite writes a folder that loads again."""
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.save_pretrained(tmp_path / "again")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
        ids = torch.tensor([[1, 5, 6]])
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_loading_info(folders: dict[str, Path], tmp_path: Path) -> None:
    """Asked for through transformers, it says that nothing is missing: what lacks a tensor does not load."""
    ProxyGenerator(*trio_of(folders)).save_pretrained(tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert model.config.vocab_size == tiny.VOCAB_SIZE
    assert not any(info.values())
