"""Questions of the harness in runs of ours: asked through its model interface, judged by its own task objects."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.tasks.lm_eval.loading import Document


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

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Ask these questions, all requests of one kind in one call, and judge the answers."""
        from benchmarks.tasks.lm_eval.model import ProxyTuneLM

        lm = ProxyTuneLM(
            answerer.generator,
            alpha=answerer.alpha,
            batch_size=answerer.batch_size,
            render=answerer.render,
            has_progress=False,
        )
        chosen = [self.documents[index] for index in indices]
        asked = [document.fresh() for document in chosen]
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

        from benchmarks.tasks.lm_eval.response_cache import response_cache

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
    found: dict[str, float | None] = {}
    for ensemble in task._filters:  # apply_filters would take all of the task's requests
        ensemble.apply(list(requests))
        given = task.process_results(doc, [request.filtered_resps[ensemble.name] for request in requests])
        found |= {f"{metric},{ensemble.name}": _number(value) for metric, value in given.items()}
    return {
        "task": task.config.task,
        "doc_id": document.number,
        "doc": _plain(doc),
        "prompt_sha256": hashlib.sha256(str(requests[0].args[0]).encode()).hexdigest(),
        "target": _plain(_target(document)),
        "responses": [_plain(request.resps) for request in requests],
        "num_truncated": num_truncated,
        "metrics": found,
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
