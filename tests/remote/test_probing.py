"""What a client finds out about a server before it is used, and what it does when the server changes its mind."""

from dataclasses import replace
from typing import Any

import pytest

from proxytune.errors import OptionError, ProxyTuneWarning, RoleError, VocabularyError
from proxytune.remote.model import RemoteModel
from proxytune.remote.settings import RemoteSettings, remote_model_name
from tests import tiny
from tests.remote.clients import answers, base_model, base_tokenizer, client, queries, require_likeliest, server
from tests.remote.completions_server import DIALECTS, VLLM, CompletionsServer, Dialect

# Gives ids, and never the text of one.
UNNAMED = replace(DIALECTS["vllm"], fields=VLLM - {"prompt_logprobs"}, takes_echo=False)


def test_wrong_model_name_lists_those_there() -> None:
    """A model that the server does not have ends construction with the names that it has; nothing is asked of it."""
    with server(name="llama") as found:
        with pytest.raises(RoleError, match="has no model 'base'; it has 'llama'"):
            client(found.url)
        assert found.completions == []


def test_server_that_lists_no_models_is_taken_at_its_word() -> None:
    """Without /models the name is checked by the first request, and the context is not known."""
    with server(replace(DIALECTS["vllm"], has_models=False)) as found:
        model = client(found.url)
        assert model.max_context is None
        model.close()
        with pytest.raises(RoleError, match=r"404: The model `other` does not exist"):
            client(found.url, model="other")


def test_construction_takes_few_and_tiny_requests() -> None:
    """A server that does all is known after four requests for completions, of one token each."""
    with server(max_logprobs=-1) as found:
        client(found.url).close()
        assert [request.status for request in found.completions] == [200] * 4
        assert {request.body["max_tokens"] for request in found.completions} == {1}


@pytest.mark.parametrize(
    ("can", "most", "words"),
    [
        (DIALECTS["vllm"], -1, "is ' the' at the server and ' was' in the tokenizer"),
        (UNNAMED, 20, r"token \d+ is id \d+ at the server and id \d+ \(' was'\) in the tokenizer"),
        (DIALECTS["llamacpp"], 100_000, "is ' the' at the server and ' was' in the tokenizer"),
    ],
)
def test_other_vocabulary_is_refused_with_the_first_difference(can: Dialect, most: int, words: str) -> None:
    """Two tokens of the tokenizer have changed places: the server's names of ids show them, or else its /tokenize."""
    with server(can, max_logprobs=most) as found, pytest.raises(VocabularyError, match=words):
        RemoteModel(RemoteSettings(model="base", base_url=found.url), with_swapped_ids(" the", " was"))


@pytest.mark.parametrize("can", [replace(UNNAMED, has_tokenize=False), DIALECTS["text"]])
def test_tokenizer_of_another_family_is_refused_by_numbers(can: Dialect) -> None:
    """Where a server tells no texts, its ids or its count of a text's tokens show another tokenizer."""
    with (
        CompletionsServer(base_model(), base_tokenizer(), can) as found,
        pytest.raises(VocabularyError, match=r"reads \d+ tokens in a text|token id \d+, outside the vocabulary of \d+"),
    ):
        RemoteModel(RemoteSettings(model="base", base_url=found.url), tiny.byte_tokenizer())


def test_text_gets_the_special_tokens_that_the_server_adds() -> None:
    """With a tokenizer that begins every text with <s>, a row's <s> is left to the server, and the counts agree."""
    model = tiny.model("llama", 1, hidden_size=48)
    with CompletionsServer(model, tiny.word_tokenizer(), "text") as found:
        asked = RemoteModel(RemoteSettings(model="base", base_url=found.url), tiny.word_tokenizer())
        ids = tuple(tiny.prompt_ids(6))
        [[distribution]] = answers(asked, [queries_of(ids)])
        row = found.log_probs(ids)[-1]
        assert found.completions[-1].body["prompt"] == tiny.word_tokenizer().decode(ids[1:])
        assert distribution.token_ids.tolist() == row.topk(5).indices.tolist()
        asked.close()


