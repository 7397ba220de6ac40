"""The harness's cache of responses, under a name that tells models, strengths and formats apart.

The harness keys its cache by the texts of a request and nothing else, so that another model would be given the first
one's answers. Here the file's name has a digest of everything that decides an answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from benchmarks.runs.provenance import model_identity
from proxytune import ProxyGenerator
from proxytune.errors import InputError
from proxytune.rules import DEFAULT

_PROBE = "{prompt}"


class LanguageModel(Protocol):
    """The harness's model, as far as it decides an answer; see `ProxyTuneLM`."""

    generator: ProxyGenerator
    alpha: float | None
    seed: int
    max_gen_toks: int
    render: Callable[[str], Any]

    @property
    def max_length(self) -> int:
        """Most tokens of prompt and answer."""


def response_cache(folder: Path | str, lm: LanguageModel) -> str:
    """Return what to pass as `use_cache` to `lm_eval.simple_evaluate`.

    Raises:
        InputError: A role was passed as a loaded model that has no folder or hub id, so nothing tells it from another.
    """
    return str(Path(folder).expanduser() / f"responses-{fingerprint(lm)[:24]}")


def fingerprint(lm: LanguageModel) -> str:
    """Return the SHA-256 of what decides an answer: models, revisions, strengths, dtypes, formats, limits, runtime.

    Raises:
        InputError: As in `response_cache`.
    """
    config = lm.generator.model.config
    pairs = [role for pair in config.pairs or [] for role in (pair["expert"], pair["anti"])]
    if not all(role["source"] for role in (config.base, *pairs)):
        raise InputError(
            "a role was passed as a loaded model without a folder, so cached answers cannot be told from another's: "
            "save it and name the folder, or do without the cache."
        )
    described = json.dumps(describe(lm), sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()


def describe(lm: LanguageModel) -> dict[str, Any]:
    """Return what decides an answer, as JSON has it; models by digest of their folder or by commit.

    Weights that were changed after loading are not noticed.
    """
    generator = lm.generator
    config = generator.model.config
    return {
        "base": _role(config.base),
        "pairs": [
            {**pair, "expert": _role(pair["expert"]), "anti": _role(pair["anti"])} for pair in config.pairs or []
        ],
        "alpha": lm.alpha,
        **({} if config.rule == DEFAULT else {"rule": config.rule}),
        "prompt_formats": [role.prompt_format for role in generator.model.roles],
        "rendered": lm.render(_PROBE),
        "tokenizer": _tokenizer_digest(generator.tokenizer),
        "eos_token_ids": list(generator.eos_token_ids),
        "runtime": generator.runtime,
        "max_length": lm.max_length,
        "max_gen_toks": lm.max_gen_toks,
        "seed": lm.seed,
    }


def _role(stored: dict[str, Any]) -> dict[str, Any]:
    source = stored["source"]
    identity = model_identity(source, stored.get("revision")) if source else {"source": None}
    return {**identity, **{key: value for key, value in stored.items() if key not in ("source", "revision")}}


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    return hashlib.sha256(text.encode()).hexdigest()
