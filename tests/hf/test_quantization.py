"""4-bit and 8-bit roles through bitsandbytes, on the CPU."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from proxytune import ProxyGenerator, Role
from tests import tiny

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)

PROMPT = tiny.prompt_ids(6)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Saved models of width 64, which bitsandbytes can pack."""
    root = tmp_path_factory.mktemp("wide")
    for seed, name in enumerate(("base", "expert", "anti")):
        tiny.new_model("llama", seed, hidden_size=64, intermediate_size=128, scale=0.2).save_pretrained(root / name)
        tiny.word_tokenizer().save_pretrained(root / name)
    return [root / name for name in ("base", "expert", "anti")]


def packed_layers(model: torch.nn.Module) -> int:
    """Return how many linear layers are bitsandbytes'."""
    return sum(type(module).__module__.startswith("bitsandbytes") for module in model.modules())


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_roles_load_and_run(trio: list[Path], quantization: str) -> None:
    """All roles packed: batched, sampled and beams run, logits are float32 and close to the full model's."""
    generator = ProxyGenerator(*trio, quantization=quantization, dtype="float32")
    assert all(packed_layers(role.model) > 0 for role in generator.model.roles)
    assert generator.model.config.vocab_size == tiny.VOCAB_SIZE
    for options in ({}, {"temperature": 1.0, "seed": 1}, {"num_beams": 2}):
        rows = generator.generate([PROMPT, PROMPT[:3]], max_new_tokens=4, ignore_eos=True, **options)
        assert [len(row.token_ids) for row in rows] == [4, 4]
    with torch.no_grad():
        found = generator.model(torch.tensor([PROMPT])).logits
        wanted = ProxyGenerator(*trio).model(torch.tensor([PROMPT])).logits
    assert found.dtype == torch.float32
    together = torch.stack([found.flatten(), wanted.flatten()])
    assert float(torch.corrcoef(together)[0, 1]) > (0.8 if quantization == "4bit" else 0.98)


def test_one_role_quantised(trio: list[Path]) -> None:
    """A Role's own setting packs that role alone, and a proxy folder remembers it."""
    generator = ProxyGenerator(Role(trio[0], quantization="8bit"), *trio[1:])
    assert [packed_layers(role.model) > 0 for role in generator.model.roles] == [True, False, False]


def test_quantisation_comes_back_from_a_proxy_folder(trio: list[Path], tmp_path: Path) -> None:
    """Stored by its short name; the same tokens come."""
    first = ProxyGenerator(Role(trio[0], quantization="8bit"), *trio[1:])
    first.save_pretrained(tmp_path)
    again = ProxyGenerator.from_pretrained(tmp_path)
    assert packed_layers(again.model.base) == packed_layers(first.model.base) > 0
    tokens = [model.generate(PROMPT, max_new_tokens=5, ignore_eos=True)[0].token_ids for model in (first, again)]
    assert tokens[0] == tokens[1]


def test_a_role_quantised_on_disk_just_loads(trio: list[Path], tmp_path: Path) -> None:
    """Saved packed, it needs no setting."""
    from transformers import BitsAndBytesConfig

    packed = AutoModelForCausalLM.from_pretrained(trio[0], quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    packed.save_pretrained(tmp_path)
    tiny.word_tokenizer().save_pretrained(tmp_path)
    generator = ProxyGenerator(tmp_path, *trio[1:])
    assert packed_layers(generator.model.base) > 0
    assert len(generator.generate(PROMPT, max_new_tokens=3, ignore_eos=True)[0].token_ids) == 3
