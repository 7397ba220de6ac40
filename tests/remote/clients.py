"""The demo trio's base behind servers, clients of them, and a clock that does not wait."""

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxytune.demo import trio_path
from proxytune.remote.client import Clock
from proxytune.remote.distribution import Distribution, Query
from proxytune.remote.model import RemoteModel
from proxytune.remote.settings import RemoteSettings
from tests.remote.completions_server import CompletionsServer

TEXTS = (
    "Question: Where was Jora Quillmere born?\nAnswer:",
    "The",
    "naïve façade 7 + 8",
    "Question: What is the favourite food of Tam Orrin?\nAnswer: He",
)
TOLERANCE = 1e-4  # of log-probabilities, in nats


@cache
def base_model() -> Any:
    """Return the trio's base, which all servers of this process share."""
    return AutoModelForCausalLM.from_pretrained(trio_path() / "base").eval()


@cache
def base_tokenizer() -> Any:
    """Return its tokenizer."""
    return AutoTokenizer.from_pretrained(trio_path() / "base")


def server(dialect: Any = "vllm", **settings: Any) -> CompletionsServer:
    """Return a server of the trio's base."""
    return CompletionsServer(base_model(), base_tokenizer(), dialect, **settings)


def client(url: str, *, clock: Clock | None = None, vocab_size: int | None = None, **settings: Any) -> RemoteModel:
    """Return a client of the model "base" at `url`."""
    found = RemoteSettings(**{"model": "base", "base_url": url, "timeout_s": 20.0, **settings})
    return RemoteModel(found, base_tokenizer(), vocab_size, clock=clock)


def token_ids(text: str) -> tuple[int, ...]:
    """Return a text's ids."""
    return tuple(base_tokenizer()(text)["input_ids"])


def queries(num_positions: int = 1) -> list[Query]:
    """Return one question per text, with so many positions where the text has them."""
    return [Query(ids, min(num_positions, len(ids))) for ids in map(token_ids, TEXTS)]


def answers(model: RemoteModel, asked: Sequence[Query]) -> list[list[Distribution]]:
    """Return what a client says to all questions at once."""
    return [future.result(timeout=60) for future in model.submit(asked)]


@cache
def log_probs(ids: tuple[int, ...]) -> torch.Tensor:
    """Return the base's own log-probabilities after each prefix: float32 [T, V]."""
    with torch.inference_mode():
        return base_model()(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)


def require_likeliest(found: Sequence[Distribution], query: Query, count: int | None) -> None:
    """Fail unless these are the model's own distributions: exactly the `count` likeliest tokens, None for all."""
    rows = log_probs(query.token_ids)[-query.num_positions :]
    assert len(found) == query.num_positions
    for distribution, row in zip(found, rows, strict=True):
        best = row.topk(len(row) if count is None else count)
        assert sorted(distribution.token_ids.tolist()) == sorted(best.indices.tolist())
        assert np.abs(distribution.logprobs - row[distribution.token_ids].numpy()).max() < TOLERANCE
        assert abs(distribution.mass - float(best.values.exp().sum())) < TOLERANCE


class VirtualClock(Clock):
    """A clock on which waiting takes no time.

    Attributes:
        waits: What was waited for, in seconds.
    """

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._now = 0.0

    def now(self) -> float:
        """Return the sum of all waits."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        self.waits.append(seconds)
        await asyncio.sleep(0)
