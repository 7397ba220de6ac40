"""The composite against plain models that are combined by hand, without cache or padding."""

from typing import Any

import pytest
import torch

from proxytune import Pair, ProxyGenerator
from proxytune.errors import NonFiniteLogitsError
from tests import tiny
from tests.reference import Reference

TOLERANCE = 1e-4
NUM_TOKENS = 8


def generator_of(trio: tuple[Any, Any, Any], **settings: Any) -> ProxyGenerator:
    """Return a generator over a trio of loaded models."""
    return ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(), **settings)


def reference_of(trio: tuple[Any, Any, Any]) -> Reference:
    """Return the reference over the same models."""
    return Reference(trio[0], [trio[1:]], tiny.VOCAB_SIZE)


def require_equal(found: Any, wanted: list[float]) -> None:
    """Fail unless all log-probabilities agree to the tolerance."""
    assert max(abs(first - second) for first, second in zip(found, wanted, strict=True)) <= TOLERANCE


TRIOS = {
    **{name: lambda name=name: tiny.trio(name) for name in tiny.ARCHITECTURES},
    "llama-base-qwen2-pair": lambda: (tiny.trio("llama")[0], *tiny.trio("qwen2")[1:]),
    "gpt2-base-opt-expert-neox-anti": lambda: (tiny.trio("gpt2")[0], tiny.trio("opt")[1], tiny.trio("neox")[2]),
    "padded-vocabularies": lambda: (
        tiny.model("llama", 1, vocab_size=80),
        tiny.model("llama", 2, vocab_size=72),
        tiny.model("llama", 3, vocab_size=96),
    ),
}


@pytest.mark.parametrize("name", TRIOS)
def test_greedy_equals_the_reference_in_a_left_padded_batch(name: str) -> None:
    """Rows of different length in one batch: tokens equal, log-probabilities to 1e-4, of the top ones too."""
    trio = TRIOS[name]()
    prompts = [tiny.prompt_ids(length, seed=length) for length in (9, 3, 6)]
    completions = generator_of(trio).generate(prompts, max_new_tokens=NUM_TOKENS, ignore_eos=True, logprobs=5)
    reference = reference_of(trio)
    for prompt, completion in zip(prompts, completions, strict=True):
        wanted = reference.greedy([prompt] * 3, [1.0], NUM_TOKENS)
        assert list(completion.token_ids) == wanted
        table = reference.table([prompt] * 3, [1.0], wanted)
        require_equal([entry.logprob for entry in completion.logprobs], table.max(-1).values.tolist())
        for entry, line in zip(completion.logprobs, table, strict=True):
            values, ids = line.topk(5)
            assert list(entry.top) == ids.tolist()
            require_equal(entry.top.values(), values.tolist())


@pytest.mark.parametrize("name", TRIOS)
def test_score_equals_the_reference_in_a_left_padded_batch(name: str) -> None:
    """Teacher-forced log-probabilities of continuations of different length equal a full recompute per token."""
    trio = TRIOS[name]()
    prompts = [tiny.prompt_ids(length, seed=length) for length in (4, 9, 2)]
    continuations = [tiny.prompt_ids(length, seed=30 + length)[1:] for length in (8, 3, 11)]
    scores = generator_of(trio).score(prompts, continuations, alpha=1.5)
    for prompt, continuation, score in zip(prompts, continuations, scores, strict=True):
        require_equal(score.logprobs, reference_of(trio).logprobs([prompt] * 3, [1.5], continuation))
        assert score.token_ids == tuple(continuation)
        assert score.total == pytest.approx(sum(score.logprobs))


