"""Ids, labels, the window, and the report."""

from __future__ import annotations

import json

import pytest
from tokenizers import processors

from neft.data import Document, Example, PaddingCollator, Segment, tokenize
from neft.errors import DataError, InputError


def _document(*segments: tuple[str, bool], row: int = 1) -> Document:
    return Document(tuple(Segment(text, is_target) for text, is_target in segments), row)


PAIR = _document(("w0 w1", False), ("w2", True))


def _examples(tokenizer, *documents, max_length=16, overlong="drop", **options):
    return tokenize(documents, tokenizer, max_length=max_length, overlong=overlong, **options).examples


def test_loss_on_targets_and_their_end_only(tokenizer):
    """Labels are the completion's ids and end-of-sequence; every other label is -100."""
    assert _examples(tokenizer, PAIR) == [Example([4, 5, 6, 2], [-100, -100, 6, 2])]


def test_loss_on_everything(tokenizer):
    """loss_on=all learns the prompt too, but for the first token, which nothing stands before."""
    turns = _document(("w0", False), ("w1", True), ("w2", False), ("w3", True))
    expected = [Example([4, 5, 6, 2], [-100, 5, 6, 2]), Example([4, 5, 2, 6, 7, 2], [-100, 5, 2, 6, 7, 2])]
    assert _examples(tokenizer, PAIR, turns, loss_on="all") == expected


def test_every_target_of_a_conversation_ends(tokenizer):
    """Several turns: each target is followed by end-of-sequence and has a loss, the turns between have none."""
    turns = _document(("w0", False), ("w1", True), ("w2", False), ("w3", True))
    assert _examples(tokenizer, turns) == [Example([4, 5, 2, 6, 7, 2], [-100, 5, 2, -100, 7, 2])]


def test_an_empty_target_is_its_end(tokenizer):
    """The 28 empty outputs of Alpaca: the model learns to end at once."""
    assert _examples(tokenizer, _document(("w0", False), ("", True))) == [Example([4, 2], [-100, 2])]


def test_a_text_is_learned_but_for_its_first_token(tokenizer):
    """A target alone, and one after an empty prompt, are the same document."""
    expected = Example([4, 5, 2], [-100, 5, 2])
    both = _examples(tokenizer, _document(("w0 w1", True)), _document(("", False), ("w0 w1", True)))
    assert both == [expected, expected]


def test_beginning_of_sequence_comes_once_and_a_tokenizers_own_end_not_at_all(tokenizer):
    """A tokenizer that adds BOS and EOS gives one BOS at the start, and EOS after the target only."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    pair = _document(("w0", False), ("w1", True))
    text = _document(("", False), ("w1", True))
    assert _examples(tokenizer, pair, text) == [
        Example([1, 4, 5, 2], [-100, -100, 5, 2]),
        Example([1, 5, 2], [-100, 5, 2]),
    ]


def test_rows_longer_than_the_window(tokenizer):
    """`drop` counts them, `error` names the row, and none left is an error with the reasons."""
    fits, long = _document(("w0", False), ("w1", True)), _document(("w0 w1 w2", False), ("w3", True), row=2)
    data = tokenize([fits, long], tokenizer, max_length=3, overlong="drop")
    assert (len(data.examples), data.num_dropped, data.mean_length) == (1, 1, 3.0)
    with pytest.raises(DataError, match="row 2 has 5 tokens, more than the window of 3"):
        tokenize([fits, long], tokenizer, max_length=3, overlong="error")
    with pytest.raises(DataError, match=r"none of 1 rows fits the window of 3 tokens \(1 longer than the window"):
        tokenize([long], tokenizer, max_length=3, overlong="drop")


def test_truncated_rows(tokenizer):
    """`truncate` cuts on the right, also the end-of-sequence; a completion wholly outside is dropped and counted."""
    cut, outside = _document(("w0", False), ("w1 w2 w3", True)), _document(("w0 w1 w2", False), ("w3", True))
    data = tokenize([cut, PAIR, outside], tokenizer, max_length=3, overlong="truncate")
    assert data.examples == [Example([4, 5, 6], [-100, 5, 6]), Example([4, 5, 6], [-100, -100, 6])]
    assert (data.num_truncated, data.num_dropped) == (2, 1)
    assert data.dropped == {"completion outside the window": 1}


def test_the_report_counts_every_row(tokenizer):
    """Rows, kept, truncated, dropped by reason, tokens, and lengths before the window; as JSON too."""
    unanswered = Document((), 4)
    lengths = [_document(("w0", False), (" ".join(["w1"] * count), True)) for count in (1, 2, 8)]
    report = tokenize([*lengths, unanswered], tokenizer, max_length=6, overlong="truncate").report()
    assert (report.num_rows, report.num_kept, report.num_truncated) == (4, 3, 1)
    assert report.dropped == {"nothing to learn": 1}
    assert (report.num_tokens, report.num_learned_tokens) == (3 + 4 + 6, 2 + 3 + 5)
    assert (report.lengths.mean, report.lengths.longest) == (17 / 3, 10)
    assert report.lengths.percentiles == {50: 4, 90: 10, 95: 10, 99: 10}
    assert json.loads(json.dumps(report.to_dict()))["lengths"]["percentiles"]["p50"] == 4


def test_rows_without_an_answer_alone_are_an_error(tokenizer):
    """The message sends the user to the format, not to the window."""
    with pytest.raises(DataError, match="none of 2 rows has an answer to learn"):
        tokenize([Document((), 1), Document((), 2)], tokenizer, max_length=6, overlong="drop")


def test_many_documents_keep_their_order(tokenizer):
    """More documents than one call encodes, with and without markers of their own, come out in order."""
    documents = [
        Document((Segment(f"w{n % 40}", False), Segment("w1 </s>" if n % 3 else "w1", True)), n, bool(n % 3))
        for n in range(9000)
    ]
    examples = _examples(tokenizer, *documents)
    assert [example.input_ids for example in examples] == [[4 + n % 40, 5, 2] for n in range(9000)]


@pytest.mark.parametrize(("options", "name"), [({"overlong": "cut"}, "overlong"), ({"loss_on": "prompt"}, "loss_on")])
def test_unknown_options_are_named(tokenizer, options, name):
    """The message has the value and the choices."""
    with pytest.raises(InputError, match=f"{name} is '.*'; choose one of"):
        _examples(tokenizer, PAIR, **options)


def test_no_end_of_sequence_is_an_error(tokenizer):
    """A tokenizer without EOS cannot end a completion."""
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="end-of-sequence"):
        _examples(tokenizer, PAIR)


def test_collator_pads_on_the_right():
    """Ids get the pad id, the mask 0 and labels -100, to the longest of the batch."""
    batch = PaddingCollator(pad_id=9)([Example([1, 2, 3], [-100, 2, 3]), Example([4], [4])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
