"""From names to the harness's questions with their requests, built once and in its own order.

Examples in front of questions are drawn one question after the other, so a part of the questions built alone would get
other examples than in a run of all.
"""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks.lm_eval.local_data import write_task
from benchmarks.tasks.lm_eval.selection import FOLDERS, Selection, index_for, settings_of
from proxytune.errors import InputError, OptionError


@dataclass(frozen=True, kw_only=True)
class Document:
    """One question.

    Attributes:
        task: The harness's task.
        number: Its place in the task's data.
        requests: What is asked of a model, as the harness has it, without answers.
    """

    task: Any
    number: int
    requests: tuple[Any, ...]

    def fresh(self) -> list[Any]:
        """Return the requests, to be answered."""
        return [replace(request, resps=[], filtered_resps={}) for request in self.requests]


def load_documents(
    selections: Sequence[Selection], *, data_dir: Path | None, num_fewshot: int | None, limit: int | None
) -> dict[str, list[Document]]:
    """Return the questions of every task in the selections, by its name.

    Args:
        selections: What was asked for.
        data_dir: The user's files; None for the hub's.
        num_fewshot: Examples in front of each question, where a task does not fix that there are none; None for the
            task's own number.
        limit: At most so many questions of each task.

    Raises:
        InputError: The data cannot be had.
        OptionError: A number below its least, or a task that runs code of models or needs pictures or sound.
    """
    if num_fewshot is not None and num_fewshot < 0:
        raise OptionError(f"num_fewshot is {num_fewshot}: it must be a whole number of at least 0.")
    if limit is not None and limit < 1:
        raise OptionError(f"limit is {limit}: it must be a whole number of at least 1.")
    leaves = list(dict.fromkeys(leaf for selection in selections for leaf in selection.leaves))
    with tempfile.TemporaryDirectory(prefix="proxytune-lm-eval-") as scratch, _the_harness_way():
        for leaf in leaves if data_dir else ():
            definition, settings = index_for([leaf])[leaf].yaml_path, settings_of(leaf)
            shots = _num_fewshot(settings.get("num_fewshot"), num_fewshot)
            write_task(leaf, definition, settings, Path(str(data_dir)), Path(scratch), num_fewshot=shots)
        tasks = _tasks(leaves, Path(scratch) if data_dir else None)
        return {leaf: _documents(tasks[leaf], num_fewshot, limit) for leaf in leaves}


def _tasks(leaves: Sequence[str], own: Path | None) -> Mapping[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.__file__).parent / "tasks"
    is_common = own is None and all(_is_under(leaf, root) for leaf in leaves)
    folders = [own] if own else [root / folder for folder in FOLDERS] if is_common else [root]
    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    try:
        tasks: Mapping[str, Any] = manager.load(list(leaves))["tasks"]
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the harness cannot load {', '.join(leaves)}: {reason[:300]}. Without a network, name local files with "
            "--data-dir."
        ) from error
    return tasks


def _is_under(leaf: str, root: Path) -> bool:
    path = Path(index_for([leaf])[leaf].yaml_path)
    return any(path.is_relative_to(root / folder) for folder in FOLDERS)


def _documents(task: Any, num_fewshot: int | None, limit: int | None) -> list[Document]:
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    name = task.config.task
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise OptionError(f"{name!r} runs what a model wrote, or needs pictures or sound: `bench` does neither.")
    task.set_config(key="num_fewshot", value=_num_fewshot(task.config.num_fewshot, num_fewshot))
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    grouped: dict[int, list[Any]] = {}
    for request in task.instances:
        grouped.setdefault(request.doc_id, []).append(request)
    return [
        Document(task=task, number=number, requests=tuple(sorted(requests, key=lambda request: request.idx)))
        for number, requests in grouped.items()
    ]


def _num_fewshot(own: int | None, asked: int | None) -> int:
    """Return how many examples stand in front of a question; a task that fixes none keeps that, as in the harness."""
    return (own or 0) if asked is None or own == 0 else asked


@contextmanager
def _the_harness_way() -> Iterator[None]:
    """Have the harness's seeds while its tasks are made, and none of its bars."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    states = random.getstate(), np.random.get_state()
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
