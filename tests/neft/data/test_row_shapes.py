"""Rows as people have them: each is learned as it says, or refused by row and field."""

from __future__ import annotations

import json

import pytest

from neft.data import Example, read_documents, tokenize
from neft.errors import DataError

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
HUMAN = {"from": "human", "value": "q"}
GPT = {"from": "gpt", "value": "a"}
ALPACA = {"instruction": "q", "output": "a"}
TWICE = "User: q\nAssistant: a\nUser: q\nAssistant: a"
PAIR = {"prompt": "q", "completion": "a"}


def _read(tmp_path, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_documents(path, **{"format": "auto", "template": "dialogue", **options})


def _learned(document):
    return [segment.text.strip() for segment in document.segments if segment.is_target and segment.is_learned]


@pytest.mark.parametrize(
    ("row", "text", "learned"),
    [
        (PAIR, "User: q\nAssistant: a", ["a"]),
        (PAIR | {"label": True}, "User: q\nAssistant: a", ["a"]),
        ({"prompt": [Q], "completion": [A]}, "User: q\nAssistant: a", ["a"]),
        ({"prompt": [Q, A, Q], "completion": [A]}, TWICE, ["a"]),
        (ALPACA | {"input": None}, "User: q\nAssistant: a", ["a"]),
        (ALPACA | {"input": "x"}, "User: q\n\nx\nAssistant: a", ["a"]),
        (ALPACA | {"system": "s", "history": []}, "s\n\nUser: q\nAssistant: a", ["a"]),
        (ALPACA | {"system_prompt": "s"}, "s\n\nUser: q\nAssistant: a", ["a"]),
        (ALPACA | {"history": [["q0", "a0"]]}, "User: q0\nAssistant: a0\nUser: q\nAssistant: a", ["a0", "a"]),
        ({"conversations": [HUMAN, GPT], "system": "s", "tools": "", "id": 7}, "s\n\nUser: q\nAssistant: a", ["a"]),
        ({"conversations": [Q, A]}, "User: q\nAssistant: a", ["a"]),
        ({"conversations": [HUMAN | {"markdown": None, "text": None}, GPT]}, "User: q\nAssistant: a", ["a"]),
        ({"messages": [Q, A | {"tool_calls": [], "refusal": None}]}, "User: q\nAssistant: a", ["a"]),
        (
            {"messages": [Q, A | {"content": [{"type": "text", "text": "a"}]}]},
            "User: q\nAssistant: a",
            ["a"],
        ),
        ({"messages": [{"role": "developer", "content": "s"}, Q, A]}, "s\n\nUser: q\nAssistant: a", ["a"]),
        (
            {"messages": [Q, A | {"weight": 0}, Q, A | {"weight": 1}]},
            "User: q\nAssistant: a\nUser: q\nAssistant: a",
            ["a"],
        ),
        ({"messages": [Q, A | {"train": False}, Q, A]}, TWICE, ["a"]),
    ],
)
def test_rows_that_are_learned(tmp_path, row, text, learned):
    """The text holds everything that the row says, and the answers that it says are to be learned are targets."""
    (document,) = _read(tmp_path, row)
    assert "".join(segment.text for segment in document.segments) == text
    assert _learned(document) == learned


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [Q, A | {"tool_calls": [{"id": "1"}]}]}, "message 2 .* 'tool_calls', which would not be learned"),
        ({"messages": [Q, A], "tools": [{"type": "function"}]}, "'tools', which would not be learned"),
        ({"messages": [Q, A | {"reasoning_content": "so"}]}, "message 2 .* 'reasoning_content'"),
        ({"messages": [Q, A | {"weight": 0.5}]}, "message 2 .* 'weight' is 0.5; only 0"),
        ({"messages": [Q | {"train": True}, A]}, "message 1 .* 'train' is True, but only answers"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]}, "message 1 .* type 'image_url'"),
        ({"messages": [Q, A], "images": ["a.png"]}, "'images', which would not be learned"),
        ({"messages": [Q, A], "chosen": [A], "rejected": [A], "prompt": "q"}, "'chosen', so it is a pair"),
        ({"conversations": [HUMAN, GPT, HUMAN], "chosen": GPT, "rejected": GPT}, "'chosen', so it is a pair"),
        ({"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT], "system": "t"}, "a system text among"),
        (ALPACA | {"system": 3}, "'system' is int"),
        (ALPACA | {"history": ["q0", "a0"]}, "'history' is no list of"),
        (PAIR | {"label": False}, "'label' is False, a bad answer"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "no format; `neft reward` and `neft rl` take pairs"),
        ({"chosen": "Human: q", "rejected": "Human: q"}, "no format; `neft reward`"),
    ],
)
def test_rows_that_are_refused(tmp_path, row, complaint):
    """A row that says something which would not be learned is an error with its number and the field."""
    with pytest.raises(DataError, match=f"rows.jsonl, row 1.*{complaint}"):
        _read(tmp_path, row)


