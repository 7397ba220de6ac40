"""One measured row, its JSON form, and the tables made of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from proxytune import ProxyTuneError


class RowsError(ProxyTuneError, ValueError):
    """A file of rows that cannot be read or written."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant under one workload: medians over rounds in which all variants took turns.

    Attributes:
        benchmark: speed or throughput.
        models: What was run, in words.
        variant: Which way of decoding.
        batch: Rows at once (for a ragged workload, the most at once; the naive loop says its batch in the variant).
        speed_up_over_plain: Likewise, our own decoding without drafts.
        requests: How many requests a ragged workload has; None where all rows are equal and decoded at once.
        prompt_tokens: Per row; the mean for a ragged workload.
        new_tokens: Likewise.
        tokens_per_s: New tokens of all rows by the whole time, prompts included.
        ratio_to_base: Time per token by that of the base alone, in the same round: the median over rounds.
        base_variant: Which variant that base is.
        speed_up_over_naive: Likewise, the naive loop's time by this one's; None where it was not run.
        floor_ratio: What that ratio is by bytes of weights; None where nothing is known.
        percent_of_floor: The floor's share of the ratio while decoding (or of `ratio_to_base` where prompts cannot be
            told apart).
        decode_tokens_per_s: Without the first token and the prompt; None where they cannot be told apart.
        decode_ratio_to_base: Likewise.
        acceptance: The share of drafts that stood; None without drafts.
        acceptance_by_place: That at each place of a draft.
        num_drafted: Drafts per cycle, in the mean.
        tokens_per_cycle: In the mean.
        seconds: Of the whole run, the median.
        seconds_of_rounds: Each round's.
        read_gb_per_s: Weights read per second while decoding, by the floor's count.
        device_gb_per_s: What the device can read, measured beside.
        weight_bytes: A step's, of the roles that this variant has in memory.
        kv_bytes_per_token: What a token of a row leaves in the caches of those roles.
        peak_bytes: Rise of memory during a run; None where the system does not tell.
        equal_rows: Rows equal to the naive loop's, as `equal/all`; what differs is tied.
        is_quick: Taken with --quick.
        dtype: Of the weights.
        hardware: The device.
        versions: Of what decides a speed.
        date: In UTC.
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
    acceptance: float | None = None
    acceptance_by_place: list[float] = field(default_factory=list)
    num_drafted: float | None = None
    tokens_per_cycle: float | None = None
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
    parts = []
    for group in _groups(rows):
        head = group[0]
        title = f"{head.models}; {head.dtype}; {_workload(head)}"
        cells = [_HEADINGS, *([cell(row) for cell in _CELLS] for row in group)]
        parts.append(f"{title}\n\n{_markdown(cells)}" if is_markdown else f"{title}\n{_aligned(cells)}")
    origins = dict.fromkeys(_origin(row) for row in rows)
    loads = [row.load for row in rows if row.load is not None]
    busy = f"Load while measuring: {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    return "\n\n".join([*parts, *origins, *filter(None, [busy])]) + "\n"


_HEADINGS = [
    "variant",
    "tokens/s",
    "× base",
    "decode tokens/s",
    "decode × base",
    "floor",
    "% of floor",
    "× naive",
    "× plain",
    "acceptance",
    "tokens/cycle",
    "GB/s",
    "peak MiB",
    "equal rows",
]
_CELLS: list[Callable[[Row], str]] = [
    lambda row: row.variant,
    lambda row: _number(row.tokens_per_s, 1),
    lambda row: _number(row.ratio_to_base, 2),
    lambda row: _number(row.decode_tokens_per_s, 1),
    lambda row: _number(row.decode_ratio_to_base, 2),
    lambda row: _number(row.floor_ratio, 2),
    lambda row: _number(row.percent_of_floor, 0),
    lambda row: _number(row.speed_up_over_naive, 2),
    lambda row: _number(row.speed_up_over_plain, 2),
    lambda row: _number(row.acceptance, 2),
    lambda row: _number(row.tokens_per_cycle, 2),
    lambda row: _number(row.read_gb_per_s, 1),
    lambda row: _number(None if row.peak_bytes is None else row.peak_bytes / 2**20, 0),
    lambda row: row.equal_rows,
]


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        key = (row.models, row.dtype, row.prompt_tokens, row.new_tokens, row.batch, row.requests, row.hardware)
        found.setdefault(key, []).append(row)
    return list(found.values())


def _workload(row: Row) -> str:
    if row.requests is None:
        return f"{row.prompt_tokens:g} + {row.new_tokens:g} tokens, batch {row.batch}"
    mean = f"{row.prompt_tokens:.0f} + {row.new_tokens:.0f} tokens in the mean"
    return f"{row.requests} ragged requests, {mean}, {row.batch} at once"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], f"|{' --- |' * len(cells[0])}", *lines[1:]])


def _origin(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    rounds = f"medians of {len(row.seconds_of_rounds)} rounds in turns"
    measured = "" if row.device_gb_per_s is None else f", reads {row.device_gb_per_s:.1f} GB/s"
    return f"{row.hardware}{measured}; {versions}; {rounds}; {row.date}."


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.6g}")
        return [short(one) for one in value] if isinstance(value, list) else value

    return {name: short(value) for name, value in row.items()}
