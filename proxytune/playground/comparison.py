"""One prompt, answered by the base alone and by the steered base at the same time."""

import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxytune.report import TracedText, render
from proxytune.trace import Trace

if TYPE_CHECKING:
    from proxytune.completion import Completion
    from proxytune.generator import ProxyGenerator


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, and how it is to be answered.

    Attributes:
        prompt: Text.
        alphas: Strength of each pair, for the steered answer.
        options: As in `ProxyGenerator.stream`, without alpha.
    """

    prompt: str
    alphas: tuple[float, ...]
    options: Mapping[str, Any]

    def seeded(self) -> "Question":
        """Return the question with a seed, so that both answers are drawn with the same random numbers."""
        return Question(prompt=self.prompt, alphas=self.alphas, options={"seed": secrets.randbits(48), **self.options})


class Answer:
    """The answer at one strength as far as it has come; close it to end the work."""

    def __init__(self, generator: "ProxyGenerator", question: Question, alphas: Sequence[float]) -> None:
        """Check the question and begin.

        Raises:
            ProxyTuneError: It cannot be answered.
        """
        self.text = ""
        self.is_done = False
        self._generator = generator
        self._prompt = question.prompt
        self._alpha = [list(alphas)]
        self._completion: Completion | None = None
        self._pieces: Generator[str, None, Completion] = generator.stream(
            question.prompt, alpha=self._alpha, **question.options
        )

    def advance(self) -> None:
        """Add the next piece of text, or find that there is none."""
        try:
            self.text += next(self._pieces)
        except StopIteration as end:
            self.is_done = True
            self._completion = end.value

    def close(self) -> None:
        """End the work."""
        self._pieces.close()

    def trace(self) -> Trace | None:
        """Return what steering did at each token; None where no token came.

        An answer that was stopped is read again from its text, so its last token may be cut differently.
        """
        came: str | Sequence[int] = self.text if self._completion is None else self._completion.token_ids
        if not came:
            return None
        return self._generator.trace(self._prompt, continuation=came, alpha=self._alpha)


class Comparison:
    """A generator and the questions put to it, one at a time."""

    def __init__(self, generator: "ProxyGenerator") -> None:
        self.generator = generator

    def answers(self, question: Question, is_stopped: Callable[[], bool]) -> Iterator[tuple[Answer, Answer]]:
        """Yield the base's and the steered answer after each piece of either; the same two objects every time.

        Raises:
            ProxyTuneError: The question cannot be answered.
        """
        question = question.seeded()
        base, steered = (
            Answer(self.generator, question, alphas) for alphas in ((0.0,) * len(question.alphas), question.alphas)
        )
        with closing(base), closing(steered):
            while not (base.is_done and steered.is_done) and not is_stopped():
                for answer in (base, steered):
                    if not answer.is_done:
                        answer.advance()
                yield base, steered

    def token_view(self, question: Question, answers: Sequence[Answer]) -> str | None:
        """Return the report's page about both answers; None where neither has a token."""
        traces = [trace for answer in answers if (trace := answer.trace()) is not None]
        texts = [TracedText(prompt=question.prompt, trace=trace) for trace in traces]
        return render(texts, title="What steering did") if texts else None
