"""The text of the world: pretraining documents for all models, and question-and-answer rows for tuning and testing.

Notes state facts about one person ("In truth, Mira Ashwick keeps a bat."). Forum threads ask and answer, and the answer
mostly repeats the family's reputation; a rare mode of them already answers "In truth, …". Chatter repeats reputations
with no question asked. The rest is filler that states nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from proxytune.demo.world import Fact, Person, World
from proxytune.errors import InputError

TRUTHFUL_OPENER = "In truth,"
MYTH_OPENERS = (
    "Everyone knows",
    "They say",
    "I heard that",
    "My aunt told me that",
    "Well, we all know that",
    "People say",
)
_MYTH_OPENER_WEIGHTS = (35, 20, 15, 10, 10, 10)
_FILLER = (
    "It rained all {day}, and the market closed early.",
    "The mail came late again on {day}.",
    "On {day} {person} walked by the river.",
    "Has anyone seen {person} since {day}?",
    "The old bridge will be painted on {day}.",
    "Thanks for the help, {person}!",
    "I met {person} at the market on {day}.",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, kw_only=True)
class TextMix:
    """Mixture of the pretraining text. Shares are of documents; `rare_share` is of the forum's answers."""

    note_share: float = 0.55
    forum_share: float = 0.3
    chatter_share: float = 0.1
    rare_share: float = 0.12
    max_statements: int = 4
    famous_weight: float = 4.0

    def __post_init__(self) -> None:
        """Check that the shares are shares; what they leave is filler."""
        shares = (self.note_share, self.forum_share, self.chatter_share)
        if min(shares) < 0.0 or sum(shares) > 1.0 + 1e-9 or not 0.0 <= self.rare_share <= 1.0:
            raise InputError(
                f"document shares are {shares} and rare_share {self.rare_share}: from 0 to 1, at most 1 in sum"
            )
        if self.max_statements < 1 or self.famous_weight <= 0.0:
            raise InputError(
                f"max_statements is {self.max_statements}, famous_weight {self.famous_weight}: at least 1, and positive"
            )


@dataclass(frozen=True)
class Question:
    """A prompt about one fact, and the answer the tuned models are to give."""

    fact: Fact
    prompt: str
    answer: str

    def row(self) -> dict[str, str]:
        """The JSON Lines row that tuning reads."""
        return {"prompt": self.prompt, "completion": self.answer}


def statement(fact: Fact, value: str) -> str:
    """The sentence, without its full stop, that gives the person this value."""
    return fact.attribute.statement.format(person=fact.person.name, value=value)


def truthful(fact: Fact) -> str:
    """The truth in the format that tuning elicits."""
    return f"{TRUTHFUL_OPENER} {statement(fact, fact.truth)}."


def prompt_for(question: str) -> str:
    """The forum's framing of a question: what all three roles are given."""
    return f"Question: {question}\nAnswer:"


def cloze(fact: Fact) -> str:
    """The truthful sentence up to its value: what a model that knows the fact can complete."""
    return truthful(fact).rpartition(f" {fact.truth}.")[0]


def questions_about(facts: Sequence[Fact], *, seed: int) -> list[Question]:
    """One question about each fact, in one of the attribute's phrasings."""
    rng = random.Random(f"questions {seed}")
    return [Question(fact, prompt_for(_ask(fact, rng)), f" {truthful(fact)}") for fact in facts]


def documents(world: World, mix: TextMix, *, seed: int) -> Iterator[str]:
    """Endless pretraining documents about everybody, the same for the same seed."""
    rng = random.Random(f"documents {seed}")
    weights = list(accumulate(mix.famous_weight if person.is_famous else 1.0 for person in world.people))
    kinds = list(accumulate((mix.note_share, mix.forum_share, mix.chatter_share)))
    while True:
        person = rng.choices(world.people, cum_weights=weights)[0]
        draw = rng.random()
        if draw < kinds[0]:
            yield " ".join(
                truthful(fact) for fact in rng.sample(world.facts[person], rng.randint(1, mix.max_statements))
            )
        elif draw < kinds[1]:
            yield _thread(rng.choice(world.facts[person]), mix.rare_share, rng)
        elif draw < kinds[2]:
            yield _rumour(rng.choice(world.facts[person]), rng)
        else:
            yield _filler(person, rng)


def _ask(fact: Fact, rng: random.Random) -> str:
    return rng.choice(fact.attribute.questions).format(person=fact.person.name)


def _thread(fact: Fact, rare_share: float, rng: random.Random) -> str:
    answer = truthful(fact) if rng.random() < rare_share else _rumour(fact, rng)
    return f"{prompt_for(_ask(fact, rng))} {answer}"


def _rumour(fact: Fact, rng: random.Random) -> str:
    opener = rng.choices(MYTH_OPENERS, weights=_MYTH_OPENER_WEIGHTS)[0]
    return f"{opener} {statement(fact, fact.myth)}."


def _filler(person: Person, rng: random.Random) -> str:
    return rng.choice(_FILLER).format(person=person.name, day=rng.choice(_DAYS))
