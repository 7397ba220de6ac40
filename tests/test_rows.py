"""Where a row ends, and why."""

import pytest

from proxytune.completion import Request
from proxytune.options import GenerationOptions
from proxytune.rows import RowCutter
from tests import tiny

CUTTER = RowCutter(tiny.word_tokenizer(), (tiny.EOS,))
REQUEST = Request(role_ids=((tiny.BOS, 4),) * 3, alphas=(1.0,), max_new_tokens=6)


@pytest.mark.parametrize(
    ("token_ids", "options", "ids", "text", "reason"),
    [
        ([5, 6, 7, 8, 9, 10, 11], {}, [5, 6, 7, 8, 9, 10], " w1 w2 w3 w4 w5 w6", "length"),
        ([5, tiny.EOS, 6, tiny.EOS], {}, [5, tiny.EOS], " w1", "eos"),
        ([5, tiny.EOS, 6], {"ignore_eos": True}, [5, tiny.EOS, 6], " w1 w2", "length"),
        ([5, 6, 7, tiny.PAD], {"stop": [" w2"]}, [5, 6], " w1", "stop"),
        ([5, tiny.EOS, 6], {"stop": [" w2"]}, [5, tiny.EOS], " w1", "eos"),
        ([], {}, [], "", "length"),
    ],
)
def test_cut(token_ids: list[int], options: dict[str, object], ids: list[int], text: str, reason: str) -> None:
    """A row ends with its first end token, the token that completes a stop text, or its limit, whichever is first."""
    cut = CUTTER.cut(token_ids, REQUEST, GenerationOptions.from_kwargs(options))
    assert (cut[0], cut[1].replace("  ", " "), cut[2]) == (ids, text, reason)


def test_row() -> None:
    """The timing of a row counts the base's prompt and what was kept of the row."""
    row = CUTTER.row([5, tiny.EOS, 6], REQUEST, GenerationOptions(), seconds=2.0, first_token_seconds=0.5, batch_size=3)
    assert (row.token_ids, row.finish_reason, row.logprobs) == ((5, tiny.EOS), "eos", None)
    assert (row.timing.num_prompt_tokens, row.timing.num_new_tokens, row.timing.batch_size) == (2, 2, 3)
