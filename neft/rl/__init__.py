"""Experts by preference or reward, through TRL (the extra `rl`): answer pairs, reward model, RLOO, GRPO, DPO.

Noise is never on in these: it would reach the sampled completions and the reference log-probabilities. Importing this
package is light: torch, transformers and TRL are imported by the first run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from neft.rl.options import Method, PolicyConfig, RewardConfig
from neft.rl.pairs import AnswerPair, read_pairs, read_prompts
from neft.rl.scores import Answer, pairs_of_question, read_scored_pairs, score_of_votes

if TYPE_CHECKING:
    from neft.rl.policies import PolicyResult, train_policy
    from neft.rl.rewarding import RewardResult, train_reward
    from neft.rl.scoring import RewardScorer

__all__ = [
    "Answer",
    "AnswerPair",
    "Method",
    "PolicyConfig",
    "PolicyResult",
    "RewardConfig",
    "RewardResult",
    "RewardScorer",
    "pairs_of_question",
    "read_pairs",
    "read_prompts",
    "read_scored_pairs",
    "score_of_votes",
    "train_policy",
    "train_reward",
]

_HOMES = {
    "PolicyResult": "neft.rl.policies",
    "train_policy": "neft.rl.policies",
    "RewardResult": "neft.rl.rewarding",
    "train_reward": "neft.rl.rewarding",
    "RewardScorer": "neft.rl.scoring",
}


def __getattr__(name: str) -> object:
    """Imports a public name from its module on first use.

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'neft.rl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
