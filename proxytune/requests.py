"""From what a caller passes to the rows a runtime decodes: ids per role, strengths, seed and limit of each prompt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from proxytune.completion import Request
from proxytune.encoding import as_ids, require_encodable, split_continuation
from proxytune.errors import ContextLengthError, InputError, OptionError
from proxytune.options import GenerationOptions, row_alphas
from proxytune.prompts import Prompt, PromptFormat, is_token_ids, without_closing_blank

_UNLIMITED = 2**31
_SEED_STEP = 0x9E3779B97F4A7C15  # odd and large: the second sequence of seed 0 is not the first of seed 1


@dataclass(frozen=True)
class RoleReader:
    """Prompt format, tokenizer and limits of one role.

    Attributes:
        name: Of the role.
        form: Its prompt format.
        tokenizer: Its own, or the one for all.
        max_context: Most tokens it can read, None if it states no limit.
        vocab_size: Number of ids it knows. A prompt of its own may hold some that the others lack: a chat model's turn
            marks, added behind the base's vocabulary.
    """

    name: str
    form: PromptFormat
    tokenizer: Any
    max_context: int | None
    vocab_size: int


@dataclass(frozen=True)
class RequestBuilder:
    """Builds checked requests.

    Attributes:
        readers: One per role of the composite, base first.
        vocab_size: Number of ids all roles share.
        alphas: The configured strength of each pair.
    """

    readers: Sequence[RoleReader]
    vocab_size: int
    alphas: tuple[float, ...]

    @classmethod
    def for_model(cls, model: Any, tokenizers: Mapping[str, Any], shared: Any) -> "RequestBuilder":
        """Return the builder of a composite, whose roles have `tokenizers` by name, or the `shared` one."""
        readers = [
            RoleReader(
                role.name,
                PromptFormat(role.prompt_format),
                tokenizers.get(role.name, shared),
                role.max_context,
                role.logits_width,
            )
            for role in model.roles
        ]
        return cls(readers, model.config.vocab_size, model.config.alphas)

    def for_generation(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Request]:
        """Return the rows of a `generate` call, prompt by prompt.

        Raises:
            InputError: A prompt cannot be read.
            ContextLengthError: No token fits behind it.
            OptionError: `alpha` or `seed` does not fit the prompts.
        """
        alphas = self.alphas_for(options.alpha, len(prompts))
        seeds = _seeds(options.seed, len(prompts))
        # Beam search makes its sequences from one row; sampling draws each from a row of its own.
        copies = 1 if options.num_beams > 1 else options.num_return_sequences
        requests = []
        for index, prompt in enumerate(prompts):
            role_ids = self._encode(prompt, index)
            remaining_tokens = self._remaining_tokens(role_ids, 1, index)
            requests += [
                Request(
                    role_ids=role_ids,
                    alphas=alphas[index],
                    seed=(seeds[index] + copy * _SEED_STEP) % 2**63,
                    max_new_tokens=min(options.max_new_tokens, remaining_tokens),
                    index=index,
                    sequence=copy,
                )
                for copy in range(copies)
            ]
        return requests

    def for_scoring(self, prompts: Sequence[Prompt], continuations: Sequence[Any], alpha: Any) -> list[Request]:
        """Return the rows of a `score` call; errors as in `for_generation`."""
        if len(prompts) != len(continuations):
            raise InputError(
                f"{len(prompts)} prompts and {len(continuations)} continuations: pass one continuation per prompt."
            )
        alphas = self.alphas_for(alpha, len(prompts))
        requests = []
        for index, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
            role_ids, ids = self._encode_both(prompt, continuation, index)
            # The last token is only predicted, never read.
            self._remaining_tokens(role_ids, len(ids) - 1, index)
            requests.append(Request(role_ids=role_ids, alphas=alphas[index], index=index, continuation_ids=ids))
        return requests

    def alphas_for(self, alpha: Any, num_prompts: int) -> list[tuple[float, ...]]:
        """Return one strength per pair for each prompt, from what `GenerationOptions.alpha` allows."""
        return [self.alphas] * num_prompts if alpha is None else row_alphas(alpha, num_prompts, len(self.alphas))

    def _encode(
        self, prompt: Prompt, index: int, prompts: Sequence[Prompt] | None = None
    ) -> tuple[tuple[int, ...], ...]:
        """Return the ids of a prompt for each role; `prompts` has one for each in its place."""
        encoded = []
        for reader, role_prompt in zip(self.readers, prompts or [prompt] * len(self.readers), strict=True):
            try:
                ids = reader.form.encode(role_prompt, reader.tokenizer)
            except InputError as error:
                raise InputError(f"prompt {index}: {error}") from error
            _require_known(ids, reader.vocab_size, f"prompt {index} of {reader.name}", "it knows")
            encoded.append(tuple(ids))
        return tuple(encoded)

    def _encode_both(
        self, prompt: Prompt, continuation: Any, index: int
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
        """Return a prompt's ids for each role and those to score: text is encoded behind the base's prompt.

        Blanks at the end of a prompt belong to the continuation's first word, as tokenizers and lm-evaluation-harness
        have it, for every role whose prompt ends with them.
        """
        if isinstance(continuation, str):
            require_encodable(continuation, f"continuation {index}")
        if len(continuation) == 0:
            raise InputError(f"continuation {index} is empty: there is nothing to score.")
        base = self.readers[0]
        if not isinstance(continuation, str):
            role_ids, ids = self._encode(prompt, index), as_ids(continuation)
        elif is_token_ids(prompt) or base.form.name == "chat":
            role_ids = self._encode(prompt, index)
            ids = base.tokenizer(continuation, add_special_tokens=False).input_ids
        else:
            shorter, blank = without_closing_blank(prompt)
            moves = [bool(blank) and reader.form.ends_with(prompt, shorter, blank) for reader in self.readers]
            role_ids = self._encode(prompt, index, [shorter if is_moved else prompt for is_moved in moves])
            start, text = (shorter, blank + continuation) if moves[0] else (prompt, continuation)
            both = split_continuation(base.tokenizer, base.form.text(start), text)
            ids = [] if both is None else both[1]
        if not ids:
            raise InputError(
                f"continuation {index} ({continuation!r}) joins the last word of its prompt, so that no token begins "
                "with it: begin it with a space, or pass token ids."
            )
        _require_known(ids, self.vocab_size, f"continuation {index}", "all roles share")
        return role_ids, tuple(ids)

    def _remaining_tokens(self, role_ids: Sequence[Sequence[int]], num_tokens: int, index: int) -> int:
        """Return how many tokens every role can still read; raise if that is less than `num_tokens`."""
        remaining = [
            (reader.max_context - len(ids), reader.name, len(ids), reader.max_context)
            for reader, ids in zip(self.readers, role_ids, strict=True)
            if reader.max_context is not None
        ]
        remaining_tokens, name, length, context = min(remaining, default=(_UNLIMITED, "", 0, 0))
        if remaining_tokens < num_tokens:
            raise ContextLengthError(
                f"prompt {index} has {length} tokens for the {name}, whose context of {context} is the shortest: "
                f"shorten it by {num_tokens - remaining_tokens}."
            )
        return remaining_tokens


def as_prompts(prompts: Any) -> list[Prompt]:
    """Return a list of prompts from one prompt or several.

    A list of numbers or of messages is one prompt; a list of strings or of lists is several.

    Raises:
        InputError: There is none.
    """
    if hasattr(prompts, "tolist"):  # an array or a tensor, of one prompt or of several
        prompts = prompts.tolist()
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise InputError(
            f"prompts are {prompts!r}: pass a string, a list of messages, a list of token ids, or a list of such."
        )
    listed = list(prompts)
    if not listed:
        raise InputError("there is no prompt: pass at least one.")
    is_single = all(isinstance(item, Integral) for item in listed) or all(isinstance(item, dict) for item in listed)
    return [listed] if is_single else listed


def as_continuations(continuations: Any) -> list[Any]:
    """Return a list of continuations from one or several; a list of numbers is one."""
    if hasattr(continuations, "tolist"):
        continuations = continuations.tolist()
    if isinstance(continuations, str):
        return [continuations]
    listed = list(continuations)
    return [listed] if listed and all(isinstance(item, Integral) for item in listed) else listed


def _require_known(ids: Sequence[int], vocab_size: int, what: str, who: str) -> None:
    if 0 <= min(ids) <= max(ids) < vocab_size:
        return
    wrong = min(ids) if min(ids) < 0 else max(ids)
    raise InputError(f"{what} holds token id {wrong}, but the ids that {who} go from 0 to {vocab_size - 1}.")


def _seeds(seed: int | Sequence[int] | None, num_prompts: int) -> list[int]:
    if seed is None:
        return [int(value) for value in torch.randint(2**62, (num_prompts,)).tolist()]
    if hasattr(seed, "tolist"):
        seed = seed.tolist()
    seeds = [seed] * num_prompts if type(seed) is int else as_ids(seed) if isinstance(seed, Sequence) else []
    if len(seeds) != num_prompts or not all(type(value) is int and 0 <= value < 2**63 for value in seeds):
        raise OptionError(
            f"seed is {seed!r}: pass a whole number from 0 to 2**63 - 1, or one for each of the {num_prompts} prompts."
        )
    return seeds
