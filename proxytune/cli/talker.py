"""Answers to a conversation, which is shortened from its beginning where the context is full."""

import secrets
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxytune.cli.conversation import Conversation
from proxytune.cli.stderr import note
from proxytune.prompts import Message

if TYPE_CHECKING:
    from proxytune.completion import Completion
    from proxytune.generator import ProxyGenerator

_ANSWER_SHARE = 4


class Talker:
    """A generator and how it decodes."""

    def __init__(self, generator: "ProxyGenerator", options: Mapping[str, Any]) -> None:
        self._generator = generator
        self._options = dict(options)

    def answer(
        self, conversation: Conversation, text: str, alphas: Sequence[float]
    ) -> Generator[str, None, "Completion"]:
        """Return the pieces of the answer to `text` as they come.

        The oldest turns are dropped until the answer has its `max_new_tokens` or a quarter of the context, whichever is
        less.

        Raises:
            ContextLengthError: The message alone is too long.
            ProxyTuneError: It cannot be read.
        """
        num_dropped = 0
        while self._room(conversation.messages(text)) < self._wanted_room() and conversation.drop_oldest():
            num_dropped += 1
        if num_dropped:
            note(f"the context is full: the oldest {num_dropped} turn(s) of the conversation were dropped.")
        options = dict(self._options)
        # Every turn draws anew, yet the same conversation under the same seed is the same again.
        options.setdefault("seed", secrets.randbits(48))
        return self._generator.stream(conversation.messages(text), alpha=[list(alphas)], **options)

    def _wanted_room(self) -> int:
        longest = int(self._options["max_new_tokens"])
        context = self._generator.model.config.max_position_embeddings
        return longest if context is None else min(longest, context // _ANSWER_SHARE)

    def _room(self, messages: Sequence[Message]) -> int:
        """Return how many tokens the shortest role can still read behind these messages."""
        return self._generator.room(messages)
