"""Differences between methods: the uncertainty of the seeds and that of the pairs together."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normbt.stats.bootstrap import Resampled
from normbt.stats.intervals import check_confidence
from normbt.stats.quantiles import t_quantile, t_two_sided


class MethodDifference(NamedTuple):
    """A difference between two methods, each trained with the same seeds and measured on the same pairs.

    Attributes:
        difference: mean over the seeds.
        standard_error: of the mean, from seeds and pairs together.
        low: lower end of the interval.
        high: its upper end.
        p_value: two-sided; 1 where nothing varies.
        degrees: Satterthwaite's degrees of freedom.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    degrees: float


def hierarchical_resamples(resampled: ArrayLike, *, seed: int = 0) -> NDArray[np.float64]:
    """Mean difference over the seeds in every resample of a bootstrap that draws seeds, then clusters of pairs.

    Every seed is measured on the same pairs, so one draw of clusters serves all seeds of a resample: drawing them anew
    for each seed would treat the pairs as independent between seeds and make the interval too narrow. Of ``k`` seeds
    ``k - 1`` are drawn, with replacement, so that the variance of the mean is not short by ``(k - 1) / k``, which
    matters for three seeds.

    Args:
        resampled: difference of each seed in each resample of the clusters, shape ``(resamples, seeds)``; at least two
            seeds.
        seed: of the random generator.

    Returns:
        Shape ``(resamples,)``.

    Raises:
        ValueError: there are fewer than two seeds.

    References:
        Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007 (two crossed factors; the interaction is
        counted twice, so the variance errs to the safe side); Rao and Wu, "Resampling inference with complex survey
        data", JASA 1988 (drawing one fewer).
    """
    table = np.asarray(resampled, dtype=np.float64)
    resamples, seeds = table.shape
    if seeds < 2:
        raise ValueError(f"wanted at least two seeds, found {seeds}")
    drawn = np.random.default_rng(seed).integers(0, seeds, size=(resamples, seeds - 1))
    return np.take_along_axis(table, drawn, axis=1).mean(axis=1)


def method_difference(
    observed: ArrayLike, resampled: ArrayLike, *, drawn: Resampled, confidence: float = 0.95, seed: int = 0
) -> MethodDifference:
    r"""Difference between two methods with an interval that covers the choice of seeds and of pairs.

    .. math:: \bar d \pm t_{\nu}\, \mathrm{SE}, \qquad
              \nu = \frac{(V_s + V_p)^2}{V_s^2 / (k - 1) + V_p^2 / \nu_p}

    The standard error is that of :func:`hierarchical_resamples`, with the deviations that come from the pairs expanded
    for the number of clusters (:attr:`normbt.stats.Resampled.expansion`); :math:`V_s` and :math:`V_p` are the variances
    that :math:`k` seeds alone and the pairs alone would give. An interval from the quantiles of the resamples would not
    do: no resample of three seeds lies beyond the most extreme seed, while their t quantile is 4.3 standard errors out.

    Args:
        observed: difference of each seed on all pairs, shape ``(seeds,)``.
        resampled: the same in each resample of the clusters, shape ``(resamples, seeds)``.
        drawn: the clusters behind the difference, see :func:`normbt.stats.resampled_clusters`.
        confidence: coverage, in ``(0, 1)``.
        seed: of the random generator.

    Returns:
        The difference and what is known about it. Where nothing varies, neither over the seeds nor over the resamples,
        the variances say nothing and p is 1; a test that swaps decisions still can
        (:func:`normbt.stats.sign_flip_test`).

    Raises:
        ValueError: there are fewer than two seeds, or the shapes do not fit.

    Example:
        >>> draws = np.random.default_rng(0).normal([0.02, 0.04, 0.03], 0.01, size=(2000, 3))
        >>> found = method_difference([0.02, 0.04, 0.03], draws, drawn=Resampled(clusters=101, strata=1))
        >>> round(found.difference, 3), found.low < 0.03 < found.high
        (0.03, True)
    """
    check_confidence(confidence)
    seeds, table = np.asarray(observed, dtype=np.float64), np.asarray(resampled, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != seeds.size:
        raise ValueError(f"wanted resamples of {seeds.size} seeds, found shape {table.shape}")
    table = table[np.isfinite(table).all(axis=1)]
    table = seeds + drawn.expansion * (table - seeds)
    error = float(hierarchical_resamples(table, seed=seed).std())
    of_seeds, of_pairs = float(seeds.var(ddof=1) / seeds.size), float(table.mean(axis=1).var())
    mean = float(seeds.mean())
    weight = of_seeds**2 / (seeds.size - 1) + (of_pairs**2 / drawn.degrees if drawn.degrees else 0.0)
    if error == 0 or weight == 0:
        return MethodDifference(mean, error, mean, mean, 1.0, float(seeds.size - 1))
    freedom = (of_seeds + of_pairs) ** 2 / weight
    half = t_quantile(0.5 + confidence / 2, freedom) * error
    p_value = t_two_sided(mean / error, freedom)
    return MethodDifference(mean, error, mean - half, mean + half, p_value, freedom)
