"""From a server's answer to distributions; nothing is used before all of it has been checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxytune.errors import RemoteError
from proxytune.remote.distribution import LEAST_LOGPROB, Distribution
from proxytune.remote.token_names import ID_PREFIX, TokenNames
from proxytune.remote.transport import TransientError

_ROUNDING = 1e-2  # of a log-probability of one, in what a server in bfloat16 writes
_MOST_MASS = 1.05  # likewise, of all together
_MOST_MASS_OUTSIDE = 0.01  # of ids that no token has: rows of the head that pad it
_UNCLEAR = np.iinfo(np.int64).min


class UnclearError(Exception):
    """Log-probabilities by text that do not tell whether the token of the prompt is one of the likeliest."""


class OutsideVocabularyError(TransientError):
    """Probability on ids that no token of the tokenizer has."""


class Reader:
    """Reads answers to requests for `count` log-probabilities per position; -1 is the whole vocabulary.

    `vocab_size` leaves out ids from there on. A server's head may be wider than its tokenizer, but what lies beyond the
    tokenizer's ids has next to no probability.
    """

    def __init__(self, count: int, names: TokenNames, vocab_size: int | None) -> None:
        self._count = count
        self._names = names
        self._vocab_size = vocab_size

    def generated(self, choice: Mapping[str, Any]) -> Distribution:
        """Return the distribution of the one token that was generated.

        Raises:
            TransientError: The answer is not a valid one.
            RemoteError: It is, and no name in it is that of one token.
        """
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if isinstance(content, list):
            return self._contents(content)
        [top], [token] = _tops(choice, 1)
        return self._by_name(top, token)

    def echoed(self, choice: Mapping[str, Any], token_ids: Sequence[int], num_positions: int) -> list[Distribution]:
        """Return the last distributions of a prompt that came back with its log-probabilities.

        Raises:
            TransientError: The answer is not a valid one, or for another prompt.
            UnclearError: It does not tell what the likeliest tokens are.
        """
        tops, tokens = _tops(choice, len(token_ids) + 1)
        self._require_same(tokens, token_ids)
        distributions = []
        for top, token in list(zip(tops, tokens, strict=True))[-num_positions:]:
            self._require_clear(top, token)
            distributions.append(self._by_name(top, token))
        return distributions

    def of_prompt(self, choice: Mapping[str, Any], token_ids: Sequence[int], num_positions: int) -> list[Distribution]:
        """Return the last distributions from vLLM's `prompt_logprobs`, and from what was generated behind them.

        Raises:
            TransientError: The answer is not a valid one.
        """
        entries = choice.get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != len(token_ids):
            raise TransientError("an answer without prompt_logprobs for every token")
        distributions = []
        for position in range(len(token_ids) - num_positions + 1, len(token_ids)):
            entry = entries[position]
            if not isinstance(entry, Mapping) or not all(isinstance(each, Mapping) for each in entry.values()):
                raise TransientError("prompt_logprobs that are not objects")
            if str(token_ids[position]) not in entry:
                raise TransientError("prompt_logprobs of another prompt")
            top = {name: each.get("logprob") for name, each in entry.items()}
            distributions.append(
                self._distribution(self._only_likeliest(top, str(token_ids[position])), _whole_numbers)
            )
        return [*distributions, self.generated(choice)]

    def _contents(self, content: Sequence[Any]) -> Distribution:
        """Read the form that llama.cpp has in common with chat completions: a list of objects, with ids or texts."""
        if len(content) != 1 or not isinstance(content[0], Mapping):
            raise TransientError(f"log-probabilities of {len(content)} tokens instead of one")
        tops = content[0].get("top_logprobs")
        if not isinstance(tops, list) or not all(isinstance(each, Mapping) for each in tops):
            raise TransientError("an answer without top_logprobs")
        has_ids = all("id" in each for each in tops)
        pairs = [(each.get("id" if has_ids else "token"), each.get("logprob")) for each in tops]
        if has_ids:
            top = {str(index): value for index, value in pairs}
            return self._distribution(self._only_likeliest(top, None), _whole_numbers)
        return self._by_name({str(text): value for text, value in pairs}, None)

    def _by_name(self, top: Mapping[str, Any], token: str | None) -> Distribution:
        return self._distribution(self._only_likeliest(top, token), self._named_ids)

    def _only_likeliest(self, top: Mapping[str, Any], token: str | None) -> Mapping[str, Any]:
        """Return exactly the likeliest: a server adds the token that stands there if it is not among them.

        So a draft and the plain decoding of the same place see the same set.
        """
        if self._count < 0 or len(top) <= self._count:
            return top
        if len(top) > self._count + 1 or token not in top:
            raise TransientError(f"{len(top)} log-probabilities where {self._count} were asked for")
        return {name: value for name, value in top.items() if name != token}

    def _require_same(self, tokens: Sequence[str], token_ids: Sequence[int]) -> None:
        """Raise TransientError where the tokens that came back are not those of the prompt, as far as they are clear.

        The tokens of an echo may read otherwise next to each other than each by itself, so a text may differ where its
        id cannot be told; half of them are those of the prompt all the same.
        """
        ids = self._named_ids(tokens[: len(token_ids)])
        clear = [(index, ours) for index, ours in zip(ids, token_ids, strict=True) if index != _UNCLEAR]
        num_different = sum(index != ours for index, ours in clear)
        has_ids = all(token.startswith(ID_PREFIX) for token in tokens)
        if num_different > (0 if has_ids else len(clear) // 2):
            raise TransientError(f"an echo in which {num_different} of {len(token_ids)} tokens are another prompt's")

    def _require_clear(self, top: Mapping[str, Any], token: str) -> None:
        """Raise UnclearError where names that fell together hide whether `token` is one too many."""
        if self._count < 0 or len(top) > self._count or token not in top:
            return
        is_least = all(value >= top[token] for value in top.values() if isinstance(value, float | int))
        if is_least and any(self._names.is_unclear(name) for name in top):
            raise UnclearError(token)

    def _named_ids(self, names: Sequence[str]) -> list[int]:
        """Return ids, `_UNCLEAR` for names that are not clear."""
        ids = [self._names.token_id(name) for name in names]
        return [_UNCLEAR if index is None else index for index in ids]

    def _distribution(self, top: Mapping[str, Any], ids_of: Any) -> Distribution:
        if not top:
            raise TransientError("no log-probability at all")
        values = _checked(list(top.values()))
        try:
            ids = np.array(ids_of(list(top)), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise TransientError("names of tokens that are not ids") from error
        is_known = ids != _UNCLEAR
        ids, values = ids[is_known], values[is_known]
        is_outside = (ids < 0) | (ids >= self._names.num_ids)
        if np.exp(values[is_outside]).sum() > _MOST_MASS_OUTSIDE or (is_outside.any() and ids.min() < 0):
            raise OutsideVocabularyError(
                f"log-probabilities of token id {ids[is_outside][0]}, outside the vocabulary of {self._names.num_ids}"
            )
        ids, values = ids[~is_outside], values[~is_outside]
        if len(np.unique(ids)) != len(ids):
            raise TransientError("the same token twice")
        distribution = Distribution.of(ids, values, vocab_size=self._vocab_size)
        if not len(distribution.token_ids):
            raise RemoteError(
                f"none of the {len(top)} likeliest tokens can be told from the server's names for them "
                f"({', '.join(map(repr, list(top)[:3]))}): a server that gives token ids, as vLLM, has no such rows."
            )
        return distribution


def choices_of(answer: Any, num_prompts: int) -> list[Mapping[str, Any]]:
    """Return one choice per prompt, in the prompts' order.

    Raises:
        TransientError: They are not there, or not exactly once.
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not all(isinstance(choice, Mapping) for choice in choices):
        raise TransientError("an answer without choices")
    by_index = {choice.get("index"): choice for choice in choices if isinstance(choice.get("index"), int)}
    if len(choices) != num_prompts or set(by_index) != set(range(num_prompts)):
        raise TransientError(f"{len(choices)} choices for {num_prompts} prompts, or with wrong indices")
    return [by_index[index] for index in range(num_prompts)]


