"""A role's files against its config: complete, used in full, and of the shapes asked for."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from proxytune import Role
from proxytune.checkpoints import load_model, load_tokenizer
from proxytune.errors import ProxyTuneWarning, RoleError
from tests import tiny


def saved(folder: Path, architecture: str = "llama", **settings: Any) -> Path:
    """Save a new random model."""
    tiny.new_model(architecture, 1, **settings).save_pretrained(folder)
    return folder


def rewritten(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """Replace tensors in a folder's file, or drop those that are None."""
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in {**load_file(file), **tensors}.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_whole_files_load_without_a_word(architecture: str, tmp_path: Path) -> None:
    """Tied heads, buffers that are not stored, biases: nothing of them counts as missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProxyTuneWarning)
        for is_tied in (True, False):
            folder = saved(tmp_path / str(is_tied), architecture, tie_word_embeddings=is_tied)
            model = load_model(Role(folder), "anti")
            expected = tiny.new_model(architecture, 1, tie_word_embeddings=is_tied).state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    """Three of them and how many more."""
    folder = saved(tmp_path)
    names = [name for name in load_file(folder / "model.safetensors") if ".mlp." in name]
    with pytest.raises(RoleError, match=r"anti .* lacks 6 tensors .*model\.layers\.0\.mlp\.down_proj.* and 3 more"):
        load_model(Role(rewritten(folder, **dict.fromkeys(names))), "anti")


def test_shapes_are_named(tmp_path: Path) -> None:
    """The tensor, what it is, and what it should be."""
    folder = rewritten(saved(tmp_path), **{"model.norm.weight": torch.ones(7)})
    with pytest.raises(RoleError, match=r"1 tensors of another shape .*model\.norm\.weight is \[7\] and not \[32\]"):
        load_model(Role(folder), "anti")


def test_layers_that_the_config_does_not_count(tmp_path: Path) -> None:
    """A config of one layer over the weights of two would run half a model."""
    path = saved(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1, "layer_types": None}))
    with pytest.raises(RoleError, match=r"tensors of layers that its config.json does not count \(model\.layers\.1\."):
        load_model(Role(tmp_path), "anti")


def test_tensors_without_a_use_are_said(tmp_path: Path) -> None:
    """A value head of reinforcement learning, say: the model runs without it."""
    folder = rewritten(saved(tmp_path), **{"v_head.summary.weight": torch.ones(1, 32)})
    with pytest.warns(ProxyTuneWarning, match=r"anti .* 1 tensors .*no use for \(v_head\.summary\.weight\)"):
        load_model(Role(folder), "anti")


def test_a_config_of_more_than_the_files_hold(tmp_path: Path) -> None:
    """Refused before a number of such a model is made."""
    path = saved(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 10**9}))
    with pytest.raises(RoleError, match=r"config\.json of 192,0\d\d,\d\d\d,\d\d\d parameters and weights of"):
        load_model(Role(tmp_path), "anti")


def test_only_a_folder_without_any_file_of_a_tokenizer_has_none(tmp_path: Path) -> None:
    """One broken file is an error, and the error says the way out."""
    assert load_tokenizer(Role(saved(tmp_path))) is None
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(RoleError, match=r"tokenizer of .* cannot be loaded, .* get its files again, or delete all"):
        load_tokenizer(Role(tmp_path))
