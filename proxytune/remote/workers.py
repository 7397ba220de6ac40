"""Threads that ask for rows, and the futures that they keep.

Not a ThreadPoolExecutor: Python waits for its threads at exit, so Ctrl-C would hang for as long as a server stalls.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")
_FAREWELL_S = 2.0  # for threads whose connections were shut


@dataclass(frozen=True)
class _Job:
    future: "Future[Any]"
    work: Callable[[Callable[[], bool]], Any]

    def run(self) -> None:
        """Do the work and keep the promise; a future stays cancellable until then."""
        if self.future.done():
            return
        try:
            result = self.work(lambda: not self.future.done())
        except BaseException as error:  # noqa: BLE001 - raised again where the future is waited for
            settle(self.future, error=error)
        else:
            settle(self.future, result=result)


class Workers:
    """Up to `max_threads` daemon threads, started as they are needed."""

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._promised: set[Future[Any]] = set()
        self._closing: BaseException | None = None

    def submit(self, work: Callable[[Callable[[], bool]], _T]) -> "Future[_T]":
        """Return the future of `work(is_wanted)`; cancelling it turns `is_wanted` false, also when work has begun.

        Behind `stop` it has the error of that.
        """
        future: Future[_T] = Future()
        future.add_done_callback(_tell_waiters)
        with self._lock:
            if self._closing is not None:
                settle(future, error=self._closing)
                return future
            self._promised.add(future)
            self._jobs.put(_Job(future, work))
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._max_threads:
                # The thread holds the queue and not this object, so that a model nobody holds can be collected.
                thread = threading.Thread(
                    target=_serve, args=(self._jobs, self._idle), name="proxytune-remote", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        future.add_done_callback(self._forget)
        return future

    def stop(self, error: BaseException) -> None:
        """Take no more jobs, and let `error` be the result of all that have none yet."""
        with self._lock:
            self._closing = error
            promised, self._promised = self._promised, set()
            for _ in self._threads:
                self._jobs.put(None)
        for future in promised:
            settle(future, error=error)

    def join(self) -> None:
        """Wait a moment for the threads to end; those that hang on a lost connection die with the process."""
        deadline = time.monotonic() + _FAREWELL_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _forget(self, future: "Future[Any]") -> None:
        with self._lock:
            self._promised.discard(future)


def gathered(futures: "Sequence[Future[list[_T]]]") -> "Future[list[_T]]":
    """Return the future of all results in one list; with the first error, or cancelled, it cancels the rest."""
    whole: Future[list[_T]] = Future()
    whole.add_done_callback(_tell_waiters)
    left = threading.Semaphore(len(futures) - 1)

    def finish(part: "Future[list[_T]]") -> None:
        if part.cancelled():
            whole.cancel()
        elif (error := part.exception()) is not None:
            settle(whole, error=error)
        elif not left.acquire(blocking=False):
            settle(whole, result=[item for each in futures for item in each.result()])

    def release(_: "Future[list[_T]]") -> None:
        for part in futures:
            part.cancel()

    for part in futures:
        part.add_done_callback(finish)
    whole.add_done_callback(release)
    return whole


def settle(future: "Future[Any]", *, result: Any = None, error: BaseException | None = None) -> None:
    """Give a future its result, unless somebody was faster: it was cancelled, or closed."""
    with contextlib.suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _tell_waiters(future: "Future[Any]") -> None:
    """Wake those who wait for a cancelled future, which an executor does when it comes to it."""
    if future.cancelled():
        future.set_running_or_notify_cancel()


def _serve(jobs: "SimpleQueue[_Job | None]", idle: threading.Semaphore) -> None:
    """Work until told to end."""
    while (job := jobs.get()) is not None:
        job.run()
        del job
        idle.release()
