"""Configurations check themselves."""

from __future__ import annotations

import json

import pytest

from neft import InputError
from neft.rl import PolicyConfig, RewardConfig

REWARD = {"model": "m", "output": "o", "data": "pairs.jsonl"}
RLOO = {"method": "rloo", "model": "m", "output": "o", "prompts": "prompts.jsonl", "reward": "r"}
DPO = {"method": "dpo", "model": "m", "output": "o", "data": "pairs.jsonl"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"learning_rate": 0}, "learning_rate is 0; give more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; give a finite number"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"max_steps": 1.5}, "max_steps is 1.5; give a whole number"),
        ({"seed": True}, "seed is True; give a whole number"),
        ({"eval_fraction": 1.0}, "eval_fraction is 1.0; it is a share"),
        ({"eval_fraction": 0.5, "eval_data": "e.jsonl"}, "give one"),
        ({"schedule": "sine"}, "schedule is 'sine'; choose one of"),
        ({"dtype": "int8"}, "dtype is 'int8'; choose one of"),
        ({"model": ""}, "model is empty"),
        ({"lora_targets": ()}, "lora_targets is empty"),
    ],
)
def test_a_wrong_reward_option(options, complaint):
    """The message has the option, the value and the limit."""
    with pytest.raises(InputError, match=complaint):
        RewardConfig(**{**REWARD, **options})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({**RLOO, "method": "ppo"}, "method is 'ppo'; choose one of rloo, grpo, dpo"),
        ({**RLOO, "prompts": None}, "method rloo needs prompts; give prompts"),
        ({**RLOO, "data": "pairs.jsonl"}, "method rloo has no use for data"),
        ({**DPO, "data": None}, "method dpo needs answer pairs"),
        ({**DPO, "reward": "r"}, "method dpo has no use for reward"),
        ({**DPO, "num_generations": 4}, "method dpo has no use for num_generations"),
        ({**DPO, "beta": 0}, "beta is 0; give more than 0"),
        ({**RLOO, "beta": -0.1}, "beta is -0.1; give at least 0"),
        ({**RLOO, "temperature": 0.0}, "temperature is 0.0; give more than 0"),
        ({**RLOO, "num_generations": 1}, "num_generations is 1; give at least 2"),
        ({**RLOO, "num_generations": 3}, "is 8, not a multiple of num_generations=3"),
        ({**RLOO, "max_new_tokens": 0}, "max_new_tokens is 0; give at least 1"),
    ],
)
def test_a_wrong_policy_option(options, complaint):
    """What a method needs is asked for, and what it has no use for is refused."""
    with pytest.raises(InputError, match=complaint):
        PolicyConfig(**options)


def test_the_methods_have_their_own_defaults():
    """DPO's β is 0.1; RLOO and GRPO have 0.05 and four completions."""
    assert PolicyConfig(**DPO).beta == 0.1
    assert PolicyConfig(**DPO).num_generations is None
    rloo = PolicyConfig(**RLOO)
    assert (rloo.beta, rloo.num_generations, rloo.max_new_tokens, rloo.temperature) == (0.05, 4, 128, 1.0)
    assert PolicyConfig(**{**RLOO, "beta": 0.0}).beta == 0.0


def test_the_record_is_json_without_the_folder():
    """What is recorded decides what is trained: not the output folder, nor the progress bar."""
    record = RewardConfig(**REWARD).record()
    assert json.loads(json.dumps(record)) == record
    assert record["data"] == "pairs.jsonl"
    assert not {"output", "overwrite", "show_progress"} & set(record)
