"""What became of a pair: right, tied, or without a number."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE_POLICY = "wrong"
"""How equal scores count: a reward model that cannot tell two answers apart has not ranked them."""


class PairOutcomes(NamedTuple):
    """What became of each pair; every field has shape ``(pairs,)``.

    Attributes:
        correct: both scores are finite and the chosen answer's is strictly higher.
        tie: both scores are finite and equal; counted as wrong.
        finite: both scores are finite; a pair that is not is counted as wrong.
    """

    correct: NDArray[np.bool_]
    tie: NDArray[np.bool_]
    finite: NDArray[np.bool_]


def pair_outcomes(chosen: ArrayLike, rejected: ArrayLike) -> PairOutcomes:
    """Decide which pairs a model ranks right: the one rule for ties and for scores that are not numbers.

    Args:
        chosen: scores of the preferred answers, shape ``(pairs,)``.
        rejected: scores of the other answers, shape ``(pairs,)``.

    Returns:
        Right, tied and finite pairs.

    Example:
        >>> pair_outcomes([1.0, 0.5, float("nan")], [0.0, 0.5, 0.0]).correct.tolist()
        [True, False, False]

    References:
        RewardBench, RM-Bench: ``1 if score_chosen > score_rejected else 0``, so ties and NaN count as wrong.
    """
    first, second = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    return PairOutcomes(correct=finite & (first > second), tie=finite & (first == second), finite=finite)
