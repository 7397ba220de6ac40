"""Writing rows: to a file that an interrupted run leaves usable, or to a stream in the order of the prompts."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from proxytune.cli.fingerprint import Settings, path_beside, require_same, written
from proxytune.cli.rows import Expected, Line, existing_lines, in_order
from proxytune.errors import OptionError, OutputError


class Sink(Protocol):
    """Destination of lines.

    `done` are the indices of prompts whose lines are there already.
    """

    done: frozenset[int]

    def begin(self) -> None:
        """Be told that the models are loaded: from now on what was there may be replaced."""

    def write(self, lines: Sequence[Line]) -> None:
        """Take the lines of one batch."""

    def finish(self) -> None:
        """Bring the output into its final form."""

    def interruption(self) -> str:
        """Return what to tell a user who interrupted the run."""

    def failure(self, num_failed: int, reason: str) -> str:
        """Return what to tell a user some of whose rows ended with an error, one of which is `reason`."""


def add_output_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options that say where rows go."""
    group = command.add_argument_group("output", "standard output when no file is named")
    group.add_argument("--output", metavar="FILE", help="write rows here, batch by batch")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action="store_true",
        help="go on with a file that an interrupted run of the same command left; does nothing twice",
    )
    existing.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    group.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a progress bar on stderr (by default if it is a terminal)",
    )


@contextmanager
def open_sink(
    args: argparse.Namespace, expected: Expected, settings: Callable[[], Settings], *, is_text: bool = False
) -> Iterator[Sink]:
    """Open the output, before any model is loaded, and close it at the end.

    `settings` returns what the rows depend on beside the prompts; a file keeps it.

    Raises:
        OutputError: It cannot be written, is there already, or holds other rows than those expected.
        OptionError: `--resume` for something that cannot be resumed.
    """
    path = None if args.output is None else Path(args.output).expanduser()
    if args.resume and (path is None or is_text):
        raise OptionError("--resume goes on with a JSONL file: name it with --output, and leave --format as jsonl.")
    if path is None:
        yield StreamSink(sys.stdout, Path("standard output"))
        return
    if path.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a folder; name a file in it.")
    require_other_file(path, [args.prompts])
    is_file = path.is_file()
    if is_file and not args.resume and not args.overwrite:
        raise OutputError(f"{str(path)!r} is there already: go on with it by --resume, or replace it by --overwrite.")
    if path.exists() and not is_file:  # a device or a pipe
        with _writing(path):
            stream = path.open("w", encoding="utf-8")
        try:
            yield StreamSink(stream, path)
        finally:
            with suppress(OSError):  # what could not be flushed has been reported by the write
                stream.close()
        return
    kept = None if is_text else settings()
    with closing(FileSink(path.resolve(), expected, kept, is_resumed=args.resume)) as sink:
        yield sink


def require_other_file(output: Path, inputs: Sequence[str | None]) -> None:
    """Raise OutputError for an output that is one of the inputs, also by another name."""
    for source in inputs:
        if source not in (None, "-") and output.exists() and Path(source).exists() and output.samefile(source):
            raise OutputError(f"{str(output)!r} is also the input, which would be lost: name another output.")


class StreamSink:
    """Lines in the order of the prompts, each written as soon as all before it are."""

    def __init__(self, stream: IO[str], path: Path) -> None:
        """`path` is what to call the stream."""
        self.done: frozenset[int] = frozenset()
        self._stream = stream
        self._path = path
        self._order = in_order()
        next(self._order)
        self._num_lines = 0

    def begin(self) -> None:
        """Do nothing: a stream holds nothing to replace."""

    def write(self, lines: Sequence[Line]) -> None:
        """Take lines in any order."""
        ready = self._order.send(lines)
        with _writing(self._path):
            self._stream.write("".join(line.text for line in ready))
            self._stream.flush()
        self._num_lines += len(ready)

    def finish(self) -> None:
        """Do nothing: every line has been written."""

    def failure(self, num_failed: int, reason: str) -> str:
        """Tell how many failed, and why."""
        return f"{num_failed} rows ended with an error ({reason}); with --output FILE, --resume tries them again."

    def interruption(self) -> str:
        """Tell how much came out."""
        return (
            f"interrupted; {self._num_lines} rows were written to {self._path} "
            "(a run with --output FILE can be gone on with by --resume)."
        )


