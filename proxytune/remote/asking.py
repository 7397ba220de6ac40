"""Questions as requests: what is sent for a row in each of the ways that servers know, and how the answer is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxytune.errors import RemoteError
from proxytune.remote.answers import Reader, choices_of
from proxytune.remote.budget import Cost, stated_cost
from proxytune.remote.client import Call
from proxytune.remote.distribution import Distribution, Query
from proxytune.remote.prompt_texts import PromptTexts
from proxytune.remote.settings import Verification
from proxytune.remote.token_names import TokenNames
from proxytune.remote.transport import TransientError


@dataclass(frozen=True, kw_only=True)
class Form:
    """Format in which a server wants prompts and names tokens.

    Attributes:
        takes_ids: Prompts are token ids; else text.
        names_ids: Tokens are named by id where asked (`return_tokens_as_token_ids`).
        adds_special_tokens: The server puts the tokenizer's special tokens around text by itself.
        count: Log-probabilities to ask for per position; -1 is the whole vocabulary.
    """

    takes_ids: bool
    names_ids: bool
    adds_special_tokens: bool = True
    count: int = 5


class Asker:
    """Writes requests in one form."""

    def __init__(
        self, model: str, form: Form, tokenizer: Any, names: TokenNames, vocab_size: int | None = None
    ) -> None:
        self.form = form
        self._model = model
        self._texts = PromptTexts(tokenizer, adds_special_tokens=form.adds_special_tokens)
        self._reader = Reader(form.count, names, vocab_size)

    def call(self, way: Verification, query: Query) -> Call[list[Distribution]]:
        """Return the request for a question; "single" takes one position only.

        Raises:
            RemoteError: The row cannot be written for this server.
        """
        if way == "single":
            return self.single(query)
        if way == "prompts":
            return self.prompts(query)
        return self.echo(query) if way == "echo" else self.prompt_logprobs(query)

    def single(self, query: Query) -> Call[list[Distribution]]:
        """Ask for the distribution after all ids."""
        return self._call([query.token_ids], {}, lambda choices: [self._reader.generated(choices[0])])

    def read_one(self, answer: Any) -> Distribution:
        """Return what `single` would, however many tokens the server has read.

        Raises:
            TransientError: The answer is not a valid one.
        """
        return self._reader.generated(choices_of(answer, 1)[0])

    def prompts(self, query: Query) -> Call[list[Distribution]]:
        """Ask for each position by a prompt of its own, all in one request."""
        prompts = [prefix.token_ids for prefix in query.prefixes()]
        return self._call(prompts, {}, lambda choices: [self._reader.generated(choice) for choice in choices])

    def echo(self, query: Query) -> Call[list[Distribution]]:
        """Have the prompt come back with its log-probabilities, and one token behind it."""
        return self._call(
            [query.token_ids],
            {"echo": True},
            lambda choices: self._reader.echoed(choices[0], query.token_ids, query.num_positions),
        )

    def prompt_logprobs(self, query: Query) -> Call[list[Distribution]]:
        """Ask vLLM for the log-probabilities of the prompt, and one token behind it."""
        return self._call(
            [query.token_ids],
            {"prompt_logprobs": self.form.count},
            lambda choices: self._reader.of_prompt(choices[0], query.token_ids, query.num_positions),
        )

    def body(self, prompts: Sequence[Sequence[int]], **fields: Any) -> dict[str, Any]:
        """Return a request's body.

        Raises:
            RemoteError: A prompt cannot be written as text.
        """
        written: list[Any] = [list(ids) if self.form.takes_ids else self._texts.text(ids) for ids in prompts]
        body = {
            "model": self._model,
            "prompt": written[0] if len(written) == 1 else written,
            "max_tokens": 1,
            "logprobs": self.form.count,
            # OpenAI's description does not say whether log-probabilities follow the temperature; at 1 it is the same.
            # Names by text can fall together, and then the name of a token drawn beyond the likeliest would stay unseen
            # as one too many: there the likeliest is taken, for which every server known gives the plain distribution.
            "temperature": 1 if self.form.takes_ids and self.form.names_ids else 0,
            "top_p": 1,
            **fields,
        }
        if self.form.names_ids:
            body |= {"return_tokens_as_token_ids": True, "return_token_ids": True}
        return body

    def _call(self, prompts: Sequence[Sequence[int]], fields: Mapping[str, Any], read: Any) -> Call[list[Distribution]]:
        cost = Cost(sum(map(len, prompts)), len(prompts))

        def checked(answer: Any) -> list[Distribution]:
            self._require_same_length(answer, cost)
            choices = choices_of(answer, len(prompts))
            for choice, ids in zip(choices, prompts, strict=True):
                theirs = choice.get("prompt_token_ids")
                if self.form.takes_ids and isinstance(theirs, list) and theirs != list(ids):
                    raise TransientError("an answer to a prompt of other tokens")
            distributions: list[Distribution] = read(choices)
            return distributions

        return Call(self.body(prompts, **fields), checked, cost)

    def _require_same_length(self, answer: Any, cost: Cost) -> None:
        """Raise for a prompt that the server read as more or fewer tokens than it has.

        Raises:
            TransientError: Ids: the answer is to another prompt.
            RemoteError: A text.
        """
        stated = stated_cost(answer, cost).num_prompt_tokens
        if stated == cost.num_prompt_tokens:
            return
        if self.form.takes_ids:
            raise TransientError(f"an answer to a prompt of {stated} tokens, not of {cost.num_prompt_tokens}")
        raise RemoteError(
            f"the server reads {stated} tokens in a text of {cost.num_prompt_tokens}: its tokenizer is not the one "
            "given, or adds special tokens; a server that takes token ids, as vLLM, has no such rows."
        )
