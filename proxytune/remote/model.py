"""A model behind a completions endpoint: rows of token ids in, next-token distributions out, many at once."""

import asyncio
import warnings
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from proxytune.errors import ProxyTuneError, ProxyTuneWarning, RemoteBudgetError, RemoteError, RoleError
from proxytune.remote.answers import UnclearError
from proxytune.remote.asking import Asker
from proxytune.remote.budget import RemoteUsage
from proxytune.remote.client import Client, Clock
from proxytune.remote.distribution import Distribution, Query
from proxytune.remote.probing import Abilities, Probe, is_refusal
from proxytune.remote.settings import RemoteSettings, Verification
from proxytune.remote.token_names import TokenNames
from proxytune.remote.vocabulary_check import require_same_names, require_same_tokens

# Log-probabilities in one answer. `prompt_logprobs` and `echo` send some for every token of the prompt, and a server
# that computes them may not use what it has cached; from about here several prompts are less to send.
_MANY_ENTRIES = 200_000
_FEW_ENTRIES = 4_000


class RemoteModel:
    """Asks one model at one server, from any thread.

    Attributes:
        settings: Address, and limits of the requests.
        max_context: Most tokens of prompt and answer, None if the server does not say.
        abilities: Capabilities of the server.
    """

    def __init__(
        self, settings: RemoteSettings, tokenizer: Any, vocab_size: int | None = None, *, clock: Clock | None = None
    ) -> None:
        """Connect, and find out by a few tiny requests what the server can do.

        Args:
            settings: Address, and limits of the requests.
            tokenizer: Of the small models; the server's must be the same.
            vocab_size: Ids from here on are left out of distributions; None leaves none out.
            clock: For the waits between requests.

        Raises:
            RoleError: It cannot be reached, does not have the model, or gives no log-probabilities.
            OptionError: The key cannot stand in a header.
            VocabularyError: Its token ids are not the tokenizer's.
            RemoteBudgetError: The budget does not even suffice for this.
        """
        self.settings = settings
        try:
            client = Client(settings, clock)
        except ProxyTuneError:
            raise
        except (OSError, ValueError) as error:
            raise RoleError(f"no connection to {settings.base_url} can be prepared: {error}") from error
        self._client = client
        self._close = weakref.finalize(self, client.close)
        names = TokenNames(tokenizer)
        try:
            self.max_context = _context(client, settings)
            probe = Probe(client, settings, tokenizer, names)
            self.abilities: Abilities = probe.abilities()
            require_same_names(probe.named_tokens, tokenizer)
            require_same_tokens(client, settings, tokenizer)
        except RemoteBudgetError:
            self.close()
            raise
        except RemoteError as error:
            self.close()
            raise RoleError(f"the base cannot be asked: {error}") from error
        except BaseException:
            self.close()
            raise
        self._asker = Asker(settings.model, self.abilities.form, tokenizer, names, vocab_size)
        self._ways = self.abilities.ways
        if settings.verification == "auto" and self.num_logprobs is None and "prompts" in self._ways:
            # A whole vocabulary for the places that are wanted is less to send than one for every token of the prompt:
            # with vLLM on a CPU, 1,252 ids and about 40 tokens, a cycle of four drafts took 69 ms against 232.
            self._ways = self._ways[self._ways.index("prompts") :]
        width = max(tokenizer.get_vocab().values()) + 1
        self._num_entries = width if self.num_logprobs is None else self.num_logprobs

    @property
    def num_logprobs(self) -> int | None:
        """Log-probabilities per position; None is the whole vocabulary."""
        return self.abilities.num_logprobs

    @property
    def verification(self) -> Verification:
        """Way to ask for several positions of a row, as long as the server keeps to it."""
        return self._ways[0]

    @property
    def usage(self) -> RemoteUsage:
        """Cost of completions until now, those of construction among them."""
        return self._client.usage

    def submit(self, queries: Sequence[Query]) -> list[Future[list[Distribution]]]:
        """Return at once one future per row: its `num_positions` distributions, or the RemoteError of this row alone.

        Cancelling one also ends a request that is on its way.
        """
        return [self._client.submit(self._answer(query)) for query in queries]

    def close(self) -> None:
        """Let go of all connections; rows that have no result yet get a RemoteError."""
        self._close()

    async def _answer(self, query: Query) -> list[Distribution]:
        """Ask in the first way that the server takes."""
        refused: dict[Verification, RemoteError] = {}
        for way in self._ways_for(query):
            try:
                distributions = await self._ask(way, query)
            except UnclearError:
                continue
            except RemoteError as error:
                if not is_refusal(error):
                    raise
                refused[way] = error
                continue
            self._give_up(refused)
            return distributions
        raise next(iter(refused.values()))

    def _ways_for(self, query: Query) -> tuple[Verification, ...]:
        """Return the ways to ask for a row, the best first."""
        ways = self._ways
        num_entries = len(query.token_ids) * self._num_entries
        if query.num_positions == 1:
            # An echo shows which prompt was read.
            return ("echo", "single") if ways[0] == "echo" and num_entries <= _FEW_ENTRIES else ("single",)
        if self.settings.verification == "auto" and "prompts" in ways and num_entries > _MANY_ENTRIES:
            return ways[ways.index("prompts") :]
        return ways

    async def _ask(self, way: Verification, query: Query) -> list[Distribution]:
        if way != "single":
            return await self._client.complete(self._asker.call(way, query))
        calls = [self._client.complete(self._asker.single(prefix)) for prefix in query.prefixes()]
        return [distribution for answer in await _all(calls) for distribution in answer]

    def _give_up(self, refused: Mapping[Verification, RemoteError]) -> None:
        """Ask no more in ways that the server has refused for a row which it took in another."""
        given_up = [way for way in self._ways if way in refused]
        self._ways = tuple(way for way in self._ways if way not in refused)
        for way in given_up:
            warnings.warn(
                f"the base's server takes {way} no more ({refused[way]}); from here on {self._ways[0]} is asked for.",
                ProxyTuneWarning,
                stacklevel=2,
            )


async def _all(work: Sequence[Coroutine[Any, Any, list[Distribution]]]) -> list[list[Distribution]]:
    """Return all results in order; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _context(client: Client, settings: RemoteSettings) -> int | None:
    """Return the context of the model that the server lists.

    Raises:
        RoleError: It lists others only.
        RemoteError: It cannot be asked.
    """

    def read(answer: Any) -> list[Mapping[str, Any]]:
        cards = answer.get("data") if isinstance(answer, Mapping) else None
        return [card for card in cards if isinstance(card, Mapping)] if isinstance(cards, list) else []

    try:
        cards = client.fetch("GET", f"{settings.base_url}/models", None, read)
    except RemoteError as error:
        if error.status in (404, 405):
            return None
        raise
    card = next((card for card in cards if card.get("id") == settings.model), None)
    if card is None and cards:
        there = ", ".join(repr(card.get("id")) for card in cards[:10])
        raise RoleError(f"the server at {settings.base_url} has no model {settings.model!r}; it has {there}.")
    length = card.get("max_model_len") if card else None
    return length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None
