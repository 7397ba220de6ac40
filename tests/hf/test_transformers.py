"""The composite as an ordinary transformers model: whatever `generate` can do, it does."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from proxytune import ProxyGenerator
from proxytune.errors import OptionError, RuntimeUnsupportedError, UnknownOptionError
from proxytune.hf.batching import role_prompts
from tests import tiny
from tests.reference import Reference

NUM_TOKENS = 10
ROWS = [tiny.prompt_ids(9, seed=1), tiny.prompt_ids(4, seed=2)]


def composite(architecture: str = "llama") -> Any:
    """Return the composite of the shared trio; no token ends a text."""
    model = tiny.generator(architecture).model
    model.generation_config.eos_token_id = None
    return model


def wanted(rows: Sequence[Sequence[int]], architecture: str = "llama") -> list[list[int]]:
    """Return the reference's greedy continuation of each row."""
    base, expert, anti = tiny.trio(architecture)
    reference = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    return [reference.greedy([row] * 3, [1.0], NUM_TOKENS) for row in rows]


def generated(model: Any, rows: Sequence[Sequence[int]], **settings: Any) -> list[list[int]]:
    """Return what `model.generate` adds to left-padded rows."""
    base, _ = role_prompts([[row] for row in rows], 0, torch.device("cpu"))
    mask = torch.ones_like(base.input_ids) if base.attention_mask is None else base.attention_mask
    ids = model.generate(base.input_ids, attention_mask=mask, max_new_tokens=NUM_TOKENS, **settings)
    return ids[:, base.input_ids.shape[1] :].tolist()


WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "dynamic-by-name": {"cache_implementation": "dynamic"},
    "no-cache": {"use_cache": False},
    "own-cache": {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "neox", "mistral", "gemma2"])
def test_greedy_through_every_cache(architecture: str, way: str) -> None:
    """Dynamic, static, none, or one of the caller's: the reference's tokens, in a left-padded batch."""
    model = composite(architecture)
    settings = {"past_key_values": model.new_cache()} if way == "own-cache" else WAYS[way]
    assert generated(model, ROWS, do_sample=False, **settings) == wanted(ROWS, architecture)


@pytest.mark.parametrize("way", ["static", "dynamic", "no-cache"])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_prompts_per_role_through_every_cache(architecture: str, way: str, num_beams: int) -> None:
    """Roles whose prompts differ in length hold caches of different length; padded rows and beams included."""
    model = composite(architecture)
    rows = [
        [tiny.prompt_ids(5, seed=1), tiny.prompt_ids(12, seed=2), tiny.prompt_ids(3, seed=3)],
        [tiny.prompt_ids(8, seed=4), tiny.prompt_ids(4, seed=5), tiny.prompt_ids(7, seed=6)],
    ]
    base, prompts = role_prompts(rows, 0, torch.device("cpu"))
    ids = model.generate(
        base.input_ids,
        attention_mask=base.attention_mask,
        role_prompts=prompts,
        prompt_length=base.input_ids.shape[1],
        max_new_tokens=6,
        do_sample=False,
        num_beams=num_beams,
        **WAYS[way],
    )
    plain, expert, anti = tiny.trio(architecture)
    reference = Reference(plain, [(expert, anti)], tiny.VOCAB_SIZE)
    for row, found in zip(rows, ids[:, base.input_ids.shape[1] :].tolist(), strict=True):
        assert found == reference.beams(row, [1.0], num_beams, 6)[0][0]


@pytest.mark.parametrize("way", ["dynamic", "static", "no-cache"])
def test_beam_scores(way: str) -> None:
    """`sequences_scores` are the naive beam search's sums over the length, whatever the cache."""
    model = composite()
    base, expert, anti = tiny.trio()
    for row in ROWS:
        out = model.generate(
            torch.tensor([row]),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=5,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **WAYS[way],
        )
        beams = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE).beams([row] * 3, [1.0], 4, 5)
        assert out.sequences[:, len(row) :].tolist() == [tokens for tokens, _ in beams]
        assert out.sequences_scores.tolist() == pytest.approx([total / 5 for _, total in beams], abs=1e-4)


def test_beams_that_end_early_equal_beams_without_a_cache() -> None:
    """With tokens that end beams at different lengths: cached and cache-less, batched and alone, the same."""
    model = composite()
    ends = [int(index) for index in range(10, 26)]
    options: dict[str, Any] = {"num_beams": 4, "do_sample": False, "eos_token_id": ends, "length_penalty": 0.5}
    cached = generated(model, ROWS, **options)
    assert cached == generated(model, ROWS, use_cache=False, **options)
    assert any(ends_early(row, ends) for row in cached)
    for row, found in zip(ROWS, cached, strict=True):
        [alone] = generated(model, [row], **options)
        assert [index for index in found if index != 0][: len(alone)] == [index for index in alone if index != 0]


