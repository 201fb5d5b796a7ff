"""Differences between arms that share seeds: over the seeds alone, and over seeds and pairs together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normbt.stats import cluster_bootstrap, holm, method_difference, paired_t, resampled_clusters
from normbt.suites.base import Groups, PairSuite

RESAMPLES = 2_000


def compared_with(
    baseline: str,
    correct: Mapping[str, NDArray[np.bool_]],
    suite: PairSuite,
    groups: Sequence[str],
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """Every arm against one of them, on every score of a suite.

    Two intervals and two p-values are given. *seeds*: a paired t-test over the seeds, which says whether another seed
    would show the same difference on these very pairs. *both*: the variance of seeds and of a bootstrap of the clusters
    together (:func:`normbt.stats.method_difference`), which says whether other pairs would show it too. Each p-value is
    corrected by Holm over the arms, for each score by itself.

    Args:
        baseline: name of the arm that the others are compared with.
        correct: whether each pair is ranked right, shape ``(seeds, pairs)``, by arm.
        suite: gives the scores of the groups.
        groups: group of each pair.
        clusters: cluster of each pair.
        resamples: of the bootstrap.

    Returns:
        One record for each other arm and score.
    """
    arms = list(correct)
    seeds = len(correct[baseline])
    columns = np.concatenate([correct[arm] for arm in arms]).T.astype(np.float64)
    drawn = cluster_bootstrap(columns, groups, clusters, resamples=resamples)
    resampled = _scores(suite, drawn.groups, np.moveaxis(drawn.sums, 1, 0), np.moveaxis(drawn.counts, 1, 0)[:, :, None])
    observed = scores_of(suite, columns.T, groups)
    shape = resampled_clusters(groups, clusters)
    found = []
    for score in observed:
        rows = []
        for arm in arms:
            if arm == baseline:
                continue
            own, other = (slice(arms.index(name) * seeds, (arms.index(name) + 1) * seeds) for name in (arm, baseline))
            differences = observed[score][own] - observed[score][other]
            alone = paired_t(differences)
            both = method_difference(differences, resampled[score][:, own] - resampled[score][:, other], drawn=shape)
            rows.append(
                {
                    "arm": arm,
                    "against": baseline,
                    "score": score,
                    "difference": alone.difference,
                    "seeds": [alone.low, alone.high],
                    "seeds_p": 1.0 if alone.p_value is None else alone.p_value,
                    "both": [both.low, both.high],
                    "both_p": both.p_value,
                }
            )
        for kind in ("seeds", "both"):
            for row, adjusted in zip(rows, holm([row[f"{kind}_p"] for row in rows]), strict=True):
                row[f"{kind}_holm"] = float(adjusted)
        found += rows
    return [{key: _rounded(value) for key, value in row.items()} for row in found]


def scores_of(suite: PairSuite, correct: NDArray[Any], groups: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The headline and the sections of a suite.

    Args:
        suite: gives the scores of the groups.
        correct: whether each pair is ranked right, shape ``(runs, pairs)``.
        groups: group of each pair.

    Returns:
        Shape ``(runs,)`` for each score.
    """
    of_pair = np.asarray(groups, dtype=object).astype(str)
    names = sorted(set(of_pair.tolist()))
    members = np.stack([of_pair == name for name in names])
    return _scores(suite, names, members.astype(np.float64) @ correct.T, members.sum(axis=1, keepdims=True))


def _scores(
    suite: PairSuite, names: Sequence[str], sums: NDArray[np.float64], counts: NDArray[Any]
) -> dict[str, NDArray[np.float64]]:
    """The scores of a suite from sums and counts of each group, group first."""
    parts = suite.scores(
        Groups(dict(zip(names, sums, strict=True)), dict(zip(names, counts.astype(np.float64), strict=True)))
    )
    return {"headline": parts.headline, **parts.sections}


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
