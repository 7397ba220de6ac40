"""Checks of a request's body beyond vLLM's: α, nothing unknown, only finite numbers."""

import difflib
import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, NoReturn

from proxytune.errors import InputError, OptionError, RuntimeUnsupportedError, UnknownOptionError
from proxytune.options import GenerationOptions
from proxytune.requests import RequestBuilder
from proxytune.vllm.plan import ALPHA_KEY, request_alphas
from proxytune.vllm.role_prompts import RolePrompts, has_arguments

XARGS = "vllm_xargs"
# Of OpenAI's API: what they ask for changes no answer here, and its client sends them.
_WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
# Of chats: what only a model's own template reads, not the prompt formats of the roles.
_OF_TEMPLATES = (
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "echo",
    "mm_processor_kwargs",
    "tools",
    "truncate_prompt_tokens",
)
_MAX_WHOLE = 2**63


@dataclass(frozen=True, kw_only=True)
class BodyRules:
    """Rules of one engine.

    Attributes:
        alphas: The configured strengths, one per pair.
        is_speculative: A draft model runs ahead, so that neither α nor a seed can be a request's own.
        adds_special_tokens: The chat template leaves the first token to the tokenizer.
        chats: Encodes a conversation for each role; None where all read the one that vLLM renders.
    """

    alphas: tuple[float, ...]
    is_speculative: bool = False
    adds_special_tokens: bool = False
    chats: RequestBuilder | None = None

    def checked(self, body: Mapping[str, Any], known: Set[str]) -> dict[str, Any]:
        """Return the body with α where vLLM looks for it; `known` are the fields that the endpoint has.

        Raises:
            UnknownOptionError: It has a field that would be ignored.
            OptionError: α is no finite number, has the wrong count, or is said twice.
            RuntimeUnsupportedError: This engine cannot do it.
        """
        unknown = sorted(set(body) - known - {ALPHA_KEY, *_WITHOUT_EFFECT, "best_of"})
        if unknown:
            near = difflib.get_close_matches(unknown[0], [*known, ALPHA_KEY], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out."
            raise UnknownOptionError(f"unknown field {unknown[0]!r}: {hint}")
        if "best_of" not in known and body.get("best_of") not in (None, 1, body.get("n")):
            raise RuntimeUnsupportedError(
                f"best_of is {body['best_of']!r}: all answers that are made are given, so ask for them by n."
            )
        if body.get("use_beam_search"):
            raise RuntimeUnsupportedError("use_beam_search: the vllm runtime has none; take runtime hf for it.")
        checked_body = dict(body)
        if "messages" in known and self.adds_special_tokens:
            checked_body.setdefault("add_special_tokens", True)
        checked_body = self._with_alpha(checked_body)
        if "messages" in known and self.chats is not None:
            checked_body = self._with_prompts(checked_body, self.chats)
        return checked_body

    def _with_prompts(self, body: dict[str, Any], chats: RequestBuilder) -> dict[str, Any]:
        """Return a chat's body with the conversation as each role reads it."""
        unread = [name for name in _OF_TEMPLATES if body.get(name)]
        if body.get("add_generation_prompt") is False:
            unread.append("add_generation_prompt")
        if unread:
            raise RuntimeUnsupportedError(
                f"{unread[0]}: base, expert and anti read chats in prompt formats of their own, which have none: leave "
                "it out, or send prompts to /v1/completions."
            )
        [request] = chats.for_generation([body.get("messages") or []], GenerationOptions(max_new_tokens=1))
        return {**body, XARGS: {**(body.get(XARGS) or {}), **RolePrompts(request.role_ids).arguments()} or None}

    def _with_alpha(self, body: dict[str, Any]) -> dict[str, Any]:
        extra = body.get(XARGS) or {}
        if not isinstance(extra, Mapping):
            raise OptionError(f"{XARGS} is {extra!r}: pass an object.")
        if has_arguments(extra):
            raise OptionError(f"{XARGS} holds the prompts of the roles, which only the server makes: leave them out.")
        given, inner = body.pop(ALPHA_KEY, None), extra.get(ALPHA_KEY)
        if inner is None and ALPHA_KEY in extra:
            raise OptionError(f"alpha in {XARGS} is null: pass a number, or leave it out.")
        if given is not None and inner is not None:
            raise OptionError(f"alpha is given twice, in the body and in {XARGS}: give it once.")
        alphas = request_alphas({ALPHA_KEY: inner if given is None else given}, len(self.alphas))
        if self.is_speculative:
            self._require_verifiable(alphas, body)
        elif given is not None and alphas is not None:
            body[XARGS] = {**extra, ALPHA_KEY: list(alphas) if len(alphas) > 1 else alphas[0]}
        return body

    def _require_verifiable(self, alphas: tuple[float, ...] | None, body: dict[str, Any]) -> None:
        if alphas is not None:
            if alphas != self.alphas:
                raise RuntimeUnsupportedError(
                    f"alpha is {list(alphas)}, and a server that speculates has the configured {list(self.alphas)} for "
                    "all requests: leave alpha out."
                )
            extra = {name: value for name, value in (body.get(XARGS) or {}).items() if name != ALPHA_KEY}
            body[XARGS] = extra or None
        if body.get("seed") is not None:
            raise RuntimeUnsupportedError("seed: a server that speculates cannot draw by it; leave it out.")


def read_json(data: bytes) -> Any:
    """Return what JSON says.

    Raises:
        InputError: It is none, is nested too deep, holds a number that is not finite or beyond 64 bits, or a text that
            is none (half of a surrogate pair).
    """
    try:
        body = json.loads(data, parse_constant=_refused, parse_float=_finite, parse_int=_parsed_int)
        json.dumps(body, ensure_ascii=False).encode()
        return body
    except UnicodeEncodeError as error:
        raise InputError("the body holds half of a surrogate pair, which is no text: repair the escape.") from error
    except InputError:
        raise
    except RecursionError as error:
        raise InputError("the body is nested too deep: send a flat JSON object.") from error
    except ValueError as error:
        raise InputError(f"the body is not JSON ({error}): send a JSON object.") from error


def _refused(name: str) -> NoReturn:
    raise InputError(f"the body holds {name}, which is no JSON number: send a finite one.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"the body holds {text[:40]}, which is no finite number: send a smaller one.")
    return value


def _parsed_int(text: str) -> int:
    if len(text) > len(str(_MAX_WHOLE)) or not -_MAX_WHOLE <= (value := int(text)) < _MAX_WHOLE:
        raise InputError(f"the body holds {text[:40]}, which is beyond 64 bits: send a smaller number.")
    return value
