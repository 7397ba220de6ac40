"""The noise on real models: where it goes, when, and that nothing is left."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

import neft
from neft.errors import NoiseError
from neft.noising import input_embedding
from neft.rule import document_ids

from .conftest import DIM

IDS = torch.arange(4, 16).reshape(2, 6)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]])


def _embedded(model, **inputs):
    """Returns what the input embedding hands on in one forward pass, and what it holds for the ids."""
    embedding = input_embedding(model)
    seen = []
    watch = embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        model(**inputs)
    finally:
        watch.remove()
    clean = torch.nn.functional.embedding(inputs["input_ids"], next(embedding.parameters()))
    return seen[0].detach(), clean.detach()


def _reference(handle, documents, dim=DIM):
    """The noise of pass 0 of a handle's step, by the rule and a second handle of the same seeds."""
    twin = neft.NoiseHandle(alpha=handle.alpha, kind=handle.kind, seed=handle.seed, rank=handle.rank)
    twin.step = handle.step
    zeros = torch.zeros(*documents.shape, dim)
    return twin.apply(zeros, documents)


@pytest.mark.parametrize(
    ("inputs", "lengths"),
    [
        ({}, [[6] * 6, [6] * 6]),
        ({"attention_mask": MASK}, [[6] * 6, [3, 3, 3, 0, 0, 0]]),
        ({"position_ids": POSITIONS}, [[3, 3, 3, 2, 2, 1], [4, 4, 4, 4, 2, 2]]),
    ],
    ids=["plain", "padded", "packed"],
)
@pytest.mark.parametrize("wrap", ["full", "peft", "backbone"])
def test_noise_of_every_document_on_a_model(model, inputs, lengths, wrap):
    """Plain, padded and packed, in full, PEFT and bare models: the embedding moves by the hand-scaled draw."""
    if wrap == "peft":
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).train()
    elif wrap == "backbone":
        model = model.model
    with neft.noise(model, alpha=5.0, seed=3) as handle:
        noisy, clean = _embedded(model, input_ids=IDS, **inputs)
    # The same draw for rows of one document each, scaled back to U(-1, 1).
    unit = _reference(handle, torch.zeros(2, 6, dtype=torch.int64)) * math.sqrt(6 * DIM) / 5
    scale = torch.tensor([[5 / math.sqrt(n * DIM) if n else 0.0 for n in row] for row in lengths])
    torch.testing.assert_close(noisy, clean + unit * scale.unsqueeze(-1))


def test_positional_arguments_are_seen(model):
    """A mask given by place, not by name, counts the same."""
    with neft.noise(model, seed=1) as handle:
        embedding = model.get_input_embeddings()
        seen = []
        watch = embedding.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
        model(IDS, MASK)
        watch.remove()
    clean = embedding(IDS).detach()
    documents = document_ids((2, 6), attention_mask=MASK)
    torch.testing.assert_close(seen[0], clean + _reference(handle, documents))


def test_attached_to_the_model_inside_peft(model):
    """PEFT calls the inner model's forward past its hooks; noise attached to that inner model is still per length."""
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).train()
    with neft.noise(adapted.get_base_model(), seed=6) as handle:
        noisy, clean = _embedded(adapted, input_ids=IDS, attention_mask=MASK)
    torch.testing.assert_close(noisy, clean + _reference(handle, document_ids((2, 6), attention_mask=MASK)))


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_other_families(family):
    """OPT (embedding one module deeper) and GPT-2 get the noise of the padded rows."""
    if family == "opt":
        sizes = {"hidden_size": DIM, "ffn_dim": 32, "word_embed_proj_dim": DIM}
        config = OPTConfig(vocab_size=44, num_hidden_layers=1, num_attention_heads=2, **sizes)
        model = OPTForCausalLM(config).train()
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=44, n_embd=DIM, n_layer=1, n_head=2)).train()
    with neft.noise(model, seed=2) as handle:
        noisy, clean = _embedded(model, input_ids=IDS, attention_mask=MASK)
    documents = document_ids((2, 6), attention_mask=MASK)
    torch.testing.assert_close(noisy, clean + _reference(handle, documents))


def test_evaluation_mode_is_exact(model):
    """In eval mode the logits are bit-equal to those without noise, inside the block too."""
    model.eval()
    plain = model(input_ids=IDS).logits
    with neft.noise(model) as handle:
        assert torch.equal(model(input_ids=IDS).logits, plain)
    assert handle.num_passes == 0


