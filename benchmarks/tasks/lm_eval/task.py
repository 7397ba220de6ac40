"""Tasks of lm-evaluation-harness: ARC, HellaSwag, MMLU, TruthfulQA, GSM8K and whatever else it has on texts.

Questions, prompts, examples and verdicts are the harness's own (0.4.13); with --data-dir the data of those five come
from files, else from the hub. Groups that count every question alike, as mmlu, are one line.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.columns import names
from benchmarks.tasks.lm_eval.tasks import Document, HarnessMeasures, figures, load_documents, select
from benchmarks.tasks.task import Job
from proxytune.errors import InputError, OptionError

HELP = "tasks of lm-evaluation-harness: MMLU, ARC, HellaSwag, TruthfulQA, GSM8K and others"
EXAMPLE = """\
  python -m benchmarks lm-eval --tasks arc_challenge,hellaswag,mmlu,truthfulqa_mc1,gsm8k --data-dir data \\
      --base meta-llama/Llama-2-13b-hf --expert meta-llama/Llama-2-7b-chat-hf --anti meta-llama/Llama-2-7b-hf \\
      --output runs/lm-eval-13b"""
MEASURES = HarnessMeasures()
_MAX_GEN_TOKS = 256  # the harness's


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the task's own options."""
    command.add_argument("--tasks", type=names, metavar="NAMES", help="the harness's names, with commas")
    command.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="files in place of the hub: arc/, hellaswag/, gsm8k/, mmlu/dev and test/, truthfulqa/; also gzipped",
    )
    command.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question (the task's own)")
    command.add_argument(
        "--response-cache", metavar="FOLDER", help="keep answers for other runs with the same models and formats"
    )


def prepare(args: argparse.Namespace) -> Job:
    """Return the work, with every request built.

    Raises:
        OptionError: No task was named.
        InputError: A task is unknown, or its data cannot be had.
        DependencyError: lm-eval is not installed.
    """
    if not args.tasks:
        raise OptionError("--tasks is missing: name some, as in --tasks arc_challenge,hellaswag,mmlu.")
    selections = select(args.tasks)
    for selection in selections:
        figures(selection.leaves[0])
    documents = load_documents(selections, data_dir=_data_dir(args), num_fewshot=args.num_fewshot, limit=args.limit)
    cache = Path(args.response_cache).expanduser() if args.response_cache else None
    parts = [
        HarnessPart(
            name=selection.name,
            documents=[document for leaf in selection.leaves for document in documents[leaf]],
            cache=cache,
        )
        for selection in selections
    ]
    return Job(
        parts=parts,
        settings={
            "lm_eval": metadata.version("lm_eval"),
            "num_fewshot": args.num_fewshot,
            "tasks": {part.name: _described(part) for part in parts},
        },
    )


def _data_dir(args: argparse.Namespace) -> Path | None:
    if not args.data_dir:
        return None
    folder = Path(args.data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(f"{args.data_dir!r} is no folder: name the one that holds arc/, mmlu/ and the others.")
    return folder


def _described(part: HarnessPart) -> dict[str, Any]:
    """Return what config.json says of a part: versions and numbers of examples, and a digest of all that is asked."""
    tasks = {document.task.config.task: document.task for document in part.documents}
    return {
        "requests_sha256": part.digest,
        "tasks": {
            name: {"version": task.VERSION, "num_fewshot": task.config.num_fewshot} for name, task in tasks.items()
        },
    }


@dataclass(frozen=True, kw_only=True)
class HarnessPart:
    """The questions of one task, or of a group that counts them alike.

    Attributes:
        name: As in the harness.
        documents: The questions.
        cache: Folder of the response cache, if any.
    """

    name: str
    documents: Sequence[Document]
    cache: Path | None = None
    formats: Formats = Formats()  # noqa: RUF009 - frozen

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def digest(self) -> str:
        """SHA-256 of all that is asked and wanted: data, examples, prompts, options of generation."""
        digest = hashlib.sha256()
        for document in self.documents:
            asked = [[request.request_type, list(request.args)] for request in document.requests]
            digest.update(json.dumps([asked, str(_target(document))], sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def record(self, recorder: Any) -> None:
        """Give a plan every request: contexts with their continuations, or with the most tokens of an answer."""
        from benchmarks.plan import Asked

        for request in (request for document in self.documents for request in document.requests):
            context, *rest = request.args
            options = rest[0] if rest and isinstance(rest[0], dict) else None
            length = 0 if options is None else int(options.get("max_gen_toks", _MAX_GEN_TOKS))
            answer = rest[0] if rest and options is None else ""
            recorder.asked.append(Asked(prompt=context or answer, answer=answer, max_new_tokens=length))

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Ask these questions, all requests of one kind in one call, and judge the answers."""
        from benchmarks.tasks.lm_eval.model import ProxyTuneLM

        lm = ProxyTuneLM(answerer.generator, alpha=answerer.alpha, batch_size=answerer.batch_size)
        chosen = [self.documents[index] for index in indices]
        asked = [document.fresh(answerer.render) for document in chosen]
        self._answer(lm, [request for requests in asked for request in requests])
        return [
            _row(document, requests, num_truncated=sum(lm.is_truncated(request.args) for request in requests))
            for document, requests in zip(chosen, asked, strict=True)
        ]

    def _answer(self, lm: Any, requests: Sequence[Any]) -> None:
        if self.cache is None:
            _respond(lm, requests)
            return
        from lm_eval.api.model import CachingLM

        from benchmarks.tasks.lm_eval.model import response_cache

        # What it prints is about its own workings.
        with redirect_stderr(io.StringIO()):
            cached = CachingLM(lm, f"{response_cache(self.cache, lm)}.db")
            try:
                _respond(cached, requests)
            finally:
                cached.dbdict.close()


def _respond(lm: Any, requests: Sequence[Any]) -> None:
    kinds: dict[str, list[Any]] = {}
    for request in requests:
        kinds.setdefault(request.request_type, []).extend([request] * request.repeats)
    for kind, asked in kinds.items():
        for request, response in zip(asked, getattr(lm, kind)(asked), strict=True):
            request.resps.append(response)


def _row(document: Document, requests: Sequence[Any], *, num_truncated: int) -> dict[str, Any]:
    task, doc = document.task, requests[0].doc
    metrics: dict[str, float | None] = {}
    for ensemble in task._filters:  # apply_filters would take all of the task's requests
        ensemble.apply(list(requests))
        given = task.process_results(doc, [request.filtered_resps[ensemble.name] for request in requests])
        metrics |= {f"{metric},{ensemble.name}": _number(value) for metric, value in given.items()}
    return {
        "task": task.config.task,
        "doc_id": document.number,
        "doc": _plain(doc),
        "prompt_sha256": hashlib.sha256(str(document.requests[0].args[0]).encode()).hexdigest(),
        "target": _plain(_target(document)),
        "responses": [_plain(request.resps) for request in requests],
        "num_truncated": num_truncated,
        "metrics": metrics,
    }


def _target(document: Document) -> Any:
    return document.task.doc_to_target(document.requests[0].doc)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; an infinite log-probability is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int) else str(value)
