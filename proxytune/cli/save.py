"""Write a proxy folder: it names the roles, alpha and prompt formats, and holds no weights.

`--model FOLDER`, AutoModelForCausalLM.from_pretrained and ProxyGenerator.from_pretrained read it.
"""

import argparse
from pathlib import Path

from proxytune.cli.role_arguments import add_role_arguments, choose_roles
from proxytune.cli.stderr import note
from proxytune.errors import OutputError

HELP = "write a proxy folder"
EXAMPLE = """\
  proxytune save --base meta-llama/Llama-2-70b-hf --expert meta-llama/Llama-2-7b-chat-hf \\
      --anti meta-llama/Llama-2-7b-hf --expert-prompt chat --quantization 4bit --output my-proxy-folder"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("--output", metavar="FOLDER", required=True, help="the folder to write")
    command.add_argument(
        "--push-to-hub", metavar="USER/NAME", help="upload the folder, too; roles must be hub ids then"
    )
    command.add_argument("--overwrite", action="store_true", help="write into the folder even if it holds something")
    add_role_arguments(command, has_model=False, has_runtime=False, has_remote=True)


def run(args: argparse.Namespace) -> int:
    """Load the roles, so that what is saved is known to fit together, and write the folder."""
    choice = choose_roles(args)
    folder = Path(args.output).expanduser()
    _require_writable(folder, may_overwrite=args.overwrite)
    with choice.loaded() as generator:
        generator.save_pretrained(folder)
        if args.push_to_hub:
            note(f"pushed: {generator.push_to_hub(args.push_to_hub)}")
    note(f"wrote {str(folder)!r}.")
    return 0


def _require_writable(folder: Path, *, may_overwrite: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
        probe = folder / ".proxytune-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write the folder {str(folder)!r}: {reason}; choose another --output.") from error
    if not is_empty and not may_overwrite:
        raise OutputError(f"{str(folder)!r} holds something already: choose another --output, or pass --overwrite.")
