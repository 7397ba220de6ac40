"""Tuning against a base: the loss, its gradient, and runs that use it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import neft
from neft.data import Example, PackingCollator, PaddingCollator
from neft.errors import InputError, OutputError
from neft.steered_loss import SteeredLoss, num_shared_ids
from proxytune import ProxyGenerator

from .conftest import WORDS, copy_rows, make_model, make_tokenizer, write_rows

NUM_IDS = len(WORDS) + 4
EXAMPLES = [Example(list(range(4, 4 + n)), [-100, -100, *range(6, 4 + n)]) for n in (3, 7, 5)]
BATCH = PaddingCollator(pad_id=0)(EXAMPLES)


def _steered(expert, alpha=1.0, **options):
    base, anti = make_model(7, dim=32, num_padded=4), make_model(8)
    return SteeredLoss(base, anti, expert, alpha=alpha, num_ids=NUM_IDS, **options)


def _gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_gradient_is_that_of_the_sum_written_out(model):
    """Loss and gradient equal five plain lines over all positions and α = 0.7; base and anti get no gradient."""
    loss = _steered(model, 0.7)
    loss(model, BATCH).backward()
    found = _gradients(model)
    model.zero_grad()
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        base, anti = (role(**inputs).logits[..., :NUM_IDS] for role in (loss.base, loss.anti))
    combined = base + 0.7 * (model(**inputs).logits - anti)
    expected = cross_entropy(combined[:, :-1].flatten(0, 1), BATCH["labels"][:, 1:].flatten(), ignore_index=-100)
    expected.backward()
    assert loss(model, BATCH).item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(found, _gradients(model), atol=1e-7, rtol=1e-5)
    assert not any(p.requires_grad for role in loss.frozen_models for p in role.parameters())


def test_alpha_zero_has_no_gradient(model):
    """At α = 0 the loss is the base's own, and nothing is learned."""
    loss = _steered(model, 0.0)
    value = loss(model, BATCH)
    value.backward()
    assert all(gradient is None or not gradient.any() for gradient in _gradients(model).values())
    rows = loss.base(**{**BATCH, "labels": None}).logits[:, :-1, :NUM_IDS].flatten(0, 1)
    own = cross_entropy(rows, BATCH["labels"][:, 1:].flatten(), ignore_index=-100)
    assert value.item() == pytest.approx(own.item(), abs=1e-6)


def test_an_untuned_expert_leaves_the_base(model):
    """With M⁺ equal to M⁻ the loss is the base's, whatever α."""
    values = {alpha: _steered(make_model(8), alpha) for alpha in (0.0, 1.0, 3.0)}
    losses = {loss(loss.tuned, BATCH).item() for loss in values.values()}
    assert len(losses) == 1


def test_packed_rows_have_the_loss_of_padded_ones(model):
    """Documents in one window give the loss they have alone, and padding above the shared ids reaches no model."""
    loss = _steered(model)
    model.eval()
    packed = PackingCollator(pad_id=0)([tuple(EXAMPLES)])
    expected = loss(model, BATCH).item()
    assert loss(model, packed).item() == pytest.approx(expected, abs=1e-5)
    wide = make_model(0, num_padded=4).eval()
    padded = PaddingCollator(pad_id=NUM_IDS + 3)(EXAMPLES)
    assert loss(wide, padded).item() == pytest.approx(loss(wide, BATCH).item(), abs=1e-6)


def test_frozen_models_compute_as_the_run_does(model):
    """In a bf16 run M and M⁻ give bfloat16 logits, which are added in float32."""
    loss = _steered(model, mixed_precision="bf16")
    types = []
    for role in loss.frozen_models:
        role.register_forward_hook(lambda module, args, output: types.append(output.logits.dtype))
    assert loss(model, BATCH).dtype == torch.float32
    assert types == [torch.bfloat16, torch.bfloat16]


@pytest.fixture
def make_config(model_folder, base_folder, data_file, tmp_path):
    """Builds configurations of eight steps against the base."""
    held_out = write_rows(tmp_path / "held_out.jsonl", copy_rows(9, seed=9))

    def make(name, **options):
        defaults = {"max_steps": 8, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 4, "show_progress": False}
        files = {"model": str(model_folder), "data": data_file, "output": tmp_path / name, "eval_data": held_out}
        return neft.TrainingConfig(**{**files, "base": str(base_folder), **defaults, **options})

    return make


def _weights(folder):
    names = ("model.safetensors", "adapter_model.safetensors")
    return load_file(next(folder / name for name in names if (folder / name).exists()))


def _are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_held_out_loss_is_that_of_the_composite(make_config, model_folder, base_folder, tmp_path):
    """What neft reports is what proxytune's composite of the same three folders gives the held-out rows, at α = 2."""
    result = neft.train(make_config("out", steering_alpha=2.0))
    rows = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    tokenizer = make_tokenizer()
    generator = ProxyGenerator(base=base_folder, expert=tmp_path / "out", anti=model_folder, alpha=2.0)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    completions = [[*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id] for row in rows]
    scores = generator.score(prompts, completions)
    nats = -sum(score.total for score in scores) / sum(len(score.logprobs) for score in scores)
    assert result.eval_loss == pytest.approx(nats, abs=1e-5)
    record = json.loads((tmp_path / "out" / "neft.json").read_text())["config"]
    assert record["base"] == str(base_folder)
    assert record["anti"] == str(model_folder)
    assert record["steering_alpha"] == 2.0


