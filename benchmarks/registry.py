"""The names behind `bench`: tasks and other commands, each with the module that is imported when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A module, one line on it, and arguments that come before the user's."""

    module: str
    help: str
    arguments: tuple[str, ...] = ()


# One file each, with the names in `benchmarks.tasks.task.Task`.
TASKS = {
    "alpacaeval": Entry(
        module="benchmarks.tasks.alpacaeval.generation", help="AlpacaEval 1 and 2: answers to the 805 instructions"
    ),
    "gsm8k": Entry(module="benchmarks.tasks.gsm8k", help="grade-school mathematics, as the proxy-tuning paper ran it"),
    "lm-eval": Entry(
        module="benchmarks.tasks.lm_eval.task", help="lm-evaluation-harness: MMLU, ARC, HellaSwag, TruthfulQA, GSM8K, …"
    ),
    "toxigen": Entry(module="benchmarks.tasks.toxigen", help="continuations of ToxiGen's prompts, and the toxic ones"),
    "truthfulqa": Entry(
        module="benchmarks.tasks.truthfulqa", help="TruthfulQA; the demo trio's own questions by default"
    ),
}
# Modules with `add_arguments(command)` and `run(args)`.
COMMANDS = {
    "alpacaeval-judge": Entry(module="benchmarks.tasks.alpacaeval.judging", help="judge a run of alpacaeval"),
    "alpacaeval-outputs": Entry(
        module="benchmarks.tasks.alpacaeval.outputs", help="write a run's answers as AlpacaEval's model_outputs.json"
    ),
    "compare-rules": Entry(
        module="benchmarks.compare_rules", help="methods and rules on the demo world: what each brings, what it costs"
    ),
    "judge": Entry(module="benchmarks.judging.command", help="judge the open answers of a run"),
    "merge": Entry(module="benchmarks.merge", help="put the shards of a run together"),
    "report": Entry(module="benchmarks.reporting.command", help="one table of runs, with gap closed, and a page"),
    "score": Entry(module="benchmarks.scoring.command", help="score anybody's outputs without a model"),
}
# Modules with a `main(argv)` of their own.
PROGRAMS = {
    "remote": Entry(
        module="benchmarks.speed",
        help="requests and time per token with a base behind an API",
        arguments=("--suite", "remote"),
    ),
    "speed": Entry(module="benchmarks.speed", help="tokens per second beside the base's and the floor"),
    "throughput": Entry(
        module="benchmarks.speed",
        help="batches and ragged requests in vLLM and transformers",
        arguments=("--suite", "throughput"),
    ),
    "training-speed": Entry(
        module="benchmarks.speed", help="noise and packing in fine-tuning", arguments=("--suite", "training")
    ),
}
