"""Token ids by the names that servers give them in log-probabilities."""

import threading
from typing import Any

BROKEN = "\ufffd"  # in the text of a token that is a part of a character
ID_PREFIX = "token_id:"  # vLLM's, with return_tokens_as_token_ids


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return how one token reads by itself, special tokens by their name."""
    text: str = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


class TokenNames:
    """Finds the id that a name stands for, if it stands for one only."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._ids_by_text: dict[str, int | None] | None = None
        self._num_ids: int | None = None

    @property
    def num_ids(self) -> int:
        """The tokenizer's ids go from 0 up to this."""
        if self._num_ids is None:
            self._num_ids = max(self._tokenizer.get_vocab().values()) + 1
        return self._num_ids

    def token_id(self, name: str) -> int | None:
        """Return the id, or None for a text of several tokens, of a part of a character, or of none.

        Raises:
            ValueError: It begins as the name of an id and is none.
        """
        if name.startswith(ID_PREFIX):
            return int(name[len(ID_PREFIX) :])
        return self._texts().get(name)

    def is_unclear(self, name: str) -> bool:
        """Return whether several tokens may stand behind a name, of which a JSON object shows one."""
        return not name.startswith(ID_PREFIX) and self.token_id(name) is None

    def _texts(self) -> dict[str, int | None]:
        with self._lock:
            if self._ids_by_text is None:
                ids_by_text: dict[str, int | None] = {}
                for token_id in sorted(self._tokenizer.get_vocab().values()):
                    text = token_text(self._tokenizer, token_id)
                    ids_by_text[text] = None if text in ids_by_text or BROKEN in text or not text else token_id
                self._ids_by_text = ids_by_text
            return self._ids_by_text
