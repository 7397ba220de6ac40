"""Every prompt format's exact text, written out by hand."""

from typing import Any

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import InputError, PromptFormatError, ProxyTuneError
from proxytune.prompts import TEMPLATES, PromptFormat
from tests import tiny

SINGLE = "Hi there"
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"}]
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
EXPECTED: dict[str, tuple[str, str, str]] = {
    "raw": ("Hi there", "Be brief.\n\nHi there", "Hi\n\nHello\n\nBye"),
    "alpaca": (
        ALPACA + "### Instruction:\nHi there\n\n### Response:",
        "Be brief.\n\n### Instruction:\nHi there\n\n### Response:",
        ALPACA + "### Instruction:\nHi\n\n### Response:Hello\n\n### Instruction:\nBye\n\n### Response:",
    ),
    "llama-2-chat": (
        "[INST] Hi there [/INST]",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi there [/INST]",
        "[INST] Hi [/INST] Hello </s><s>[INST] Bye [/INST]",
    ),
    "chatml": (
        "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    ),
    "vicuna": (
        VICUNA + "USER: Hi there ASSISTANT:",
        "Be brief. USER: Hi there ASSISTANT:",
        VICUNA + "USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
    ),
    "tulu": (
        "<|user|>\nHi there\n<|assistant|>\n",
        "<|system|>\nBe brief.\n<|user|>\nHi there\n<|assistant|>\n",
        "<|user|>\nHi\n<|assistant|>\nHello\n<|user|>\nBye\n<|assistant|>\n",
    ),
    "question": (
        "Question: Hi there\nAnswer:",
        "Be brief.\n\nQuestion: Hi there\nAnswer:",
        "Question: Hi\nAnswer: Hello\n\nQuestion: Bye\nAnswer:",
    ),
    "dialogue": (
        "User: Hi there\nAssistant:",
        "Be brief.\n\nUser: Hi there\nAssistant:",
        "User: Hi\nAssistant: Hello\nUser: Bye\nAssistant:",
    ),
    "Q: {prompt}\nA:": ("Q: Hi there\nA:", "Q: Be brief.\n\nHi there\nA:", "Q: Hi\n\nHello\n\nBye\nA:"),
}


def test_every_template_is_written_out_here() -> None:
    """A template added to the package fails this until its text stands above."""
    assert set(TEMPLATES) <= set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_text(name: str) -> None:
    """Single turn, system and user, three turns: character by character."""
    for prompt, wanted in zip((SINGLE, SYSTEM, TURNS), EXPECTED[name], strict=True):
        assert PromptFormat(name).text(prompt) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*TEMPLATES, "raw", "<< {prompt} >>"])
def test_content_is_never_a_template(name: str) -> None:
    """Placeholders and special texts inside a prompt stay as they are."""
    content = "{content} {prompt} {0} \\1"
    assert content in PromptFormat(name).text(content)


def test_placeholder_every_time() -> None:
    """A text of one's own may hold the prompt twice."""
    assert PromptFormat("{prompt}? {prompt}!").text("Why") == "Why? Why!"


@pytest.mark.parametrize("name", ["", "Raw", "llama", "chat-ml", "{question}"])
def test_unknown_format(name: str) -> None:
    """The error lists what there is; nothing is guessed."""
    with pytest.raises(PromptFormatError, match=r"unknown prompt format .*raw, chat, alpaca"):
        PromptFormat(name)


@pytest.mark.parametrize("role", ["base_prompt", "expert_prompt", "anti_prompt"])
def test_unknown_format_of_each_role(role: str) -> None:
    """Each role's format is checked before anything is loaded."""
    with pytest.raises(PromptFormatError, match="unknown prompt format 'alpacca'"):
        ProxyGenerator("/no/such", "/no/such", "/no/such", **{role: "alpacca"})  # type: ignore[arg-type]


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] == 'user' and 'w1 ' or 'w2 ' }}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<s> w3{% endif %}"
)


def test_chat_template_renders_to_ids() -> None:
    """The tokenizer's template, its generation prompt and its special tokens, encoded once, BOS not doubled."""
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    turns = [
        {"role": "user", "content": "w9"},
        {"role": "assistant", "content": "w8"},
        {"role": "user", "content": "w7"},
    ]
    assert PromptFormat("chat").encode(turns, tokenizer) == [5, 13, 6, 12, 5, 11, 1, 7]
    assert PromptFormat("chat").encode("w9", tokenizer) == [5, 13, 1, 7]


def test_chat_without_a_template() -> None:
    """The error names the tokenizer's lack and the named formats."""
    with pytest.raises(PromptFormatError, match=r"needs a chat template .*alpaca.*or set tokenizer.chat_template"):
        PromptFormat("chat").encode("w1", tiny.word_tokenizer())


def test_chat_template_that_refuses() -> None:
    """A template that takes no system message says so as an error of ours."""
    tokenizer = tiny.word_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ProxyTuneError, match="System role not supported"):
        PromptFormat("chat").encode("w1", tokenizer)


def test_special_tokens_survive() -> None:
    """Special tokens inside a text become their ids; BOS stands once in front, as the tokenizer puts it."""
    tokenizer = tiny.word_tokenizer()
    assert PromptFormat("raw").encode("w0 </s> w1", tokenizer) == [1, 4, 2, 5]
    assert PromptFormat("w5 </s> {prompt}").encode("w1", tokenizer) == [1, 9, 2, 5]


@pytest.mark.parametrize("name", ["raw", "chat", "alpaca", "w1 {prompt}"])
def test_token_ids_pass_unchanged(name: str) -> None:
    """Whatever the format, ids are what every role reads; a tuple does as well."""
    assert PromptFormat(name).encode([7, 0, 63], tiny.word_tokenizer()) == [7, 0, 63]
    assert PromptFormat(name).encode((7, 0, 63), tiny.word_tokenizer()) == [7, 0, 63]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ([], "an empty list"),
        ([3, -1], "item 0 of the prompt is 3"),
        ([3, "a"], "item 0 of the prompt is 3"),
        ([True, False], "item 0 of the prompt is True"),
        ([1.5], "item 0"),
        ([{"role": "user"}], "message 0"),
        ([{"content": "a"}], "message 0"),
        ([{"role": "tool", "content": "a"}], "message 0"),
        ([{"role": "user", "content": ["a"]}], "message 0"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "message 1"),
    ],
)
def test_prompts_that_are_none(prompt: Any, message: str) -> None:
    """Each wrong prompt has an error that names the place."""
    with pytest.raises(InputError, match=message):
        PromptFormat("raw").encode(prompt, tiny.word_tokenizer())


def test_text_without_a_token() -> None:
    """A text that a tokenizer turns into nothing is refused rather than run."""
    with pytest.raises(InputError, match="no token at all"):
        PromptFormat("raw").encode("  ", _without_bos())


def _without_bos() -> Any:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = _strip()
    return tokenizer


def _strip() -> Any:
    from tokenizers import normalizers

    return normalizers.Strip()
