"""The client against vLLM's own OpenAI server on loopback, in float32, with the whole vocabulary."""

from typing import Any

import numpy as np
import pytest

from proxytune.errors import RemoteError, RoleError, VocabularyError
from proxytune.remote.distribution import Query
from proxytune.remote.model import RemoteModel
from proxytune.remote.settings import RemoteSettings
from tests.remote.clients import answers, client, queries, require_likeliest, token_ids
from tests.remote.test_probing import with_swapped_ids


def test_server_is_found_to_do_everything(vllm_completions_url: str) -> None:
    """Ids in, ids out, the whole vocabulary, prompt_logprobs for drafts, its context; /tokenize agrees with ours."""
    model = client(vllm_completions_url)
    assert model.num_logprobs is None
    assert model.abilities.ways == ("prompt_logprobs", "prompts", "single")
    assert (model.abilities.form.takes_ids, model.abilities.form.names_ids) == (True, True)
    assert model.max_context == 256
    model.close()


@pytest.mark.parametrize("count", [None, 20])
def test_distributions_are_the_models_own(vllm_completions_url: str, count: int | None) -> None:
    """All tokens, or exactly the 20 likeliest, with log-probabilities to 1e-4, 24 rows in flight, 1 and 5 places."""
    model = client(vllm_completions_url, top_logprobs=count)
    for num_positions in (1, 5):
        asked = queries(num_positions) * 6
        for query, distributions in zip(asked, answers(model, asked), strict=True):
            require_likeliest(distributions, query, count)
    model.close()


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo", "prompts", "single"])
def test_every_verification_sees_what_plain_requests_see(vllm_completions_url: str, way: Any) -> None:
    """Each way of asking for six places gives the 20 likeliest tokens that plain requests give."""
    model = client(vllm_completions_url, verification=way, top_logprobs=20)
    query = Query(token_ids("Question: Where was Jora Quillmere born?\nAnswer: In the town"), 6)
    [together] = answers(model, [query])
    alone = [found for [found] in answers(model, query.prefixes())]
    for first, second in zip(together, alone, strict=True):
        assert sorted(first.token_ids.tolist()) == sorted(second.token_ids.tolist())
        assert np.allclose(first.logprobs, second.logprobs, atol=1e-4)
    model.close()


def test_row_beyond_the_context_fails_alone(vllm_completions_url: str) -> None:
    """A row of 300 tokens is refused with the words of vLLM; the row beside it is answered."""
    model = client(vllm_completions_url)
    good, bad = model.submit([queries()[0], Query(token_ids("The")[:1] * 300)])
    with pytest.raises(RemoteError, match=r"400.*256"):
        bad.result(timeout=60)
    require_likeliest(good.result(timeout=60), queries()[0], None)
    model.close()


def test_wrong_model_and_wrong_tokenizer_are_refused(vllm_completions_url: str) -> None:
    """The models that vLLM lists and its names of tokens end construction with the reason."""
    with pytest.raises(RoleError, match="has no model 'other'; it has 'base'"):
        client(vllm_completions_url, model="other")
    settings = RemoteSettings(model="base", base_url=vllm_completions_url)
    with pytest.raises(VocabularyError, match="is ' was' at the server and ' the' in the tokenizer"):
        RemoteModel(settings, with_swapped_ids(" the", " was"))
