"""Prompt formats as chat templates."""

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from proxytune.demo import trio_path
from proxytune.prompts import TEMPLATES, PromptFormat
from proxytune.vllm.serving.chat_template import chat_template

_OWN = 'a "quoted" {{ x }} {% y %}\\n\n{prompt} | {prompt}{# z #}'
_CONVERSATIONS = [
    [{"role": "user", "content": "What is {{ 2 }}?\n"}],
    [{"role": "system", "content": "Be {% brief %}."}, {"role": "user", "content": " Hi\t"}],
    [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\n\n"},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "é"}],
]


@pytest.mark.parametrize("name", ["raw", *TEMPLATES, _OWN])
@pytest.mark.parametrize("messages", _CONVERSATIONS, ids=["one", "system", "long", "turns"])
def test_template_writes_what_the_format_does(name: str, messages: list[dict[str, str]]) -> None:
    """The Jinja template of a format renders a conversation to the very text of the format."""
    [[found], _] = render_jinja_template([messages], chat_template=chat_template(name), add_generation_prompt=True)
    assert found == PromptFormat(name).text(messages)


def test_chat_is_left_to_the_tokenizer() -> None:
    """The format `chat` has no template of ours."""
    assert chat_template("chat") is None


def test_other_roles_are_refused() -> None:
    """A system message behind the first, or a tool's, is an error and not a guess."""
    tokenizer = AutoTokenizer.from_pretrained(trio_path() / "base")
    for role in ("system", "tool"):
        messages = [{"role": "user", "content": "a"}, {"role": role, "content": "b"}]
        with pytest.raises(Exception, match="only the first"):
            tokenizer.apply_chat_template(messages, chat_template=chat_template("alpaca"))
