"""`train`: one run from a data file to a model folder or adapter, on `transformers.Trainer` with neft's noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments, set_seed

from neft.checkpoints import BEST_FILE, Checkpoint, CheckpointStore, full
from neft.config import TrainingConfig
from neft.data import PaddingCollator
from neft.errors import OutputError
from neft.evaluating import evaluation_loss, own_loss
from neft.interrupting import Interruption, graceful
from neft.loop import Loop, arguments, make_loop
from neft.monitoring import CheckpointSchedule, NoiseStep, RunLog, TensorBoardWriter, require_finite
from neft.noising import noise
from neft.output import LOG_FILE, check_output, write_or_rescue, write_record
from neft.preparing import Prepared, prepare
from neft.processes import Processes
from neft.recording import TrainingResult, identity_of, run_record
from neft.stopping import Evaluation
from neft.writable import ensure_writable

__all__ = ["TrainingResult", "train"]


@dataclass(frozen=True)
class _Run:
    """A run under way."""

    prepared: Prepared
    settings: TrainingArguments
    store: CheckpointStore
    checkpoint: Checkpoint | None
    processes: Processes
    identity: dict[str, Any]

    @property
    def config(self) -> TrainingConfig:
        return self.prepared.config

    @property
    def checkpoint_state(self) -> dict[str, Any]:
        return {} if self.checkpoint is None else self.checkpoint.state


def train(config: TrainingConfig) -> TrainingResult:
    """Tunes a model with NEFTune noise and writes it, or its adapter, to `config.output`.

    The output folder appears whole or not at all. The same configuration on the same machine gives the same weights,
    also if the run was stopped in between and resumed. Under a launcher of several processes (torchrun, accelerate
    launch) each calls this, and one writes.

    Raises:
        InputError: the model, the data or the output folder cannot be used.
        NoiseError: the noise cannot be attached to this model.
        DivergenceError: the loss is no longer finite.
        TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    identity = identity_of(config)
    models = [Path(name) for name in (config.model, config.base, config.anti) if name is not None]
    inputs = [path for path in (config.data, config.eval_data, *models) if path is not None]
    check_output(
        config.output,
        identity=identity,
        inputs=[path for path in inputs if path.exists()],
        overwrite=config.overwrite,
    )
    store = CheckpointStore(config.output, keep=config.keep_checkpoints)
    settings = arguments(config, store.staging)
    processes = Processes(rank=settings.process_index, count=settings.world_size)
    checkpoint = _checkpoint(config, store, {**identity, "processes": processes.count})
    set_seed(config.seed)
    run = _Run(prepare(config), settings, store, checkpoint, processes, identity)
    ensure_writable(run.prepared.model, run.prepared.tokenizer, config.output)
    with _partial_folder(run):
        loop, result = _fit(run)
        # A Ctrl-C or SIGTERM that comes this late lets the output be written.
        with graceful(is_quiet=True):
            _write_output(run, loop, result)
    return result


def _checkpoint(config: TrainingConfig, store: CheckpointStore, identity: dict[str, Any]) -> Checkpoint | None:
    """Returns where to go on; an unfinished run is neither lost nor continued unasked."""
    if config.resume:
        return store.latest(identity)
    unfinished = store.checkpoints()
    if unfinished and not config.overwrite:
        raise OutputError(
            f"{store.folder} holds an unfinished run ({unfinished[-1].name}); go on with it by --resume, or start "
            "anew with --overwrite."
        )
    return None


@contextmanager
def _partial_folder(run: _Run) -> Iterator[None]:
    """Sets up the folder of the unfinished run; removes it at the end, unless there is something to go on from."""
    store, is_main = run.store, run.processes.is_main
    if is_main:
        if run.checkpoint is None:
            store.remove()
        store.open()
        if run.checkpoint is not None:
            store.restore(run.checkpoint, LOG_FILE, BEST_FILE)
    run.processes.wait()
    try:
        yield
    except BaseException:
        if is_main:
            store.remove_if_useless()
        raise
    if is_main:
        store.remove()


