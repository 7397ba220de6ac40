"""`proxytune` as a model of lm-evaluation-harness: log-likelihoods and texts of a ProxyGenerator, in either runtime.

`lm_eval.simple_evaluate(model=ProxyTuneLM(generator), tasks=[…])`; see `benchmarks.tasks.lm_eval.harness` for the
harness's own command line. Text is encoded once, by the base's tokenizer, exactly as the harness's HFLM encodes it, and
the same ids go to every role; where roles have prompt formats of their own, the text goes to each in its format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from benchmarks.tasks.lm_eval.response_cache import describe
from proxytune import ProxyGenerator
from proxytune.errors import ContextLengthError, InputError, OptionError

_HARNESS_MAX_LENGTH = 2048  # what HFLM takes for a model that states no context
_FIRST_GPU = (None, "cuda", "cuda:0")  # what its command line always names, and where roles go anyway if there is one
_FILTERS = ("top_p", "top_k", "min_p")
_OPTIONS = ("repetition_penalty", "num_beams", "length_penalty")
_SPECIAL_TOKENS = 8  # more than a tokenizer puts around a text


class ProxyTuneLM(TemplateLM):
    """A ProxyGenerator as the harness knows models.

    Attributes:
        generator: The models.
        alpha: Strength of steering; None for the roles' own.
        batch_size: Most rows in one batch.
        max_length: Tokens that every role can read.
        max_gen_toks: Most new tokens where a task names no number.
        has_progress: Whether to show bars on stderr.
    """

    def __init__(
        self,
        generator: ProxyGenerator,
        *,
        alpha: float | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        has_progress: bool = True,
        render: Callable[[str], str] | None = None,
    ) -> None:
        """`seed` is of sampled texts; `render` is done to every context, where all roles read the same text."""
        super().__init__()
        self.generator = generator
        self.tokenizer = generator.tokenizer
        self.alpha, self.batch_size = alpha, batch_size
        contexts = [role.max_context for role in generator.model.roles if role.max_context is not None]
        self.max_length = min([*contexts, *([max_length] if max_length else [])], default=_HARNESS_MAX_LENGTH)
        self.max_gen_toks, self.seed, self.has_progress = max_gen_toks, seed, has_progress
        self.render = render or str
        self._reads_ids = all(role.prompt_format == "raw" for role in generator.model.roles)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> ProxyTuneLM:
        """Return the model from the harness's `model_args`: ProxyGenerator's arguments, or `model` for a proxy folder.

        `batch_size`, `max_length`, `max_gen_toks` and `seed` are this class's; `device` is where roles go.
        """
        given = {**arg_dict, **{key: value for key, value in (additional_config or {}).items() if value is not None}}
        given.pop("max_batch_size", None)
        own = {key: given.pop(key) for key in ("max_length", "max_gen_toks", "seed") if key in given}
        own["batch_size"] = _batch_size(given.pop("batch_size", 16))
        if (device := given.pop("device", None)) not in _FIRST_GPU:
            given.setdefault("device_map", device)
        folder = given.pop("model", None)
        return cls(ProxyGenerator.from_pretrained(folder, **given) if folder else ProxyGenerator(**given), **own)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> ProxyTuneLM:
        """Return the model from `name=value,name=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        own = self.tokenizer.eos_token_id
        ids = [own] if own is not None else list(self.generator.eos_token_ids)
        if not ids:
            raise OptionError("no role states an end-of-text id, which the harness needs: pass eos_token_ids.")
        return int(ids[0])

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text without context: BOS, or the end of text where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """What tells the tokenizer from others in the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the base's chat template; per-role prompt formats are the other way to have one."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes of the model into its results."""
        return {"proxytune": describe(self)}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the base's ids of a text; BOS is not put before one that begins with it."""
        flags = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            flags = {"add_special_tokens": False}
        return list(self.tokenizer(string, **flags).input_ids)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log-probability and greediness of each (context, continuation)."""
        is_quiet = disable_tqdm or not self.has_progress
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=is_quiet)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text, in windows as long as the context, each token once.

        Raises:
            OptionError: The roles have prompt formats, which say nothing about a text without a prompt.
        """
        if not self._reads_ids:
            raise OptionError("a text without a prompt has no prompt format: leave --base-prompt and the others raw.")
        windows = [(place, window) for place, request in enumerate(requests) for window in self._windows(*request.args)]
        found = self._loglikelihood_tokens([(None, *window) for _, window in windows], disable_tqdm=disable_tqdm)
        totals = [0.0] * len(requests)
        for (place, _), (logprob, _) in zip(windows, found, strict=True):
            totals[place] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text of each (context, options), up to the first of its `until`.

        A context that leaves no room for all new tokens loses its start, as in HFLM.

        Raises:
            OptionError: An option that `generate` has no counterpart of.
            ContextLengthError: The new tokens alone are too many.
        """
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        texts = [""] * len(requests)
        is_quiet = disable_tqdm or not self.has_progress
        with tqdm(total=len(requests), disable=is_quiet, desc="generate_until") as bar:
            for places in groups.values():
                for place, text in self._generate([requests[place] for place in places]):
                    texts[places[place]] = text
                    self.cache_hook.add_partial("generate_until", requests[places[place]].args, text)
                    bar.update()
        return texts

    def is_truncated(self, args: tuple[Any, ...]) -> bool:
        """Return whether the arguments of a request are too long, so that the context's start is cut off."""
        if len(args) < 2 or not self._reads_ids:
            return False
        context, rest = args
        room, text = self.max_length + 1, self.render(context)
        if isinstance(rest, str):
            text += rest
        else:
            room = self.max_length - normalize_gen_kwargs(rest, self.max_gen_toks)["max_gen_toks"]
        # No token is shorter than a byte.
        return len(text.encode()) + _SPECIAL_TOKENS > room and len(self.tok_encode(text)) > room

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(self.render(context), continuation)
        return list(context_ids), list(continuation_ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        if not requests:
            return []
        rows = [self._row(*request) for request in requests]
        done = self.generator.score_as_done(
            [prompt for prompt, _ in rows],
            [continuation for _, continuation in rows],
            alpha=self.alpha,
            batch_size=self.batch_size,
        )
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        is_quiet = disable_tqdm or not self.has_progress
        for place, score in tqdm(done, total=len(rows), disable=is_quiet, desc="loglikelihood"):
            found[place] = (score.total, score.is_greedy)
            if (args := requests[place][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", args, found[place])
        return found

    def _row(self, args: Any, context_ids: list[int], continuation_ids: list[int]) -> tuple[Any, Any]:
        """Return prompt and continuation as `score` takes them: ids, or texts where roles have formats of their own."""
        if not continuation_ids:
            raise InputError(f"the continuation {args[1]!r} adds no token to its context: there is nothing to score.")
        if not self._reads_ids:
            return self._texts(*args)
        room = self.max_length + 1 - len(continuation_ids)
        if room < 1:
            raise ContextLengthError(
                f"a continuation has {len(continuation_ids)} tokens and the roles read {self.max_length}: "
                "take roles with a longer context, or leave the task out."
            )
        return (context_ids or [self.prefix_token_id])[-room:], continuation_ids

    def _texts(self, context: str, continuation: str) -> tuple[str, str]:
        stripped = context.rstrip()
        if not stripped:
            raise OptionError("a text without a prompt has no prompt format: leave --base-prompt and the others raw.")
        return stripped, context[len(stripped) :] + continuation

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def _generate(self, requests: Sequence[Any]) -> list[tuple[int, str]]:
        """Return place and text of requests with the same options."""
        given = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        until = handle_stop_sequences(given.pop("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        max_new_tokens = given.pop("max_gen_toks")
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ContextLengthError(
                f"a task asks for {max_new_tokens} new tokens and the roles read {self.max_length} in all: "
                "lower max_gen_toks."
            )
        done = self.generator.generate_as_done(
            [self._prompt(request.args[0], room) for request in requests],
            max_new_tokens=max_new_tokens,
            stop=[text for text in until if text],
            alpha=self.alpha,
            batch_size=self.batch_size,
            seed=self._seeds([request.args[0] for request in requests]),
            **_decoding(given),
        )
        return [(found.index, self._text(found.token_ids, until)) for found in done]

    def _prompt(self, context: str, room: int) -> Any:
        if not self._reads_ids:
            return context
        return (self.tok_encode(self.render(context)) or [self.prefix_token_id])[-room:]

    def _text(self, token_ids: Sequence[int], until: Sequence[str]) -> str:
        """Return the ids' text as HFLM makes it: decoded by themselves, cut at a stop, which may be a special token."""
        specials = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        ends = {index for index, token in specials if token.special and str(token) in until}
        place = next((place for place, index in enumerate(token_ids) if index in ends), len(token_ids))
        text = self.tokenizer.decode(list(token_ids[:place]), skip_special_tokens=True)
        return str(postprocess_generated_text(generation=text, stop=list(until), think_end_token=None))

    def _seeds(self, contexts: Sequence[str]) -> list[int]:
        """Return a seed per context: its own whatever it runs with, and another one for each time it repeats."""
        counts: dict[str, int] = {}
        seeds = []
        for context in contexts:
            counts[context] = counts.get(context, 0) + 1
            digest = hashlib.sha256(f"{self.seed} {counts[context]} {context}".encode()).digest()
            seeds.append(int.from_bytes(digest[:8]) >> 1)
        return seeds


def _decoding(given: dict[str, Any]) -> dict[str, Any]:
    """Return `generate`'s options for the harness's."""
    is_sampled = bool(given.pop("do_sample", False))
    temperature = float(given.pop("temperature", 1.0))
    filters = {key: given.pop(key) for key in _FILTERS if key in given}
    options = {key: given.pop(key) for key in _OPTIONS if key in given}
    if given:
        raise OptionError(
            f"generation_kwargs has {next(iter(given))!r}, which proxytune does not know: "
            f"it takes until, max_gen_toks, do_sample, temperature, {', '.join((*_FILTERS, *_OPTIONS))}."
        )
    return {**options, **(filters | {"temperature": temperature} if is_sampled else {"temperature": 0.0})}


def _batch_size(given: Any) -> int:
    with suppress(TypeError, ValueError):
        return int(given)
    raise OptionError(f"batch_size is {given!r}: it must be a whole number; it is halved by itself when memory ends.")