def ends_early(row: Sequence[int], ends: Sequence[int]) -> bool:
    """Return whether a row has an end before its last place."""
    return any(index in ends for index in row[:-1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "neox", "qwen3", "mistral", "gemma2"])
@pytest.mark.parametrize("helper", ["expert", "base"])
def test_assisted_decoding_is_lossless(architecture: str, helper: str) -> None:
    """Speculation with the expert (or the base) as assistant gives the greedy tokens; the cache is cropped rightly."""
    if architecture in ("mistral", "gemma2") and Version(transformers.__version__) < Version("5.18"):
        pytest.skip("a plain Mistral with an assistant fails alike in transformers 5.17: masks past the window")
    base, expert, _ = tiny.trio(architecture)
    assistant = {"expert": expert, "base": base}[helper]
    for row in ROWS:
        found = generated(composite(architecture), [row], do_sample=False, assistant_model=assistant)
        assert found == wanted([row], architecture)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_assisted_decoding_with_prompts_per_role(architecture: str) -> None:
    """The assistant proposes from the base's prompt, each role checks behind its own: still the greedy tokens."""
    base, expert, anti = tiny.trio(architecture)
    row = [tiny.prompt_ids(5, seed=1), tiny.prompt_ids(12, seed=2), tiny.prompt_ids(3, seed=3)]
    first, prompts = role_prompts([row], 0, torch.device("cpu"))
    ids = composite(architecture).generate(
        first.input_ids,
        role_prompts=prompts,
        prompt_length=5,
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        assistant_model=expert,
    )
    reference = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    assert ids[0, 5:].tolist() == reference.greedy(row, [1.0], NUM_TOKENS)


def test_prompt_lookup_is_lossless() -> None:
    """Speculation from the prompt's own n-grams too."""
    row = tiny.prompt_ids(4) * 3
    assert generated(composite(), [row], do_sample=False, prompt_lookup_num_tokens=3) == wanted([row])


def test_assistant_proposals_are_taken() -> None:
    """With α = 0 the base as assistant is always right, so the composite runs fewer passes than tokens."""
    model = composite()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = generated(
        model, ROWS[:1], do_sample=False, alpha=0.0, assistant_model=tiny.new_model("llama", 1, hidden_size=48)
    )
    handle.remove()
    assert len(found[0]) == NUM_TOKENS
    assert len(calls) < NUM_TOKENS


def test_sampling_is_of_the_combined_distribution() -> None:
    """Transformers' own sampling draws the same with a cache and without, from one seed."""
    draws = []
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        torch.manual_seed(5)
        draws.append(generated(composite(), ROWS, do_sample=True, temperature=1.3, top_k=20, **settings))
    assert draws[0] == draws[1] == draws[2]
    assert draws[0] != wanted(ROWS)


def test_several_sequences() -> None:
    """num_return_sequences repeats rows and prompts of roles."""
    torch.manual_seed(0)
    found = generated(composite(), ROWS, do_sample=True, num_return_sequences=3)
    assert len(found) == 6
    assert len({tuple(row) for row in found}) == 6


def test_alpha_as_an_argument_of_generate() -> None:
    """A strength per row travels through generate, beams included."""
    base, expert, anti = tiny.trio()
    reference = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    found = generated(composite(), ROWS, do_sample=False, alpha=torch.tensor([0.0, 2.0]))
    assert found == [
        reference.greedy([row] * 3, [alpha], NUM_TOKENS) for row, alpha in zip(ROWS, (0.0, 2.0), strict=True)
    ]
    beams = generated(composite(), ROWS, do_sample=False, num_beams=2, alpha=torch.tensor([0.0, 2.0]))
    for row, alpha, tokens in zip(ROWS, (0.0, 2.0), beams, strict=True):
        assert tokens == reference.beams([row] * 3, [alpha], 2, NUM_TOKENS)[0][0]


class Ban(LogitsProcessor):
    """Forbids odd ids."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return scores without them."""
        scores = scores.clone()
        scores[:, 1::2] = -torch.inf
        return scores


