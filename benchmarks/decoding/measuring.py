"""From the rounds of a variant to its row: medians, ratios within a round, and the floor."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.decoding import machine
from benchmarks.decoding.interleave import median_ratio
from benchmarks.decoding.naive import Decoded, Drafting
from benchmarks.decoding.rows import Row


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows of one run of a benchmark share."""

    benchmark: str
    models: str
    dtype: torch.dtype
    device: torch.device
    device_gb_per_s: float
    is_quick: bool


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One variant under one workload.

    Attributes:
        variant: Its name.
        base_variant: The base alone that it is compared with.
        batch: Rows at once.
        prompt_tokens: Per row, in the mean.
        new_tokens: Likewise.
        num_tokens: New tokens of all rows together.
        bytes_per_token: What it has to read of weights per token and row.
        base_bytes: What the base alone has to.
        weight_bytes: Of a step, of all its roles.
        kv_bytes_per_token: What a token of a row leaves in their caches.
        equal_rows: How its tokens compare.
        peak_bytes: Rise of memory.
        requests: Of a ragged workload.
        drafting: How drafts fared; None without them.
    """

    variant: str
    base_variant: str
    batch: int
    prompt_tokens: float
    new_tokens: float
    num_tokens: int
    bytes_per_token: float
    base_bytes: int
    weight_bytes: int
    kv_bytes_per_token: int
    equal_rows: str
    peak_bytes: int | None = None
    requests: int | None = None
    drafting: Drafting | None = None


def new_row(
    setting: Setting,
    measured: Measured,
    timed: Mapping[str, Sequence[Decoded]],
    *,
    naive: str,
    plain: str | None = None,
) -> Row:
    """Return the row of a variant from what all variants took in every round.

    `naive` names the naive loop among them, and `plain` our own decoding without drafts.
    """
    own = timed[measured.variant]
    whole = [one.seconds for one in own]
    decode = _decode_seconds(own)
    base = timed.get(measured.base_variant)
    ratio = None if base is None else median_ratio(whole, [one.seconds for one in base])
    base_decode = None if base is None else _decode_seconds(base)
    decode_ratio = None if decode is None or base_decode is None else median_ratio(decode, base_decode)
    floor = measured.bytes_per_token / measured.base_bytes
    compared = ratio if decode_ratio is None else decode_ratio
    # Per row: what is decoded after its first token.
    steps_per_s = None if decode is None else (measured.new_tokens - 1) / statistics.median(decode)
    drafting = measured.drafting
    return Row(
        benchmark=setting.benchmark,
        models=setting.models,
        variant=measured.variant,
        batch=measured.batch,
        prompt_tokens=measured.prompt_tokens,
        new_tokens=measured.new_tokens,
        tokens_per_s=measured.num_tokens / statistics.median(whole),
        ratio_to_base=ratio,
        floor_ratio=floor,
        percent_of_floor=None if compared is None else 100 * floor / compared,
        base_variant=measured.base_variant if base is not None else None,
        speed_up_over_naive=_speed_up(timed.get(naive), whole),
        speed_up_over_plain=None if plain is None else _speed_up(timed.get(plain), whole),
        requests=measured.requests,
        decode_tokens_per_s=None if steps_per_s is None else steps_per_s * measured.batch,
        decode_ratio_to_base=decode_ratio,
        acceptance=None if drafting is None else drafting.acceptance,
        acceptance_by_place=[] if drafting is None else list(drafting.acceptance_by_place),
        num_drafted=None if drafting is None else drafting.num_drafted,
        tokens_per_cycle=None if drafting is None else drafting.tokens_per_cycle,
        seconds=statistics.median(whole),
        seconds_of_rounds=whole,
        read_gb_per_s=None if steps_per_s is None else steps_per_s * measured.bytes_per_token / 1e9,
        device_gb_per_s=setting.device_gb_per_s,
        weight_bytes=measured.weight_bytes,
        kv_bytes_per_token=measured.kv_bytes_per_token,
        peak_bytes=measured.peak_bytes,
        equal_rows=measured.equal_rows,
        is_quick=setting.is_quick,
        dtype=str(setting.dtype).removeprefix("torch."),
        hardware=machine.hardware(setting.device),
        versions=machine.versions(),
        date=machine.today(),
        load=machine.load(),
    )


def _speed_up(others: Sequence[Decoded] | None, seconds: Sequence[float]) -> float | None:
    """Return the median over rounds of the others' time by these; None where there are no others."""
    return None if others is None else median_ratio([one.seconds for one in others], seconds)


def _decode_seconds(rounds: Sequence[Decoded]) -> list[float] | None:
    """Return the seconds after the first token in each round; None where it is not told or there is nothing more."""
    found = [one.seconds - one.first_token_seconds for one in rounds if one.first_token_seconds is not None]
    return found if len(found) == len(rounds) and min(found, default=0.0) > 0 else None
