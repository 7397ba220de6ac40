"""A ProxyGenerator as a model of lm-evaluation-harness: any runtime, a prompt format per role.

Equals the harness's own HFLM on the composite where all roles read the same ids; there, a proxy folder also serves the
harness without this file: `lm_eval run --model hf --model_args pretrained=FOLDER,trust_remote_code=True`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from benchmarks.provenance import model_identity
from proxytune import ProxyGenerator
from proxytune.errors import ContextLengthError, InputError, OptionError

_HARNESS_MAX_LENGTH = 2048  # HFLM's for a model that states no context
_FILTERS = ("top_p", "top_k", "min_p")
_OPTIONS = ("repetition_penalty", "num_beams", "length_penalty")


class ProxyTuneLM(TemplateLM):
    """The models of `generator`, steered by `alpha` (None: the roles' own); `seed` is of sampled texts."""

    def __init__(
        self,
        generator: ProxyGenerator,
        *,
        alpha: float | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
    ) -> None:
        """Texts are encoded by the base's tokenizer unless roles have prompt formats; then each role reads its own."""
        super().__init__()
        self.generator, self.tokenizer = generator, generator.tokenizer
        self.alpha, self.batch_size, self.max_gen_toks, self.seed = alpha, batch_size, max_gen_toks, seed
        contexts = [role.max_context for role in generator.model.roles if role.max_context is not None]
        self.max_length = min([*contexts, *([max_length] if max_length else [])], default=_HARNESS_MAX_LENGTH)
        self._reads_ids = all(role.prompt_format == "raw" for role in generator.model.roles)

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        eos = self.tokenizer.eos_token_id
        ids = [eos] if eos is not None else list(self.generator.eos_token_ids)
        if not ids:
            raise OptionError("no role states an end-of-text id, which the harness needs: pass eos_token_ids.")
        return int(ids[0])

    @property
    def prefix_token_id(self) -> int:
        """BOS, or the end of text where there is none: it precedes a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's key in the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the base's chat template."""
        flags = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **flags))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the base's ids of a text; a text that begins with BOS gets no second one."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        flags = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer(string, **flags).input_ids)

    def get_model_info(self) -> dict[str, Any]:
        """Return what decides an answer, as JSON has it; models by digest of their folder or by commit."""
        generator, config = self.generator, self.generator.model.config
        pairs = [{**pair, **{role: _role(pair[role]) for role in ("expert", "anti")}} for pair in config.pairs or []]
        described = {
            "base": _role(config.base),
            "pairs": pairs,
            "alpha": self.alpha,
            "rule": config.rule,
            "prompt_formats": [role.prompt_format for role in generator.model.roles],
            "tokenizer": _tokenizer_digest(generator.tokenizer),
            "eos_token_ids": list(generator.eos_token_ids),
            "runtime": generator.runtime,
            "max_length": self.max_length,
            "max_gen_toks": self.max_gen_toks,
            "seed": self.seed,
        }
        return {"proxytune": described}

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text, in windows as long as the context, each token once."""
        if not self._reads_ids:
            raise OptionError("a text without a prompt has no prompt format: leave --base-prompt and the others raw.")
        windows = [
            (index, make_disjoint_window(window))
            for index, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(*request.args), self.prefix_token_id, self.max_length, context_len=1
            )
        ]
        scores = self._loglikelihood_tokens([(None, *window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (index, _), (logprob, _) in zip(windows, scores, strict=True):
            totals[index] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text of each (context, options), up to the first of its `until`.

        A context too long for all new tokens loses its start, as in HFLM.

        Raises:
            OptionError: An option unknown to `generate`.
            ContextLengthError: The new tokens alone are too many.
        """
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        for group in groups.values():
            for index, text in self._generate([requests[index] for index in group]):
                texts[group[index]] = text
                self.cache_hook.add_partial("generate_until", requests[group[index]].args, text)
        return texts

    def is_truncated(self, args: tuple[Any, ...]) -> bool:
        """True if a request is too long, so that the start of its context is cut off."""
        if len(args) < 2 or not self._reads_ids:
            return False
        context, rest = args
        if isinstance(rest, str):
            return len(self.tok_encode(context + rest)) > self.max_length + 1
        max_new_tokens = normalize_gen_kwargs(rest, self.max_gen_toks)["max_gen_toks"]
        return bool(len(self.tok_encode(context)) > self.max_length - max_new_tokens)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        rows = [self._row(*request) for request in requests]
        results = [(0.0, False)] * len(rows)
        if not rows:
            return results
        prompts, continuations = zip(*rows, strict=True)
        scores = self.generator.score_as_done(prompts, continuations, alpha=self.alpha, batch_size=self.batch_size)
        for index, score in scores:
            results[index] = (score.total, score.is_greedy)
            if (args := requests[index][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", args, results[index])
        return results

    def _row(self, args: Any, context_ids: list[int], continuation_ids: list[int]) -> tuple[Any, Any]:
        """Return prompt and continuation for `score`: ids, or texts where roles have formats of their own."""
        if not continuation_ids:
            raise InputError(f"the continuation {args[1]!r} adds no token to its context: there is nothing to score.")
        if not self._reads_ids:
            context, continuation = args
            if not (stripped := context.rstrip()):
                raise OptionError("a text without a prompt has no prompt format: leave --base-prompt and others raw.")
            return stripped, context[len(stripped) :] + continuation
        max_context = self._max_context(len(continuation_ids) - 1)
        return (list(context_ids) or [self.prefix_token_id])[-max_context:], list(continuation_ids)

    def _generate(self, requests: Sequence[Any]) -> list[tuple[int, str]]:
        """Return index and text of requests with the same options."""
        given = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        until = handle_stop_sequences(given.pop("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        max_new_tokens = given.pop("max_gen_toks")
        max_context = self._max_context(max_new_tokens)
        contexts = [request.args[0] for request in requests]
        ids = [(self.tok_encode(text) or [self.prefix_token_id])[-max_context:] for text in contexts]
        completions = self.generator.generate_as_done(
            ids if self._reads_ids else contexts,
            max_new_tokens=max_new_tokens,
            stop=[text for text in until if text],
            alpha=self.alpha,
            batch_size=self.batch_size,
            seed=self._seeds(contexts),
            **_decoding(given),
        )
        return [(completion.index, self._text(completion.token_ids, until)) for completion in completions]

    def _max_context(self, num_tokens: int) -> int:
        if num_tokens >= self.max_length:
            raise ContextLengthError(
                f"an answer has {num_tokens} tokens and the roles read {self.max_length}: take roles with a longer "
                "context, lower max_gen_toks, or leave the task out."
            )
        return self.max_length - num_tokens

    def _text(self, token_ids: Sequence[int], until: Sequence[str]) -> str:
        """Return the ids' text as HFLM makes it, cut at a stop, which may be a special token."""
        specials = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        ends = {index for index, token in specials if token.special and str(token) in until}
        length = next((length for length, index in enumerate(token_ids) if index in ends), len(token_ids))
        text = self.tokenizer.decode(list(token_ids[:length]), skip_special_tokens=True)
        return str(postprocess_generated_text(generation=text, stop=list(until), think_end_token=None))

    def _seeds(self, contexts: Sequence[str]) -> list[int]:
        """Return a seed per context, whatever the batch; repeats of a context differ."""
        texts = [f"{self.seed} {contexts[: index + 1].count(text)} {text}" for index, text in enumerate(contexts)]
        return [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1 for text in texts]


def _decoding(given: dict[str, Any]) -> dict[str, Any]:
    """Return `generate`'s options for the harness's."""
    is_sampled, temperature = bool(given.pop("do_sample", False)), float(given.pop("temperature", 1.0))
    filters = {key: given.pop(key) for key in _FILTERS if key in given}
    options = {key: given.pop(key) for key in _OPTIONS if key in given}
    if given:
        raise OptionError(
            f"generation_kwargs has {next(iter(given))!r}, which proxytune does not know: "
            f"it takes until, max_gen_toks, do_sample, temperature, {', '.join((*_FILTERS, *_OPTIONS))}."
        )
    return {**options, **(filters | {"temperature": temperature} if is_sampled else {"temperature": 0.0})}


def response_cache(folder: Path, lm: ProxyTuneLM) -> str:
    """Return the harness's `use_cache` for a model: it keys answers by their requests alone, so a file for each model.

    Raises:
        InputError: A role was passed as a loaded model without folder or hub id, so nothing tells it from another.
    """
    described = lm.get_model_info()["proxytune"]
    pairs = described["pairs"]
    if any(role.get("source", "") is None for role in (described["base"], *_roles(pairs))):
        raise InputError(
            "a role was passed as a loaded model without a folder, so cached answers cannot be told from another's: "
            "save it and name the folder, or do without the cache."
        )
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()
    return str(folder / f"responses-{digest[:24]}")


def _roles(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [pair[role] for pair in pairs for role in ("expert", "anti") if isinstance(pair[role], dict)]


def _role(stored: Any) -> Any:
    if isinstance(stored, str):
        return stored
    source = stored["source"]
    identity = model_identity(source, stored.get("revision")) if source else {"source": None}
    return {**identity, **{key: value for key, value in stored.items() if key not in ("source", "revision")}}


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    return hashlib.sha256(text.encode()).hexdigest()
