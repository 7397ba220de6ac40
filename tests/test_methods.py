"""Methods whose terms are the base itself, or missing: their papers' formulas, with nothing loaded or run twice."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from proxytune import Pair, ProxyGenerator, Role
from proxytune.cli.parser import parse
from proxytune.cli.role_arguments import choose_roles
from proxytune.demo import trio_path
from proxytune.errors import ProxyTuneError, RoleError, UnknownOptionError
from proxytune.roles import term_of
from tests import tiny
from tests.conftest import save_adapter
from tests.hf.decoding.rigs import by_generate
from tests.reference import Reference

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
LONG: dict[str, Any] = {"max_new_tokens": 10, "ignore_eos": True}
CONTEXT, QUESTION = "w5 w6 w7 w8", "w9 w10"
CHAT = [{"role": "system", "content": CONTEXT}, {"role": "user", "content": QUESTION}]
TRIO = [trio_path() / role for role in ("base", "expert", "anti")]


def generator(**settings: Any) -> ProxyGenerator:
    """Return a generator over the tiny base."""
    return ProxyGenerator(tiny.trio()[0], tokenizer=tiny.word_tokenizer(), **settings)


class Expected(Reference):
    """A formula over the logits of several models, each with ids of its own."""

    def __init__(self, models: list[Any], formula: Any) -> None:
        super().__init__(models[0], [], tiny.VOCAB_SIZE)
        object.__setattr__(self, "models", models)
        object.__setattr__(self, "formula", formula)

    def logits(self, role_ids: Any, alphas: Any) -> Tensor:
        """Return the formula's logits."""
        return self.formula(*(self._last(model, ids) for model, ids in zip(self.models, role_ids, strict=True)))


def masked(base: Tensor, logits: Tensor) -> Tensor:
    """Return logits without tokens below a tenth of base's best probability."""
    return torch.where(base.softmax(0) < 0.1 * base.softmax(0).max(), -torch.inf, logits)


