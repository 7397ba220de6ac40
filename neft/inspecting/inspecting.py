"""`inspect_noise`: everything about the noise that a run with these options would have, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from neft.analysis.sources import Subject, load_subject
from neft.config import TrainingConfig
from neft.data import Example, LengthStatistics
from neft.errors import InputError
from neft.inspecting.effective import EffectiveAlpha, effective_alphas
from neft.inspecting.live import LiveCheck, check_live, embedding_scale
from neft.noising import embedding_sigma, input_embedding, noise_to_signal

_NUM_LIVE_ROWS = 4
_MAX_LIVE_TOKENS = 128


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of `inspect_noise`.

    Attributes:
        model: The model's name.
        dim: Width of its embedding.
        sigma: Standard deviation of what the embedding module gives out, its scale counted in.
        scale: By what factor the module scales its weights.
        max_length: The window.
        data: Counts of rows learned, cut and left out, see `neft.data.DataReport`.
        lengths: Of the documents that fit the window.
        alpha: The strength that `effective` and `live` are about.
        ratios: Noise-to-signal by α, then at the mean length (`mean`) and at the percentiles (`p50`, ...).
        effective: Effective α of implementations for `alpha` on this data.
        live: The check on the model itself.
    """

    model: str
    dim: int
    sigma: float
    scale: float
    max_length: int
    data: dict[str, Any]
    lengths: LengthStatistics
    alpha: float
    ratios: dict[float, dict[str, float]]
    effective: list[EffectiveAlpha]
    live: LiveCheck

    @property
    def is_scaled(self) -> bool:
        """True if the embedding module scales its weights, so that the same α is weaker than elsewhere."""
        return abs(self.scale - 1) > 0.01

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        values = asdict(self)
        values["ratios"] = [{"alpha": alpha, **at} for alpha, at in self.ratios.items()]
        values["lengths"]["percentiles"] = {f"p{k}": v for k, v in self.lengths.percentiles.items()}
        values["live"]["is_right"] = self.live.is_right
        return {**values, "is_scaled": self.is_scaled}


def inspect_noise(config: TrainingConfig, *, alphas: Sequence[float] = (2.0, 5.0, 10.0, 15.0)) -> Inspection:
    """Inspects the noise of a training run with these options; nothing is trained or written.

    Args:
        config: Its `alpha` is what the live check and the other implementations are asked for.
        alphas: The grid of the noise-to-signal ratios.

    Raises:
        InputError: alpha is 0, or the model or the data cannot be used.
        NoiseError: the noise cannot be attached to this model.
    """
    if not config.alpha:
        raise InputError(f"alpha is {config.alpha}; inspect needs a strength above 0.")
    subject = load_subject(config)
    embedding = input_embedding(subject.model)
    sigma, dim = embedding_sigma(embedding), next(embedding.parameters()).shape[1]
    lengths = [len(example.input_ids) for example in subject.train.data.examples]
    statistics = LengthStatistics.of(lengths)
    points = {"mean": statistics.mean, **{f"p{k}": float(v) for k, v in statistics.percentiles.items()}}
    return Inspection(
        model=config.model,
        dim=dim,
        sigma=sigma,
        scale=embedding_scale(subject.model),
        max_length=subject.max_length,
        data=subject.train.data.report().to_dict(),
        lengths=statistics,
        alpha=config.alpha,
        ratios={
            alpha: {
                name: noise_to_signal(alpha=alpha, sigma=sigma, length=length, dim=dim)
                for name, length in points.items()
            }
            for alpha in alphas
        },
        effective=effective_alphas(
            lengths,
            alpha=config.alpha,
            batch_size=config.batch_size,
            max_length=subject.max_length,
            seed=config.seed,
        ),
        live=_live(subject, config, config.alpha),
    )


def _live(subject: Subject, config: TrainingConfig, alpha: float) -> LiveCheck:
    """Checks on a few documents of different lengths, cut to a size that costs little."""
    ordered = sorted(subject.train.data.examples, key=lambda example: len(example.input_ids))
    step = max(1, len(ordered) // _NUM_LIVE_ROWS)
    chosen = ordered[::-step][:_NUM_LIVE_ROWS]
    cut = [Example(e.input_ids[:_MAX_LIVE_TOKENS], e.labels[:_MAX_LIVE_TOKENS]) for e in chosen]
    return check_live(subject.model, subject.collator(cut), alpha=alpha, kind=config.noise, seed=config.seed)
