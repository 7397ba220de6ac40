"""Effects of steering over many texts: how often it changed the choice, how far it moved, and which tokens most."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from proxytune.report.reading import TracedText
from proxytune.trace import TokenTrace

_NUM_MOVED = 12
_LEAST_SHIFT = 0.001  # less is no move
_CONTEXT = 4  # tokens, the moved one included


@dataclass(frozen=True, kw_only=True)
class MovedToken:
    """A token whose probability steering raised wherever it came: in the mean over `count` places, by `shift`.

    `context` is the commonest run of four tokens that ends with it.
    """

    text: str
    count: int
    shift: float
    context: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All texts of one strength together.

    Attributes:
        strength: Of each pair, to be read.
        num_texts: Number of texts.
        num_tokens: In all of them.
        changed_share: Share of places where the combination's likeliest token is not the base's.
        kl_combined_base: Mean, in nats.
        pairs: Names of each pair's expert and anti.
        kl_expert_anti: Mean of each pair.
        cross_entropy: Likewise.
        shift: Mean of what steering added to the probability of the token that came.
        min_count: Least number of times a token had to come to be among `moved`.
        moved: Tokens by mean shift, greatest first (arXiv 2401.08565, section 6, which asks for 100 occurrences).
    """

    strength: str
    num_texts: int
    num_tokens: int
    changed_share: float
    kl_combined_base: float
    pairs: tuple[tuple[str, str], ...]
    kl_expert_anti: tuple[float, ...]
    cross_entropy: tuple[float, ...]
    shift: float
    min_count: int
    moved: tuple[MovedToken, ...]


def summarise(texts: Sequence[TracedText]) -> list[Summary]:
    """Return one summary per strength, in the order in which the strengths come first."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[TracedText]] = {}
    for text in texts:
        groups.setdefault((text.strength, text.trace.pairs), []).append(text)
    return [_summary(strength, pairs, group) for (strength, pairs), group in groups.items()]


def _summary(strength: str, pairs: tuple[tuple[str, str], ...], texts: Sequence[TracedText]) -> Summary:
    tokens = [token for text in texts for token in text.trace.tokens]
    min_count = min(100, max(1, len(tokens) // 100))
    return Summary(
        strength=strength,
        num_texts=len(texts),
        num_tokens=len(tokens),
        changed_share=_mean([float(token.is_changed) for token in tokens]),
        kl_combined_base=_mean([token.kl_combined_base for token in tokens]),
        pairs=pairs,
        kl_expert_anti=tuple(
            _mean([token.kl_expert_anti[pair_index] for token in tokens]) for pair_index in range(len(pairs))
        ),
        cross_entropy=tuple(
            _mean([token.cross_entropy[pair_index] for token in tokens]) for pair_index in range(len(pairs))
        ),
        shift=_mean([token.shift for token in tokens]),
        min_count=min_count,
        moved=_most_moved(texts, min_count),
    )


def _most_moved(texts: Sequence[TracedText], min_count: int) -> tuple[MovedToken, ...]:
    occurrences_by_id: dict[int, list[tuple[TokenTrace, str]]] = defaultdict(list)
    for text in texts:
        read = [token.chosen.text for token in text.trace.tokens]
        for position, token in enumerate(text.trace.tokens):
            context = "".join(read[max(0, position + 1 - _CONTEXT) : position + 1])
            occurrences_by_id[token.token_id].append((token, context))
    moved = [
        MovedToken(
            text=occurrences[0][0].chosen.text,
            count=len(occurrences),
            shift=fmean(token.shift for token, _ in occurrences),
            context=Counter(context for _, context in occurrences).most_common(1)[0][0],
        )
        for occurrences in occurrences_by_id.values()
        if len(occurrences) >= min_count
    ]
    raised = [token for token in moved if token.shift >= _LEAST_SHIFT]
    return tuple(sorted(raised, key=lambda token: (-token.shift, -token.count, token.text))[:_NUM_MOVED])


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
