"""Options of a call of `generate`, checked before anything runs."""

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal, TypedDict

from proxytune.encoding import require_encodable, special_tokens
from proxytune.errors import OptionError, UnknownOptionError

TRACE_CANDIDATES = 5

_MAX_FLOAT32 = 3.4028234663852886e38

Speculation = Literal["auto", "off"] | int


class OptionKwargs(TypedDict, total=False):
    """The keyword arguments of `generate` and `stream`; each is explained in `GenerationOptions`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    num_beams: int
    length_penalty: float
    num_return_sequences: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None
    seed: int | Sequence[int] | None
    alpha: Any
    batch_size: int
    progress: bool
    stats: bool
    trace: bool | int


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """One decoding configuration. Names and meanings are those of vLLM and transformers.

    Attributes:
        max_new_tokens: Most tokens to generate per row.
        temperature: 0 is greedy (the default); above 0 samples.
        top_p: Nucleus in (0, 1]; 1 keeps everything.
        top_k: Keep the k likeliest; 0 keeps everything.
        min_p: Drop what is below min_p times the likeliest; 0 keeps everything.
        repetition_penalty: Above 1 discourages tokens of the prompt (as the base reads it) and the answer.
        num_beams: Above 1 is beam search (deterministic: temperature must be 0).
        length_penalty: Exponent on length in beam scores.
        num_return_sequences: Completions per prompt.
        stop: Text or texts that end a row; they are not part of its text. One that is a special token of the tokenizer
            ends a row by that token's id.
        stop_token_ids: Ids that end a row, whatever `ignore_eos` says; their tokens are not part of its text.
        ignore_eos: Go on to max_new_tokens whatever comes.
        logprobs: None for none; k for the chosen token's and the k likeliest ones' log-probabilities under the combined
            distribution, before temperature and filters.
        seed: One number, or one per prompt. A row's draws depend on its seed alone, not on the rest of the batch: equal
            prompts with equal seeds give equal text. None draws seeds from torch's global generator.
        alpha: Strength of steering: None for the generator's own; a number; or one entry per prompt. With several pairs
            an entry (or the whole) may also list one number per pair.
        batch_size: Most rows in one batch; halved by itself when memory runs out.
        progress: Show a progress bar on stderr.
        stats: Measure the time of every role, and put `DecodingStats` on `Completion.timing` (runtime hf).
        trace: Put on each completion what steering did at every token (runtime hf): True, or how many of the likeliest
            tokens of each distribution to keep.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    num_return_sequences: int = 1
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    seed: int | Sequence[int] | None = None
    alpha: Any = None
    batch_size: int = 32
    progress: bool = False
    stats: bool = False
    trace: bool | int = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, plain_number(value))
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        stop_ids = [self.stop_token_ids] if isinstance(self.stop_token_ids, int) else self.stop_token_ids
        object.__setattr__(self, "stop_token_ids", tuple(plain_number(index) for index in stop_ids))
        for name in ("max_new_tokens", "num_beams", "num_return_sequences", "batch_size"):
            _require_integer(name, getattr(self, name), least=1)
        _require_integer("top_k", self.top_k, least=0)
        _require(_is_number(self.temperature) and self.temperature >= 0, "temperature", self.temperature, "0 or more")
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        _require(
            _is_number(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            self.repetition_penalty,
            "above 0",
        )
        _require(_is_number(self.length_penalty), "length_penalty", self.length_penalty, "a finite number")
        if self.logprobs is not None:
            _require_integer("logprobs", self.logprobs, least=0)
        if self.trace is not False:
            _require_integer("trace (unless True or False)", self.num_trace_candidates, least=1)
        for text in self.stop:
            _require(isinstance(text, str) and text != "", "stop", text, "a text, or texts, of at least one character")
            require_encodable(text, "stop")
        for index in self.stop_token_ids:
            _require_integer("stop_token_ids (each)", index, least=0)
        self._require_fitting_together()

    @classmethod
    def from_kwargs(cls, options: Mapping[str, Any]) -> "GenerationOptions":
        """Return the options, or raise UnknownOptionError naming the nearest known one."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}."
                raise UnknownOptionError(f"unknown option {name!r}: {hint}")
        return cls(**options)

    def end_ids(self, eos_token_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the ids that end a row, of which `eos_token_ids` are the generator's."""
        return (*(() if self.ignore_eos else eos_token_ids), *self.stop_token_ids)

    def for_tokenizer(self, tokenizer: Any, vocab_size: int) -> "GenerationOptions":
        """Return these with the special tokens among `stop` as ids: decoded text does not show them.

        Raises:
            OptionError: A stop text holds a special token and more, which no decoded text can; or an id is none that
                all roles share.
        """
        special = special_tokens(tokenizer) if self.stop else {}
        for text in self.stop:
            if text not in special and (part := next((token for token in special if token and token in text), None)):
                raise OptionError(
                    f"stop is {text!r}: {part!r} is a special token, which is no part of the text; pass it alone, or "
                    f"stop_token_ids=[{special[part]}]."
                )
        beyond = next((index for index in self.stop_token_ids if index >= vocab_size), None)
        if beyond is not None:
            raise OptionError(
                f"stop_token_ids has {beyond}, but the ids all roles share go from 0 to {vocab_size - 1}."
            )
        ids = [index for text in self.stop if (index := special.get(text, vocab_size)) < vocab_size]
        return replace(self, stop_token_ids=tuple(dict.fromkeys([*self.stop_token_ids, *ids])))

    @property
    def is_sampled(self) -> bool:
        """True if tokens are drawn, False if the likeliest is taken."""
        return self.temperature > 0

    @property
    def num_trace_candidates(self) -> int:
        """Number of tokens of each distribution that a trace keeps; 0 where none is asked for."""
        return TRACE_CANDIDATES if self.trace is True else self.trace

    def _require_fitting_together(self) -> None:
        if self.num_beams > 1 and self.is_sampled:
            raise OptionError(
                f"num_beams={self.num_beams} with temperature={self.temperature}: beam search is deterministic; "
                "set temperature=0, or num_beams=1 to sample."
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise OptionError(
                f"num_return_sequences={self.num_return_sequences} exceeds num_beams={self.num_beams}: raise num_beams."
            )
        if self.num_beams == 1 and not self.is_sampled and self.num_return_sequences > 1:
            raise OptionError(
                f"num_return_sequences={self.num_return_sequences} under greedy decoding gives equal texts: "
                "set temperature above 0, or num_beams to at least as many."
            )


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of a generator's own loop (runtime hf).

    Attributes:
        speculation: "auto" measures whether drafts pay and how far to draft; "off" never drafts; k drafts k tokens.
        draft: The drafter: "expert", or a model in whatever way roles are named.
        compile: "auto" captures each role's forward as a CUDA graph; "off" runs eagerly.
    """

    speculation: Speculation = "auto"
    draft: Any = "expert"
    compile: Literal["auto", "off"] = "auto"

    def __post_init__(self) -> None:
        if self.speculation not in ("auto", "off"):
            _require_integer("speculation (unless 'auto' or 'off')", self.speculation, least=1)
        _require(self.compile in ("auto", "off"), "compile", self.compile, "'auto' or 'off'")
        if self.has_draft_model and self.speculation == "off":
            raise OptionError("draft names a model and speculation is 'off': leave one of them out.")

    @property
    def has_draft_model(self) -> bool:
        """True if a model of its own drafts, instead of the expert."""
        return not (isinstance(self.draft, str) and self.draft == "expert")

    @property
    def is_demanded(self) -> bool:
        """True if drafts were asked for, False if they are left to the loop."""
        return self.speculation not in ("auto", "off") or self.has_draft_model


def plain_number(value: Any) -> Any:
    """Return a NumPy number, or a tensor of one number without dimensions, as Python's; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_alpha(alpha: Any) -> float:
    """Return α as a float, or raise OptionError: it must be a finite number (negative steers away)."""
    alpha = plain_number(alpha)
    if not _is_number(alpha) or abs(alpha) > _MAX_FLOAT32:
        raise OptionError(
            f"alpha is {alpha!r}: it must be a finite number that float32 holds (1.0 is the paper's, 0 the base alone)."
        )
    return float(alpha)


def pair_alphas(alpha: Any, num_pairs: int) -> tuple[float, ...]:
    """Return one strength per pair, from a number or a sequence of one per pair.

    Raises:
        OptionError: Not finite, or not one per pair.

    >>> pair_alphas(0.5, 2), pair_alphas([1, 0], 2)
    ((0.5, 0.5), (1.0, 0.0))
    """
    if not isinstance(alpha, Sequence) or isinstance(alpha, str):
        return (check_alpha(alpha),) * num_pairs
    if len(alpha) != num_pairs:
        raise OptionError(f"alpha lists {len(alpha)} numbers for {num_pairs} pair(s): pass one number per pair.")
    return tuple(check_alpha(value) for value in alpha)


def row_alphas(alpha: Any, num_rows: int, num_pairs: int) -> list[tuple[float, ...]]:
    """Return for each row one strength per pair, from what `GenerationOptions.alpha` allows, None aside.

    Raises:
        OptionError: Not finite, or not one per row or pair.

    >>> row_alphas([1, 0], 2, 1)
    [(1.0,), (0.0,)]
    """
    if hasattr(alpha, "tolist"):
        alpha = alpha.tolist()
    is_one_row = not isinstance(alpha, Sequence) or isinstance(alpha, str)
    if is_one_row or (num_pairs > 1 and all(isinstance(entry, Real) for entry in alpha)):
        return [pair_alphas(alpha, num_pairs)] * num_rows
    if len(alpha) != num_rows:
        raise OptionError(f"alpha has {len(alpha)} entries for {num_rows} prompts: pass one number, or one per prompt.")
    return [pair_alphas(entry, num_pairs) for entry in alpha]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def _require(is_right: bool, name: str, value: Any, expected: str) -> None:
    if not is_right:
        raise OptionError(f"{name} is {value!r}: it must be {expected}.")


def _require_integer(name: str, value: Any, *, least: int) -> None:
    is_right = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _require(is_right, name, value, f"a whole number of at least {least}")
