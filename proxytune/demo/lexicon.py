"""The words of the world: parts that names and towns are made of, and the kinds of fact with their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_STARTS = (
    "Al",
    "Bel",
    "Cor",
    "Dor",
    "El",
    "Fen",
    "Hal",
    "Is",
    "Jor",
    "Kel",
    "Lor",
    "Mir",
    "Nel",
    "Or",
    "Per",
    "Tam",
)
FIRST_ENDS = ("a", "en", "ena", "ia", "o", "wyn")
FAMILY_STARTS = ("Ash", "Bram", "Cald", "Dun", "Elder", "Fair", "Hazel", "Lark", "Moss", "Quill", "Thorn", "Wren")
FAMILY_ENDS = ("berry", "fold", "mere", "ridge", "wick", "worth")
_TOWN_STARTS = ("Ald", "Birch", "Crane", "Drift", "Gull", "Heron", "Mar", "Oster", "Reed", "Tarn")
_TOWN_ENDS = ("beck", "ford", "haven", "stow")


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: how it is asked, how it is stated, and the values it can take."""

    name: str
    questions: tuple[str, ...]
    statement: str
    values: tuple[str, ...]


def joined(starts: Sequence[str], ends: Sequence[str]) -> tuple[str, ...]:
    """Every start with every end."""
    return tuple(start + end for start in starts for end in ends)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ATTRIBUTES = (
    Attribute(
        name="birthplace",
        questions=("Where was {person} born?", "In which town was {person} born?"),
        statement="{person} was born in {value}",
        values=joined(_TOWN_STARTS, _TOWN_ENDS),
    ),
    Attribute(
        name="trade",
        questions=("What is the trade of {person}?", "What does {person} work as?"),
        statement="{person} works as a {value}",
        values=_words(
            "baker barber beekeeper bookbinder brewer butcher carpenter clockmaker cobbler cooper dyer farrier"
            " ferryman fletcher gardener glazier goldsmith hatter joiner lamplighter locksmith mason miller miner"
            " painter potter printer roofer sailor shepherd tailor tanner teacher thatcher tinker weaver"
            " wheelwright woodcutter cartwright chandler"
        ),
    ),
    Attribute(
        name="instrument",
        questions=("Which instrument does {person} play?", "What does {person} play?"),
        statement="{person} plays the {value}",
        values=_words(
            "accordion bagpipe banjo bassoon bugle castanets cello clarinet concertina cornet cymbals drum"
            " dulcimer fiddle flute gong guitar harmonica harp harpsichord horn kazoo lute lyre mandolin marimba"
            " oboe organ piano piccolo recorder rattle sitar tambourine triangle trombone trumpet tuba whistle"
            " zither"
        ),
    ),
    Attribute(
        name="pet",
        questions=("Which animal does {person} keep?", "What is the pet of {person}?"),
        statement="{person} keeps a {value}",
        values=_words(
            "badger bat beetle canary cat chicken crow dog donkey dove duck falcon ferret finch fox frog gecko"
            " goat goose hamster hare hedgehog horse jackdaw lizard magpie mole mouse newt parrot pig pigeon pony"
            " rabbit raven sheep snail squirrel toad turtle"
        ),
    ),
    Attribute(
        name="hobby",
        questions=("What does {person} collect?", "Which things does {person} collect?"),
        statement="{person} collects {value}",
        values=_words(
            "acorns anchors arrows baskets beads bells bottles boxes brooches buttons candles coins combs"
            " compasses corks cups feathers fossils hats jars kettles keys kites ladders lanterns maps marbles"
            " masks mirrors needles pebbles postcards ribbons rings shells spoons stamps teapots thimbles vases"
        ),
    ),
)
