"""Reading prompts: from the command line, a JSONL or text file (also gzipped), or standard input."""

import argparse
import gzip
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxytune.cli.stderr import note
from proxytune.errors import InputError, OptionError
from proxytune.options import check_alpha
from proxytune.prompts import Prompt, as_messages, is_token_ids

_FORMATS = ("jsonl", "txt")


@dataclass(frozen=True, kw_only=True)
class InputRow:
    """One prompt and what its row says about it.

    Attributes:
        index: Its place in the input, from 0.
        prompt: Text, chat messages, or token ids.
        given: The fields that are written again into the row of output: id, prompt, continuation.
        alpha: Its own strength: a number, or one per pair.
        seed: Its own seed.
        continuation: Text or token ids to score.
    """

    index: int
    prompt: Prompt
    given: dict[str, Any] = field(default_factory=dict)
    alpha: Any = None
    seed: int | None = None
    continuation: Any = None


def add_input_arguments(command: argparse.ArgumentParser, *, has_text: bool) -> None:
    """Add the options that say where rows come from; without `has_text` they are JSONL rows only."""
    group = command.add_argument_group("input", "standard input is read when nothing is named")
    source = group.add_mutually_exclusive_group()
    if has_text:
        source.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    kinds = ".jsonl or .txt (one prompt a line)" if has_text else ".jsonl"
    source.add_argument("--prompts", metavar="FILE", help=f"{kinds}, also .gz; - is standard input")
    if has_text:
        group.add_argument(
            "--input-format", choices=_FORMATS, help="of standard input (txt), or of a file named otherwise"
        )


def read_rows(args: argparse.Namespace, *, has_continuation: bool = False) -> list[InputRow]:
    """Return the rows, at least one.

    Raises:
        InputError: There is none, or one cannot be used; the text names its line.
        OptionError: The file's format is not known.
    """
    if getattr(args, "prompt", None):
        return [_row(index, {"prompt": text}, f"prompt {index}") for index, text in enumerate(args.prompt)]
    name, text = _read(args.prompts)
    kind = "jsonl" if has_continuation else _kind(args)
    lines = _json_lines(text, name) if kind == "jsonl" else _text_lines(text, name)
    rows: list[InputRow] = []
    for location, entry in lines:
        rows.append(_row(len(rows), entry, location, has_continuation=has_continuation))
    if not rows:
        raise InputError(f"{name} holds no prompt: there is nothing to do.")
    return rows


def _read(source: str | None) -> tuple[str, str]:
    """Return what to call the source, and its text."""
    if source in (None, "-"):
        if sys.stdin.isatty():
            note("reading standard input; Ctrl-D ends it.")
        return "standard input", _decoded(getattr(sys.stdin, "buffer", None), "standard input")
    path = Path(str(source))
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return str(path), _decoded(stream, str(path))
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {str(path)!r}: {reason}.") from error


def _decoded(stream: Any, name: str) -> str:
    if stream is None:  # a text stream put in place of standard input
        return sys.stdin.read()
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 (byte {error.start}): convert it first.") from error
    return str(text)


def _kind(args: argparse.Namespace) -> str:
    if args.input_format:
        return str(args.input_format)
    if args.prompts in (None, "-"):
        return "txt"
    kind = Path(args.prompts.removesuffix(".gz")).suffix.removeprefix(".")
    if kind not in _FORMATS:
        raise OptionError(f"{args.prompts!r} ends neither in .jsonl nor in .txt: say which with --input-format.")
    return kind


def _text_lines(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines: a prompt may hold a form feed or another of the line ends that Unicode knows.
    lines = [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")] if text.strip() else []
    for number, line in enumerate(lines, 1):
        yield f"line {number} of {name}", {"prompt": line}


def _json_lines(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        location = f"line {number} of {name}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{location} is not JSON ({error}): each line must be one object.") from error
        if not isinstance(entry, dict):
            raise InputError(
                f'{location} is {_kind_of(entry)}: each line must be an object such as {{"prompt": "..."}}.'
            )
        yield location, entry


def _row(index: int, entry: dict[str, Any], location: str, *, has_continuation: bool = False) -> InputRow:
    prompt = _prompt(entry, location)
    given = {"id": entry["id"]} if "id" in entry else {}
    given["prompt"] = prompt
    continuation = None
    if has_continuation:
        continuation = given["continuation"] = _continuation(entry, location)
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{location} holds half of a surrogate pair, which is no text: repair the escape.") from error
    return InputRow(
        index=index,
        prompt=prompt,
        given=given,
        alpha=_alpha(entry.get("alpha"), location),
        seed=_seed(entry.get("seed"), location),
        continuation=continuation,
    )


def _prompt(entry: dict[str, Any], location: str) -> Prompt:
    if ("prompt" in entry) == ("messages" in entry):
        raise InputError(f'{location} needs either "prompt" or "messages".')
    prompt = entry["prompt"] if "prompt" in entry else entry["messages"]
    if not isinstance(prompt, str | list):
        raise InputError(f"{location}: the prompt is {_kind_of(prompt)}: it must be a text, messages, or token ids.")
    try:
        return prompt if is_token_ids(prompt) else prompt if as_messages(prompt) else ""
    except InputError as error:
        raise InputError(f"{location}: {error}") from error


def _continuation(entry: dict[str, Any], location: str) -> Any:
    continuation = entry.get("continuation", entry.get("completion"))  # the second is what `neft train` reads
    if continuation and (
        isinstance(continuation, str) or (isinstance(continuation, list) and is_token_ids(continuation))
    ):
        return continuation
    raise InputError(f'{location} needs a "continuation" to score: a text that is not empty, or token ids.')


def _alpha(value: Any, location: str) -> Any:
    if value is None:
        return None
    try:
        return [check_alpha(entry) for entry in value] if isinstance(value, list) else check_alpha(value)
    except OptionError as error:
        raise InputError(f"{location}: {error}") from error


def _seed(value: Any, location: str) -> int | None:
    if value is None or type(value) is int:
        return value
    raise InputError(f"{location}: seed is {value!r}: it must be a whole number.")


def _kind_of(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null", dict: "an object"}
    return kinds.get(type(value), "a number")
