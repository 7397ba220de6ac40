"""RLOO, GRPO and DPO: the direction, the reference, what is written."""

from __future__ import annotations

import json
from statistics import mean

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from neft import DataError, DivergenceError, InputError
from neft.rl import PolicyConfig, read_pairs, train_policy
from neft.rl.encoding import encode_pairs
from tests.neft.conftest import make_tokenizer, write_rows

from .conftest import GOOD, make_gpt2, make_policy, save

SAMPLING = {"num_generations": 8, "batch_size": 32, "max_new_tokens": 6}


def share_of_good(prompts, completions):
    """A reward in [0, 1]: the share of a completion's words that are the good one."""
    return [text.split().count(GOOD) / max(1, len(text.split())) for text in completions]


def make_config(method, model, file, output, **options):
    """A short run; the file serves as pairs or prompts."""
    files = {"data": file} if method == "dpo" else {"prompts": file, **SAMPLING}
    settings = {"max_steps": 2, "learning_rate": 5e-3, "show_progress": False, "model": model, "output": output}
    return PolicyConfig(method=method, **{**files, **settings, **options})


def read_log(folder):
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def adapter_of(base, folder, *, seed=0):
    """Saves an adapter over a saved policy that already does something, as `neft train --lora-r` would."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", [{}, {"lora_r": 4, "learning_rate": 2e-2}], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_a_reward_rises(policy_folder, pairs_file, tmp_path, method, options):
    """Thirty steps raise a toy reward, at first 0.03, at least fourfold, and move the policy from its start."""
    config = make_config(method, policy_folder, pairs_file, tmp_path / "out", max_steps=30, beta=0.01, **options)
    result = train_policy(config, reward_hook=share_of_good)
    rewards = [line["reward"] for line in read_log(tmp_path / "out")]
    assert (result.metric, result.steps, result.first, result.last) == ("reward", 30, rewards[0], rewards[-1])
    assert mean(rewards[-5:]) > 4 * mean(rewards[:5])
    assert result.last_kl != 0
    assert result.is_adapter == ("lora_r" in options)


def test_the_whole_pipeline_raises_the_models_reward(policy_folder, pairs_file, reward_folder, tmp_path):
    """RLOO against a trained reward model raises what that model says of the samples."""
    config = make_config("rloo", policy_folder, pairs_file, tmp_path / "out", reward=reward_folder, max_steps=60)
    train_policy(config)
    rewards = [line["reward"] for line in read_log(tmp_path / "out")]
    assert mean(rewards[-5:]) > mean(rewards[:5]) + 3


@pytest.mark.parametrize("options", [{}, {"lora_r": 4, "learning_rate": 2e-2}], ids=["full", "lora"])
def test_dpo_raises_the_margin(policy_folder, pairs_file, tmp_path, options):
    """The margin begins at 0, where policy and reference are one, and ends above 0.3."""
    config = make_config("dpo", policy_folder, pairs_file, tmp_path / "out", max_steps=40, **options)
    result = train_policy(config)
    assert (result.metric, result.num_rows, result.last_kl) == ("margin", 128, None)
    assert result.first == pytest.approx(0, abs=1e-6)
    assert result.last > 0.3


def _answer_logprobs(model, rows):
    """Sums of log-probabilities of the answers of (prompt ids, answer ids), by hand."""
    sums = []
    for prompt_ids, answer_ids in rows:
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt_ids + answer_ids])).logits[0].log_softmax(-1)
        places = range(len(prompt_ids) - 1, len(prompt_ids) + len(answer_ids) - 1)
        sums.append(sum(logprobs[place, token].item() for place, token in zip(places, answer_ids, strict=True)))
    return torch.tensor(sums)


def test_dpos_reference_is_the_chosen_one(policy_folder, pairs_file, tmp_path):
    """With `ref`, the first margin is β times the difference of both log-ratios, by hand; the output is not the ref."""
    ref = save(make_policy(seed=7), tmp_path / "ref")
    config = make_config(
        "dpo", policy_folder, pairs_file, tmp_path / "out", ref=ref, beta=0.5, max_steps=1, batch_size=128
    )
    result = train_policy(config)
    pairs, _ = encode_pairs(read_pairs(pairs_file), make_tokenizer(), max_length=64)
    chosen = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    rejected = [(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder) for folder in (policy_folder, ref))
    better = _answer_logprobs(policy, chosen) - _answer_logprobs(reference, chosen)
    worse = _answer_logprobs(policy, rejected) - _answer_logprobs(reference, rejected)
    assert result.first == pytest.approx(0.5 * (better - worse).mean().item(), abs=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (policy_folder / "config.json").read_text()
    )


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_the_penalty_is_to_the_chosen_reference(policy_folder, pairs_file, tmp_path, method):
    """Without `ref` the first step's divergence is 0; with another model as `ref` it is not."""
    ref = save(make_policy(seed=7), tmp_path / "ref")
    first_kl = {}
    for name, options in {"own": {}, "other": {"ref": ref}}.items():
        config = make_config(method, policy_folder, pairs_file, tmp_path / name, max_steps=1, **options)
        first_kl[name] = train_policy(config, reward_hook=share_of_good).last_kl
    assert first_kl["own"] == pytest.approx(0, abs=1e-5)
    assert abs(first_kl["other"]) > 1e-4


