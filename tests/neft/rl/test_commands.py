"""`neft pairs`, `neft reward` and `neft rl`: options, streams, and the sentence where TRL is missing."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest

from neft import InputError, OutputError
from neft.commands import pairs, reward, rl
from neft.rl.extra import require_trl
from tests.neft.conftest import write_rows

COMMANDS = {"pairs": pairs, "reward": reward, "rl": rl}


def run(name, *arguments, is_quiet=False):
    """Runs a command as `neft.cli` does."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    COMMANDS[name].add_options(parser)
    COMMANDS[name].run(vars(parser.parse_args([str(argument) for argument in arguments])), is_quiet=is_quiet)


def test_pairs_reward_and_rl_follow_each_other(policy_folder, tmp_path, capfd):
    """Votes → pairs → reward model → expert by command; stdout has one JSON line each, the bar is on stderr."""
    answers = [{"text": f"w{n} w{n + 1}", "upvotes": n} for n in (1, 3, 9)]
    votes = write_rows(tmp_path / "votes.jsonl", [{"question": f"w{n}", "answers": answers} for n in range(10, 18)])
    files = {name: tmp_path / name for name in ("pairs.jsonl", "reward", "expert", "dpo")}
    run("pairs", "--data", votes, "--output", files["pairs.jsonl"], "--template", "{question} w0")
    short = ["--max-steps", 2, "--learning-rate", 0.001, "--lora-r", 2, "--lora-targets", "q_proj", "v_proj"]
    common = ["--model", policy_folder, *short]
    run("reward", "--data", files["pairs.jsonl"], "--output", files["reward"], "--eval-fraction", 0.25, *common)
    prompts = ["--prompts", files["pairs.jsonl"], "--max-new-tokens", 4, "--num-generations", 2, "--beta", 0.1]
    run("rl", "--method", "grpo", "--reward", files["reward"], "--output", files["expert"], *prompts, *common)
    run("rl", "--method", "dpo", "--data", files["pairs.jsonl"], "--output", files["dpo"], *common)
    captured = capfd.readouterr()
    results = [json.loads(line) for line in captured.out.splitlines()]
    assert [result["output"] for result in results] == [str(path) for path in files.values()]
    assert results[0] | {"num_pairs": 24, "num_questions": 8} == results[0]
    assert (results[1]["num_pairs"], results[1]["num_eval_pairs"]) == (18, 6)
    assert (results[2]["method"], results[2]["steps"], results[3]["metric"]) == ("grpo", 2, "margin")
    assert "2/2" in captured.err
    recorded = json.loads((files["expert"] / "neft.json").read_text())["config"]
    assert recorded | {"lora_targets": ["q_proj", "v_proj"], "beta": 0.1, "num_generations": 2} == recorded


def test_quiet_writes_nothing(policy_folder, pairs_file, tmp_path, capfd):
    """Quiet leaves stdout and the bar out; the folder is there."""
    files = ["--model", policy_folder, "--data", pairs_file, "--output", tmp_path / "out"]
    run("reward", *files, "--max-steps", 1, is_quiet=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "step/s" not in captured.err
    assert (tmp_path / "out" / "neft.json").exists()


def test_mistakes_come_before_the_model(tmp_path):
    """Wrong options are found without a model: it does not exist here."""
    files = ["--model", tmp_path / "nowhere", "--output", tmp_path / "out"]
    with pytest.raises(InputError, match="method rloo needs prompts"):
        run("rl", "--method", "rloo", *files)
    with pytest.raises(InputError, match="no data file"):
        run("rl", "--method", "dpo", "--data", tmp_path / "pairs.jsonl", *files)
    taken = write_rows(tmp_path / "pairs.jsonl", [])
    votes = [{"question": "q", "answers": [{"text": "a", "upvotes": 1}, {"text": "b", "upvotes": 0}]}]
    with pytest.raises(OutputError, match="already exists"):
        run("pairs", "--data", write_rows(tmp_path / "votes.jsonl", votes), "--output", taken)


_BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
import neft.rl
from neft import InputError
config = neft.rl.RewardConfig(model={model!r}, data={data!r}, output={output!r})
try:
    neft.rl.train_reward(config)
except InputError as error:
    sys.stdout.write(f"InputError: {{error}}")
except ModuleNotFoundError as error:
    sys.stdout.write(f"ModuleNotFoundError: {{error.name}}")
"""


@pytest.mark.parametrize("blocked", ["trl", "datasets"])
def test_a_missing_package_is_one_sentence(policy_folder, pairs_file, tmp_path, blocked):
    """Without TRL, or what it needs, the package imports, and a run says what to install; nothing is written."""
    places = {"model": str(policy_folder), "data": str(pairs_file), "output": str(tmp_path / "out")}
    code = _BLOCKED.format(blocked=blocked, **places)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"InputError: training a reward model needs {blocked}, which is not installed; "
        "run `pip install 'proxytune[rl]'`."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_broken_installation_keeps_its_own_error(monkeypatch):
    """If TRL is there and something else is missing, its own error is shown, not the advice to install it."""

    def broken(name):
        raise ModuleNotFoundError("No module named 'inner'", name="inner")

    monkeypatch.setattr("neft.rl.extra.import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="inner"):
        require_trl("a test")
