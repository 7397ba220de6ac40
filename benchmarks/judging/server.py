"""A judge behind an OpenAI-compatible server: its completions or its chat endpoint, with bounded retries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from benchmarks.judging.judge import Judgement
from proxytune.errors import InputError, OptionError

Api = Literal["completions", "chat"]

_CHAT = (
    "You judge an answer to a question. Answer with the one word yes or no.\n\n{prompt}\n\n"
    "(after the colon: is that so of the answer?)"
)
_RETRIED = (408, 409, 425, 429)
_NUM_TOP = 5
_MAX_LOCATION = 200


@dataclass(frozen=True, kw_only=True)
class ServerJudge:
    """A judge on a server. Redirects are not followed: the key and the answers would go to another address.

    Attributes:
        url: Up to and including `/v1`.
        model: The name the server knows it by.
        api: `completions` reads the probability of "yes" among the likeliest first tokens; `chat` asks for the word:
            yes is 1, no is 0, anything else missing.
        key: Sent as a bearer token if given.
        batch_size: Requests at a time.
        max_attempts: Tries per answer; after that it is missing.
        timeout_s: Seconds for one try.
        pause_s: Seconds before the second try, doubled before each further one.
        sleep: Function that waits.
    """

    url: str
    model: str
    api: Api = "completions"
    key: str | None = None
    batch_size: int = 8
    max_attempts: int = 4
    timeout_s: float = 60.0
    pause_s: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise OptionError(f"the judge's address is {self.url!r}: write http://host:port/v1.")
        if self.max_attempts < 1:
            raise OptionError(f"max_attempts is {self.max_attempts}: it must be a whole number of at least 1.")

    def judge(self, prompts: Sequence[str]) -> list[Judgement]:
        """Return one judgement per prompt; failures end as missing ones."""
        with ThreadPoolExecutor(self.batch_size) as pool:
            return list(pool.map(self._judge, prompts))

    def describe(self) -> dict[str, Any]:
        """Return address, model and endpoint."""
        return {"kind": "server", "url": self.url, "model": self.model, "api": self.api}

    def close(self) -> None:
        """Hold nothing."""

    def _judge(self, prompt: str) -> Judgement:
        reason = ""
        for attempt in range(self.max_attempts):
            if attempt:
                self.sleep(self.pause_s * 2 ** (attempt - 1))
            try:
                return Judgement(probability=self._ask(prompt))
            except httpx.HTTPStatusError as error:
                reason = _status(error.response)
                if error.response.status_code < 500 and error.response.status_code not in _RETRIED:
                    break
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
        return Judgement(probability=None, error=f"{reason} (after {attempt + 1} tries)")

    def _ask(self, prompt: str) -> float:
        if self.api == "chat":
            message = {"role": "user", "content": _CHAT.format(prompt=prompt)}
            return word_probability(self._post("chat/completions", {"messages": [message], "max_tokens": 4}))
        return token_probability(self._post("completions", {"prompt": prompt, "max_tokens": 1, "logprobs": _NUM_TOP}))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        content = {"model": self.model, "temperature": 0, **body}
        answer = httpx.post(
            f"{self.url.rstrip('/')}/{path}",
            json=content,
            headers=headers,
            timeout=self.timeout_s,
            follow_redirects=False,
        )
        answer.raise_for_status()
        return answer.json()


def _status(answer: httpx.Response) -> str:
    """Return the status as a reason; a redirect names the address that it leads to."""
    if "location" not in answer.headers:
        return f"HTTP {answer.status_code}"
    target = answer.headers["location"][:_MAX_LOCATION]
    return f"HTTP {answer.status_code} to {target!r}, which is not followed: name that with --judge-url"


def token_probability(answer: Any) -> float:
    """Return the probability of "yes" as the first token.

    Raises:
        InputError: Neither yes nor no is among the likeliest, or there are no log-probabilities.
    """
    try:
        top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        words = {"yes": 0.0, "no": 0.0}
        for token, logprob in top.items():
            if (word := token.strip().lower()) in words:
                words[word] += math.exp(logprob)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"the server gave no log-probabilities of first tokens ({error!r}).") from error
    if not any(words.values()):
        raise InputError(f"neither yes nor no is among the likeliest tokens {list(top)}.")
    return words["yes"]


def word_probability(answer: Any) -> float:
    """Return 1 for an answer that begins with yes, 0 for no.

    Raises:
        InputError: It begins with neither.
    """
    try:
        text = answer["choices"][0]["message"]["content"]
        word = text.strip().lower()
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"the server's answer has no text ({error!r}).") from error
    verdict = next((value for name, value in (("yes", 1.0), ("no", 0.0)) if _begins(word, name)), None)
    if verdict is None:
        raise InputError(f"the judge answered {text[:60]!r}, neither yes nor no.")
    return verdict


def _begins(text: str, word: str) -> bool:
    return text.startswith(word) and not text[len(word) : len(word) + 1].isalpha()
