"""The loops that are compared with, the prompts they get, and the check that all decode the same tokens."""

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.decoding.equality import TokensDifferError, check_tokens, largest_gap
from benchmarks.decoding.machine import with_peak
from benchmarks.decoding.measuring import in_turns, median_ratio
from benchmarks.decoding.naive import lean_loop, naive_batches, naive_loop
from benchmarks.decoding.shapes import random_prompts
from benchmarks.decoding.workloads import Requests, WorkloadError, natural_prompts, parse_workload
from tests import tiny
from tests.reference import Reference

PROMPTS = [tiny.prompt_ids(length, length) for length in (4, 9, 6)]


def reference(alpha: float = 1.0) -> list[list[int]]:
    """What base, expert and anti give, row by row without a cache."""
    base, expert, anti = tiny.trio()
    plain = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    return [plain.greedy([prompt] * 3, [alpha], 12) for prompt in PROMPTS]


def test_the_naive_loop_is_the_arithmetic() -> None:
    """Rows of different length, padded on the left, give what each gives alone without a cache; α counts."""
    for alpha in (1.0, 0.4):
        done = naive_loop(tiny.trio(), PROMPTS, max_new_tokens=12, pad_token_id=tiny.PAD, alpha=alpha)
        assert done.token_ids == reference(alpha)
    assert done.first_token_seconds is not None
    assert 0 < done.first_token_seconds < done.seconds


def test_the_lean_loop_is_the_base_alone() -> None:
    """One model without mask gives the base's own tokens, as the naive loop does with the base alone."""
    base = tiny.trio()[0]
    prompts = [tiny.prompt_ids(7, seed) for seed in range(3)]
    alone = naive_loop([base], prompts, max_new_tokens=10, pad_token_id=tiny.PAD)
    assert lean_loop(base, prompts, max_new_tokens=10).token_ids == alone.token_ids


def check(rows: list[list[int]], **changed: Any) -> Any:
    """Check rows as those of a variant called ours."""
    arguments: dict[str, Any] = {"models": tiny.trio(), "prompts": PROMPTS, **changed}
    return check_tokens("ours", rows, reference(), **arguments)


def test_equal_tokens_pass() -> None:
    """The reference's own rows agree in full."""
    agreement = check(reference())
    assert (agreement.num_equal, agreement.num_rows, agreement.largest_gap) == (3, 3, 0.0)


def test_a_wrong_token_is_refused() -> None:
    """One other token in one row is an error that names variant, row and token."""
    rows = reference()
    rows[1][5] = (rows[1][5] + 1) % tiny.VOCAB_SIZE
    with pytest.raises(TokensDifferError, match=r"ours differs.* of row 1"):
        check(rows)


def test_another_strength_is_refused() -> None:
    """A variant that forgets to steer, or steers with another α, does not pass."""
    for alpha in (0.0, 0.5):
        with pytest.raises(TokensDifferError):
            check(reference(alpha))


def test_missing_tokens_are_refused() -> None:
    """A variant that stops early is not faster, it is an error."""
    with pytest.raises(TokensDifferError, match="11"):
        check([row[:11] for row in reference()])


def test_a_tie_may_break_either_way() -> None:
    """Where two tokens have the same logit a row may take the other one; the row counts as not equal."""
    base = tiny.new_model("llama", 7)
    with torch.no_grad():
        base.lm_head.weight[20:40] = base.lm_head.weight[40:60]
    prompt = tiny.prompt_ids(5)
    [row] = naive_loop([base], [prompt], max_new_tokens=12, pad_token_id=tiny.PAD).token_ids
    place = next(place for place, token in enumerate(row) if 20 <= token < 40)
    wanted = [*row[: place + 1]]
    other = [*row[:place], row[place] + 20]
    agreement = check_tokens("ours", [other], [wanted], models=[base], prompts=[prompt])
    assert (agreement.num_equal, agreement.num_rows) == (0, 1)
    assert agreement.largest_gap < 1e-5


