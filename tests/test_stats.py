import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from normbt.stats import (
    cluster_bootstrap,
    holm,
    mcnemar_exact,
    pair_outcomes,
    percentile_interval,
    wilson_interval,
)


def test_outcomes_count_ties_and_non_finite_as_wrong():
    nan, inf = math.nan, math.inf
    found = pair_outcomes([1.0, 1.0, 0.0, nan, 1.0, inf, 0.0], [0.0, 1.0, 1.0, 0.0, nan, 0.0, -inf])
    assert found.correct.tolist() == [True, False, False, False, False, False, False]
    assert found.tie.tolist() == [False, True, False, False, False, False, False]
    assert found.finite.tolist() == [True, True, True, False, False, False, False]


@settings(deadline=None)
@given(st.integers(1, 3000), st.data())
def test_wilson_is_scipys(trials, data):
    successes = data.draw(st.integers(0, trials))
    confidence = data.draw(st.sampled_from([0.8, 0.95, 0.99]))
    expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence=confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 4), (5, 4)])
def test_wilson_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="wanted 0 <= successes <= trials"):
        wilson_interval(successes, trials)


def test_confidence_must_be_a_share():
    with pytest.raises(ValueError, match=r"confidence in \(0, 1\), found 95"):
        wilson_interval(1, 2, confidence=95)
    with pytest.raises(ValueError, match="confidence"):
        percentile_interval([1.0], confidence=1.0)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_tail(only_first, only_second):
    discordant = only_first + only_second
    tail = sum(binom.pmf(k, discordant, 0.5) for k in range(min(only_first, only_second) + 1))
    assert mcnemar_exact(only_first, only_second) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="at least 0"):
        mcnemar_exact(-1, 3)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """Closing the Bonferroni test over every subset of hypotheses is the definition; Holm is its shortcut."""
    family = range(len(p_values))
    closed = []
    for hypothesis in family:
        subsets = (
            subset
            for size in range(1, len(p_values) + 1)
            for subset in itertools.combinations(family, size)
            if hypothesis in subset
        )
        closed.append(max(min(1.0, len(subset) * min(p_values[i] for i in subset)) for subset in subsets))
    np.testing.assert_allclose(holm(p_values), closed)


def test_holm_refuses_what_is_not_a_probability():
    with pytest.raises(ValueError, match="p-values"):
        holm([0.1, math.nan])


def slow_bootstrap(values, groups, clusters, strata, *, resamples, seed):
    """Slow twin: draw clusters one by one within each stratum and average each group; (resamples, groups)."""
    generator = np.random.default_rng(seed)
    names = sorted(set(groups))
    means = np.empty((resamples, len(names)))
    for resample in range(resamples):
        drawn = {name: [] for name in names}
        for stratum in strata:
            for cluster in generator.choice(stratum, size=len(stratum)):
                for value, group, own in zip(values, groups, clusters, strict=True):
                    if own == cluster:
                        drawn[group].append(value)
        means[resample] = [np.mean(drawn[name]) if drawn[name] else math.nan for name in names]
    return means


def test_bootstrap_agrees_with_its_slow_twin():
    """Groups b and c share clusters, a stands alone: two strata."""
    generator = np.random.default_rng(3)
    groups = ["a"] * 12 + ["b"] * 10 + ["c"] * 10
    clusters = [f"a{i // 2}" for i in range(12)] + [f"s{i}" for i in range(10)] * 2
    values = generator.integers(0, 2, size=32).astype(float)
    strata = [[f"a{i}" for i in range(6)], [f"s{i}" for i in range(10)]]
    slow = slow_bootstrap(values, groups, clusters, strata, resamples=3000, seed=1)
    fast = cluster_bootstrap(values, groups, clusters, resamples=20_000, seed=2).means()[:, :, 0]
    np.testing.assert_allclose(fast.mean(axis=0), slow.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(np.cov(fast.T), np.cov(slow.T), atol=0.003)


def test_bootstrap_of_independent_pairs_has_the_binomial_error():
    values = np.arange(400) < 300
    drawn = cluster_bootstrap(values, ["all"] * 400, [str(i) for i in range(400)], resamples=20_000)
    assert drawn.overall()[:, 0].std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.03)
    assert drawn.counts.min() == drawn.counts.max() == 400


