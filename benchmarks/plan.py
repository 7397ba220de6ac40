"""The plan of a run before any weights are there: `bench TASK … --dry-run`.

Data and output folder are checked as by the run itself; every prompt is rendered and counted as each role will read it;
vocabularies are compared; weights, caches and hours follow from configs alone. Hours are a cost model, not a
measurement: decoding reads all weights of a column once per step and row batch at `_BANDWIDTH_SHARE` of the GPU's
bandwidth, prompts cost two operations per parameter and token at `_PEAK_SHARE` of its peak; answers have their full
length, so hours are an upper bound for answers that end early.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httpx

from benchmarks.columns import STEERED, Column
from benchmarks.tables import aligned
from benchmarks.tasks.task import Part
from proxytune.cli.footprint import Footprint, footprints
from proxytune.errors import InputError, OptionError, VocabularyError
from proxytune.prompts import PromptFormat
from proxytune.roles import Role, named_roles

# Memory in GiB, bytes per second, dense bf16 operations per second: the makers' data sheets.
GPUS = {
    "a100": (80, 2.0e12, 312e12),
    "h100": (80, 3.35e12, 989e12),
    "h200": (141, 4.8e12, 989e12),
    "l40s": (48, 0.864e12, 362e12),
}
_BANDWIDTH_SHARE, _PEAK_SHARE, _MEMORY_SHARE = 0.6, 0.4, 0.9
_SHOWN = 160
_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: a prompt, and an answer to be scored or the most new tokens to be generated."""

    prompt: Any
    answer: str = ""
    max_new_tokens: int = 0


class Recorded(Exception):  # noqa: N818 - no error: it ends a part's work where models would begin theirs
    """The prompts are recorded."""