def test_alpha_zero_is_exact_in_training_mode(model):
    """alpha=0 leaves the logits bit-equal."""
    plain = model(input_ids=IDS).logits
    with neft.noise(model, alpha=0.0):
        assert torch.equal(model(input_ids=IDS).logits, plain)


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_interruption(model, interruption):
    """After an exception or Ctrl-C no hook is on any module and the model can take noise again."""
    plain = model(input_ids=IDS).logits

    def interrupted():
        with neft.noise(model):
            model(input_ids=IDS)
            raise interruption

    with pytest.raises(interruption):
        interrupted()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(input_ids=IDS).logits, plain)
    with neft.noise(model):
        model(input_ids=IDS)


def test_a_failed_pass_leaves_no_lengths_behind(model):
    """After a forward pass that raised, the next pass without a mask is not given the old mask."""
    with neft.noise(model, seed=4) as handle:
        with pytest.raises(IndexError):
            model(input_ids=torch.full((2, 6), 999), attention_mask=MASK)
        handle.step = 0
        noisy, clean = _embedded(model, input_ids=IDS)
    torch.testing.assert_close(noisy, clean + _reference(handle, torch.zeros(2, 6, dtype=torch.int64)))


def test_a_second_attachment_is_refused_and_changes_nothing(model):
    """Attaching twice raises, through the backbone too, and the first noise goes on."""
    with neft.noise(model) as handle:
        for target in (model, model.model):
            with pytest.raises(NoiseError, match="already attached"), neft.noise(target):
                pass
        model(input_ids=IDS)
    assert handle.num_passes == 1


def test_the_library_noise_is_refused(model):
    """A model on which transformers' neftune_noise_alpha is active is refused."""
    model.get_input_embeddings().neftune_noise_alpha = 5.0
    with pytest.raises(NoiseError, match="neftune_noise_alpha"), neft.noise(model):
        pass


def test_models_that_cannot_take_noise():
    """No input embedding, and an encoder-decoder, are errors that say so."""
    with pytest.raises(NoiseError, match="Linear has no input embedding"), neft.noise(torch.nn.Linear(2, 2)):
        pass
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=16, **sizes))
    with pytest.raises(NoiseError, match="encoder-decoder"), neft.noise(t5):
        pass


def test_lengths_that_cannot_be_known_are_refused(model):
    """A four-dimensional mask alone, or the embedding called by itself, raise instead of guessing a length."""
    with neft.noise(model):
        with pytest.raises(NoiseError, match="position_ids"):
            model(input_ids=IDS, attention_mask=torch.zeros(2, 1, 6, 6))
        with pytest.raises(NoiseError, match="outside of the model"):
            model.get_input_embeddings()(IDS)


def test_seed_rank_step_and_pass_each_change_the_noise(model):
    """Every draw of (seed, rank, step, pass) differs from the others, and the same four give the same."""

    def draws(seed=0, rank=0, step=0, passes=1):
        with neft.noise(model, seed=seed, rank=rank) as handle:
            handle.step = step
            return [_embedded(model, input_ids=IDS)[0] for _ in range(passes)]

    first, second = draws(passes=2)
    different = [first, second, *draws(seed=1), *draws(rank=1), *draws(step=1)]
    for index, one in enumerate(different):
        assert not any(torch.equal(one, other) for other in different[index + 1 :])
    assert torch.equal(draws(step=1)[0], different[-1])
    assert torch.equal(draws()[0], first)


