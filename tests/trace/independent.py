"""What a trace must hold, computed from plain models one text at a time; it shares no line with the package."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from proxytune.trace import Trace

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Independent:
    """Plain models in the order base, expert, anti, expert, anti, …, with what each reads before the continuation."""

    models: Sequence[Any]
    prompts: Sequence[Sequence[int]]
    alphas: Sequence[float]
    width: int

    @torch.no_grad()
    def logits(self, role: int, continuation: Sequence[int]) -> Tensor:
        """Return float64 logits `[T, V]` of the shared ids at each place of a continuation: one pass, no cache."""
        ids = [*self.prompts[role], *continuation[:-1]]
        found = self.models[role](torch.tensor([ids]), use_cache=False).logits[0]
        return found[-len(continuation) :, : self.width].double()

    def check(self, trace: Trace, continuation: Sequence[int], num_candidates: int) -> None:
        """Assert that every number of the trace is what the models say, to 1e-5."""
        roles = [self.logits(role, continuation) for role in range(len(self.models))]
        combined = roles[0].clone()
        for number, alpha in enumerate(self.alphas):
            combined += alpha * (roles[1 + 2 * number] - roles[2 + 2 * number])
        names = list(trace.distributions)
        assert (names[0], names[-1], len(trace.tokens)) == ("base", "combined", len(continuation))
        tables = {name: table.softmax(-1) for name, table in zip(names, [*roles, combined], strict=True)}
        for place, token in enumerate(trace.tokens):
            base, last = tables["base"][place], tables["combined"][place]
            assert token.token_id == continuation[place]
            assert token.is_changed == (int(base.argmax()) != int(last.argmax()))
            assert token.base_rank == 1 + sum(1 for value in base.tolist() if value > float(base[token.token_id]))
            assert token.kl_combined_base == close(_kl(last, base))
            for number, (expert, anti) in enumerate(trace.pairs):
                first, second = tables[expert][place], tables[anti][place]
                assert token.kl_expert_anti[number] == close(_kl(first, second))
                assert token.cross_entropy[number] == close(_cross_entropy(first, second))
            self._check_candidates(token, {name: table[place] for name, table in tables.items()}, num_candidates)

    def _check_candidates(self, token: Any, tables: dict[str, Tensor], num_candidates: int) -> None:
        kept = {candidate.token_id for candidate in token.candidates}
        likeliest = {index for table in tables.values() for index in table.topk(num_candidates).indices.tolist()}
        assert kept == likeliest | {token.token_id}
        assert len(kept) <= num_candidates * len(tables) + 1
        for candidate in token.candidates:
            for value, table in zip(candidate.probabilities, tables.values(), strict=True):
                assert value == close(float(table[candidate.token_id]))
        assert [c.probabilities[-1] for c in token.candidates] == sorted(
            (c.probabilities[-1] for c in token.candidates), reverse=True
        )


def close(value: float) -> Any:
    """Return what equals `value` to 1e-5, relative or absolute."""
    return pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)


def _kl(first: Tensor, second: Tensor) -> float:
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(first.tolist(), second.tolist(), strict=True) if p > 0)


def _cross_entropy(first: Tensor, second: Tensor) -> float:
    return -sum(p * math.log(q) for p, q in zip(first.tolist(), second.tolist(), strict=True) if p > 0)
