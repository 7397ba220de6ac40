"""What comes out steers: StackLLaMA's chain on tiny models, and `ProxyGenerator` with its result."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import neft
from neft.rl import RewardConfig, train_policy, train_reward
from proxytune import ProxyGenerator
from tests.neft.conftest import copy_rows, write_rows

from .conftest import make_policy, save
from .test_policies import make_config, share_of_good

PROMPT = "w5 w6 w7"


def _greedy(model, length):
    """The greedy continuation of the prompt, by hand."""
    ids = [9, 10, 11]
    for _ in range(length):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return tuple(ids[3:])


@pytest.mark.parametrize("options", [{}, {"lora_r": 4, "learning_rate": 2e-2}], ids=["full", "lora"])
def test_a_policy_steers_as_an_expert(policy_folder, pairs_file, tmp_path, options):
    """With anti = base, base + expert − anti is the expert: the generator writes the policy's own greedy text."""
    from peft import PeftModel

    expert = tmp_path / "expert"
    config = make_config("rloo", policy_folder, pairs_file, expert, max_steps=20, beta=0.0, **options)
    train_policy(config, reward_hook=share_of_good)
    generator = ProxyGenerator(policy_folder, expert, policy_folder, tokenizer=policy_folder)
    (completion,) = generator.generate([PROMPT], max_new_tokens=6)
    alone = AutoModelForCausalLM.from_pretrained(policy_folder if options else expert)
    alone = PeftModel.from_pretrained(alone, expert) if options else alone
    tuned = _greedy(alone.eval(), 6)
    assert completion.token_ids == tuned[: len(completion.token_ids)]
    assert tuned != _greedy(AutoModelForCausalLM.from_pretrained(policy_folder).eval(), 6)


def test_the_chain_of_the_source(policy_folder, pairs_file, tmp_path):
    """Packed SFT as an adapter, a reward model, RLOO kept near to the untuned model: the adapter steers."""
    rows = write_rows(tmp_path / "sft.jsonl", copy_rows(32))
    sft = {"lora_r": 4, "packing": True, "max_steps": 4, "learning_rate": 1e-2, "show_progress": False}
    neft.train(neft.TrainingConfig(model=policy_folder, data=rows, output=tmp_path / "sft", **sft))
    short = {"max_steps": 4, "learning_rate": 3e-3, "show_progress": False}
    train_reward(RewardConfig(model=policy_folder, data=pairs_file, output=tmp_path / "reward", lora_r=4, **short))
    config = make_config(
        "rloo",
        tmp_path / "sft",
        pairs_file,
        tmp_path / "expert",
        reward=tmp_path / "reward",
        ref=policy_folder,
        max_steps=4,
    )
    result = train_policy(config)
    assert result.is_adapter
    assert result.last_kl != 0
    base = save(make_policy(seed=3), tmp_path / "base")
    steered = ProxyGenerator(base, tmp_path / "expert", policy_folder).generate([PROMPT], max_new_tokens=4)
    assert len(steered[0].token_ids) <= 4
