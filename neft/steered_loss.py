"""The loss of M + α·(M⁺ − M⁻): a model tuned against the base it will steer (arXiv 2407.01155)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neft.config import TrainingConfig
from neft.data import IGNORED, Example
from neft.errors import InputError
from neft.locating import located
from neft.models import TunedModel, load_pretrained, load_tokenizer

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class SteeredLoss:
    """The cross-entropy of M + α·(M⁺ − M⁻) over the ids that all three share; M and M⁻ are frozen.

    Only positions with a learned label are combined, in float32.

    Attributes:
        base: M.
        anti: M⁻; None is the tuned model with its adapter off.
        tuned: M⁺, unwrapped.
        alpha: α.
        num_ids: The shared ids are those below it.
        mixed_precision: Type to compute M and M⁻ in, as the run's.
    """

    def __init__(
        self,
        base: nn.Module,
        anti: nn.Module | None,
        tuned: TunedModel,
        *,
        alpha: float,
        num_ids: int,
        mixed_precision: str = "no",
    ) -> None:
        self.base = base.eval().requires_grad_(False)
        self.anti = None if anti is None else anti.eval().requires_grad_(False)
        self.tuned = tuned
        self.alpha = alpha
        self.num_ids = num_ids
        self.mixed_precision = mixed_precision

    @property
    def frozen_models(self) -> list[nn.Module]:
        """M, and M⁻ if it has weights of its own."""
        return [self.base] if self.anti is None else [self.base, self.anti]

    def to(self, device: torch.device) -> None:
        """Moves the frozen models; quantised ones are where they were loaded."""
        for model in self.frozen_models:
            if getattr(model, "quantization_method", None) is None:
                model.to(device)

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], *, num_items: Tensor | int | None = None
    ) -> Tensor:
        """Returns the loss of a batch with labels, in nats per learned token, with gradients for `model` alone.

        Args:
            model: The tuned model, as wrapped for several processes.
            batch: `input_ids`, `labels` `[B, T]` and what else the models read.
            num_items: Learned tokens of the optimizer step, if the sum is divided by these.
        """
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        labels = batch["labels"][:, 1:]
        is_learned = labels != IGNORED
        base, anti = self._frozen_logits(inputs, is_learned)
        expert = self._at(model(**inputs, use_cache=False).logits, is_learned)
        combined = base + self.alpha * (expert - anti)
        total = nn.functional.cross_entropy(combined, labels[is_learned], reduction="sum")
        return total / (len(combined) if num_items is None else num_items)

    @torch.no_grad()
    def _frozen_logits(self, inputs: Mapping[str, Tensor], is_learned: Tensor) -> tuple[Tensor, Tensor]:
        # Only padding can lie above the shared ids (`require_shared_ids`), and no row attends to it.
        inputs = {**inputs, "input_ids": inputs["input_ids"].clamp(max=self.num_ids - 1)}
        dtype = _AUTOCAST.get(self.mixed_precision)
        device_type = is_learned.device.type
        with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            base = self._at(self.base(**inputs, use_cache=False).logits, is_learned)
            if self.anti is not None:
                return base, self._at(self.anti(**inputs, use_cache=False).logits, is_learned)
            with _untuned(self.tuned):
                return base, self._at(self.tuned(**inputs, use_cache=False).logits, is_learned)

    def _at(self, logits: Tensor, is_learned: Tensor) -> Tensor:
        """Returns the logits `[N, num_ids]` that predict the N learned tokens."""
        return logits[:, :-1][is_learned][:, : self.num_ids].float()

    def require_shared_ids(self, examples: Sequence[Example]) -> None:
        """Checks that M and M⁻ know every token of the rows.

        Raises:
            InputError: one does not.
        """
        highest = max(max(example.input_ids) for example in examples)
        if highest >= self.num_ids:
            raise InputError(
                f"a row has the token id {highest}, and base, model and anti share only the ids below {self.num_ids}; "
                "take a template without tokens that were added to one of them."
            )


def load_steered_loss(config: TrainingConfig, tuned: TunedModel, tokenizer: PreTrainedTokenizerBase) -> SteeredLoss:
    """Returns the loss against `config.base`, whose model is loaded as the tuned one is: type, quantisation.

    An adapter's M⁻ is the model below it, if that is what `config.anti` names, and not loaded again.

    Raises:
        InputError: a model cannot be loaded, or does not share its token ids with the tuned one.
    """
    names: dict[str, Any] = {"base": config.base}
    if config.lora_r is None or located(config.anti or "") != located(config.model):
        names["anti"] = config.anti
    models = {role: load_pretrained(config, name, role) for role, name in names.items()}
    vocabularies = {"model": tokenizer.get_vocab()}
    vocabularies |= {role: load_tokenizer(name).get_vocab() for role, name in names.items()}
    widths = [model.get_output_embeddings().weight.shape[0] for model in (tuned, *models.values())]
    return SteeredLoss(
        models["base"],
        models.get("anti"),
        tuned,
        alpha=config.steering_alpha or 0.0,
        num_ids=num_shared_ids(vocabularies, widths),
        mixed_precision=config.mixed_precision,
    )


def num_shared_ids(vocabularies: Mapping[str, Mapping[str, int]], widths: Sequence[int]) -> int:
    """Returns how many ids, from 0, all models share: the fewest that a tokenizer or a model's logits have.

    Args:
        vocabularies: Ids by token, by role; the first is what the others are compared with.
        widths: Of the logits.

    Raises:
        InputError: an id below that stands for two tokens, or a token for two ids.
    """
    limit = min([*widths, *(max(vocabulary.values()) + 1 for vocabulary in vocabularies.values())])
    (first, ids), *others = vocabularies.items()
    tokens = {token_id: token for token, token_id in ids.items()}
    for role, other_ids in others:
        for token, token_id in other_ids.items():
            expected = tokens.get(token_id, token)
            moved = ids.get(token, token_id)
            if (expected != token and token_id < limit) or (moved != token_id and min(moved, token_id) < limit):
                raise InputError(
                    f"{first} and {role} do not share token ids (id {token_id} is {token!r} in {role} and {expected!r} "
                    f"in {first}): their logits are added id by id, so choose models with the same tokenizer."
                )
    return limit


@contextmanager
def _untuned(model: Any) -> Iterator[None]:
    """Takes the adapter off, and every module out of training mode (noise and dropout with it)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with model.disable_adapter():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