class FileSink:
    """A regular file: rows are appended batch by batch, whole, and sorted once all are there."""

    def __init__(self, path: Path, expected: Expected, settings: Settings | None, *, is_resumed: bool) -> None:
        """Check an existing file against what is `expected` and open it; nothing in it is lost yet, but a torn end.

        Without `settings` the lines are texts, which nobody can go on with.
        """
        self._path = path
        self._expected = expected
        self._settings = settings
        self._is_resumed = is_resumed
        self._is_text = settings is None
        self._order = in_order()
        next(self._order)
        self._is_new = not path.exists()
        self._is_replaced = not (self._is_new or is_resumed)
        self.done: frozenset[int] = frozenset()
        self._num_lines = 0
        if is_resumed and not self._is_new:
            self._resume()
        with _writing(path):
            self._stream = path.open("ab", buffering=0)
        self._size = path.stat().st_size
        self._has_begun = False

    def begin(self) -> None:
        """Empty the file unless it is gone on with, and keep beside it what its rows depend on."""
        self._has_begun = True
        with _writing(self._path):
            if not self._is_resumed:
                self._size = 0
                self._stream.truncate(0)
            if self._settings is not None and self._size == 0:
                path_beside(self._path).write_text(written(self._settings), encoding="utf-8")

    def write(self, lines: Sequence[Line]) -> None:
        """Append a batch, whole or not at all; texts, which carry no index, in the order of the prompts."""
        if self._is_text:
            lines = self._order.send(lines)
        data = b"".join(line.text.encode() for line in lines)
        try:
            with _writing(self._path):
                rest = memoryview(data)
                while rest:
                    rest = rest[self._stream.write(rest) :]
        except BaseException:  # also Ctrl-C in the middle of it
            self._stream.truncate(self._size)
            raise
        self._size += len(data)
        self._num_lines += len(lines)

    def finish(self) -> None:
        """Sort the file by prompt and sequence, whatever the order in which the rows were done."""
        if not self._is_text:
            lines = existing_lines(self._path, self._expected)[0]
            if (ordered := sorted(lines, key=lambda line: (line.index, line.sequence))) != lines:
                self._replace(ordered)

    def close(self) -> None:
        """Close the file, and take an empty one that was not there before away again."""
        self._stream.close()
        if self._is_new and self._size == 0:
            self._path.unlink(missing_ok=True)
            path_beside(self._path).unlink(missing_ok=True)

    def failure(self, num_failed: int, reason: str) -> str:
        """Tell how many failed, and how to go on."""
        told = f"{num_failed} of {self._expected.num_lines} rows ended with an error ({reason})"
        if self._is_text:
            return f"{told}; a JSONL file could be gone on with by --resume."
        return f"{told}: the same command with --resume{self._instead} tries them again."

    def interruption(self) -> str:
        """Tell how to go on."""
        total = self._expected.num_lines
        if not self._has_begun:
            return "interrupted; nothing was written."
        if self._is_text:
            return f"interrupted; {self._num_lines} of {total} texts are in {str(self._path)!r}."
        return (
            f"interrupted; {self._num_lines} of {total} rows are in {str(self._path)!r}: "
            f"the same command with --resume{self._instead} goes on."
        )

    @property
    def _instead(self) -> str:
        return " in place of --overwrite" if self._is_replaced else ""

    def _resume(self) -> None:
        lines, is_clean = existing_lines(self._path, self._expected)
        per_prompt: dict[int, int] = {}
        for line in lines:
            per_prompt[line.index] = per_prompt.get(line.index, 0) + line.is_final
        self.done = frozenset(index for index, count in per_prompt.items() if count == self._expected.num_sequences)
        kept = [line for line in lines if line.index in self.done]
        self._num_lines = len(kept)
        if kept and self._settings is not None:
            require_same(self._path, self._settings)
        if not is_clean or len(kept) < len(lines):
            self._replace(kept)

    def _replace(self, lines: Sequence[Line]) -> None:
        """Put these lines in place of the file's, in one step."""
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            with _writing(self._path):
                scratch.write_bytes(b"".join(line.text.encode() for line in lines))
                scratch.replace(self._path)
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing into an OutputError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another output.") from error
