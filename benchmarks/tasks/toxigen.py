"""ToxiGen as the proxy-tuning paper ran it: prompts of hateful and neutral remarks, continued to the end of the line.

Source: Liu et al. 2024, section 4.2: greedy, at most 512 tokens and one line, 200 prompts per file. The prompts are the
user's to give (ToxiGen's own lie at github.com/microsoft/TOXIGEN). With --classifier the answers are judged at once,
else by `bench score toxigen`. Difference: files are taken by name, so that a folder gives the same prompts everywhere;
the paper's draw depended on the order in which its disk listed them.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.answerer import Answerer, Formats
from benchmarks.measures import Measure, field
from benchmarks.provenance import file_digest, model_identity
from benchmarks.scoring.rows import read_rows
from benchmarks.tasks.task import Job, first
from proxytune.errors import InputError, OptionError

HELP = "continuations of ToxiGen's prompts, and how many of them are toxic"
EXAMPLE = """\
  python -m benchmarks toxigen --data toxigen/prompts --classifier tomh/toxigen_roberta --chat-expert \\
      --base meta-llama/Llama-2-13b-hf --expert meta-llama/Llama-2-7b-chat-hf --anti meta-llama/Llama-2-7b-hf \\
      --output runs/toxigen-13b"""
MEASURES = {
    "toxigen": (
        Measure(name="toxic", value=field("is_toxic"), missing="without verdict", is_better_higher=False),
        Measure(name="words", value=field("num_words"), is_share=False),
    )
}
_SEED = 42


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the task's own options."""
    command.add_argument(
        "--data", metavar="PATH", help="folder of hate_GROUP.txt and neutral_GROUP.txt, or .jsonl of text, label, group"
    )
    command.add_argument("--per-group", type=int, default=200, metavar="N", help="prompts drawn from each .txt (200)")
    command.add_argument("--classifier", metavar="MODEL", help="judge of the answers, as tomh/toxigen_roberta")
    command.add_argument("--toxic-label", type=int, default=1, metavar="N", help="the classifier's label for toxic (1)")
    command.add_argument(
        "--chat-expert", action="store_true", help="expert and tuned models are Llama-2 chat models: give them a turn"
    )
    command.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="of an answer (512)")


def prepare(args: argparse.Namespace) -> Job:
    """Return the work.

    Raises:
        InputError: The prompts cannot be read, or were not named.
    """
    if not args.data:
        raise InputError("ToxiGen's prompts are not part of proxytune: name their folder with --data.")
    path = Path(args.data).expanduser()
    files = _files(path)
    classifier = model_identity(args.classifier, None) if args.classifier else None
    part = ToxigenPart(
        prompts=first(_read(path, files, args.per_group), args.limit),
        classifier=args.classifier,
        toxic_label=args.toxic_label,
        is_chat_expert=args.chat_expert,
        max_new_tokens=args.max_new_tokens,
    )
    return Job(
        parts=[part],
        settings={
            "data": {file.name: file_digest(file) for file in files},
            "per_group": args.per_group,
            "classifier": classifier,
            "toxic_label": args.toxic_label,
            "is_chat_expert": args.chat_expert,
            "max_new_tokens": args.max_new_tokens,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Remarks to go on with, whether they are hateful (`hate`) or not (`neutral`), and whom they are about."""

    text: str
    label: str
    group: str


@dataclass(frozen=True, kw_only=True)
class ToxigenPart:
    """The prompts; `is_chat_expert` gives tuned models a turn of Llama-2 chat."""

    prompts: Sequence[Prompt]
    classifier: str | None = None
    toxic_label: int = 1
    is_chat_expert: bool = False
    max_new_tokens: int = 512
    name: str = "toxigen"

    @property
    def formats(self) -> Formats:
        """The text alone, or a turn: beside a base just the text, alone with a request, as published."""
        if not self.is_chat_expert:
            return Formats()
        return Formats(expert="[INST]{prompt} [/INST]", alone="[INST] Complete the following: {prompt} [/INST]")

    def __len__(self) -> int:
        return len(self.prompts)

    def predict(self, answerer: Answerer, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Continue these prompts; without a classifier `is_toxic` is null."""
        chosen = [self.prompts[index] for index in indices]
        outputs = answerer.generate([prompt.text for prompt in chosen], max_new_tokens=self.max_new_tokens, stop=["\n"])
        verdicts: Sequence[bool | None] = [None] * len(outputs)
        if self.classifier is not None:
            verdicts = self._judge.are_toxic(outputs)
        return [
            {
                "text": prompt.text,
                "label": prompt.label,
                "target_groups": [prompt.group],
                "prediction": output,
                "num_words": len(output.split()),
                "is_toxic": None if verdict is None else int(verdict),
            }
            for prompt, output, verdict in zip(chosen, outputs, verdicts, strict=True)
        ]

    @cached_property
    def _judge(self) -> Any:
        from benchmarks.scoring.toxicity import ToxicityClassifier

        return ToxicityClassifier(str(self.classifier), toxic_label=self.toxic_label)


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(f"{str(path)!r} is no folder with .txt files and no file: name ToxiGen's prompts with --data.")
    return files


def _read(path: Path, files: Sequence[Path], per_group: int) -> list[Prompt]:
    if not path.is_dir():
        rows = read_rows(path)
        return [Prompt(text=row.text("text"), label=row.text("label"), group=row.text("group")) for row in rows]
    if per_group < 1:
        raise OptionError(f"per_group is {per_group}: it must be a whole number of at least 1.")
    draws = random.Random(_SEED)
    return [prompt for file in files for prompt in _draw(file, per_group, draws)]


def _draw(path: Path, per_group: int, draws: random.Random) -> list[Prompt]:
    label, _, group = path.name.partition(".")[0].partition("_")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    draws.shuffle(lines)
    # The files write a line end as a backslash and an n, and a backslash as two.
    texts = (line.replace("\\\\", "\\").replace("\\n", "\n") for line in lines[:per_group] if line)
    return [Prompt(text=text, label=label, group=group) for text in texts]
