"""`NeftCallback`: neft's noise in any `transformers.Trainer`, TRL's `SFTTrainer` and `DPOTrainer` included."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neft.errors import NoiseError
from neft.handle import NoiseHandle
from neft.kinds import NoiseKind
from neft.noising import check_strength, noise


class NeftCallback(TrainerCallback):
    """Attaches `neft.noise` while a Trainer trains; a resumed run draws what an unbroken one would.

    After an exception or Ctrl-C in training the Trainer calls no callback: call `detach`, or drop the Trainer.

    Attributes:
        handle: The noise of the run under way or, if there is none, of the last one.
    """

    def __init__(
        self,
        *,
        alpha: float | None = None,
        alpha_rel: float | None = None,
        kind: NoiseKind = "uniform",
        seed: int | None = None,
    ) -> None:
        """Takes the options of `neft.noise`; the seed is the Trainer's if not given.

        Raises:
            InputError: alpha or alpha_rel is negative or not finite, both are given, or the kind is unknown.
        """
        check_strength(alpha, alpha_rel, kind)
        self.alpha = alpha
        self.alpha_rel = alpha_rel
        self.kind: NoiseKind = kind
        self.seed = seed
        self.handle: NoiseHandle | None = None
        self._attached = ExitStack()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Attaches the noise.

        Raises:
            NoiseError: it cannot be attached, the Trainer would use nn.DataParallel, or it samples from the policy
                (GRPO, RLOO), whose completions and log-probabilities must be without noise.
        """
        if args.n_gpu > 1:
            raise NoiseError(
                f"{args.n_gpu} GPUs are visible to one process, which would share one noise between replicas "
                "(nn.DataParallel); start a process per GPU with torchrun, or show one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        if hasattr(args, "num_generations"):
            raise NoiseError(f"{type(args).__name__} trains on the model's own samples; leave NeftCallback out.")
        if model is None:
            raise NoiseError("the Trainer names no model; use `with neft.noise(model)` around train().")
        self.detach()
        seed = args.seed if self.seed is None else self.seed
        self.handle = self._attached.enter_context(
            noise(model, alpha=self.alpha, alpha_rel=self.alpha_rel, seed=seed, kind=self.kind)
        )

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the noise of the optimizer step."""
        if self.handle is not None:
            self.handle.step = state.global_step

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Detaches the noise."""
        self.detach()

    def detach(self) -> None:
        """Removes the noise, if it is attached."""
        self._attached.close()
