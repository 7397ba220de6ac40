"""The unmodified openai client against the server."""

from collections.abc import Iterator

import pytest

from proxytune import ProxyGenerator
from tests.serve.conftest import KEY, NAME, QUESTION, Server

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator["openai.OpenAI"]:
    """A client that does not try again by itself."""
    with openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0) as found:
        yield found


@pytest.mark.parametrize("alpha", [0, 1, 2])
def test_alpha_is_the_requests(client: "openai.OpenAI", hf: ProxyGenerator, alpha: int) -> None:
    """Text at each α, as a plain field and in vllm_xargs, is that of the hf runtime."""
    prompt = QUESTION.format(7)
    [expected] = hf.generate(prompt, max_new_tokens=24, alpha=alpha)
    for extra in ({"alpha": alpha}, {"alpha": [alpha]}, {"vllm_xargs": {"alpha": alpha}}):
        found = client.completions.create(model=NAME, prompt=prompt, max_tokens=24, temperature=0, extra_body=extra)
        assert found.choices[0].text == expected.text
        assert (found.choices[0].finish_reason, expected.finish_reason) == ("stop", "eos")


def test_alphas_differ(hf: ProxyGenerator) -> None:
    """The prompt of the test above tells α 0 from α 1."""
    texts = {hf.generate(QUESTION.format(7), max_new_tokens=24, alpha=alpha)[0].text for alpha in (0, 1)}
    assert len(texts) == 2


def test_chat_and_streaming(client: "openai.OpenAI", hf: ProxyGenerator) -> None:
    """A chat is read in the trio's prompt format, at once and in pieces, and counts the same prompt tokens."""
    [expected] = hf.generate("Question: Where was person 3 born?\nAnswer:", max_new_tokens=24)
    messages = [{"role": "user", "content": "Where was person 3 born?"}]
    settings = {"model": NAME, "messages": messages, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**settings)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage.prompt_tokens == len(hf.tokenizer(expected.prompt).input_ids)
    pieces = [part.choices[0].delta.content or "" for part in client.chat.completions.create(**settings, stream=True)]
    assert "".join(pieces) == expected.text
    assert len([piece for piece in pieces if piece]) > 1


def test_logprobs_are_the_combined_distributions(client: "openai.OpenAI", hf: ProxyGenerator) -> None:
    """Log-probabilities are those of the combined distribution at the request's α, to 1e-3."""
    prompt = QUESTION.format(5)
    [expected] = hf.generate(prompt, max_new_tokens=8, alpha=0.5, logprobs=3)
    found = client.completions.create(
        model=NAME, prompt=prompt, max_tokens=8, temperature=0, logprobs=3, extra_body={"alpha": 0.5}
    )
    logprobs = found.choices[0].logprobs.token_logprobs
    assert logprobs[: len(expected.logprobs)] == pytest.approx([entry.logprob for entry in expected.logprobs], abs=1e-3)
    top = sorted(found.choices[0].logprobs.top_logprobs[0].values(), reverse=True)
    assert top == pytest.approx(sorted(expected.logprobs[0].top.values(), reverse=True), abs=1e-3)


def test_stop(client: "openai.OpenAI", hf: ProxyGenerator) -> None:
    """A stop text ends the completion and is not part of it."""
    prompt = QUESTION.format(5)
    [expected] = hf.generate(prompt, max_new_tokens=24, stop=" born")
    assert expected.finish_reason == "stop"
    found = client.completions.create(model=NAME, prompt=prompt, max_tokens=24, temperature=0, stop=" born")
    assert (found.choices[0].text, found.choices[0].finish_reason) == (expected.text, "stop")


def test_seeded_draws_are_the_hf_runtimes(client: "openai.OpenAI", hf: ProxyGenerator) -> None:
    """A seeded request whose prompt is read in several steps draws as hf does; its second choice draws anew."""
    prompt = QUESTION.format(1) * 5
    settings = {"temperature": 1.0, "top_p": 0.9, "seed": 11}
    [expected] = hf.generate(prompt, max_new_tokens=16, **settings)
    create = client.completions.create
    found = create(model=NAME, prompt=[prompt, prompt + " In"], n=2, max_tokens=16, **settings)
    texts = [choice.text for choice in found.choices]
    assert texts[0] == expected.text
    assert texts[0] != texts[1]
    assert len(texts) == 4
    again = create(model=NAME, prompt=[prompt, prompt + " In"], n=2, max_tokens=16, **settings)
    assert [choice.text for choice in again.choices] == texts


def test_penalties_count_in_seeded_draws(client: "openai.OpenAI") -> None:
    """A penalty that forbids what was said before leaves no token twice in a seeded draw; without, some come twice."""
    settings = {"model": NAME, "prompt": QUESTION.format(1), "max_tokens": 60, "temperature": 0.5, "seed": 2}
    extra = {"ignore_eos": True, "return_token_ids": True}

    def num_repeated(penalty: float) -> int:
        found = client.completions.create(**settings, frequency_penalty=penalty, extra_body=extra)
        token_ids = found.choices[0].token_ids
        return len(token_ids) - len(set(token_ids))

    assert num_repeated(2.0) < num_repeated(0.0)


def test_models_and_errors(client: "openai.OpenAI", server: Server) -> None:
    """/v1/models names the model; the client raises its own errors for a bad α, another model and a wrong key."""
    assert [model.id for model in client.models.list()] == [NAME]
    with pytest.raises(openai.BadRequestError, match="alpha is 'much'"):
        client.completions.create(model=NAME, prompt="a", extra_body={"alpha": "much"})
    with pytest.raises(openai.NotFoundError, match="other"):
        client.completions.create(model="other", prompt="a")
    with (
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.completions.create(model=NAME, prompt="a", extra_body={"alpha": "much"})