BASE, OTHER, ANTI = tiny.trio()
METHODS: dict[str, tuple[dict[str, Any], list[Any], Any]] = {
    "contrastive decoding": (
        {"amateur": ANTI, "alpha": 0.5},
        [BASE, ANTI],
        lambda base, amateur: masked(base, 1.5 * base - 0.5 * amateur),
    ),
    "without a mask": (
        {"expert": "base", "anti": ANTI, "alpha": 0.5},
        [BASE, ANTI],
        lambda base, amateur: 1.5 * base - 0.5 * amateur,
    ),
    "product": (
        {"domain": OTHER, "alpha": 0.4},
        [BASE, OTHER],
        lambda base, domain: 0.6 * base.log_softmax(0) + 0.4 * domain.log_softmax(0),
    ),
    "mixture": (
        {"domain": OTHER, "alpha": 0.4, "rule": "mixture"},
        [BASE, OTHER],
        lambda base, domain: (0.6 * base.softmax(0) + 0.4 * domain.softmax(0)).log(),
    ),
    "union": (
        {"domain": OTHER, "rule": "union"},
        [BASE, OTHER],
        lambda base, domain: torch.maximum(base.log_softmax(0), domain.log_softmax(0)),
    ),
    "intersection": (
        {"domain": OTHER, "rule": "intersection"},
        [BASE, OTHER],
        lambda base, domain: torch.minimum(base.log_softmax(0), domain.log_softmax(0)),
    ),
    "reward model": (
        {"reward_model": OTHER, "alpha": 0.7},
        [BASE, OTHER],
        lambda base, reward: base.log_softmax(0) + 0.7 * reward.log_softmax(0),
    ),
    "nudging": (
        {"domain": OTHER, "rule": "mixture,gate=best:0.6"},
        [BASE, OTHER],
        lambda base, nudge: nudge if base.softmax(0).max() < 0.6 else base,
    ),
    "emulated tuning, down": (
        {"pairs": [Pair(OTHER, ANTI, 1.0), Pair("base", OTHER, -0.5), Pair(ANTI, "none", 0.1)]},
        [BASE, OTHER, ANTI],
        lambda base, other, anti: 0.5 * base + 1.5 * other - 0.9 * anti,
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_its_formula(name: str) -> None:
    """Greedy, with and without drafts, by transformers' generate, and scored: the formula's tokens and scores."""
    settings, models, formula = METHODS[name]
    prompts = [tiny.prompt_ids(length, seed=length) for length in (6, 3)]
    reference = Expected(models, formula)
    answers = [reference.greedy([prompt] * len(models), [], 10) for prompt in prompts]
    for gen in (*(generator(speculation=k, **settings) for k in ("off", 3)), by_generate(generator(**settings))):
        assert [list(row.token_ids) for row in gen.generate(prompts, **LONG)] == answers
    logprobs = reference.logprobs([prompts[0]] * len(models), [], answers[0])
    [score] = gen.score([prompts[0]], [answers[0]])
    assert score.logprobs == pytest.approx(logprobs, abs=1e-3)
    assert gen.trace(prompts[0], continuation=answers[0]).tokens[0].token_id == answers[0][0]


@pytest.mark.parametrize("rule", ["proxy", "contrastive,beta=0.1"])
@pytest.mark.parametrize(
    ("negative_prompt", "negative"), [("{last}", QUESTION), ("w20 w21 {prompt}", f"w20 w21 {CONTEXT} {QUESTION}")]
)
def test_a_prompt_of_its_own(negative_prompt: str, negative: str, rule: str) -> None:
    """Context-aware decoding and a negative prompt: (1 + α) base with all − α base with the other text."""
    tokenizer = tiny.word_tokenizer()
    ids = [tokenizer(text).input_ids for text in (f"{CONTEXT} {QUESTION}", negative)]
    reference = Expected(
        [BASE, BASE],
        lambda full, other: 1.8 * full - 0.8 * other if rule == "proxy" else masked(full, 1.8 * full - 0.8 * other),
    )
    answer = reference.greedy(ids, [], 10)
    for speculation in (2, "off"):
        gen = generator(negative_prompt=negative_prompt, alpha=0.8, rule=rule, speculation=speculation)
        assert len(gen.model.models) == 1
        assert [role.name for role in gen.model.roles] == ["base", "anti"]
        assert list(gen.generate([CHAT], **LONG)[0].token_ids) == answer
    [beam] = gen.generate([CHAT], num_beams=2, max_new_tokens=4, ignore_eos=True)
    [(best, _), *_] = reference.beams(ids, [], 2, 4)
    assert list(beam.token_ids) == best
    [score] = gen.score([CHAT], [answer])
    assert score.logprobs == pytest.approx(reference.logprobs(ids, [], answer), abs=1e-3)


def test_nothing_is_loaded_or_run_twice() -> None:
    """Under the base's format the base is one role, also a format of its own that only it was given."""
    assert [role.name for role in generator(amateur=ANTI).model.roles] == ["base", "anti"]
    assert [role.name for role in generator(domain=OTHER, base_prompt="w1 {prompt}").model.roles] == ["base", "expert"]
    assert generator(reward_model=OTHER).model.pair_roles == [(1, None)]
    loaded = ProxyGenerator(TRIO[0], amateur=TRIO[2])
    assert len(loaded.model.models) == 2
    calls: list[int] = []
    handle = BASE.register_forward_hook(lambda *_: calls.append(1))
    gen = by_generate(generator(negative_prompt="{prompt}", alpha=0.5))
    gen.generate([CHAT], **LONG)
    alone = by_generate(generator(expert="base", anti="base"))
    calls.clear()
    alone.generate([CHAT], **LONG)
    handle.remove()
    assert len(calls) == LONG["max_new_tokens"]


def test_an_adapter_over_the_base(tmp_path: Path) -> None:
    """A LoRA of the base is a domain model over the base's weights: tokens are those of the merged model."""
    BASE.save_pretrained(tmp_path / "base")
    tiny.word_tokenizer().save_pretrained(tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "lora", seed=5)
    prompts = [tiny.prompt_ids(length, seed=length) for length in (6, 3)]
    gen = ProxyGenerator(tmp_path / "base", domain=tmp_path / "lora", alpha=0.6)
    assert len(gen.model.models) == 1
    merged = ProxyGenerator(tmp_path / "base", tmp_path / "lora", tmp_path / "base", alpha=0.6)
    wanted = [row.token_ids for row in by_generate(merged).generate(prompts, **LONG)]
    assert [row.token_ids for row in gen.generate(prompts, **LONG)] == wanted
    with pytest.raises(RoleError, match="is an adapter, and its anti is 'none'"):
        ProxyGenerator(tmp_path / "base", reward_model=tmp_path / "lora")


@pytest.mark.parametrize(
    "settings", [{"amateur": TRIO[2]}, {"reward_model": TRIO[1]}, {"negative_prompt": "x {prompt}"}]
)
def test_a_proxy_folder_keeps_words(settings: dict[str, Any], tmp_path: Path) -> None:
    """config.json has the words, and whoever loads the folder, by Python or the command line, gets the same tokens."""
    gen = ProxyGenerator(TRIO[0], alpha=0.5, **settings)
    gen.save_pretrained(tmp_path)
    [pair] = json.loads((tmp_path / "config.json").read_text())["pairs"]
    assert {"base", "none"} & {name for name in pair.values() if isinstance(name, str)}
    again = ProxyGenerator.from_pretrained(tmp_path)
    expected, found = (one.generate("Question:", max_new_tokens=6)[0].token_ids for one in (gen, again))
    assert found == expected
    choice = choose_roles(parse(["generate", "--prompts", "x", "--model", str(tmp_path)]))
    with choice.loaded() as loaded:
        assert loaded.generate("Question:", max_new_tokens=6)[0].token_ids == expected


def test_the_command_line_names_methods() -> None:
    """`--amateur` and the others are roles and a rule; with roles beside them they are refused."""
    base = ["generate", "--prompts", "x", "--base", str(TRIO[0])]
    choice = choose_roles(parse([*base, "--amateur", str(TRIO[2]), "--alpha", "0.5"]))
    [pair] = choice.pairs
    assert (pair.expert, pair.anti.source, pair.alpha, choice.rule) == ("base", str(TRIO[2]), 0.5, "contrastive")
    choice = choose_roles(parse([*base, "--negative-prompt", "{last}"]))
    assert (choice.pairs[0].expert, choice.pairs[0].anti, choice.formats["anti_prompt"]) == ("base", "base", "{last}")
    [pair] = choose_roles(parse([*base, "--expert", str(TRIO[1]), "--anti", "none"])).pairs
    assert pair.anti == "none"
    with pytest.raises(UnknownOptionError, match="amateur names a method with its roles, and anti was given"):
        choose_roles(parse([*base, "--amateur", "x", "--anti", "y"]))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"amateur": ANTI, "domain": OTHER}, "amateur names a method with its roles, and domain was given"),
        ({"amateur": ANTI, "pairs": []}, "and pairs was given"),
        ({"negative_prompt": "{last}", "anti_prompt": "chat"}, "and anti_prompt was given"),
        ({"negative_prompt": "rude"}, "unknown prompt format 'rude'"),
        ({"expert": OTHER}, "anti is missing"),
        ({"expert": "none", "anti": ANTI}, "none"),
    ],
)
def test_methods_that_do_not_fit(settings: dict[str, Any], problem: str) -> None:
    """One sentence that names what is wrong."""
    with pytest.raises(ProxyTuneError) as caught:
        generator(**settings)
    assert problem in str(caught.value)


def test_a_folder_called_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder here of that name is not taken for the word silently, unless it is the base."""
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert term_of("base", "anti", Role("base")) == "base"
    with pytest.raises(RoleError, match=r"pass '\./base' for the folder"):
        term_of("base", "anti", Role("elsewhere"))


def test_every_line_of_the_page_runs() -> None:
    """docs/methods.md: each call of the table answers the demo's question on the bundled trio."""
    text = PAGE.read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), scope)
    assert scope["ids"].shape[1] > 16
    calls = re.findall(r"\| `(ProxyGenerator\(.*\))` \|$", text, re.MULTILINE)
    assert len(calls) == 13
    for call in calls:
        [row] = eval(call, scope).generate(scope["question"], max_new_tokens=8)
        assert row.token_ids
