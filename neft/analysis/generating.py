"""Greedy outputs of a model for the prompts of a data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from neft.data import Document
from neft.data.encoding import SegmentEncoder


@dataclass(frozen=True, slots=True)
class Prompt:
    """A document's first prompt, encoded as in training, and the answer it was trained to give."""

    input_ids: list[int]
    text: str
    target: str


@dataclass(frozen=True, slots=True)
class Output:
    """An answer of a model; `is_ended` if it ended by itself before the limit."""

    text: str
    is_ended: bool


def prompts_of(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, max_prompt_tokens: int
) -> list[Prompt]:
    """Returns the first exchange of every document that begins with a prompt no longer than the limit."""
    asked = [document for document in documents if _is_exchange(document)]
    encoder = SegmentEncoder(tokenizer)
    encoded = {
        has_markers: iter(
            encoder.beginnings(
                [d.segments[0].text for d in asked if d.has_own_markers == has_markers], has_own_markers=has_markers
            )
        )
        for has_markers in (False, True)
    }
    prompts = []
    for document in asked:
        question, answer = document.segments[:2]
        input_ids = next(encoded[document.has_own_markers])
        target = _unmarked(answer.text, tokenizer) if document.has_own_markers else answer.text
        if input_ids and len(input_ids) <= max_prompt_tokens:
            prompts.append(Prompt(input_ids, question.text, target.strip()))
    return prompts


@torch.no_grad()
def greedy_outputs(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    repetition_penalty: float = 1.0,
    show_progress: bool = False,
    label: str = "generate",
) -> list[Output]:
    """Returns the greedy answer to every prompt, in their order, without special tokens and outer white space.

    Args:
        model: A causal language model with `generate`; in evaluation mode while it runs, and put back.
        tokenizer: Its tokenizer.
        prompts: With their encoded text.
        max_new_tokens: Length at which an answer is cut.
        batch_size: Prompts per batch; they are padded on the left, sorted by length.
        repetition_penalty: Divides the logits of tokens seen before, prompt included; the paper used 1.2.
        show_progress: Draw a bar on stderr.
        label: The bar's title.
    """
    settings = _settings(model, tokenizer, max_new_tokens, repetition_penalty)
    indices = sorted(range(len(prompts)), key=lambda index: len(prompts[index].input_ids))
    outputs: dict[int, Output] = {}
    was_training = model.training
    model.eval()
    bar = tqdm(total=len(prompts), desc=label, unit="text", file=sys.stderr, disable=not show_progress)
    try:
        with bar:
            for start in range(0, len(indices), batch_size):
                chosen = indices[start : start + batch_size]
                answers = _answer(model, [prompts[index].input_ids for index in chosen], settings)
                outputs |= {p: _output(ids, tokenizer, settings) for p, ids in zip(chosen, answers, strict=True)}
                bar.update(len(chosen))
    finally:
        model.train(was_training)
    return [outputs[index] for index in range(len(prompts))]


def _is_exchange(document: Document) -> bool:
    begins = [segment.is_target for segment in document.segments[:2]]
    return begins == [False, True] and bool(document.segments[0].text)


def _settings(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, repetition_penalty: float
) -> GenerationConfig:
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None) or tokenizer.eos_token_id
    end_ids = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    if tokenizer.eos_token_id not in end_ids:
        end_ids.append(tokenizer.eos_token_id)
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        eos_token_id=end_ids,
        pad_token_id=end_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        use_cache=True,
    )


def _answer(model: Any, rows: Sequence[list[int]], settings: GenerationConfig) -> list[list[int]]:
    device = next(model.parameters()).device
    width = max(map(len, rows))
    gaps = [width - len(ids) for ids in rows]
    input_ids = torch.tensor([[settings.pad_token_id] * gap + ids for gap, ids in zip(gaps, rows, strict=True)])
    mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
    sequences = model.generate(
        input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=settings
    )
    answers: list[list[int]] = sequences[:, width:].tolist()
    return answers


def _output(ids: list[int], tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig) -> Output:
    ends = [index for index, token_id in enumerate(ids) if token_id in settings.eos_token_id]
    kept = ids[: ends[0]] if ends else ids
    return Output(tokenizer.decode(kept, skip_special_tokens=True).strip(), bool(ends))


def _unmarked(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a text that a chat template wrote without its special tokens."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True))
