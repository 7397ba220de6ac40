"""Tokens of one row as they are chosen: decoding in a thread, its tokens in a queue."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

_END = object()


class QueueStreamer(BaseStreamer):
    """Puts each generated token id of a single row into a queue, the prompt left out."""

    def __init__(self) -> None:
        self.queue: queue.Queue[Any] = queue.Queue()
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Take the prompt at first, then the new token or tokens."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token_id in value.flatten().tolist():
            self.queue.put(token_id)

    def push(self, token_ids: Sequence[int]) -> None:
        """Take tokens from a loop that passes no prompt."""
        for token_id in token_ids:
            self.queue.put(token_id)

    def end(self) -> None:
        """Do nothing: the thread itself says when it has ended, whatever the reason."""


def stream_tokens(generate: Callable[[QueueStreamer], Any], cancel: threading.Event) -> Iterator[int]:
    """Yield token ids while `generate(streamer)` runs in a thread; its error is raised here.

    Closing the iterator sets `cancel`, which ends generation at the next token, and waits for the thread.
    """
    streamer = QueueStreamer()

    def work() -> None:
        try:
            generate(streamer)
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            streamer.queue.put(error)
        finally:
            streamer.queue.put(_END)

    thread = threading.Thread(target=work, name="proxytune-stream", daemon=True)
    thread.start()
    try:
        while (item := streamer.queue.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        cancel.set()
        thread.join()