def test_score_knows_greedy_continuations() -> None:
    """`is_greedy` holds for the greedy continuation and not for one with its last token changed."""
    generator, prompt = tiny.generator(), tiny.prompt_ids(5)
    [done] = generator.generate(prompt, max_new_tokens=4, ignore_eos=True)
    changed = [*done.token_ids[:-1], (done.token_ids[-1] + 1) % tiny.VOCAB_SIZE]
    first, second = generator.score([prompt, prompt], [done.token_ids, changed])
    assert first.is_greedy
    assert not second.is_greedy


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_batched_row_equals_the_prompt_alone(architecture: str) -> None:
    """Padding changes nothing: same tokens as alone, log-probabilities to 1e-4."""
    generator = tiny.generator(architecture)
    prompts = [tiny.prompt_ids(length, seed=length) for length in (2, 13, 7, 5)]
    options: dict[str, Any] = {"max_new_tokens": 10, "ignore_eos": True, "logprobs": 0}
    together = generator.generate(prompts, batch_size=4, **options)
    for prompt, row in zip(prompts, together, strict=True):
        [alone] = generator.generate([prompt], **options)
        assert row.timing.batch_size == 4
        assert row.token_ids == alone.token_ids
        require_equal([entry.logprob for entry in row.logprobs], [entry.logprob for entry in alone.logprobs])


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 2, -1])
def test_alpha_equals_the_reference(alpha: float) -> None:
    """Any strength, negative ones too, set for the generator or for the call."""
    trio, prompt = tiny.trio(), tiny.prompt_ids(6)
    wanted = reference_of(trio).greedy([prompt] * 3, [alpha], NUM_TOKENS)
    options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    [configured] = generator_of(trio, alpha=alpha).generate(prompt, **options)
    [called] = generator_of(trio).generate(prompt, alpha=alpha, **options)
    assert list(configured.token_ids) == wanted
    assert called.token_ids == configured.token_ids


def test_strengths_give_different_texts() -> None:
    """The five strengths above are told apart by the prompt they are tested on."""
    trio, prompt = tiny.trio(), tiny.prompt_ids(6)
    texts = {tuple(reference_of(trio).greedy([prompt] * 3, [alpha], NUM_TOKENS)) for alpha in (0, 0.5, 1, 2, -1)}
    assert len(texts) == 5


def test_alpha_per_row_equals_each_alone() -> None:
    """One strength per prompt in a padded batch, 0 among them: tokens and log-probabilities of the reference."""
    trio = tiny.trio()
    alphas = [0, 0.5, 1, 2, -1]
    prompts = [tiny.prompt_ids(4 + index, seed=7) for index in range(5)]
    found = generator_of(trio).generate(
        prompts, alpha=alphas, max_new_tokens=NUM_TOKENS, ignore_eos=True, batch_size=5, logprobs=0
    )
    scores = generator_of(trio).score(prompts, [done.token_ids for done in found], alpha=torch.tensor(alphas))
    for prompt, alpha, done, score in zip(prompts, alphas, found, scores, strict=True):
        wanted = reference_of(trio).greedy([prompt] * 3, [alpha], NUM_TOKENS)
        assert list(done.token_ids) == wanted
        wanted_logprobs = reference_of(trio).logprobs([prompt] * 3, [alpha], wanted)
        require_equal([entry.logprob for entry in done.logprobs], wanted_logprobs)
        require_equal(score.logprobs, wanted_logprobs)


FORMATS = {
    "base_prompt": "w1 {prompt}",
    "expert_prompt": "w2 w3 w4 w5 {prompt} w6",
    "anti_prompt": "{prompt} w7 w8",
}


def role_ids(text: str) -> list[list[int]]:
    """Return what the roles read under FORMATS, from the word tokenizer's plain rule."""
    index = {f"w{number}": number + 4 for number in range(60)}
    return [[1, *(index[word] for word in form.replace("{prompt}", text).split())] for form in FORMATS.values()]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mistral", "gemma2", "llama-base-qwen2-pair"])
