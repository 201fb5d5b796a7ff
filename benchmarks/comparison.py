"""Does `normbt compare` keep its word? Coverage of the intervals, planted differences, and the speed of the bootstrap.

    python benchmarks/comparison.py

Hardware: one CPU core, about ten minutes. Simulated comparisons of 300 pairs in clusters, whose true difference is
known: how often the 95 % interval covers it, by size of the clusters, for one run each and for three seeds each. Models
planted on 500 built-in pairs, 5 points better or equal, at several shares of pairs decided differently: how often the
difference is found. And 10,000 resamples of 2,985 pairs beside a loop over resamples.
"""

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from normbt.stats import (
    Resampled,
    cluster_bootstrap,
    detectable_difference,
    method_difference,
    percentile_interval,
    sign_flip_test,
)
from normbt.suites.clusters import prompt_cluster
from normbt.suites.rewardbench import OFFICIAL_COUNTS
from normbt.synthetic import generate_pairs

PAIRS, BASELINE, METHOD = 300, 0.50, 0.62
"""Pairs of a simulated comparison, and the mean margins of its two methods; the margins have variance 1."""
SHARED, OWN = 0.4, 0.3
"""Variance that both methods share within a cluster, and that each has in the cluster for itself; the rest is noise."""
SEED_EFFECT = 0.1
"""Standard deviation of a seed's mean margin."""


class Planted(NamedTuple):
    """Two models of built-in pairs, whose accuracies differ by a known amount in expectation.

    Attributes:
        right: which pairs each model ranks right, shape ``(pairs, 2)``.
        scores: rewards of the right and the wrong answer by each model, shape ``(pairs, 2, 2)``: pair, model, answer.
        clusters: cluster of each pair.
    """

    right: NDArray[np.bool_]
    scores: NDArray[np.float64]
    clusters: list[str]


def simulate(size: int, seeds: int, generator: np.random.Generator) -> tuple[NDArray[np.bool_], list[str], float]:
    """Right and wrong of two methods with some seeds on new pairs, clusters of a size, and their true difference.

    Returns:
        Shape ``(pairs, 2 * seeds)``, all seeds of the baseline first; the cluster of each pair; the difference.
    """
    clusters = PAIRS // size
    of = np.repeat(np.arange(clusters), size)
    shared = np.sqrt(SHARED) * generator.normal(size=clusters)[of]
    effect = SEED_EFFECT if seeds > 1 else 0.0
    columns = []
    for mean in (BASELINE, METHOD):
        own = np.sqrt(OWN) * generator.normal(size=clusters)[of]
        for _ in range(seeds):
            noise = np.sqrt(1 - SHARED - OWN) * generator.normal(size=PAIRS)
            columns.append(mean + effect * generator.normal() + shared + own + noise > 0)
    wide = np.sqrt(1 + effect**2)
    return np.stack(columns, axis=1), [str(one) for one in of], float(ndtr(METHOD / wide) - ndtr(BASELINE / wide))


