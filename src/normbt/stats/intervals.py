"""Intervals: Wilson's for independent trials, and the percentile interval of a bootstrap."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from normbt.stats.bootstrap import Resampled
from normbt.stats.quantiles import normal_cdf, normal_quantile, t_quantile


class Interval(NamedTuple):
    """Lower and upper end of an interval."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    r"""Wilson score interval of a proportion of independent trials.

    .. math:: \frac{\hat p + z^2/2n}{1 + z^2/n} \pm
              \frac{z}{1 + z^2/n}\sqrt{\frac{\hat p(1-\hat p)}{n} + \frac{z^2}{4n^2}}

    Args:
        successes: number of successes, in ``[0, trials]``.
        trials: number of trials, at least one.
        confidence: coverage, in ``(0, 1)``.

    Returns:
        The interval; never empty, also at 0 and 1.

    Raises:
        ValueError: the counts or the confidence are out of range.

    Example:
        >>> low, high = wilson_interval(45, 50)
        >>> round(low, 4), round(high, 4)
        (0.7864, 0.9565)

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"wanted 0 <= successes <= trials and trials >= 1, found {successes} of {trials}")
    check_confidence(confidence)
    z = normal_quantile(0.5 + confidence / 2)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # Rounding can push the ends a hair outside; at 0 and 1 they are exactly 0 and 1.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == trials else float(centre + half)
    return Interval(low, high)


def percentile_interval(samples: ArrayLike, *, confidence: float = 0.95, drawn: Resampled | None = None) -> Interval:
    r"""Percentile interval of the resampled values of one statistic.

    A bootstrap of few clusters is too narrow: its variance is short by the factor :math:`(G - H) / G` for :math:`G`
    clusters in :math:`H` strata, and normal quantiles ignore that the variance is estimated. With ``drawn`` given the
    quantile levels are moved outwards (the *expanded* percentile interval),

    .. math:: \alpha' = \Phi\bigl(\sqrt{G / \nu}\; t_{\nu}^{-1}(\alpha / 2)\bigr), \qquad \nu = G - H

    which is nothing for thousands of clusters in few strata and a percent of coverage for fifty in one.

    Args:
        samples: shape ``(resamples,)``; NaN (a resample that left a whole group out) says nothing and is left out.
        confidence: coverage, in ``(0, 1)``.
        drawn: the clusters behind the statistic, see :func:`normbt.stats.resampled_clusters`; None for the plain
            percentile interval. Where every stratum is one cluster nothing varies, and there is nothing to expand.

    Returns:
        The interval.

    Raises:
        ValueError: ``confidence`` is outside ``(0, 1)``, or no sample is a number.

    Example:
        >>> percentile_interval(range(101), confidence=0.5)
        Interval(low=25.0, high=75.0)
        >>> percentile_interval(range(101), confidence=0.5, drawn=Resampled(clusters=5, strata=1))
        Interval(low=20.37..., high=79.62...)

    References:
        Hesterberg, "What teachers should know about the bootstrap", The American Statistician 2015, section 3.3.
    """
    check_confidence(confidence)
    array = np.asarray(samples, dtype=np.float64)
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        raise ValueError("no resample gave a number")
    tail = (1 - confidence) / 2
    if drawn is not None and drawn.degrees > 0:
        tail = normal_cdf(drawn.expansion * t_quantile(tail, drawn.degrees))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(low), float(high))


def check_confidence(confidence: float) -> None:
    """Refuse a coverage that is not a share.

    Raises:
        ValueError: it is outside ``(0, 1)``; 95 is meant as 0.95.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"wanted a confidence in (0, 1), found {confidence}")