def queries_of(ids: tuple[int, ...]) -> Any:
    """Return the question for what follows."""
    from proxytune.remote.distribution import Query

    return Query(ids)


def test_server_without_logprobs_cannot_be_the_base() -> None:
    """An endpoint that answers without log-probabilities, or refuses to give them, is no base."""
    with (
        server(replace(DIALECTS["prompts"], max_logprobs=0)) as found,
        pytest.raises(RoleError, match="max allowed: 0"),
    ):
        client(found.url)


@pytest.mark.parametrize(
    ("dialect", "field", "way", "then"),
    [("vllm", "prompt_logprobs", "prompt_logprobs", "prompts"), ("echo", "echo", "echo", "prompts")],
)
def test_way_that_is_refused_later_is_given_up_once(dialect: str, field: str, way: str, then: str) -> None:
    """A server that begins to refuse a way gets the row in the next one, a warning is given, and no third try comes."""
    with server(dialect) as found:
        model = client(found.url)
        assert model.verification == way
        found.refused_fields.add(field)
        found.recorded.clear()
        [query] = queries(3)[:1]
        with pytest.warns(ProxyTuneWarning, match=f"takes {way} no more .*{then} is asked for") as caught:
            [first] = answers(model, [query])
        assert len(caught) == 1
        [second] = answers(model, [query])
        assert [request.status for request in found.completions] == [400, 200, 200]
        assert model.verification == then
        for one, other in zip(first, second, strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
        model.close()


def test_row_that_is_refused_in_every_way_gives_up_none() -> None:
    """A row beyond the context is refused in each way: it fails by itself, and the next row is asked as before."""
    with server(max_logprobs=20) as found:
        model = client(found.url)
        too_long = replace(queries(3)[0], token_ids=queries(3)[0].token_ids * 40)
        [future] = model.submit([too_long])
        assert "maximum context length" in str(future.exception(timeout=60))
        assert model.verification == "prompt_logprobs"
        query = queries(3)[0]
        require_likeliest(answers(model, [query])[0], query, 20)
        model.close()


def test_verification_that_the_server_does_not_know_is_an_error() -> None:
    """Asking for a way by name, and not getting it, ends construction and names the way out."""
    with server("prompts") as found, pytest.raises(RoleError, match=r"verification is 'echo'.*leave it at 'auto'"):
        client(found.url, verification="echo")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": " "}, "model is ' '"),
        ({"base_url": "127.0.0.1:8000/v1"}, "http://host"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "http://host"),
        ({"base_url": "ftp://127.0.0.1/v1"}, "http://host"),
        ({"base_url": None}, "http://host"),
        ({"verification": "guess"}, "one of auto, prompt_logprobs"),
        ({"top_logprobs": 0}, "top_logprobs is 0"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"requests_per_second": 0}, "requests_per_second is 0"),
        ({"max_tokens": True}, "max_tokens is True"),
    ],
)
def test_settings_check_themselves(wrong: dict[str, Any], words: str) -> None:
    """Each setting names what it is and what it may be."""
    with pytest.raises(OptionError, match=words):
        RemoteSettings(**{"model": "base", "base_url": "http://127.0.0.1/v1", **wrong})


def test_names_of_remote_models() -> None:
    """Only what begins with "openai:" is one, and what follows is the server's name for it, slashes and all."""
    assert remote_model_name("openai:org/model:7b") == "org/model:7b"
    assert remote_model_name("org/model") is None
    assert remote_model_name(base_model()) is None
    assert RemoteSettings(model="m", base_url="http://127.0.0.1/v1/").base_url == "http://127.0.0.1/v1"


def with_swapped_ids(first: str, second: str) -> Any:
    """Return the base's tokenizer with two tokens in each other's place."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    whole = json.loads(base_tokenizer().backend_tokenizer.to_str())
    vocabulary = whole["model"]["vocab"]
    one, other = (text.replace(" ", "Ġ") for text in (first, second))
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(whole)), eos_token="<|endoftext|>")
