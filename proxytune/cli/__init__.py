"""`proxytune`: the command line.

Standard output carries results and nothing else; progress, notes and errors go to stderr. Exit codes: 0 done, 2
something the user gave is wrong, 1 anything else (an interruption too).
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from proxytune.cli.parser import parse
from proxytune.cli.stderr import note, quiet_libraries
from proxytune.errors import ProxyTuneError, RemoteError

__all__ = ["main"]

_OUT_OF_MEMORY = (
    "out of memory: lower --max-new-tokens, or load less with --load-in-8bit or --load-in-4bit "
    "(`proxytune doctor` shows what the roles need)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one sentence, with a traceback only under --debug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in arguments
    try:
        return _run(arguments, is_debug=is_debug)
    except SystemExit as request:  # --help and --version
        return int(request.code or 0)
    except BrokenPipeError:
        _forget_stdout()
        return 1
    except KeyboardInterrupt as interruption:
        return _fail(str(interruption) or "interrupted.", code=1, is_debug=is_debug)
    except ProxyTuneError as error:
        # A server that fails is nothing that the user got wrong.
        return _fail(str(error), code=1 if isinstance(error, RemoteError) else 2, is_debug=is_debug)
    except Exception as error:  # noqa: BLE001 - the outermost place: whatever it is, the user gets one sentence
        return _fail(_reason(error, is_debug=is_debug), code=1, is_debug=is_debug)


def _run(arguments: Sequence[str], *, is_debug: bool) -> int:
    if sys.stdout is None:  # closed by whoever started us: results that go there must fail by name
        sys.stdout = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # what JSON is in, whatever the locale
    options = parse(arguments)
    with quiet_libraries(is_debug=is_debug):
        code: int = options.run(options)
    # Here rather than at exit, where a closed pipe could no longer be caught.
    sys.stdout.flush()
    return code


def _fail(text: str, *, code: int, is_debug: bool) -> int:
    if is_debug:
        traceback.print_exc()
    note(text)
    return code


def _reason(error: Exception, *, is_debug: bool) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _OUT_OF_MEMORY
    text = " ".join(str(error).split())
    told = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return told if is_debug else f"{told} (--debug shows where)"


def _forget_stdout() -> None:
    """Let Python's own flush at exit go nowhere: the reader of standard output has left."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
