"""The columns of a table: base, expert, anti, steered, and other models by themselves; one is loaded at a time."""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.provenance import model_identity, stored_dtype
from proxytune import Pair, Role
from proxytune.cli.role_arguments import ROLES, RoleChoice, choose_roles, with_terms
from proxytune.errors import OptionError, RoleError
from proxytune.prompts import PromptFormat
from proxytune.roles import BASE, Term

STEERED = "steered"
_LOADING = ("dtype", "quantization", "revision")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: As tables have it.
        kind: `base`, `expert`, `anti`, `steered`, or `model` for any other.
        choice: Models loaded for it.
        alpha: Strength of steering where the user gave one.
    """

    name: str
    kind: str
    choice: RoleChoice
    alpha: float | None = None

    def formats(self, part: Formats, given: argparse.Namespace) -> dict[str, str]:
        """Return the format of each loaded role for a part: what the user said, else the part's own."""
        if self.kind == STEERED:
            return {f"{role}_prompt": self._format(role, getattr(part, role), given) for role in ROLES}
        if self.kind == "model":
            name = given.tuned_prompt or part.alone
        else:
            name = self._format(self.kind, part.alone if self.kind == "expert" else getattr(part, self.kind), given)
        return {f"{role}_prompt": name for role in ROLES}

    def describe(self) -> dict[str, Any]:
        """Return what config.json says of it."""
        described: dict[str, Any] = {"kind": self.kind, "base": _described(self.choice.base)}
        expert = self.choice.pairs[0].expert
        if self.kind == STEERED or not (isinstance(expert, Role) and self.choice.base.source == expert.source):
            described["pairs"] = [
                {
                    "expert": _described(pair.expert),
                    "anti": _described(pair.anti),
                    "alpha": pair.alpha if self.alpha is None else self.alpha,
                }
                for pair in self.choice.pairs
            ]
            if self.choice.rule not in (None, "proxy"):
                described["rule"] = self.choice.rule
        return described

    def _format(self, role: str, default_format: str, given: argparse.Namespace) -> str:
        said: str = self.choice.formats[f"{role}_prompt"]
        is_said = getattr(given, f"{role}_prompt") is not None or said != "raw"
        return said if is_said else default_format


def columns_of(args: argparse.Namespace, *, default: Sequence[str]) -> list[Column]:
    """Return the columns that `--compare` and `--alpha` name.

    Raises:
        OptionError: A name that means nothing, or one twice.
        RoleError: A role that a column needs was not given.
    """
    args = with_terms(args)
    names = args.compare if args.compare else list(default)
    columns = [column for name in names for column in _columns(name, args)]
    twice = next((column.name for column in columns if [c.name for c in columns].count(column.name) > 1), None)
    if twice:
        raise OptionError(f"--compare names {twice!r} twice: name each column once.")
    for option, value, kind in (("--alpha", args.alpha, STEERED), ("--tuned-prompt", args.tuned_prompt, "model")):
        if value and all(column.kind != kind for column in columns):
            raise OptionError(f"{option} was given, but no column is for it: leave it out, or name one in --compare.")
    return columns


def names(text: str) -> list[str]:
    """Return the parts of a list that is written with commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def alphas(text: str) -> list[float]:
    """Return the numbers of a list that is written with commas.

    >>> alphas("0.5,1")
    [0.5, 1.0]
    """
    try:
        values = [float(name) for name in names(text)]
        if not all(map(math.isfinite, values)):
            raise ValueError(text)
        return values
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of finite numbers, as in 0.5,1,1.5") from error


class Session:
    """The models in memory: those of one column under one set of prompt formats, released before others load."""

    def __init__(self, given: argparse.Namespace) -> None:
        """`given` are the command's arguments."""
        self._given = given
        self._stack = ExitStack()
        self._loaded: tuple[RoleChoice, Any] | None = None

    def answerer(self, column: Column, part: Formats) -> Answerer:
        """Return the column's models, loaded for the part's formats."""
        formats = column.formats(part, self._given)
        distinct = set(formats.values())
        # Where all roles read the same text it is rendered here, so that another format needs no other models.
        is_uniform = len(distinct) == 1 and "chat" not in distinct
        form = PromptFormat(formats["base_prompt"])
        choice = replace(column.choice, formats=dict.fromkeys(formats, "raw") if is_uniform else formats)
        if self._loaded is None or self._loaded[0] != choice:
            self.close()
            self._loaded = (choice, self._stack.enter_context(choice.loaded()))
        return Answerer(
            generator=self._loaded[1],
            render=form.text if is_uniform else str,
            alpha=column.alpha,
            batch_size=self._given.batch_size,
            is_uniform=is_uniform,
        )

    def close(self) -> None:
        """Release the models and end their engine."""
        if self._loaded is not None:
            self._loaded = None
            self._stack.close()
            gc.collect()  # modules of models refer to each other in circles
            _empty_cuda_cache()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self._loaded = None
        self._stack.close()


