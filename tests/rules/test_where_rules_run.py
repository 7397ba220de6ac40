"""A rule's text on its way: command line, proxy folder, adapters, vLLM; and models that a schedule no longer needs."""

import json
from pathlib import Path

import pytest
import torch

from proxytune import ProxyGenerator
from proxytune.cli.parser import parse
from proxytune.cli.role_arguments import choose_roles
from proxytune.demo import trio_path
from proxytune.errors import OptionError
from tests import tiny
from tests.conftest import save_adapter
from tests.hf.decoding.rigs import by_generate

PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (5, 9)]
LONG = {"max_new_tokens": 10, "ignore_eos": True}
TRIO = [str(trio_path() / role) for role in ("base", "expert", "anti")]


def test_the_command_line_names_it(tmp_path: Path) -> None:
    """`--rule` is checked before anything loads, and goes before the rule of a proxy folder."""
    arguments = ["score", "--prompts", "x", "--rule", "contrastive,beta=0.20"]
    assert choose_roles(parse(arguments)).rule == "contrastive,beta=0.2"
    ProxyGenerator(*TRIO, rule="mixture").save_pretrained(tmp_path)
    assert choose_roles(parse([*arguments[:3], "--model", str(tmp_path)])).rule == "mixture"
    assert choose_roles(parse([*arguments, "--model", str(tmp_path)])).rule == "contrastive,beta=0.2"
    with pytest.raises(OptionError, match="rule is 'tenfold'"):
        choose_roles(parse([*arguments[:4], "tenfold"]))


def test_a_folder_keeps_its_settings(tmp_path: Path) -> None:
    """config.json has the text; another one may be given at load."""
    first = ProxyGenerator(*TRIO, rule="contrastive,beta=0.30,schedule=first:4")
    first.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["rule"]
    assert text == "contrastive,schedule=first:4,beta=0.3"
    assert ProxyGenerator.from_pretrained(tmp_path).model.rule == first.model.rule
    assert str(ProxyGenerator.from_pretrained(tmp_path, rule="union").model.rule) == "union"


@pytest.mark.parametrize("rule", ["proxy", "mixture", "union", "proxy,anti_temperature=2", "proxy,gate=disagreement:1"])
def test_an_adapter_and_its_anti_in_one_pass(rule: str, tmp_path: Path) -> None:
    """A LoRA expert's difference stands in for the two only where the rule takes it: tokens are those of two passes."""
    base, _, anti = tiny.trio()
    for name, model in (("base", base), ("anti", anti)):
        model.save_pretrained(tmp_path / name)
        tiny.word_tokenizer().save_pretrained(tmp_path / name)
    save_adapter(tmp_path / "anti", tmp_path / "lora", seed=5)
    roles = [tmp_path / name for name in ("base", "lora", "anti")]
    wanted = by_generate(ProxyGenerator(*roles, rule=rule)).generate(PROMPTS, **LONG)
    for speculation in ("off", 2):
        found = ProxyGenerator(*roles, rule=rule, speculation=speculation).generate(PROMPTS, **LONG)
        assert [row.token_ids for row in found] == [row.token_ids for row in wanted]


def test_small_models_rest_after_a_schedules_end() -> None:
    """After `first:3` neither small model runs: three passes of the expert for ten tokens."""
    calls: list[int] = []
    generator = tiny.generator("gpt2", rule="proxy,schedule=first:3", speculation="off")
    handle = generator.model.roles[1].model.register_forward_hook(lambda *_: calls.append(1))
    generator.generate(PROMPTS, **LONG)
    handle.remove()
    assert len(calls) == 3


def test_a_forward_asks_where_the_answer_begins() -> None:
    """A schedule cannot be guessed: a plain forward says what is missing, and takes the position."""
    model = tiny.generator(rule="proxy,schedule=first:2").model
    ids = torch.tensor(PROMPTS[:1])
    with pytest.raises(OptionError, match="nothing says where that begins"):
        model(ids)
    late, early = (model(ids, answer_position=position, logits_to_keep=1).logits for position in (2, 0))
    assert torch.equal(late, model(ids, alpha=0, answer_position=0, logits_to_keep=1).logits)
    assert not torch.equal(early, late)