@pytest.mark.parametrize("method", ["rloo", "grpo", "dpo"])
def test_an_adapter_is_trained_on(policy_folder, pairs_file, tmp_path, method):
    """A saved adapter is kept near to itself, or with `ref` to its base; the output is one adapter over that base."""
    adapter = adapter_of(policy_folder, tmp_path / "adapter")
    hook = {} if method == "dpo" else {"reward_hook": share_of_good}
    distances = {}
    for name, options in {"own": {}, "base": {"ref": policy_folder}}.items():
        options |= {"warmup_ratio": 0.0, "max_steps": 1}
        config = make_config(method, adapter, pairs_file, tmp_path / name, **options)
        result = train_policy(config, **hook)
        distances[name] = result.first if method == "dpo" else result.last_kl
        assert result.is_adapter
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "neft.json"} <= files
        assert not files & {"ref", "default", "model.safetensors"}
        settings = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(policy_folder)
        trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_folder), tmp_path / name)
        start = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_folder), adapter)
        ids = torch.tensor([[5, 6, 7]])
        assert not torch.equal(trained(ids).logits, start(ids).logits)
    assert distances["own"] == pytest.approx(0, abs=1e-5)
    assert abs(distances["base"]) > 1e-5


def test_a_reference_that_an_adapter_cannot_have(policy_folder, pairs_file, tmp_path):
    """An adapter is kept near to its start or its base, to nothing else; a second adapter is not put on the first."""
    other = save(make_policy(seed=7), tmp_path / "other")
    with pytest.raises(InputError, match="an adapter's own base is"):
        train_policy(make_config("dpo", policy_folder, pairs_file, tmp_path / "out", lora_r=2, ref=other))
    with pytest.raises(InputError, match="no model folder"):
        train_policy(make_config("dpo", policy_folder, pairs_file, tmp_path / "out", ref=tmp_path / "nowhere"))
    other_words = make_policy()
    other_words.resize_token_embeddings(50)
    larger = save(other_words, tmp_path / "larger")
    with pytest.raises(InputError, match="has 50 tokens and the model 44"):
        train_policy(make_config("dpo", policy_folder, pairs_file, tmp_path / "out", ref=larger))
    adapter = adapter_of(policy_folder, tmp_path / "adapter")
    with pytest.raises(InputError, match="is an adapter and is trained on as it is; leave lora_r out"):
        train_policy(make_config("dpo", adapter, pairs_file, tmp_path / "out", lora_r=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["rloo", "grpo", "dpo"])
def test_the_output_is_a_model_without_traces(pairs_file, tmp_path, method):
    """A GPT-2 without padding comes back with its own configuration, tokenizer, log and record, and nothing else."""
    model = make_gpt2()
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    folder = save(model, tmp_path / "gpt2")
    hook = {} if method == "dpo" else {"reward_hook": share_of_good}
    result = train_policy(make_config(method, folder, pairs_file, tmp_path / "out"), **hook)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((folder / name).read_text())
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files - {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} == {
        *("config.json", "generation_config.json", "model.safetensors", "neft.json", "log.jsonl")
    }
    record = json.loads((tmp_path / "out" / "neft.json").read_text())
    assert record["config"]["method"] == method
    assert record["result"]["last"] == result.last
    assert [line["step"] for line in read_log(tmp_path / "out")] == [1, 2]


def test_the_same_seed_gives_the_same_policy(policy_folder, pairs_file, tmp_path):
    """Two runs of one configuration sample the same and end bit-equal; another seed does not."""
    weights = {}
    for name, seed in {"one": 0, "two": 0, "other": 1}.items():
        config = make_config("rloo", policy_folder, pairs_file, tmp_path / name, seed=seed)
        train_policy(config, reward_hook=share_of_good)
        weights[name] = AutoModelForCausalLM.from_pretrained(tmp_path / name).lm_head.weight
    assert torch.equal(weights["one"], weights["two"])
    assert not torch.equal(weights["one"], weights["other"])


def test_rewards_and_prompts_that_do_not_do(policy_folder, pairs_file, tmp_path):
    """No reward, two rewards, prompts without room, and too few of them are the user's; nothing is written."""
    with pytest.raises(InputError, match="needs a reward; give reward"):
        train_policy(make_config("rloo", policy_folder, pairs_file, tmp_path / "out"))
    with pytest.raises(InputError, match="give one of them, and none for dpo"):
        train_policy(make_config("dpo", policy_folder, pairs_file, tmp_path / "out"), reward_hook=share_of_good)
    hook = {"reward_hook": share_of_good}
    with pytest.raises(DataError, match="none of 128 prompts leaves room for max_new_tokens=61 in the window of 64"):
        train_policy(make_config("grpo", policy_folder, pairs_file, tmp_path / "out", max_new_tokens=61), **hook)
    rows = [{"prompt": "w1"}, {"prompt": "w2 " * 60}, {"prompt": "w3"}]
    few = write_rows(tmp_path / "few.jsonl", rows)
    with pytest.raises(DataError, match="2 prompts that fit do not fill a step of 4"):
        train_policy(make_config("grpo", policy_folder, few, tmp_path / "out"), **hook)
    result = train_policy(make_config("grpo", policy_folder, few, tmp_path / "out", batch_size=16), **hook)
    assert (result.num_rows, result.num_dropped) == (2, 1)


def test_a_hook_that_fails_leaves_nothing(policy_folder, pairs_file, tmp_path):
    """An exception of the user's reward comes through, and no folder is left."""

    def broken(prompts, completions):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train_policy(make_config("rloo", policy_folder, pairs_file, tmp_path / "out"), reward_hook=broken)
    with pytest.raises(InputError, match="2 rewards for 32 completions"):
        train_policy(
            make_config("rloo", policy_folder, pairs_file, tmp_path / "out"), reward_hook=lambda *_: [1.0, 2.0]
        )
    with pytest.raises(InputError, match="a reward that is not finite"):
        train_policy(
            make_config("rloo", policy_folder, pairs_file, tmp_path / "out"), reward_hook=lambda *_: [float("nan")] * 32
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["rloo", "grpo", "dpo"])
def test_a_policy_that_diverges_stops(policy_folder, pairs_file, tmp_path, method):
    """A rate that destroys the weights ends with the step and the way out, though RLOO fails while it samples."""
    hook = {} if method == "dpo" else {"reward_hook": share_of_good}
    broken = {"learning_rate": 1e30, "schedule": "constant", "warmup_ratio": 0.0, "max_steps": 5}
    with pytest.raises(DivergenceError, match=r"at step \d; lower learning_rate"):
        train_policy(make_config(method, policy_folder, pairs_file, tmp_path / "out", **broken), **hook)
    assert not (tmp_path / "out").exists()


def test_accumulation_and_checkpointing_run(policy_folder, pairs_file, tmp_path):
    """Accumulated passes share a step's completions; checkpointing and bf16 weights run, also with an adapter."""
    options = {"batch_size": 16, "gradient_accumulation": 2, "gradient_checkpointing": True}
    for name, more in {"full": {}, "lora": {"lora_r": 2, "dtype": "bfloat16"}}.items():
        config = make_config("rloo", policy_folder, pairs_file, tmp_path / name, **options, **more)
        assert train_policy(config, reward_hook=share_of_good).steps == 2
