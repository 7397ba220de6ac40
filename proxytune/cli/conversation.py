"""A conversation as chat messages, which forgets its oldest turns when asked to."""

from dataclasses import dataclass, field

from proxytune.prompts import Message


@dataclass
class Conversation:
    """The messages exchanged so far.

    Attributes:
        system: The system message, or None.
        has_history: True if turns are kept; without, each question stands alone.
        turns: The user's messages and the answers, in pairs.
    """

    system: str | None = None
    has_history: bool = True
    turns: list[tuple[str, str]] = field(default_factory=list)

    def messages(self, text: str) -> list[Message]:
        """Return the messages of a prompt that ends with the user's `text`.

        >>> Conversation(turns=[("Hi", "Hello")]).messages("Bye")[1]
        {'role': 'assistant', 'content': 'Hello'}
        """
        history: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for question, answer in self.turns:
            history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*history, {"role": "user", "content": text}]

    def add(self, text: str, answer: str) -> None:
        """Remember a turn."""
        if self.has_history:
            self.turns.append((text, answer))

    def drop_oldest(self) -> bool:
        """Forget the oldest turn; return whether there was one."""
        if not self.turns:
            return False
        del self.turns[0]
        return True

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()