def test_prompts_of_different_length_per_role(name: str) -> None:
    """Each role continues its own prompt at its own positions, in a padded batch, generated and scored."""
    trio = TRIOS[name]()
    generator = generator_of(trio, **FORMATS)
    texts = ["w10", "w11 w12 w13 w14 w15", "w20 w21 w22"]
    found = generator.generate(texts, max_new_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    scores = generator.score(texts, [done.token_ids for done in found])
    for text, done, score in zip(texts, found, scores, strict=True):
        wanted = reference_of(trio).greedy(role_ids(text), [1.0], NUM_TOKENS)
        assert list(done.token_ids) == wanted
        wanted_logprobs = reference_of(trio).logprobs(role_ids(text), [1.0], wanted)
        require_equal([entry.logprob for entry in done.logprobs], wanted_logprobs)
        require_equal(score.logprobs, wanted_logprobs)


def test_token_ids_beside_text_under_formats() -> None:
    """In one batch a row of ids, which every role reads as it is, and a row of text, which each reads its own way."""
    trio, ids = tiny.trio(), tiny.prompt_ids(20)
    rows = generator_of(trio, **FORMATS).generate([ids, "w10 w11"], max_new_tokens=NUM_TOKENS, ignore_eos=True)
    for roles, row in zip(([ids] * 3, role_ids("w10 w11")), rows, strict=True):
        assert list(row.token_ids) == reference_of(trio).greedy(roles, [1.0], NUM_TOKENS)


@pytest.mark.parametrize("formats", [{}, FORMATS], ids=["one-prompt", "prompt-per-role"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "llama-base-qwen2-pair"])
def test_beams_equal_a_naive_beam_search(name: str, formats: dict[str, str]) -> None:
    """Three beams, all returned, best first, in a padded batch with a strength per row; log-probs of every token."""
    trio = TRIOS[name]()
    texts, alphas = ["w10 w11 w12 w13", "w20"], [1.0, 0.5]
    found = generator_of(trio, **formats).generate(
        texts, num_beams=3, num_return_sequences=3, max_new_tokens=6, ignore_eos=True, logprobs=0, alpha=alphas
    )
    for index, (text, alpha) in enumerate(zip(texts, alphas, strict=True)):
        ids = role_ids(text) if formats else [role_ids(text)[0][:1] + role_ids(text)[0][2:]] * 3
        wanted = reference_of(trio).beams(ids, [alpha], num_beams=3, num_tokens=6)
        rows = found[3 * index : 3 * index + 3]
        assert [row.sequence for row in rows] == [0, 1, 2]
        assert [list(row.token_ids) for row in rows] == [tokens for tokens, _ in wanted]
        require_equal([sum(entry.logprob for entry in row.logprobs) for row in rows], [total for _, total in wanted])
        require_equal(
            [entry.logprob for entry in rows[0].logprobs], reference_of(trio).logprobs(ids, [alpha], wanted[0][0])
        )


def test_beams_find_what_greedy_misses() -> None:
    """On a vocabulary of 8 tokens, as many beams as prefixes find the likeliest text of all 512."""
    trio = tuple(tiny.model("llama", seed, vocab_size=8, scale=0.4) for seed in (11, 12, 13))
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer(["w0", "w1", "w2", "w3"]))
    reference = Reference(trio[0], [trio[1:]], 8)
    ids = [[1, 5, 6]] * 3
    every = [
        (total, [first, second, third])
        for first in range(8)
        for second in range(8)
        for third, total in enumerate(_totals(reference, ids, first, second))
    ]
    best = max(every)
    [found] = generator.generate(ids[0], num_beams=64, max_new_tokens=3, ignore_eos=True, logprobs=0)
    assert list(found.token_ids) == best[1]
    assert sum(entry.logprob for entry in found.logprobs) == pytest.approx(best[0], abs=TOLERANCE)


def _totals(reference: Reference, ids: list[list[int]], first: int, second: int) -> list[float]:
    table = reference.table(ids, [1.0], [first, second, 0])
    return (table[0, first] + table[1, second] + table[2]).tolist()


@pytest.fixture(scope="module")
def two_pairs() -> tuple[Any, Any, Any, Any]:
    """A base, two experts and the anti they share."""
    base, expert, anti = tiny.trio()
    return base, expert, tiny.model("llama", 4), anti


