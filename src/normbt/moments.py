"""Mean and spread of numbers that come in chunks: each chunk in full precision, then joined."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from normbt.results import RewardMoments


def moments_of(values: NDArray[np.float64]) -> RewardMoments:
    """Count, mean, population standard deviation and range of the finite values.

    Example:
        >>> moments_of(np.array([1.0, 3.0, np.nan]))
        {'count': 2, 'mean': 2.0, 'std': 1.0, 'minimum': 1.0, 'maximum': 3.0}
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return RewardMoments(count=0, mean=None, std=None, minimum=None, maximum=None)
    return RewardMoments(
        count=finite.size,
        mean=float(finite.mean()),
        std=float(finite.std()),
        minimum=float(finite.min()),
        maximum=float(finite.max()),
    )


def join_moments(parts: Iterable[RewardMoments]) -> RewardMoments:
    r"""The moments of the union of several chunks.

    .. math:: M = M_a + M_b + (m_b - m_a)^2 \frac{n_a n_b}{n_a + n_b}, \quad M = n s^2

    Example:
        >>> join_moments([moments_of(np.array([1.0])), moments_of(np.array([3.0, 5.0]))])["mean"]
        3.0

    References:
        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    count, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for part in parts:
        if part["mean"] is None or part["std"] is None or part["minimum"] is None or part["maximum"] is None:
            continue
        more, gap = part["count"], part["mean"] - mean
        squares += part["std"] ** 2 * more + gap**2 * count * more / (count + more)
        mean += gap * more / (count + more)
        count += more
        low, high = min(low, part["minimum"]), max(high, part["maximum"])
    if count == 0:
        return RewardMoments(count=0, mean=None, std=None, minimum=None, maximum=None)
    return RewardMoments(count=count, mean=mean, std=math.sqrt(squares / count), minimum=low, maximum=high)
