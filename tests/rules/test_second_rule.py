"""A second rule is one class of a few lines: named by a config, it reaches whatever combines logits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from proxytune import ProxyGenerator, ProxyTunedConfig, ProxyTunedForCausalLM
from proxytune.errors import OptionError
from proxytune.rules import Rule, register, rule_names, rule_of
from proxytune.vllm.plan import Plan, RolePlan
from tests import tiny
from tests.reference import Reference

NUM_TOKENS = 8
PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (5, 9)]


@register("threefold")
@dataclass(frozen=True)
class Threefold(Rule):
    """Base plus three times α · (expert − anti): proxy tuning at three times its strength, easily told from it."""

    combines_per_token: ClassVar[bool] = True

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return the sum."""
        for index, (expert, anti) in enumerate(pairs):
            base = base + 3 * strengths[:, index, None, None] * (expert - anti)
        return base.float()


@pytest.fixture(scope="module")
def generator() -> ProxyGenerator:
    """A generator by the second rule at strength 0.5."""
    return tiny.generator(rule="threefold", alpha=0.5)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """The reference's tokens at three times that strength, which proxy tuning at 0.5 does not give."""
    base, expert, anti = tiny.trio()
    reference = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    tokens, others = (
        [reference.greedy([prompt] * 3, [alpha], NUM_TOKENS) for prompt in PROMPTS] for alpha in (1.5, 0.5)
    )
    assert all(first != second for first, second in zip(tokens, others, strict=True))
    return tokens


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["loop", "transformers"])
def test_it_reaches_generation(generator: ProxyGenerator, options: dict[str, int]) -> None:
    """Our loop and transformers' generate give what proxy tuning gives at three times the strength."""
    proxy = tiny.generator(alpha=1.5)
    arguments = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True, **options}
    rows, others = generator.generate(PROMPTS, **arguments), proxy.generate(PROMPTS, **arguments)
    assert [row.token_ids for row in rows] == [row.token_ids for row in others]


def test_it_reaches_the_composites_forward(generator: ProxyGenerator, expected: list[list[int]]) -> None:
    """The composite's greedy tokens are the reference's."""
    ids = generator.model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=NUM_TOKENS, eos_token_id=None)
    assert ids[0, len(PROMPTS[0]) :].tolist() == expected[0]


def test_it_reaches_scores(generator: ProxyGenerator, expected: list[list[int]]) -> None:
    """Its own greedy tokens score as greedy."""
    assert all(score.is_greedy for score in generator.score(PROMPTS, expected))


def test_it_reaches_traces(generator: ProxyGenerator, expected: list[list[int]]) -> None:
    """At each position its greedy token is the combined distribution's likeliest."""
    trace = generator.trace(PROMPTS[0], continuation=expected[0])
    assert [token.candidates[0].token_id for token in trace.tokens] == expected[0]


def test_it_reaches_vllms_model() -> None:
    """The plan carries its name to the engine's processes, whose model combines by it, by hand."""
    pytest.importorskip("vllm")
    from proxytune.vllm.modeling import ProxyTunedForCausalLM as Model

    roles = tuple(RolePlan(name=name, model=name) for name in ("base", "expert", "anti"))
    plan = Plan(roles=roles, pairs=((1, 2),), alphas=(1.0,), rule="threefold")
    sent = Plan.of(SimpleNamespace(**plan.overrides()))
    model = SimpleNamespace(plan=sent, rule=rule_of(sent.rule))
    logits = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 1.0]] * 2)]
    combined = Model._combined(model, logits, torch.tensor([[1.0], [0.5]]))  # type: ignore[arg-type]
    assert combined.tolist() == [[4.0, -1.0], [4.5, 2.5]]


def test_a_proxy_folder_names_it(tmp_path: Path, expected: list[list[int]]) -> None:
    """The rule's name is in config.json, and whoever loads the folder runs it."""
    folders = []
    for name, model in zip(("base", "expert", "anti"), tiny.trio(), strict=True):
        model.save_pretrained(tmp_path / name)
        tiny.word_tokenizer().save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    ProxyGenerator(*folders, rule="threefold", alpha=0.5).save_pretrained(tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["rule"] == "threefold"
    [row] = ProxyGenerator.from_pretrained(tmp_path / "folder").generate(
        PROMPTS[:1], max_new_tokens=NUM_TOKENS, ignore_eos=True
    )
    assert list(row.token_ids) == expected[0]
    assert isinstance(ProxyTunedForCausalLM.from_pretrained(tmp_path / "folder").rule, Threefold)


def test_an_unknown_rule_is_one_clear_error(tmp_path: Path) -> None:
    """The generator, the folder and vLLM's plan name the rules there are."""
    text = f"rule is 'tenfold': it must be one of {', '.join(rule_names())}"
    with pytest.raises(OptionError, match=text):
        tiny.generator(rule="tenfold")
    role = {"source": "x"}
    ProxyTunedConfig(base=role, pairs=[{"expert": role, "anti": role}], rule="tenfold").save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=text):
        ProxyGenerator.from_pretrained(tmp_path)
    with pytest.raises(OptionError, match=text):
        Plan(roles=(), pairs=(), alphas=(), rule="tenfold")


def test_a_name_is_given_once() -> None:
    """Two rules of one name are an error; the same class may be registered again."""
    assert register("threefold")(Threefold) is Threefold
    with pytest.raises(ValueError, match="'threefold' exists already"):
        register("threefold")(SimpleNamespace)  # type: ignore[type-var]
