"""Intervals and paired tests for accuracies: Wilson, clustered bootstrap, exact McNemar, Holm.

The bootstrap resamples *clusters* (all pairs made from one prompt or one problem), because pairs of the same prompt
are right and wrong together and an interval that treats them as independent is too narrow.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] # ships none

CHUNK_ELEMENTS = 8_000_000
"""Entries of the (resamples, clusters) multiplicity matrix held at once; 64 MB."""


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


class Interval(NamedTuple):
    """Lower and upper end of an interval."""

    low: float
    high: float


class ResampledGroups(NamedTuple):
    """Sums over each group of pairs, in every resample.

    Attributes:
        groups: names of the groups, in the order of the axis.
        sums: sum of the values, shape ``(resamples, groups, columns)``.
        counts: number of pairs drawn, shape ``(resamples, groups)``.
    """

    groups: tuple[str, ...]
    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    def means(self) -> NDArray[np.float64]:
        """Mean of each group, shape ``(resamples, groups, columns)``; NaN where no pair of the group was drawn."""
        with np.errstate(invalid="ignore"):
            return self.sums / self.counts[:, :, None]

    def overall(self) -> NDArray[np.float64]:
        """Mean over all pairs whatever their group, shape ``(resamples, columns)``."""
        return self.sums.sum(axis=1) / self.counts.sum(axis=1)[:, None]


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
    _check_confidence(confidence)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # Rounding can push the ends a hair outside; at 0 and 1 they are exactly 0 and 1.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == trials else float(centre + half)
    return Interval(low, high)


def cluster_bootstrap(
    values: ArrayLike,
    groups: Sequence[str],
    clusters: Sequence[str],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> ResampledGroups:
    """Resample clusters with replacement, and give the sum and the count of each group in every resample.

    The resampling is stratified: groups that share no cluster keep their own number of clusters in every resample;
    groups that do share clusters (one problem asked in six languages) form one stratum, whose clusters are drawn
    whole. Give two columns of values for two models: both are then measured on the same resamples, and the difference
    of the columns is the paired bootstrap.

    Args:
        values: result of each pair, shape ``(pairs,)`` or ``(pairs, columns)``.
        groups: name of the group of each pair, such as its subset.
        clusters: name of the cluster of each pair, such as its prompt.
        resamples: number of resamples.
        seed: of the random generator; the same seed gives the same resamples.

    Returns:
        Sums and counts, from which any weighted mean of groups follows.

    Raises:
        ValueError: there are no pairs, or the lengths differ.

    Example:
        >>> drawn = cluster_bootstrap([1, 1, 0, 1], ["a", "a", "b", "b"], ["p", "q", "r", "s"], resamples=2000)
        >>> drawn.groups, drawn.means()[:, :, 0].mean(axis=0).round(1).tolist()
        (('a', 'b'), [1.0, 0.5])

    References:
        Miller, "Adding error bars to evals", arXiv 2411.00640 (clustered and paired standard errors);
        Davison and Hinkley, "Bootstrap methods and their application", 1997, section 3.8 (clusters).
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    pairs, columns = table.shape
    if pairs == 0 or len(groups) != pairs or len(clusters) != pairs:
        raise ValueError(f"wanted one group and one cluster per pair, found {pairs}, {len(groups)}, {len(clusters)}")
    names, group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    _, cluster_of = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    cluster_count, group_count = int(cluster_of.max()) + 1, len(names)

    # What a cluster adds to the sum of each column and to the count of each group: (clusters, groups, columns + 1).
    contribution = np.zeros((cluster_count, group_count, columns + 1))
    np.add.at(contribution, (cluster_of, group_of), np.concatenate([table, np.ones((pairs, 1))], axis=1))

    drawn = np.zeros((resamples, group_count, columns + 1))
    generator = np.random.default_rng(seed)
    for members, touched in _strata(contribution[:, :, -1] > 0):
        part = contribution[np.ix_(members, touched)].reshape(len(members), -1)
        step = max(1, CHUNK_ELEMENTS // len(members))
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            times = _multiplicities(generator, rows, len(members))
            drawn[start : start + rows, touched] = (times @ part).reshape(rows, len(touched), columns + 1)
    return ResampledGroups(tuple(names.tolist()), drawn[:, :, :-1], drawn[:, :, -1])


def percentile_interval(samples: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Percentile interval of the resampled values of one statistic, shape ``(resamples,)``.

    Raises:
        ValueError: ``confidence`` is outside ``(0, 1)``, or no sample is a number.

    Example:
        >>> percentile_interval(range(101), confidence=0.5)
        Interval(low=25.0, high=75.0)
    """
    _check_confidence(confidence)
    array = np.asarray(samples, dtype=np.float64)
    # A resample may leave out a whole group (tiny data): its statistic does not exist and says nothing.
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        raise ValueError("no resample gave a number")
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(low), float(high))


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


def _multiplicities(generator: np.random.Generator, resamples: int, clusters: int) -> NDArray[np.float64]:
    """How often each cluster is drawn when ``clusters`` of them are drawn with replacement, per resample."""
    draws = generator.integers(0, clusters, size=(resamples, clusters))
    draws += np.arange(resamples)[:, None] * clusters
    return np.bincount(draws.ravel(), minlength=resamples * clusters).reshape(resamples, clusters).astype(np.float64)


def _strata(present: NDArray[np.bool_]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split clusters into strata: groups that share a cluster, directly or through others, belong together.

    Args:
        present: whether a cluster has pairs in a group, shape ``(clusters, groups)``.

    Returns:
        For each stratum, the indices of its clusters and of its groups.
    """
    stratum = list(range(present.shape[1]))  # of each group: the smallest index among the groups it is joined with
    for pattern in np.unique(present, axis=0):
        joined = {stratum[group] for group in np.flatnonzero(pattern)}
        stratum = [min(joined) if name in joined else name for name in stratum]
    of_group = np.array(stratum, dtype=np.intp)
    of_cluster = of_group[present.argmax(axis=1)]
    return [(np.flatnonzero(of_cluster == name), np.flatnonzero(of_group == name)) for name in sorted(set(stratum))]


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"wanted a confidence in (0, 1), found {confidence}")
