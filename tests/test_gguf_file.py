"""GGUF files as roles: weights, tokenizer, proxy folders, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.errors import OptionError, ProxyTuneError, RoleNotFoundError
from proxytune.roles import Role
from tests import tiny
from tests.gguf_writer import write_gguf

pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'proxytune[gguf]'")

_PROMPT = "hello world"


@pytest.fixture(scope="module")
def models() -> list[Any]:
    """Base, expert and anti over the byte-level tokenizer's ids."""
    size = len(tiny.byte_tokenizer())
    return [tiny.new_model(seed=seed, vocab_size=size) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def files(models: list[Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """GGUF files of the three, all in one folder, whose tokenizer begins texts with its bos token."""
    folder = tmp_path_factory.mktemp("gguf")
    paths = [folder / f"{name}.gguf" for name in ("base", "expert", "anti")]
    for path, model in zip(paths, models, strict=True):
        write_gguf(path, model, tiny.byte_tokenizer(), adds_bos=True)
    return paths


def test_tokens_are_those_of_the_same_weights_in_memory(models: list[Any], files: list[Path]) -> None:
    """Three GGUF files decode as the three models they were written from."""
    reference = ProxyGenerator(*models, tokenizer=tiny.byte_tokenizer())
    of_files = ProxyGenerator(*(str(path) for path in files))
    prompt = tiny.byte_tokenizer().encode(_PROMPT)
    options = {"max_new_tokens": 12, "ignore_eos": True}
    expected = reference.generate([prompt], **options)[0]
    assert of_files.generate([prompt], **options)[0].token_ids == expected.token_ids


def test_gguf_file_names_the_file_in_a_folder(files: list[Path]) -> None:
    """Role(folder, gguf_file=…) is the role of the file's path."""
    assert Role(str(files[0].parent), gguf_file=files[0].name) == Role(files[0])


def test_texts_begin_with_bos_where_the_file_says_so(models: list[Any], files: list[Path], tmp_path: Path) -> None:
    """The entry add_bos_token decides whether a text's first id is bos."""
    from proxytune.checkpoints import load_tokenizer

    write_gguf(tmp_path / "without.gguf", models[0], tiny.byte_tokenizer(), adds_bos=False)
    ids = [load_tokenizer(Role(path))(_PROMPT).input_ids for path in (files[0], tmp_path / "without.gguf")]
    assert ids[0] == [tiny.BOS, *ids[1]]


def test_weights_are_ordinary_tensors(files: list[Path]) -> None:
    """A role's dtype holds for a GGUF file as for a folder."""
    gen = ProxyGenerator(*(Role(path, dtype="bfloat16") for path in files))
    assert {weight.dtype for weight in gen.model.base.parameters()} == {torch.bfloat16}


def test_a_proxy_folder_names_the_files(files: list[Path], tmp_path: Path) -> None:
    """A saved proxy folder loads its roles from the GGUF files again."""
    gen = ProxyGenerator(*(str(path) for path in files))
    gen.save_pretrained(tmp_path / "proxy")
    again = ProxyGenerator.from_pretrained(tmp_path / "proxy")
    options = {"max_new_tokens": 6, "ignore_eos": True}
    assert again.generate([_PROMPT], **options)[0].token_ids == gen.generate([_PROMPT], **options)[0].token_ids


def test_a_missing_file_is_named(tmp_path: Path, files: list[Path]) -> None:
    """The path of a GGUF file that is not there is in the error."""
    with pytest.raises(RoleNotFoundError, match=r"base file '.*none\.gguf' does not exist"):
        ProxyGenerator(str(tmp_path / "none.gguf"), str(files[1]), str(files[2]))


@pytest.mark.parametrize("settings", [{"gguf_file": "other.gguf"}, {"quantization": "4bit"}])
def test_settings_that_contradict_the_file_are_refused(files: list[Path], settings: dict[str, Any]) -> None:
    """Two files, or a quantisation of dequantised weights, are an OptionError that names the file."""
    with pytest.raises(OptionError, match=r"base\.gguf"):
        Role(files[0], **settings)


def test_vllm_refuses_a_gguf_file_by_name(files: list[Path]) -> None:
    """The vllm runtime says that a role is a GGUF file, and what to do."""
    pytest.importorskip("vllm")
    with pytest.raises(ProxyTuneError, match=r"base is the GGUF file 'base\.gguf'.*runtime"):
        ProxyGenerator(*(str(path) for path in files), runtime="vllm")
