"""Queries of a task to models: texts and log-probabilities, from whichever column is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxytune.errors import ContextLengthError, OptionError

if TYPE_CHECKING:
    from proxytune import ProxyGenerator


@dataclass(frozen=True, kw_only=True)
class Formats:
    """Format in which each role reads a part's prompts unless the user says otherwise: names as in `proxytune.prompts`.

    `alone` is for a tuned model that answers by itself, in an expert's or a directly tuned model's column.
    """

    base: str = "raw"
    expert: str = "raw"
    anti: str = "raw"
    alone: str = "raw"


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The log-probability (natural log) of one answer, and whether its prompt's start was cut off to make it fit."""

    logprob: float
    is_truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """One column's loaded models.

    Attributes:
        generator: They.
        render: Function applied to a prompt before they get it, where all of them read the same text.
        alpha: Strength of steering; None for the roles' own.
        batch_size: Most rows in one batch.
        is_uniform: True if all roles read the same text.
    """

    generator: ProxyGenerator
    render: Callable[[str], str]
    alpha: float | None
    batch_size: int
    is_uniform: bool = True

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Return the greedy answers, in the order of the prompts.

        Raises:
            ContextLengthError: A prompt leaves no room.
        """
        completions = self.generator.generate(
            [self.render(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            stop=list(stop),
            alpha=self.alpha,
            batch_size=self.batch_size,
        )
        return [completion.text for completion in completions]

    def likelihoods(
        self, prompts: Sequence[str], answers: Sequence[str], *, is_truncated: bool = False
    ) -> list[Likelihood]:
        """Return the log-probability of each answer behind its prompt.

        Prompt and answer are tokenised together and split behind the prompt, as lm-evaluation-harness does.
        `is_truncated` cuts the start of what is too long for a role, as it does too.

        Raises:
            ContextLengthError: Prompt and answer are too long, and may not be cut.
            OptionError: They may, but the roles read different texts.
        """
        texts = [self.render(prompt) for prompt in prompts]
        cuts = [self._cut(text, answer) for text, answer in zip(texts, answers, strict=True)] if is_truncated else []
        given: list[Any] = [
            (text, answer) if not cuts or cuts[index] is None else cuts[index]
            for index, (text, answer) in enumerate(zip(texts, answers, strict=True))
        ]
        try:
            scores = self.generator.score(
                [prompt for prompt, _ in given],
                [answer for _, answer in given],
                alpha=self.alpha,
                batch_size=self.batch_size,
            )
        except ContextLengthError as error:
            raise ContextLengthError(f"{error} Or take --truncate, which cuts the start of such prompts.") from error
        return [
            Likelihood(logprob=score.total, is_truncated=bool(cuts) and cuts[index] is not None)
            for index, score in enumerate(scores)
        ]

    def _cut(self, text: str, answer: str) -> tuple[list[int], list[int]] | None:
        """Return the ids of prompt and answer with the prompt's start cut off; None where they fit."""
        contexts = [role.max_context for role in self.generator.model.roles if role.max_context is not None]
        if not contexts:
            return None
        prompt_ids = self.generator.tokenizer(text).input_ids
        ids = self.generator.tokenizer(text + answer).input_ids
        excess = len(ids) - 1 - min(contexts)
        if excess <= 0:
            return None
        if not self.is_uniform or excess >= len(prompt_ids):
            raise OptionError(
                f"a prompt and its answer have {len(ids)} tokens, {excess} more than fit: --truncate cuts prompts that "
                "all roles read alike, and only prompts. Leave out the prompt formats, or the question."
            )
        return prompt_ids[excess:], ids[len(prompt_ids) :]
