"""The check on the actual model: it sees noise that is there, and noise that is wrong."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from neft.data import Example, PaddingCollator
from neft.errors import NoiseError
from neft.inspecting.live import check_live, embedding_scale
from neft.noising import noise
from tests.neft.conftest import make_model

BATCH = PaddingCollator(pad_id=0)([Example(list(range(4, 4 + n)), list(range(4, 4 + n))) for n in (20, 9, 3)])


def _gemma():
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=32,
            sliding_window=16,
        )
    )


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "gaussian-l2"])
def test_a_plain_model_passes(model, kind):
    """On in training, off in evaluation, fresh, padding clean, detached, and the measured α is the wanted one."""
    found = check_live(model, BATCH, alpha=5.0, kind=kind)
    assert found.is_right
    assert found.measured_alpha == pytest.approx(5.0, rel=0.1)
    assert found.logit_shift > 0


def test_modes_weights_and_random_numbers_stay(model):
    """The check leaves the modes of all modules, the weights, the hooks and torch's generator as they were."""
    model.eval()
    model.model.layers[0].train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    check_live(model, BATCH, alpha=5.0)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_adapter_with_dropout_passes():
    """Dropout draws the same in every pass, so that it is not taken for noise."""
    model = get_peft_model(make_model(), LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert check_live(model, BATCH, alpha=5.0).is_right


def test_noise_that_is_never_off_is_seen(model):
    """A model that noises its own embeddings in evaluation too, as a hook left behind does, does not pass."""
    embedding = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    embedding.register_forward_hook(
        lambda module, args, output: output + torch.randn(output.shape, generator=generator)
    )
    found = check_live(model, BATCH, alpha=5.0)
    assert not found.is_off_in_evaluation
    assert not found.is_detached
    assert not found.is_padding_clean
    assert not found.is_right


def test_noise_that_is_never_on_is_seen(model):
    """An embedding that stays in evaluation mode gets no noise, and the check says why."""
    embedding = model.get_input_embeddings()
    embedding.train = lambda mode=True: embedding
    embedding.training = False
    with pytest.raises(NoiseError, match="the input embedding is in evaluation mode"):
        check_live(model, BATCH, alpha=5.0)


def test_a_second_noise_is_refused(model):
    """A model that has noise already is not measured with two."""
    with noise(model, alpha=1.0), pytest.raises(NoiseError, match="already attached"):
        check_live(model, BATCH, alpha=5.0)


def test_the_scale_of_an_embedding_is_measured(model):
    """Gemma scales by √16 = 4 inside of the module, Llama does not; Gemma passes the check too."""
    gemma = _gemma()
    assert embedding_scale(model) == pytest.approx(1.0)
    assert embedding_scale(gemma) == pytest.approx(4.0, rel=1e-3)
    assert check_live(gemma, BATCH, alpha=5.0).is_right
