"""Finds out what a server can do, by a few tiny requests."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from proxytune.errors import RemoteBudgetError, RemoteError, RoleError, VocabularyError
from proxytune.remote.answers import OutsideVocabularyError, UnclearError
from proxytune.remote.asking import Asker, Form
from proxytune.remote.budget import Cost, stated_cost
from proxytune.remote.client import Call, Client
from proxytune.remote.distribution import Distribution, Query
from proxytune.remote.settings import RemoteSettings, Verification
from proxytune.remote.token_names import ID_PREFIX, TokenNames
from proxytune.remote.transport import TransientError
from proxytune.remote.vocabulary_check import WAY_OUT, named_tokens

_T = TypeVar("_T")
_TEXT = "The answer to question 7 is: yes, it is."
_FEWEST_TOKENS = 4
_NUM_ATTEMPTS = 2
_COUNTS = (20, 5, 1)
_WHOLE_SHARE = 0.9  # of the tokenizer's ids: a server's model may have no row for the last of them
_WHOLE_MASS = 0.98
_SAME_PROBABILITY = 0.05  # between two ways of asking for one place: other batches and bfloat16 make a little
# These say that the client, the model or the moment is wrong, and nothing of what the request asked for.
_OTHER_REFUSALS = (401, 403, 404, 408, 429)


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """Capabilities of a server.

    Attributes:
        form: Format in which it wants requests.
        num_logprobs: Log-probabilities per position; None is the whole vocabulary.
        ways: To ask for several positions, in the order in which they are tried; "single" is the last.
    """

    form: Form
    num_logprobs: int | None
    ways: tuple[Verification, ...]


def is_refusal(error: RemoteError) -> bool:
    """Return whether a server does not know, or does not allow, what a request asked for."""
    return error.status is not None and 400 <= error.status < 500 and error.status not in _OTHER_REFUSALS


class Probe:
    """Asks one server.

    Attributes:
        named_tokens: Ids, and how the server says they read, in all answers until now.
    """

    def __init__(self, client: Client, settings: RemoteSettings, tokenizer: Any, names: TokenNames) -> None:
        self.named_tokens: dict[int, str] = {}
        self._refused = ""
        self._client = client
        self._settings = settings
        self._tokenizer = tokenizer
        self._names = names
        self._width = max(tokenizer.get_vocab().values()) + 1
        ids = list(tokenizer(_TEXT)["input_ids"]) or [0]
        self._query = Query(tuple(ids * (1 + _FEWEST_TOKENS // len(ids))), 2)

    def abilities(self) -> Abilities:
        """Return what the server can do.

        Raises:
            RoleError: It gives no log-probabilities, or not those that were asked for.
            VocabularyError: It reads a text as more or fewer tokens than the tokenizer.
            RemoteError: Requests fail for good.
        """
        form, gives_ids = self._form()
        form, num_logprobs, last = self._with_count(form, gives_ids)
        return Abilities(form=form, num_logprobs=num_logprobs, ways=self._ways(form, last))

    def _form(self) -> tuple[Form, bool]:
        """Find how prompts are written, and whether tokens are named by id."""
        reason = "its answers hold none"
        count = min(Form.count, self._settings.top_logprobs or Form.count)
        for takes_ids, names_ids in ((True, True), (True, False), (False, True), (False, False)):
            form = Form(takes_ids=takes_ids, names_ids=names_ids, count=count)
            try:
                answer = self._raw(form)
            except RemoteError as error:
                if not is_refusal(error):
                    raise
                reason = str(error)
                continue
            if answer is None or (form.takes_ids and self._num_read(answer) not in (None, len(self._query.token_ids))):
                continue
            if not form.takes_ids:
                form = replace(form, adds_special_tokens=self._adds_special_tokens(answer))
            has_names = ID_PREFIX in str(answer["choices"][0]["logprobs"].get("top_logprobs"))
            gives_ids = has_names or bool(named_tokens(answer))
            return replace(form, names_ids=form.names_ids and has_names), gives_ids
        raise RoleError(
            f"the server at {self._settings.base_url} cannot be the base, which needs log-probabilities from "
            f"/completions: {reason}"
        )

    def _raw(self, form: Form) -> Any:
        """Return a whole answer with log-probabilities, None where the server gives none."""
        asker = self._asker(form)
        call = asker.single(self._query)

        def read(answer: Any) -> Any:
            # Names that are no token's are for the vocabulary check.
            with contextlib.suppress(RemoteError):
                asker.read_one(answer)
            return answer

        return self._attempt(Call(call.body, read, call.cost))

    def _num_read(self, answer: Any) -> int | None:
        """Return how many tokens the server says it has read."""
        stated = stated_cost(answer, Cost(-1, -1)).num_prompt_tokens
        return None if stated < 0 else stated

    def _adds_special_tokens(self, answer: Any) -> bool:
        """Return whether a text got special tokens, by the number of tokens that the server counted."""
        text = self._asker(Form(takes_ids=False, names_ids=False)).body([self._query.token_ids])["prompt"]
        with_them = len(self._tokenizer(text)["input_ids"])
        without = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        num_read = self._num_read(answer)
        if num_read in (None, with_them):
            return True
        if num_read == without:
            return False
        raise VocabularyError(
            f"the server reads {num_read} tokens in a text where the tokenizer reads {with_them}: they are different "
            "tokenizers, so choose models of one family."
        )

    def _with_count(self, form: Form, gives_ids: bool) -> tuple[Form, int | None, Distribution]:
        """Find how many log-probabilities there are per position."""
        requested = self._settings.top_logprobs
        counts: Sequence[int] = (requested,) if requested else (-1, self._width, *_COUNTS) if gives_ids else _COUNTS
        most = self._width
        for count in (count for count in counts if count <= most):
            distributions = self._tried("single", replace(form, count=count), self._query)
            if distributions is None:
                continue
            [last] = distributions
            num_seen = len(last.token_ids)
            if num_seen >= _WHOLE_SHARE * self._width and last.mass > _WHOLE_MASS:
                return replace(form, count=count), None, last
            # Names by text fall together now and then; a server that cuts the number down gives far less.
            if 0 < count <= num_seen * (1 if gives_ids else 2):
                return replace(form, count=count), count, last
            most = min(most, num_seen)
        asked = f"top_logprobs={requested}: ask for fewer" if requested else "log-probabilities that can be used"
        raise RoleError(f"the server at {self._settings.base_url} does not give {asked}. {self._refused}".rstrip())

    def _ways(self, form: Form, last: Distribution) -> tuple[Verification, ...]:
        """Find how several positions can be asked for at once; every way must give what plain requests give."""
        requested = self._settings.verification
        if requested == "single":
            return ("single",)
        plain = self._tried("prompts", form, self._query)
        takes_lists = plain is not None and _is_same(plain[1], last)
        if not takes_lists:
            first = self._tried("single", form, self._query.prefixes()[0])
            plain = None if first is None else [first[0], last]
        ways: list[Verification] = []
        for way in _ONE_PASS:
            if plain is not None and not ways and requested in ("auto", way):
                distributions = self._tried(way, form, self._query)
                ways += [way] if distributions is not None and all(map(_is_same, distributions, plain)) else []
        ways += ["prompts"] if takes_lists else []
        if requested != "auto" and requested not in ways:
            raise RoleError(
                f"verification is {requested!r}, which the server at {self._settings.base_url} does not know: leave it "
                "at 'auto'."
            )
        return (*ways, "single")

    def _tried(self, way: Verification, form: Form, query: Query) -> list[Distribution] | None:
        """Return what a way of asking brings, None where the server does not know it."""
        try:
            call = self._asker(form).call(way, query)
        except RemoteError:
            return None
        try:
            return self._attempt(call)
        except RemoteBudgetError:
            raise
        except RemoteError as error:
            # Some servers meet what they do not know with an error of their own.
            if not is_refusal(error) and (error.status is None or error.status < 500):
                raise
            self._refused = str(error)
            return None

    def _attempt(self, call: Call[_T]) -> _T | None:
        """Return what a request brings, None for an answer of another kind, twice: one may have been damaged."""
        outside: list[OutsideVocabularyError] = []

        def read(answer: Any) -> _T | None:
            try:
                result = call.read(answer)
            except OutsideVocabularyError as error:
                outside.append(error)
                return None
            except (TransientError, UnclearError, RemoteError):
                return None
            self.named_tokens |= named_tokens(answer)
            return result

        for _ in range(_NUM_ATTEMPTS):
            result = self._client.submit(self._client.complete(Call(call.body, read, call.cost))).result()
            if result is not None:
                return result
        if len(outside) == _NUM_ATTEMPTS:
            raise VocabularyError(f"the base's server gives {outside[0]}: {WAY_OUT}")
        return None

    def _asker(self, form: Form) -> Asker:
        return Asker(self._settings.model, form, self._tokenizer, self._names)


_ONE_PASS: tuple[Verification, ...] = ("prompt_logprobs", "echo")


def _is_same(first: Distribution, second: Distribution) -> bool:
    """Return whether two answers are for the same place."""
    ids, first_indices, second_indices = np.intersect1d(first.token_ids, second.token_ids, return_indices=True)
    if 2 * len(ids) < min(len(first.token_ids), len(second.token_ids)):
        return False
    difference = np.exp(first.logprobs[first_indices]) - np.exp(second.logprobs[second_indices])
    return bool(np.abs(difference).max() < _SAME_PROBABILITY)