def test_the_steered_loss_falls(make_config):
    """Sixty steps, with noise, bring the held-out loss of the sum far below the base's own; the best is kept."""
    config = make_config("out", alpha=0.5, max_steps=60, eval_every=10, early_stopping_patience=3)
    result = neft.train(config)
    losses = [loss for _, loss in result.evaluations]
    assert result.eval_loss == min(losses)
    assert result.eval_loss < losses[0] - 0.3


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"use_dora": True}], ids=["lora", "packed", "dora"])
def test_an_adapter_taken_off_is_the_anti(make_config, model_folder, tmp_path, options):
    """LoRA over M⁻ trains the very weights that LoRA beside a copy of M⁻ does, noise and dropout on."""
    shutil.copytree(model_folder, tmp_path / "copy")
    options = {"lora_r": 2, "lora_dropout": 0.2, **options}
    shared = neft.train(make_config("shared", **options))
    copied = neft.train(make_config("copied", anti=str(tmp_path / "copy"), **options))
    assert _are_equal(_weights(tmp_path / "shared"), _weights(tmp_path / "copied"))
    assert shared.evaluations == copied.evaluations
    plain = neft.train(make_config("plain", base=None, **options))
    assert plain.evaluations != shared.evaluations


def test_accumulated_passes_are_one_batch(make_config, tmp_path):
    """Two passes of two rows per step train as one of four: the loss is divided by the step's tokens."""
    whole = neft.train(make_config("whole", alpha=0.0))
    parts = neft.train(make_config("parts", alpha=0.0, batch_size=2, gradient_accumulation=2))
    assert parts.train_loss == pytest.approx(whole.train_loss, abs=1e-4)
    torch.testing.assert_close(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"), atol=2e-4, rtol=1e-3)


def test_the_base_in_the_held_out_loss_only(make_config, tmp_path):
    """`eval_with_base` trains the weights of a run without a base, and evaluates with it."""
    plain = neft.train(make_config("plain", base=None))
    chosen = neft.train(make_config("chosen", eval_with_base=True))
    neft.train(make_config("steered"))
    assert _are_equal(_weights(tmp_path / "plain"), _weights(tmp_path / "chosen"))
    assert not _are_equal(_weights(tmp_path / "plain"), _weights(tmp_path / "steered"))
    assert chosen.eval_loss != plain.eval_loss
    assert chosen.train_loss == plain.train_loss


def test_another_base_is_another_run(make_config, base_folder, tmp_path):
    """A finished run counts as done for its base only, and the base itself is never replaced."""
    neft.train(make_config("out", max_steps=1))
    shutil.copytree(base_folder, tmp_path / "other")
    with pytest.raises(OutputError, match="already holds something else"):
        neft.train(make_config("out", max_steps=1, base=str(tmp_path / "other")))
    with pytest.raises(OutputError, match=r"would replace .*other"):
        neft.train(make_config("other", base=str(tmp_path / "other"), overwrite=True))


def test_a_base_of_other_tokens_is_refused(make_config, base_folder, tmp_path):
    """The sentence names the role and the id; a base without a tokenizer is refused too."""
    shutil.copytree(base_folder, tmp_path / "other")
    text = (tmp_path / "other" / "tokenizer.json").read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(text.replace('"w39"', '"zebra"'))
    with pytest.raises(InputError, match=r"model and base do not share token ids \(id 43 is 'zebra' in base and 'w39'"):
        neft.train(make_config("out", base=str(tmp_path / "other")))
    AutoModelForCausalLM.from_pretrained(base_folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match=r"no tokenizer can be loaded from .*bare"):
        neft.train(make_config("out", base=str(tmp_path / "bare")))


def test_a_row_with_a_token_of_one_model_is_refused(model, base_folder):
    """An id at or above the shared ones is named."""
    with pytest.raises(InputError, match="token id 10, and base, model and anti share only the ids below 10"):
        SteeredLoss(model, None, model, alpha=1.0, num_ids=10).require_shared_ids([Example([4, 10], [-100, 10])])


def test_shared_ids():
    """The shortest tokenizer or logits decide; a token that moved or an id of two tokens is named."""
    small, large = {"a": 0, "b": 1}, {"a": 0, "b": 1, "<pad>": 2}
    assert num_shared_ids({"model": large, "base": small}, [8, 4]) == 2
    assert num_shared_ids({"model": large, "base": large}, [8, 2]) == 2
    for other in ({"a": 0, "c": 1}, {"a": 1, "b": 0}, {"a": 0, "b": 2}):
        with pytest.raises(InputError, match="model and base do not share token ids"):
            num_shared_ids({"model": large, "base": other}, [8, 8])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"base": None, "anti": "x"}, "anti is an option of tuning against a base; add base"),
        ({"base": None, "steering_alpha": 1.0}, "steering_alpha is an option of tuning against a base"),
        ({"base": None, "eval_with_base": True}, "eval_with_base is an option of tuning against a base"),
        ({"eval_data": None, "eval_every": None, "eval_with_base": True}, "eval_with_base needs held-out rows"),
        ({"steering_alpha": 0.0}, "steering_alpha is 0.0; give more than 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(make_config, options, complaint):
    """Each sentence names the option and the way out."""
    with pytest.raises(InputError, match=complaint):
        make_config("out", **options)
