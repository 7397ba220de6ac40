"""Preferences from a judge's log-probabilities, against AlpacaEval's annotations and by hand."""

import math
from pathlib import Path

import pytest

from benchmarks.scoring.preference import answer_logprobs, is_switched, weighted_preference
from benchmarks.scoring.rows import read_rows


@pytest.mark.parametrize(("name", "num_judged"), [("phi-2.weighted", 800), ("vicuna-13b-v1.5.weighted.glm", 801)])
def test_published_preferences(alpaca_eval: Path, name: str, num_judged: int) -> None:
    """Every preference with log-probabilities follows from them and the drawn order, to its ten published decimals."""
    rows = read_rows(alpaca_eval / f"annotations/{name}.json.gz")
    errors, num_switched = [], 0
    for row in rows:
        logprobs = answer_logprobs(row.fields["raw_completion"])
        if logprobs is None:
            assert row.text("output_1") == row.text("output_2")
            assert row.fields["preference"] == 1.5
            continue
        switched = is_switched(row.text("instruction"))
        num_switched += switched
        preference = weighted_preference(logprobs, switched=switched)
        assert preference is not None
        errors.append(abs(preference - row.fields["preference"]))
    assert len(errors) == num_judged
    assert max(errors) <= 5.1e-11
    assert 0.4 < num_switched / num_judged < 0.6


def test_preference_by_hand() -> None:
    """P(m) = 3 P(M) is a preference of 1.25, and 1.75 in the other order; other tokens count for nothing."""
    logprobs = {"m": math.log(0.6), "M": math.log(0.2), "The": math.log(0.2)}
    assert weighted_preference(logprobs, switched=False) == pytest.approx(1.25, abs=1e-15)
    assert weighted_preference(logprobs, switched=True) == pytest.approx(1.75, abs=1e-15)


@pytest.mark.parametrize(
    ("logprobs", "preference"),
    [({"m": -9999.0}, 1.0), ({"M": -3.0}, 2.0), ({"m": -9999.0, "M": 0.0}, 2.0), ({"The": 0.0}, None)],
)
def test_preference_at_the_limits(logprobs: dict[str, float], preference: float | None) -> None:
    """A token that is not listed has probability zero; with neither there is no preference; nothing overflows."""
    assert weighted_preference(logprobs, switched=False) == preference


@pytest.mark.parametrize("completion", [None, "m", {}, {"logprobs": None}, {"logprobs": {"content": []}}])
def test_a_completion_without_logprobs_has_none(completion: object) -> None:
    """What holds no token log-probabilities is None, whatever its shape."""
    assert answer_logprobs(completion) is None
