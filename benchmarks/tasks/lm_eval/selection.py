"""Names of the harness's tasks: what each stands for, and which figures it has, read from the harness's definitions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.runs.measures import Measure, Row
from proxytune.errors import DependencyError, InputError

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
        is_share: Whether it is 0 or 1.
        is_better_higher: Which way is better.
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
    wanted = list(names)
    index = known(is_whole=False)
    if any(name not in index for name in wanted):
        index = known(is_whole=True)
    unknown = next((name for name in wanted if name not in index), None)
    if unknown is not None:
        raise InputError(f"lm-evaluation-harness has no task {unknown!r}: `lm-eval ls tasks` shows those it has.")
    return index


def select(names: Sequence[str]) -> list[Selection]:
    """Return what to run for these names: groups that count questions alike as one, other groups and tags task by task.

    Raises:
        InputError: As in `index_for`.
    """
    index = index_for(names)
    found: dict[str, Selection] = {}
    for name in names:
        leaves = _leaves(name, index)
        is_one = leaves == [name] or _counts_alike(index[name])
        for part in [name] if is_one else leaves:
            found[part] = Selection(name=part, leaves=tuple(_leaves(part, index)))
    return list(found.values())


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
    found = [
        Figure(
            key=f"{metric['metric']},{name}",
            is_share=is_plain and metric["metric"] in _SHARES,
            is_better_higher=bool(metric.get("higher_is_better", True)),
        )
        for name in filters
        for metric in settings.get("metric_list") or _default_metrics(settings)
        if is_mean(metric)
    ]
    if not found:
        raise InputError(
            f"{leaf!r} has no figure that is a mean over questions, which is what `bench` compares: run it by "
            "`python -m benchmarks.tasks.lm_eval.harness`, with the harness's own tables."
        )
    return found


def is_mean(metric: Mapping[str, Any]) -> bool:
    """Return whether an entry of a task's `metric_list` is the mean over questions; unsaid, the harness's default."""
    from lm_eval.api.registry import get_metric_aggregation

    said = metric.get("aggregation")
    if said is None:
        said = getattr(get_metric_aggregation(metric["metric"]), "__name__", None)
    return bool(said == "mean")


def _value(row: Row, key: str) -> float | None:
    found: float | None = row["metrics"].get(key)
    return found


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
        raise InputError(
            f"{name!r} is defined by a Python class: run it by `python -m benchmarks.tasks.lm_eval.harness`."
        )
    return [name]


def _counts_alike(entry: Any) -> bool:
    """Return whether a group's figure is the mean over all its questions."""
    aggregated = (entry.cfg or {}).get("aggregate_metric_list") or []
    return bool(aggregated) and all(
        metric.get("weight_by_size", True) and metric.get("aggregation", "mean") == "mean" for metric in aggregated
    )