@dataclass
class Recorder:
    """An Answerer without models, which keeps what it is asked and answers by raising `Recorded`."""

    asked: list[Asked] = field(default_factory=list)
    alpha: float | None = None
    batch_size: int = 1
    is_uniform: bool = True

    @property
    def generator(self) -> Recorder:
        """Itself: `generate` is called on either."""
        return self

    @staticmethod
    def render(prompt: str) -> str:
        """Return the prompt: roles render it."""
        return prompt

    def generate(self, prompts: Sequence[Any], *, max_new_tokens: int, **_: Any) -> NoReturn:
        """Keep prompts that are to be continued."""
        self.asked += [Asked(prompt=prompt, max_new_tokens=max_new_tokens) for prompt in prompts]
        raise Recorded

    def likelihoods(self, prompts: Sequence[Any], answers: Sequence[str], **_: Any) -> NoReturn:
        """Keep answers that are to be scored."""
        self.asked += [Asked(prompt=prompt, answer=text) for prompt, text in zip(prompts, answers, strict=True)]
        raise Recorded


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of one column for one part: tokens by role, and rows that are too long for a role."""

    num_requests: int
    prompt_tokens: Mapping[str, int]
    new_tokens: int
    longest: int
    num_too_long: int
    shown: Mapping[str, str]


def add_arguments(group: Any) -> None:
    """Add the options of a plan."""
    group.add_argument("--dry-run", action="store_true", help="check all that needs no weights, and print the plan")
    group.add_argument("--gpu", choices=tuple(GPUS), default="h100", help="of the plan's hours and memory (h100)")
    group.add_argument("--judge-url", metavar="URL", help="with --dry-run: see that the judge's server answers")


def plan(args: argparse.Namespace, columns: Sequence[Column], parts: Sequence[Part], *, batch_size: int) -> str:
    """Return the plan in words.

    Raises:
        ProxyTuneError: Something the run would be refused for.
    """
    lines = ["checked: data, prompts, vocabularies, output folder; no weights were read", ""]
    rows = [["column", "weights", "cache", f"{args.gpu}s", "requests", "prompt tokens", "new tokens", "GPU hours"]]
    prompts: list[str] = []
    total = 0.0
    for column in columns:
        roles = _roles(column)
        pairs = column.choice.pairs if len(roles) > 1 else ()
        sizes = footprints(column.choice.base, pairs, column.choice.formats, needs_weights=False)
        tokenizers = _tokenizers(roles, args.tokenizer)
        work = [(part, _work(part, column, args, tokenizers, sizes)) for part in parts]
        needed = _needs(sizes, max(one.longest for _, one in work), batch_size, args.gpu)
        hours = sum(_hours(one, sizes, batch_size, args.gpu) for _, one in work)
        total += hours
        rows.append(
            [
                column.name,
                *needed,
                f"{sum(one.num_requests for _, one in work):,}",
                f"{sum(one.prompt_tokens['base'] for _, one in work):,}",
                f"{sum(one.new_tokens for _, one in work):,}",
                f"{hours:.2f}",
            ]
        )
        for part, one in work:
            too_long = f"; {one.num_too_long} too long for a role" if one.num_too_long else ""
            prompts += [f"\n{column.name}, {part.name}: the first of {one.num_requests} prompts{too_long}"]
            prompts += [f"  {role}: {text}" for role, text in one.shown.items()]
    lines.append(aligned(rows))
    lines.append(
        f"{total:.2f} GPU hours on {args.gpu}, an upper bound: answers at their full length, {_BANDWIDTH_SHARE:.0%} of "
        f"the bandwidth, {_PEAK_SHARE:.0%} of the peak, batches of {batch_size}."
    )
    if args.judge_url:
        lines.append(_judge(args.judge_url))
    return "\n".join([*lines, *prompts]) + "\n"


def _roles(column: Column) -> dict[str, Role]:
    """Return the roles that run, by name; a column of one model runs it alone."""
    choice = column.choice
    if column.kind != STEERED and all(pair.alpha == 0 for pair in choice.pairs):
        return {"base": choice.base}
    return named_roles(choice.base, [(pair.expert, pair.anti) for pair in choice.pairs])


def _tokenizers(roles: Mapping[str, Role], named: str | None) -> dict[str, Any]:
    """Return each role's tokenizer; the base's, or the one that was named, where a role has none.

    Raises:
        InputError: No role has one.
        VocabularyError: Token ids differ.
    """
    from proxytune.checkpoints import load_tokenizer, read_config
    from proxytune.vocabulary import shared_size

    tokenizers = {name: load_tokenizer(Role(named) if named else role) for name, role in roles.items()}
    first = next((tokenizer for tokenizer in tokenizers.values() if tokenizer is not None), None)
    if first is None:
        raise InputError("no role comes with a tokenizer: name one with --tokenizer.")
    widths = {
        name: read_config(role, name, needs_weights=False).get_text_config(decoder=True).vocab_size
        for name, role in roles.items()
        if not role.is_adapter
    }
    try:
        shared_size({name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer is not None}, widths)
    except VocabularyError as error:
        raise VocabularyError(f"{', '.join(roles)}: {error}") from error
    return {name: first if tokenizer is None else tokenizer for name, tokenizer in tokenizers.items()}


def _work(
    part: Part, column: Column, args: argparse.Namespace, tokenizers: Mapping[str, Any], sizes: Sequence[Footprint]
) -> Work:
    recorder = Recorder()
    record = getattr(part, "record", None)
    try:
        if record is None:
            part.predict(recorder, range(len(part)))  # type: ignore[arg-type]
        else:
            record(recorder)
    except Recorded:
        pass
    formats = column.formats(part.formats, args)
    contexts = [size.max_context for size in sizes if size.max_context]
    counts = dict.fromkeys(tokenizers, 0)
    new_tokens = longest = num_too_long = 0
    shown: dict[str, str] = {}
    for asked in recorder.asked:
        num_answer_tokens = asked.max_new_tokens or len(
            tokenizers["base"](asked.answer, add_special_tokens=False).input_ids
        )
        new_tokens += asked.max_new_tokens
        length = 0
        for name, tokenizer in tokenizers.items():
            ids = PromptFormat(formats[f"{name.partition('_')[0]}_prompt"]).encode(asked.prompt, tokenizer)
            shown.setdefault(name, _shortened(tokenizer.decode(ids)))
            length = max(length, len(ids) + num_answer_tokens)
            counts[name] += len(ids) + (0 if asked.max_new_tokens else num_answer_tokens)
        longest = max(longest, length)
        num_too_long += bool(contexts) and length > min(contexts)
    return Work(
        num_requests=len(recorder.asked),
        prompt_tokens=counts,
        new_tokens=new_tokens,
        longest=longest,
        num_too_long=num_too_long,
        shown=shown,
    )


def _needs(sizes: Sequence[Footprint], longest: int, batch_size: int, gpu: str) -> Iterator[str]:
    weights = sum(size.weight_bytes for size in sizes)
    cache = batch_size * longest * sum(size.kv_bytes_per_token for size in sizes)
    yield f"{weights / 2**30:.1f} GiB"
    yield f"{cache / 2**30:.1f} GiB"
    yield str(math.ceil((weights + cache) / (_MEMORY_SHARE * GPUS[gpu][0] * 2**30)))


def _hours(work: Work, sizes: Sequence[Footprint], batch_size: int, gpu: str) -> float:
    """Return the hours of one GPU that the column's part takes, were its memory large enough."""
    _, bandwidth, peak = GPUS[gpu]
    names = {size.name: size for size in sizes}
    prompt_s = sum(
        2 * names[name].num_parameters * count / (_PEAK_SHARE * peak)
        for name, count in work.prompt_tokens.items()
        if name in names
    )
    decode_s = work.new_tokens / batch_size * sum(size.weight_bytes for size in sizes) / (_BANDWIDTH_SHARE * bandwidth)
    return (prompt_s + decode_s) / 3600


def _judge(url: str) -> str:
    """Return that a judge's server answers.

    Raises:
        OptionError: It does not.
    """
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", timeout=_TIMEOUT_S, follow_redirects=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OptionError(f"no judge answers at {url!r}: {error}; start it, or correct --judge-url.") from error
    if answer.status_code >= 500 or answer.is_redirect:
        raise OptionError(f"the judge at {url!r} answers with HTTP {answer.status_code}: correct --judge-url.")
    return f"judge: {url} answers (HTTP {answer.status_code})"


def _shortened(text: str) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= _SHOWN else f"{quoted[: _SHOWN // 2]} … {quoted[-_SHOWN // 2 :]}"
