"""One measured row of a base behind an API, and the table made of rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.decoding.machine import hardware, load, today, versions
from proxytune import Completion

_HEADER = ("seen", "batch", "drafts", "checked by", "requests/token", "ms/token", "seen mass", "least", "equal rows")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is seen of a base, and how.

    Attributes:
        base: Its name at its server.
        num_logprobs: Seen per place; None is the whole vocabulary.
        verification: How several places of a row are asked for.
    """

    base: str
    num_logprobs: int | None
    verification: str


@dataclass(frozen=True, kw_only=True)
class RemoteRow(Seen):
    """One number of drafts over one batch size.

    Attributes:
        batch: Rows at once.
        drafts: "off", a number, or "auto".
        num_prompts: Rows in all.
        num_tokens: Generated.
        requests_per_token: HTTP requests over all rows, per generated token.
        ms_per_token: Time of the whole run by its tokens, the prompts included; the median of the rounds.
        mean_mass: Of the base's probability that was seen, over all tokens.
        least_mass: At the token where least was seen.
        equal_rows: Rows equal to the composite with its base here, as `equal/all`; None where there is none.
        hardware: The device.
        versions: Of what decides a speed.
        date: In UTC.
        load: Mean number of running processes in the last minute.
    """

    batch: int
    drafts: int | str
    num_prompts: int
    num_tokens: int
    requests_per_token: float
    ms_per_token: float
    mean_mass: float
    least_mass: float
    equal_rows: str | None
    hardware: str
    versions: dict[str, str]
    date: str
    load: float | None


def new_row(
    seen: Seen,
    batch: int,
    drafts: int | str,
    done: Sequence[Completion],
    seconds: Sequence[float],
    expected: list[tuple[int, ...]] | None,
) -> RemoteRow:
    """Return the row of completions with stats, from the seconds of each round and the tokens that they should have."""
    num_tokens = sum(len(row.token_ids) for row in done)
    # Rows of a batch share its figures.
    stats = [(row.timing.stats, row.timing.batch_size) for row in done if row.timing.stats is not None]
    num_requests = sum((one.requests_per_token or 0.0) * one.num_tokens / size for one, size in stats)
    masses = [mass for row in done for mass in row.base_mass or ()]
    equal = None
    if expected is not None:
        num_equal = sum(row.token_ids == wanted for row, wanted in zip(done, expected, strict=True))
        equal = f"{num_equal}/{len(done)}"
    return RemoteRow(
        **vars(seen),
        batch=batch,
        drafts=drafts,
        num_prompts=len(done),
        num_tokens=num_tokens,
        requests_per_token=round(num_requests / num_tokens, 4),
        ms_per_token=round(1000 * sorted(seconds)[len(seconds) // 2] / num_tokens, 3),
        mean_mass=round(sum(masses) / len(masses), 6),
        least_mass=round(min(masses), 6),
        equal_rows=equal,
        hardware=hardware(torch.device("cpu")),
        versions=versions(),
        date=today(),
        load=load(),
    )


def table(rows: Sequence[RemoteRow]) -> str:
    """Return the rows as an aligned table."""
    cells = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(_HEADER))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(lines) + "\n"


def _cells(row: RemoteRow) -> tuple[str, ...]:
    return (
        "all" if row.num_logprobs is None else f"top {row.num_logprobs}",
        str(row.batch),
        str(row.drafts),
        "–" if row.drafts == "off" else row.verification,
        f"{row.requests_per_token:.3f}",
        f"{row.ms_per_token:.2f}",
        f"{row.mean_mass:.4f}",
        f"{row.least_mass:.4f}",
        row.equal_rows or "–",
    )
