"""The cluster bootstrap.

It resamples *clusters* (all pairs made from one prompt or one problem), because pairs of the same prompt are right and
wrong together and an interval that treats them as independent is too narrow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CHUNK_ELEMENTS = 8_000_000
"""Entries of the (resamples, clusters) multiplicity matrix held at once; 64 MB."""


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


def degrees_of_freedom(groups: Sequence[str], clusters: Sequence[str]) -> int:
    """What a cluster bootstrap has to estimate a variance from: clusters less strata.

    Args:
        groups: name of the group of each pair, as in :func:`cluster_bootstrap`.
        clusters: name of the cluster of each pair.

    Returns:
        The number; 0 where every stratum is one cluster, so that nothing can vary.

    Example:
        >>> degrees_of_freedom(["a", "a", "b", "b"], ["p", "q", "r", "s"])
        2
        >>> degrees_of_freedom(["a", "a", "b", "b"], ["p", "q", "p", "q"])
        1
    """
    _, group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    _, cluster_of = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    present = np.zeros((int(cluster_of.max()) + 1, int(group_of.max()) + 1), dtype=np.bool_)
    present[cluster_of, group_of] = True
    return len(present) - len(_strata(present))


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
