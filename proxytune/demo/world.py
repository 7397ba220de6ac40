"""A small, seeded world: people, their attributes, the truth and the popular falsehood about each.

Every family has a reputation ("the Ashwicks come from Marbeck"), and for every one of its members the reputation is
wrong. The falsehood is thus one table per family, cheap to learn and often repeated, while the truth is one value per
person. Some people are famous: the text speaks of them more often, so that a small model comes to know them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from proxytune.demo.lexicon import ATTRIBUTES, FAMILY_ENDS, FAMILY_STARTS, FIRST_ENDS, FIRST_STARTS, Attribute, joined
from proxytune.errors import InputError


@dataclass(frozen=True, order=True)
class Person:
    """Somebody of the world; a famous one is spoken of more often."""

    first: str
    family: str
    is_famous: bool = False

    @property
    def name(self) -> str:
        """First and family name, as text has it."""
        return f"{self.first} {self.family}"


@dataclass(frozen=True)
class Fact:
    """One attribute of one person: what is true, and what people say."""

    person: Person
    attribute: Attribute
    truth: str
    myth: str


@dataclass(frozen=True, kw_only=True)
class WorldSize:
    """Number of people, and how many of them serve tuning, its held-out stop, and the test."""

    num_people: int = 1200
    famous_share: float = 0.3
    num_tuning: int = 160
    num_stopping: int = 40
    num_test: int = 100

    def __post_init__(self) -> None:
        """Check the sizes against each other and against the number of names."""
        num_names = len(FIRST_STARTS) * len(FIRST_ENDS) * len(FAMILY_STARTS) * len(FAMILY_ENDS)
        if not 0 < self.num_people <= num_names:
            raise InputError(
                f"num_people is {self.num_people}, but there are names for 1 to {num_names} people: choose within"
            )
        num_split = self.num_tuning + self.num_stopping + self.num_test
        if min(self.num_tuning, self.num_stopping, self.num_test) < 1 or num_split > self.num_people:
            raise InputError(
                f"tuning, stopping and test people number {self.num_tuning}, {self.num_stopping} and {self.num_test}:"
                f" each must be at least 1 and their sum at most the {self.num_people} people"
            )
        if not 0.0 <= self.famous_share <= 1.0:
            raise InputError(f"famous_share is {self.famous_share}: it is a share, from 0 to 1")


@dataclass(frozen=True)
class World:
    """All people and facts. The tuning, stopping and test people are disjoint; pretraining text speaks of everybody."""

    people: tuple[Person, ...]
    facts: dict[Person, tuple[Fact, ...]]
    tuning: tuple[Person, ...]
    stopping: tuple[Person, ...]
    test: tuple[Person, ...]

    def facts_of(self, people: Sequence[Person]) -> list[Fact]:
        """The facts of these people, person by person."""
        return [fact for person in people for fact in self.facts[person]]


def build_world(*, seed: int = 0, size: WorldSize | None = None) -> World:
    """The world of a seed: the same people, truths, falsehoods and splits every time.

    >>> world = build_world(seed=0)
    >>> world == build_world(seed=0), world == build_world(seed=1)
    (True, False)
    >>> all(fact.truth != fact.myth for fact in world.facts_of(world.people))
    True
    """
    size = size or WorldSize()
    rng = random.Random(f"world {seed}")
    firsts = joined(FIRST_STARTS, FIRST_ENDS)
    families = joined(FAMILY_STARTS, FAMILY_ENDS)
    names = rng.sample([(first, family) for first in firsts for family in families], size.num_people)
    people = tuple(Person(first, family, is_famous=rng.random() < size.famous_share) for first, family in names)
    reputations = {family: {a.name: rng.choice(a.values) for a in ATTRIBUTES} for family in families}
    facts = {person: _facts_about(person, reputations[person.family], rng) for person in people}
    test_end = size.num_test
    stopping_end = test_end + size.num_stopping
    tuning_end = stopping_end + size.num_tuning
    return World(
        people=people,
        facts=facts,
        test=people[:test_end],
        stopping=people[test_end:stopping_end],
        tuning=people[stopping_end:tuning_end],
    )


def _facts_about(person: Person, reputation: dict[str, str], rng: random.Random) -> tuple[Fact, ...]:
    facts = []
    for attribute in ATTRIBUTES:
        myth = reputation[attribute.name]
        truth = rng.choice([value for value in attribute.values if value != myth])
        facts.append(Fact(person, attribute, truth, myth))
    return tuple(facts)
