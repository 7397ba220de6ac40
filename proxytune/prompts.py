"""Prompt formats: how one role reads a prompt, chosen explicitly and never guessed from a model's name.

A format is `"raw"`, the name of a template below, `"chat"` (the tokenizer's own chat template), or a text of the
user's own with `{prompt}` in it, or `{last}`: the last message of a conversation, without its context. A prompt is a
string, a list of chat messages, or token ids; token ids go to every role as they are. Special tokens survive: text is
encoded once and never decoded and encoded again.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxytune.encoding import as_ids, encode, require_encodable
from proxytune.errors import InputError, PromptFormatError
from proxytune.library_errors import reason_of
from proxytune.step_limit import step_limit

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]

_PLACEHOLDER = re.compile(r"\{(prompt|last)\}")
_CHAT_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Template:
    """Text around each message of a conversation under a named template, and the opening of the answer.

    `system`, `user` and `assistant` hold `{content}`; `opening` follows the last message. The tokenizer adds its own
    first token (BOS), so no template writes one. `first_user` is for formats with the system text in the first turn.
    """

    user: str
    opening: str
    assistant: str
    system: str = "{content}\n\n"
    preamble: str = ""
    first_user: str | None = None

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of the conversation, ready for the answer."""
        parts = [] if messages[0]["role"] == "system" else [self.preamble]
        previous = ""
        for message in messages:
            form = getattr(self, message["role"])
            if self.first_user is not None and previous == "system":
                form = self.first_user
            parts.append(form.replace("{content}", message["content"]))
            previous = message["role"]
        return "".join(parts) + self.opening


TEMPLATES: dict[str, Template] = {
    # arXiv 2310.05914 trains and tests with this one (Stanford Alpaca's prompt without an input field).
    "alpaca": Template(
        preamble=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
        ),
        user="### Instruction:\n{content}\n\n",
        opening="### Response:",
        assistant="### Response:{content}\n\n",
    ),
    "llama-2-chat": Template(
        system="[INST] <<SYS>>\n{content}\n<</SYS>>\n\n",
        first_user="{content} [/INST]",
        user="[INST] {content} [/INST]",
        opening="",
        assistant=" {content} </s><s>",
    ),
    "chatml": Template(
        system="<|im_start|>system\n{content}<|im_end|>\n",
        user="<|im_start|>user\n{content}<|im_end|>\n",
        opening="<|im_start|>assistant\n",
        assistant="<|im_start|>assistant\n{content}<|im_end|>\n",
    ),
    "vicuna": Template(
        preamble=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        ),
        system="{content} ",
        user="USER: {content} ",
        opening="ASSISTANT:",
        assistant="ASSISTANT: {content}</s>",
    ),
    "tulu": Template(
        system="<|system|>\n{content}\n",
        user="<|user|>\n{content}\n",
        opening="<|assistant|>\n",
        assistant="<|assistant|>\n{content}\n",
    ),
    "question": Template(user="Question: {content}\n", opening="Answer:", assistant="Answer: {content}\n\n"),
    "dialogue": Template(user="User: {content}\n", opening="Assistant:", assistant="Assistant: {content}\n"),
}


