"""TRL's trainers as neft runs them: explicit precision, no noise, no telemetry, no files or tables of their own.

Import it only after `neft.rl.extra.require_trl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from neft.errors import InputError
from neft.processes import on_one_gpu
from neft.rl.options import PolicyConfig, TuningOptions


class _Quiet:
    """TRL reports each run to its makers unless the process is offline; neft's runs do not."""

    def _send_telemetry(self) -> None:
        pass


class _Encoded:
    """The data come tokenized (`neft.rl.encoding`)."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class QuietRewardTrainer(_Quiet, _Encoded, RewardTrainer):
    """−log σ(r_chosen − r_rejected) on encoded pairs."""


class QuietDPOTrainer(_Quiet, _Encoded, DPOTrainer):
    """DPO on encoded pairs."""


class QuietRLOOTrainer(_Quiet, RLOOTrainer):
    """REINFORCE with the other completions' mean reward as baseline."""


class QuietGRPOTrainer(_Quiet, GRPOTrainer):
    """Rewards standardized within the completions of a prompt."""


def reward_arguments(config: TuningOptions, folder: Path) -> Any:
    """Returns the arguments of a reward-model run."""
    return on_one_gpu(RewardConfig(**_arguments(config, folder), max_length=None, disable_dropout=True))


def policy_arguments(config: PolicyConfig, folder: Path) -> Any:
    """Returns the arguments of a policy run, of the method's own class."""
    common = {**_arguments(config, folder), "beta": config.beta, "disable_dropout": True}
    if config.method == "dpo":
        return on_one_gpu(DPOConfig(**common, max_length=None))
    sampling = {
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
    }
    return on_one_gpu((RLOOConfig if config.method == "rloo" else GRPOConfig)(**common, **sampling))


@contextmanager
def adapted(config: TuningOptions) -> Iterator[None]:
    """Turns PEFT's and TRL's complaints about the modules to adapt into the user's error.

    Raises:
        InputError: the model has none of `lora_targets`, or one of them cannot be adapted.
    """
    try:
        yield
    except ValueError as error:
        if config.lora_r is None or isinstance(error, InputError):
            raise
        names = ", ".join(config.lora_targets)
        raise InputError(f"the adapter does not fit the model (lora_targets {names}): {error}") from error


def without_printers(trainer: Any, callbacks: list[TrainerCallback]) -> Any:
    """Returns the trainer with neft's callbacks in place of those that write to stdout."""
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def _arguments(config: TuningOptions, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if config.schedule == "constant" else config.schedule,
        "warmup_steps": config.warmup_ratio,
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": 0.0,
        "seed": config.seed,
        "logging_steps": config.log_every,
        "logging_nan_inf_filter": False,
        # TRL turns both on; the weights' own type decides the precision.
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": config.gradient_checkpointing,
        "neftune_noise_alpha": None,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
