"""The tokenizer's chat template: targets, ends, and templates that cannot be learned from."""

from __future__ import annotations

import json

import pytest

from neft.data import Example, read_documents, tokenize
from neft.errors import DataError, InputError

CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> \n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }} {{ eos_token }}"
    "{% else %}[ {{ m['content'] }} ] {% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['content'] }} </s> {% endif %}{% endfor %}"
)
TURNS = [("user", "w0"), ("assistant", "w1"), ("user", "w2"), ("assistant", "w3"), ("user", "w4")]


def _documents(tmp_path, tokenizer, turns=TURNS, **options):
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row))
    return read_documents(tmp_path / "chat.jsonl", format="chat", tokenizer=tokenizer, **options)


def test_every_answer_is_learned_up_to_its_end(tmp_path, tokenizer):
    """A target is the answer and `<|im_end|>`; the header, the line break after it and the questions are not."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    (document,) = _documents(tmp_path, tokenizer)
    assert [(segment.text, segment.is_target) for segment in document.segments] == [
        ("<|im_start|> user w0 <|im_end|> \n<|im_start|> assistant ", False),
        ("w1 <|im_end|>", True),
        (" \n<|im_start|> user w2 <|im_end|> \n<|im_start|> assistant ", False),
        ("w3 <|im_end|>", True),
    ]
    (example,) = tokenize([document], tokenizer, max_length=64, overlong="error").examples
    start, end, unknown = 44, 45, 3
    question = [start, unknown, 4, end, start, unknown]
    later = [start, unknown, 6, end, start, unknown]
    assert example == Example([*question, 5, end, *later, 7, end], [-100] * 6 + [5, end] + [-100] * 6 + [7, end])


def test_the_templates_own_beginning_and_end_are_the_only_ones(tmp_path, tokenizer):
    """A template that writes BOS and EOS gets no second ones, also from a tokenizer that adds BOS by itself."""
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.chat_template = LLAMA
    documents = _documents(tmp_path, tokenizer, TURNS[:2])
    (example,) = tokenize(documents, tokenizer, max_length=64, overlong="error").examples
    assert example == Example([1, 3, 4, 3, 5, 2], [-100, -100, -100, -100, 5, 2])


def test_the_prompt_is_what_inference_encodes(tmp_path, tokenizer):
    """The ids before the first answer are those of apply_chat_template with the generation prompt."""
    tokenizer.chat_template = LLAMA
    (example,) = tokenize(_documents(tmp_path, tokenizer), tokenizer, max_length=64, overlong="error").examples
    messages = [{"role": "user", "content": "w0"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[: len(prompt) + 1] == [-100] * len(prompt) + [5]


def test_alpaca_rows_through_the_chat_template(tmp_path, tokenizer):
    """The input follows the instruction after an empty line, in one message of the user."""
    tokenizer.chat_template = LLAMA
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "w0", "input": "w1", "output": "w2"}]))
    (document,) = read_documents(tmp_path / "a.json", format="alpaca", template="chat", tokenizer=tokenizer)
    assert document.segments[0].text == "<s>[ w0\n\nw1 ] "


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (FORGETFUL, "row 1 .* changes the text before message 4 when that message is added"),
        ("{% for m in messages %}{{ m['content'] }} {% endfor %}", "row 1 .* no special token"),
        ("{{ raise_exception('only one turn') }}", "row 1 .* refuses it: only one turn"),
        ("{{ messages[0].missing.thing }}", "row 1 .* refuses it: "),
    ],
)
def test_templates_that_cannot_be_learned_from(tmp_path, tokenizer, template, complaint):
    """A template that rewrites earlier turns, has no end, or refuses the row is an error with the row."""
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=complaint):
        _documents(tmp_path, tokenizer)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path, tokenizer):
    """The message says what to do instead."""
    with pytest.raises(InputError, match="has none; choose another template"):
        _documents(tmp_path, tokenizer)
