"""Conversations through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neft.data.documents import Segment, Turn
from neft.data.templates import Template
from neft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """Returns a template that renders through `apply_chat_template`.

    The conversation is rendered up to every answer, once as inference sees it (with the generation prompt) and once
    with the answer: what the second adds is the target, up to and with the last special token in it. This needs a
    template whose text for some messages is the beginning of its text for more of them. Templates that rewrite
    earlier turns (some remove earlier reasoning) are refused, because what is learned would not be what inference sees.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"the template chat needs a chat template and the tokenizer of {tokenizer.name_or_path!r} has none; "
            "choose another template, or set tokenizer.chat_template."
        )
    # Longest first, or a token that is the beginning of another would cut that one.
    others = sorted({*map(str, tokenizer.all_special_tokens), *_added_markers(tokenizer)}, key=len, reverse=True)

    def render(turns: Sequence[Turn]) -> tuple[Segment, ...]:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        segments: list[Segment] = []
        done = ""
        pending = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = _rendered(tokenizer, messages[:index], is_answer_next=True)
            answered = _rendered(tokenizer, messages[: index + 1], is_answer_next=False)
            if not (prompt.startswith(done) and answered.startswith(prompt)):
                raise ValueError(
                    f"the chat template changes the text before message {index + 1} when that message is added, so its "
                    "prompt would not be what inference sees; use a template whose text only grows (or rows of one "
                    "exchange)"
                )
            end = _end(answered, len(prompt), tokenizer.eos_token, others)
            segments.append(Segment(pending + prompt[len(done) :], is_target=False))
            segments.append(turn.answer(answered[len(prompt) : end]))
            done, pending = answered, answered[end:]
        return tuple(segments)

    return render


def _added_markers(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, is_answer_next: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_answer_next)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses it: {error}") from error
    return text


def _end(text: str, start: int, eos: str | None, others: Sequence[str]) -> int:
    """Returns where the answer that begins at `start` ends: after its last end-of-sequence, or other special token."""
    for markers in ([eos] if eos else [], others):
        ends = [index + len(marker) for marker in markers if (index := text.rfind(marker, start)) >= 0]
        if ends:
            return max(ends)
    raise ValueError("the chat template ends its answer with no special token, so the model could not learn to stop")
