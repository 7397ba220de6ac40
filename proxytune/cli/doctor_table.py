"""The report of `proxytune doctor` as a table for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from proxytune.cli.machine import Memory


def table(report: Mapping[str, Any]) -> str:
    """Return the lines of a report, joined."""
    lines = ["versions"]
    lines += [f"  {name:<14}{version or '-'}" for name, version in report["versions"].items()]
    lines += ["", "memory"]
    lines += [_memory_line(Memory(**entry)) for entry in report["memory"]]
    if "roles" not in report:
        return "\n".join(lines)
    lines += ["", "roles", *_role_lines(report)]
    if "server" in report:
        lines += ["", *_server_lines(report["server"])]
    if "engine" in report:
        lines += ["", *_engine_lines(report["engine"])]
    vocabulary = report["vocabulary"]
    shared = vocabulary["problem"] or f"shared, {vocabulary['size']:,} token ids"
    lines += ["", f"memory      {report['verdict']['text']}", f"vocabulary  {shared}"]
    lines += [f"refused     {reason}" for reason in report.get("refusals", ())]
    return "\n".join(lines)


def _role_lines(report: Mapping[str, Any]) -> Iterator[str]:
    from proxytune.cli.verdict import gib

    yield f"  {'':<10}{'parameters':>16}{'dtype':>10}{'weights':>12}{'cache/token':>14}{'context':>10}  source"
    for role in report["roles"]:
        yield (
            f"  {role['name']:<10}{role['num_parameters']:>16,}{role['quantization'] or role['dtype']:>10}"
            f"{gib(role['weight_bytes']):>12}{role['kv_bytes_per_token'] / 1024:>10.1f} KiB"
            f"{role['max_context'] or '-':>10}  {role['source']}"
        )
    total = report["total"]
    yield (
        f"  {'together':<36}{gib(total['weight_bytes']):>12}{total['kv_bytes_per_token'] / 1024:>10.1f} KiB"
        f"{total['max_context'] or '-':>10}"
    )


def _server_lines(server: Mapping[str, Any]) -> Iterator[str]:
    yield "server"
    yield f"  {server['model']} at {server['base_url']}"
    if server["problem"] is not None:
        yield f"  refused     {server['problem']}"
        return
    seen = server["num_logprobs"]
    told = "whole vocabulary: exact" if seen is None else f"the {seen} likeliest per place: the rest stays unseen"
    yield f"  {'seen':<12}{told}"
    yield f"  {'drafts':<12}checked by {server['verification']}"
    yield f"  {'context':<12}{server['max_context'] or '-'}"
    yield f"  {'vocabulary':<12}that of the small models' tokenizer, {server['vocab_size']:,} token ids"


def _engine_lines(engine: Mapping[str, Any]) -> Iterator[str]:
    from proxytune.cli.verdict import gib

    settings = engine["settings"]
    workers = settings["tensor_parallel_size"] * settings["pipeline_parallel_size"]
    budget = "as set" if settings["cache_bytes"] is not None else f"{settings['memory_utilization']:g} of the memory"
    yield f"vllm, on each of {workers} worker(s)"
    for role in engine["roles"]:
        cache = f"{role['kv_bytes_per_token'] / 1024:.1f} KiB"
        yield f"  {role['name']:<16}{gib(role['weight_bytes']):>12} weights{cache:>14} cache/token"
    cache = f"{engine['kv_bytes_per_token'] / 1024:.1f} KiB"
    yield f"  {'together':<16}{gib(engine['weight_bytes']):>12} weights{cache:>14} cache/token"
    yield f"  {'cache':<16}{gib(engine['cache_bytes']):>12} ({budget})"
    yield f"  {'blocks':<16}{engine['num_blocks']:>12,} of {settings['block_size']} tokens: {engine['num_tokens']:,}"
    if engine["max_model_len"]:
        yield f"  {'requests':<16}{engine['num_longest_requests']:>12,} of {engine['max_model_len']:,} tokens at once"
    if engine["tokens_per_request"]:
        yield f"  {'requests':<16}{engine['num_requests']:>12,} of {engine['tokens_per_request']:,} tokens at once"


def _memory_line(memory: Memory) -> str:
    from proxytune.cli.verdict import gib

    return f"  {memory.place:<10}{gib(memory.free_bytes):>12} free of {gib(memory.total_bytes):>10}  {memory.name}"