def test_the_gap_is_that_of_the_worst_token() -> None:
    """By hand: logits 4, 2, 0 at the one place; taking the second lies (4 − 2) / (4 − 2) of the spread below."""

    class Fixed(torch.nn.Module):
        """A model whose logits are given."""

        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, ids: torch.Tensor, logits_to_keep: int) -> Any:
            """Return the same logits for the last positions."""
            table = torch.tensor([4.0, 2.0, 0.0]).expand(1, logits_to_keep, 3)
            return type("Output", (), {"logits": table})

    assert largest_gap([Fixed()], [0, 0], [0, 1], alpha=1.0) == (1.0, 1)


def test_prompts_have_the_length_asked_for() -> None:
    """Each ends in its question, is filled from other texts, and is cut at its beginning."""
    tokenizer = tiny.word_tokenizer()
    prompts = natural_prompts(tokenizer, ["w5 w6 w7"], ["w1 w2", "w3"], count=3, length=9)
    assert [len(prompt) for prompt in prompts] == [9, 9, 9]
    assert all(prompt[-3:] == tokenizer("w5 w6 w7").input_ids[-3:] for prompt in prompts)
    assert prompts[0] != prompts[1]
    assert natural_prompts(tokenizer, ["w5 w6 w7"], ["w1"], count=1, length=2) == [prompts[0][-2:]]
    with pytest.raises(WorkloadError):
        natural_prompts(tokenizer, [], ["w1"], count=1, length=4)


def test_workloads_are_read_from_text() -> None:
    """`prompt:new@batch` is read, anything else is an error."""
    for text in ("512:8@1", "8-128:8-256@64x200"):
        assert parse_workload(text).label == text
    for text in ("8:8", "8:0@1", "a:8@1", "8:8@1@2", "9-8:8@1"):
        with pytest.raises(WorkloadError):
            parse_workload(text)


def test_ragged_requests_differ_within_their_bounds() -> None:
    """Lengths stay within the bounds, both of which occur, and the draw is the seed's."""

    def draw(seed: int) -> Requests:
        return parse_workload("8-12:4-9@16x200").requests(partial(random_prompts, vocab_size=64, seed=1), seed=seed)

    requests = draw(1)
    assert requests.is_ragged
    assert {len(prompt) for prompt in requests.prompts} == set(range(8, 13))
    assert set(requests.counts) == set(range(4, 10))
    assert [len(batch.prompts) for batch in requests.batches()] == [*[16] * 12, 8]
    assert requests == draw(1) != draw(2)


def test_the_naive_loop_drops_tokens_beyond_a_rows_own() -> None:
    """Requests of many lengths, three to a batch, get their own number of tokens, and the reference's ones."""
    base, expert, anti = tiny.trio()
    prompts = partial(random_prompts, vocab_size=tiny.VOCAB_SIZE, seed=4)
    requests = parse_workload("3-8:2-9@3x7").requests(prompts)
    plain = Reference(base, [(expert, anti)], tiny.VOCAB_SIZE)
    rows = zip(requests.prompts, requests.counts, strict=True)
    wanted = [plain.greedy([prompt] * 3, [1.0], count) for prompt, count in rows]
    assert naive_batches((base, expert, anti), requests, pad_token_id=0).token_ids == wanted


def test_variants_take_turns() -> None:
    """Each round runs all variants, every second one backwards; ratios are taken within a round."""
    order: list[str] = []
    in_turns({name: lambda name=name: order.append(name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert median_ratio([10.0, 1.0, 30.0], [5.0, 1.0, 10.0]) == 2.0


def test_memory_that_a_run_takes_is_seen() -> None:
    """A run that holds 256 MiB for a moment shows a rise of at least 128, and its result comes through."""
    done, peak = with_peak(lambda: float(torch.ones(2**25, dtype=torch.float64).sum()), torch.device("cpu"))
    assert done == 2**25
    if peak is None:
        pytest.skip("this system does not tell a process its peak of memory")
    assert peak >= 128 * 2**20