def _fit(run: _Run) -> tuple[Loop, TrainingResult]:
    config, prepared = run.config, run.prepared
    if prepared.steered_loss is not None:
        prepared.steered_loss.to(run.settings.device)
    # The Trainer turns the cache off in the config and leaves it off, which would slow whoever loads the result.
    uses_cache = prepared.model.config.use_cache
    ratio = prepared.noise_to_signal()
    log = _log(run)
    evaluation = _evaluation(run, log)
    first_step = 0 if run.checkpoint is None else run.checkpoint.step
    try:
        with graceful(is_quiet=not log.show_progress) as interruption:
            loop = _loop(run, log, evaluation, interruption)
            with noise(
                prepared.model, alpha=config.alpha, alpha_rel=config.alpha_rel, seed=config.seed, kind=config.noise
            ) as handle:
                loop.add_callback(NoiseStep(handle))
                outcome = loop.train(
                    resume_from_checkpoint=None if run.checkpoint is None else str(run.checkpoint.folder)
                )
        # The mean covers the steps after the last logged one.
        require_finite(outcome.training_loss, "training", step=outcome.global_step)
    finally:
        prepared.model.config.use_cache = uses_cache
        log.close()
    train_loss = loop.mean_loss(outcome.training_loss, first_step=first_step, last_step=outcome.global_step)
    saved_step, eval_loss = (outcome.global_step, None) if evaluation is None else evaluation.kept
    return loop, TrainingResult(
        output=config.output,
        is_adapter=config.lora_r is not None,
        steps=outcome.global_step,
        epochs=round(loop.state.epoch or 0.0, 4),
        train_loss=train_loss,
        eval_loss=eval_loss,
        evaluations=() if evaluation is None else tuple(evaluation.history),
        saved_step=saved_step,
        num_rows=len(prepared.train_data.examples),
        num_eval_rows=prepared.num_eval_rows,
        num_dropped=prepared.num_dropped,
        noise_to_signal=ratio,
        num_processes=run.processes.count,
        effective_batch_size=config.batch_size * config.gradient_accumulation * run.processes.count,
        seconds=log.seconds,
    )


def _log(run: _Run) -> RunLog:
    config, is_main = run.config, run.processes.is_main
    tensorboard = None
    if config.tensorboard is not None and is_main:
        first_step = 0 if run.checkpoint is None else run.checkpoint.step + 1
        tensorboard = TensorBoardWriter(config.tensorboard, first_step=first_step)
    return RunLog(
        run.store.folder / LOG_FILE,
        show_progress=config.show_progress,
        writes=is_main,
        tensorboard=tensorboard,
        seconds_before=run.checkpoint_state.get("seconds", 0.0),
    )


def _evaluation(run: _Run, log: RunLog) -> Evaluation | None:
    config, prepared, processes = run.config, run.prepared, run.processes
    if prepared.eval_data is None:
        return None
    examples, collator = prepared.eval_data.examples, PaddingCollator(prepared.pad_id)

    def evaluate() -> float:
        return evaluation_loss(
            prepared.model,
            examples,
            collator,
            batch_size=config.batch_size,
            processes=processes,
            batch_loss=prepared.steered_loss or own_loss,
        )

    evaluation = Evaluation(
        evaluate,
        prepared.model,
        log,
        best=run.store.best,
        processes=processes,
        every=config.eval_every,
        patience=config.early_stopping_patience,
    )
    if run.checkpoint is not None:
        evaluation.restore(run.checkpoint_state["evaluation"])
    return evaluation


def _loop(run: _Run, log: RunLog, evaluation: Evaluation | None, interruption: Interruption) -> Loop:
    config, prepared = run.config, run.prepared
    schedule = CheckpointSchedule(every=config.save_every, interruption=interruption, processes=run.processes)
    callbacks: list[TrainerCallback] = [log, schedule] if evaluation is None else [log, evaluation, schedule]

    def run_state() -> dict[str, Any]:
        return {
            "identity": {**run.identity, "processes": run.processes.count},
            "evaluation": None if evaluation is None else evaluation.state(),
            "seconds": log.seconds,
        }

    return make_loop(
        config,
        prepared.model,
        prepared.rows,
        prepared.collator,
        callbacks,
        run.settings,
        store=run.store,
        processes=run.processes,
        interruption=interruption,
        steered_loss=None if config.eval_with_base else prepared.steered_loss,
        run_state=run_state,
        loss_before=run.checkpoint_state.get("loss_sum", 0.0),
    )


def _write_output(run: _Run, loop: Loop, result: TrainingResult) -> None:
    """Writes the output in one process; sharded weights are gathered from all."""
    weights = _gathered(run, loop)
    prepared = run.prepared

    def write(folder: Path) -> None:
        prepared.model.save_pretrained(str(folder), **weights)
        if result.is_adapter and prepared.has_new_end_tokens:
            # PEFT writes no generation config; `neft merge` reads this one.
            prepared.model.generation_config.save_pretrained(folder)
        prepared.tokenizer.save_pretrained(folder)
        (folder / LOG_FILE).write_bytes(_read_log(run.store))
        write_record(folder, run_record(result, run.identity, prepared.report()))

    if run.processes.is_main:
        write_or_rescue(run.config.output, write)
    run.processes.wait()


def _gathered(run: _Run, loop: Loop) -> dict[str, Any]:
    if loop.is_deepspeed_enabled:
        return {"state_dict": loop.accelerator.get_state_dict(loop.deepspeed)}
    if loop.is_fsdp_enabled:
        return {"state_dict": {name: full(tensor) for name, tensor in run.prepared.model.state_dict().items()}}
    return {}


def _read_log(store: CheckpointStore) -> bytes:
    path = store.folder / LOG_FILE
    return path.read_bytes() if path.exists() else b""
