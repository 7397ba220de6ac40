"""`proxytune chat`, over a pipe."""

import io
import signal
import sys
from pathlib import Path

import pytest

from proxytune import ProxyGenerator
from proxytune.cli import main
from tests.cli.console import CONTEXT, Run, assert_refused


@pytest.fixture
def generator(trio: Path) -> ProxyGenerator:
    """The trio as chat loads it."""
    sources = {role: str(trio / role) for role in ("base", "expert", "anti")}
    return ProxyGenerator(**sources, base_prompt="dialogue", expert_prompt="dialogue", anti_prompt="dialogue")


def answer(generator: ProxyGenerator, *said: str, system: str | None = None, alpha: float = 1.0) -> str:
    """What chat writes for a conversation of the user's and its own turns."""
    messages = [{"role": "system", "content": system}] if system else []
    for place, text in enumerate(said):
        messages.append({"role": ("user", "assistant")[place % 2], "content": text})
    [done] = generator.generate([messages], max_new_tokens=9, stop=["\nUser:"], alpha=alpha)
    return done.text.strip()


def test_alpha_changes_in_the_middle(run: Run, roles: list[str], generator: ProxyGenerator) -> None:
    """Answers alone go to standard output; /alpha holds from the next turn on; turns remember those before."""
    result = run("chat", *roles, "--max-new-tokens", 9, stdin="Who\n/alpha 0\nA small\n/alpha\n/quit\nnever\n")
    first = answer(generator, "Who")
    second = answer(generator, "Who", first, "A small", alpha=0.0)
    assert (result.code, [line.rstrip() for line in result.out.split("\n")]) == (
        0,
        [*f"{first}\n{second}".split("\n"), ""],
    )
    assert result.err == "proxytune: alpha is 0.\n" * 2


def test_bad_alpha_goes_on(run: Run, roles: list[str]) -> None:
    """A wrong /alpha or an unknown command is a line on stderr, and the chat goes on as it was."""
    result = run("chat", *roles, "--max-new-tokens", 2, stdin="/alpha x\n/alpha inf\n/foo\n/help\n\n/alpha\n")
    assert (result.code, result.out) == (0, "")
    lines = result.err.splitlines()
    assert [line.partition(":")[2][:12] for line in lines[:3]] == [
        " /alpha x: it"[:12],
        " /alpha inf:"[:12],
        " unknown comm"[:12],
    ]
    assert lines[-1] == "proxytune: alpha is 1."


def test_system_and_reset(run: Run, roles: list[str], generator: ProxyGenerator) -> None:
    """/system sets the first message, /reset forgets the turns but not it."""
    result = run(
        "chat", *roles, "--max-new-tokens", 9, stdin="/system A baker\nWho\n/reset\nWho\n/system\n/reset\nWho\n"
    )
    with_system, without = answer(generator, "Who", system="A baker"), answer(generator, "Who")
    assert _squeezed(result.out) == _squeezed("\n".join([with_system, with_system, without]))


def test_no_history(run: Run, roles: list[str], generator: ProxyGenerator) -> None:
    """Without history each question stands alone."""
    result = run("chat", *roles, "--max-new-tokens", 9, "--no-history", stdin="A small\nWho\n")
    assert _squeezed(result.out) == _squeezed(answer(generator, "A small") + "\n" + answer(generator, "Who"))


def test_full_context_drops_the_oldest(run: Run, roles: list[str]) -> None:
    """When the context is full the oldest turns go, with a notice, and the chat goes on."""
    turns = "".join(f"{'town ' * 6}{index}\n" for index in range(6))
    result = run("chat", *roles, "--max-new-tokens", 20, "--ignore-eos", stdin=turns)
    assert result.code == 0
    assert "the oldest 1 turn(s)" in result.err


def test_message_too_long(run: Run, roles: list[str]) -> None:
    """A message longer than the context is refused in a line, and the chat goes on without it."""
    result = run("chat", *roles, "--max-new-tokens", 2, stdin="x" * 2 * CONTEXT + "\nWho\n")
    assert result.code == 0
    assert "context" in result.err
    assert result.out.endswith("\n")


def test_seeded_chat(run: Run, roles: list[str]) -> None:
    """With a seed a sampled chat is the same again, without one it is not."""
    arguments = ["chat", *roles, "--max-new-tokens", 9, "--temperature", 1.5]
    seeded = [run(*arguments, "--seed", 3, stdin="Who\n").out for _ in range(2)]
    free = [run(*arguments, stdin="Who\n").out for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert free[0] != free[1]


def test_unknown_format(run: Run, roles: list[str]) -> None:
    """Formats are checked before the models load."""
    assert_refused(run("chat", *roles, "--base-prompt", "lama"), "lama")


def test_interrupted_answer(
    roles: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real SIGINT during an answer ends that answer, and the next line is taken; at the prompt it ends the chat."""
    stdout = _InterruptingStdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stdin", _InterruptingStdin("Who\n", "A small\n"))
    code = main(["chat", *roles, "--max-new-tokens", "40", "--ignore-eos"])
    assert code == 1
    assert capsys.readouterr().err.splitlines() == ["proxytune: stopped.", "proxytune: interrupted."]
    assert stdout.num_answers == 2


class _InterruptingStdout(io.StringIO):
    """Sends SIGINT once, after the second piece of the first answer."""

    num_writes = 0
    num_answers = 0

    def write(self, text: str) -> int:
        self.num_writes += 1
        self.num_answers += text == "\n"
        if self.num_writes == 2:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


class _InterruptingStdin(io.StringIO):
    """Gives its lines, then sends SIGINT."""

    def __init__(self, *lines: str) -> None:
        super().__init__()
        self._lines = list(lines)

    def readline(self, size: int | None = -1, /) -> str:
        if not self._lines:
            signal.raise_signal(signal.SIGINT)
        return self._lines.pop(0)


def _squeezed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().split("\n"))