@pytest.mark.parametrize("row", [ALPACA | {"history": [["q0", "a0"]]}, PAIR | {"system": "s"}])
def test_a_template_without_a_position_for_it_refuses_the_row(tmp_path, row):
    """The formats' own templates write neither a history nor a system text beside a plain prompt."""
    with pytest.raises(DataError, match=r"row 1 does not fit the template: .*(user, assistant, user|system text)"):
        _read(tmp_path, row, template=None)


def test_an_answer_of_weight_zero_has_no_label(tmp_path, tokenizer):
    """Its tokens and its end stay in the text, also where everything else is learned."""
    rows = {"messages": [{**Q, "content": "w0"}, {**A, "content": "w1", "weight": 0}, {**Q, "content": "w2"}, A]}
    (document,) = _read(tmp_path, rows)
    (completion,) = tokenize([document], tokenizer, max_length=32, overlong="error").examples
    (everything,) = tokenize([document], tokenizer, max_length=32, overlong="error", loss_on="all").examples
    unknown, end = 3, 2
    ids = [unknown, 4, unknown, 5, end, unknown, 6, unknown, unknown, end]
    assert completion == Example(ids, [-100] * 8 + [unknown, end])
    assert everything == Example(ids, [-100, 4, unknown, -100, -100, *ids[5:]])


def test_bad_rows_are_skipped_and_counted(tmp_path, tokenizer):
    """`on_bad_row="skip"` keeps the good rows; tokenizing counts the others by reason."""
    documents = _read(tmp_path, ALPACA, ALPACA | {"output": 3}, ALPACA | {"tools": "x"}, ALPACA, on_bad_row="skip")
    assert [document.row for document in documents if document.segments] == [1, 4]
    assert "row 2 does not fit the format alpaca: its 'output' is int" in documents[1].problem
    data = tokenize(documents, tokenizer, max_length=32, overlong="drop")
    assert (len(data.examples), data.dropped) == (2, {"does not fit": 2})


@pytest.mark.parametrize(
    ("row", "columns", "text"),
    [
        ({"question": "q", "answer": "a"}, {"prompt": "question", "completion": "answer"}, "User: q\nAssistant: a"),
        (
            {"instruction": "q", "context": "x", "response": "a", "category": "qa"},
            {"input": "context", "output": "response"},
            "User: q\n\nx\nAssistant: a",
        ),
        ({"text": "t", "prompt": "q", "completion": "a"}, {"prompt": "completion", "completion": "prompt"}, None),
    ],
)
def test_columns_of_other_names(tmp_path, row, columns, text):
    """`columns` names GSM8K's and Dolly's columns by a format's; two may also change places."""
    (document,) = _read(tmp_path, row, columns=columns)
    assert "".join(segment.text for segment in document.segments) == (text or "User: a\nAssistant: q")


def test_a_column_that_is_not_there_is_named(tmp_path):
    """A row without the column that stands for a format's lacks the latter."""
    with pytest.raises(DataError, match=r"row 2 does not fit the format prompt-completion: it has no 'completion'"):
        _read(tmp_path, {"q": "a", "completion": "b"}, {"q": "a"}, columns={"prompt": "q"})
