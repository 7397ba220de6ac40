"""What a base behind an API costs: requests and time per token, with and without drafts. `python -m benchmarks.remote`.

Without options a vLLM server with the bundled trio's base is started on this machine; `--base openai:MODEL --base-url
URL` asks another one, and `--expert --anti` then name the small models. Each row is a number of drafts, once with the
whole vocabulary (where the server gives it) and once with the 20 likeliest tokens, for one row at a time and for eight.

All tokens are compared: with the composite that has its base here, where that can be loaded (`--local-base`; the
bundled trio's is), and those of drafts with plain decoding against the same server. The run ends with an error where
drafts change a token, or where the whole vocabulary gives other tokens than the base here.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from benchmarks.decoding.remote_rows import RemoteRow, Seen, new_row, table
from benchmarks.decoding.remote_server import NAME, vllm_server
from proxytune import Completion, ProxyGenerator, ProxyTuneError, RemoteSettings
from proxytune.demo import trio_path
from proxytune.demo.live import held_out_questions
from proxytune.demo.recipe import Recipe
from proxytune.errors import InputError, OptionError

_DRAFTS: tuple[int | str, ...] = ("off", 4, 8, "auto")


class RemoteTokensError(ProxyTuneError, RuntimeError):
    """Tokens that are not those they must be."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options to a parser."""
    trio = trio_path()
    parser.add_argument("--base", metavar="openai:MODEL", help="a base at a server that runs (default: one is begun)")
    parser.add_argument("--base-url", metavar="URL", help="of that server")
    parser.add_argument(
        "--local-base", metavar="MODEL", help="the same base as hub id or folder, to compare tokens with"
    )
    parser.add_argument("--expert", metavar="MODEL", default=str(trio / "expert"))
    parser.add_argument("--anti", metavar="MODEL", default=str(trio / "anti"))
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one per line (default: the demo's questions)")
    parser.add_argument("--num-prompts", type=int, metavar="N", help="default 32; 8 with --quick")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--drafts", nargs="+", default=list(_DRAFTS), metavar="K", help="default: off 4 8 auto")
    parser.add_argument("--verification", default="auto", metavar="WAY", help="how drafts are checked (default auto)")
    parser.add_argument("--rounds", type=int, help="timed runs of each row (default 3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="few prompts, one round: a minute on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except ProxyTuneError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def run(options: argparse.Namespace) -> int:
    """Measure what parsed options ask for.

    Raises:
        ProxyTuneError: An option cannot be used, no server is there, or tokens differ.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    prompts = _prompts(options)
    rounds = options.rounds or (1 if options.quick else 3)
    rows: list[RemoteRow] = []
    with _server(options) as (settings, local_base):
        expected = None if local_base is None else _local_tokens(options, local_base, prompts)
        for num_logprobs in (None, 20):
            seen = replace(settings, top_logprobs=num_logprobs, verification=options.verification)
            rows += _measured(options, seen, prompts, expected, rounds)
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(rows))
    return 0


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[tuple[RemoteSettings, str | None]]:
    """Yield where the base is asked, and the same base here if there is one."""
    if (options.base is None) != (options.base_url is None):
        raise OptionError("--base and --base-url go together: pass both, or none for a server of the benchmark's own.")
    if options.base is not None:
        name = options.base.removeprefix("openai:")
        yield RemoteSettings(model=name, base_url=options.base_url), options.local_base
        return
    folder = trio_path() / "base"
    _note("starting a vLLM server with the bundled trio's base")
    with vllm_server(folder) as url:
        yield RemoteSettings(model=NAME, base_url=url), str(folder)


def _measured(
    options: argparse.Namespace,
    settings: RemoteSettings,
    prompts: Sequence[str],
    expected: list[tuple[int, ...]] | None,
    rounds: int,
) -> list[RemoteRow]:
    """Return a row per batch size and number of drafts, with what `settings` let see of the base."""
    found = []
    for batch in (1, 8):
        plain: list[tuple[int, ...]] | None = None
        for text in options.drafts:
            drafts: Any = int(text) if str(text).isdecimal() else text
            with closing(_generator(options, settings, drafts)) as generator:
                remote = generator.model.base.remote
                num_logprobs, way = remote.num_logprobs, remote.verification
                _note(f"{num_logprobs or 'all'} seen, batch {batch}, drafts {drafts}: {rounds} round(s)")
                done, seconds = _timed(generator, prompts, options.max_new_tokens, batch, rounds)
            tokens = [row.token_ids for row in done]
            if plain is not None and tokens != plain:
                raise RemoteTokensError(
                    f"{drafts} drafts give other tokens than none, at batch {batch}: that is a bug."
                )
            plain = tokens if drafts == "off" else plain
            seen = Seen(base=settings.model, num_logprobs=num_logprobs, verification=way)
            row = new_row(seen, batch, drafts, done, seconds, expected)
            if expected is not None and num_logprobs is None and tokens != expected:
                raise RemoteTokensError(f"only {row.equal_rows} rows have the tokens of the base here: a bug.")
            found.append(row)
    return found


def _timed(
    generator: ProxyGenerator, prompts: Sequence[str], length: int, batch: int, rounds: int
) -> tuple[list[Completion], list[float]]:
    """Return the completions, with stats, and the seconds of each round; the first run, which warms, is not timed."""
    call: dict[str, Any] = {"max_new_tokens": length, "batch_size": batch}
    generator.generate(prompts[:batch], **call)
    seconds = []
    done: list[Completion] = []
    for _ in range(rounds):
        started = time.perf_counter()
        done = generator.generate(prompts, stats=True, **call)
        seconds.append(time.perf_counter() - started)
    failed = next((row.error for row in done if row.error is not None), None)
    if failed is not None:
        raise RemoteTokensError(f"a row ended with an error: {failed}")
    return done, seconds


def _generator(options: argparse.Namespace, base: Any, drafts: Any) -> ProxyGenerator:
    return ProxyGenerator(base=base, expert=options.expert, anti=options.anti, speculation=drafts)


def _local_tokens(options: argparse.Namespace, base: str, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    done = _generator(options, base, "off").generate(prompts, max_new_tokens=options.max_new_tokens)
    return [row.token_ids for row in done]


def _prompts(options: argparse.Namespace) -> list[str]:
    count = options.num_prompts or (8 if options.quick else 32)
    if options.prompts is None:
        return [question.prompt for question in held_out_questions(Recipe().world())[:count]]
    try:
        lines = options.prompts.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {str(options.prompts)!r}: {error.strerror or error}.") from error
    found = [line for line in lines if line.strip()][:count]
    if not found:
        raise InputError(f"{str(options.prompts)!r} holds no prompt: write one per line.")
    return found


def _note(text: str) -> None:
    sys.stderr.write(f"remote: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
