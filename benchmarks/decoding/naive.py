"""The loops to compare with: three models in a row as the published code decodes them, and one model by itself.

The naive loop follows the published DExperts-style loop in what it costs: per token three eager forwards, one after the
other, the ids and the mask of the batch concatenated anew, positions counted from that mask, and a look from the host
at whether every row is done. It is kinder in one thing: only the last position's logits are computed in a prompt.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.decoding.workloads import Requests


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A run: ids per row, seconds in all, and to the first token (None: not told)."""

    token_ids: list[list[int]]
    seconds: float
    first_token_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Figures of an untimed run, each None where it does not apply.

    `acceptance` is the share of drafts kept, `acceptance_by_place` the same at each position of a draft; `num_drafted`
    and `tokens_per_cycle` are means over cycles and rows; masses are the base's probability that was seen per token.
    """

    acceptance: float | None = None
    acceptance_by_place: Sequence[float] = ()
    num_drafted: float | None = None
    tokens_per_cycle: float | None = None
    requests_per_token: float | None = None
    mean_mass: float | None = None
    least_mass: float | None = None


@torch.inference_mode()
def naive_loop(
    models: Sequence[Any], prompts: Sequence[Sequence[int]], *, max_new_tokens: int, pad_token_id: int, alpha: float = 1
) -> Decoded:
    """Decode greedily with base, expert and anti, to `max_new_tokens` in every row whatever comes.

    Rows are padded on the left to the longest prompt. `models` may hold the base alone.
    """
    device = models[0].device
    ids, mask = _left_padded(prompts, pad_token_id, device)
    prompt_length = ids.shape[1]
    caches: list[Any] = [None] * len(models)
    unfinished = torch.ones(len(prompts), dtype=torch.long, device=device)
    first = started = time.perf_counter()
    for step in range(max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        new = slice(0, None) if step == 0 else slice(-1, None)
        logits = []
        for role_index, model in enumerate(models):
            out = model(
                input_ids=ids[:, new],
                attention_mask=mask,
                position_ids=positions[:, new],
                past_key_values=caches[role_index],
                use_cache=True,
                logits_to_keep=1,
            )
            caches[role_index] = out.past_key_values
            logits.append(out.logits[:, -1].float())
        combined = logits[0] if len(logits) == 1 else logits[0] + alpha * (logits[1] - logits[2])
        chosen = combined.argmax(-1) * unfinished + pad_token_id * (1 - unfinished)
        ids = torch.cat([ids, chosen[:, None]], dim=-1)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=-1)
        if unfinished.max() == 0:
            break
        if step == 0:
            first = time.perf_counter()
    generated = ids[:, prompt_length:].tolist()
    return Decoded(token_ids=generated, seconds=time.perf_counter() - started, first_token_seconds=first - started)


def naive_batches(models: Sequence[Any], requests: Requests, *, pad_token_id: int) -> Decoded:
    """Decode in batches, in order, each to its longest row; tokens beyond a row's own count are dropped."""
    rows: list[list[int]] = []
    started = time.perf_counter()
    first = None
    batches = requests.batches()
    for batch in batches:
        done = naive_loop(models, batch.prompts, max_new_tokens=max(batch.counts), pad_token_id=pad_token_id)
        first = done.first_token_seconds if len(batches) == 1 else None
        rows += [row[:count] for row, count in zip(done.token_ids, batch.counts, strict=True)]
    return Decoded(token_ids=rows, seconds=time.perf_counter() - started, first_token_seconds=first)


@torch.inference_mode()
def lean_loop(model: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> Decoded:
    """Decode greedily with one model: a forward and an argmax per token, no mask, one transfer to the host at the end.

    This is the base alone at its cheapest in eager transformers. Prompts are of one length.
    """
    ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    chosen: list[Tensor] = []
    cache = None
    first = started = time.perf_counter()
    for step in range(max_new_tokens):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        chosen.append(ids)
        if step == 0:
            ids.cpu()
            first = time.perf_counter()
    generated = torch.cat(chosen, dim=1).tolist()
    return Decoded(token_ids=generated, seconds=time.perf_counter() - started, first_token_seconds=first - started)


def _left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
