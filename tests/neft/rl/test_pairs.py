"""Pairs and prompts from files, as ids, and split."""

from __future__ import annotations

import pytest

from neft import DataError, OutputError
from neft.data import IGNORED, tokenize
from neft.rl import AnswerPair, read_pairs, read_prompts
from neft.rl.encoding import encode_pairs, preference_rows, reward_rows
from neft.rl.pairs import split_pairs, write_pairs
from tests.neft.conftest import make_tokenizer, write_rows

PAIR = {"prompt": "w1", "chosen": "w2", "rejected": "w3"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "p", "chosen": "a"}, "row 2 has no 'rejected'; its keys are 'prompt', 'chosen'"),
        ({}, "row 2 has no 'prompt'; its keys are none"),
        ({**PAIR, "chosen": ["a"]}, "row 2: 'chosen' is a list"),
        ({**PAIR, "prompt": " "}, "row 2: 'prompt' is empty"),
        ({**PAIR, "rejected": ""}, "row 2: 'rejected' is empty"),
        ({**PAIR, "rejected": "w2"}, "row 2: 'chosen' and 'rejected' are the same answer"),
        ([1], "row 2 is a JSON list"),
    ],
)
def test_bad_pairs_name_their_row(tmp_path, row, complaint):
    """A row that is no pair is named with its number and its fault."""
    with pytest.raises(DataError, match=complaint):
        read_pairs(write_rows(tmp_path / "pairs.jsonl", [PAIR, row]))


def test_files_without_rows(tmp_path):
    """No pairs, no prompts and no file are errors."""
    empty = write_rows(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="has no rows"):
        read_pairs(empty)
    with pytest.raises(DataError, match="has no prompts"):
        read_prompts(empty)
    with pytest.raises(DataError, match="row 1: 'prompt' is a int"):
        read_prompts(write_rows(tmp_path / "prompts.jsonl", [{"prompt": 1}]))
    with pytest.raises(DataError, match="no data file"):
        read_pairs(tmp_path / "nowhere.jsonl")


def test_what_is_written_is_read(tmp_path):
    """Pairs come back from their file; an existing file needs overwrite; no partial file is left."""
    pairs = [AnswerPair("Frage: ä\n", "b", "c", 1), AnswerPair("q", "d", "e", 2)]
    file = tmp_path / "new" / "pairs.jsonl"
    write_pairs(file, pairs, overwrite=False)
    assert read_pairs(file) == pairs
    assert read_prompts(file) == ["Frage: ä\n", "q"]
    with pytest.raises(OutputError, match="already exists"):
        write_pairs(file, pairs, overwrite=False)
    write_pairs(file, pairs[:1], overwrite=True)
    assert len(read_pairs(file)) == 1
    assert [path.name for path in file.parent.iterdir()] == ["pairs.jsonl"]
    with pytest.raises(OutputError, match="cannot be written"):
        write_pairs(file / "below.jsonl", pairs, overwrite=False)


def test_ids_are_those_of_neft_train():
    """Prompt and answers are tokenized as `neft train` does, each answer closed; longer pairs are counted."""
    tokenizer = make_tokenizer()
    pair = AnswerPair("w0 w1", "w2", "w3 w4", 1)
    (encoded,), num_dropped = encode_pairs([pair, AnswerPair("w0", "w1 " * 5, "w2", 2)], tokenizer, max_length=5)
    assert (encoded.prompt_ids, encoded.chosen_ids, encoded.rejected_ids) == ([4, 5], [6, 2], [7, 8, 2])
    assert (encoded.length, num_dropped) == (5, 1)
    (example,) = tokenize([pair.document(pair.chosen)], tokenizer, max_length=9, overlong="drop").examples
    assert example.input_ids == encoded.prompt_ids + encoded.chosen_ids
    assert [label for label in example.labels if label != IGNORED] == encoded.chosen_ids
    assert reward_rows([encoded]) == {"chosen_ids": [[4, 5, 6, 2]], "rejected_ids": [[4, 5, 7, 8, 2]]}
    assert preference_rows([encoded]) == {"prompt_ids": [[4, 5]], "chosen_ids": [[6, 2]], "rejected_ids": [[7, 8, 2]]}
    with pytest.raises(DataError, match=r"window of 4 tokens \(the shortest has 5\)"):
        encode_pairs([pair], tokenizer, max_length=4)


def test_the_pairs_of_a_prompt_stay_together():
    """No held-out prompt is among the training prompts, and no pair is lost."""
    pairs = [AnswerPair(f"q{index // 3}", f"a{index}", "b", index + 1) for index in range(30)]
    train, held_out = split_pairs(pairs, eval_fraction=0.3, seed=0)
    assert len(held_out) == 9
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held_out}
    assert sorted(train + held_out, key=lambda pair: pair.row) == pairs
