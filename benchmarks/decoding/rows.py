"""One measured row, its JSON form, and the tables made of rows."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.decoding.naive import Statistics
from benchmarks.tables import aligned
from proxytune import ProxyTuneError


class RowsError(ProxyTuneError, ValueError):
    """A file of rows that cannot be read or written."""


@dataclass(frozen=True, kw_only=True)
class Row(Statistics):
    """One variant under one workload: medians over rounds in which all variants took turns.

    Attributes:
        batch: Rows at once.
        requests: Rows in all; None where that is the batch.
        prompt_tokens: Per row, the mean; `new_tokens` likewise, 0 for fine-tuning.
        tokens_per_s: New tokens of all rows by the whole time, prompts included; fine-tuning counts its own.
        ratio_to_base: Time per token by that of `base_variant` in the same round.
        floor_ratio: The same ratio by bytes of weights; None where they are elsewhere or nothing is decoded.
        percent_of_floor: The floor's share of `decode_ratio_to_base`, or of `ratio_to_base` where that is not known.
        speed_up_over_naive: The naive loop's time by this one's; `speed_up_over_plain` likewise.
        decode_tokens_per_s: Without prompt and first token; None where they cannot be told apart.
        read_gb_per_s: Weights read per second while decoding, by the floor's count; `device_gb_per_s` is measured.
        weight_bytes: Of one step, of the models that this variant reads.
        kv_bytes_per_token: Bytes that a token of a row leaves in the caches of those models.
        peak_bytes: Rise of memory during a run; None where the system does not tell.
        equal_rows: Rows equal to the naive loop's, as `equal/all`; rows that differ are ties.
        load: Mean number of running processes in the last minute.
    """

    benchmark: str
    models: str
    variant: str
    batch: int
    prompt_tokens: float
    new_tokens: float
    tokens_per_s: float
    ratio_to_base: float | None
    floor_ratio: float | None
    percent_of_floor: float | None
    base_variant: str | None = None
    speed_up_over_naive: float | None = None
    speed_up_over_plain: float | None = None
    requests: int | None = None
    decode_tokens_per_s: float | None = None
    decode_ratio_to_base: float | None = None
    seconds: float = 0.0
    seconds_of_rounds: list[float] = field(default_factory=list)
    read_gb_per_s: float | None = None
    device_gb_per_s: float | None = None
    weight_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    peak_bytes: int | None = None
    equal_rows: str = ""
    is_quick: bool = False
    dtype: str = ""
    hardware: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    load: float | None = None


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a JSON array, one row per line, figures to six digits.

    Raises:
        RowsError: The file cannot be written.
    """
    lines = ",\n".join(json.dumps(_rounded(asdict(row)), ensure_ascii=False) for row in rows)
    try:
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    except OSError as error:
        raise RowsError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file that `write_rows` wrote.

    Raises:
        RowsError: It is not there, or holds something else.
    """
    try:
        return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise RowsError(f"{str(path)!r} holds no rows of this benchmark ({error}): pass what --json wrote.") from error


def table(rows: Sequence[Row], *, is_markdown: bool = False) -> str:
    """Return the rows as a table, grouped by models and workload, with hardware and versions below."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = (row.models, row.dtype, row.prompt_tokens, row.new_tokens, row.batch, row.requests, row.hardware)
        groups.setdefault(key, []).append(row)
    parts = []
    for group in groups.values():
        title = f"{group[0].models}; {group[0].dtype}; {_workload(group[0])}"
        # Columns that say nothing of any row of the group are left out.
        columns = [name for name in _CELLS if any(_CELLS[name](row) for row in group)]
        cells = [columns, *([_CELLS[name](row) or "–" for name in columns] for row in group)]
        parts.append(f"{title}\n\n{_markdown(cells)}" if is_markdown else f"{title}\n{aligned(cells)}".rstrip())
    loads = [row.load for row in rows if row.load is not None]
    busy = f"Load while measuring: {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    return "\n\n".join([*parts, *dict.fromkeys(map(_origin, rows)), *filter(None, [busy])]) + "\n"


def _number(name: str, digits: int, scale: float = 1.0) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = getattr(row, name)
        return "" if value is None else f"{value * scale:.{digits}f}"

    return text


_CELLS: dict[str, Callable[[Row], str]] = {
    "variant": lambda row: row.variant,
    "tokens/s": _number("tokens_per_s", 1),
    "× base": _number("ratio_to_base", 2),
    "decode tokens/s": _number("decode_tokens_per_s", 1),
    "decode × base": _number("decode_ratio_to_base", 2),
    "floor": _number("floor_ratio", 2),
    "% of floor": _number("percent_of_floor", 0),
    "× naive": _number("speed_up_over_naive", 2),
    "× plain": _number("speed_up_over_plain", 2),
    "acceptance": _number("acceptance", 2),
    "tokens/cycle": _number("tokens_per_cycle", 2),
    "requests/token": _number("requests_per_token", 3),
    "seen mass": _number("mean_mass", 4),
    "least": _number("least_mass", 4),
    "GB/s": _number("read_gb_per_s", 1),
    "peak MiB": _number("peak_bytes", 0, 2**-20),
    "equal rows": lambda row: row.equal_rows,
}


def _workload(row: Row) -> str:
    if not row.new_tokens:
        return f"{row.requests} documents of {row.prompt_tokens:.4g} tokens in the mean, {row.batch} at once"
    lengths = f"{row.prompt_tokens:.4g} + {row.new_tokens:.4g} tokens"
    if row.requests is None:
        return f"{lengths}, batch {row.batch}"
    return f"{row.requests} rows of {lengths}, {row.batch} at once"


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], f"|{' --- |' * len(cells[0])}", *lines[1:]])


def _origin(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    rounds = f"medians of {len(row.seconds_of_rounds)} rounds in turns"
    measured = "" if row.device_gb_per_s is None else f", reads {row.device_gb_per_s:.1f} GB/s"
    return f"{row.hardware}{measured}; {versions}; {rounds}; {row.date}."


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
