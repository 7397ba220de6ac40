"""Templates: each writes turns as text in which the answers are targets, and is one entry in `TEMPLATES`.

A template is chosen by its name, or is the user's own text; it is never guessed from the data or the model. It raises
`ValueError` for turns it has no place for. Texts of the same name are those that the `proxytune` package steers with.
A question after the last answer is left out: nothing follows it that could be learned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from neft.data.documents import Segment, Turn
from neft.errors import InputError

Template = Callable[[Sequence[Turn]], tuple[Segment, ...]]

CHAT = "chat"
"""The template that is the tokenizer's own; see `neft.data.chat`."""

_PREAMBLE = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n"
_PLACEHOLDER = re.compile(r"\{(instruction|input|prompt|output|completion)\}")


def raw(turns: Sequence[Turn]) -> tuple[Segment, ...]:
    """The prompt and the completion as they are, or a text alone."""
    if len(turns) == 1 and turns[0].role == "assistant":
        return (turns[0].answer(),)
    system, question, answer = _exchange(turns, "raw")
    _refuse_system(system, "raw")
    return Segment(question.text, is_target=False), answer.answer()


def alpaca(turns: Sequence[Turn]) -> tuple[Segment, ...]:
    """Stanford Alpaca's prompt, with and without an input; the answer follows `### Response:` directly.

    Source: github.com/tatsu-lab/stanford_alpaca, `train.py`. A system text takes the place of the first sentences.
    """
    system, question, answer = _exchange(turns, "alpaca")
    if question.context:
        opening = f"{_PREAMBLE}, paired with an input that provides further context. {_REQUEST}"
        body = f"### Instruction:\n{question.content}\n\n### Input:\n{question.context}\n\n### Response:"
    else:
        opening = f"{_PREAMBLE}. {_REQUEST}"
        body = f"### Instruction:\n{question.content}\n\n### Response:"
    prompt = (opening if system is None else f"{system.content}\n\n") + body
    return Segment(prompt, is_target=False), answer.answer()


@dataclass(frozen=True)
class Dialogue:
    """A template for any number of turns.

    Attributes:
        preamble: The beginning of a conversation without a system text.
        system: A system text, as `{content}`.
        user: A question, as `{content}`.
        opening: Text before every answer.
        answer: An answer, as `{content}`; end-of-sequence follows.
        closing: Text after the end-of-sequence of an answer when the conversation goes on.
    """

    preamble: str
    system: str
    user: str
    opening: str
    answer: str
    closing: str

    def __call__(self, turns: Sequence[Turn]) -> tuple[Segment, ...]:
        """Returns a prompt and a target for every answer."""
        segments: list[Segment] = []
        pending = "" if turns and turns[0].role == "system" else self.preamble
        for turn in turns:
            if turn.role == "assistant":
                segments.append(Segment(pending + self.opening, is_target=False))
                segments.append(turn.answer(self.answer.replace("{content}", turn.content)))
                pending = self.closing
            else:
                pending += (self.system if turn.role == "system" else self.user).replace("{content}", turn.text)
        return tuple(segments)


TEMPLATES: dict[str, Template] = {
    "raw": raw,
    "alpaca": alpaca,
    # github.com/lm-sys/FastChat, conversation template vicuna_v1.1.
    "vicuna": Dialogue(
        preamble=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        ),
        system="{content} ",
        user="USER: {content} ",
        opening="ASSISTANT:",
        answer=" {content}",
        closing="",
    ),
    "dialogue": Dialogue(
        preamble="",
        system="{content}\n\n",
        user="User: {content}\n",
        opening="Assistant:",
        answer=" {content}",
        closing="\n",
    ),
}


def own_template(text: str) -> Template:
    """Returns a template for one exchange from a text with `{instruction}` and `{input}`, or `{prompt}` (both in one).

    The answer follows the text. A row with an input needs a place for it, so that no data vanishes silently.

    Raises:
        InputError: the text is no known template and has no placeholder for the question, or one for the answer.
    """
    names = set(_PLACEHOLDER.findall(text))
    if not names & {"instruction", "prompt"}:
        known = ", ".join([*TEMPLATES, CHAT])
        raise InputError(
            f"template is {text!r}; choose one of {known}, or write a text with {{instruction}} or {{prompt}} in it."
        )
    if names & {"output", "completion"}:
        raise InputError(f"template {text!r} has a place for the answer; end it where the answer is to begin.")

    def render(turns: Sequence[Turn]) -> tuple[Segment, ...]:
        system, question, answer = _exchange(turns, "of your own")
        _refuse_system(system, "of your own")
        if question.context and not names & {"input", "prompt"}:
            raise ValueError("it has an input, and the template has no {input} or {prompt}")
        values = {"instruction": question.content, "input": question.context, "prompt": question.text}
        prompt = _PLACEHOLDER.sub(lambda match: values[match[1]], text)
        return Segment(prompt, is_target=False), answer.answer()

    return render


def _exchange(turns: Sequence[Turn], name: str) -> tuple[Turn | None, Turn, Turn]:
    """Returns the system turn if there is one, the question and its answer."""
    system = turns[0] if turns and turns[0].role == "system" else None
    rest = turns if system is None else turns[1:]
    if [turn.role for turn in rest] != ["user", "assistant"]:
        roles = ", ".join(turn.role for turn in rest)
        raise ValueError(
            f"the template {name} writes one question and its answer, and the row has the turns {roles}; choose the "
            f"template vicuna, dialogue or {CHAT} (or the format sharegpt-single)"
        )
    return system, rest[0], rest[1]


def _refuse_system(system: Turn | None, name: str) -> None:
    if system is not None:
        raise ValueError(f"it has a system text, and the template {name} has no place for it")