@dataclass(frozen=True)
class PromptFormat:
    """One role's way of reading prompts.

    Raises:
        PromptFormatError: `name` is neither a known format nor a text with `{prompt}` in it.
    """

    name: str = "raw"

    def __post_init__(self) -> None:
        is_known = self.name in ("raw", "chat", *TEMPLATES) if isinstance(self.name, str) else False
        if is_known or (isinstance(self.name, str) and _PLACEHOLDER.search(self.name)):
            return
        known = ", ".join(["raw", "chat", *TEMPLATES])
        raise PromptFormatError(
            f"unknown prompt format {self.name!r}: choose one of {known}, or write a text with {{prompt}} in it (or "
            "{last}, a conversation's last message alone)."
        )

    def encode(self, prompt: Prompt, tokenizer: Any) -> list[int]:
        """Return the token ids this role reads for `prompt`.

        Raises:
            InputError: The prompt is empty or of no known kind.
            PromptFormatError: The format cannot render it (no chat template).
        """
        if is_token_ids(prompt):
            return as_ids(prompt)
        if self.name == "chat":
            return self._encode_chat(prompt, tokenizer)
        text = self.text(prompt)
        require_encodable(text, "the prompt")
        ids = encode(tokenizer, text)
        if not ids:
            raise InputError("the prompt encodes to no token at all: pass some text, or token ids beginning with BOS.")
        return ids

    def text(self, prompt: Prompt) -> str:
        """Return the rendered text of a string or chat prompt; not for `chat`, which renders to ids."""
        messages = as_messages(prompt)
        if self.name in TEMPLATES:
            return TEMPLATES[self.name].render(messages)
        # Nothing is added in raw: a conversation is the contents one after another.
        content = "\n\n".join(message["content"] for message in messages)
        if self.name == "raw":
            return content
        texts = {"prompt": content, "last": messages[-1]["content"]}
        return _PLACEHOLDER.sub(lambda match: texts[match[1]], self.name)

    def ends_with(self, prompt: Prompt, shorter: Prompt, blank: str) -> bool:
        """Return whether this role's text of a prompt ends with the blank that `shorter` lacks."""
        return self.name != "chat" and self.text(shorter) + blank == self.text(prompt)

    def require_template(self, tokenizer: Any) -> None:
        """Raise PromptFormatError for `chat` and a tokenizer without a chat template."""
        if self.name == "chat" and not getattr(tokenizer, "chat_template", None):
            raise PromptFormatError(
                f"format 'chat' needs a chat template and the tokenizer of {tokenizer.name_or_path!r} has none: "
                f"choose a named format ({', '.join(TEMPLATES)}) or set tokenizer.chat_template."
            )

    def _encode_chat(self, prompt: Prompt, tokenizer: Any) -> list[int]:
        self.require_template(tokenizer)
        messages = [dict(message) for message in as_messages(prompt)]
        for message in messages:
            require_encodable(message["content"], "the prompt")
        try:
            with step_limit():
                ids = list(
                    tokenizer.apply_chat_template(
                        messages, add_generation_prompt=True, tokenize=True, return_dict=False
                    )
                )
        except Exception as error:  # a template is a program of its own: any mistake in it may come out here
            raise PromptFormatError(
                f"the chat template of {tokenizer.name_or_path!r} refuses this conversation ({reason_of(error)}): "
                f"change its messages or choose a named format ({', '.join(TEMPLATES)})."
            ) from error
        if not ids:
            raise PromptFormatError(
                f"the chat template of {tokenizer.name_or_path!r} makes no text of this conversation: "
                f"choose a named format ({', '.join(TEMPLATES)})."
            )
        return ids


def is_token_ids(prompt: Prompt) -> bool:
    """Return whether the prompt is a non-empty sequence of whole numbers."""
    if isinstance(prompt, str) or not (isinstance(prompt, Sequence) or hasattr(prompt, "tolist")):
        return False
    return len(prompt) > 0 and all(type(item) is int and item >= 0 for item in as_ids(prompt))


def without_closing_blank(prompt: Prompt) -> tuple[Prompt, str]:
    """Return a prompt without the blanks at its end, and these; unchanged where nothing else would be left.

    >>> without_closing_blank("Answer: ")
    ('Answer:', ' ')
    """
    if isinstance(prompt, str):
        shorter = prompt.rstrip()
        return (shorter, prompt[len(shorter) :]) if shorter else (prompt, "")
    *before, last = as_messages(prompt)
    content, blank = without_closing_blank(last["content"]) if last["content"] else ("", "")
    return [*before, {**last, "content": str(content)}], blank


def as_messages(prompt: Prompt) -> list[Message]:
    """Return the prompt as chat messages; a string is one message of the user.

    Raises:
        InputError: Empty, or not a list of `{"role", "content"}` with roles system (first only), user, assistant.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise InputError("the prompt is empty: pass at least one character.")
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence):
        raise InputError(f"the prompt is {prompt!r}: pass a string, a list of messages, or a list of token ids.")
    if len(prompt) == 0:
        raise InputError("the prompt is an empty list: pass messages, or token ids.")
    return [_checked(message, index) for index, message in enumerate(prompt)]


def _checked(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping):
        raise InputError(
            f"item {index} of the prompt is {message!r}: a prompt is a string, a list of "
            '{"role", "content"} messages, or a list of token ids (whole numbers from 0).'
        )
    role, content = message.get("role"), message.get("content")
    if role not in _CHAT_ROLES or not isinstance(content, str) or (role == "system" and index > 0):
        raise InputError(
            f'message {index} is {dict(message)!r}: it needs a "role" (system, only as the first; user; assistant) '
            'and a text as "content".'
        )
    return message
