"""Sampling against exact probabilities, and seeds that belong to their row alone."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from proxytune import ProxyGenerator
from tests import tiny
from tests.reference import Reference

SIZE = 10
NUM_DRAWS = 3000
PROMPT = [1, 5, 6]


@pytest.fixture(scope="module")
def toy() -> tuple[ProxyGenerator, Reference]:
    """A trio on ten tokens with a distribution that leaves many of them a chance, and its reference."""
    trio = [tiny.model("llama", seed, vocab_size=SIZE, scale=0.12) for seed in (21, 22, 23)]
    tokenizer = tiny.word_tokenizer([f"w{index}" for index in range(SIZE - 4)])
    return ProxyGenerator(*trio, tokenizer=tokenizer), Reference(trio[0], [(trio[1], trio[2])], SIZE)


def exact(
    reference: Reference,
    prompt: list[int],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> list[float]:
    """Return the probabilities after temperature, top-k, top-p and min-p, in this order, in plain Python."""
    logits = reference.logits([prompt] * 3, [1.0]).double() / temperature
    weights = logits.exp().tolist()
    order = sorted(range(SIZE), key=lambda index: -weights[index])
    kept = order[: top_k or SIZE]
    total, inside, nucleus = sum(weights[index] for index in kept), 0.0, []
    for index in kept:
        # A token is in the nucleus while what is likelier than it has not reached top_p.
        if inside < top_p * total:
            nucleus.append(index)
        inside += weights[index]
    allowed = [index for index in nucleus if weights[index] >= min_p * weights[order[0]]]
    normal = sum(weights[index] for index in allowed)
    return [weights[index] / normal if index in allowed else 0.0 for index in range(SIZE)]


def require_distribution(counts: list[int], probabilities: list[float]) -> None:
    """Fail if a forbidden token was drawn, or the counts are unlikely (p ≤ 0.001); rare tokens are taken together."""
    total = sum(counts)
    assert all(count == 0 for count, share in zip(counts, probabilities, strict=True) if share == 0)
    cells = [(count, share * total) for count, share in zip(counts, probabilities, strict=True) if share * total >= 5]
    rest = (total - sum(count for count, _ in cells), total - sum(expected for _, expected in cells))
    if rest[1] > 1e-6 * total:
        cells.append(rest)
    assert len(cells) >= 2
    assert chisquare([count for count, _ in cells], [expected for _, expected in cells]).pvalue > 0.001


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.85, "min_p": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_first_token_is_drawn_as_it_should(toy: tuple[ProxyGenerator, Reference], settings: dict[str, Any]) -> None:
    """Chi-square of 3,000 rows, each with its seed, against exact probabilities; forbidden tokens never come."""
    generator, reference = toy
    rows = generator.generate(
        [PROMPT] * NUM_DRAWS, max_new_tokens=1, seed=list(range(NUM_DRAWS)), batch_size=500, ignore_eos=True, **settings
    )
    counts = torch.bincount(torch.tensor([row.token_ids[0] for row in rows]), minlength=SIZE).tolist()
    require_distribution(counts, exact(reference, PROMPT, **settings))


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[-1]], ids=str)
def test_the_second_token_is_drawn_behind_the_first(
    toy: tuple[ProxyGenerator, Reference], settings: dict[str, Any]
) -> None:
    """Behind each frequent first token, the second follows the distribution given that token."""
    generator, reference = toy
    rows = generator.generate(
        [PROMPT] * NUM_DRAWS, max_new_tokens=2, seed=list(range(NUM_DRAWS)), batch_size=500, ignore_eos=True, **settings
    )
    tested = 0
    for first in range(SIZE):
        second = torch.tensor([row.token_ids[1] for row in rows if row.token_ids[0] == first])
        if len(second) < 300:
            continue
        tested += 1
        counts = torch.bincount(second, minlength=SIZE).tolist()
        require_distribution(counts, exact(reference, [*PROMPT, first], **settings))
    assert tested >= 2


def test_several_sequences_are_drawn_from_the_same_distribution(toy: tuple[ProxyGenerator, Reference]) -> None:
    """num_return_sequences are different draws of one distribution, also with one seed for all prompts."""
    generator, reference = toy
    rows = generator.generate(
        PROMPT,
        max_new_tokens=1,
        seed=0,
        num_return_sequences=NUM_DRAWS,
        temperature=1.0,
        batch_size=500,
        ignore_eos=True,
    )
    assert [row.sequence for row in rows] == list(range(NUM_DRAWS))
    counts = torch.bincount(torch.tensor([row.token_ids[0] for row in rows]), minlength=SIZE).tolist()
    require_distribution(counts, exact(reference, PROMPT))


def test_the_test_would_notice(toy: tuple[ProxyGenerator, Reference]) -> None:
    """The same counts against temperature 1.4 instead of 1 fail, so the measure has teeth."""
    generator, reference = toy
    rows = generator.generate(
        [PROMPT] * NUM_DRAWS,
        max_new_tokens=1,
        seed=list(range(NUM_DRAWS)),
        batch_size=500,
        temperature=1.0,
        ignore_eos=True,
    )
    counts = torch.bincount(torch.tensor([row.token_ids[0] for row in rows]), minlength=SIZE).tolist()
    with pytest.raises(AssertionError):
        require_distribution(counts, exact(reference, PROMPT, temperature=1.4))


OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.2, "ignore_eos": True}


def test_a_seed_belongs_to_its_row() -> None:
    """A row draws the same tokens alone, beside others, at another place, and in batches of another size."""
    generator = tiny.generator()
    prompts = [tiny.prompt_ids(length, seed=length) for length in (4, 7, 3, 9, 5)]
    seeds = [11, 12, 13, 14, 15]
    together = [row.token_ids for row in generator.generate(prompts, seed=seeds, **OPTIONS)]
    alone = [
        generator.generate(prompt, seed=seed, **OPTIONS)[0].token_ids
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    backwards = [row.token_ids for row in generator.generate(prompts[::-1], seed=seeds[::-1], **OPTIONS)][::-1]
    assert together == alone == backwards
    for batch_size in (1, 2, 3):
        rows = generator.generate(prompts, seed=seeds, batch_size=batch_size, **OPTIONS)
        assert [row.token_ids for row in rows] == together


def test_a_neighbour_that_ends_changes_nothing() -> None:
    """Draws of a row do not shift when another row of the batch ends before it."""
    generator, prompt = tiny.generator(), tiny.prompt_ids(5)
    [alone] = generator.generate(prompt, seed=3, **OPTIONS)
    first = generator.generate(tiny.prompt_ids(6), seed=4, **OPTIONS)[0].text.split()[0]
    beside, ended = generator.generate([prompt, tiny.prompt_ids(6)], seed=[3, 4], stop=f"{first}", **OPTIONS)
    assert ended.finish_reason == "stop"
    assert beside.token_ids == alone.token_ids[: len(beside.token_ids)]


def test_equal_seeds_and_different_seeds() -> None:
    """Equal prompts with equal seeds give equal text; other seeds, and no seed, give others."""
    generator, prompt = tiny.generator(), tiny.prompt_ids(5)
    same = generator.generate([prompt, prompt], seed=7, **OPTIONS)
    assert same[0].token_ids == same[1].token_ids
    seeds = {row.token_ids for row in generator.generate([prompt] * 20, seed=list(range(20)), **OPTIONS)}
    assert len(seeds) == 20
    torch.manual_seed(0)
    unseeded = generator.generate([prompt] * 2, **OPTIONS) + generator.generate([prompt] * 2, **OPTIONS)
    assert len({row.token_ids for row in unseeded}) == 4
    torch.manual_seed(0)
    assert generator.generate([prompt] * 2, **OPTIONS)[0].token_ids == unseeded[0].token_ids


def test_sequences_of_neighbouring_seeds_do_not_repeat() -> None:
    """Three sequences of seeds 0, 1 and 2 for one prompt are nine different draws, reproducible each."""
    generator, prompt = tiny.generator(), tiny.prompt_ids(5)
    options = {**OPTIONS, "num_return_sequences": 3}
    rows = generator.generate([prompt] * 3, seed=[0, 1, 2], **options)
    assert [(row.index, row.sequence) for row in rows] == [(index, copy) for index in range(3) for copy in range(3)]
    assert len({row.token_ids for row in rows}) == 9
    again = generator.generate([prompt], seed=1, batch_size=1, **options)
    assert [row.token_ids for row in again] == [row.token_ids for row in rows[3:6]]


def test_sampling_leaves_the_global_generator_alone() -> None:
    """A seeded call draws nothing from torch's global generator."""
    generator = tiny.generator()
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    generator.generate(tiny.prompt_ids(4), seed=5, **OPTIONS)
    assert torch.equal(torch.rand(3), wanted)


def test_logprobs_are_before_temperature_and_filters(toy: tuple[ProxyGenerator, Reference]) -> None:
    """Of a sampled row they are those of the combined distribution itself; more than there are tokens gives all."""
    generator, reference = toy
    [row] = generator.generate(
        PROMPT, max_new_tokens=4, seed=1, temperature=0.5, top_k=3, repetition_penalty=1.3, logprobs=99, ignore_eos=True
    )
    table = reference.table([PROMPT] * 3, [1.0], row.token_ids)
    for place, entry in enumerate(row.logprobs):
        assert entry.token_id == row.token_ids[place]
        assert entry.logprob == pytest.approx(float(table[place, entry.token_id]), abs=1e-4)
        assert sorted(entry.top) == list(range(SIZE))
        for index, value in entry.top.items():
            assert value == pytest.approx(float(table[place, index]), abs=1e-4)
