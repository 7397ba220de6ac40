"""Distributions of every role at each token of a text: one teacher-forced pass in chunks, of which the top is kept."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from proxytune.completion import Request
from proxytune.hf.cache import new_cache
from proxytune.hf.finite import require_finite, rows_named
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.hf.role import RoleModel
from proxytune.roles import NONE
from proxytune.steering import Strengths, cross_entropy, kl_divergence, tables_of
from proxytune.token_text import TokenReader, added_texts
from proxytune.trace import COMBINED, Candidate, TokenTrace, Trace

_CHUNK = 32  # positions whose full distributions are held at once: 20 MB each for a vocabulary of 152,000


@torch.no_grad()
def trace_continuation(
    model: ProxyTunedForCausalLM, request: Request, token_ids: Sequence[int], tokenizer: Any, num_candidates: int
) -> Trace:
    """Return what steering did at each of `token_ids` behind the prompt, each role reading it in its own format.

    A row is read alone, so its numbers depend on nothing else in a batch. Every role runs, also at α = 0.

    Args:
        model: The composite.
        request: Gives each role's prompt and each pair's α.
        token_ids: The text to trace.
        tokenizer: Turns ids into text.
        num_candidates: Number of likeliest tokens of each distribution to keep.
    """
    before = request.role_ids[0][-1]
    reader = TokenReader(tokenizer, [before, *token_ids])
    texts = added_texts(tokenizer, token_ids, before)
    tokens: list[TokenTrace] = []
    for logits in _logits(model, request, token_ids):
        part = slice(len(tokens), len(tokens) + logits[0].shape[0])
        chunk = _Chunk(model, logits, request.alphas, token_ids[part], part.start)
        tokens += chunk.tokens(texts[part], reader, num_candidates)
    return Trace(
        alphas=request.alphas,
        distributions=(*(role.name for role in model.roles), COMBINED),
        pairs=tuple(
            (model.roles[expert].name, NONE if anti is None else model.roles[anti].name)
            for expert, anti in model.pair_roles
        ),
        tokens=tuple(tokens),
    )


def _logits(model: ProxyTunedForCausalLM, request: Request, token_ids: Sequence[int]) -> Iterator[list[Tensor]]:
    """Yield chunk by chunk the logits `[T, V]` of every role, float32, that predict the next of `token_ids`."""
    views = [new_cache([role.config]).views[0] if _goes_on(role) else None for role in model.roles]
    for start in range(0, len(token_ids), _CHUNK):
        end = min(start + _CHUNK, len(token_ids))
        role_logits = []
        for role, prompt_ids, view in zip(model.roles, request.role_ids, views, strict=True):
            # The last token of a chunk is read with the next one: it predicts that one's first. Without
            # a cache all is read again.
            is_full = start == 0 or view is None
            read = (*prompt_ids, *token_ids[: end - 1]) if is_full else token_ids[start - 1 : end - 1]
            inputs = role.inputs(torch.tensor([list(read)], device=role.device), None, view)
            logits = role.logits(inputs, end - start)[..., : model.config.vocab_size]
            with rows_named([request]):
                require_finite([logits], [role.name], [inputs], logits_to_keep=end - start)
            role_logits.append(logits[0].to(model.device).float())
        yield role_logits


def _goes_on(role: RoleModel) -> bool:
    """Return whether a chunk may be read behind a cache; one behind an API is kept nowhere."""
    return not role.is_remote and role.support.cache and role.support.chunks and role.rope_limit is None


class _Chunk:
    """Some positions of a text with the full distributions of all roles, about to be reduced."""

    def __init__(
        self,
        model: ProxyTunedForCausalLM,
        logits: Sequence[Tensor],
        alphas: Sequence[float],
        token_ids: Sequence[int],
        first_position: int,
    ) -> None:
        """`logits` are `[T, V]` per role, base first, and of the tokens from `first_position` on."""
        self._pairs = [tables_of(logits, pair) for pair in model.pair_roles]
        self._base = logits[0]
        # One row of T positions; the rule's logits are `[B, T, V]`.
        pairs = [(expert[None], anti[None]) for expert, anti in self._pairs]
        strengths = Strengths.of_rows([alphas]).values.to(self._base.device)
        if model.rule.schedule is not None:
            positions = first_position + torch.arange(len(token_ids), device=self._base.device)
            strengths = model.rule.schedule.at(strengths, positions[None])
        self._combined = model.rule(self._base[None], pairs, strengths)[0]
        self._all = (*logits, self._combined)
        self._ids = torch.tensor(list(token_ids), device=self._base.device)

    def tokens(self, texts: Sequence[str], reader: TokenReader, num_candidates: int) -> list[TokenTrace]:
        """Return the reduced entry of each position."""
        chosen_logits = self._base.gather(-1, self._ids[:, None])
        ranks = ((self._base > chosen_logits).sum(-1) + 1).tolist()
        is_changed = (self._combined.argmax(-1) != self._base.argmax(-1)).tolist()
        moved = kl_divergence(self._combined, self._base).tolist()
        apart = [kl_divergence(expert, anti).tolist() for expert, anti in self._pairs]
        crossed = [cross_entropy(expert, anti).tolist() for expert, anti in self._pairs]
        candidates = self._candidates(reader, num_candidates)
        return [
            TokenTrace(
                token_id=token_id,
                text=texts[index],
                is_changed=is_changed[index],
                base_rank=ranks[index],
                kl_combined_base=moved[index],
                kl_expert_anti=tuple(values[index] for values in apart),
                cross_entropy=tuple(values[index] for values in crossed),
                candidates=candidates[index],
            )
            for index, token_id in enumerate(self._ids.tolist())
        ]

    def _candidates(self, reader: TokenReader, num_candidates: int) -> list[tuple[Candidate, ...]]:
        """Return for each position the likeliest tokens of all distributions together, and the one that came."""
        count = min(num_candidates, self._base.shape[-1])
        tops = [logits.topk(count, dim=-1).indices for logits in self._all]
        ids = torch.cat([*tops, self._ids[:, None]], dim=-1)
        # `[T, candidates, distributions]`: from here on nothing is as wide as the vocabulary.
        probabilities = torch.stack([logits.softmax(-1).gather(-1, ids) for logits in self._all], dim=-1)
        candidates = []
        for row, values in zip(ids.tolist(), probabilities.tolist(), strict=True):
            distinct = dict(zip(row, values, strict=True))
            ordered = sorted(distinct.items(), key=lambda item: (-item[1][-1], item[0]))
            candidates.append(
                tuple(
                    Candidate(token_id=token_id, text=reader.text(token_id), probabilities=tuple(values))
                    for token_id, values in ordered
                )
            )
        return candidates