def test_several_pairs_add_their_differences(two_pairs: tuple[Any, Any, Any, Any]) -> None:
    """Two pairs, each with its strength and prompt format, equal the reference; so does a strength per row and pair."""
    base, first, second, anti = two_pairs
    pairs = [Pair(first, anti, 0.7), Pair(second, anti, -0.4, expert_prompt="w1 w2 {prompt}")]
    generator = ProxyGenerator(base, pairs=pairs, tokenizer=tiny.word_tokenizer())
    reference = Reference(base, [(first, anti), (second, anti)], tiny.VOCAB_SIZE)
    text, ids = "w10 w11 w12", [1, 14, 15, 16]
    roles = [ids, ids, ids, [1, 5, 6, *ids[1:]], ids]
    options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    [own] = generator.generate(text, **options)
    assert list(own.token_ids) == reference.greedy(roles, [0.7, -0.4], NUM_TOKENS)
    per_row = [[1.0, 0.0], [0.0, 1.0], [0.5, 2.0]]
    for alphas, row in zip(per_row, generator.generate([text] * 3, alpha=per_row, **options), strict=True):
        assert list(row.token_ids) == reference.greedy(roles, alphas, NUM_TOKENS)


def test_a_shared_anti_is_held_and_run_once(two_pairs: tuple[Any, Any, Any, Any]) -> None:
    """Two pairs over one anti are four roles, not five: its parameters count once, it runs once per step."""
    base, first, second, anti = two_pairs
    generator = ProxyGenerator(base, pairs=[Pair(first, anti), Pair(second, anti)], tokenizer=tiny.word_tokenizer())
    assert [role.name for role in generator.model.roles] == ["base", "expert_1", "anti_1", "expert_2"]
    assert generator.model.pair_roles == [(1, 2), (3, 2)]
    wanted = sum(model.num_parameters() for model in two_pairs)
    assert sum(parameter.numel() for parameter in generator.model.parameters()) == wanted
    calls = []
    handle = anti.register_forward_hook(lambda *_: calls.append(1))
    generator.generate(tiny.prompt_ids(4), max_new_tokens=3, ignore_eos=True)
    handle.remove()
    assert len(calls) == 3


def test_alpha_zero_runs_the_base_alone() -> None:
    """A strength of 0 costs no forward pass of the small models, and needs no finite logits of them."""
    base = tiny.trio()[0]
    broken = [tiny.new_model("llama", seed) for seed in (2, 3)]
    for value, model in zip((float("nan"), float("inf")), broken, strict=True):
        model.lm_head.weight.data.fill_(value)
    generator = ProxyGenerator(base, *broken, tokenizer=tiny.word_tokenizer())
    calls = []
    for model in broken:
        model.register_forward_hook(lambda *_: calls.append(1))
    prompt = tiny.prompt_ids(5)
    wanted = Reference(base, [], tiny.VOCAB_SIZE).greedy([prompt], [], NUM_TOKENS)
    options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    [alone] = generator.generate(prompt, alpha=0, **options)
    assert calls == []
    assert list(alone.token_ids) == wanted
    # Beside a row that is steered they run, and that row alone is refused: the one of strength 0 does not read them.
    with pytest.raises(NonFiniteLogitsError, match="expert are NaN or infinite in row 1 at position 4"):
        generator.generate([prompt, prompt], alpha=[0, 1], **options)
    assert len(calls) > 0


def test_a_padded_tail_is_never_chosen() -> None:
    """Logits beyond the shared ids win in every model and are still cut: greedy, sampled and beams stay below."""
    trio = [tiny.new_model("llama", seed, vocab_size=96, tie_word_embeddings=False) for seed in (1, 2, 3)]
    hidden = trio[0].model.norm.weight.shape[0]
    for model in trio:
        # The final norm's output has length sqrt(D); rows of both signs and this size beat every other.
        model.lm_head.weight.data[tiny.VOCAB_SIZE :] = 50 * torch.randn(32, hidden)
        assert int(model(torch.tensor([[1, 5, 6]])).logits[0, -1].argmax()) >= tiny.VOCAB_SIZE
    generator = ProxyGenerator(*trio, tokenizer=tiny.word_tokenizer())
    assert generator.model.config.vocab_size == tiny.VOCAB_SIZE
    prompt = tiny.prompt_ids(4)
    options: dict[str, Any] = {"max_new_tokens": 10, "ignore_eos": True}
    for chosen in ({}, {"temperature": 1.5, "seed": 3}, {"num_beams": 3}):
        [done] = generator.generate(prompt, **options, **chosen)
        assert max(done.token_ids) < tiny.VOCAB_SIZE
    ids = generator.model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=True)
    assert int(ids.max()) < tiny.VOCAB_SIZE
