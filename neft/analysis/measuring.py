"""All the figures of one model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from neft.analysis.diversity import text_statistics
from neft.analysis.flips import top_token_flips
from neft.analysis.generating import Output, Prompt, greedy_outputs, prompts_of
from neft.analysis.losses import document_losses, mean_loss
from neft.analysis.options import AnalysisConfig
from neft.analysis.overlap import bleu, rouge_l
from neft.analysis.sources import Source, Subject, sample
from neft.errors import InputError


@dataclass(frozen=True)
class Measures:
    """The figures of one model on one data set, as JSON values, and the outputs they are from."""

    figures: dict[str, Any]
    texts: list[dict[str, Any]]


def measure(subject: Subject, source: Source, config: AnalysisConfig, label: str) -> Measures:
    """Returns losses, flips and text figures of a model on one data set.

    Raises:
        InputError: the loss is not finite, or texts are wanted and the window leaves no tokens for them.
    """
    figures: dict[str, Any] = {**_losses(subject, source, config), "flips": _flips(subject, source, config)}
    pairs = _outputs(subject, source, config, label) if config.num_texts else []
    figures["texts"] = text_figures(pairs) if pairs else None
    texts = [{"prompt": p.text, "output": o.text, "target": p.target, "is_ended": o.is_ended} for p, o in pairs]
    return Measures(figures, texts)


def text_figures(pairs: list[tuple[Prompt, Output]]) -> dict[str, Any]:
    """Returns overlap with the targets, and the statistics of outputs and targets by themselves."""
    outputs = [output.text for _, output in pairs]
    targets = [prompt.target for prompt, _ in pairs]
    return {
        "rouge_l": rouge_l(outputs, targets),
        "bleu": bleu(outputs, targets),
        "ended_percent": 100 * sum(output.is_ended for _, output in pairs) / len(pairs),
        "outputs": asdict(text_statistics(outputs)),
        "targets": asdict(text_statistics(targets)),
    }


def _losses(subject: Subject, source: Source, config: AnalysisConfig) -> dict[str, Any]:
    examples = sample(source.data.examples, config.max_rows, config.data.seed)
    losses = document_losses(subject.model, examples, subject.collator, batch_size=config.data.batch_size)
    loss = mean_loss(losses)
    if not math.isfinite(loss):
        raise InputError(f"the loss of {subject.model.config.name_or_path} is {loss}; its weights are broken.")
    return {
        "loss": loss,
        "num_rows": len(losses),
        "num_tokens": sum(loss.num_tokens for loss in losses),
        "document_losses": [round(loss.mean, 6) for loss in losses],
    }


def _flips(subject: Subject, source: Source, config: AnalysisConfig) -> dict[str, float]:
    examples = sample(source.data.examples, config.max_rows, config.data.seed)
    shares = top_token_flips(
        subject.model,
        examples,
        subject.collator,
        alphas=config.flip_alphas,
        batch_size=config.data.batch_size,
        kind=config.data.noise,
        seed=config.data.seed,
    )
    return {f"{alpha:g}": 100 * share for alpha, share in shares.items()}


def _outputs(subject: Subject, source: Source, config: AnalysisConfig, label: str) -> list[tuple[Prompt, Output]]:
    limit = getattr(subject.model.config, "max_position_embeddings", None)
    max_prompt_tokens = subject.max_length if limit is None else limit - config.max_new_tokens
    if max_prompt_tokens < 1:
        raise InputError(
            f"max_new_tokens is {config.max_new_tokens}, but the model reads {limit} tokens with the prompt; "
            "give less, or num_texts=0."
        )
    every = prompts_of(
        source.documents, subject.tokenizer, max_prompt_tokens=min(max_prompt_tokens, subject.max_length)
    )
    prompts = sample(every, config.num_texts, config.data.seed)
    outputs = greedy_outputs(
        subject.model,
        subject.tokenizer,
        prompts,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.data.batch_size,
        repetition_penalty=config.repetition_penalty,
        show_progress=config.show_progress,
        label=label,
    )
    return list(zip(prompts, outputs, strict=True))
