"""Chat with the steered base in the terminal; also works with a pipe on either side.

Input is sent line by line; /alpha NUMBER, /reset, /system TEXT, /help and /exit are commands. Ctrl-C stops an
answer, and at the prompt it ends the chat. When nothing is said about a role's prompt format it is "dialogue".
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress

from proxytune.cli.conversation import Conversation
from proxytune.cli.decoding_arguments import add_decoding_arguments, decoding_options
from proxytune.cli.role_arguments import RoleChoice, add_role_arguments, choose_roles
from proxytune.cli.stderr import note
from proxytune.cli.talker import Talker
from proxytune.errors import ProxyTuneError
from proxytune.options import check_alpha
from proxytune.prompts import TEMPLATES

HELP = "talk to it in the terminal"
EXAMPLE = """\
  proxytune chat --base meta-llama/Llama-2-13b-hf --expert meta-llama/Llama-2-7b-chat-hf \\
      --anti meta-llama/Llama-2-7b-hf --expert-prompt chat --load-in-8bit"""

_COMMANDS = """\
/alpha NUMBER   change the strength of steering; without a number, show it
/system TEXT    set the system message; without a text, take it away
/reset          forget the conversation, but not the system message
/help           show this
/exit           end (so do /quit and Ctrl-D)
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("--system", metavar="TEXT", help="the system message")
    command.add_argument(
        "--history",
        action=argparse.BooleanOptionalAction,
        help="let answers depend on what was said before (the default, but for the bundled trio)",
    )
    add_decoding_arguments(command, is_batched=False)
    add_role_arguments(command, has_remote=True)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    is_bundled = not (args.base or args.expert or args.anti or args.model)
    options = decoding_options(args, max_new_tokens=512)
    choice = choose_roles(args, raw_format="question" if is_bundled else "dialogue")
    options.setdefault("stop", _turn_headers(choice.formats))
    if args.seed is not None:
        options["seed"] = args.seed
    has_history = not is_bundled if args.history is None else args.history
    conversation = Conversation(system=args.system, has_history=has_history)
    with choice.loaded() as generator:
        if sys.stdin.isatty():
            sys.stderr.write(_banner(choice))
        chat = Chat(Talker(generator, options), conversation, choice.alphas)
        for line in _lines():
            if not chat.take(line):
                break
    return 0


def _banner(choice: RoleChoice) -> str:
    """Return which models talk, how strongly one is steered, and what can be typed."""
    lines = [f"base    {choice.base.name_or_path}"]
    for pair in choice.pairs:
        for name, term in (("expert", pair.expert), ("anti", pair.anti)):
            lines.append(f"{name:<8}{term if isinstance(term, str) else term.name_or_path}")
        lines.append(f"alpha   {pair.alpha:g}")
    return "\n".join([*lines, "/help shows the commands, /exit ends.", ""])


class Chat:
    """Handler of the user's lines: a command, or a turn of the conversation."""

    def __init__(self, talker: Talker, conversation: Conversation, alphas: tuple[float, ...]) -> None:
        self._talker = talker
        self._conversation = conversation
        self._alphas = alphas

    def take(self, line: str) -> bool:
        """Act on one line; return whether the chat goes on."""
        line = line.strip()
        if line.startswith("/"):
            name, _, rest = line[1:].partition(" ")
            return self._command(name, rest.strip())
        if line:
            self._answer(line)
        return True

    def _command(self, name: str, rest: str) -> bool:
        if name in ("exit", "quit"):
            return False
        if name == "alpha":
            self._set_alpha(rest)
        elif name == "system":
            self._conversation.system = rest or None
            note("the system message is set." if rest else "there is no system message.")
        elif name == "reset":
            self._conversation.reset()
            note("the conversation is forgotten.")
        elif name == "help":
            sys.stderr.write(_COMMANDS)
        else:
            note(f"unknown command /{name}: /help shows those there are.")
        return True

    def _set_alpha(self, text: str) -> None:
        try:
            if text:
                self._alphas = (check_alpha(float(text)),) * len(self._alphas)
        except ValueError:  # OptionError is one too
            note(f"/alpha {text}: it must be a finite number (1.0 is the paper's, 0 the base alone).")
            return
        note(f"alpha is {', '.join(f'{alpha:g}' for alpha in self._alphas)}.")

    def _answer(self, text: str) -> None:
        """Write the answer as it comes; one that was stopped is kept as far as it went."""
        try:
            pieces = self._talker.answer(self._conversation, text, self._alphas)
        except ProxyTuneError as error:
            note(str(error))
            return
        answer = ""
        try:
            for piece in pieces:
                shown = piece if answer else piece.lstrip()
                answer += shown
                sys.stdout.write(shown)
                sys.stdout.flush()
        except KeyboardInterrupt:
            note("stopped.")
        except ProxyTuneError as error:
            note(str(error))
        finally:
            pieces.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._conversation.add(text, answer.rstrip())


def _turn_headers(formats: Mapping[str, str]) -> list[str]:
    """Return how the formats in use open a turn of the user's: where a base begins one, the answer is over."""
    templates = [TEMPLATES[name] for name in formats.values() if name in TEMPLATES]
    heads = [template.user.partition("{content}")[0].strip() for template in templates]
    return [f"\n{head}" for head in dict.fromkeys(heads) if head]


def _lines() -> Iterator[str]:
    """Yield what the user types; the prompt sign never goes to a standard output that is not a terminal."""
    is_terminal = sys.stdin.isatty()
    if is_terminal and sys.stdout.isatty():
        yield from _edited_lines()
        return
    while True:
        if is_terminal:
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _edited_lines() -> Iterator[str]:
    """Yield lines that can be edited while they are typed."""
    with suppress(ImportError):  # not everywhere there is one
        import readline  # noqa: F401 - importing it is what switches editing on
    while True:
        try:
            yield input("> ")
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            raise