def test_bootstrap_sees_clusters():
    """Four identical copies of every pair carry no more information than one: the error is that of 100, not of 400."""
    values = np.repeat(np.arange(100) < 75, 4)
    clusters = np.repeat(np.arange(100), 4).astype(str)
    drawn = cluster_bootstrap(values, ["all"] * 400, clusters, resamples=20_000)
    assert drawn.overall()[:, 0].std() == pytest.approx(math.sqrt(0.75 * 0.25 / 100), rel=0.03)


def test_bootstrap_keeps_the_size_of_separate_groups_and_draws_shared_clusters_whole():
    groups = ["a"] * 5 + ["b"] * 7 + ["c"] * 7
    clusters = [f"a{i}" for i in range(5)] + [f"s{i}" for i in range(7)] * 2
    values = [0.0] * 5 + [float(i) for i in range(7)] * 2
    drawn = cluster_bootstrap(values, groups, clusters, resamples=500)
    assert drawn.counts.tolist() == [[5, 7, 7]] * 500
    np.testing.assert_array_equal(drawn.sums[:, 1], drawn.sums[:, 2])


def test_two_columns_are_measured_on_the_same_resamples():
    generator = np.random.default_rng(0)
    first = generator.integers(0, 2, 200)
    second = np.where(generator.random(200) < 0.1, 1 - first, first)  # two models that mostly agree
    groups, clusters = ["g"] * 200, [str(i) for i in range(200)]
    both = cluster_bootstrap(np.stack([first, second], axis=1), groups, clusters, resamples=10_000).overall()
    alone = cluster_bootstrap(first, groups, clusters, resamples=10_000).overall()
    np.testing.assert_array_equal(both[:, 0], alone[:, 0])
    paired = (both[:, 0] - both[:, 1]).std()
    assert paired == pytest.approx(np.std(first - second) / math.sqrt(200), rel=0.05)
    assert paired < 0.5 * math.hypot(both[:, 0].std(), both[:, 1].std())


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Simulation: clusters of four answers that share half of their luck, a new data set each time."""
    generator = np.random.default_rng(11)
    covered = 0
    for trial in range(300):
        shared = np.repeat(generator.random(60) < 0.7, 4)
        own = generator.random(240) < 0.7
        values = np.where(generator.random(240) < 0.5, shared, own)
        clusters = np.repeat(np.arange(60), 4).astype(str)
        drawn = cluster_bootstrap(values, ["g"] * 240, clusters, resamples=500, seed=trial)
        low, high = percentile_interval(drawn.overall()[:, 0])
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 300 <= 0.98


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_bootstrap_repeats_itself_and_ignores_the_order_of_the_pairs(seed, pairs):
    generator = np.random.default_rng(seed)
    values = generator.random(pairs)
    groups = [f"g{i}" for i in generator.integers(0, 3, pairs)]
    clusters = [f"c{i}" for i in generator.integers(0, 5, pairs)]
    order = generator.permutation(pairs)
    first = cluster_bootstrap(values, groups, clusters, resamples=20, seed=seed)
    second = cluster_bootstrap(
        values[order], [groups[i] for i in order], [clusters[i] for i in order], resamples=20, seed=seed
    )
    assert first.groups == second.groups
    np.testing.assert_allclose(first.sums, second.sums)
    np.testing.assert_array_equal(first.counts, second.counts)


def test_chunks_do_not_change_the_resamples_of_a_single_stratum(monkeypatch):
    values, groups, clusters = np.arange(30) % 2, ["g"] * 30, [str(i) for i in range(30)]
    whole = cluster_bootstrap(values, groups, clusters, resamples=100)
    monkeypatch.setattr("normbt.stats.bootstrap.CHUNK_ELEMENTS", 70)
    np.testing.assert_array_equal(cluster_bootstrap(values, groups, clusters, resamples=100).sums, whole.sums)


def test_a_group_that_a_resample_leaves_out_has_no_mean_and_no_say_in_the_interval():
    drawn = cluster_bootstrap([1.0, 0.0, 1.0], ["a", "b", "b"], ["p", "p", "q"], resamples=200)
    means = drawn.means()[:, 0, 0]
    assert np.isnan(means).any()
    assert percentile_interval(means) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no resample"):
        percentile_interval([math.nan])


@pytest.mark.parametrize(("values", "groups", "clusters"), [([], [], []), ([1], [], ["c"]), ([1], ["g"], [])])
def test_bootstrap_refuses_ragged_input(values, groups, clusters):
    with pytest.raises(ValueError, match="one group and one cluster per pair"):
        cluster_bootstrap(values, groups, clusters)
