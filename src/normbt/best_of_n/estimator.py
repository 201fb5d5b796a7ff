r"""What the best of n candidates is worth, averaged over all subsets of n: exact, ties included, without sampling."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]


def choice_weights(scores: ArrayLike, sizes: Sequence[int]) -> Numbers:
    r"""Probability that each candidate is the one with the highest score in a random subset of n candidates.

    Of N candidates in ascending order, the one at rank b is the best of a subset of n without replacement with
    probability

    .. math:: w_b = \binom{b-1}{n-1} \Big/ \binom{N}{n} = F_b \frac{n}{b}, \qquad
              F_N = 1, \quad F_{b-1} = F_b \, \frac{b-n}{b}

    where :math:`F_b` is the probability that the whole subset lies at or below rank b. Candidates with equal scores
    share the weight of their ranks equally, which is the exact expectation under a fair draw among the tied. The
    recurrence has neither cancellation nor large numbers: its relative error stays below N rounding errors.

    Args:
        scores: score of each candidate, shape ``(candidates,)``, finite.
        sizes: subset sizes n, each from 1 to the number of candidates.

    Returns:
        Shape ``(sizes, candidates)``; every row sums to 1.

    Raises:
        ValueError: a score is not finite, or a size is out of range.

    Example:
        >>> choice_weights([0.2, 0.9, 0.9], [1, 2]).round(4).tolist()
        [[0.3333, 0.3333, 0.3333], [0.0, 0.5, 0.5]]

    References:
        Nakano et al., "WebGPT", arXiv 2112.09332, appendix I (the estimator, without ties).
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"wanted finite scores of shape (candidates,), found shape {array.shape}")
    _, group, members = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(members)  # rank of the last member of each group of equal scores
    by_rank = rank_weights(array.size, sizes)
    total = np.add.reduceat(by_rank, last - members, axis=1)
    return (total / members)[:, group]


def rank_weights(count: int, sizes: Sequence[int]) -> Numbers:
    """Probability that the candidate at each rank, lowest first, is the best of a random subset; no ties.

    Args:
        count: number of candidates N.
        sizes: subset sizes n, each from 1 to N.

    Returns:
        Shape ``(sizes, count)``.

    Raises:
        ValueError: a size is out of range.

    Example:
        >>> rank_weights(4, [2]).round(4).tolist()
        [[0.0, 0.1667, 0.3333, 0.5]]
    """
    wrong = [n for n in sizes if not 1 <= n <= count]
    if wrong:
        raise ValueError(f"wanted subset sizes from 1 to {count}, found {wrong}")
    n = np.asarray(sizes, dtype=np.float64)[:, None]
    ranks = np.arange(count, 0, -1, dtype=np.float64)
    below = np.cumprod(np.maximum(ranks - n, 0.0) / ranks, axis=1)
    reached = np.concatenate([np.ones((len(n), 1)), below[:, :-1]], axis=1)
    return (reached * n / ranks)[:, ::-1]


def expected_choice(scores: ArrayLike, values: ArrayLike, sizes: Sequence[int]) -> Numbers:
    r"""Mean value of the highest-scored candidate over all subsets of n candidates.

    .. math:: \hat V_n = \sum_i w_i(n) \, v_i

    Unbiased for the value of the best of n fresh candidates, for every n up to N; near N few subsets are left and the
    estimate is as noisy as one draw.

    Args:
        scores: what the choice looks at, shape ``(candidates,)``.
        values: what it is worth, shape ``(candidates,)`` or ``(candidates, columns)``.
        sizes: subset sizes n.

    Returns:
        Shape ``(sizes,)`` or ``(sizes, columns)``.

    Example:
        >>> expected_choice([0, 1, 2], [10.0, 0.0, 40.0], [1, 2, 3]).round(4).tolist()
        [16.6667, 26.6667, 40.0]
    """
    return choice_weights(scores, sizes) @ np.asarray(values, dtype=np.float64)


def kl_bound(n: int) -> float:
    r"""Upper bound of the divergence of the best-of-n policy from the policy that gives the candidates.

    .. math:: \mathrm{KL} \le \log n - \frac{n-1}{n}

    Equal to it only where no two candidates can coincide or tie; see Beirami et al.

    Args:
        n: number of candidates to choose from, at least 1.

    Returns:
        The bound in nats.

    Example:
        >>> round(kl_bound(4), 4)
        0.6363

    References:
        Beirami et al., "Theoretical guarantees on the best-of-n alignment policy", arXiv 2401.01879.
    """
    return math.log(n) - (n - 1) / n


def agreement(scores: ArrayLike, gold: ArrayLike) -> float:
    """Probability that the highest-scored candidate is one with the highest gold score, ties drawn fairly.

    Example:
        >>> agreement([1, 3, 3], [0, 5, 2])
        0.5
    """
    first, second = np.asarray(scores, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    return float((second[first == first.max()] == second.max()).mean())
