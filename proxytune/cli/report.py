"""Make one self-contained page of traces: the texts coloured by how far steering moved them, and the numbers behind.

The page asks nothing of the network; several traces of one prompt stand side by side.
"""

import argparse
import os
import sys
from pathlib import Path

from proxytune.cli.outputs import require_other_file
from proxytune.cli.stderr import note
from proxytune.errors import OutputError

HELP = "make a page of traces"
EXAMPLE = "  proxytune report trace.jsonl --output report.html"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("traces", nargs="+", metavar="TRACE", help="what `proxytune trace` wrote; also .gz")
    command.add_argument("-o", "--output", metavar="FILE", help="write here in place of standard output")
    command.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    command.add_argument("--title", default="What steering did", help="of the page")


def run(args: argparse.Namespace) -> int:
    """Read every trace, then write the page, whole or not at all."""
    from proxytune.report import read_origin, read_traced_texts, render

    path = None if args.output is None else Path(args.output).expanduser()
    if path is not None and path.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a folder; name a file in it.")
    if path is not None:
        require_other_file(path, args.traces)
    if path is not None and path.exists() and not args.overwrite:
        raise OutputError(f"{str(path)!r} is there already: replace it by --overwrite, or name another.")
    texts = [text for name in args.traces for text in read_traced_texts(name)]
    origins = [origin for name in args.traces if (origin := read_origin(name)) is not None]
    page = render(texts, title=args.title, origins=origins)
    if path is None:
        sys.stdout.write(page)
        return 0
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(page, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another output.") from error
    finally:
        scratch.unlink(missing_ok=True)
    note(f"{len(texts)} texts are in {str(path)!r}: open it in a browser.")
    return 0
