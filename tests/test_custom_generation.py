"""A plain model's `generate(..., custom_generate=folder)`: ProxyGenerator's tokens, and what it refuses."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from proxytune import ProxyGenerator, custom_generate_folder
from proxytune.demo import trio_path
from proxytune.errors import OptionError

BASE, EXPERT, ANTI = (str(trio_path() / role) for role in ("base", "expert", "anti"))
STEERING: dict[str, Any] = {"expert": EXPERT, "anti": ANTI, "alpha": 0.7}
QUESTIONS = ["Question: Where was Jora Quillmere born?\nAnswer:", "Question: Who"]


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of the test's own for the code that transformers copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def model() -> Any:
    """The base, loaded by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(BASE)


@pytest.fixture(scope="module")
def batch() -> Any:
    """Two questions of different length, padded on the left."""
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    return tokenizer(QUESTIONS, return_tensors="pt", padding=True)


def answers(model: Any, batch: Any, **settings: Any) -> list[list[int]]:
    """Return the answers that generate gives, without padding."""
    settings = {**STEERING, **settings}
    ids = model.generate(**batch, custom_generate=custom_generate_folder(), trust_remote_code=True, **settings)
    width = batch["input_ids"].shape[1]
    assert torch.equal(ids[:, :width], batch["input_ids"].repeat_interleave(len(ids) // 2, dim=0))
    return ids[:, width:].tolist()


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {}),
    "sampled": (
        {"do_sample": True, "temperature": 1.2, "top_p": 0.9, "seed": 4},
        {"temperature": 1.2, "top_p": 0.9, "top_k": 50, "seed": 4},
    ),
    "several": (
        {"do_sample": True, "num_return_sequences": 2, "top_k": 5, "seed": 1},
        {"temperature": 1.0, "num_return_sequences": 2, "top_k": 5, "seed": 1},
    ),
    "beams": ({"num_beams": 3}, {"num_beams": 3}),
    "stopped": ({"stop_strings": [" in"]}, {"stop": " in"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_the_generators(way: str, model: Any, batch: Any) -> None:
    """Greedy, sampled by seed, several, beams, stop texts; the base's own generate gives other tokens."""
    theirs, ours = WAYS[way]
    expected = ProxyGenerator(BASE, EXPERT, ANTI, alpha=0.7).generate(QUESTIONS, max_new_tokens=12, **ours)
    found = answers(model, batch, max_new_tokens=12, **theirs)
    assert len(found) == len(expected)
    for ids, row in zip(found, expected, strict=True):
        assert ids[: len(row.token_ids)] == list(row.token_ids)
        assert set(ids[len(row.token_ids) :]) <= {model.generation_config.pad_token_id}
    assert model.generate(**batch, max_new_tokens=12)[:, batch["input_ids"].shape[1] :].tolist() != found


def test_other_methods_and_a_config(model: Any, batch: Any) -> None:
    """A method's word and a rule, options in a generation config; drawn by torch's own seed where none is given."""
    config = GenerationConfig(max_new_tokens=6, do_sample=True, top_k=0)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        named = {"expert": None, "anti": None, "amateur": ANTI, "rule": "contrastive,beta=0.2"}
        draws.append(answers(model, batch, generation_config=config, **named))
    assert draws[0] == draws[1]


def test_the_small_models_are_kept_and_are_no_part_of_the_base(model: Any, batch: Any) -> None:
    """Equal settings load once, others anew; the base has its own parameters alone."""
    count = sum(1 for _ in model.parameters())
    answers(model, batch, max_new_tokens=1)
    kept = model.__dict__["_proxytune_generator"][1]
    answers(model, batch, max_new_tokens=1, temperature=1.0)
    assert model.__dict__["_proxytune_generator"][1] is kept
    answers(model, batch, max_new_tokens=1, alpha=0.1)
    assert model.__dict__["_proxytune_generator"][1] is not kept
    assert sum(1 for _ in model.parameters()) == count


@pytest.mark.parametrize(
    "settings", [{"no_repeat_ngram_size": 2}, {"streamer": object()}, {"return_dict_in_generate": True}]
)
def test_what_it_does_not_do_is_refused(settings: dict[str, Any], model: Any, batch: Any) -> None:
    """By name, and with the way out."""
    with pytest.raises(OptionError, match=f"{next(iter(settings))} is not an option of steering by custom_generate"):
        answers(model, batch, max_new_tokens=1, **settings)


def test_a_clear_sentence_without_proxytune(tmp_path: Path) -> None:
    """Where proxytune is not installed, transformers says what to install."""
    folder = shutil.copytree(custom_generate_folder(), tmp_path / "folder")
    code = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [path for path in sys.path if not path.endswith(("work/main", "w21")) and path]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "proxytune":
            raise ModuleNotFoundError("No module named 'proxytune'")
sys.meta_path.insert(0, Missing())
from transformers.dynamic_module_utils import check_imports
try:
    check_imports({str(folder / "custom_generate" / "generate.py")!r})
except ImportError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "not found in your environment: proxytune. Run `pip install proxytune`" in ended.stdout
