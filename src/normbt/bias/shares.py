"""Who gets the update: shares by distance, effective number of pairs, quiet mistakes.

The *update* of a pair is the norm of its own loss gradient: error times gradient norm under BT, and times the pair's
weight under NormBT. Gradients of different pairs do not add up to the sum of their norms; shares of that sum say whose
gradients are large, not what their sum is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] # ships none

Floats = NDArray[np.float64]


class QuietCount(NamedTuple):
    """Misranked pairs with a small update.

    Attributes:
        quiet: how many misranked pairs are updated less than the median of the correctly ranked ones.
        median: that median; None where no pair is ranked correctly, and then no mistake is quiet.
    """

    quiet: int
    median: float | None


def prediction_error(margin: ArrayLike) -> Floats:
    r"""Prediction error of each pair, the factor of the BT gradient that is the signal.

    .. math:: e_i = 1 - \sigma(d_i) = \sigma(-d_i)

    Args:
        margin: lead ``d`` of the preferred answer's reward, any shape.

    Returns:
        Errors in ``[0, 1]``, of the same shape; NaN where the margin is.

    Example:
        >>> prediction_error([0.0, 1000.0, -1000.0]).tolist()
        [0.5, 0.0, 1.0]
    """
    return np.asarray(expit(-np.asarray(margin, dtype=np.float64)), dtype=np.float64)


def distance_groups(distance: ArrayLike, groups: int) -> list[NDArray[np.intp]]:
    """Split pairs into groups of equal size by distance, smallest distance first.

    Sizes differ by at most one; equal distances stay in the order of the pairs, so every pair is in exactly one group
    and a group is empty only where there are fewer pairs than groups.

    Args:
        distance: finite distances, shape ``(pairs,)``.
        groups: number of groups, at least one: 10 for deciles, 3 for near, mid and far.

    Returns:
        Indices of each group's pairs.

    Example:
        >>> [group.tolist() for group in distance_groups([0.3, 0.1, 0.2, 0.4], 2)]
        [[1, 2], [0, 3]]
    """
    return np.array_split(np.argsort(np.asarray(distance), kind="stable"), groups)


def update_shares(update: ArrayLike, groups: Sequence[NDArray[np.intp]]) -> list[float | None]:
    r"""Share of each group in the update of all pairs.

    .. math:: s_g = \sum_{i \in g} u_i \Big/ \sum_i u_i

    Args:
        update: update of each pair, shape ``(pairs,)``, not negative; those of pairs in no group count in the whole.
        groups: indices of each group's pairs.

    Returns:
        The shares, in ``[0, 1]``; None for every group where no pair has an update.

    Example:
        >>> update_shares([1.0, 3.0, 4.0], [np.array([0, 1]), np.array([2])])
        [0.5, 0.5]
    """
    updates = np.asarray(update, dtype=np.float64)
    total = float(updates.sum())
    return [float(updates[group].sum()) / total if total > 0 else None for group in groups]


def effective_pairs(update: ArrayLike) -> float | None:
    r"""How many equal updates would average as well as these.

    .. math:: n_{\mathrm{eff}} = \Bigl(\sum_i u_i\Bigr)^2 \Big/ \sum_i u_i^2

    Args:
        update: update of each pair, shape ``(pairs,)``, not negative.

    Returns:
        A number from 1 to the number of pairs; None where no pair has an update.

    Example:
        >>> effective_pairs([1.0, 1.0, 1.0, 1.0]), effective_pairs([5.0, 0.0])
        (4.0, 1.0)

    References:
        Kish, "Survey Sampling", 1965: the effective sample size of weighted observations.
    """
    updates = np.asarray(update, dtype=np.float64)
    largest = float(updates.max(initial=0.0))
    if largest == 0:
        return None
    scaled = updates / largest  # squares of tiny updates would vanish
    return float(scaled.sum() ** 2 / np.square(scaled).sum())


def quiet_mistakes(update: ArrayLike, misranked: ArrayLike) -> QuietCount:
    """Count the mistakes that hardly move the model: misranked pairs below the median of the correctly ranked ones.

    Args:
        update: update of each pair, shape ``(pairs,)``.
        misranked: whether each pair is ranked wrong, shape ``(pairs,)``.

    Returns:
        The count, and the median they are compared with.

    Example:
        >>> quiet_mistakes([0.1, 5.0, 1.0, 2.0, 3.0], [True, True, False, False, False])
        QuietCount(quiet=1, median=2.0)
    """
    updates, wrong = np.asarray(update, dtype=np.float64), np.asarray(misranked, dtype=bool)
    if wrong.all():
        return QuietCount(0, None)
    median = float(np.median(updates[~wrong]))
    return QuietCount(int((updates[wrong] < median).sum()), median)
