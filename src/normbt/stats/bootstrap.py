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
    strata: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> ResampledGroups:
    """Resample clusters with replacement, and give the sum and the count of each group in every resample.

    The resampling is stratified: strata that share no cluster keep their own number of clusters in every resample;
    those that do share clusters (one problem asked in six languages) are one stratum, whose clusters are drawn whole.
    A stratum should be something that other pairs of the same benchmark would have in the same number; where strata are
    as small as a cluster or two, little is left to vary. Give two columns of values for two models: both are then
    measured on the same resamples, and the difference of the columns is the paired bootstrap.

    Args:
        values: result of each pair, shape ``(pairs,)`` or ``(pairs, columns)``.
        groups: name of the group of each pair, such as its subset.
        clusters: name of the cluster of each pair, such as its prompt.
        strata: name of the stratum of each pair; None for its group.
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
    if pairs == 0 or {len(groups), len(clusters), len(groups if strata is None else strata)} != {pairs}:
        raise ValueError(f"wanted one group and one cluster per pair, found {pairs}, {len(groups)}, {len(clusters)}")
    names, group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    _, cluster_of = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    cluster_count, group_count = int(cluster_of.max()) + 1, len(names)

    # What a cluster adds to the sum of each column and to the count of each group: (clusters, groups, columns + 1).
    contribution = np.zeros((cluster_count, group_count, columns + 1))
    np.add.at(contribution, (cluster_of, group_of), np.concatenate([table, np.ones((pairs, 1))], axis=1))

    drawn = np.zeros((resamples, group_count, columns + 1))
    generator = np.random.default_rng(seed)
    for members in _strata(_presence(groups if strata is None else strata, clusters)):
        touched = np.flatnonzero(contribution[members, :, -1].any(axis=0))
        part = contribution[np.ix_(members, touched)].reshape(len(members), -1)
        step = max(1, CHUNK_ELEMENTS // len(members))
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            times = _multiplicities(generator, rows, len(members))
            drawn[start : start + rows, touched] += (times @ part).reshape(rows, len(touched), columns + 1)
    return ResampledGroups(tuple(names.tolist()), drawn[:, :, :-1], drawn[:, :, -1])


class Resampled(NamedTuple):
    """What a cluster bootstrap estimates a variance from.

    Attributes:
        clusters: their number G.
        strata: their number H, those that share a cluster counted as one.
    """

    clusters: int
    strata: int

    @property
    def degrees(self) -> int:
        """Degrees of freedom, G − H; 0 where every stratum is one cluster, so that nothing can vary."""
        return self.clusters - self.strata

    @property
    def expansion(self) -> float:
        """By how much its standard errors are too small: √(G / (G − H)); 1 where nothing can vary."""
        return float(np.sqrt(self.clusters / self.degrees)) if self.degrees else 1.0


def resampled_clusters(strata: Sequence[str], clusters: Sequence[str]) -> Resampled:
    """How many clusters a bootstrap draws, in how many strata.

    Args:
        strata: name of the stratum of each pair, as in :func:`cluster_bootstrap`.
        clusters: name of the cluster of each pair.

    Returns:
        Both numbers, and the degrees of freedom.

    Example:
        >>> resampled_clusters(["a", "a", "b", "b"], ["p", "q", "r", "s"]).degrees
        2
        >>> resampled_clusters(["a", "a", "b", "b"], ["p", "q", "p", "q"])
        Resampled(clusters=2, strata=1)
    """
    present = _presence(strata, clusters)
    return Resampled(len(present), len(_strata(present)))


def _presence(strata: Sequence[str], clusters: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a cluster has pairs in a stratum, shape ``(clusters, strata)``."""
    _, stratum_of = np.unique(np.asarray(strata, dtype=object).astype(str), return_inverse=True)
    _, cluster_of = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    present = np.zeros((int(cluster_of.max()) + 1, int(stratum_of.max()) + 1), dtype=np.bool_)
    present[cluster_of, stratum_of] = True
    return present


def _multiplicities(generator: np.random.Generator, resamples: int, clusters: int) -> NDArray[np.float64]:
    """How often each cluster is drawn when ``clusters`` of them are drawn with replacement, per resample."""
    draws = generator.integers(0, clusters, size=(resamples, clusters))
    draws += np.arange(resamples)[:, None] * clusters
    return np.bincount(draws.ravel(), minlength=resamples * clusters).reshape(resamples, clusters).astype(np.float64)


def _strata(present: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Split clusters into strata: strata that share a cluster, directly or through others, belong together.

    Args:
        present: whether a cluster has pairs in a stratum, shape ``(clusters, strata)``.

    Returns:
        For each stratum that is left, the indices of its clusters.
    """
    joined_with = list(range(present.shape[1]))  # of each stratum: the smallest index among those it is joined with
    for pattern in np.unique(present, axis=0):
        joined = {joined_with[stratum] for stratum in np.flatnonzero(pattern)}
        joined_with = [min(joined) if name in joined else name for name in joined_with]
    of_cluster = np.array(joined_with, dtype=np.intp)[present.argmax(axis=1)]
    return [np.flatnonzero(of_cluster == name) for name in sorted(set(joined_with))]
