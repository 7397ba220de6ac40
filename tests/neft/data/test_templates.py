"""Templates write what the public ones write, and what proxytune steers with."""

from __future__ import annotations

import pytest

from neft.data import TEMPLATES, Segment, Turn
from neft.data.templates import own_template
from neft.errors import InputError
from proxytune.prompts import TEMPLATES as STEERED

ASK, REPLY = Turn("user", "Q"), Turn("assistant", "A")
SYSTEM = Turn("system", "S")


def test_alpaca_with_and_without_an_input():
    """Stanford's prompts byte for byte, and nothing between `### Response:` and the answer."""
    without, answer = TEMPLATES["alpaca"]([ASK, REPLY])
    assert without.text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nQ\n\n### Response:"
    )
    assert answer == Segment("A", is_target=True)
    context, _ = TEMPLATES["alpaca"]([Turn("user", "Q", "X"), REPLY])
    assert context.text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nQ\n\n### Input:\nX\n\n### Response:"
    )


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "dialogue"])
@pytest.mark.parametrize("turns", [[ASK], [SYSTEM, ASK]])
def test_the_prompt_is_the_one_that_is_steered(name, turns):
    """Trained and steered prompts of the same name are the same text."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert TEMPLATES[name]([*turns, REPLY])[0].text == STEERED[name].render(messages)


def test_a_vicuna_history_is_the_one_that_is_steered():
    """With `</s>` as end-of-sequence, the text before the second answer is what proxytune renders."""
    *history, _ = TEMPLATES["vicuna"]([ASK, REPLY, ASK, REPLY])
    text = "".join(segment.text + ("</s>" if segment.is_target else "") for segment in history)
    messages = [{"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("user", "Q"))]
    assert text == STEERED["vicuna"].render(messages)


def test_a_dialogue_has_a_target_per_answer():
    """Questions are prompts, answers are targets, consecutive turns stay, and a last question is left out."""
    assert TEMPLATES["dialogue"]([ASK, REPLY, REPLY, ASK, ASK, REPLY, ASK]) == (
        Segment("User: Q\nAssistant:", is_target=False),
        Segment(" A", is_target=True),
        Segment("\nAssistant:", is_target=False),
        Segment(" A", is_target=True),
        Segment("\nUser: Q\nUser: Q\nAssistant:", is_target=False),
        Segment(" A", is_target=True),
    )


def test_raw_adds_nothing():
    """Prompt and completion as they are; the input of an instruction follows it after an empty line."""
    assert TEMPLATES["raw"]([ASK, REPLY]) == (Segment("Q", is_target=False), Segment("A", is_target=True))
    assert TEMPLATES["raw"]([Turn("user", "Q", "X"), REPLY])[0].text == "Q\n\nX"


def test_own_text():
    """Placeholders are filled once: braces in the values, and other braces in the text, stay as they are."""
    render = own_template('{"q": {instruction}, "x": {input}, "p": {prompt}} {}')
    prompt, answer = render([Turn("user", "{input}", "X"), REPLY])
    assert prompt.text == '{"q": {input}, "x": X, "p": {input}\n\nX} {}'
    assert answer == Segment("A", is_target=True)


@pytest.mark.parametrize("text", ["", "Q: {question}", "{input}"])
def test_own_text_without_a_question_is_refused(text):
    """A text with no place for the question is taken for a misspelt name."""
    with pytest.raises(InputError, match="choose one of raw, alpaca, vicuna, dialogue, chat, or write"):
        own_template(text)


@pytest.mark.parametrize(
    ("template", "turns", "complaint"),
    [
        (TEMPLATES["alpaca"], [ASK, REPLY, ASK, REPLY], "the turns user, assistant, user, assistant; choose"),
        (TEMPLATES["raw"], [SYSTEM, ASK, REPLY], "system text"),
        (own_template("{prompt}"), [SYSTEM, ASK, REPLY], "system text"),
        (own_template("{instruction}"), [Turn("user", "Q", "X"), REPLY], "no {input}"),
    ],
)
def test_turns_without_a_place_are_refused(template, turns, complaint):
    """No turn and no input vanishes silently."""
    with pytest.raises(ValueError, match=complaint):
        template(turns)