def test_global_random_state_is_not_touched(model):
    """Drawing noise leaves torch's global generator as it was, so dropout and data order are those of a plain run."""
    before = torch.get_rng_state()
    with neft.noise(model):
        model(input_ids=IDS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_sees_the_same_noise(model, use_reentrant):
    """Gradients under checkpointing equal those without, and the embedding is passed once."""

    def gradients():
        model.zero_grad()
        with neft.noise(model, seed=5) as handle:
            model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        assert handle.num_passes == 1
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_bf16_model_stays_bf16(model):
    """A bf16 model trains under noise: the embedding's output keeps its type and gradients are finite."""
    model = model.bfloat16()
    with neft.noise(model):
        noisy, _ = _embedded(model, input_ids=IDS)
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert noisy.dtype == torch.bfloat16
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_checkpoint_around_the_whole_model_sees_the_same_noise(model):
    """Recomputing the whole model in backward gives the gradients of a run without it; two open passes are refused."""
    from torch.utils.checkpoint import checkpoint

    def loss(ids):
        return model(input_ids=ids, attention_mask=MASK, labels=ids).loss

    def gradients(forward):
        model.zero_grad()
        with neft.noise(model, seed=5) as handle:
            for ids in (IDS, IDS + 3):
                forward(ids).backward()
        assert handle.num_passes == 2
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients(loss)
    for one, other in zip(plain, gradients(lambda ids: checkpoint(loss, ids, use_reentrant=False)), strict=True):
        torch.testing.assert_close(one, other)
    with neft.noise(model):
        both = sum(checkpoint(loss, ids, use_reentrant=False) for ids in (IDS, IDS + 3))
        with pytest.raises(NoiseError, match="one of 2 passes"):
            both.backward()


def test_bf16_autocast(model):
    """Under autocast the float32 embedding gets float32 noise, and the logits are near those without autocast."""
    with neft.noise(model, seed=2) as handle:
        plain = model(input_ids=IDS).logits
        handle.step = 0
        with torch.autocast("cpu", torch.bfloat16):
            noisy, clean = _embedded(model, input_ids=IDS)
            handle.step = 0
            logits = model(input_ids=IDS).logits
    assert noisy.dtype == torch.float32
    torch.testing.assert_close(noisy, clean + _reference(handle, torch.zeros(2, 6, dtype=torch.int64)))
    torch.testing.assert_close(logits.float(), plain, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("is_compiled_first", [False, True])
def test_a_compiled_model_gets_the_noise_of_an_eager_one(model, is_compiled_first):
    """Compiled steps have the loss and gradients of eager ones, noise on or off, in at most three graphs."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)

    def steps(network):
        results = []
        for _ in range(2):
            model.zero_grad()
            loss = network(input_ids=IDS, attention_mask=MASK, labels=IDS).loss
            loss.backward()
            results.append((loss.detach(), model.get_input_embeddings().weight.grad.clone()))
        return results

    def noisy_steps(network):
        with neft.noise(model, seed=1) as handle:
            results = steps(network)
        assert handle.num_passes == 2
        return results

    if is_compiled_first:
        torch.testing.assert_close(steps(compiled), steps(model))
    num_graphs = counter.frame_count
    expected = noisy_steps(model)
    torch.testing.assert_close(noisy_steps(compiled), expected)
    assert counter.frame_count - num_graphs <= 3
    assert not torch.equal(expected[0][0], expected[1][0])
    torch.testing.assert_close(steps(compiled), steps(model))


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "gaussian-l2"])
@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_alpha_rel_fixes_the_ratio_for_every_document(kind, ratio):
    """Noise over embedding weights is the ratio, for long and short documents, every width and distribution."""
    from transformers import LlamaConfig, LlamaModel

    for width in (64, 256):
        sizes = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        backbone = LlamaModel(LlamaConfig(vocab_size=100, **sizes)).train()
        backbone.embed_tokens.weight.data.mul_(3.0)
        sigma = backbone.embed_tokens.weight.std()
        mask = torch.ones(2, 90, dtype=torch.int64)
        mask[1, 40:] = 0
        with neft.noise(backbone, alpha_rel=ratio, kind=kind):
            noisy, clean = _embedded(backbone, input_ids=torch.arange(180).reshape(2, 90) % 100, attention_mask=mask)
        for drawn in ((noisy - clean)[0], (noisy - clean)[1, :40]):
            assert (drawn.square().mean().sqrt() / sigma).item() == pytest.approx(ratio, rel=0.05)
        assert torch.equal(noisy[1, 40:], clean[1, 40:])


def test_alpha_rel_counts_a_scaled_embedding():
    """Where the embedding multiplies by √d (Gemma), the ratio is to what comes out."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    gemma = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=50, num_key_value_heads=1, head_dim=8, **sizes)).train()
    outputs = []
    watch = gemma.get_input_embeddings().register_forward_hook(lambda module, args, output: outputs.append(output))
    ids = torch.arange(200).reshape(2, 100) % 50
    with torch.no_grad():
        gemma.get_input_embeddings()(ids)
    watch.remove()
    with neft.noise(gemma, alpha_rel=0.2):
        embedding = gemma.get_input_embeddings()
        watch = embedding.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
        gemma(input_ids=ids)
        watch.remove()
    clean, noisy = outputs
    ratio = (noisy - clean).square().mean().sqrt() / clean.square().mean().sqrt()
    assert ratio.item() == pytest.approx(0.2, rel=0.1)


def test_a_strength_is_given_once(model):
    """Alpha and alpha_rel together, or a ratio that is no number, are errors; neither means alpha=5."""
    for options, complaint in (
        ({"alpha": 5.0, "alpha_rel": 0.1}, "both set the strength"),
        ({"alpha_rel": -0.1}, "alpha_rel is -0.1"),
        ({"alpha_rel": math.nan}, "alpha_rel is nan"),
    ):
        with pytest.raises(neft.InputError, match=complaint), neft.noise(model, **options):
            pass
    with neft.noise(model) as handle:
        assert handle.alpha == 5.0
    plain = model(input_ids=IDS).logits
    with neft.noise(model, alpha_rel=0.0):
        assert torch.equal(model(input_ids=IDS).logits, plain)
