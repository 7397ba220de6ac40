"""`train_reward`: from answer pairs to a reward model, trained with −log σ(r_chosen − r_rejected)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from neft.models import load_tokenizer, window
from neft.monitoring import RunLog
from neft.output import LOG_FILE, whole_folder, write_record
from neft.rl.encoding import EncodedPair, encode_pairs, reward_rows
from neft.rl.extra import require_trl
from neft.rl.loading import kept_config, load_new_reward_model, lora_of
from neft.rl.loop import trained
from neft.rl.noiseless import NoNoise, refuse_noise
from neft.rl.options import RewardConfig
from neft.rl.pairs import AnswerPair, read_pairs, split_pairs
from neft.rl.recording import checked_identity, logged, record_of
from neft.rl.scoring import padding_id, pair_accuracy
from neft.writable import ensure_writable


@dataclass(frozen=True, kw_only=True)
class RewardResult:
    """The result of a reward-model run.

    Attributes:
        output: The folder with the model or adapter.
        is_adapter: True if it is an adapter.
        steps: Optimizer steps taken.
        train_loss: Mean training loss over the run, in nats per pair (ln 2 is a coin).
        train_accuracy: Share of pairs in the right order at the last logged steps.
        eval_accuracy: Of the held-out pairs, with the saved weights.
        num_pairs: Training pairs used.
        num_eval_pairs: Held-out pairs used.
        num_dropped: Pairs left out because they are longer than the window, in both.
        seconds: Time in the training loop.
    """

    output: Path
    is_adapter: bool
    steps: int
    train_loss: float
    train_accuracy: float
    eval_accuracy: float | None
    num_pairs: int
    num_eval_pairs: int
    num_dropped: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {**asdict(self), "output": str(self.output)}


@dataclass(frozen=True)
class _Run:
    """Everything loaded for a run."""

    config: RewardConfig
    model: Any
    tokenizer: PreTrainedTokenizerBase
    pairs: list[EncodedPair]
    eval_pairs: list[EncodedPair]
    num_dropped: int


def train_reward(config: RewardConfig) -> RewardResult:
    """Trains a reward model on answer pairs and writes it, or its adapter, to `config.output`.

    The model is a sequence classifier with one output, which reads the prompt with an answer and end-of-sequence.

    Raises:
        InputError: TRL is missing, or the model, the data or the output folder cannot be used.
        NoiseError: noise is attached to the model.
        DivergenceError: the loss is no longer finite.
    """
    identity = checked_identity(config)
    pairs, eval_pairs = _read(config)
    require_trl("training a reward model")
    set_seed(config.seed)
    run = _load(config, pairs, eval_pairs)
    with whole_folder(config.output) as folder:
        result = _fit(run, folder)
        run.tokenizer.save_pretrained(folder)
        write_record(folder, record_of(identity, result.to_dict()))
    return result


def _read(config: RewardConfig) -> tuple[list[AnswerPair], list[AnswerPair]]:
    pairs = read_pairs(config.data)
    if config.eval_fraction:
        return split_pairs(pairs, eval_fraction=config.eval_fraction, seed=config.seed)
    return pairs, [] if config.eval_data is None else read_pairs(config.eval_data)


def _load(config: RewardConfig, pairs: list[AnswerPair], eval_pairs: list[AnswerPair]) -> _Run:
    tokenizer = load_tokenizer(config.model)
    model = load_new_reward_model(config)
    refuse_noise(model)
    ensure_writable(model, tokenizer, config.output)
    max_length = window(config, model)
    encoded, num_dropped = encode_pairs(pairs, tokenizer, max_length=max_length)
    held_out: list[EncodedPair] = []
    if eval_pairs:
        held_out, num_more = encode_pairs(eval_pairs, tokenizer, max_length=max_length)
        num_dropped += num_more
    return _Run(config, model, tokenizer, encoded, held_out, num_dropped)


def _fit(run: _Run, folder: Path) -> RewardResult:
    config = run.config
    log = RunLog(folder / LOG_FILE, show_progress=config.show_progress)
    start_s = time.monotonic()
    # The padding id stays: whoever loads the classifier needs it to find the last token.
    with kept_config(run.model, names=("use_cache",)):
        trainer = _trainer(run, folder, log)
        try:
            outcome = trained(trainer)
        finally:
            log.close()
    seconds = round(time.monotonic() - start_s, 3)
    trainer.model.save_pretrained(str(folder))
    eval_accuracy = _accuracy(trainer.model, run)
    if eval_accuracy is not None:
        log.write(step=outcome.global_step, eval_accuracy=eval_accuracy)
    return RewardResult(
        output=config.output,
        is_adapter=config.lora_r is not None,
        steps=outcome.global_step,
        train_loss=outcome.training_loss,
        train_accuracy=logged(trainer.state.log_history, "accuracy")[-1],
        eval_accuracy=eval_accuracy,
        num_pairs=len(run.pairs),
        num_eval_pairs=len(run.eval_pairs),
        num_dropped=run.num_dropped,
        seconds=seconds,
    )


def _trainer(run: _Run, folder: Path, log: RunLog) -> Any:
    from datasets import Dataset

    from neft.rl.trainers import QuietRewardTrainer, adapted, reward_arguments, without_printers

    with adapted(run.config):
        trainer = QuietRewardTrainer(
            model=run.model,
            args=reward_arguments(run.config, folder),
            train_dataset=Dataset.from_dict(reward_rows(run.pairs)),
            processing_class=run.tokenizer,
            peft_config=lora_of(run.config, "SEQ_CLS"),
        )
    return without_printers(trainer, [NoNoise(trainer.model), log])


def _accuracy(model: Any, run: _Run) -> float | None:
    if not run.eval_pairs:
        return None
    return pair_accuracy(model, run.eval_pairs, pad_id=padding_id(run.tokenizer), batch_size=2 * run.config.batch_size)
