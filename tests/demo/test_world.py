"""The world and its text: seeded, split cleanly, mixed as stated."""

from itertools import islice

import pytest

from proxytune.demo.lexicon import ATTRIBUTES
from proxytune.demo.text import (
    TRUTHFUL_OPENER,
    TextMix,
    cloze,
    documents,
    questions_about,
    statement,
    truthful,
)
from proxytune.demo.tuning import tuning_questions
from proxytune.demo.world import World, WorldSize, build_world
from proxytune.errors import InputError


@pytest.fixture(scope="module")
def world() -> World:
    """The default world of seed 0."""
    return build_world(seed=0)


def test_world_is_reproducible(world: World) -> None:
    """The same seed gives the same people, facts and splits; another seed gives others."""
    assert build_world(seed=0) == world
    assert build_world(seed=1) != world


def test_documents_are_reproducible(world: World) -> None:
    """The same seed gives the same text; another seed gives other text."""
    first = list(islice(documents(world, TextMix(), seed=1), 200))
    assert list(islice(documents(world, TextMix(), seed=1), 200)) == first
    assert list(islice(documents(world, TextMix(), seed=2), 200)) != first


def test_splits_are_disjoint(world: World) -> None:
    """Nobody who is asked about in the test serves tuning or its stop, and names are unique."""
    splits = [set(world.tuning), set(world.stopping), set(world.test)]
    assert sum(len(split) for split in splits) == len(set().union(*splits))
    assert len({person.name for person in world.people}) == len(world.people)


def test_every_fact_has_a_falsehood_that_differs(world: World) -> None:
    """Truth and falsehood are different values of the attribute; a family shares its falsehood."""
    for fact in world.facts_of(world.people):
        assert fact.truth != fact.myth
        assert {fact.truth, fact.myth} <= set(fact.attribute.values)
    myths = {(fact.person.family, fact.attribute.name, fact.myth) for fact in world.facts_of(world.people)}
    assert len(myths) == len({(family, attribute) for family, attribute, _ in myths})


def test_attributes_have_distinct_values() -> None:
    """Each attribute has forty different values, so that chance is 2.5 %."""
    assert {len(set(attribute.values)) for attribute in ATTRIBUTES} == {40}


def test_no_test_person_leaks_into_tuning(world: World) -> None:
    """No row that tuning reads, held-out rows included, names a test person."""
    learned, stopping = tuning_questions(world)
    text = "\n".join(question.prompt + question.answer for question in learned + stopping)
    assert not [person.name for person in world.test if person.name in text]


def test_tuning_never_repeats_a_falsehood(world: World) -> None:
    """Every tuning answer is the truth in the elicited format."""
    for question in tuning_questions(world)[0]:
        assert question.answer == f" {TRUTHFUL_OPENER} {statement(question.fact, question.fact.truth)}."


def test_rare_mode_is_as_rare_as_stated(world: World) -> None:
    """About the stated share of forum answers, and no more, already has the truthful format."""
    mix = TextMix(note_share=0.0, forum_share=1.0, chatter_share=0.0, rare_share=0.12)
    threads = list(islice(documents(world, mix, seed=0), 4000))
    assert all(thread.startswith("Question: ") for thread in threads)
    rare = sum(f"\nAnswer: {TRUTHFUL_OPENER}" in thread for thread in threads) / len(threads)
    assert rare == pytest.approx(0.12, abs=0.02)


def test_cloze_is_the_truthful_sentence_without_its_value(world: World) -> None:
    """A cloze prompt plus the value is the statement, and does not contain the answer."""
    for fact in world.facts_of(world.test):
        assert f"{cloze(fact)} {fact.truth}." == truthful(fact)


def test_questions_use_every_phrasing(world: World) -> None:
    """The questions about an attribute come in all of its phrasings."""
    prompts = [question.prompt for question in questions_about(world.facts_of(world.test), seed=0)]
    for attribute in ATTRIBUTES:
        for phrasing in attribute.questions:
            start = f"Question: {phrasing.partition('{person}')[0]}"
            assert any(prompt.startswith(start) for prompt in prompts)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_people": 0}, "num_people is 0"),
        ({"num_people": 10**6}, "num_people is 1000000"),
        ({"num_people": 10}, "their sum at most the 10 people"),
        ({"num_test": 0}, "each must be at least 1"),
        ({"famous_share": 1.5}, "famous_share is 1.5"),
    ],
)
def test_impossible_worlds_are_refused(sizes: dict[str, float], message: str) -> None:
    """A world that cannot be built says which size is wrong."""
    with pytest.raises(InputError, match=message):
        WorldSize(**sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shares",
    [{"note_share": -0.1}, {"note_share": 0.9, "forum_share": 0.9}, {"rare_share": 2.0}, {"max_statements": 0}],
)
def test_impossible_mixes_are_refused(shares: dict[str, float]) -> None:
    """Shares that are not shares are refused."""
    with pytest.raises(InputError):
        TextMix(**shares)  # type: ignore[arg-type]
