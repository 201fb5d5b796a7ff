"""Tests of two models on the same pairs: exact McNemar, its form for clusters and weights, paired t, Holm."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] # ships none

from normbt.stats.quantiles import t_quantile, t_two_sided

FLIPS_ENUMERATED = 13
"""Clusters up to which every assignment of signs is tried: 8,192 of them, instead of a random sample."""

CHUNK_ELEMENTS = 8_000_000
"""Entries of the (flips, clusters) matrix of signs held at once; 64 MB."""


class PairedT(NamedTuple):
    """A paired t-test over the seeds of two methods.

    Attributes:
        difference: mean difference over the seeds.
        standard_error: of that mean.
        low: lower end of the interval; like the next two None where all differences are equal.
        high: its upper end.
        p_value: two-sided.
        degrees: degrees of freedom, the number of seeds less one.
    """

    difference: float
    standard_error: float
    low: float | None
    high: float | None
    p_value: float | None
    degrees: int


def mcnemar_exact(only_first: int, only_second: int) -> float:
    r"""Exact two-sided p-value of McNemar's test that two models are right equally often on the same pairs.

    .. math:: p = \min\bigl(1,\; 2\,P[\mathrm{Bin}(b + c, \tfrac12) \le \min(b, c)]\bigr)

    Args:
        only_first: pairs that only the first model ranks right, ``b``.
        only_second: pairs that only the second model ranks right, ``c``.

    Returns:
        The p-value; 1 when the models never disagree. It takes the pairs to be independent.

    Raises:
        ValueError: a count is negative.

    Example:
        >>> round(mcnemar_exact(10, 2), 4)
        0.0386
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"wanted counts of at least 0, found {only_first} and {only_second}")
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def sign_flip_test(
    differences: ArrayLike, clusters: Sequence[str], *, flips: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    r"""Two-sided p-values of the hypothesis that two models are exchangeable, by swapping them cluster by cluster.

    The statistic is the sum of the differences, :math:`T = \sum_c D_c` with :math:`D_c` the sum over cluster
    :math:`c`. If the models are exchangeable, every :math:`D_c` could as well have the other sign:

    .. math:: p = P\bigl(|\textstyle\sum_c s_c D_c| \ge |T|\bigr), \qquad s_c = \pm 1 \text{ with } \tfrac12

    It is McNemar's exact test where each pair is a cluster of its own and counts the same, and goes on being exact
    where pairs come in clusters or have weights (a section of RewardBench).

    Args:
        differences: what each pair adds to the difference of the two scores, shape ``(pairs,)`` or
            ``(pairs, statistics)``.
        clusters: name of the cluster of each pair.
        flips: number of random assignments of signs. Where at most :data:`FLIPS_ENUMERATED` clusters differ, all are
            tried instead and the p-value is exact; otherwise it is :math:`(1 + \text{hits}) / (1 + \text{flips})`,
            which keeps its level for any number of flips.
        seed: of the signs.

    Returns:
        One p-value for each statistic; 1 where the models never differ.

    Raises:
        ValueError: the lengths differ.

    Example:
        >>> sign_flip_test([1, 1, 1, 1, 1, -1], list("abcdef")).round(4).tolist(), round(mcnemar_exact(5, 1), 4)
        ([0.2188], 0.2188)
        >>> sign_flip_test([1, 1, 1, 1, 1, -1], list("aaabbb")).tolist()
        [0.5]

    References:
        Phipson and Smyth, "Permutation p-values should never be zero", SAGMB 2010.
    """
    table = np.asarray(differences, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if len(table) != len(clusters):
        raise ValueError(f"wanted one cluster per pair, found {len(table)} pairs and {len(clusters)} clusters")
    _, cluster_of = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((int(cluster_of.max(initial=-1)) + 1, table.shape[1]))
    np.add.at(sums, cluster_of, table)
    sums = np.where(np.abs(sums) > 1e-12 * np.abs(table).max(initial=0.0), sums, 0.0)  # what rounding left of a zero
    generator = np.random.default_rng(seed)
    p_values = np.ones(table.shape[1])
    open_: list[int] = []
    for column, parts in enumerate(sums.T):
        parts = parts[parts != 0]
        if 0 < len(parts) <= FLIPS_ENUMERATED:
            signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(parts))))
            p_values[column] = float(_as_extreme(signs @ parts[:, None], parts[:, None]).mean())
        elif len(parts):
            open_.append(column)
    if open_:
        differing = sums[:, open_]
        differing = differing[(differing != 0).any(axis=1)]
        hits, step = np.zeros(len(open_)), max(1, CHUNK_ELEMENTS // len(differing))
        for start in range(0, flips, step):
            heads = generator.integers(0, 2, size=(min(step, flips - start), len(differing)), dtype=np.bool_)
            signs = np.where(heads, 1.0, -1.0)
            hits += _as_extreme(signs @ differing, differing).sum(axis=0)
        p_values[open_] = (1 + hits) / (1 + flips)
    return p_values


def _as_extreme(flipped: NDArray[np.float64], parts: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether a sum with flipped signs is as far from zero as the observed one; equal sums count despite rounding."""
    return np.abs(flipped) >= np.abs(parts.sum(axis=0)) - 1e-9 * np.abs(parts).sum(axis=0)


def paired_t(differences: ArrayLike, *, confidence: float = 0.95) -> PairedT:
    r"""Paired t-test of two methods over the same seeds.

    .. math:: t = \frac{\bar d}{s_d / \sqrt k}, \qquad \nu = k - 1

    Args:
        differences: difference of the two scores for each seed, shape ``(seeds,)``, at least two.
        confidence: coverage of the interval, in ``(0, 1)``.

    Returns:
        Mean, its standard error, interval and p-value. Where all differences are equal, the spread between seeds is
        not known and there is no p-value.

    Raises:
        ValueError: there are fewer than two seeds.

    Example:
        >>> found = paired_t([0.02, 0.04, 0.03])
        >>> round(found.difference, 3), round(found.p_value, 4), round(found.low, 4), round(found.high, 4)
        (0.03, 0.0351, 0.0052, 0.0548)
    """
    array = np.asarray(differences, dtype=np.float64)
    if array.size < 2:
        raise ValueError(f"wanted at least two seeds, found {array.size}")
    degrees, mean = array.size - 1, float(array.mean())
    error = float(array.std(ddof=1) / np.sqrt(array.size))
    if error <= 1e-12 * np.abs(array).max(initial=0.0):
        return PairedT(mean, 0.0, None, None, None, degrees)
    half = t_quantile(0.5 + confidence / 2, degrees) * error
    return PairedT(mean, error, mean - half, mean + half, t_two_sided(mean / error, degrees), degrees)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    r"""Holm's step-down adjustment of a family of p-values.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\bigl(1,\; (m - j + 1)\, p_{(j)}\bigr)

    Args:
        p_values: one p-value per comparison of the family, shape ``(m,)``.

    Returns:
        The adjusted p-values in the same order; reject those at or below the level.

    Raises:
        ValueError: a p-value is outside ``[0, 1]``.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    array = np.asarray(p_values, dtype=np.float64)
    if not np.all((array >= 0) & (array <= 1)):
        raise ValueError(f"wanted p-values in [0, 1], found {array.tolist()}")
    order = np.argsort(array, kind="stable")
    stepped = np.minimum(1.0, (array.size - np.arange(array.size)) * array[order])
    adjusted = np.empty_like(array)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted
