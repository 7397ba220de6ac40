"""Log-probabilities of given continuations, teacher-forced; continuations of one prompt share its pass.

A multiple-choice question is one prompt with several answers: the prompt is read once, its cache repeated for each
answer, and only the answers are read per row. Examples that stand in front of every question are read once per batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxytune.completion import Request, Score
from proxytune.hf.batching import left_pad, role_prompts, strengths_of
from proxytune.hf.cache import CompositeCache
from proxytune.hf.finite import rows_named
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.hf.role import RolePrompt

_WORTH_SHARING = 16  # tokens; below, a pass of its own costs more than it saves

_FEWEST_ROWS = 4  # of a group; smaller ones leave the machine idle

_Prompt = tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]


@dataclass(frozen=True)
class _Judged:
    """Log-probabilities of targets under some logits, and whether each was the likeliest token."""

    logprobs: Tensor
    is_likeliest: Tensor


def prompts_together(requests: Sequence[Request]) -> Callable[[Request], tuple[int, int]]:
    """Return a sort key that puts requests of one prompt side by side, those with the longest row first."""
    longest: dict[_Prompt, int] = {}
    first_indices: dict[_Prompt, int] = {}
    for request in requests:
        prompt = _prompt(request)
        longest[prompt] = max(longest.get(prompt, 0), request.length)
        first_indices.setdefault(prompt, len(first_indices))
    return lambda request: (-longest[_prompt(request)], first_indices[_prompt(request)])


@torch.no_grad()
def score_batch(model: ProxyTunedForCausalLM, batch: Sequence[Request], pad_token_id: int) -> list[Score]:
    """Return the score of each request, in their order; what prompts have in common is read once."""
    support = model.support
    if model.roles[0].is_remote or not (support.cache and support.chunks and support.reorder):
        return _score_unshared(model, batch, pad_token_id)
    distinct: dict[_Prompt, int] = {}
    prompt_rows = [distinct.setdefault(_prompt(request), len(distinct)) for request in batch]
    if len(distinct) == len(batch) and not (_can_share_beginnings(model) and any(_common_lengths(batch))):
        return _score_unshared(model, batch, pad_token_id)
    return _shared(model, batch, prompt_rows, pad_token_id)


def _prompt(request: Request) -> _Prompt:
    return tuple(request.role_ids), tuple(request.alphas)


def _score_unshared(model: ProxyTunedForCausalLM, batch: Sequence[Request], pad_token_id: int) -> list[Score]:
    """Score rows in one pass over prompt and continuation."""
    # The last token predicts nothing that is asked for; the one before the continuation predicts its first.
    read = [tuple(ids + request.continuation_ids[:-1] for ids in request.role_ids) for request in batch]
    base, prompts = role_prompts(read, pad_token_id, model.device)
    strengths = strengths_of(batch)
    inputs = model.direct_inputs(base.input_ids, base.attention_mask, None, strengths.active, prompts)
    counts = [len(request.continuation_ids) for request in batch]
    if model.roles[0].is_remote:
        # Every position that a server is asked for costs; those of the prompt say nothing that is wanted.
        inputs[0] = {**(inputs[0] or {}), "num_positions": counts}
    with rows_named(batch):
        last = torch.tensor(counts) - 1
        logits = model(
            role_inputs=inputs, logits_to_keep=max(counts), alpha=strengths.values, answer_position=last
        ).logits
    targets = left_pad([request.continuation_ids for request in batch], 0, logits.device).input_ids
    judged = _judge(logits, targets)
    scores = []
    for row, request in enumerate(batch):
        start = targets.shape[1] - len(request.continuation_ids)
        scores.append(_score(request, judged.logprobs[row, start:], judged.is_likeliest[row, start:]))
    return scores


def _shared(
    model: ProxyTunedForCausalLM, batch: Sequence[Request], prompt_rows: Sequence[int], pad_token_id: int
) -> list[Score]:
    """Score rows whose prompts repeat or begin alike: what is common is read once, then the rest behind its cache."""
    device = model.device
    owners = [batch[prompt_rows.index(prompt_row)] for prompt_row in range(max(prompt_rows) + 1)]
    cache = model.new_cache()
    prompts = _read_beginning(model, cache, owners)
    lengths = [0 if prompt is None else prompt.shape[1] for prompt in prompts]
    rests = [
        left_pad([owner.role_ids[role][length:] for owner in owners], pad_token_id, device)
        for role, length in enumerate(lengths)
    ]
    masks = [_mask_behind(length, rest) for length, rest in zip(lengths, rests, strict=True)]
    with rows_named(owners):
        logits = _read(model, cache, [rest.input_ids for rest in rests], masks, strengths_of(owners).values, num_kept=1)
    rows = torch.tensor(prompt_rows, device=logits.device)
    firsts = torch.tensor([request.continuation_ids[:1] for request in batch], device=logits.device)
    first = _judge(logits[rows], firsts)
    behind: dict[int, tuple[Tensor, Tensor]] = {}
    for group in _of_like_length(batch):
        behind |= _read_continuations(model, cache, masks, batch, prompt_rows, group)
    scores = []
    for row, request in enumerate(batch):
        logprobs, is_likeliest = first.logprobs[row], first.is_likeliest[row]
        if row in behind:
            logprobs = torch.cat([logprobs, behind[row][0]])
            is_likeliest = torch.cat([is_likeliest, behind[row][1]])
        scores.append(_score(request, logprobs, is_likeliest))
    return scores


def _of_like_length(batch: Sequence[Request]) -> list[list[int]]:
    """Return the rows that have more than one token to read, in groups that need little padding."""
    rows = [row for row, request in enumerate(batch) if len(request.continuation_ids) > 1]
    return _divided(sorted(rows, key=lambda row: len(batch[row].continuation_ids)), batch)


def _divided(rows: list[int], batch: Sequence[Request]) -> list[list[int]]:
    """Return rows, short ones first, cut in two (and these again) wherever that saves a quarter of what is read."""
    lengths = [len(batch[row].continuation_ids) - 1 for row in rows]
    if len(rows) < 2 * _FEWEST_ROWS:
        return [rows] if rows else []

    def area(num_short: int) -> int:
        return num_short * lengths[num_short - 1] + (len(rows) - num_short) * lengths[-1]

    num_short = min(range(_FEWEST_ROWS, len(rows) - _FEWEST_ROWS + 1), key=area)
    if area(num_short) > 0.75 * len(rows) * lengths[-1]:
        return [rows]
    return _divided(rows[:num_short], batch) + _divided(rows[num_short:], batch)


def _read_continuations(
    model: ProxyTunedForCausalLM,
    cache: CompositeCache,
    masks: Sequence[Tensor],
    batch: Sequence[Request],
    prompt_rows: Sequence[int],
    group: Sequence[int],
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return for rows of the batch what their prompts' cache says of all tokens of theirs but the first."""
    members = [batch[row] for row in group]
    owners = torch.tensor([prompt_rows[row] for row in group])
    read, targets, is_read = _continuations(members, model.device)
    behind = [torch.cat([mask[owners.to(mask.device)], is_read.to(mask)], dim=1) for mask in masks]
    repeated = cache.repeated(owners)
    with rows_named(members):
        logits = _read(model, repeated, [read] * len(masks), behind, strengths_of(members).values)
    judged = _judge(logits, targets)
    counts = [len(request.continuation_ids) - 1 for request in members]
    return {
        row: (judged.logprobs[index, :count], judged.is_likeliest[index, :count])
        for index, (row, count) in enumerate(zip(group, counts, strict=True))
    }


def _can_share_beginnings(model: ProxyTunedForCausalLM) -> bool:
    """Return whether padding may stand between what is shared and the rest: a sliding window counts it as text."""
    has_window = any(getattr(role.config, "sliding_window", None) is not None for role in model.roles)
    return model.support.gaps and not has_window


def _common_lengths(owners: Sequence[Request]) -> list[int]:
    """Return for each role how many ids all prompts begin with, leaving each a last one; all 0 where it is too few."""
    lengths = []
    for role in range(len(owners[0].role_ids)):
        prompts = [owner.role_ids[role] for owner in owners]
        # Only the first and last in sorted order can differ earliest.
        lowest, highest = min(prompts), max(prompts)
        pairs = zip(lowest, highest, strict=False)
        common = next((index for index, (one, other) in enumerate(pairs) if one != other), len(lowest))
        lengths.append(min(common, *(len(prompt) - 1 for prompt in prompts)))
    return lengths if len(owners) > 1 and min(lengths) >= _WORTH_SHARING else [0] * len(lengths)


def _read_beginning(
    model: ProxyTunedForCausalLM, cache: CompositeCache, owners: Sequence[Request]
) -> list[Tensor | None]:
    """Read what all prompts begin with into the cache, one row, and repeat it for each; return the ids per role."""
    lengths = _common_lengths(owners)
    if not any(lengths) or not _can_share_beginnings(model):
        return [None] * len(lengths)
    begun = [
        torch.tensor([ids[:length]], device=model.device)
        for ids, length in zip(owners[0].role_ids, lengths, strict=True)
    ]
    # Caches do not depend on α, but a role that any row needs has to have read.
    alpha = torch.tensor([strengths_of(owners).active]).float()
    with rows_named(owners):
        _read(model, cache, begun, [torch.ones_like(ids) for ids in begun], alpha, num_kept=1)
    cache.reorder_cache(torch.zeros(len(owners), dtype=torch.long))
    return list(begun)


def _read(
    model: ProxyTunedForCausalLM,
    cache: CompositeCache,
    ids: Sequence[Tensor],
    masks: Sequence[Tensor],
    alpha: Tensor,
    *,
    num_kept: int = 0,
) -> Tensor:
    """Return the logits of ids `[B, T]` per role behind the cache, whose masks `[B, past + T]` cover both."""
    prompts = [
        RolePrompt(role_ids, None if bool(mask.all()) else mask) for role_ids, mask in zip(ids, masks, strict=True)
    ]
    logits: Tensor = model(
        ids[0],
        role_prompts=prompts,
        past_key_values=cache,
        logits_to_keep=num_kept,
        alpha=alpha,
        # The last token of a prompt predicts the first of the answer, and each of the answer's the next.
        answer_position=0 if num_kept else ids[0].shape[1],
        return_dict=True,
    ).logits
    return logits


def _mask_behind(length: int, rest: RolePrompt) -> Tensor:
    """Return the mask `[B, length + T]` of rows that follow `length` tokens they share."""
    mask = torch.ones_like(rest.input_ids) if rest.attention_mask is None else rest.attention_mask
    return torch.cat([mask.new_ones(mask.shape[0], length), mask], dim=1)


def _continuations(batch: Sequence[Request], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is read behind the prompts `[B, T]`, padded on the right, its targets, and which of it is real."""
    width = max(len(request.continuation_ids) for request in batch)
    padded = torch.tensor(
        [[*request.continuation_ids, *[0] * (width - len(request.continuation_ids))] for request in batch],
        device=device,
    )
    lengths = torch.tensor([len(request.continuation_ids) - 1 for request in batch], device=device)
    is_read = torch.arange(width - 1, device=device) < lengths[:, None]
    return padded[:, :-1], padded[:, 1:], is_read


def _judge(logits: Tensor, targets: Tensor) -> _Judged:
    """Return what logits `[B, T, V]` say of targets `[B, T]`."""
    targets = targets.to(logits.device)
    logprobs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    return _Judged(logprobs, logits.argmax(-1) == targets)


def _score(request: Request, logprobs: Tensor, is_likeliest: Tensor) -> Score:
    return Score(
        token_ids=request.continuation_ids, logprobs=tuple(logprobs.tolist()), is_greedy=bool(is_likeliest.all())
    )