def coverage(size: int, *, seeds: int = 1, comparisons: int = 500, resamples: int = 1000, seed: int = 0) -> list[float]:
    """Share of simulated comparisons whose interval covers the true difference.

    Returns:
        Of the interval that is used; for one run each also of the plain percentile interval.
    """
    generator = np.random.default_rng(seed)
    covered = np.zeros(2)
    for comparison in range(comparisons):
        right, clusters, truth = simulate(size, seeds, generator)
        drawn = cluster_bootstrap(right, ["all"] * PAIRS, clusters, resamples=resamples, seed=comparison).overall()
        resampled = drawn[:, seeds:] - drawn[:, :seeds]
        shape = Resampled(clusters=PAIRS // size, strata=1)
        if seeds == 1:
            intervals = [percentile_interval(resampled[:, 0], drawn=shape), percentile_interval(resampled[:, 0])]
        else:
            observed = right[:, seeds:].mean(axis=0) - right[:, :seeds].mean(axis=0)
            found = method_difference(observed, resampled, drawn=shape, seed=comparison)
            intervals = [(found.low, found.high)]
        covered[: len(intervals)] += [low <= truth <= high for low, high in intervals]
    return (covered[: len(intervals)] / comparisons).tolist()


def planted(points: float, redrawn: float, *, pairs: int = 500, noise: float = 2.4, seed: int = 0) -> Planted:
    """Two models made from the true rewards of built-in pairs: the rewards plus noise.

    The second model has the noise of the first on most pairs. On a share of them it has new noise, which changes
    decisions but not the expected accuracy; on another, chosen so that it gains the wanted points, it has none.

    Args:
        points: expected difference of the two accuracies, a share.
        redrawn: share of the pairs with new noise.
        pairs: number of pairs.
        noise: standard deviation of the noise of a reward.
        seed: of the pairs and of the noise.
    """
    generator = np.random.default_rng(seed)
    rows = generate_pairs(pairs, seed=seed)
    true = np.array([[row["true_reward_chosen"], row["true_reward_rejected"]] for row in rows])
    wrong = 1 - float(ndtr((true[:, 0] - true[:, 1]) / (noise * np.sqrt(2))).mean())
    first, new = (true + noise * generator.normal(size=true.shape) for _ in range(2))
    draw = generator.random(pairs)
    understood = points / wrong
    second = np.where((draw < redrawn)[:, None], new, first)
    second = np.where((draw > 1 - understood)[:, None], true, second)
    scores = np.stack([first, second], axis=1)
    return Planted(scores[..., 0] > scores[..., 1], scores, [prompt_cluster(row["prompt"]) for row in rows])


def found_by_flips(models: Planted, *, alpha: float = 0.05) -> bool:
    """Whether the test that `normbt compare` uses for one run each finds a difference in the accuracy."""
    gain = models.right[:, 1].astype(float) - models.right[:, 0]
    return bool(sign_flip_test(gain, models.clusters, flips=2000)[0] <= alpha)


def loop_bootstrap(
    values: NDArray[np.float64], groups: NDArray[np.str_], clusters: Sequence[str], resamples: int
) -> NDArray[np.float64]:
    """What one would write first: draw the clusters of each group, gather their pairs, average; (resamples, groups)."""
    generator = np.random.default_rng(0)
    names, cluster_of = np.unique(groups), np.array(clusters)
    members = {
        name: [np.flatnonzero((groups == name) & (cluster_of == one)) for one in np.unique(cluster_of[groups == name])]
        for name in names
    }
    means = np.empty((resamples, len(names)))
    for resample in range(resamples):
        for place, name in enumerate(names):
            parts = members[name]
            drawn = np.concatenate([parts[one] for one in generator.integers(0, len(parts), len(parts))])
            means[resample, place] = values[drawn].mean()
    return means


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=500, help="simulated comparisons behind each coverage")
    arguments = parser.parse_args()

    print(f"coverage of the 95 % interval, {arguments.comparisons} comparisons of {PAIRS} pairs")
    print(f"{'pairs of a cluster':>20} {'clusters':>9} {'1 run each':>11} {'not expanded':>13} {'3 seeds each':>13}")
    for size in (1, 3, 6, 10):
        one, plain = coverage(size, comparisons=arguments.comparisons)
        (three,) = coverage(size, seeds=3, comparisons=arguments.comparisons)
        print(f"{size:20} {PAIRS // size:9} {one:11.1%} {plain:13.1%} {three:13.1%}", flush=True)

    print("\nplanted on 500 built-in pairs, 200 seeds: how often a difference is found")
    print(f"{'redrawn':>8} {'discordant':>11} {'+5 points':>10} {'+0 points':>10} {'detectable at 80 %':>19}")
    for redrawn in (0.05, 0.15, 0.3, 0.6):
        better = [planted(0.05, redrawn, seed=seed) for seed in range(200)]
        equal = [planted(0.0, redrawn, seed=1000 + seed) for seed in range(200)]
        discordance = float(np.mean([(one.right[:, 0] != one.right[:, 1]).mean() for one in better]))
        reach = detectable_difference(500, discordance)
        print(
            f"{redrawn:8.0%} {discordance:11.1%} {np.mean([found_by_flips(one) for one in better]):10.1%} "
            f"{np.mean([found_by_flips(one) for one in equal]):10.1%} {100 * (reach or np.nan):12.1f} points",
            flush=True,
        )

    groups = np.array([subset for subset, count in OFFICIAL_COUNTS.items() for _ in range(count)])
    clusters = [f"problem-{i % 164}" if group.startswith("hep-") else f"pair-{i}" for i, group in enumerate(groups)]
    values = np.random.default_rng(0).random((len(groups), 2)).round()
    start = time.perf_counter()
    cluster_bootstrap(values, groups.tolist(), clusters, resamples=10_000)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    for column in range(2):
        loop_bootstrap(values[:, column], groups, clusters, 100)
    loop = 100 * (time.perf_counter() - start)
    print(f"\n10,000 resamples of {len(groups):,} pairs, two models: {ours:.1f} s; a loop {loop:.0f} s (from 100)")
    print(f"ratio {loop / ours:.0f}")


if __name__ == "__main__":
    main()
