"""Effect of steering at every token of one text: plain data, and its form in JSON Lines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from proxytune.errors import InputError
from proxytune.roles import NONE

COMBINED = "combined"
_MAX_SHOWN = 60  # characters of a text in a repr


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A token that could have come: how it reads, and its probability under each of `Trace.distributions`."""

    token_id: int
    text: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TokenTrace:
    """One token of the text and the distributions at its position, before temperature and filters.

    Divergences are in nats; infinite where the second distribution rules out what the first allows.

    Attributes:
        token_id: The chosen token.
        text: Its text: empty for a special token, or for the first bytes of a character.
        is_changed: The combination's likeliest token is another than the base's.
        base_rank: Place of the token in the base's order, from 1.
        kl_combined_base: KL(combined ‖ base): how far steering moved the distribution.
        kl_expert_anti: KL(expert ‖ anti) of each pair.
        cross_entropy: H(expert, anti) of each pair.
        candidates: The likeliest tokens of every distribution and the one that came, likeliest combined first.
    """

    token_id: int
    text: str
    is_changed: bool
    base_rank: int
    kl_combined_base: float
    kl_expert_anti: tuple[float, ...]
    cross_entropy: tuple[float, ...]
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        """The candidate that came."""
        return next(candidate for candidate in self.candidates if candidate.token_id == self.token_id)

    @property
    def base_choice(self) -> Candidate:
        """The base's likeliest token."""
        return max(self.candidates, key=lambda candidate: candidate.probabilities[0])

    @property
    def shift(self) -> float:
        """Probability that steering added to the token: combined less base (arXiv 2401.08565, section 6)."""
        return self.chosen.probabilities[-1] - self.chosen.probabilities[0]


@dataclass(frozen=True, kw_only=True, repr=False)
class Trace:
    """Effect of steering at every token of one text.

    Attributes:
        alphas: Strength of each pair.
        distributions: Names of the distributions: every distinct role, base first, then combined.
        pairs: For each pair the names of its expert and its anti, "none" (a uniform distribution) where it has no anti.
        tokens: In their order.
    """

    alphas: tuple[float, ...]
    distributions: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    tokens: tuple[TokenTrace, ...]

    @property
    def text(self) -> str:
        """The full text."""
        return "".join(token.text for token in self.tokens)

    @property
    def changed_share(self) -> float:
        """Share of positions where steering changed the likeliest token; 0 for an empty text."""
        return sum(token.is_changed for token in self.tokens) / len(self.tokens) if self.tokens else 0.0

    def __repr__(self) -> str:
        """Return the text's beginning and how much of it steering changed."""
        return f"Trace({shortened(self.text)!r}, {len(self.tokens)} tokens, {self.changed_share:.0%} changed)"

    def _repr_html_(self) -> str:
        """Return the text for a notebook: changed tokens marked, with the base's choice under the pointer."""
        shown = (
            f'<mark title="base: {escape(repr(token.base_choice.text))}">{escape(token.text)}</mark>'
            if token.is_changed
            else escape(token.text)
            for token in self.tokens
        )
        return f'<div style="white-space: pre-wrap">{"".join(shown)}</div><small>{escape(repr(self))}</small>'

    def row(self) -> dict[str, Any]:
        """Return the JSON object of this trace: numbers to 7 digits, which is what float32 holds; infinity is null."""
        return {
            "alphas": list(self.alphas),
            "distributions": list(self.distributions),
            "pairs": [list(pair) for pair in self.pairs],
            "tokens": [self._token_row(token) for token in self.tokens],
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Trace":
        """Return the trace that `row` wrote.

        Raises:
            InputError: The object is no trace; the text names what is wrong.
        """
        try:
            names = tuple(str(name) for name in row["distributions"])
            trace = cls(
                alphas=tuple(float(alpha) for alpha in row["alphas"]),
                distributions=names,
                pairs=tuple((str(expert), str(anti)) for expert, anti in row["pairs"]),
                tokens=tuple(_token(entry, names) for entry in row["tokens"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"it is no trace ({reason}): pass what `proxytune trace` wrote.") from error
        trace._require_consistency()
        return trace

    def _token_row(self, token: TokenTrace) -> dict[str, Any]:
        return {
            "token_id": token.token_id,
            "text": token.text,
            "is_changed": token.is_changed,
            "base_rank": token.base_rank,
            "kl_combined_base": _digits(token.kl_combined_base),
            "kl_expert_anti": [_digits(value) for value in token.kl_expert_anti],
            "cross_entropy": [_digits(value) for value in token.cross_entropy],
            "candidates": [
                {"token_id": candidate.token_id, "text": candidate.text}
                | dict(zip(self.distributions, map(_digits, candidate.probabilities), strict=True))
                for candidate in token.candidates
            ],
        }

    def _require_consistency(self) -> None:
        """Raise for what no trace has, so that whoever reads one can rely on it."""
        named = {name for pair in self.pairs for name in pair} - {NONE}
        if self.distributions[:1] != ("base",) or self.distributions[-1:] != (COMBINED,):
            raise InputError(f"its distributions are {list(self.distributions)}: base comes first, {COMBINED} last.")
        if not named <= set(self.distributions) or len(self.alphas) != len(self.pairs):
            raise InputError("its pairs do not fit its distributions and alphas: pass what `proxytune trace` wrote.")
        for number, token in enumerate(self.tokens):
            if token.token_id not in {candidate.token_id for candidate in token.candidates}:
                raise InputError(f"token {number} is not among its candidates: pass what `proxytune trace` wrote.")
            if {len(token.kl_expert_anti), len(token.cross_entropy)} != {len(self.pairs)}:
                raise InputError(f"token {number} does not have one divergence per pair.")


def shortened(text: str) -> str:
    """Return the beginning of a text, as a repr shows it.

    >>> shortened("word " * 100)[-8:]
    'rd word…'
    """
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def _token(entry: Mapping[str, Any], names: Sequence[str]) -> TokenTrace:
    return TokenTrace(
        token_id=int(entry["token_id"]),
        text=str(entry["text"]),
        is_changed=bool(entry["is_changed"]),
        base_rank=int(entry["base_rank"]),
        kl_combined_base=_number(entry["kl_combined_base"]),
        kl_expert_anti=tuple(_number(value) for value in entry["kl_expert_anti"]),
        cross_entropy=tuple(_number(value) for value in entry["cross_entropy"]),
        candidates=tuple(
            Candidate(
                token_id=int(candidate["token_id"]),
                text=str(candidate["text"]),
                probabilities=tuple(float(candidate[name]) for name in names),
            )
            for candidate in entry["candidates"]
        ),
    )


def _digits(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.inf if value is None else float(value)
