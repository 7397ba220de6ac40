"""Documents as token ids and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

from neft.data.documents import Document, Segment
from neft.data.encoding import Ids, SegmentEncoder
from neft.data.examples import IGNORED, Example
from neft.data.report import TokenizedData
from neft.errors import DataError, InputError
from neft.kinds import LossOn, Overlong

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TARGET = "nothing to learn"
BAD_ROW = "does not fit"
TOO_LONG = "longer than the window"
TARGET_OUTSIDE = "completion outside the window"

_BATCH = 4096


def tokenize(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    overlong: Overlong,
    loss_on: LossOn = "completion",
) -> TokenizedData:
    """Tokenizes each segment by itself (`neft.data.encoding`), as inference will see the prompt.

    The first segment gets the tokenizer's own beginning (BOS), and every target ends with end-of-sequence; a document
    with markers of its own gets neither. The first token is never learned, because nothing precedes it.

    Args:
        documents: At least one.
        tokenizer: Must have an end-of-sequence token.
        max_length: Window in tokens.
        overlong: `drop` leaves longer rows out and counts them; `error` refuses them; `truncate` cuts them on the right
            and counts them (the end-of-sequence is cut too, so that the model does not learn to stop there).
        loss_on: `completion` learns the targets only; `all` also the prompts.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or an option is unknown.
        DataError: a row is longer than the window under `error`, or no row is left.
    """
    _check(tokenizer, overlong, loss_on)
    examples: list[Example] = []
    full_lengths: list[int] = []
    dropped: Counter[str] = Counter()
    end_ids: set[int] = set()
    num_truncated = 0
    for document, example in zip(documents, _examples(documents, tokenizer, loss_on), strict=True):
        length = len(example.input_ids)
        if not _is_learned(example):
            dropped[BAD_ROW if document.problem else NO_TARGET] += 1
            continue
        full_lengths.append(length)
        if example.labels[-1] != IGNORED:
            end_ids.add(example.labels[-1])
        if length <= max_length:
            examples.append(example)
        elif overlong == "drop":
            dropped[TOO_LONG] += 1
        elif overlong == "error":
            raise DataError(
                f"row {document.row} has {length} tokens, more than the window of {max_length}; "
                "raise max_length, shorten the row, or choose overlong=drop."
            )
        elif _is_learned(cut := Example(example.input_ids[:max_length], example.labels[:max_length])):
            examples.append(cut)
            num_truncated += 1
        else:
            dropped[TARGET_OUTSIDE] += 1
    if not examples:
        raise DataError(_nothing_left(len(documents), max_length, dropped))
    return TokenizedData(examples, dropped.total(), num_truncated, dict(dropped), full_lengths, frozenset(end_ids))


def _check(tokenizer: PreTrainedTokenizerBase, overlong: str, loss_on: str) -> None:
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token, so completions cannot end; set eos_token in it.")
    for name, value, kinds in (("overlong", overlong, Overlong), ("loss_on", loss_on, LossOn)):
        if value not in get_args(kinds):
            raise InputError(f"{name} is {value!r}; choose one of {', '.join(get_args(kinds))}.")


def _is_learned(example: Example) -> bool:
    return any(label != IGNORED for label in example.labels)


def _nothing_left(num_rows: int, max_length: int, dropped: Counter[str]) -> str:
    if dropped[NO_TARGET] + dropped[BAD_ROW] == num_rows:
        return f"none of {num_rows} rows has an answer to learn ({dropped[BAD_ROW]} do not fit); check the format."
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"none of {num_rows} rows fits the window of {max_length} tokens ({reasons}); raise max_length."


def _examples(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, loss_on: LossOn) -> Iterator[Example]:
    encoder = SegmentEncoder(tokenizer)
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        for document, ids_of_segments in zip(batch, _encoded(batch, encoder), strict=True):
            yield _example(document, ids_of_segments, tokenizer.eos_token_id, loss_on)


def _example(document: Document, ids_of_segments: Sequence[Ids], eos_id: int, loss_on: LossOn) -> Example:
    input_ids: Ids = []
    labels: Ids = []
    for segment, ids in zip(_filled(document), ids_of_segments, strict=True):
        is_closed = segment.is_target and not document.has_own_markers
        closed = [*ids, eos_id] if is_closed else ids
        input_ids += closed
        is_learned = segment.is_learned and (segment.is_target or loss_on == "all")
        labels += closed if is_learned else [IGNORED] * len(closed)
    if labels:
        labels[0] = IGNORED
    return Example(input_ids, labels)


def _encoded(documents: Sequence[Document], encoder: SegmentEncoder) -> Iterator[list[Ids]]:
    """Yields the ids of every segment of every document."""
    segments_of = [_filled(document) for document in documents]
    has_markers = [document.has_own_markers for document in documents]
    firsts: dict[bool, Iterator[Ids]] = {}
    for kind in (False, True):
        texts = [s[0].text for s, has_marker in zip(segments_of, has_markers, strict=True) if s and has_marker == kind]
        firsts[kind] = iter(encoder.beginnings(texts, has_own_markers=kind))
    pairs = [pair for segments in segments_of for pair in pairwise(segments)]
    inner = [(before.text, segment.text) for before, segment in pairs if not before.is_target]
    befores, texts = [before for before, _ in inner], [text for _, text in inner]
    continuations = iter(encoder.continuations(texts, befores))
    after_end = iter(encoder.after_end([segment.text for before, segment in pairs if before.is_target]))
    for segments, has_marker in zip(segments_of, has_markers, strict=True):
        first = [next(firsts[has_marker])] if segments else []
        rest = [next(after_end if before.is_target else continuations) for before in segments[:-1]]
        yield [encoder.shared(ids) for ids in first + rest]


def _filled(document: Document) -> tuple[Segment, ...]:
    """Returns the segments without an empty beginning: what follows it is then read as the beginning."""
    segments = document.segments
    is_empty_first = len(segments) > 1 and not segments[0].text and not segments[0].is_target
    return segments[1:] if is_empty_first else segments