def test_custom_logits_processor_and_stopping_criteria() -> None:
    """A user's processor changes the combined logits, a user's criterion ends the text."""
    found = generated(composite(), ROWS, do_sample=False, logits_processor=LogitsProcessorList([Ban()]))
    assert all(index % 2 == 0 for row in found for index in row)

    class AtLength(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 13)

    criteria = StoppingCriteriaList([AtLength(), MaxLengthCriteria(100)])
    assert [len(row) for row in generated(composite(), ROWS, do_sample=False, stopping_criteria=criteria)] == [4, 4]


def test_text_streamer(capsys: pytest.CaptureFixture[str]) -> None:
    """Transformers' TextStreamer prints the text of the greedy tokens."""
    tokenizer = tiny.word_tokenizer()
    generated(composite(), ROWS[:1], do_sample=False, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.split() == tokenizer.decode(wanted(ROWS[:1])[0]).split()


def test_continuing_a_filled_cache() -> None:
    """A second call behind the first one's cache goes on where it stopped."""
    model = composite()
    first = model.generate(torch.tensor(ROWS[:1]), max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    second = model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=6, do_sample=False)
    assert second[0, len(ROWS[0]) :].tolist() == wanted(ROWS[:1])[0]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_forward_step_by_step_with_a_cache(architecture: str) -> None:
    """Logits of single steps behind `new_cache()` equal those of one pass, padding included."""
    model = composite(architecture)
    base, _ = role_prompts([[row] for row in ROWS], 0, torch.device("cpu"))
    with torch.no_grad():
        whole = model(base.input_ids, attention_mask=base.attention_mask).logits
        cache = model.new_cache()
        steps = [
            model(
                base.input_ids[:, [place]], attention_mask=base.attention_mask[:, : place + 1], past_key_values=cache
            ).logits
            for place in range(base.input_ids.shape[1])
        ]
    real = base.attention_mask.bool()
    assert torch.allclose(torch.cat(steps, 1).log_softmax(-1)[real], whole.log_softmax(-1)[real], atol=2e-4)


def test_logits_to_keep() -> None:
    """A number keeps the last positions, a tensor the listed ones, 0 all."""
    model, ids = composite(), torch.tensor(ROWS[:1])
    with torch.no_grad():
        whole = model(ids).logits
        assert torch.allclose(model(ids, logits_to_keep=3).logits, whole[:, -3:], atol=1e-5)
        assert torch.allclose(model(ids, logits_to_keep=torch.tensor([0, 4])).logits, whole[:, [0, 4]], atol=1e-5)
        assert whole.shape == (1, 9, tiny.VOCAB_SIZE)


def test_labels_give_the_mean_loss() -> None:
    """The loss is the mean negative log-probability of the next tokens; −100 is left out."""
    model, ids = composite(), torch.tensor(ROWS[:1])
    labels = ids.clone()
    labels[0, :4] = -100
    base, expert, anti = tiny.trio()
    reference = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    logprobs = reference.logprobs([ROWS[0][:4]] * 3, [1.0], ROWS[0][4:])
    with torch.no_grad():
        assert model(ids, labels=labels).loss.item() == pytest.approx(-sum(logprobs) / 5, abs=1e-4)


@pytest.mark.parametrize("make", [lambda config: DynamicCache(config=config), lambda config: StaticCache(config, 32)])
def test_a_cache_of_a_single_model_is_refused(make: Any) -> None:
    """It has no room for the other roles: the error says what to pass, in generate and forward."""
    model, ids = composite(), torch.tensor(ROWS[:1])
    for call in (model, model.generate):
        with pytest.raises(RuntimeUnsupportedError, match=r"pass model.new_cache\(\)"):
            call(ids, past_key_values=make(model.base.config))


def test_what_several_models_cannot_share_is_refused() -> None:
    """Embeddings, hidden states, attentions, chunked prefill and unknown caches, each with its way out."""
    model, ids = composite(), torch.tensor(ROWS[:1])
    with pytest.raises(RuntimeUnsupportedError, match="inputs_embeds cannot be shared"):
        model(inputs_embeds=torch.zeros(1, 3, 48))
    with pytest.raises((RuntimeUnsupportedError, ValueError), match="inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 48), max_new_tokens=1)
    for name in ("output_hidden_states", "output_attentions"):
        with pytest.raises(RuntimeUnsupportedError, match=f"{name} is per role"):
            model(ids, **{name: True})
    with pytest.raises(RuntimeUnsupportedError, match="prefill_chunk_size"):
        model.generate(ids, prefill_chunk_size=2, max_new_tokens=1)
    with pytest.raises(RuntimeUnsupportedError, match="cache_implementation='quantized' is not supported here"):
        model.generate(ids, cache_implementation="quantized", max_new_tokens=1)
    with pytest.raises(OptionError, match="forward needs input_ids"):
        model()
    with pytest.raises(OptionError, match=r"alpha lists 2 numbers for 1 pair\(s\)"):
        model(ids, alpha=[1.0, 2.0])


def test_a_misspelt_argument_of_generate_is_refused() -> None:
    """Transformers' own check of arguments still works."""
    with pytest.raises(ValueError, match="alhpa"):
        composite().generate(torch.tensor(ROWS[:1]), alhpa=1.0)


def test_the_roles_are_in_evaluation_mode_and_counted() -> None:
    """The composite is an ordinary module: its parameters are its roles', and it counts its layers."""
    model = ProxyGenerator(*tiny.trio(), tokenizer=tiny.word_tokenizer()).model
    assert not any(module.training for module in model.modules())
    assert model.num_parameters() == sum(role.num_parameters() for role in tiny.trio())
    assert model.config.num_hidden_layers == 6
    assert model.config.max_position_embeddings == 128


@pytest.mark.parametrize("way", ["dynamic", "static", "no-cache"])
def test_beams_where_the_small_models_do_not_run(way: str) -> None:
    """With α = 0 their caches stay empty, and reordering beams does not mind."""
    base = tiny.trio()[0]
    found = generated(composite(), ROWS, do_sample=False, num_beams=3, alpha=0.0, **WAYS[way])
    for row, tokens in zip(ROWS, found, strict=True):
        assert tokens == Reference(base, [], tiny.VOCAB_SIZE).beams([row], [], 3, NUM_TOKENS)[0][0]


def test_a_cache_filled_by_the_base_alone_goes_on_steered() -> None:
    """Continued with another strength, each role reads what its own part of the cache lacks."""
    model, row = composite(), ROWS[0]
    first = model.generate(
        torch.tensor([row]), max_new_tokens=4, do_sample=False, alpha=0.0, return_dict_in_generate=True
    )
    second = model.generate(
        first.sequences, past_key_values=first.past_key_values, max_new_tokens=6, do_sample=False, alpha=1.0
    )
    base, expert, anti = tiny.trio()
    reference = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    longer = first.sequences[0].tolist()
    assert second[0, len(longer) :].tolist() == reference.greedy([longer] * 3, [1.0], 6)


def test_pipeline() -> None:
    """Transformers' text-generation pipeline takes the composite as any causal LM, in padded batches too."""
    from transformers import pipeline

    tokenizer = tiny.word_tokenizer()
    tokenizer.padding_side = "left"
    model = composite()
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=2)
    texts = ["w1 w2 w3 w4 w5", "w9"]
    found = pipe(texts, max_new_tokens=NUM_TOKENS, do_sample=False, return_tensors=True)
    rows = [[1, 5, 6, 7, 8, 9], [1, 13]]
    for tokens, row in zip(wanted(rows), found, strict=True):
        assert row[0]["generated_token_ids"][-NUM_TOKENS:] == tokens


def test_forward_takes_no_argument_it_would_ignore() -> None:
    """Positions cannot be handed in, so they are refused rather than dropped; what tokenizers add does no harm."""
    model = composite("llama")
    ids = torch.tensor([[1, 5, 6]])
    with pytest.raises(UnknownOptionError, match="position_ids"):
        model(ids, position_ids=torch.tensor([[4, 5, 6]]))
    assert torch.equal(model(ids, token_type_ids=torch.zeros_like(ids)).logits, model(ids).logits)


def test_return_dict() -> None:
    """False gives a tuple as every model of transformers does, from the argument or the config; the loss is first."""
    model, ids = composite(), torch.tensor(ROWS[:1])
    output = model(ids, labels=ids, use_cache=False)
    loss, logits = model(ids, labels=ids, use_cache=False, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    model.config.return_dict = False
    assert isinstance(model(ids), tuple)
    assert model(ids, return_dict=True).logits is not None


def test_a_cache_is_made_unless_told_not_to() -> None:
    """As any causal LM does; what it holds continues the text as if all of it were read again."""
    model, ids = composite(), torch.tensor(ROWS[:1])
    output = model(ids[:, :-1])
    assert model(ids, use_cache=False).past_key_values is None
    behind = model(ids[:, -1:], past_key_values=output.past_key_values).logits
    assert torch.allclose(behind[:, -1], model(ids).logits[:, -1], atol=1e-4)
