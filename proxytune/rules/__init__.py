"""Rules: how the logits of base, experts and antis become those of the composite; one rule, one file, chosen by name.

A new rule is a module `proxytune/rules/<name>.py` with a frozen dataclass under `@register("<name>")`, whose fields are
numbers; `"rule": "<name>,<field>=<number>"` in a config.json then runs it in every runtime.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from proxytune.errors import OptionError
from proxytune.strength import Gate, Schedule

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "proxy"


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A pure function of logits, which every rule keeps to these identities.

    A pair whose strength is 0 at a position changes nothing there, whatever its logits are, NaN included (a pair of
    strength 0 in every row is not even run); where all strengths are 0 the result is base. A constant added to one
    role's logits of a position changes no probability. −inf in base survives. NaN of a role that counts is NaN in the
    result: whoever runs the roles makes it an error that names the role.

    Attributes:
        schedule: Strength over the positions of an answer; None is constant.
        gate: Positions that are steered, by what the roles say there; None is all.
        base_temperature: Divides the base's logits before anything else but the gate.
        expert_temperature: Likewise the experts'.
        anti_temperature: Likewise the antis'.
        name: Set by `register`.
        combines_per_token: The result at a token depends on the logits of that token alone.
        takes_differences: Of expert and anti their difference alone enters.
    """

    schedule: Schedule | None = None
    gate: Gate | None = None
    base_temperature: float = 1.0
    expert_temperature: float = 1.0
    anti_temperature: float = 1.0

    name: ClassVar[str] = ""
    combines_per_token: ClassVar[bool] = False
    takes_differences: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("base_temperature", "expert_temperature", "anti_temperature"):
            self.require(0 < getattr(self, name) < float("inf"), name, "above 0")

    @abstractmethod
    def combine(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return the composite's logits `[B, T, V]`, float32, and leave the arguments as they are.

        Args:
            base: `[B, T, V]`, any float dtype.
            pairs: (expert, anti), each `[B, T, V]` on base's device, any float dtype.
            strengths: `[B, P]`, or `[1, P]` for all rows, float32 on base's device; `[B, T, P]` where they differ by
                position.
        """

    def __call__(self, base: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strengths: Tensor) -> Tensor:
        """Return `combine` behind gate and temperatures; whoever knows positions has applied the schedule."""
        if self._is_bare:
            return self.combine(base, pairs, strengths)
        if self.gate is not None:
            strengths = self.gate.at(strengths, base, pairs)
        divisors = self.expert_temperature, self.anti_temperature
        return self.combine(
            base.float() / self.base_temperature,
            [(expert.float() / divisors[0], anti.float() / divisors[1]) for expert, anti in pairs],
            strengths,
        )

    @property
    def _is_bare(self) -> bool:
        return self.gate is None and self.base_temperature == self.expert_temperature == self.anti_temperature == 1

    @property
    def is_elementwise(self) -> bool:
        """True if it may be given a shard of the vocabulary."""
        return self.combines_per_token and self.gate is None

    @property
    def is_of_differences(self) -> bool:
        """True if (expert − anti, 0) may stand in for (expert, anti)."""
        is_gate_blind = self.gate is None or self.gate.by != "disagreement"
        return self.takes_differences and is_gate_blind and self.expert_temperature == self.anti_temperature

    def require(self, is_right: bool, name: str, expected: str) -> None:
        """Raise OptionError for a field out of range."""
        if not is_right:
            raise OptionError(f"{name} of rule {self.name!r} is {getattr(self, name)!r}: it must be {expected}.")

    def __str__(self) -> str:
        """Return the text that `rule_of` reads: the name, and the fields that are not at their defaults."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = [f"{field.name}={given[field.name]}" for field in fields(self) if given[field.name] != field.default]
        return ",".join([self.name, *changed])


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
        rule.name = name
        return rule

    return add


def rule_of(rule: Rule | str | None) -> Rule:
    """Return a rule from its text, a name and then `,field=value`; a rule is itself, None the default.

    Raises:
        OptionError: There is no such rule, or it has no such field, or takes no such value.

    >>> str(rule_of("contrastive,beta=0.2,schedule=first:32"))
    'contrastive,schedule=first:32,beta=0.2'
    """
    if isinstance(rule, Rule):
        return rule
    name, *settings = (DEFAULT if rule is None else str(rule)).split(",")
    if name not in rule_names():
        raise OptionError(f"rule is {name!r}: it must be one of {', '.join(rule_names())}.")
    if name not in _rules:
        importlib.import_module(f"{__name__}.{name}")
    known = [field.name for field in fields(_rules[name])]
    values = {}
    for setting in settings:
        key, equals, text = setting.strip().partition("=")
        if key not in known or not equals or key in values:
            raise OptionError(f"rule {name!r} is given {setting!r}: write field=value once per field, of {known}.")
        values[key] = _value(name, key, text)
    return _rules[name](**values)


def _value(name: str, key: str, text: str) -> Any:
    if key in ("schedule", "gate"):
        return (Schedule if key == "schedule" else Gate).of(text)
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f"{key} of rule {name!r} is {text!r}: it must be a number.") from error


def rule_names() -> list[str]:
    """Return the names of all rules: those of this package, and what was registered besides."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} | set(_rules))


def over_tokens(values: Tensor) -> Tensor:
    """Return values `[B]` or `[B, T]` as they broadcast over logits `[B, T, V]`."""
    return values[:, None, None] if values.dim() == 1 else values[..., None]


def is_steered(strengths: Tensor) -> Tensor:
    """Return where any pair has a strength, for logits `[B, T, V]`; `strengths` as in `Rule.combine`."""
    return over_tokens((strengths != 0).any(-1))
