"""Tests of two models on the same pairs, over seeds, and what they could have seen."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_rel

from normbt.stats import (
    Resampled,
    cluster_bootstrap,
    detectable_difference,
    detectable_from_error,
    hierarchical_resamples,
    mcnemar_exact,
    method_difference,
    paired_t,
    pairs_needed,
    percentile_interval,
    resampled_clusters,
    sign_flip_test,
)

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "comparison.py"


@pytest.fixture(scope="module")
def simulation():
    """The benchmark's simulations: the same ones at a smaller size."""
    spec = importlib.util.spec_from_file_location("comparison_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the sign-flip test -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 5))
def test_it_is_mcnemars_where_every_pair_is_a_cluster_of_its_own(only_first, only_second, equal):
    gain = [-1.0] * only_first + [1.0] * only_second + [0.0] * equal
    found = sign_flip_test(gain, [str(i) for i in range(len(gain))])
    assert found[0] == pytest.approx(mcnemar_exact(only_first, only_second), abs=1e-12)


def test_the_sampled_form_agrees_with_mcnemar():
    for only_first, only_second in ((20, 20), (30, 14), (60, 41)):
        gain = [-1.0] * only_first + [1.0] * only_second
        found = sign_flip_test(gain, [str(i) for i in range(len(gain))], flips=20_000)
        assert found[0] == pytest.approx(mcnemar_exact(only_first, only_second), abs=0.015)


def slow_sign_flip(gain, clusters):
    """Every assignment of signs, one by one."""
    names = sorted(set(clusters))
    sums = [sum(value for value, own in zip(gain, clusters, strict=True) if own == name) for name in names]
    observed = abs(sum(sums))
    flipped = [
        abs(sum(sign * value for sign, value in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    return sum(value >= observed - 1e-9 for value in flipped) / len(flipped)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.sampled_from("abcdef")), min_size=1, max_size=14))
def test_it_tries_every_assignment_of_signs_to_the_clusters(rows):
    gain, clusters = [float(value) for value, _ in rows], [name for _, name in rows]
    assert sign_flip_test(gain, clusters)[0] == pytest.approx(slow_sign_flip(gain, clusters))


def test_several_statistics_are_tested_on_the_same_flips_and_small_ones_exactly():
    generator = np.random.default_rng(1)
    gain = generator.integers(-1, 2, size=(60, 3)).astype(float)
    gain[10:, 1] = 0  # at most ten clusters differ: enumerated
    gain[:, 2] = 0  # the two models never differ
    clusters = [str(i) for i in range(60)]
    together = sign_flip_test(gain, clusters, flips=2000, seed=4)
    assert together[0] == sign_flip_test(gain[:, 0], clusters, flips=2000, seed=4)[0]
    assert together[1] == pytest.approx(slow_sign_flip(gain[:10, 1], clusters[:10]))
    assert together[2] == 1.0


def test_weights_and_the_sign_do_not_move_the_p_value_of_equal_weights():
    gain, clusters = np.array([1.0, 1, 1, -1, 1, 0, 1]), list("abcdefg")
    assert sign_flip_test(gain / 984, clusters)[0] == sign_flip_test(-gain, clusters)[0]


def test_rounding_does_not_hide_equal_sums():
    gain = np.array([0.1, 0.2, -0.3, 0.7, -0.4]) * 3.3
    clusters = ["a", "a", "a", "b", "c"]
    assert sign_flip_test(gain, clusters)[0] == pytest.approx(slow_sign_flip(gain, clusters))


def test_clusters_that_gain_together_count_once():
    gain = np.ones(12)
    assert sign_flip_test(gain, [str(i) for i in range(12)])[0] == pytest.approx(2 / 2**12)
    assert sign_flip_test(gain, ["a"] * 6 + ["b"] * 6)[0] == 0.5
    with pytest.raises(ValueError, match="one cluster per pair, found 12 pairs and 1 clusters"):
        sign_flip_test(gain, ["a"])


# --- seeds ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1).map(lambda value: round(value, 3)), min_size=2, max_size=8))
def test_paired_t_is_scipys(differences):
    found = paired_t(differences)
    if len(set(differences)) == 1:
        assert (found.p_value, found.low, found.high) == (None, None, None)
        return
    expected = ttest_rel(differences, np.zeros(len(differences)))
    interval = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_one_seed_is_no_sample():
    for refused in (paired_t, lambda one: method_difference(one, [one], drawn=Resampled(4, 1))):
        with pytest.raises(ValueError, match="at least two seeds, found 1"):
            refused([0.1])
    with pytest.raises(ValueError, match=r"resamples of 3 seeds, found shape \(4, 2\)"):
        method_difference([0.1, 0.2, 0.3], np.zeros((4, 2)), drawn=Resampled(4, 1))


def test_the_hierarchical_bootstrap_has_the_variance_of_seeds_and_of_pairs():
    """Seeds alone: the variance of their mean, s² / k, for any number of seeds. Pairs alone: what they had."""
    generator = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        effects = generator.normal(size=seeds)
        alone = hierarchical_resamples(np.tile(effects, (60_000, 1)))
        assert alone.var() == pytest.approx(effects.var(ddof=1) / seeds, rel=0.03)
    shared = generator.normal(size=(60_000, 1))  # the same clusters for every seed: no seed takes it away
    assert hierarchical_resamples(np.tile(shared, (1, 4))).var() == pytest.approx(1.0, rel=0.03)
    both = hierarchical_resamples(effects + shared)
    assert both.var() == pytest.approx(1.0 + effects.var(ddof=1) / seeds, rel=0.03)


def test_with_few_seeds_the_interval_is_as_wide_as_students():
    effects = np.array([0.01, 0.02, 0.06])
    still = effects + np.zeros((20_000, 1))
    found, students = method_difference(effects, still, drawn=Resampled(501, 1)), paired_t(effects)
    assert found.degrees == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((students.low, students.high), rel=0.03)
    assert found.p_value == pytest.approx(students.p_value, rel=0.05)


def test_nothing_varies():
    found = method_difference([0.0, 0.0], np.zeros((10, 2)), drawn=Resampled(5, 1))
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert method_difference([1.0, 1.0], np.ones((10, 2)), drawn=Resampled(2, 1)).p_value == 1.0  # of two pairs


# --- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "seeds"), [(3, 1), (10, 1), (6, 3)])
def test_intervals_of_simulated_comparisons_cover_the_truth(simulation, size, seeds):
    """A smaller run of the benchmark, which prints 500 comparisons of each kind; here chance is worth 2.2 points."""
    covered = simulation.coverage(size, seeds=seeds, comparisons=200, resamples=400, seed=3)[0]
    assert 0.91 <= covered <= 0.99


def test_a_planted_difference_is_found_and_none_is_not_invented(simulation):
    """Five points on 500 built-in pairs over 20 seeds; 7 % of the pairs are decided differently."""
    better = [simulation.planted(0.05, 0.05, seed=seed) for seed in range(20)]
    equal = [simulation.planted(0.0, 0.05, seed=100 + seed) for seed in range(20)]
    gains = [one.right[:, 1].mean() - one.right[:, 0].mean() for one in better]
    assert np.mean(gains) == pytest.approx(0.05, abs=0.006)  # what was planted is there
    assert all((one.right[:, 0] != one.right[:, 1]).any() for one in equal)
    assert sum(simulation.found_by_flips(one) for one in better) >= 19
    assert sum(simulation.found_by_flips(one) for one in equal) <= 2


def test_expanding_widens_more_the_fewer_clusters_there_are():
    samples = np.random.default_rng(0).normal(size=50_000)
    shapes = [Resampled(clusters, 1) for clusters in (4, 11, 101, 100_001)]
    widths = [np.diff(percentile_interval(samples, drawn=shape))[0] for shape in shapes]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(np.diff(percentile_interval(samples))[0], rel=1e-3)
    assert widths[1] / widths[-1] == pytest.approx(math.sqrt(11 / 10) * 2.228 / 1.960, rel=0.03)
    assert percentile_interval(samples, drawn=Resampled(3, 3)) == percentile_interval(samples)


def test_degrees_of_freedom_count_clusters_within_strata():
    assert resampled_clusters(["a"] * 4, list("wxyz")).degrees == 3
    assert resampled_clusters(["a", "a", "b", "b"], list("wxyz")).degrees == 2
    assert resampled_clusters(["a", "b", "b", "c"], ["w", "w", "x", "y"]) == (3, 2)  # a and b share w: one stratum
    assert resampled_clusters(["a"], ["w"]).degrees == 0


@pytest.mark.parametrize(("strata", "size"), [(30, 2), (15, 4), (1, 60)])
def test_intervals_of_many_small_strata_cover_the_truth(strata, size):
    """Without the expansion for the strata, two clusters to a stratum cover 84 % of the time."""
    names = [f"stratum-{place // size}" for place in range(strata * size)]
    clusters = [str(place) for place in range(strata * size)]
    shape, generator, covered = resampled_clusters(names, clusters), np.random.default_rng(0), 0
    for _ in range(300):
        values = generator.normal(size=strata * size)
        drawn = cluster_bootstrap(values, ["all"] * len(names), clusters, strata=names, resamples=2000)
        low, high = percentile_interval(drawn.overall()[:, 0], drawn=shape)
        covered += low <= 0 <= high
    assert 0.92 <= covered / 300 <= 0.98


def test_strata_keep_their_number_of_clusters_and_groups_their_sums():
    values, groups = [1.0, 2.0, 4.0, 8.0, 16.0], list("xyxyx")
    drawn = cluster_bootstrap(values, groups, list("pqrst"), strata=list("aabbb"), resamples=500)
    assert drawn.groups == ("x", "y")
    assert (drawn.counts.sum(axis=1) == 5).all()
    assert drawn.sums.sum(axis=(1, 2)).max() == 2 + 2 + 3 * 16
    assert drawn.sums.sum(axis=(1, 2)).min() == 1 + 1 + 3 * 4
    assert set(drawn.counts[:, 1]) == {0, 1, 2, 3, 4, 5}  # y has a pair in either stratum


# --- power ------------------------------------------------------------------------------------------------------------


def test_golden_numbers_of_pairs_needed():
    for discordance, expected in ((0.2, (626, 3923, 15696)), (0.1, (312, 1960, 7847))):
        found = tuple(math.ceil(pairs_needed(points / 100, discordance)) for points in (5, 2, 1))
        assert found == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 20_000), st.floats(0.01, 1.0), st.sampled_from([0.5, 0.8, 0.95]))
