"""The harness's tasks by name: figures from their definitions, and their questions with requests, in its own order.

Examples are drawn one question after the other, so a part of the questions built alone would get other examples.
"""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures import Measure, Row
from benchmarks.tasks.lm_eval.data import write_task
from proxytune.errors import DependencyError, InputError, OptionError

# Reading the definitions of these alone takes a fraction of the seconds that all of them take.
FOLDERS = ("arc", "hellaswag", "gsm8k", "truthfulqa", "mmlu/default")
_SHARES = ("acc", "acc_norm", "acc_bytes", "exact_match")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """One line of the table: a task, or a group of which the harness says to count every question alike.

    Attributes:
        name: As asked for.
        leaves: The tasks it consists of.
    """

    name: str
    leaves: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number the harness gives each answer of a task, and takes the mean of.

    Attributes:
        key: `metric,filter`, as in the harness's results.
        is_share: True if it is 0 or 1.
        is_better_higher: True if higher is better.
    """

    key: str
    is_share: bool
    is_better_higher: bool

    @property
    def measure(self) -> Measure:
        """The figure in our tables."""
        metric, _, filter_name = self.key.partition(",")
        return Measure(
            name=metric if filter_name == "none" else f"{metric} ({filter_name})",
            value=partial(_value, key=self.key),
            is_share=self.is_share,
            is_better_higher=self.is_better_higher,
            chance=_guess if metric in ("acc", "acc_norm", "acc_bytes") and self.is_share else None,
        )


class HarnessMeasures(Mapping[str, Sequence[Measure]]):
    """The measures of every task the harness knows, looked up when they are asked for."""

    def __getitem__(self, name: str) -> Sequence[Measure]:
        [first, *_] = select([name])[0].leaves
        return [figure.measure for figure in figures(first)]

    def __iter__(self) -> Iterator[str]:
        return iter(known(is_whole=False))

    def __len__(self) -> int:
        return len(known(is_whole=False))


@cache
def known(*, is_whole: bool) -> dict[str, Any]:
    """Return the harness's index of names: those in `FOLDERS`, or all of them.

    Raises:
        DependencyError: lm-eval is not installed.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DependencyError(f"lm-eval cannot be imported ({error}): pip install 'proxytune[bench]'.") from error
    root = Path(lm_eval.__file__).parent / "tasks"
    folders = [str(root)] if is_whole else [str(root / folder) for folder in FOLDERS]
    return dict(TaskManager(include_path=folders, include_defaults=False).task_index)


def index_for(names: Iterable[str]) -> dict[str, Any]:
    """Return an index that has all these names.

    Raises:
        InputError: The harness does not know one of them.
    """
    requested = list(names)
    index = known(is_whole=False)
    if any(name not in index for name in requested):
        index = known(is_whole=True)
    unknown = next((name for name in requested if name not in index), None)
    if unknown is not None:
        raise InputError(f"lm-evaluation-harness has no task {unknown!r}: `lm-eval ls tasks` shows those it has.")
    return index


def select(names: Sequence[str]) -> list[Selection]:
    """Return what to run for these names: groups that count questions alike as one, other groups and tags task by task.

    Raises:
        InputError: As in `index_for`.
    """
    index = index_for(names)
    selections: dict[str, Selection] = {}
    for name in names:
        leaves = _leaves(name, index)
        is_one = leaves == [name] or _counts_alike(index[name])
        for part in [name] if is_one else leaves:
            selections[part] = Selection(name=part, leaves=tuple(_leaves(part, index)))
    return list(selections.values())


def settings_of(leaf: str) -> dict[str, Any]:
    """Return a task's definition, what it includes as well; its functions are names."""
    return dict(index_for([leaf])[leaf].cfg)


