"""Server that stands for the base, and how gently it is asked."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from proxytune.errors import OptionError

Verification = Literal["prompt_logprobs", "echo", "prompts", "single"]

VERIFICATIONS: tuple[Verification, ...] = ("prompt_logprobs", "echo", "prompts", "single")
_PREFIX = "openai:"
_ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


def remote_model_name(source: Any) -> str | None:
    """Return the server's name for a model given as "openai:<model>", or None for any other source.

    >>> remote_model_name("openai:meta-llama/Llama-2-70b-hf")
    'meta-llama/Llama-2-70b-hf'
    """
    return source[len(_PREFIX) :] if isinstance(source, str) and source.startswith(_PREFIX) else None


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """A model behind an OpenAI-compatible completions endpoint.

    TLS certificates are verified, redirects are not followed, and the proxies of the environment (HTTPS_PROXY,
    NO_PROXY) and its certificates (SSL_CERT_FILE) count, as in any httpx client.

    Attributes:
        model: Its name at the server.
        base_url: `http(s)://host[:port]/v1`, without user or password.
        api_key_env: Name of the environment variable that holds the key. The key is read when a request is sent and
            kept nowhere. None sends none.
        top_logprobs: Log-probabilities to ask for per position; None is the whole vocabulary where the server gives it,
            else the most of 20 and 5 that it gives.
        verification: Way to ask for several positions of a row; "auto" takes the first of the ways that the server
            knows: one request with `prompt_logprobs` (vLLM) or `echo`, one with several prompts, or one per position.
        max_in_flight: Most requests at once.
        timeout_s: Longest wait for an answer, from the connection to its last byte.
        max_retries: Most repetitions of a request after 408, 429, 5xx, a time-out, a broken connection, or an answer
            that cannot be read.
        requests_per_second: Most per second over all rows; None for no limit.
        max_requests: Budget of completion requests, those of construction and repetitions among them; None for none.
        max_tokens: Budget of prompt and completion tokens, as the server counts them; None for none.
    """

    model: str
    base_url: str
    api_key_env: str | None = "OPENAI_API_KEY"
    top_logprobs: int | None = None
    verification: Literal["auto", "prompt_logprobs", "echo", "prompts", "single"] = "auto"
    max_in_flight: int = 64
    timeout_s: float = 60.0
    max_retries: int = 5
    requests_per_second: float | None = None
    max_requests: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _require(
            isinstance(self.model, str) and self.model.strip() != "",
            "model",
            self.model,
            "a name that the server knows",
        )
        _require_url(self.base_url)
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        _require_environment_name(self.api_key_env)
        ways = ("auto", *VERIFICATIONS)
        _require(self.verification in ways, "verification", self.verification, f"one of {', '.join(ways)}")
        _require_whole("max_in_flight", self.max_in_flight, least=1)
        _require_whole("max_retries", self.max_retries, least=0)
        _require_above_zero("timeout_s", self.timeout_s)
        if self.requests_per_second is not None:
            _require_above_zero("requests_per_second", self.requests_per_second)
        for name in ("top_logprobs", "max_requests", "max_tokens"):
            if getattr(self, name) is not None:
                _require_whole(name, getattr(self, name), least=1)


def _require_url(url: Any) -> None:
    """Raise OptionError for what is no plain http(s) URL; the text never shows what may be a password."""
    requirement = "must be http://host[:port]/v1 or https://…, as the server's own documentation names it"
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        host, has_password = (parts.hostname, "@" in parts.netloc) if parts else (None, False)
        _ = parts.port if parts else None
    except ValueError:
        host, has_password, parts = None, "@" in url, None
    if has_password or (parts is not None and (parts.query or parts.fragment)):
        raise OptionError(
            f"base_url {requirement}, and this one has a user, a password, a query or a fragment: "
            "put the key into the environment variable that api_key_env names."
        )
    if parts is None or parts.scheme not in ("http", "https") or not host or re.search(r"\s", url):
        raise OptionError(f"base_url is {url!r}: it {requirement}.")


def _require_environment_name(name: Any) -> None:
    """Raise OptionError without the value, which may be the key itself."""
    if name is not None and not (isinstance(name, str) and _ENVIRONMENT_NAME.fullmatch(name)):
        raise OptionError(
            "api_key_env must be the name of an environment variable (capital letters, digits and _), not the key: "
            "export the key under a name such as OPENAI_API_KEY."
        )


def _require(is_right: bool, name: str, value: Any, requirement: str) -> None:
    if not is_right:
        raise OptionError(f"{name} is {value!r}: it must be {requirement}.")


def _require_whole(name: str, value: Any, *, least: int) -> None:
    is_right = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _require(is_right, name, value, f"a whole number of at least {least}")


def _require_above_zero(name: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    _require(is_number and value > 0, name, value, "a number above 0")
