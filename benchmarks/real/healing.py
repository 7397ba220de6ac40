"""Healing by distillation: a smaller model learns the large one's next-token distribution, on text, from its logits."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.real.shrinking import Batch, block_influences, choose_spans, cut, hidden_states, solve_outputs


def shrink(model: Any, tokenizer: Any, texts: Iterator[str], *, num_layers: int, num_texts: int, width: int) -> Any:
    """Return a model of `num_layers` layers, solved on `num_texts` texts of at most `width` tokens."""
    rows = sorted((tokenizer(next(texts)).input_ids[:width] for _ in range(num_texts)), key=len)
    batches = [padded(rows[start : start + 8]) for start in range(0, len(rows), 8)]
    states = hidden_states(model, batches)
    spans = choose_spans(block_influences(states, batches), num_layers)
    small = cut(model, spans)
    solve_outputs(small, spans, states, batches)
    return small


def distil(
    small: Any,
    model: Any,
    tokenizer: Any,
    texts: Iterator[str],
    *,
    num_steps: int,
    batch_size: int,
    width: int,
    learning_rate: float,
    say: Callable[[str], None],
) -> list[float]:
    """Tune a smaller model towards the large one's distribution and return each step's divergence, nats per token.

    The loss is KL(large ‖ small) at every second position, which saves a third of a step and little of what it
    teaches. Embeddings, which are the head too, stay the large model's. AdamW, warm-up of 5 %, then cosine.
    """
    small.train()
    small.model.embed_tokens.weight.requires_grad = False
    weights = [weight for weight in small.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, num_steps))
    divergences = []
    for step in range(num_steps):
        ids, mask = padded([tokenizer(next(texts)).input_ids[:width] for _ in range(batch_size)])
        keep = mask.bool()
        keep[:, step % 2 :: 2] = False
        divergence = _divergence(small, model, ids, mask, keep)
        divergence.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        divergences.append(divergence.item())
        if step % 10 == 9:
            say(f"healing: step {step + 1} of {num_steps}, divergence {sum(divergences[-10:]) / 10:.3f} nats per token")
    small.eval()
    return divergences


def padded(rows: list[list[int]]) -> Batch:
    """Return ids padded on the right, and their mask."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _divergence(small: Any, model: Any, ids: Tensor, mask: Tensor, keep: Tensor) -> Tensor:
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        expected = model.lm_head(model.model(**inputs).last_hidden_state[keep]).float().log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = small.lm_head(small.model(**inputs).last_hidden_state[keep])
    return functional.kl_div(logits.float().log_softmax(-1), expected, log_target=True, reduction="batchmean")


def _rate(step: int, num_steps: int) -> float:
    warm_up = min(1.0, (step + 1) / max(1, num_steps // 20))
    return warm_up * max(0.02, 0.5 + 0.5 * math.cos(math.pi * step / num_steps))
