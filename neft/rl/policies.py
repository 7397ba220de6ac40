"""`train_policy`: RLOO or GRPO on a reward, or DPO on answer pairs, kept near a reference by a KL penalty."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from neft.errors import DataError, InputError
from neft.models import load_tokenizer, window
from neft.monitoring import RunLog
from neft.output import LOG_FILE, whole_folder, write_record
from neft.rl.encoding import encode_pairs, preference_rows
from neft.rl.extra import require_trl
from neft.rl.loading import kept_config, load_policy, lora_of
from neft.rl.loop import trained
from neft.rl.noiseless import NoNoise, refuse_noise
from neft.rl.options import PolicyConfig
from neft.rl.pairs import read_pairs, read_prompts
from neft.rl.recording import checked_identity, logged, record_of
from neft.rl.reference import chosen_reference, drop_copy
from neft.rl.scoring import RewardScorer
from neft.writable import ensure_writable

RewardHook = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Prompts and completions to rewards, in place of a reward model."""

_ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class PolicyResult:
    """The result of a policy run.

    Attributes:
        output: The folder with the model or adapter.
        is_adapter: True if it is an adapter.
        method: `rloo`, `grpo` or `dpo`.
        steps: Optimizer steps taken.
        metric: Quantity the run raised: `reward`, or for DPO `margin`, the implicit reward of the chosen answer less
            that of the rejected one.
        first: The metric at the first logged steps.
        last: The metric at the last logged steps.
        last_kl: Divergence from the reference per token at the last logged steps; none under DPO and without penalty.
        num_rows: Prompts or pairs used.
        num_dropped: Rows left out because they are longer than the window.
        seconds: Time in the training loop.
    """

    output: Path
    is_adapter: bool
    method: str
    steps: int
    metric: str
    first: float
    last: float
    last_kl: float | None
    num_rows: int
    num_dropped: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {**asdict(self), "output": str(self.output)}


@dataclass(frozen=True)
class _Run:
    """Everything loaded for a run; the columns are those that the method's trainer reads."""

    config: PolicyConfig
    model: Any
    tokenizer: PreTrainedTokenizerBase
    reward: RewardHook | RewardScorer | None
    columns: dict[str, Any]
    num_dropped: int

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values())))


def train_policy(config: PolicyConfig, *, reward_hook: RewardHook | None = None) -> PolicyResult:
    """Tunes a model by reward or preference and writes it, or its adapter, to `config.output`.

    Args:
        config: The run.
        reward_hook: Prompts and completions to rewards, in place of `config.reward`.

    Raises:
        InputError: TRL is missing, or the model, the data, the reward or the output folder cannot be used.
        NoiseError: noise is attached to the model.
        DivergenceError: the loss is no longer finite.
    """
    _check_reward(config, reward_hook)
    identity = checked_identity(config)
    rows: Any = read_pairs(config.data) if config.data is not None else read_prompts(_prompts_file(config))
    require_trl(f"method {config.method}")
    set_seed(config.seed)
    run = _load(config, rows, reward_hook)
    with whole_folder(config.output) as folder:
        result = _fit(run, folder)
        run.tokenizer.save_pretrained(folder)
        write_record(folder, record_of(identity, result.to_dict()))
    return result


def _check_reward(config: PolicyConfig, reward_hook: RewardHook | None) -> None:
    given = [source for source in (config.reward, reward_hook) if source is not None]
    if config.method != "dpo" and not given:
        raise InputError(f"method {config.method} needs a reward; give reward, a folder that `neft reward` wrote.")
    if len(given) > 1 or (config.method == "dpo" and reward_hook is not None):
        raise InputError("reward_hook stands in for a reward model; give one of them, and none for dpo.")


def _prompts_file(config: PolicyConfig) -> Path:
    if config.prompts is None:
        raise InputError(f"method {config.method} needs prompts; give prompts.")
    return config.prompts


def _load(config: PolicyConfig, rows: Any, reward_hook: RewardHook | None) -> _Run:
    tokenizer = load_tokenizer(config.model)
    model = load_policy(config)
    refuse_noise(model)
    ensure_writable(model, tokenizer, config.output)
    max_length = window(config, model)
    if config.method == "dpo":
        pairs, num_dropped = encode_pairs(rows, tokenizer, max_length=max_length)
        return _Run(config, model, tokenizer, None, preference_rows(pairs), num_dropped)
    prompts = _fitting(rows, tokenizer, config, max_length)
    reward: RewardHook | RewardScorer | None = reward_hook
    if config.reward is not None:
        reward = RewardScorer.from_pretrained(config.reward, batch_size=config.batch_size)
        refuse_noise(reward.model)
    return _Run(config, model, tokenizer, reward, {"prompt": prompts}, len(rows) - len(prompts))