def _tops(choice: Mapping[str, Any], length: int) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return OpenAI's `top_logprobs` and `tokens`; the first of a prompt may have none."""
    logprobs = choice.get("logprobs")
    tops, tokens = (logprobs.get("top_logprobs"), logprobs.get("tokens")) if isinstance(logprobs, Mapping) else (0, 0)
    if not isinstance(tops, list) or not isinstance(tokens, list):
        raise TransientError("an answer without log-probabilities")
    if len(tops) != length or len(tokens) != length:
        raise TransientError(f"log-probabilities of {len(tops)} tokens instead of {length}")
    shown = [{} if top is None and position == 0 and length > 1 else top for position, top in enumerate(tops)]
    if not all(isinstance(top, Mapping) for top in shown) or not all(isinstance(token, str) for token in tokens):
        raise TransientError("log-probabilities that are not objects")
    return shown, tokens


def _checked(values: Sequence[Any]) -> NDArray[np.float64]:
    """Return log-probabilities that are some: finite, at most 0, of at most one in sum."""
    try:
        if not {type(value) for value in values} <= {float, int}:
            raise TypeError
        logprobs = np.array(values, dtype=np.float64)
    except (TypeError, OverflowError) as error:
        raise TransientError("log-probabilities that are not numbers") from error
    if not np.isfinite(logprobs).all() or logprobs.max() > _ROUNDING or np.exp(logprobs).sum() > _MOST_MASS:
        raise TransientError("numbers that are not log-probabilities")
    return np.clip(logprobs, LEAST_LOGPROB, 0.0)


def _whole_numbers(names: Sequence[str]) -> list[int]:
    return [int(name) for name in names]
