"""Noise, reduced precision and telemetry stay out of preference and reward training."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

import neft
from neft.rl import PolicyConfig, RewardConfig, train_policy
from neft.rl.loading import load_policy
from neft.rl.noiseless import refuse_noise
from neft.rl.trainers import QuietDPOTrainer, QuietGRPOTrainer, policy_arguments, reward_arguments

from .conftest import make_policy
from .test_policies import make_config, share_of_good

FILES = {"model": "m", "output": "o"}
POLICY = {"max_new_tokens": 8, "prompts": "p.jsonl", **FILES}


@pytest.mark.parametrize("method", ["rloo", "grpo", "dpo", "reward"])
def test_the_trainers_get_no_noise_and_no_reduced_precision(tmp_path, method):
    """The arguments say no to noise, bf16, fp16, checkpointing, reports and checkpoints, whatever TRL's defaults."""
    if method == "reward":
        given = reward_arguments(RewardConfig(data="d.jsonl", **FILES), tmp_path)
    elif method == "dpo":
        given = policy_arguments(PolicyConfig(method=method, data="d.jsonl", **FILES), tmp_path)
    else:
        given = policy_arguments(PolicyConfig(method=method, **POLICY), tmp_path)
        assert (given.num_generations, given.max_completion_length, given.beta) == (4, 8, 0.05)
    assert given.neftune_noise_alpha is None
    assert (given.bf16, given.fp16, given.gradient_checkpointing) == (False, False, False)
    assert (given.report_to, given.save_strategy, given.disable_dropout) == ([], "no", True)
    assert (given.warmup_steps, given.lr_scheduler_type) == (0.03, "cosine")


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_no_hook_is_on_the_embedding_while_sampling(policy_folder, pairs_file, tmp_path, monkeypatch, method):
    """At every scoring of samples the policy's embedding has no forward hook of any kind."""
    loaded = []
    monkeypatch.setattr("neft.rl.policies.load_policy", lambda config: loaded.append(load_policy(config)) or loaded[0])
    num_hooks = []

    def hook(prompts, completions):
        num_hooks.append(len(loaded[0].get_input_embeddings()._forward_hooks))
        return share_of_good(prompts, completions)

    train_policy(make_config(method, policy_folder, pairs_file, tmp_path / "out"), reward_hook=hook)
    assert num_hooks == [0, 0]


@pytest.mark.parametrize("method", ["rloo", "grpo", "dpo"])
def test_entering_with_noise_is_refused(policy_folder, pairs_file, tmp_path, monkeypatch, method):
    """Inside `with neft.noise(model)` no run begins, and nothing is written."""
    model = make_policy()
    monkeypatch.setattr("neft.rl.policies.load_policy", lambda _: model)
    config = make_config(method, policy_folder, pairs_file, tmp_path / "out")
    hook = {} if method == "dpo" else {"reward_hook": share_of_good}
    with neft.noise(model, alpha=5.0), pytest.raises(neft.NoiseError, match=r"leave the `with neft.noise"):
        train_policy(config, **hook)
    assert not (tmp_path / "out").exists()
    refuse_noise(model)


def test_noise_that_comes_later_is_refused(policy_folder, pairs_file, tmp_path, monkeypatch):
    """Noise attached in the middle of a run stops it at the next step."""
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    monkeypatch.setattr("neft.rl.policies.load_policy", lambda _: model)
    attached = neft.noise(model, alpha=5.0)

    def hook(prompts, completions):
        attached.__enter__()
        return share_of_good(prompts, completions)

    with pytest.raises(neft.NoiseError, match="noise is attached"):
        train_policy(make_config("rloo", policy_folder, pairs_file, tmp_path / "out"), reward_hook=hook)
    attached.__exit__(None, None, None)
    refuse_noise(model)
    assert not (tmp_path / "out").exists()


def test_transformers_own_noise_is_refused():
    """A model that carries transformers' `neftune_noise_alpha` is refused too."""
    model = make_policy()
    model.get_input_embeddings().neftune_noise_alpha = 5.0
    with pytest.raises(neft.NoiseError, match="noise is attached"):
        refuse_noise(model)


def test_no_run_is_reported_to_anybody(policy_folder, pairs_file, tmp_path, monkeypatch):
    """TRL's report of a run to its makers is never sent, online or not."""
    sent = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *_, **options: sent.append(options))
    train_policy(make_config("dpo", policy_folder, pairs_file, tmp_path / "out"))
    assert sent == []
    for trainer in (QuietDPOTrainer, QuietGRPOTrainer):
        assert trainer._send_telemetry(object()) is None