def _fitting(
    prompts: list[str], tokenizer: PreTrainedTokenizerBase, config: PolicyConfig, max_length: int
) -> list[str]:
    """Returns the prompts that fit the window with a completion."""
    max_prompt_tokens = max_length - (config.max_new_tokens or 0)
    kept = [
        text
        for text, ids in zip(prompts, tokenizer(prompts)["input_ids"], strict=True)
        if len(ids) <= max_prompt_tokens
    ]
    if not kept:
        raise DataError(
            f"none of {len(prompts)} prompts leaves room for max_new_tokens={config.max_new_tokens} in the window of "
            f"{max_length} tokens; lower max_new_tokens or raise max_length."
        )
    needed = config.batch_size * config.gradient_accumulation // (config.num_generations or 1)
    if len(kept) < needed:
        raise DataError(
            f"{len(kept)} prompts that fit do not fill a step of {needed} (batch_size × gradient_accumulation / "
            "num_generations); give more prompts or a smaller batch_size."
        )
    return kept


def _fit(run: _Run, folder: Path) -> PolicyResult:
    config = run.config
    log = RunLog(folder / LOG_FILE, show_progress=config.show_progress)
    start_s = time.monotonic()
    with kept_config(run.model, names=("pad_token_id", "eos_token_id", "use_cache")):
        trainer = _trainer(run, folder, log)
        try:
            outcome = trained(trainer)
        finally:
            log.close()
    _save(trainer.model, folder)
    metric = "margin" if config.method == "dpo" else "reward"
    values = logged(trainer.state.log_history, "rewards/margins" if config.method == "dpo" else "reward")
    divergences = logged(trainer.state.log_history, "kl")
    return PolicyResult(
        output=config.output,
        is_adapter=hasattr(trainer.model, "peft_config"),
        method=config.method,
        steps=outcome.global_step,
        metric=metric,
        first=values[0],
        last=values[-1],
        last_kl=divergences[-1] if divergences else None,
        num_rows=run.num_rows,
        num_dropped=run.num_dropped,
        seconds=round(time.monotonic() - start_s, 3),
    )


def _save(model: Any, folder: Path) -> None:
    if not hasattr(model, "peft_config"):
        model.save_pretrained(str(folder))
        return
    # TRL's frozen copy of the adapter is not a part of the result.
    model.save_pretrained(str(folder), selected_adapters=[_ADAPTER])


def _trainer(run: _Run, folder: Path, log: RunLog) -> Any:
    from datasets import Dataset

    from neft.rl import trainers

    config = run.config
    classes: dict[str, Any] = {
        "rloo": trainers.QuietRLOOTrainer,
        "grpo": trainers.QuietGRPOTrainer,
        "dpo": trainers.QuietDPOTrainer,
    }
    rewards = {} if run.reward is None else {"reward_funcs": [_as_trl_reward(run)]}
    with chosen_reference(run.model, config), trainers.adapted(config):
        trainer = classes[config.method](
            model=run.model,
            args=trainers.policy_arguments(config, folder),
            train_dataset=Dataset.from_dict(run.columns),
            processing_class=run.tokenizer,
            peft_config=lora_of(config, "CAUSAL_LM"),
            **rewards,
        )
    drop_copy(trainer.model, config)
    if isinstance(run.reward, RewardScorer):
        run.reward.model.to(trainer.args.device)
    return trainers.without_printers(trainer, [NoNoise(trainer.model), log])


def _as_trl_reward(run: _Run) -> Callable[..., list[float]]:
    eos_ids = _eos_ids(run.model, run.tokenizer)

    def reward(*, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        if isinstance(run.reward, RewardScorer):
            are_finished = [bool(ids) and ids[-1] in eos_ids for ids in completion_ids]
            return run.reward.score(prompts, completions, are_finished=are_finished)
        return _checked(run.reward(prompts, completions) if run.reward is not None else [], len(completions))

    return reward


def _checked(values: Sequence[float], num_completions: int) -> list[float]:
    rewards = [float(value) for value in values]
    if len(rewards) != num_completions:
        raise InputError(f"the reward hook gave {len(rewards)} rewards for {num_completions} completions.")
    if not all(math.isfinite(value) for value in rewards):
        raise InputError("the reward hook gave a reward that is not finite; give a number for every completion.")
    return rewards


def _eos_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    declared = model.generation_config.eos_token_id
    listed = declared if isinstance(declared, list) else [declared]
    return {token_id for token_id in (*listed, tokenizer.eos_token_id) if token_id is not None}
