"""Rules: how the logits of base, experts and antis become those of the composite; one rule, one file, chosen by name.

A new rule is a module `proxytune/rules/<name>.py` with a frozen dataclass under `@register("<name>")`; a config.json
that says `"rule": "<name>"` then runs it in every runtime.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from proxytune.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "proxy"


class Rule(Protocol):
    """A pure function of logits, which every rule keeps to these identities.

    A pair whose strength is 0 in a row changes nothing there, whatever its logits are, NaN included (a pair of strength
    0 in every row is not even run). An expert equal to its anti changes nothing. A constant added to one role's logits
    of a position changes no probability. −inf in base survives. NaN of a role that counts is NaN in the result: whoever
    runs the roles makes it an error that names the role.

    Attributes:
        is_elementwise: The result at a token depends on the logits of that token alone; such a rule may be given a
            shard of the vocabulary.
    """

    is_elementwise: ClassVar[bool]

    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return the composite's logits `[B, T, V]`, float32, and leave the arguments as they are.

        Args:
            base: `[B, T, V]`, any float dtype.
            pairs: (expert, anti), each `[B, T, V]` on base's device, any float dtype.
            strengths: `[B, P]`, or `[1, P]` for all rows, float32 on base's device.
        """


_R = TypeVar("_R", bound=type[Rule])

_rules: dict[str, type[Rule]] = {}


def register(name: str) -> Callable[[_R], _R]:
    """Return the class decorator that gives a rule its name.

    Raises:
        ValueError: Another rule has it.
    """

    def add(rule: _R) -> _R:
        if _rules.setdefault(name, rule) is not rule:
            raise ValueError(f"rule {name!r} exists already: take another name.")
        return rule

    return add


def rule_named(name: str) -> Rule:
    """Return the rule of this name.

    Raises:
        OptionError: There is none.

    >>> rule_named("proxy")
    ProxyRule()
    """
    if name not in rule_names():
        raise OptionError(f"rule is {name!r}: it must be one of {', '.join(rule_names())}.")
    if name not in _rules:
        importlib.import_module(f"{__name__}.{name}")
    return _rules[name]()


def rule_names() -> list[str]:
    """Return the names of all rules: those of this package, and what was registered besides."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} | set(_rules))
