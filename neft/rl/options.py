"""Options of reward and policy runs with their defaults, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from neft.checks import check_at_least, check_choice, check_positive, check_shares, json_value
from neft.errors import InputError
from neft.kinds import DType, Schedule

Method = Literal["rloo", "grpo", "dpo"]

# Neither changes what is trained, so a recorded run is the same run with or without them.
_NOT_RECORDED = frozenset({"output", "overwrite", "show_progress"})
_PATHS = ("output", "data", "eval_data", "prompts")


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Options of reward and policy runs; a wrong value raises `InputError` with its name, the value and the limit.

    Attributes:
        model: The model to start from: a local folder or a hub id; for a policy also an adapter folder.
        output: The folder that will hold the tuned model or adapter.
        epochs: Passes over the data.
        max_steps: Optimizer steps, instead of `epochs`.
        learning_rate: Peak learning rate.
        batch_size: Pairs, or sampled completions, per device and forward pass.
        gradient_accumulation: Forward passes per optimizer step.
        max_length: Window in tokens, prompt and answer; the smaller of 512 and the model's own if not given. Longer
            rows are left out and counted.
        dtype: Type of the weights in training and in the output; `auto` is the checkpoint's own.
        lora_r: Rank of a new LoRA adapter; the whole model is tuned if not given.
        lora_alpha: LoRA scale numerator; twice the rank if not given.
        lora_targets: Names of the modules to adapt, or `all-linear`.
        overwrite: Replace an output folder that holds something else.
        show_progress: Draw a progress bar on stderr.
    """

    model: str
    output: Path
    epochs: float = 1.0
    max_steps: int | None = None
    learning_rate: float = 1e-5
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 1
    max_length: int | None = None
    dtype: DType = "float32"
    lora_r: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ("all-linear",)
    overwrite: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        """Makes paths of path-like strings, then checks every option."""
        for name in _PATHS:
            if getattr(self, name, None) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "model", str(self.model))
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        check_at_least(self, 0, "seed")
        check_at_least(self, 1, "max_steps", "batch_size", "gradient_accumulation", "log_every", "max_length", "lora_r")
        check_positive(self, "epochs", "learning_rate", "max_grad_norm", "lora_alpha")
        check_shares(self, "warmup_ratio", "lora_dropout")
        check_choice(self, "schedule", get_args(Schedule))
        check_choice(self, "dtype", get_args(DType))
        for name in ("model", "lora_targets"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; name at least one.")

    @property
    def data_files(self) -> dict[str, Path]:
        """The data files of the run, by their purpose."""
        given = {name: getattr(self, name, None) for name in _PATHS if name != "output"}
        return {name: path for name, path in given.items() if path is not None}

    def record(self) -> dict[str, Any]:
        """Returns the options that decide what is trained, as JSON values."""
        values = {name: value for name, value in asdict(self).items() if name not in _NOT_RECORDED}
        return {name: json_value(value) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TuningOptions):
    """One reward-model run.

    Attributes:
        data: Training pairs, rows `{"prompt", "chosen", "rejected"}`.
        eval_data: Held-out pairs.
        eval_fraction: Share of the training pairs to hold out instead; the pairs of one prompt stay together.
    """

    data: Path
    eval_data: Path | None = None
    eval_fraction: float = 0.0
    learning_rate: float = 2e-5

    def __post_init__(self) -> None:
        """Checks also the held-out pairs."""
        super().__post_init__()
        check_shares(self, "eval_fraction")
        if self.eval_data is not None and self.eval_fraction:
            raise InputError("eval_data and eval_fraction both choose the held-out pairs; give one.")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(TuningOptions):
    """One policy run: RLOO or GRPO on prompts and a reward, or DPO on pairs.

    Attributes:
        method: `rloo` (the nearest to PPO), `grpo` or `dpo`.
        prompts: Rows `{"prompt"}`, for RLOO and GRPO.
        reward: A reward model or adapter that `neft reward` wrote, for RLOO and GRPO.
        data: Pairs, for DPO.
        ref: The model that the policy is kept near to; the model as it starts if not given. A new adapter's start is
            its base; an adapter that is trained on may also name its base here, the untuned model.
        beta: Strength of the KL penalty (RLOO, GRPO: 0.05 if not given) or of DPO's implicit one (0.1).
        num_generations: Completions per prompt, whose rewards are compared.
        max_new_tokens: Of a completion.
        temperature: Of the sampling.
    """

    method: Method
    prompts: Path | None = None
    reward: str | None = None
    data: Path | None = None
    ref: str | None = None
    beta: float | None = None
    num_generations: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        """Fills in the method's defaults and checks what goes with it."""
        check_choice(self, "method", get_args(Method))
        for name in ("reward", "ref"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        self._fill_in()
        super().__post_init__()
        if self.method == "dpo":
            check_positive(self, "beta")
            return
        check_at_least(self, 0.0, "beta")
        check_positive(self, "temperature")
        check_at_least(self, 2, "num_generations")
        check_at_least(self, 1, "max_new_tokens")
        per_step = self.batch_size * self.gradient_accumulation
        if per_step % (self.num_generations or 1):
            raise InputError(
                f"batch_size × gradient_accumulation is {per_step}, not a multiple of num_generations="
                f"{self.num_generations}; a step must hold all completions of a prompt."
            )

    def _fill_in(self) -> None:
        if self.method == "dpo":
            self._require("data", unwanted=("prompts", "reward", "num_generations", "max_new_tokens", "temperature"))
            defaults: dict[str, float] = {"beta": 0.1}
        else:
            self._require("prompts", unwanted=("data",))
            defaults = {"beta": 0.05, "num_generations": 4, "max_new_tokens": 128, "temperature": 1.0}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _require(self, needed: str, *, unwanted: tuple[str, ...]) -> None:
        if getattr(self, needed) is None:
            what = 'answer pairs (rows {"prompt", "chosen", "rejected"})' if needed == "data" else "prompts"
            raise InputError(f"method {self.method} needs {what}; give {needed}.")
        for name in unwanted:
            if getattr(self, name) is not None:
                raise InputError(f"method {self.method} has no use for {name}; leave it out.")
