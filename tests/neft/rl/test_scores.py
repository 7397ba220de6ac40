"""Scores from votes and pairs from scores, by hand."""

from __future__ import annotations

import pytest

from neft import DataError, InputError
from neft.rl import Answer, pairs_of_question, read_scored_pairs, score_of_votes
from tests.neft.conftest import write_rows


@pytest.mark.parametrize(
    ("upvotes", "is_accepted", "score"),
    [
        (0, False, 0),  # log2 1 = 0
        (1, False, 1),  # log2 2 = 1
        (2, False, 2),  # log2 3 = 1.585
        (4, False, 2),  # log2 5 = 2.322
        (5, False, 3),  # log2 6 = 2.585
        (10, False, 3),  # log2 11 = 3.459
        (11, False, 4),  # log2 12 = 3.585
        (1023, False, 10),
        (0, True, 1),
        (10, True, 4),
        (-1, False, -1),
        (-50, False, -1),
        (-1, True, -1),
    ],
)
def test_the_score_of_an_answer(upvotes, is_accepted, score):
    """log2(1 + upvotes) to the nearest whole number, plus 1 if accepted; −1 below zero."""
    assert score_of_votes(upvotes, is_accepted=is_accepted) == score


def test_pairs_of_a_question(tmp_path):
    """Answers of scores 3, 1, 1 and −1 give five pairs, the better one chosen; the tie gives none."""
    answers = [
        {"text": "low", "upvotes": -2, "accepted": False},
        {"text": "first", "upvotes": 1},
        {"text": "second", "upvotes": 0, "accepted": True},
        {"text": "top", "upvotes": 4, "selected": True},
    ]
    file = write_rows(tmp_path / "votes.jsonl", [{"question": "Why?", "answers": answers}])
    pairs = [(pair.chosen, pair.rejected) for pair in read_scored_pairs(file)]
    assert pairs == [("first", "low"), ("second", "low"), ("top", "low"), ("top", "first"), ("top", "second")]
    assert {pair.prompt for pair in read_scored_pairs(file)} == {"Question: Why?\n\nAnswer: "}
    assert read_scored_pairs(file, template="{question} ")[0].prompt == "Why? "


def test_a_finished_score_is_taken_as_it_is(tmp_path):
    """`pm_score` is a score, not votes: 7 and 6 differ, though both round log2(1 + n) to 3."""
    answers = [{"text": "a", "pm_score": 7, "selected": False}, {"text": "b", "pm_score": 6, "selected": True}]
    file = write_rows(tmp_path / "votes.jsonl", [{"question": "q", "answers": answers}])
    assert [(pair.chosen, pair.rejected) for pair in read_scored_pairs(file)] == [("a", "b")]


def test_at_most_ten_pairs(tmp_path):
    """Six answers with different scores have fifteen pairs; ten are kept, the same ones each time and in any file."""
    answers = [Answer(f"a{score}", score) for score in range(6)]
    kept = pairs_of_question("q", answers)
    assert len(set(kept)) == 10
    assert all(int(pair.chosen[1:]) > int(pair.rejected[1:]) for pair in kept)
    assert kept == pairs_of_question("q", answers)
    assert kept != pairs_of_question("q", answers, seed=1)
    assert len(pairs_of_question("q", answers, max_pairs=3)) == 3
    assert len(pairs_of_question("q", answers, max_pairs=15)) == 15
    votes = [{"text": answer.text, "pm_score": answer.score} for answer in answers]
    rows = [{"question": "q", "answers": votes}, {"question": "r", "answers": votes}]
    both = read_scored_pairs(write_rows(tmp_path / "votes.jsonl", rows), template="{question}")
    assert [(pair.prompt, pair.row) for pair in both] == [("q", 1)] * 10 + [("r", 2)] * 10
    reversed_rows = read_scored_pairs(write_rows(tmp_path / "other.jsonl", rows[::-1]), template="{question}")
    assert [(p.chosen, p.rejected) for p in both[:10]] == [(p.chosen, p.rejected) for p in reversed_rows[10:]]


def test_the_same_text_twice_is_no_pair():
    """An answer posted twice with different scores is not compared with itself."""
    assert pairs_of_question("q", [Answer("a", 1), Answer("a", 3)]) == []


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answers": []}, "row 2 has no 'question'"),
        ({"question": "q"}, "row 2 has no list of 'answers'"),
        ({"question": "q", "answers": ["a"]}, "row 2, answer 1 is a str"),
        ({"question": "q", "answers": [{"upvotes": 1}]}, "row 2, answer 1 has no 'text'"),
        ({"question": "q", "answers": [{"text": " ", "upvotes": 1}]}, "answer 1: 'text' is empty"),
        ({"question": "q", "answers": [{"text": "a"}]}, "answer 1: 'upvotes' is None"),
        ({"question": "q", "answers": [{"text": "a", "upvotes": 1.5}]}, "'upvotes' is 1.5; give a whole number"),
        ({"question": "q", "answers": [{"text": "a", "upvotes": True}]}, "'upvotes' is True"),
        ({"question": "q", "answers": [{"text": "a", "upvotes": 1, "accepted": "no"}]}, "'accepted' is 'no'"),
    ],
)
def test_bad_votes_name_their_row(tmp_path, row, complaint):
    """A malformed row is named with its number, and the answer in it."""
    good = {"question": "q", "answers": [{"text": "a", "upvotes": 1}, {"text": "b", "upvotes": 0}]}
    with pytest.raises(DataError, match=complaint):
        read_scored_pairs(write_rows(tmp_path / "votes.jsonl", [good, row]))


def test_nothing_to_compare_is_an_error(tmp_path):
    """A file of ties gives no pair and says so; a template without its place is refused."""
    file = write_rows(tmp_path / "votes.jsonl", [{"question": "q", "answers": [{"text": "a", "upvotes": 1}]}])
    with pytest.raises(DataError, match="gives no pair: none of its 1 rows"):
        read_scored_pairs(file)
    with pytest.raises(InputError, match=r"put \{question\} where"):
        read_scored_pairs(file, template="Answer: ")
    with pytest.raises(InputError, match="max_pairs is 0"):
        read_scored_pairs(file, max_pairs=0)
