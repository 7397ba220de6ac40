"""Options of a training run with their defaults, checked before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from neft.checks import check_at_least, check_choice, check_positive, check_shares, json_value
from neft.errors import InputError
from neft.kinds import DType, LossOn, MixedPrecision, NoiseKind, OnBadRow, Overlong, Quantization, Schedule

# These do not change what is trained, so a recorded run is the same run with or without them.
_NOT_RECORDED = frozenset(
    {"output", "overwrite", "show_progress", "resume", "save_every", "keep_checkpoints", "tensorboard"}
)
_DEFAULT_ALPHA = 5.0
_DEFAULT_STEERING_ALPHA = 1.0
_CHOICES = {
    "noise": NoiseKind,
    "schedule": Schedule,
    "overlong": Overlong,
    "on_bad_row": OnBadRow,
    "loss_on": LossOn,
    "dtype": DType,
    "mixed_precision": MixedPrecision,
    "quantize": Quantization,
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One training run; a wrong value raises `InputError` with the option's name, the value and the limit.

    The defaults are the paper's where a small run allows (arXiv 2310.05914, appendix: learning rate 5e-5, Adam, three
    epochs, cosine, warm-up 0.03, no weight decay, clipping at 1); batch and window are the user's hardware.

    Attributes:
        model: The model to tune, M−: a local folder or a hub id.
        base: M, to tune against: the loss is that of M + α·(M⁺ − M⁻), see `neft.steered_loss`.
        anti: M⁻ of that sum; `model` as it is before tuning if not given.
        steering_alpha: α of that sum; 1 if not given.
        eval_with_base: Use `base` in the held-out loss only, and tune on the model's own loss.
        data: Training rows, in `format`.
        output: The folder that will hold the tuned model or adapter.
        format: The name of a data format (`neft.data.FORMATS`); `auto` takes the one whose columns the first row has.
        template: Template that turns rows into text: one of `neft.data.TEMPLATES`, `chat` for the tokenizer's own, or a
            text with `{instruction}`, `{input}` or `{prompt}` in it; the format's own if not given.
        chat_template: A Jinja file in place of the tokenizer's chat template; chooses the template `chat`.
        columns: The file's names of the format's columns, each as `prompt=question`.
        text_column: The column of the format `text`; `text` if not given.
        dataset_split: Split of a `datasets` folder to train on, if it has several.
        loss_on: Learn the completions only, or every token.
        packing: Put several documents into one window, each with its own positions and noise.
        alpha: Noise strength; 0 trains without noise; 5 if neither this nor `alpha_rel` is given.
        alpha_rel: Noise-to-signal ratio instead of `alpha`, see `neft.noising.noise`.
        noise: Noise distribution, see `neft.noising.noise_like`.
        epochs: Passes over the data; 3 if neither this nor `max_steps` is given.
        max_steps: Optimizer steps, instead of `epochs`.
        batch_size: Rows per process and forward pass; the effective batch is this times `gradient_accumulation` times
            the number of processes.
        gradient_accumulation: Forward passes per optimizer step; each has noise of its own.
        eval_data: Held-out rows, in `format`.
        eval_fraction: Share of the training rows to hold out instead of `eval_data`, in [0, 1).
        eval_every: Steps between evaluations; once per epoch if not given.
        early_stopping_patience: Evaluations without a better loss before the run stops; the best weights are kept.
        max_length: Window in tokens; the smaller of 512 and the model's own window if not given.
        overlong: Treatment of rows longer than the window: leave them out and count them, cut them, or refuse.
        on_bad_row: End the run at a row that does not fit the format, or skip and count it.
        dtype: Type of the weights in training and in the output; `auto` is the checkpoint's own.
        mixed_precision: Type to compute in, where it is safe, over weights of `dtype`; fp16 needs a GPU.
        compile: Compile the model with torch.compile.
        quantize: Hold the frozen weights in 4 bits (NF4, double quantisation) or 8, under a LoRA adapter.
        lora_r: Rank of a LoRA adapter; the whole model is tuned if not given.
        lora_alpha: LoRA scale numerator; twice the rank if not given.
        lora_targets: Names of the modules to adapt, or `all-linear`.
        use_rslora: Scale the adapter by lora_alpha / √rank (arXiv 2312.03732) instead of lora_alpha / rank.
        use_dora: Train the weights' magnitude apart from their direction (DoRA, arXiv 2402.09353).
        lora_seed: Of the adapter's first weights; `seed` if not given.
        save_every: Steps between checkpoints in `<output>.partial`; only an interrupted run saves one if not given.
        keep_checkpoints: Number of checkpoints kept, the newest ones.
        resume: Go on from the newest checkpoint if there is one; it must be of the same configuration and data.
        tensorboard: Folder for TensorBoard's event files, beside the JSON log.
        deepspeed: A DeepSpeed configuration file.
        fsdp: A file of the Trainer's `fsdp_config` options; shards the model over the processes (FSDP2).
        overwrite: Replace an output folder that holds something else.
        show_progress: Draw a progress bar on stderr.
    """

    model: str
    data: Path
    output: Path
    base: str | None = None
    anti: str | None = None
    steering_alpha: float | None = None
    eval_with_base: bool = False
    format: str = "auto"
    template: str | None = None
    chat_template: Path | None = None
    columns: tuple[str, ...] | None = None
    text_column: str | None = None
    dataset_split: str | None = None
    loss_on: LossOn = "completion"
    packing: bool = False
    alpha: float | None = None
    alpha_rel: float | None = None
    noise: NoiseKind = "uniform"
    epochs: float | None = None
    max_steps: int | None = None
    learning_rate: float = 5e-5
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    seed: int = 0
    eval_data: Path | None = None
    eval_fraction: float = 0.0
    eval_every: int | None = None
    early_stopping_patience: int | None = None
    log_every: int = 10
    max_length: int | None = None
    overlong: Overlong = "drop"
    on_bad_row: OnBadRow = "error"
    dtype: DType = "float32"
    mixed_precision: MixedPrecision = "no"
    compile: bool = False
    quantize: Quantization | None = None
    lora_r: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ("all-linear",)
    use_rslora: bool = False
    use_dora: bool = False
    lora_seed: int | None = None
    save_every: int | None = None
    keep_checkpoints: int = 1
    resume: bool = False
    tensorboard: Path | None = None
    deepspeed: Path | None = None
    fsdp: Path | None = None
    overwrite: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        """Makes paths of path-like strings, then checks every option."""
        for name in ("data", "output", "eval_data", "chat_template", "tensorboard", "deepspeed", "fsdp"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        for name in ("model", "base", "anti"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        object.__setattr__(self, "columns", None if self.columns is None else tuple(self.columns))
        self._check_numbers()
        self._check_choices()
        self._check_combinations()
        self._check_adapter()
        self._check_steering()
        self._check_files()
        if self.alpha is None and self.alpha_rel is None:
            object.__setattr__(self, "alpha", _DEFAULT_ALPHA)
        if self.base is not None:
            object.__setattr__(self, "anti", self.anti or self.model)
            object.__setattr__(self, "steering_alpha", self.steering_alpha or _DEFAULT_STEERING_ALPHA)

    def _check_numbers(self) -> None:
        check_at_least(self, 0.0, "alpha", "alpha_rel", "weight_decay")
        check_at_least(self, 0, "seed", "lora_seed")
        check_at_least(
            self,
            1,
            *("max_steps", "batch_size", "gradient_accumulation", "eval_every", "early_stopping_patience"),
            *("log_every", "max_length", "lora_r", "save_every", "keep_checkpoints"),
        )
        check_positive(self, "epochs", "learning_rate", "max_grad_norm", "lora_alpha", "steering_alpha")
        check_shares(self, "warmup_ratio", "eval_fraction", "lora_dropout")

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            if name != "quantize" or self.quantize is not None:
                check_choice(self, name, get_args(choices))
        if not self.model:
            raise InputError("model is empty; give a model folder or a hub id.")
        if not self.lora_targets:
            raise InputError("lora_targets is empty; name the modules to adapt, or leave it at all-linear.")

    def _check_combinations(self) -> None:
        _not_both(self, "epochs", "max_steps", "set the length")
        _not_both(self, "alpha", "alpha_rel", "set the strength")
        _not_both(self, "deepspeed", "fsdp", "shard the model")
        if self.eval_data is not None and self.eval_fraction:
            raise InputError("eval_data and eval_fraction both choose the held-out rows; give one.")
        if self.chat_template is not None and self.template not in (None, "chat"):
            raise InputError(
                f"chat_template is {self.chat_template}, and template {self.template!r} does not use it; give one."
            )
        wrong = [pair for pair in self.columns or () if not all(pair.partition("="))]
        if wrong:
            raise InputError(f"columns has {wrong[0]!r}; give pairs such as prompt=question.")
        if self.resume and self.overwrite:
            raise InputError("resume goes on with a run and overwrite starts anew; give one.")
        if not self.has_evaluation:
            for name in ("eval_every", "early_stopping_patience"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} needs held-out rows; add eval_data or eval_fraction.")

    def _check_adapter(self) -> None:
        if self.lora_r is not None:
            return
        # A quantised model has no weights that could be tuned, and the others would do nothing without a word.
        for name in ("quantize", "use_rslora", "use_dora", "lora_alpha", "lora_dropout", "lora_seed"):
            if getattr(self, name):
                raise InputError(f"{name} is an option of an adapter; add lora_r.")

    def _check_steering(self) -> None:
        if self.base is None:
            for name in ("anti", "steering_alpha", "eval_with_base"):
                if getattr(self, name):
                    raise InputError(f"{name} is an option of tuning against a base; add base.")
        elif self.deepspeed is not None:
            raise InputError("base and deepspeed do not go together: its engine holds one model; use fsdp.")
        elif self.eval_with_base and not self.has_evaluation:
            raise InputError("eval_with_base needs held-out rows; add eval_data or eval_fraction.")

    def _check_files(self) -> None:
        for name in ("deepspeed", "fsdp"):
            path = getattr(self, name)
            if path is not None:
                _check_json(name, path)

    @property
    def has_evaluation(self) -> bool:
        """True if rows are held out."""
        return self.eval_data is not None or self.eval_fraction > 0

    @property
    def column_names(self) -> dict[str, str]:
        """The file's column of each of the format's."""
        return dict(pair.split("=", 1) for pair in self.columns or ())

    def record(self) -> dict[str, Any]:
        """Returns the options that decide what is trained, as JSON values."""
        values = {name: value for name, value in asdict(self).items() if name not in _NOT_RECORDED}
        if self.on_bad_row == "error":
            values["on_bad_row"] = None  # off: the run is that of a checkpoint from before the option
        values["eval_with_base"] = self.eval_with_base or None
        return {name: json_value(value) for name, value in values.items()}


def _not_both(config: TrainingConfig, one: str, other: str, what: str) -> None:
    if getattr(config, one) is not None and getattr(config, other) is not None:
        raise InputError(f"{one}={getattr(config, one)} and {other}={getattr(config, other)} both {what}; give one.")


def _check_json(name: str, path: Path) -> None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{name} is {path}, which cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{name} is {path}, which is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{name} is {path}, which holds a {type(value).__name__}; give one JSON object.")
