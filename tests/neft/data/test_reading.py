"""From rows to documents: formats, options, and complaints that name the row."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from neft.data import FORMATS, Document, Segment, detect_format, read_documents
from neft.errors import DataError, InputError

FORMAT = "prompt-completion"
ASK = {"from": "human", "value": "q"}
REPLY = {"from": "gpt", "value": "a"}


def _document(*segments: tuple[str, bool], row: int = 1) -> Document:
    return Document(tuple(Segment(text, is_target) for text, is_target in segments), row)


def _read(tmp_path, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_documents(path, **options)


def test_rows_become_documents(tmp_path):
    """Rows keep their number in the file, blank lines count but give nothing, and text survives exactly."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "a\u2028b", "completion": "c"}\n\n{"prompt": "", "completion": " d ", "id": 7}', "utf-8"
    )
    documents = [_document(("a\u2028b", False), ("c", True)), _document(("", False), (" d ", True), row=3)]
    assert read_documents(path, format=FORMAT) == documents


@pytest.mark.parametrize(
    ("format", "row", "complaint"),
    [
        (FORMAT, {"prompt": "a"}, "no 'completion'"),
        (FORMAT, {"prompt": 3, "completion": "b"}, "'prompt' is int"),
        (FORMAT, {"prompt": "a", "completion": ""}, "'completion' is empty"),
        (FORMAT, {"prompt": "a", "completion": "b\ud83d"}, "'completion' has half of a surrogate pair at character 1"),
        ("alpaca", {"instruction": "", "output": "b"}, "'instruction' is empty"),
        ("alpaca", {"instruction": "a", "response": "b"}, "no 'output'"),
        ("alpaca", {"instruction": "a", "input": 3, "output": "b"}, "'input' is int"),
        ("sharegpt", {"messages": []}, "no 'conversations'"),
        ("sharegpt", {"conversations": "hi"}, "'conversations' is str, not a list"),
        ("sharegpt", {"conversations": [ASK, "hi"]}, "message 2 is str, not an object"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "message 1 does not fit: it has no 'value'"),
        (
            "sharegpt",
            {"conversations": [{"from": "bing", "value": ""}]},
            "message 1 does not fit: it is from 'bing'; known are system",
        ),
        ("sharegpt", {"conversations": [ASK, {"from": "system", "value": "s"}]}, "message 2 is a system text"),
        ("chat", {"messages": [{"role": "user", "content": None}]}, "message 1 does not fit: it has no 'content'"),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}, "message 1 does not fit: it is from 'tool'"),
        ("text", {"content": "x"}, "no 'text'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, format, row, complaint):
    """Every format says which row is wrong (here the second) and what is wrong with it."""
    good = {
        "prompt": "a",
        "completion": "b",
        "instruction": "a",
        "output": "b",
        "conversations": [],
        "messages": [],
        "text": "t",
    }
    with pytest.raises(DataError, match=f"rows.jsonl, row 2 does not fit the format {format}: .*{complaint}"):
        _read(tmp_path, good, row, format=format, template=None if format == "text" else "dialogue")


def test_alpaca_rows(tmp_path):
    """The input may be filled, empty or absent, and an empty output stays: the model learns to end at once."""
    rows = [
        {"instruction": "I", "input": "X", "output": "O"},
        {"instruction": "I", "input": "", "output": ""},
        {"instruction": "I", "output": "O"},
    ]
    documents = _read(tmp_path, *rows, format="alpaca", template="{instruction}|{input}|")
    assert [[s.text for s in d.segments] for d in documents] == [["I|X|", "O"], ["I||", ""], ["I||", "O"]]


def test_sharegpt_learns_every_answer(tmp_path):
    """human/user and gpt/assistant mean the same; answers before the first question and a last question vanish."""
    row = {
        "conversations": [
            {"from": "gpt", "value": "early"},
            {"from": "human", "value": "q1"},
            {"from": "gpt", "value": "a1"},
            {"from": "user", "value": "q2"},
            {"from": "assistant", "value": "a2"},
            {"from": "human", "value": "late"},
        ]
    }
    (document,) = _read(tmp_path, row, format="sharegpt", template="dialogue")
    assert document == _document(
        ("User: q1\nAssistant:", False), (" a1", True), ("\nUser: q2\nAssistant:", False), (" a2", True)
    )


def test_sharegpt_single_reads_the_first_exchange(tmp_path):
    """Only the first question and its answer are read, in the Alpaca template that the paper uses."""
    row = {"conversations": [ASK, REPLY, {"from": "human", "value": "more"}, {"from": "gpt", "value": "later"}]}
    (document,) = _read(tmp_path, row, format="sharegpt-single")
    assert document.segments[0].text.endswith("\n\n### Instruction:\nq\n\n### Response:")
    assert document.segments[1:] == (Segment("a", is_target=True),)


def test_conversations_without_an_answer_stay_for_the_count(tmp_path):
    """Empty and unanswered conversations become documents of no segment, which tokenize counts."""
    rows = [{"conversations": []}, {"conversations": [ASK]}, {"conversations": [REPLY]}]
    for format in ("sharegpt", "sharegpt-single"):
        assert [d.segments for d in _read(tmp_path, *rows, format=format)] == [(), (), ()]


def test_text_in_a_column_of_any_name(tmp_path):
    """The format text learns the whole text of the column that the user names."""
    row = {"text": "t", "body": "b c"}
    assert _read(tmp_path, row, format="text") == [_document(("t", True))]
    assert _read(tmp_path, row, format="text", text_column="body") == [_document(("b c", True))]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"format": "alpacca"},
            "'alpacca'; choose auto or one of alpaca, chat, conversational, prompt-completion, sharegpt, .*text",
        ),
        ({"format": "alpaca", "template": "llama"}, "template is 'llama'; choose one of raw, alpaca, .*chat, or write"),
        ({"format": "alpaca", "text_column": "body"}, "text_column is 'body', but the format alpaca"),
        ({"format": "text", "template": "alpaca"}, "template is 'alpaca', but the format text"),
        ({"format": "chat"}, "give read_documents the tokenizer"),
        ({"format": "alpaca", "template": "{instruction} {output}"}, "has a place for the answer"),
        ({"format": "alpaca", "dataset_split": "train"}, "dataset_split is 'train', but .* is not a datasets folder"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, complaint):
    """A wrong name lists the known ones; an option without a meaning for the format is refused."""
    with pytest.raises(InputError, match=complaint):
        _read(tmp_path, {"instruction": "a", "output": "b"}, **options)


def test_every_format_has_a_known_template():
    """The template that a format names is one there is."""
    from neft.data import CHAT, TEMPLATES

    assert {format.template for format in FORMATS.values()} <= {*TEMPLATES, CHAT}


def test_importing_the_package_is_light():
    """`import neft.data` imports neither torch nor transformers, so that wrong options are answered at once."""
    code = "import sys, neft.data; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt-completion"),
        ({"instruction": "a", "input": "", "output": "b", "text": "a b"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "sharegpt"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "chat"),
        ({"text": "a"}, "text"),
    ],
)
def test_auto_takes_the_format_whose_columns_are_there(row, name, tmp_path):
    """The first row's columns decide; a rendered text beside them does not."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert detect_format(path) == name
    if name != "chat":  # whose template is the tokenizer's
        assert read_documents(path, format="auto") == read_documents(path, format=name)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, r"row 1: its columns \('question', 'answer'\) are those of no format"),
        ({"prompt": "a", "completion": "b", "messages": []}, "those of prompt-completion and chat; name the format"),
    ],
)
def test_auto_refuses_what_no_format_or_several_would_read(row, message, tmp_path):
    """Nothing is guessed: the columns are named, and the formats to choose from."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_documents(path, format="auto")
