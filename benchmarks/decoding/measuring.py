"""One workload: every variant's tokens are checked, then all take turns, and each becomes a row."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from benchmarks.decoding import machine
from benchmarks.decoding.equality import check_tokens
from benchmarks.decoding.naive import Decoded, Statistics, naive_batches
from benchmarks.decoding.rows import Row
from benchmarks.decoding.trios import Trio
from benchmarks.decoding.variants import NAIVE, PLAIN, Variant
from benchmarks.decoding.workloads import Requests

T = TypeVar("T")

_MAX_CHECKED = 32


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Fields that all rows of a run share; `naive` and `plain` name the variants that columns compare with."""

    benchmark: str
    models: str
    dtype: str
    device: torch.device
    device_gb_per_s: float | None
    is_quick: bool
    naive: str = NAIVE
    plain: str = PLAIN


def measure(
    trio: Trio | None, variants: Sequence[Variant], requests: Requests, setting: Setting, *, rounds: int
) -> list[Row]:
    """Check every variant's tokens, time all in turns, and return a row for each; ragged rows leave some out.

    Raises:
        TokensDifferError: A variant decodes other tokens than the naive loop, or than its like.
    """
    taking = [variant for variant in variants if variant.takes_ragged or trio is None or not requests.is_ragged]
    checked = _checked(trio, taking, requests, setting.device)
    timed = in_turns({variant.name: partial(variant.run, requests) for variant in taking}, rounds)
    rows = []
    for variant in taking:
        stats = Statistics() if variant.inspect is None else variant.inspect(requests)
        equal_rows, peak_bytes = checked[variant.name]
        rows.append(new_row(trio, variant, requests, setting, timed, stats, equal_rows, peak_bytes))
    return rows


def in_turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return the results of each run in each round; every second round goes backwards, so that no run is always last.

    >>> order = []
    >>> _ = in_turns({name: (lambda name=name: order.append(name)) for name in "ab"}, 2)
    >>> "".join(order)
    'abba'
    """
    results: dict[str, list[T]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            results[name].append(runs[name]())
    return results


def median_ratio(values: Sequence[float], references: Sequence[float]) -> float:
    """Return the median over rounds of a value by the reference of the same round.

    >>> median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    3.0
    """
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))


def new_row(
    trio: Trio | None,
    variant: Variant,
    requests: Requests,
    setting: Setting,
    timed: Mapping[str, Sequence[Decoded]],
    stats: Statistics | None = None,
    equal_rows: str = "",
    peak_bytes: int | None = None,
) -> Row:
    """Return the row of a variant from the times of all variants in every round: medians, and ratios within a round."""
    stats = stats or Statistics()
    rounds, base = timed[variant.name], timed.get(variant.reference)
    seconds, decode = [one.seconds for one in rounds], _decode_seconds(rounds)
    base_decode = None if base is None else _decode_seconds(base)
    ratio = None if base is None else median_ratio(seconds, [one.seconds for one in base])
    decode_ratio = None if decode is None or base_decode is None else median_ratio(decode, base_decode)
    compared = ratio if decode_ratio is None else decode_ratio
    num_bytes = None if trio is None else trio.bytes_per_token(variant.reads, stats)
    floor = None if num_bytes is None or trio is None else num_bytes / trio.num_bytes.base
    new_tokens = statistics.mean(requests.counts)
    # Per row: tokens after the first.
    steps_per_s = None if decode is None else (new_tokens - 1) / statistics.median(decode)
    num_tokens = sum(requests.counts) or sum(map(len, requests.prompts))
    return Row(
        **vars(stats),
        benchmark=setting.benchmark,
        models=setting.models,
        variant=variant.name,
        batch=requests.batch,
        prompt_tokens=statistics.mean(map(len, requests.prompts)),
        new_tokens=new_tokens,
        tokens_per_s=num_tokens / statistics.median(seconds),
        ratio_to_base=ratio,
        floor_ratio=floor,
        percent_of_floor=None if compared is None or floor is None else 100 * floor / compared,
        base_variant=None if base is None else variant.reference,
        speed_up_over_naive=_speed_up(timed.get(setting.naive), seconds),
        speed_up_over_plain=_speed_up(timed.get(setting.plain), seconds),
        requests=None if len(requests.prompts) == requests.batch else len(requests.prompts),
        decode_tokens_per_s=None if steps_per_s is None else steps_per_s * requests.batch,
        decode_ratio_to_base=decode_ratio,
        seconds=statistics.median(seconds),
        seconds_of_rounds=seconds,
        read_gb_per_s=None if steps_per_s is None or num_bytes is None else steps_per_s * num_bytes / 1e9,
        device_gb_per_s=setting.device_gb_per_s,
        weight_bytes=None if trio is None else trio.step_bytes(variant.reads),
        kv_bytes_per_token=None if trio is None else trio.kv_bytes(variant.reads),
        peak_bytes=peak_bytes,
        equal_rows=equal_rows,
        is_quick=setting.is_quick,
        dtype=setting.dtype,
        hardware=machine.hardware(setting.device),
        versions=machine.versions(),
        date=machine.today(),
        load=machine.load(),
    )


def _checked(
    trio: Trio | None, variants: Sequence[Variant], requests: Requests, device: torch.device
) -> dict[str, tuple[str, int | None]]:
    """Run every variant once, untimed; return how its first rows compare and how far memory rose."""
    shown = requests.first(_MAX_CHECKED)
    references: dict[str, list[list[int]]] = {}
    checked: dict[str, tuple[str, int | None]] = {}
    for variant in variants:
        done, peak_bytes = machine.with_peak(partial(variant.run, requests), device)
        rows = done.token_ids[:_MAX_CHECKED]
        if trio is None or not rows:  # nothing was decoded: fine-tuning
            checked[variant.name] = "", peak_bytes
            continue
        has_models = variant.tokens_of in ("base", "trio")
        models = () if not has_models else trio.models[:1] if variant.tokens_of == "base" else trio.models
        if variant.tokens_of not in references:
            pad = trio.tokenizer.pad_token_id or 0
            naive = naive_batches(models, shown, pad_token_id=pad).token_ids if models else rows
            references[variant.tokens_of] = naive
        agreement = check_tokens(
            variant.name, rows, references[variant.tokens_of], models=models, prompts=shown.prompts
        )
        checked[variant.name] = f"{agreement.num_equal}/{agreement.num_rows}", peak_bytes
    return checked


def _speed_up(others: Sequence[Decoded] | None, seconds: Sequence[float]) -> float | None:
    """Return the median over rounds of the others' time by these; None where there are no others."""
    return None if others is None else median_ratio([one.seconds for one in others], seconds)


def _decode_seconds(rounds: Sequence[Decoded]) -> list[float] | None:
    """Return the seconds after the first token in each round; None where it is not told or there is nothing more."""
    seconds = [one.seconds - one.first_token_seconds for one in rounds if one.first_token_seconds is not None]
    return seconds if len(seconds) == len(rounds) and min(seconds, default=0.0) > 0 else None
