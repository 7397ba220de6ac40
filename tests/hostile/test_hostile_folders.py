"""Folders that are damaged or meant to harm: one sentence each, no code run, no hang; some do no harm and decode."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import ProxyTuneError
from tests import tiny
from tests.hostile.adapters import adapter_cases
from tests.hostile.changes import Change
from tests.hostile.models import config_cases, file_cases, tokenizer_cases, weight_cases
from tests.hostile.proxies import name_absolutely, proxy_cases

MODEL = dict([*config_cases(), *file_cases(), *weight_cases(), *tokenizer_cases()])
ADAPTER = dict(adapter_cases())
PROXY = dict(proxy_cases())
LIMIT_S = 20

# What transformers and peft pass by, and rightly: the weights say what the model is.
HARMLESS = {
    "config head_dim null",
    *(f"config torch_dtype {number}" for number in range(5)),
    "config quantization_config 1",
    "config quantization_config 2",
    *(f"config architectures {number}" for number in range(3)),
    "config auto_map 0",
    "config pad_token_id 1",
    "config max_position_embeddings 2",  # negative: no limit is stated, as some real ones say -1
    "generation_config.json nan",
    "tokenizer_config.json nan",
    "shard incomplete",
    "tokenizer unknown class",
    "adapter modules_to_save 1",
    "adapter auto_mapping 0",
    "adapter fan_in_fan_out 0",
    "adapter exclude_modules 0",
    "proxy generation_config.json nan",
}


@pytest.fixture(autouse=True)
def _mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have pickled code, if it runs, make a folder that tests look for."""
    monkeypatch.setenv("HOSTILE_MARK", str(tmp_path / "code-ran"))


@pytest.fixture(scope="module")
def proxy(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a proxy folder over the saved trio."""
    folder = tmp_path_factory.mktemp("proxy")
    ProxyGenerator(folders["base"], folders["expert"], folders["anti"]).save_pretrained(folder)
    name_absolutely(folder)
    return folder


def require_one_sentence(name: str, sources: tuple[Path, ...], tmp_path: Path) -> None:
    """Load the roles, or the proxy folder, and decode; nothing but an error of ours may come of it, and no folder."""

    def decode() -> Any:
        generator = ProxyGenerator(*sources) if len(sources) > 1 else ProxyGenerator.from_pretrained(*sources)
        return generator.generate(tiny.prompt_ids(3), max_new_tokens=2)

    if name in HARMLESS:
        assert len(decode()) == 1
    else:
        with pytest.raises(ProxyTuneError) as error:
            decode()
        text = str(error.value)
        assert "\n" not in text
        assert 20 < len(text) < 700
        assert text.endswith(".")
        assert "weights_only" not in text
    assert not (tmp_path / "code-ran").exists()


def changed(source: Path, change: Change, tmp_path: Path) -> Path:
    """Return a copy of a folder with a change."""
    folder = tmp_path / "case"
    shutil.copytree(source, folder)
    change(folder)
    return folder


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODEL)
def test_models(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """A model's folder, as the anti."""
    anti = changed(folders["anti"], MODEL[name], tmp_path)
    require_one_sentence(name, (folders["base"], folders["expert"], anti), tmp_path)


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADAPTER)
def test_adapters(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """An adapter's folder, as the expert."""
    expert = changed(folders["lora"], ADAPTER[name], tmp_path)
    require_one_sentence(name, (folders["base"], expert, folders["anti"]), tmp_path)


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PROXY)
def test_proxy_folders(name: str, proxy: Path, tmp_path: Path) -> None:
    """A proxy folder."""
    require_one_sentence(name, (changed(proxy, PROXY[name], tmp_path),), tmp_path)


def test_there_are_many_cases() -> None:
    """The tables have not shrunk to nothing."""
    assert len(MODEL) + len(ADAPTER) + len(PROXY) - len(HARMLESS) > 400
