"""Methods by their papers' words for the second model: what expert and anti, and which rule, each of them is."""

from collections.abc import Mapping
from typing import Any

from proxytune.errors import UnknownOptionError
from proxytune.roles import BASE, NONE

METHODS = ("amateur", "domain", "reward_model", "negative_prompt")


def as_terms(
    named: Mapping[str, Any], expert: Any, anti: Any, anti_prompt: Any, rule: Any, *, pairs: Any = None
) -> tuple[Any, Any, Any, Any]:
    """Return expert, anti, the anti's prompt format, and rule; those given, where none of `METHODS` has a value.

    Raises:
        UnknownOptionError: A method beside another, or beside expert, anti or pairs.

    >>> as_terms({"amateur": "small"}, None, None, "raw", None)
    ('base', 'small', 'raw', 'contrastive')
    """
    given = [name for name in METHODS if named.get(name) is not None]
    if not given:
        return expert, anti, anti_prompt, rule
    others = {"expert": expert, "anti": anti, "pairs": pairs}
    others |= {name: named[name] for name in given[1:]}
    if given[0] == "negative_prompt" and anti_prompt not in (None, "raw"):
        others["anti_prompt"] = anti_prompt
    other = next((name for name, value in others.items() if value is not None), None)
    if other is not None:
        raise UnknownOptionError(
            f"{given[0]} names a method with its roles, and {other} was given beside it: pass one."
        )
    value = named[given[0]]
    return {
        "amateur": (BASE, value, anti_prompt, "contrastive" if rule is None else rule),
        "domain": (value, BASE, anti_prompt, rule),
        "reward_model": (value, NONE, anti_prompt, rule),
        "negative_prompt": (BASE, BASE, value, rule),
    }[given[0]]
