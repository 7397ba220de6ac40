"""Corners where noise could be silently off, doubled or shared: each is on, clean on purpose, or an error."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments
from transformers.integrations.neftune import activate_neftune

import neft
from neft.errors import NoiseError
from neft.processes import on_one_gpu

IDS = torch.arange(4, 10).unsqueeze(0)


def test_a_library_noise_that_comes_later_is_an_error(model):
    """A Trainer with neftune_noise_alpha inside of the block is refused at its first pass."""

    class Accelerator:
        def unwrap_model(self, model):
            return model

    with neft.noise(model):
        model(input_ids=IDS)
        activate_neftune(model, 5.0, Accelerator())
        with pytest.raises(NoiseError, match="neftune_noise_alpha is active"):
            model(input_ids=IDS)


def test_embeddings_as_input_are_an_error(model):
    """A pass in training mode that the embedding does not see says so; evaluation and alpha 0 take them."""
    embeddings = model.get_input_embeddings()(IDS).detach()
    with neft.noise(model):
        with pytest.raises(NoiseError, match="did not call the input embedding"):
            model(inputs_embeds=embeddings)
        model.eval()
        model(inputs_embeds=embeddings)
    with neft.noise(model.train(), alpha=0.0):
        model(inputs_embeds=embeddings)


def test_an_embedding_in_evaluation_mode_is_an_error(model):
    """A frozen embedding put into evaluation mode would switch the noise off."""
    model.get_input_embeddings().eval()
    with neft.noise(model), pytest.raises(NoiseError, match="embedding is in evaluation mode while the model trains"):
        model(input_ids=IDS)


def test_replicas_of_data_parallel_are_an_error(model):
    """nn.DataParallel's threads would share one generator and each other's lengths."""
    with neft.noise(model) as handle:
        embedding = model.get_input_embeddings()
        (hook,) = embedding._forward_hooks.values()
        replica = embedding._replicate_for_data_parallel()
        with pytest.raises(NoiseError, match=r"DataParallel .*start a process per GPU with torchrun"):
            hook(replica, (IDS,), torch.zeros(1, 6, 16))
    assert handle.num_passes == 0


def test_one_gpu_of_several_is_used(tmp_path, capsys):
    """Without torchrun the Trainer would run DataParallel; the run keeps to one GPU and says so."""
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    settings._n_gpu = 4
    assert on_one_gpu(settings).n_gpu == 1
    assert "torchrun --nproc-per-node 4" in capsys.readouterr().err


@pytest.mark.parametrize("reference", ["disabled", "another adapter"])
def test_the_reference_pass_of_an_adapter_is_clean(model, reference):
    """DPO's reference, the adapter off or another one active and no gradients, is bit-equal to no noise."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, lora).train()
    tuned.add_adapter("ref", lora)

    def reference_logits():
        if reference == "disabled":
            with torch.no_grad(), tuned.disable_adapter():
                return tuned(input_ids=IDS).logits
        tuned.set_adapter("ref")
        with torch.no_grad():
            logits = tuned(input_ids=IDS).logits
        tuned.set_adapter("default")
        return logits

    clean = reference_logits()
    with neft.noise(tuned) as handle:
        assert torch.equal(reference_logits(), clean)
        with torch.no_grad():
            tuned(input_ids=IDS)
    assert handle.num_passes == 1
