"""The paper's direction on a CPU: noise-free training loss rises with α, held-out loss falls from α = 0 to 2 and 5.

A tiny Llama of random weights is tuned on 64 rows of a made-up instruction set, far into overfitting, and measured on
200 others: `python -m benchmarks.neft_direction --output DIR`. The rows have rules that can be learned (repeat,
reverse, first, last) and a wording that cannot: each answer opens and closes with one of several phrases at random.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from neft.ablation.ablating import Ablation, ablate
from neft.ablation.plots import plot_losses
from neft.ablation.summary import summary_table
from neft.config import TrainingConfig

ALPHAS = (0.0, 2.0, 5.0)
NUM_SEEDS = 3
NUM_STEPS = 180
_WINDOW = 32
_NOUNS = [f"noun{number}" for number in range(40)]
_TASKS = ("repeat", "reverse", "first", "last")
_OPENINGS = ("the answer is", "here you go", "sure", "it reads")
_CLOSINGS = (".", "that is all .", "done .")


def rows(num_rows: int, seed: int) -> list[dict[str, str]]:
    """Returns rows of the made-up instruction set."""
    draw = random.Random(seed)
    return [_row(draw) for _ in range(num_rows)]


def write_world(folder: Path) -> None:
    """Writes 64 training rows, 200 held-out rows, and a random model with its word tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, num_rows, seed in (("train", 64, 1), ("held_out", 200, 2)):
        lines = [json.dumps(row) + "\n" for row in rows(num_rows, seed)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=_WINDOW,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def run(folder: Path, *, num_seeds: int = NUM_SEEDS, alphas: tuple[float, ...] = ALPHAS, show: bool = True) -> Ablation:
    """Runs the grid in a folder; what is finished there is not run again."""
    if not (folder / "model" / "config.json").exists():
        write_world(folder)
    base = TrainingConfig(
        model=str(folder / "model"),
        data=folder / "train.jsonl",
        eval_data=folder / "held_out.jsonl",
        output=folder / "grid",
        max_steps=NUM_STEPS,
        eval_every=NUM_STEPS,
        batch_size=16,
        learning_rate=3e-3,
        show_progress=show,
    )
    return ablate(base, alphas=alphas, num_seeds=num_seeds, keeps_models=False)


def main() -> int:
    """Runs the grid, draws the plot, and writes the table with the time to standard output."""
    parser = argparse.ArgumentParser(description="The direction of the NEFTune paper, on a CPU.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for data, runs and table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw the losses (PNG)")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, metavar="N", help="runs of each strength")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    start_s = time.monotonic()
    ablation = run(options.output, num_seeds=options.seeds)
    seconds = time.monotonic() - start_s
    plot_losses(ablation.summaries, options.plot or options.output / "losses.png")
    sys.stdout.write(f"{summary_table(ablation.summaries)}\n\n{seconds:.0f} s on one thread.\n")
    return 0


def _row(draw: random.Random) -> dict[str, str]:
    task = draw.choice(_TASKS)
    nouns = [draw.choice(_NOUNS) for _ in range(draw.randint(3, 6))]
    answers = {"repeat": nouns, "reverse": nouns[::-1], "first": nouns[:1], "last": nouns[-1:]}
    completion = " ".join([draw.choice(_OPENINGS), *answers[task], draw.choice(_CLOSINGS)])
    return {"prompt": " ".join([task, *nouns, ":"]), "completion": completion}


def _tokenizer() -> PreTrainedTokenizerFast:
    phrases = " ".join((*_TASKS, *_OPENINGS, *_CLOSINGS, *_NOUNS, ":"))
    words = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(phrases.split())]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


if __name__ == "__main__":
    raise SystemExit(main())