def figures(leaf: str) -> list[Figure]:
    """Return the figures of one task that are means over its questions.

    Raises:
        InputError: It has none (perplexities, corpus scores).
    """
    settings = settings_of(leaf)
    filters = [entry["name"] for entry in settings.get("filter_list") or [{"name": "none"}]]
    # A function of the task's own may give parts of a point.
    is_plain = settings.get("process_results") is None
    leaf_figures = [
        Figure(
            key=f"{metric['metric']},{name}",
            is_share=is_plain and metric["metric"] in _SHARES,
            is_better_higher=bool(metric.get("higher_is_better", True)),
        )
        for name in filters
        for metric in settings.get("metric_list") or _default_metrics(settings)
        if is_mean(metric)
    ]
    if not leaf_figures:
        raise InputError(
            f"{leaf!r} has no figure that is a mean over questions, which is what `bench` compares: run it by "
            "`python -m benchmarks.tasks.lm_eval`, with the harness's own tables."
        )
    return leaf_figures


def is_mean(metric: Mapping[str, Any]) -> bool:
    """Return whether an entry of a task's `metric_list` is the mean over questions; unsaid, the harness's default."""
    from lm_eval.api.registry import get_metric_aggregation

    said = metric.get("aggregation")
    if said is None:
        said = getattr(get_metric_aggregation(metric["metric"]), "__name__", None)
    return bool(said == "mean")


def _value(row: Row, key: str) -> float | None:
    value: float | None = row["metrics"].get(key)
    return value


def _guess(row: Row) -> float | None:
    """Return what guessing among the choices gives; None for one request."""
    return 1 / len(row["responses"]) if len(row["responses"]) > 1 else None


def _default_metrics(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    return [{"metric": name} for name in DEFAULT_METRIC_REGISTRY[settings["output_type"]] if name in _SHARES]


def _leaves(name: str, index: Mapping[str, Any]) -> list[str]:
    """Return the tasks that a name stands for, in the harness's order."""
    if name not in index:
        raise InputError(f"a group of lm-evaluation-harness names {name!r}, which it does not have.")
    entry = index[name]
    if entry.kind.name == "TAG":
        return [leaf for child in sorted(entry.tags) for leaf in _leaves(child, index)]
    if entry.kind.name == "GROUP":
        children = entry.cfg["task"]
        if not all(isinstance(child, str) for child in children):
            raise InputError(f"{name!r} changes the tasks in it: name those tasks one by one.")
        return [leaf for child in children for leaf in _leaves(child, index)]
    if entry.kind.name != "TASK":
        raise InputError(f"{name!r} is defined by a Python class: run it by `python -m benchmarks.tasks.lm_eval`.")
    return [name]


def _counts_alike(entry: Any) -> bool:
    """Return whether a group's figure is the mean over all its questions."""
    aggregated = (entry.cfg or {}).get("aggregate_metric_list") or []
    return bool(aggregated) and all(
        metric.get("weight_by_size", True) and metric.get("aggregation", "mean") == "mean" for metric in aggregated
    )


@dataclass(frozen=True, kw_only=True)
class Document:
    """One question.

    Attributes:
        task: The harness's task.
        number: Its place in the task's data.
        requests: Requests to a model, as the harness has them, without answers.
    """

    task: Any
    number: int
    requests: tuple[Any, ...]

    def fresh(self, render: Callable[[str], str]) -> list[Any]:
        """Return the requests, to be answered, with contexts rendered."""
        return [
            replace(request, arguments=_rendered(request, render), resps=[], filtered_resps={})
            for request in self.requests
        ]


def load_documents(
    selections: Sequence[Selection], *, data_dir: Path | None, num_fewshot: int | None, limit: int | None
) -> dict[str, list[Document]]:
    """Return the questions of every task in the selections, by its name.

    Args:
        selections: Requested tasks.
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


def _tasks(leaves: Sequence[str], local_folder: Path | None) -> Mapping[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.__file__).parent / "tasks"
    is_common = local_folder is None and all(_is_under(leaf, root) for leaf in leaves)
    folders = [local_folder] if local_folder else [root / folder for folder in FOLDERS] if is_common else [root]
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


def _num_fewshot(fixed: int | None, asked: int | None) -> int:
    """Return how many examples stand in front of a question; a task that fixes none keeps that, as in the harness."""
    return (fixed or 0) if asked is None or fixed == 0 else asked


def _rendered(request: Any, render: Callable[[str], str]) -> tuple[Any, ...]:
    """Return a request's arguments; a text without a prompt stays as it is."""
    context, *rest = request.args
    has_context = bool(context) and request.request_type != "loglikelihood_rolling"
    return (render(context) if has_context else context, *rest)


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
