"""A base behind an API as one more causal LM: no weights, and logits that are the log-probabilities its server gives.

Tokens that a server does not list are −inf, so the rule stands as it is: a server that gives the full vocabulary
gives exact results, one that gives the k likeliest re-weights those.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from proxytune.errors import OptionError, RuntimeUnsupportedError
from proxytune.remote.distribution import Distribution, Query
from proxytune.remote.model import RemoteModel
from proxytune.remote.settings import RemoteSettings

_NO_CACHE = (
    "a base behind an API keeps no cache, so transformers' generate, beams and assisted decoding cannot run it: "
    "take ProxyGenerator.generate or stream without beams, or a base that is loaded here."
)


class RemoteCausalLM(torch.nn.Module):
    """A base behind an API.

    Attributes:
        remote: Asks the server.
        config: Its sizes: `vocab_size` is the tokenizer's, `max_position_embeddings` the server's context, no layers.
        generation_config: Special ids, the tokenizer's.
        device: Device of its logits: the expert's.
        dtype: Of its logits.
    """

    def __init__(self, remote: RemoteModel, config: PreTrainedConfig) -> None:
        """Arguments as the attributes."""
        super().__init__()
        self.remote = remote
        self.config = config
        self.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        self.name_or_path = f"openai:{remote.settings.model}"
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int = 0,
        num_positions: Sequence[int] | None = None,
    ) -> "RemoteOutput":
        """Return logits `[B, T', V]`, float32, of which 0 are those that were not asked for.

        Args:
            input_ids: `[B, T]`, everything each row reads.
            attention_mask: `[B, T]`, 0 on padding; None when nothing is padded.
            past_key_values: Must be None.
            logits_to_keep: Only the last so many positions; 0 keeps all.
            num_positions: Number of last positions asked for in each row; None is all that are kept.

        Raises:
            RuntimeUnsupportedError: A cache was passed.
            RemoteError: A row's request failed for good.
        """
        if past_key_values is not None:
            raise RuntimeUnsupportedError(_NO_CACHE)
        if not isinstance(logits_to_keep, int):
            raise OptionError("logits_to_keep must be a number where the base is behind an API: it cannot pick places.")
        num_kept = min(logits_to_keep or input_ids.shape[1], input_ids.shape[1])
        positions = _text_positions(input_ids, attention_mask)
        queries, columns = [], []
        for row, (ids, kept_positions) in enumerate(zip(input_ids.tolist(), positions, strict=True)):
            kept = sum(position >= input_ids.shape[1] - num_kept for position in kept_positions)
            count = kept if num_positions is None else min(kept, num_positions[row])
            queries.append(Query(tuple(ids[position] for position in kept_positions), count))
            columns.append(
                [
                    position - (input_ids.shape[1] - num_kept)
                    for position in kept_positions[len(kept_positions) - count :]
                ]
            )
        table = np.zeros((len(queries), num_kept, self.config.vocab_size), dtype=np.float32)
        for row, distributions in enumerate(self.ask(queries)):
            for column, distribution in zip(columns[row], distributions, strict=True):
                fill(table[row, column], distribution)
        return RemoteOutput(torch.from_numpy(table).to(self.device))

    def ask(self, queries: Sequence[Query]) -> list[list[Distribution]]:
        """Return what the server says to all queries, which go out together.

        Raises:
            RemoteError: One failed for good; the others are cancelled.
        """
        futures = self.remote.submit(queries)
        try:
            return [future.result() for future in futures]
        finally:
            cancel(futures)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: transformers' generate reads token by token behind a cache."""
        raise RuntimeUnsupportedError(_NO_CACHE)

    def get_input_embeddings(self) -> None:
        """Return None: its weights are elsewhere."""
        return

    def get_output_embeddings(self) -> None:
        """Return None: its weights are elsewhere."""
        return


class RemoteOutput:
    """Output of a forward: `logits` `[B, T', V]`."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def connect(settings: RemoteSettings, tokenizer: Any) -> RemoteCausalLM:
    """Return the base at these settings, once its server was asked what it can do.

    Raises:
        RoleError: It cannot be reached, does not have the model, or gives no log-probabilities.
        VocabularyError: Its token ids are not the tokenizer's.
    """
    remote = RemoteModel(settings, tokenizer)
    config = PreTrainedConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    config.vocab_size = max(tokenizer.get_vocab().values()) + 1
    config.max_position_embeddings = remote.max_context
    config.num_hidden_layers = config.hidden_size = 0
    return RemoteCausalLM(remote, config)


def fill(logits: np.ndarray, distribution: Distribution) -> None:
    """Write a distribution over `logits` `[V]`, −inf where nothing was seen; ids behind V, padding, are left out."""
    logits.fill(-np.inf)
    is_known = distribution.token_ids < len(logits)
    logits[distribution.token_ids[is_known]] = distribution.logprobs[is_known]


def cancel(futures: Sequence[Future[Any]]) -> None:
    """Let what has not been sent yet not be sent; what has an answer keeps it."""
    for future in futures:
        future.cancel()


def _text_positions(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Return per row the columns that hold tokens."""
    if attention_mask is None:
        return [list(range(input_ids.shape[1]))] * input_ids.shape[0]
    return [[position for position, is_token in enumerate(row) if is_token] for row in attention_mask.tolist()]
