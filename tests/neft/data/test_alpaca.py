"""The public Alpaca file: every row, quickly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from neft.data import num_shared_prompts, pack, read_documents, split, tokenize

ALPACA = Path(__file__).parents[4] / "shared" / "data" / "instruct" / "alpaca_data.json.gz"

pytestmark = pytest.mark.skipif(not ALPACA.is_file(), reason=f"needs {ALPACA}")


@pytest.fixture(scope="module")
def documents():
    """The 52,002 rows in the Alpaca template."""
    return read_documents(ALPACA, format="alpaca")


@pytest.fixture(scope="module")
def words(documents):
    """A tokenizer of the 4,000 most frequent words and marks of every 20th row."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.WordLevelTrainer(vocab_size=4000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((s.text for d in documents[::20] for s in d.segments), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.slow
def test_every_row_is_kept(documents, words):
    """52,002 rows are read and tokenized, none is lost, 28 learn nothing but their end; in under 20 CPU seconds."""
    # Of all cores, and not the clock's: other processes share them.
    start_s = time.process_time()
    data = tokenize(read_documents(ALPACA, format="alpaca"), words, max_length=4096, overlong="error")
    assert time.process_time() - start_s < 20
    report = data.report()
    assert (report.num_rows, report.num_kept, report.dropped) == (52_002, 52_002, {})
    ends_only = sum(sum(label != -100 for label in example.labels) == 1 for example in data.examples)
    assert ends_only == 28
    assert [document.row for document in documents] == list(range(1, 52_003))


@pytest.mark.slow
def test_packing_fills_the_windows(documents, words):
    """At Alpaca's lengths, windows of 512 are filled to more than 98 %; padded batches of 8 to less than 60 %."""
    data = tokenize(documents[:10_000], words, max_length=512, overlong="truncate")
    packed = pack(data.examples, max_length=512)
    assert packed.num_documents == len(data.examples)
    assert packed.efficiency > 0.98
    batches = [data.examples[start : start + 8] for start in range(0, len(data.examples), 8)]
    num_slots = sum(len(batch) * max(len(example.input_ids) for example in batch) for batch in batches)
    assert packed.num_tokens / num_slots < 0.6


@pytest.mark.slow
def test_the_split_shares_no_prompt(documents):
    """One percent held out: 520 rows, whose prompts are all new."""
    train, held_out = split(documents, eval_fraction=0.01, seed=0)
    assert (len(train), len(held_out)) == (51_482, 520)
    assert num_shared_prompts(train, held_out) == 0
