"""An answer is checked entirely before any of it is used; what is not valid is a fault, never a distribution."""

from typing import Any

import pytest

from proxytune.errors import InputError, RemoteError
from proxytune.remote.answers import Reader, choices_of
from proxytune.remote.distribution import Query
from proxytune.remote.token_names import TokenNames
from proxytune.remote.transport import TransientError
from tests.remote.clients import base_tokenizer

TOP = {"token_id:5": -0.5, "token_id:9": -1.5, "token_id:7": -2.5}


def reader(count: int = 3) -> Reader:
    """Return a reader of so many log-probabilities."""
    return Reader(count, TokenNames(base_tokenizer()), None)


def choice(top: Any, token: Any = "token_id:5") -> dict[str, Any]:
    """Return a choice with one generated token."""
    return {"index": 0, "logprobs": {"tokens": [token], "top_logprobs": [top]}}


def test_token_beyond_the_likeliest_is_left_out() -> None:
    """Of two log-probabilities asked for and three sent, the drawn token's is the one too many, wherever it stands."""
    assert reader(2).generated(choice(TOP, "token_id:7")).token_ids.tolist() == [5, 9]
    first = dict(reversed(TOP.items()))
    assert reader(2).generated(choice(first, "token_id:7")).token_ids.tolist() == [5, 9]
    assert reader(3).generated(choice(TOP, "token_id:7")).token_ids.tolist() == [5, 9, 7]


def test_choices_are_matched_by_index() -> None:
    """Choices in another order than the prompts come back in the prompts'."""
    answer = {"choices": [{"index": 2, "text": "c"}, {"index": 0, "text": "a"}, {"index": 1, "text": "b"}]}
    assert [each["text"] for each in choices_of(answer, 3)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"choices": None},
        {"choices": [1]},
        {"choices": [{"index": 0}]},
        {"choices": [{"index": 0}, {"index": 0}]},
        {"choices": [{"index": 0}, {"index": 2}]},
        {"choices": [{"index": 0}, {"index": "1"}]},
        {"choices": [{"index": 0}, {"index": 1}, {"index": 1}]},
    ],
)
def test_choices_that_are_not_there_once_each(answer: Any) -> None:
    """For two prompts anything but the indices 0 and 1, each once, is a fault."""
    with pytest.raises(TransientError):
        choices_of(answer, 2)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"logprobs": None},
        {"logprobs": []},
        {"logprobs": {"top_logprobs": [TOP]}},
        {"logprobs": {"tokens": ["token_id:5"], "top_logprobs": [TOP, TOP]}},
        {"logprobs": {"tokens": [5], "top_logprobs": [TOP]}},
        choice(None),
        choice({}),
        choice([-0.5]),
        choice({**TOP, "token_id:8": -3.0, "token_id:6": -3.0}),
        choice({**TOP, "token_id:8": -3.0}, token="token_id:4"),
        choice({"token_id:5": 0.5}),
        choice({"token_id:5": -0.1, "token_id:9": -0.1}),
        choice({"token_id:5": float("nan")}),
        choice({"token_id:5": float("-inf")}),
        choice({"token_id:5": "-0.5"}),
        choice({"token_id:5": True}),
        choice({"token_id:5": -(10**400)}),
        choice({"token_id:five": -0.5}),
        choice({"token_id:5": -0.9, "token_id:05": -0.9}),
        {"logprobs": {"content": []}},
        {"logprobs": {"content": [{"top_logprobs": None}]}},
        {"logprobs": {"content": [{"top_logprobs": [{"id": "x", "logprob": -1.0}]}]}},
        {"logprobs": {"content": [{"top_logprobs": [{"id": n, "logprob": -3.0} for n in range(4)]}]}},
    ],
)
def test_log_probabilities_that_are_none(broken: dict[str, Any]) -> None:
    """Missing, too many, positive, above one in sum, not finite, not numbers, twice, without an id: all are faults."""
    with pytest.raises(TransientError):
        reader().generated(broken)


@pytest.mark.parametrize("entries", [None, [None], [None, {}, {}], [None, [1]], [None, {"5": -1.0}], [None, {"5": {}}]])
def test_prompt_logprobs_that_are_none(entries: Any) -> None:
    """They must be there for every token of the prompt, as objects with numbers."""
    with pytest.raises(TransientError):
        reader().of_prompt({**choice(TOP), "prompt_logprobs": entries}, (3, 4), 2)


def test_content_without_ids_is_read_by_text() -> None:
    """The form of chat completions has texts only: those of one token are seen."""
    [the] = base_tokenizer()(" the")["input_ids"]
    tops = [{"token": " the", "logprob": -1.0}, {"token": "\ufffd", "logprob": -1.5}]
    found = reader().generated({"logprobs": {"content": [{"top_logprobs": tops}]}})
    assert found.token_ids.tolist() == [the]


def test_row_of_which_no_token_is_known_is_an_error() -> None:
    """Names that are all unclear leave nothing to choose from: the row's error says what would help."""
    with pytest.raises(RemoteError, match="none of the 1 likeliest tokens can be told"):
        reader().generated(choice({"\ufffd": -0.1}, token="\ufffd"))


@pytest.mark.parametrize("count", [0, 4])
def test_question_checks_itself(count: int) -> None:
    """There are as many positions as tokens, and at least one."""
    with pytest.raises(InputError, match=f"num_positions is {count} for 3 tokens"):
        Query((1, 2, 3), count)


@pytest.mark.parametrize("shift", [5000, -1000])
def test_ids_that_no_token_has(shift: int) -> None:
    """Probability on ids outside the vocabulary is a fault, not a distribution without them."""
    top = {f"token_id:{index + shift}": -0.5 - index for index in range(3)}
    with pytest.raises(TransientError, match="outside the vocabulary"):
        reader().generated(choice(top, f"token_id:{shift}"))


def test_rows_that_pad_the_head_are_left_out() -> None:
    """Ids beyond the tokenizer's with next to no probability are what a padded head has."""
    found = reader().generated(choice({"token_id:5": -0.01, "token_id:9": -5.0, "token_id:5000": -12.0}))
    assert found.token_ids.tolist() == [5, 9]


def test_echo_of_another_prompt() -> None:
    """Tokens that come back must be those that were sent."""
    tokens = ["token_id:3", "token_id:4", "token_id:5"]
    answer = {"logprobs": {"tokens": tokens, "top_logprobs": [None, TOP, TOP]}}
    assert len(reader().echoed(answer, [3, 4], 2)) == 2
    with pytest.raises(TransientError, match="another prompt"):
        reader().echoed(answer, [3, 6], 2)


def test_prompt_logprobs_of_another_prompt() -> None:
    """VLLM's entry for a position has the prompt's token."""
    entries = [None, {"5": {"logprob": -0.5}, "9": {"logprob": -1.5}}]
    answer = {"prompt_logprobs": entries, **choice(TOP)}
    assert len(reader().of_prompt(answer, [3, 9], 2)) == 2
    with pytest.raises(TransientError, match="another prompt"):
        reader().of_prompt(answer, [3, 7], 2)
