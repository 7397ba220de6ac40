"""Show versions, devices and memory and, for roles that were named, what they need against what is there.

No weights are loaded: sizes come from configs and file headers. The exit code is 1 when the roles do not fit, 2 when
they do not share a vocabulary.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from proxytune.cli.machine import Memory, memories, versions
from proxytune.cli.role_arguments import RoleChoice, add_role_arguments, choose_roles
from proxytune.errors import VocabularyError

if TYPE_CHECKING:
    from proxytune.cli.footprint import Footprint
    from proxytune.cli.verdict import Verdict

HELP = "versions, devices, and whether three models fit"
EXAMPLE = """\
  proxytune doctor --base meta-llama/Llama-2-70b-hf --expert meta-llama/Llama-2-7b-chat-hf \\
      --anti meta-llama/Llama-2-7b-hf --load-in-4bit"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    command.add_argument("--json", action="store_true", help="print one JSON object")
    add_role_arguments(command)


def run(args: argparse.Namespace) -> int:
    """Report, and return whether the roles can be run."""
    machine = memories()
    report: dict[str, Any] = {"versions": versions(), "memory": [asdict(memory) for memory in machine]}
    if not (args.base or args.expert or args.anti or args.model):
        _write(report, as_json=args.json)
        return 0
    from proxytune.cli.footprint import footprints
    from proxytune.cli.verdict import judge

    choice = choose_roles(args)
    roles = footprints(choice.base, choice.pairs, choice.formats)
    verdict = judge(roles, machine)
    report |= _about_roles(roles, verdict)
    report["vocabulary"] = _vocabulary(choice, roles)
    _write(report, as_json=args.json)
    if not report["vocabulary"]["is_shared"]:
        return 2
    return 0 if verdict.fits else 1


def _about_roles(roles: Sequence["Footprint"], verdict: "Verdict") -> dict[str, Any]:
    return {
        "roles": [asdict(role) for role in roles],
        "total": {
            "weight_bytes": sum(role.weight_bytes for role in roles),
            "kv_bytes_per_token": sum(role.kv_bytes_per_token for role in roles),
            "max_context": verdict.max_context,
        },
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


def _vocabulary(choice: RoleChoice, roles: Sequence["Footprint"]) -> dict[str, Any]:
    """Return whether the roles share token ids, and how many."""
    from proxytune.roles import Role, load_tokenizer
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
    text = json.dumps(report, indent=2) if as_json else "\n".join(_lines(report))
    sys.stdout.write(text + "\n")


def _lines(report: Mapping[str, Any]) -> list[str]:
    from proxytune.cli.verdict import gib

    lines = ["versions"]
    lines += [f"  {name:<14}{version or '-'}" for name, version in report["versions"].items()]
    lines += ["", "memory"]
    lines += [_memory_line(Memory(**entry)) for entry in report["memory"]]
    if "roles" not in report:
        return lines
    head = f"  {'':<10}{'parameters':>16}{'dtype':>10}{'weights':>12}{'cache/token':>14}{'context':>10}  source"
    lines += ["", "roles", head]
    for role in report["roles"]:
        lines.append(
            f"  {role['name']:<10}{role['num_parameters']:>16,}{role['quantization'] or role['dtype']:>10}"
            f"{gib(role['weight_bytes']):>12}{role['kv_bytes_per_token'] / 1024:>10.1f} KiB"
            f"{role['max_context'] or '-':>10}  {role['source']}"
        )
    total = report["total"]
    lines.append(
        f"  {'together':<36}{gib(total['weight_bytes']):>12}{total['kv_bytes_per_token'] / 1024:>10.1f} KiB"
        f"{total['max_context'] or '-':>10}"
    )
    vocabulary = report["vocabulary"]
    shared = vocabulary["problem"] or f"shared, {vocabulary['size']:,} token ids"
    return [*lines, "", f"memory      {report['verdict']['text']}", f"vocabulary  {shared}"]


def _memory_line(memory: Memory) -> str:
    from proxytune.cli.verdict import gib

    return f"  {memory.place:<10}{gib(memory.free_bytes):>12} free of {gib(memory.total_bytes):>10}  {memory.name}"
