"""The loop against transformers' generate, and speculation against plain decoding: the same tokens."""

from typing import Any

import pytest

from proxytune import Pair, ProxyGenerator
from proxytune.demo import trio_path
from proxytune.demo.live import held_out_questions
from proxytune.demo.recipe import Recipe
from proxytune.errors import OptionError, RuntimeUnsupportedError, VocabularyError
from proxytune.hf.probing import ARCHITECTURES
from tests import tiny
from tests.hf.decoding.rigs import FORMATS, by_generate, scripted, tokens, whimsical

PROMPTS = [tiny.prompt_ids(length, seed=length) for length in (9, 3, 14, 6)]
TEXTS = ["w10", "w11 w12 w13 w14 w15", "w20 w21 w22"]
LONG: dict[str, Any] = {"max_new_tokens": 14, "ignore_eos": True}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 5}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": SAMPLED,
    "filtered": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 6},
    "penalised": {"repetition_penalty": 1.4, "temperature": 0.9, "seed": 7},
    "penalised-greedy": {"repetition_penalty": 1.6},
}


def generator_of(name: str, **settings: Any) -> ProxyGenerator:
    """Return a generator over the trio of an architecture."""
    return tiny.generator(name, **settings)


def test_every_architecture_of_the_list_is_tested() -> None:
    """What the loop takes is what the tests below run, under the names of transformers."""
    assert {tiny.model(name, 1).config.model_type for name in tiny.ARCHITECTURES} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
@pytest.mark.parametrize("way", ["greedy", "filtered", "penalised"])
def test_plain_and_drafting_equal_generate(name: str, way: str) -> None:
    """Per architecture, in a ragged batch: transformers' generate, the loop, and the loop with three drafts."""
    wanted = tokens(by_generate(generator_of(name)).generate(PROMPTS, **LONG, **WAYS[way]))
    for speculation in ("off", 3):
        found = generator_of(name, speculation=speculation).generate(PROMPTS, **LONG, **WAYS[way])
        assert tokens(found) == wanted


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_prompts_and_strengths_of_their_own(name: str) -> None:
    """Roles that read prompts of different length, rows with an α each, one of them 0: drafts change nothing."""
    options: dict[str, Any] = {**LONG, "alpha": [0.0, 0.5, 1.5], **SAMPLED}
    wanted = tokens(by_generate(generator_of(name, **FORMATS)).generate(TEXTS, **options))
    assert tokens(generator_of(name, speculation="off", **FORMATS).generate(TEXTS, **options)) == wanted
    assert tokens(generator_of(name, speculation=4, **FORMATS).generate(TEXTS, **options)) == wanted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("draft", ["expert", "model"])
def test_widths_that_change(way: str, draft: str) -> None:
    """Plain and drafting cycles in any order, drafts that end as they come, by the expert or a model: plain tokens."""
    drafter = "expert" if draft == "expert" else tiny.model("gpt2", 4)
    wanted = tokens(generator_of("llama", speculation="off").generate(PROMPTS, **LONG, **WAYS[way]))
    generator = scripted(generator_of("llama", draft=drafter), [0, 3, 0, 0, 2, 1, 5])
    assert tokens(generator.generate(PROMPTS, **LONG, **WAYS[way])) == wanted
    generator = whimsical(generator_of("llama", draft=drafter))
    rows = generator.generate(PROMPTS, stats=True, **LONG, **WAYS[way])
    assert tokens(rows) == wanted
    assert 0 < rows[0].timing.stats.num_drafted < 5


def test_a_draft_model_of_its_own() -> None:
    """Another architecture drafts: the tokens are the plain ones; a draft model that is the base keeps every draft."""
    wanted = tokens(generator_of("llama", speculation="off").generate(PROMPTS, **LONG))
    found = generator_of("llama", speculation=3, draft=tiny.model("opt", 4)).generate(PROMPTS, **LONG)
    assert tokens(found) == wanted
    base = tiny.trio()[0]
    alone = generator_of("llama", speculation="off", alpha=1e-9).generate(PROMPTS, **LONG)
    found = generator_of("llama", speculation=3, draft=base, alpha=1e-9).generate(PROMPTS, stats=True, **LONG)
    assert tokens(found) == tokens(alone)
    assert set(found[0].timing.stats.acceptance) == {1.0}


def test_a_draft_model_must_know_the_shared_ids() -> None:
    """One with a smaller vocabulary is refused, with both sizes."""
    with pytest.raises(VocabularyError, match="32 token ids, the roles share 64"):
        generator_of("llama", draft=tiny.model("llama", 4, vocab_size=32))


def test_several_pairs() -> None:
    """The first pair's expert drafts; a pair that α switches off leaves drafting to the next."""
    base, expert, anti = tiny.trio()
    pairs = [Pair(expert, anti, 0.7), Pair(tiny.model("llama", 4), anti, -0.4)]
    plain, drafting = (
        ProxyGenerator(base, pairs=pairs, tokenizer=tiny.word_tokenizer(), speculation=speculation)
        for speculation in ("off", 3)
    )
    for alpha in (None, [0.0, 1.0], [1.0, 0.0], 0.0):
        wanted = plain.generate(PROMPTS, alpha=alpha, **LONG)
        assert tokens(drafting.generate(PROMPTS, alpha=alpha, **LONG)) == tokens(wanted)