def alone(args: argparse.Namespace, source: str) -> RoleChoice:
    """Return what is loaded for any model by itself, with the base's settings; the prompt format is raw."""
    choice = choose_roles(_with(args, alpha=None, model=None, base=source, expert=source, anti=source))
    return replace(_alone(choice), formats=dict.fromkeys(choice.formats, "raw"))


def has_roles(args: argparse.Namespace) -> bool:
    """True if the user named any role or proxy folder."""
    return any(getattr(args, name, None) for name in (*ROLES, "model"))


def _columns(name: str, args: argparse.Namespace) -> list[Column]:
    column_name, equals, source = name.partition("=")
    if equals:
        if column_name in (*ROLES, STEERED) or not column_name or not source:
            raise OptionError(f"--compare has {name!r}: write NAME=MODEL with a name of its own, as in tuned=MODEL.")
        return [Column(name=column_name, kind="model", choice=alone(args, source))]
    if column_name == STEERED:
        return _steered(args)
    if column_name not in ROLES:
        raise OptionError(f"--compare has {column_name!r}: name base, expert, anti, steered, or NAME=MODEL.")
    return [Column(name=column_name, kind=column_name, choice=_single(args, column_name))]


def _steered(args: argparse.Namespace) -> list[Column]:
    choice = choose_roles(_with(args, alpha=None))
    strengths = args.alpha or []
    if len(strengths) < 2:
        return [Column(name=STEERED, kind=STEERED, choice=choice, alpha=strengths[0] if strengths else None)]
    return [Column(name=f"{STEERED}@{alpha:g}", kind=STEERED, choice=choice, alpha=alpha) for alpha in strengths]


def _single(args: argparse.Namespace, role: str) -> RoleChoice:
    """Return what is loaded for one role alone: nothing but that role, unless it is an adapter over its anti."""
    if has_roles(args) and not args.model:
        if not getattr(args, role):
            raise RoleError(
                f"--compare has {role!r}, but no {role} was given: pass --{role} with a hub id or a folder."
            )
        given = {name: getattr(args, name) or getattr(args, role) for name in ROLES}
        choice = choose_roles(_with(args, alpha=None, **given))
    else:
        choice = choose_roles(_with(args, alpha=None))
    if role == "base":
        return _alone(choice)
    if len(choice.pairs) > 1:
        raise OptionError(
            f"--compare has {role!r}, but the proxy folder has {len(choice.pairs)} pairs: name NAME=MODEL."
        )
    [pair] = choice.pairs
    if getattr(pair, role) == BASE:
        return _alone(choice)
    if isinstance(getattr(pair, role), str):
        raise RoleError(f"--compare has {role!r}, and the pair has none: leave it out.")
    if role == "expert" and pair.expert.is_adapter:
        if not args.anti and has_roles(args) and not args.model:
            raise RoleError("the expert is an adapter: pass --anti with the model it belongs to.")
        # anti + (expert - anti): the expert, up to rounding in the last digits.
        below = choice.base if pair.anti == BASE else pair.anti
        return replace(choice, base=below, pairs=(Pair(pair.expert, below, 1.0),))
    return _alone(replace(choice, base=pair.expert if role == "expert" else pair.anti))


def _alone(choice: RoleChoice) -> RoleChoice:
    """Return the choice's base by itself: equal roles are loaded once, and a pair of strength 0 does not run."""
    return replace(choice, base=choice.base, pairs=(Pair(choice.base, choice.base, 0.0),))


def _with(args: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), **changes})


def _described(role: Term) -> Any:
    if not isinstance(role, Role):
        return role
    described = model_identity(role.name_or_path, role.revision)
    if role.dtype in (None, "auto"):
        described["dtype"] = stored_dtype(role.name_or_path, role.revision)
    return described | {key: str(value) for key in _LOADING if (value := getattr(role, key)) not in (None, "auto")}


def _empty_cuda_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