def test_detectable_is_the_inverse_of_needed(pairs, discordance, power):
    size = detectable_difference(pairs, discordance, power=power)
    if size is None:
        assert pairs_needed(discordance, discordance, power=power) > pairs
    else:
        assert pairs_needed(size, discordance, power=power) == pytest.approx(pairs, rel=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="discordance"):
        pairs_needed(0.3, 0.2)
    assert pairs_needed(0.0, 0.2) == math.inf
    assert detectable_difference(100, 0.0) is None
    assert detectable_from_error(0.0, degrees=10) is None


def test_the_two_ways_to_a_detectable_difference_agree():
    for pairs, discordance in ((500, 0.2), (3000, 0.1)):
        error = math.sqrt(discordance / pairs)
        assert detectable_from_error(error, degrees=1e9) == pytest.approx(
            detectable_difference(pairs, discordance), rel=0.02
        )


def test_the_test_has_the_power_it_is_said_to_have():
    """626 pairs, of which 20 % are decided differently, and a true difference of 5 points: found 80 % of the time."""
    generator, found = np.random.default_rng(0), 0
    for _ in range(400):
        kinds = generator.choice([1.0, -1.0, 0.0], p=[0.125, 0.075, 0.8], size=626)
        found += mcnemar_exact(int((kinds > 0).sum()), int((kinds < 0).sum())) <= 0.05
    assert found / 400 == pytest.approx(0.8, abs=0.06)
