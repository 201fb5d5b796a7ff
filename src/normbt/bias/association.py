"""How the gradient norm goes with the distance: correlations, slopes at equal error, one constant; with intervals.

Every statistic is a function of how often each pair counts. Counting each once gives its value; counting the pairs of
each prompt as often as a bootstrap draws that prompt gives its interval.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normbt.bias.shares import Floats
from normbt.results import Estimate, ProductForm, ProportionalFit
from normbt.stats import percentile_interval

Statistic = Callable[[Floats], Floats]
"""Maps how often each pair counts, shape ``(resamples, pairs)``, to values of shape ``(resamples, statistics)``."""

CHUNK_ELEMENTS = 2_000_000
"""Entries of the (resamples, pairs) counts held at once; 16 MB, and a few times that in ranks."""

_NEGLIGIBLE = 1e-12
"""A variance below this share of the mean square is rounding: the statistic does not exist."""


def estimates(
    statistics: Mapping[str, Statistic],
    clusters: ArrayLike,
    *,
    resamples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, list[Estimate]]:
    """Values of some statistics with percentile intervals; all of them see the same resamples.

    Args:
        statistics: by name.
        clusters: number of each pair's cluster (such as its prompt), from 0 on, shape ``(pairs,)``; pairs of one
            cluster are drawn together.
        resamples: number of bootstrap resamples.
        confidence: coverage of the intervals, in ``(0, 1)``.
        seed: of the random generator.

    Returns:
        The estimates of each statistic; a value that does not exist is None, as is an interval no resample of which
        gave a number.

    Example:
        >>> x = np.arange(20.0)
        >>> found = estimates({"r": pearson([x, x + 1], [(0, 1)])}, np.arange(20), resamples=50)
        >>> found["r"][0]["low"] > 0.999
        True
    """
    cluster_of = np.asarray(clusters, dtype=np.intp)
    if cluster_of.size == 0:
        return {name: [] for name in statistics}
    generator = np.random.default_rng(seed)
    number = int(cluster_of.max()) + 1
    values = {name: statistic(np.ones((1, cluster_of.size)))[0] for name, statistic in statistics.items()}
    drawn: dict[str, list[Floats]] = {name: [] for name in statistics}
    step = max(1, CHUNK_ELEMENTS // cluster_of.size)
    for start in range(0, resamples, step):
        # How often each of n clusters is drawn in n draws with replacement.
        drawn_times = generator.multinomial(number, np.full(number, 1 / number), size=min(step, resamples - start))
        times = drawn_times[:, cluster_of].astype(np.float64)
        for name, statistic in statistics.items():
            drawn[name].append(statistic(times))
    return {
        name: [
            _estimate(float(value), column, confidence)
            for value, column in zip(values[name], np.concatenate(drawn[name]).T, strict=True)
        ]
        for name in statistics
    }


def pearson(columns: Sequence[ArrayLike], between: Sequence[tuple[int, int]]) -> Statistic:
    """Linear correlation of some columns, two by two.

    Args:
        columns: values, each of shape ``(pairs,)``.
        between: which columns to correlate.

    Returns:
        The statistic, with one value for each of ``between``.

    Example:
        >>> pearson([[1, 2, 3], [1, 2, 4]], [(0, 1)])(np.ones((1, 3))).round(4).tolist()
        [[0.982]]
    """
    table = [_centred(np.asarray(column, dtype=np.float64)) for column in columns]
    products = [(table[one], table[other]) for one, other in between]
    factors = np.stack([factor for x, y in products for factor in (x, y, x * x, y * y, x * y)], axis=1)

    def statistic(times: Floats) -> Floats:
        moments = (times @ factors) / times.sum(axis=1, keepdims=True)
        x, y, xx, yy, xy = np.moveaxis(moments.reshape(len(times), len(products), 5), 2, 0)
        return _correlation(xx, yy, xy, x, y)

    return statistic


def spearman(columns: Sequence[ArrayLike], between: Sequence[tuple[int, int]]) -> Statistic:
    """Rank correlation of some columns, two by two; equal values share their mean rank.

    Args:
        columns: values, each of shape ``(pairs,)``.
        between: which columns to correlate.

    Returns:
        The statistic, with one value for each of ``between``; every resample is ranked anew.

    Example:
        >>> spearman([[1, 2, 3], [1, 2, 40]], [(0, 1)])(np.ones((1, 3))).round(6).tolist()
        [[1.0]]
    """
    codes = [np.unique(np.asarray(column), return_inverse=True)[1] for column in columns]

    def statistic(times: Floats) -> Floats:
        total = times.sum(axis=1, keepdims=True)
        ranks = [_mid_ranks(code, times) - (total + 1) / 2 for code in codes]  # centred: the mean rank is known
        values = []
        for one, other in between:
            x, y = ranks[one], ranks[other]
            xx, yy, xy = ((times * a * b).sum(axis=1) for a, b in ((x, x), (y, y), (x, y)))
            values.append(_correlation(xx, yy, xy))
        return np.stack(values, axis=1)

    return statistic


def log_slopes(distance: ArrayLike, norm: ArrayLike, bins: Sequence[NDArray[np.intp]]) -> Statistic:
    r"""Least-squares slope of log norm on log distance within each bin: the exponent p of ``norm = c · distance^p``.

    A slope of 1 says that the norm is proportional to the distance, 0 that it does not depend on it. The exponent has
    no unit, so bins, models and layers compare, which slopes of the plain numbers would not.

    Args:
        distance: positive, shape ``(pairs,)``.
        norm: positive, shape ``(pairs,)``.
        bins: indices of each bin's pairs.

    Returns:
        The statistic, with one value for each bin.

    Example:
        >>> distance = np.array([1.0, 2.0, 4.0])
        >>> log_slopes(distance, 3 * distance**2, [np.arange(3)])(np.ones((1, 3))).round(6).tolist()
        [[2.0]]
    """
    x, y = (np.log(np.asarray(values, dtype=np.float64)) for values in (distance, norm))

    def statistic(times: Floats) -> Floats:
        slopes = []
        for members in bins:
            counts, x_in, y_in = times[:, members], _centred(x[members]), _centred(y[members])
            factors = np.stack([x_in, y_in, x_in * x_in, x_in * y_in], axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):  # no pair of the bin drawn, or all at one distance
                mean_x, mean_y, xx, xy = ((counts @ factors) / counts.sum(axis=1, keepdims=True)).T
                variance = xx - mean_x**2
                slopes.append(np.where(variance > _NEGLIGIBLE * xx, (xy - mean_x * mean_y) / variance, np.nan))
        return np.stack(slopes, axis=1) if slopes else np.empty((len(times), 0))

    return statistic


def error_bins(error: ArrayLike, bins: int = 5) -> list[NDArray[np.intp]]:
    """Bins of nearly equal prediction error and nearly equal size; equal errors are never torn apart.

    Args:
        error: prediction error of each pair, shape ``(pairs,)``.
        bins: number of bins to aim for.

    Returns:
        Indices of each bin's pairs, smallest error first; fewer bins where many errors are equal.

    Example:
        >>> [group.tolist() for group in error_bins([0.5, 0.1, 0.5, 0.5, 0.2], 5)]
        [[1], [4], [0, 2, 3]]
    """
    errors = np.asarray(error, dtype=np.float64)
    if errors.size == 0:
        return []
    edges = np.unique(np.quantile(errors, np.arange(1, bins) / bins, method="inverted_cdf"))
    place = np.searchsorted(edges, errors, side="left")  # an edge is the largest error of its bin
    return [np.flatnonzero(place == number) for number in np.unique(place)]


def proportional_fit(distance: ArrayLike, norm: ArrayLike) -> ProportionalFit:
    r"""The one constant k of ``norm = k · distance``, and how well one constant does.

    .. math:: k = \sum_i x_i g_i \Big/ \sum_i x_i^2

    Args:
        distance: distance ``x`` of each pair, shape ``(pairs,)``, not negative.
        norm: gradient norm ``g`` of each pair, shape ``(pairs,)``.

    Returns:
        The constant, the share of the norms' variance it explains (negative where a constant norm would do better),
        and percentiles of the ratios; each None where it does not exist.

    Example:
        >>> fit = proportional_fit([1.0, 2.0], [3.0, 6.0])
        >>> fit["k"], fit["r_squared"], fit["ratio_p50"]
        (3.0, 1.0, 3.0)
    """
    x, g = np.asarray(distance, dtype=np.float64), np.asarray(norm, dtype=np.float64)
    squares = float(x @ x)
    k = float(x @ g) / squares if squares > 0 else None
    spread = float(np.square(_centred(g)).sum())
    ratios = g[x > 0] / x[x > 0]
    percentiles = [float(value) for value in np.percentile(ratios, [5, 50, 95])] if ratios.size else [None] * 3
    return ProportionalFit(
        k=k,
        r_squared=1 - float(np.square(g - k * x).sum()) / spread if k is not None and spread > 0 else None,
        ratio_p05=percentiles[0],
        ratio_p50=percentiles[1],
        ratio_p95=percentiles[2],
    )


def product_deviation(distance: ArrayLike, head_norm: ArrayLike) -> ProductForm:
    """How far the norm of the head's gradient is from the distance, which it equals exactly.

    Args:
        distance: distance of each pair, shape ``(pairs,)``.
        head_norm: norm of the gradient of ``r_chosen - r_rejected`` for the head's own parameters.

    Returns:
        The number of pairs and the largest deviation, relative to the pair's distance or to a hundredth of the mean
        distance, whichever is larger: the distance of nearly equal pairs is rounding.

    Example:
        >>> product_deviation([1.0, 2.0], [1.0, 2.0])
        {'pairs': 2, 'max_relative_deviation': 0.0}
    """
    x, head = np.asarray(distance, dtype=np.float64), np.asarray(head_norm, dtype=np.float64)
    scale = np.maximum(x, x.mean() / 100) if x.size else x
    return ProductForm(
        pairs=x.size,
        max_relative_deviation=float(np.max(np.abs(head - x) / scale)) if x.size and scale.min() > 0 else None,
    )


def _estimate(value: float, resampled: Floats, confidence: float) -> Estimate:
    if not np.isfinite(value):
        return Estimate(value=None, low=None, high=None)
    if not np.isfinite(resampled).any():
        return Estimate(value=value, low=None, high=None)
    low, high = percentile_interval(resampled, confidence=confidence)
    return Estimate(value=value, low=low, high=high)


def _centred(values: Floats) -> Floats:
    """Values less their mean, of size 1 at most; exactly 0 where they differ by rounding alone."""
    if values.size == 0:
        return values
    centred = values - values.mean()
    size = float(np.abs(centred).max())
    return np.zeros_like(values) if size <= _NEGLIGIBLE * float(np.abs(values).max()) else centred


def _correlation(xx: Floats, yy: Floats, xy: Floats, x: Floats | float = 0.0, y: Floats | float = 0.0) -> Floats:
    """Correlation from mean squares, mean product and means; NaN where a variance is rounding."""
    variance_x, variance_y = xx - np.square(x), yy - np.square(y)
    exists = (variance_x > _NEGLIGIBLE * xx) & (variance_y > _NEGLIGIBLE * yy)
    safe = np.where(exists, variance_x, 1.0) ** 0.5 * np.where(exists, variance_y, 1.0) ** 0.5
    return np.where(exists, np.clip((xy - x * y) / safe, -1.0, 1.0), np.nan)


def _mid_ranks(codes: NDArray[np.intp], times: Floats) -> Floats:
    """Mean rank of each pair among pairs that are repeated ``times`` times; ``codes`` order the distinct values."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(int(codes.max()) + 1))
    counts = np.add.reduceat(times[:, order], starts, axis=1)
    return (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, codes]
