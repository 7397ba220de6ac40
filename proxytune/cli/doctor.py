"""Show versions, devices and memory and, for roles that were named, what they need against what is there.

No weights are loaded: sizes come from configs and file headers. A base behind an API is asked what its server can do.
With --runtime vllm it is how vLLM would lay the roles out, and what it would refuse. The exit code is 1 when the roles
do not fit, 2 when they do not share a vocabulary or are refused.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from proxytune.cli.doctor_table import table
from proxytune.cli.machine import Memory, memories, versions
from proxytune.cli.role_arguments import RoleChoice, add_role_arguments, choose_roles
from proxytune.cli.runtime_arguments import require_engine
from proxytune.errors import OptionError, VocabularyError

if TYPE_CHECKING:
    from proxytune.cli.footprint import Footprint

HELP = "versions, devices, and whether three models fit"
EXAMPLE = """\
  proxytune doctor --base meta-llama/Llama-2-70b-hf --expert meta-llama/Llama-2-7b-chat-hf \\
      --anti meta-llama/Llama-2-7b-hf --load-in-4bit"""


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
    require_engine(args, "--tensor-parallel-size", args.tensor_parallel_size)
    require_engine(args, "--tokens-per-request", args.tokens_per_request)
    machine = memories()
    report: dict[str, Any] = {"versions": versions(), "memory": [asdict(memory) for memory in machine]}
    has_roles = bool(args.base or args.expert or args.anti or args.model)
    if not has_roles and args.runtime == "hf":
        _write(report, as_json=args.json)
        return 0
    from proxytune.cli.footprint import footprints

    choice = choose_roles(args)
    roles = footprints(choice.base, choice.pairs, choice.formats)
    if choice.base.is_remote:
        from proxytune.cli.doctor_server import about_server

        report["server"] = about_server(choice)
    if _is_engine(choice):
        report |= _about_engine(args, choice, roles, machine)
    else:
        report |= _about_memory(roles, machine)
    report["vocabulary"] = _vocabulary(choice, roles)
    _write(report, as_json=args.json)
    has_problem = report.get("server", {}).get("problem") is not None
    if not report["vocabulary"]["is_shared"] or report.get("refusals") or has_problem:
        return 2
    return 0 if report["verdict"]["fits"] else 1


def _is_engine(choice: RoleChoice) -> bool:
    """Return whether vLLM is what would run the roles; it need not be installed to plan for it."""
    if choice.runtime != "auto" and not choice.base.is_remote:
        return choice.runtime == "vllm"
    from proxytune.runtimes import choose_runtime

    pairs = [(pair.expert, pair.anti) for pair in choice.pairs]
    return choose_runtime(choice.runtime, choice.engine_options, choice.base, pairs) == "vllm"


def _about_engine(
    args: argparse.Namespace, choice: RoleChoice, roles: Sequence["Footprint"], machine: Sequence[Memory]
) -> dict[str, Any]:
    from proxytune.cli.engine_adapters import has_draft, merged_adapters
    from proxytune.cli.engine_plan import plan_engine
    from proxytune.cli.engine_settings import EngineSettings
    from proxytune.cli.refusals import refusals

    tokens = args.tokens_per_request
    if tokens is not None and tokens < 1:
        raise OptionError(f"--tokens-per-request is {tokens}: it must be at least 1.")
    options = dict(choice.engine_options)
    if args.tensor_parallel_size is not None:
        options["tensor_parallel_size"] = args.tensor_parallel_size
    settings = EngineSettings.of(options, machine, os.environ)
    merged = merged_adapters(choice, options)
    plan = plan_engine(roles, machine, settings, merged=merged, has_draft=has_draft(options))
    if tokens and plan.max_model_len and tokens > plan.max_model_len:
        raise OptionError(f"--tokens-per-request is {tokens}, and a request has at most {plan.max_model_len} here.")
    engine = {
        **asdict(plan),
        "weight_bytes": plan.weight_bytes,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "cache_bytes": plan.cache_bytes,
        "num_blocks": plan.num_blocks,
        "num_tokens": plan.num_tokens,
        "num_longest_requests": plan.num_requests(plan.max_model_len) if plan.max_model_len else None,
        "tokens_per_request": tokens,
        "num_requests": plan.num_requests(tokens) if tokens else None,
    }
    return {
        "roles": [asdict(role) for role in roles],
        "total": _total(roles, plan.max_model_len),
        "engine": engine,
        "refusals": refusals(choice, roles, settings),
        "verdict": {"fits": plan.problem() is None, "num_cache_tokens": plan.num_tokens, "text": plan.text()},
    }


def _about_memory(roles: Sequence["Footprint"], machine: Sequence[Memory]) -> dict[str, Any]:
    from proxytune.cli.verdict import judge

    verdict = judge(roles, machine)
    return {
        "roles": [asdict(role) for role in roles],
        "total": _total(roles, verdict.max_context),
        "verdict": {
            "fits": verdict.fits,
            "num_cache_tokens": verdict.num_cache_tokens,
            "places": [
                asdict(need) | {"fits": need.is_enough, "num_cache_tokens": need.num_cache_tokens}
                for need in verdict.needs
            ],
            "text": verdict.text(),
        },
    }


def _total(roles: Sequence["Footprint"], max_context: int | None) -> dict[str, Any]:
    return {
        "weight_bytes": sum(role.weight_bytes for role in roles),
        "kv_bytes_per_token": sum(role.kv_bytes_per_token for role in roles),
        "max_context": max_context,
    }


def _vocabulary(choice: RoleChoice, roles: Sequence["Footprint"]) -> dict[str, Any]:
    """Return whether the roles share token ids, and how many."""
    from proxytune.checkpoints import load_tokenizer
    from proxytune.roles import Role
    from proxytune.vocabulary import shared_size

    named = {"base": choice.base}
    for number, pair in enumerate(choice.pairs, 1):
        suffix = "" if len(choice.pairs) == 1 else f"_{number}"
        named |= {f"expert{suffix}": pair.expert, f"anti{suffix}": pair.anti}
    found = {name: tokenizer for name, role in named.items() if (tokenizer := load_tokenizer(role)) is not None}
    if choice.tokenizer is not None:
        found = {"base": load_tokenizer(Role(choice.tokenizer)), **found}
    if not found:
        return {"is_shared": True, "size": None, "problem": "no role comes with a tokenizer: pass --tokenizer"}
    try:
        size = shared_size(found, {role.name: role.vocab_size for role in roles})
    except VocabularyError as error:
        return {"is_shared": False, "size": None, "problem": str(error)}
    return {"is_shared": True, "size": size, "problem": None}


def _write(report: Mapping[str, Any], *, as_json: bool) -> None:
    text = json.dumps(report, indent=2) if as_json else table(report)
    sys.stdout.write(text + "\n")