def test_one_model_under_two_prompts_runs_once() -> None:
    """Expert and anti that are one model share a forward over both prompts' rows."""
    base, model, _ = tiny.trio()
    settings: dict[str, Any] = {"expert_prompt": "w2 w3 {prompt}", "tokenizer": tiny.word_tokenizer()}
    wanted = by_generate(ProxyGenerator(base, model, model, **settings)).generate(TEXTS, **LONG)
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = ProxyGenerator(base, model, model, speculation="off", **settings).generate(TEXTS, **LONG)
    handle.remove()
    assert len(calls) == LONG["max_new_tokens"]
    assert tokens(found) == tokens(wanted)
    found = ProxyGenerator(base, model, model, speculation=3, **settings).generate(TEXTS, **LONG)
    assert tokens(found) == tokens(wanted)


@pytest.mark.parametrize("way", ["greedy", "filtered"])
def test_an_adapter_and_its_anti(folders: Any, way: str) -> None:
    """A LoRA expert runs with its anti in one pass, drafts alone, and the tokens are those of two passes."""
    roles = [folders[name] for name in ("base", "lora", "anti")]
    options = {**LONG, **WAYS[way], "alpha": [0.5, 1.0, 2.0]}
    wanted = tokens(by_generate(ProxyGenerator(*roles, **FORMATS)).generate(TEXTS, **options))
    plain = ProxyGenerator(*roles, speculation="off", **FORMATS)
    rows = plain.generate(TEXTS, stats=True, **options)
    assert tokens(rows) == wanted
    assert set(rows[0].timing.stats.role_seconds) == {"base", "expert+anti"}
    drafting = ProxyGenerator(*roles, speculation=3, **FORMATS)
    rows = drafting.generate(TEXTS, stats=True, **options)
    assert tokens(rows) == wanted
    assert set(rows[0].timing.stats.role_seconds) == {"base", "expert+anti", "expert", "anti"}
    judged = whimsical(ProxyGenerator(*roles, **FORMATS))
    assert tokens(judged.generate(TEXTS, **options)) == wanted


def test_one_head_product_for_an_adapter_and_its_anti(folders: Any) -> None:
    """Behind the prompts the pair's head reads h⁺ − h⁻: one row per prompt and step, not two."""
    generator = ProxyGenerator(*(folders[name] for name in ("base", "lora", "anti")), speculation="off")
    [anti] = [role.model for role in generator.model.roles if role.name == "anti"]
    rows: list[int] = []
    handle = anti.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    generator.generate([[5, 6, 7], [8, 9]], max_new_tokens=5, ignore_eos=True)
    handle.remove()
    assert rows == [4, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mistral"])
def test_a_cache_at_its_limit(name: str) -> None:
    """Drafts that would lie behind the context are cut: rows fill it to the last position, each at its own."""
    trio = tiny.trio(name, context=24)
    plain, drafting = (
        ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), speculation=speculation) for speculation in ("off", 5)
    )
    options: dict[str, Any] = {"max_new_tokens": 99, "ignore_eos": True}
    wanted = plain.generate(PROMPTS, **options)
    assert [len(row.token_ids) for row in wanted] == [24 - len(prompt) for prompt in PROMPTS]
    assert tokens(drafting.generate(PROMPTS, **options)) == tokens(wanted)


def test_two_hundred_demo_prompts_greedy() -> None:
    """On the bundled trio, real acceptance: equal to plain decoding for batches of 1, 7 and 32."""
    prompts = [question.prompt for question in held_out_questions(Recipe().world())][:200]
    assert len(prompts) == 200
    roles = [trio_path() / role for role in ("base", "expert", "anti")]
    wanted = ProxyGenerator(*roles, speculation="off").generate(prompts, max_new_tokens=20)
    drafting = ProxyGenerator(*roles, speculation=4)
    for batch_size in (1, 7, 32):
        rows = drafting.generate(prompts, max_new_tokens=20, batch_size=batch_size, stats=True)
        assert tokens(rows) == tokens(wanted)
        assert rows[0].timing.stats.tokens_per_cycle > 1.5


def test_what_the_loop_cannot_do() -> None:
    """Beams go through generate; asked for together with drafts they are refused, as are roles off the list."""
    plain = tiny.generator()
    wanted = by_generate(tiny.generator()).generate(PROMPTS, num_beams=3, **LONG)
    assert tokens(plain.generate(PROMPTS, num_beams=3, **LONG)) == tokens(wanted)
    with pytest.raises(OptionError, match="num_beams=3 with speculation=2"):
        tiny.generator(speculation=2).generate(PROMPTS, num_beams=3)
    flex = tiny.new_model("llama", 2)
    flex.config._attn_implementation = "flex_attention"
    base, _, anti = tiny.trio()
    assert ProxyGenerator(base, flex, anti, tokenizer=tiny.word_tokenizer())._runtime.loop is None
    with pytest.raises(RuntimeUnsupportedError, match="flex_attention"):
        ProxyGenerator(base, flex, anti, tokenizer=tiny.word_tokenizer(), speculation=2)


@pytest.mark.parametrize("settings", [{"speculation": 3}, {"draft": "a-model"}])
def test_vllm_has_options_of_its_own(settings: dict[str, Any]) -> None:
    """Asked of vLLM, drafting is refused before anything loads, with the name of the engine's option."""
    with pytest.raises(OptionError, match="speculative_config"):
        ProxyGenerator("base", "expert", "anti", runtime="vllm", **settings)


@pytest.mark.parametrize("settings", [{"speculation": 0}, {"speculation": "on"}, {"compile": "yes"}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    """Each is an error that names what may be."""
    with pytest.raises(OptionError, match="must be"):
        tiny.generator(**settings)
