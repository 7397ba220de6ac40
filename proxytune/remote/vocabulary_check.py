"""The shared-id contract with a model that only its server has: whatever it shows of its vocabulary must be ours."""

from collections.abc import Mapping
from typing import Any

from proxytune.errors import RemoteBudgetError, RemoteError, VocabularyError
from proxytune.remote.budget import Cost, stated_cost
from proxytune.remote.client import Call, Client
from proxytune.remote.settings import RemoteSettings
from proxytune.remote.token_names import BROKEN, token_text
from proxytune.remote.transport import TransientError

_SHOWN = 3
# Scripts, digits, code and spaces are where tokenizers part.
_PROBE = (
    "It was the best of times, and the man who had been there said so. "
    "In 1984 she paid 3,141.59 EUR; naïve façade — «Привет, мир», 你好世界, こんにちは, مرحبا, नमस्ते 🙂\n\n"
    "def squares(n):\n    return [x**2 for x in range(n)]  # I'm unbelievable, antidisestablishmentarianism\t</p>"
)
WAY_OUT = "proxy tuning adds logits id by id, so choose models of one family with the same tokenizer."


def named_tokens(answer: Any) -> dict[int, str]:
    """Return the ids in a valid answer that come with their text: vLLM's prompt_logprobs, llama.cpp's content."""
    texts_by_id: dict[int, str] = {}
    for choice in answer["choices"]:
        for entry in choice.get("prompt_logprobs") or ():
            texts_by_id |= {int(index): each.get("decoded_token") for index, each in (entry or {}).items()}
        for entry in (choice.get("logprobs") or {}).get("content") or ():
            texts_by_id |= {each["id"]: each.get("token") for each in entry["top_logprobs"] if "id" in each}
    return {index: text for index, text in texts_by_id.items() if isinstance(text, str)}


def require_same_names(named: Mapping[int, str], tokenizer: Any) -> None:
    """Raise VocabularyError where the server reads an id as another text than the tokenizer.

    Spaces around a text do not count, for servers treat a word's first differently, nor do parts of characters.
    """
    known = set(tokenizer.get_vocab().values())
    different = []
    for index, text in sorted(named.items()):
        ours = token_text(tokenizer, index) if index in known else ""
        is_comparable = ours.strip() and text.strip() and BROKEN not in ours + text
        if is_comparable and ours.strip() != text.strip():
            different.append(f"id {index} is {text!r} at the server and {ours!r} in the tokenizer")
    if different:
        raise VocabularyError(
            f"the base's server does not share token ids ({len(different)} differences among {len(named)} ids; "
            f"{'; '.join(different[:_SHOWN])}): {WAY_OUT}"
        )


def require_same_tokens(client: Client, settings: RemoteSettings, tokenizer: Any) -> None:
    """Raise VocabularyError where a text with much in it becomes other tokens at the server.

    Its /tokenize tells them, as vLLM has it; else the number of tokens that it counts for a prompt must be ours.
    """
    plain = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    theirs = _tokenized(client, settings)
    if theirs is not None:
        _require_equal(plain, theirs, tokenizer)
        return
    full = len(tokenizer(_PROBE)["input_ids"])
    num_read = _num_read(client, settings, Cost(full, 1))
    if num_read not in (None, len(plain), full):
        raise VocabularyError(
            f"the base's server reads {num_read} tokens in a text where the tokenizer reads {full}: {WAY_OUT}"
        )


def _tokenized(client: Client, settings: RemoteSettings) -> list[int] | None:
    """Return the server's ids of the probe text, None where it does not tell."""
    root = settings.base_url.removesuffix("/v1")

    def read(answer: Any) -> list[int] | None:
        ids = answer.get("tokens") if isinstance(answer, Mapping) else None
        is_right = isinstance(ids, list) and ids and all(isinstance(index, int) for index in ids)
        return ids if is_right else None

    # llama.cpp calls the text content.
    body = {"model": settings.model, "prompt": _PROBE, "content": _PROBE, "add_special_tokens": False}
    try:
        return client.fetch("POST", f"{root}/tokenize", body, read, max_retries=1)
    except RemoteError:
        return None


def _num_read(client: Client, settings: RemoteSettings, cost: Cost) -> int | None:
    """Return how many tokens the server counts in the probe text, None where it does not tell."""

    def read(answer: Any) -> int | None:
        stated = stated_cost(answer, Cost(-1, -1)).num_prompt_tokens
        return None if stated < 0 else stated

    body = {"model": settings.model, "prompt": _PROBE, "max_tokens": 1}
    try:
        return client.submit(client.complete(Call(body, read, cost))).result()
    except RemoteBudgetError:
        raise
    except (RemoteError, TransientError):
        return None


def _require_equal(ours: list[int], theirs: list[int], tokenizer: Any) -> None:
    if ours == theirs:
        return
    position = next(
        (position for position, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None
    )
    if position is None:
        where = f"{len(theirs)} tokens at the server and {len(ours)} in the tokenizer"
    else:
        where = (
            f"token {position} is id {theirs[position]} at the server and id {ours[position]} "
            f"({token_text(tokenizer, ours[position])!r}) in the tokenizer"
        )
    raise VocabularyError(f"the base's server cuts a text into other tokens ({where}): {WAY_OUT}")
