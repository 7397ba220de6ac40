"""Try steering on a page of this machine: the base and the steered base side by side, live, and token by token.

The page takes requests from this machine only, unless --host says otherwise, and loads nothing from the network.
"""

import argparse
import os
import threading
from contextlib import suppress

from proxytune.cli.decoding_arguments import add_decoding_arguments, decoding_options
from proxytune.cli.role_arguments import add_role_arguments, choose_roles
from proxytune.cli.stderr import note
from proxytune.errors import DependencyError

HELP = "try steering on a local page"
EXAMPLE = """\
  proxytune playground
  proxytune playground --base meta-llama/Llama-2-13b-hf --expert meta-llama/Llama-2-7b-chat-hf \\
      --anti meta-llama/Llama-2-7b-hf --expert-prompt chat --load-in-8bit --open"""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROMPT = "Where was Jora Quillmere born?"
_MAX_NEW_TOKENS = 128


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    group = command.add_argument_group("page")
    group.add_argument("--host", default=_LOOPBACK[0], help="listen here (127.0.0.1: this machine only)")
    group.add_argument("--port", type=int, metavar="N", help="and there (the first free one from 7860 on)")
    group.add_argument("--open", action="store_true", help="open the page in the browser")
    group.add_argument("--prompt", metavar="TEXT", help="what stands in the prompt's field at first")
    add_decoding_arguments(command, is_batched=False)
    add_role_arguments(command, has_runtime=False, has_remote=True)


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    options = decoding_options(args, max_new_tokens=_MAX_NEW_TOKENS)
    if args.seed is not None:
        options["seed"] = args.seed
    is_bundled = not (args.base or args.expert or args.anti or args.model)
    choice = choose_roles(args, raw_format="question" if is_bundled else "raw")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio's parts outside the page ask only this
    try:
        from proxytune.playground import Address, serve
        from proxytune.playground.page import Setting, formats_of
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise DependencyError("the playground needs gradio: pip install 'proxytune[ui]'.") from error
    address = Address(host=args.host, port=args.port)
    setting = Setting(
        prompt=args.prompt if args.prompt is not None else _PROMPT if is_bundled else "",
        alphas=choice.alphas,
        formats=formats_of(choice.formats, choice.pairs),
        options=options,
    )
    if args.host not in _LOOPBACK:
        note(f"--host {args.host}: whoever can reach this machine can use the page; it asks for no password.")
    with choice.loaded() as generator, serve(generator, setting, address, opens_browser=args.open) as url:
        note(f"the playground is at {url} (Ctrl-C ends it).")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0
