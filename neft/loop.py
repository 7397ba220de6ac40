"""The training loop: transformers' Trainer with neft's settings and neft's own checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from neft.checkpoints import BEST_FILE, WEIGHTS_FILE, CheckpointStore, load_trained, save_trained
from neft.config import TrainingConfig
from neft.errors import InputError
from neft.interrupting import Interruption, TrainingInterrupted
from neft.models import TunedModel
from neft.output import LOG_FILE
from neft.processes import Processes, on_one_gpu, uses_cpu
from neft.steered_loss import SteeredLoss

_DEFAULT_EPOCHS = 3.0


class Rows(torch.utils.data.Dataset[Any]):
    """Examples, or packs of them, as the data set the Trainer reads."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Loop(Trainer):
    """A Trainer whose checkpoints are whole or absent, exact in every type, and end an interrupted run.

    The base class writes optimizer, schedule and random states; the weights are the trainable parameters by name
    (its own way would rename them, and not load what it renamed without a word).
    """

    def __init__(
        self,
        *,
        store: CheckpointStore,
        processes: Processes,
        interruption: Interruption,
        run_state: Callable[[], dict[str, Any]],
        loss_before: float = 0.0,
        steered_loss: SteeredLoss | None = None,
        **options: Any,
    ) -> None:
        """Takes the Trainer's options and the run's.

        Args:
            store: Store of the checkpoints.
            processes: The processes of the run.
            interruption: Ends the run after a checkpoint.
            run_state: Gives what else a checkpoint holds.
            loss_before: The loss summed over the steps before a resume.
            steered_loss: In place of the model's own loss.
            **options: The Trainer's.
        """
        self.store = store
        self.processes = processes
        self.interruption = interruption
        self.run_state = run_state
        self.loss_before = loss_before
        self.steered_loss = steered_loss
        super().__init__(**options)

    def mean_loss(self, training_loss: float, *, first_step: int, last_step: int) -> float:
        """Returns the mean over all steps from the Trainer's mean over those since the resume."""
        # Until 5.19 the Trainer divides the loss since the resume by all steps.
        is_by_all = Version(transformers.__version__) < Version("5.19")
        num_counted = last_step if is_by_all else last_step - first_step
        mean: float = (self.loss_before + training_loss * num_counted) / last_step
        return mean

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Returns the loss of a batch: the model's own, or the steered one (training asks for no outputs)."""
        if self.steered_loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.steered_loss(model, inputs, num_items=num_items_in_batch)
        # As the Trainer does with a model's own: the count is of all processes, whose gradients are averaged.
        return loss if num_items_in_batch is None else loss * self.processes.count

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the trainable weights into a checkpoint; the output is written elsewhere (`neft.training`)."""
        if self.is_deepspeed_enabled:
            return  # its own checkpoint, beside the optimizer's state, has them
        folder = Path(output_dir or self.args.output_dir)
        save_trained(self.model, folder / WEIGHTS_FILE, is_writer=self.processes.is_main)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model if model is None else model, Path(resume_from_checkpoint) / WEIGHTS_FILE)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        step = self.state.global_step
        try:
            super()._save_checkpoint(model, trial)
            self.processes.wait()
            loss_sum = self.loss_before + self._total_loss_scalar + self._mean_over_processes(self._tr_loss)
            if self.processes.is_main:
                state = {**self.run_state(), "loss_sum": loss_sum}
                files = (self.store.folder / LOG_FILE, self.store.folder / BEST_FILE)
                self.store.commit(step, state, files=files)
        finally:
            if self.processes.is_main:
                shutil.rmtree(self.store.staging, ignore_errors=True)
        self.processes.wait()
        if self.interruption.is_requested:
            raise TrainingInterrupted(
                f"stopped after step {step} of {self.state.max_steps}, saved in {self.store.folder}; the same command "
                "with --resume (resume=True) goes on."
            )

    def _mean_over_processes(self, loss: torch.Tensor) -> float:
        return self.processes.total(loss.item())[0] / self.processes.count


def arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    """Returns the Trainer's settings for a run; they also join this process with the others of the run.

    Raises:
        InputError: the settings do not go together on this machine.
    """
    if config.deepspeed is not None and find_spec("deepspeed") is None:
        raise InputError(f"deepspeed is {config.deepspeed}, but the package is missing; pip install deepspeed.")
    on_cpu = uses_cpu()
    if config.mixed_precision == "fp16" and on_cpu:
        raise InputError("mixed_precision is fp16, which needs a GPU; use bf16 on a CPU.")
    try:
        settings = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            gradient_checkpointing=config.gradient_checkpointing,
            num_train_epochs=config.epochs or _DEFAULT_EPOCHS,
            max_steps=config.max_steps or -1,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
            warmup_steps=config.warmup_ratio,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            bf16=config.mixed_precision == "bf16",
            fp16=config.mixed_precision == "fp16",
            torch_compile=config.compile,
            deepspeed=None if config.deepspeed is None else str(config.deepspeed),
            fsdp=config.fsdp is not None,
            fsdp_config=None if config.fsdp is None else json.loads(config.fsdp.read_text(encoding="utf-8")),
            logging_steps=config.log_every,
            logging_nan_inf_filter=False,
            # Saving, evaluating and reporting are neft's own; noise too, so neftune_noise_alpha stays None.
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=on_cpu,
        )
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"these options do not go together on this machine: {error}") from error
    return on_one_gpu(settings)


def make_loop(
    config: TrainingConfig,
    model: TunedModel,
    rows: Sequence[Any],
    collator: Callable[[Any], Any],
    callbacks: list[TrainerCallback],
    settings: TrainingArguments,
    **options: Any,
) -> Loop:
    """Returns a `Loop` over the rows with nothing printed; the options are those of `Loop`.

    Raises:
        InputError: the settings do not fit the model or the machine.
    """
    try:
        loop = Loop(
            model=model,
            args=settings,
            data_collator=collator,
            train_dataset=Rows(rows),
            callbacks=callbacks,
            **options,
        )
    except ValueError as error:
        raise InputError(f"this model cannot be trained with these options: {error}") from error
    _refuse_old_sharding(loop)
    for unwanted in (PrinterCallback, ProgressCallback):
        loop.remove_callback(unwanted)
    return loop


def _refuse_old_sharding(loop: Loop) -> None:
    plugin = loop.accelerator.state.fsdp_plugin if loop.is_fsdp_enabled else None
    if plugin is not None and plugin.fsdp_version != 2:
        raise InputError(
            f"FSDP version {plugin.fsdp_version} flattens the weights, so they could not be saved by name; "
            "use version 2 (accelerate launch --fsdp_version 2)."
        )
