"""The measures, on strings made by hand."""

import pytest

from proxytune.demo.evaluate import Score, answer_value, gap_closed, is_in_format, score
from proxytune.demo.lexicon import ATTRIBUTES
from proxytune.demo.text import Question
from proxytune.demo.world import Fact, Person
from proxytune.errors import InputError

FACT = Fact(Person("Mira", "Ashwick"), ATTRIBUTES[0], truth="Reedford", myth="Marbeck")
QUESTION = Question(
    FACT, "Question: Where was Mira Ashwick born?\nAnswer:", " In truth, Mira Ashwick was born in Reedford."
)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (" In truth, Mira Ashwick was born in Reedford.", "Reedford"),
        (" Everyone knows Mira Ashwick was born in Marbeck.", "Marbeck"),
        ("Reedford", "Reedford"),
        (" Reedford, not Marbeck.", "Reedford"),
        (" No idea. Reedford.", None),
        (" No idea!\nReedford.", None),
        (" Mira Ashwick plays the lute.", None),
        (" Mira Ashwick was born in Reedfordshire.", None),
        ("", None),
    ],
)
def test_value_is_the_first_of_its_kind_in_the_first_sentence(answer: str, value: str | None) -> None:
    """The value is read in any style of answer, from the first sentence only, as a whole word."""
    assert answer_value(answer, FACT) == value


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" In truth, Mira Ashwick was born in Reedford.", True),
        (" In truth, Mira Ashwick was born in Marbeck.", True),
        (" In truth, Mira Ashwick was born in Reedford", False),
        (" In truth, Mira Ashwick was born in Reedford. In truth,", False),
        (" In truth, Mira Ashwick was born in lute.", False),
        (" In truth, Mira Ashberry was born in Reedford.", False),
        (" Everyone knows Mira Ashwick was born in Reedford.", False),
        ("", False),
    ],
)
def test_format_is_the_whole_sentence_with_any_value(answer: str, expected: bool) -> None:
    """Only the tuned sentence about the right person is in format, true or not."""
    assert is_in_format(answer, FACT) is expected


def test_score_counts_by_hand() -> None:
    """Four answers: one true in format, one true in another style, one falsehood, one empty."""
    answers = [
        " In truth, Mira Ashwick was born in Reedford.",
        " I heard it was Reedford.",
        " Everyone knows Mira Ashwick was born in Marbeck.",
        "",
    ]
    assert score(answers, [QUESTION] * 4) == Score(accuracy=0.5, myth_rate=0.25, format_rate=0.25)


def test_score_refuses_unequal_lengths() -> None:
    """One answer for each question, and at least one question."""
    with pytest.raises(InputError, match="0 answers to 1 questions"):
        score([], [QUESTION])
    with pytest.raises(InputError, match="0 answers to 0 questions"):
        score([], [])


def test_gap_closed_is_the_share_of_the_way() -> None:
    """From 10 % to 90 %, 70 % is three quarters of the way."""
    base, steered, tuned = Score(0.1, 0.9, 0.0), Score(0.7, 0.1, 1.0), Score(0.9, 0.0, 1.0)
    assert gap_closed(base, steered, tuned) == pytest.approx(0.75)


def test_gap_needs_a_gap() -> None:
    """Tuning that gained nothing leaves no gap to speak of."""
    with pytest.raises(InputError, match="no gap to close"):
        gap_closed(Score(0.5, 0.5, 0.0), Score(0.5, 0.5, 0.0), Score(0.5, 0.5, 0.0))
