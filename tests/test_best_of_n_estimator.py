"""The best-of-n estimator against the average over all subsets, written out."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from normbt.best_of_n.estimator import agreement, choice_weights, expected_choice, kl_bound, rank_weights

few_values = st.sampled_from([-1.5, 0.0, 0.25, 1.0])  # so that ties are the rule
candidates = st.lists(st.tuples(few_values, st.floats(-10, 10)), min_size=1, max_size=8)


def over_all_subsets(scores, values, n):
    """Mean over every subset of the mean value of its best-scored members."""
    means = []
    for subset in combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        tied = [values[i] for i in subset if scores[i] == best]
        means.append(sum(tied) / len(tied))
    return sum(means) / len(means)


@settings(max_examples=150, deadline=None)
@given(pool=candidates)
def test_it_is_the_mean_over_all_subsets(pool):
    scores, values = zip(*pool, strict=True)
    sizes = range(1, len(pool) + 1)
    wanted = [over_all_subsets(scores, values, n) for n in sizes]
    np.testing.assert_allclose(expected_choice(scores, values, sizes), wanted, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(pool=candidates, order=st.randoms())
def test_the_order_of_the_candidates_plays_no_part(pool, order):
    shuffled = list(pool)
    order.shuffle(shuffled)
    sizes = range(1, len(pool) + 1)
    first, second = (expected_choice(*zip(*rows, strict=True), sizes) for rows in (pool, shuffled))
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-12)


def test_one_candidate_is_the_mean_and_all_of_them_the_best():
    scores, values = [3, 1, 2], [10.0, 20.0, 60.0]
    assert expected_choice(scores, values, [1, 3]) == pytest.approx([30, 10], abs=1e-12)
    assert expected_choice([1, 1, 1], values, [1, 2, 3]) == pytest.approx([30, 30, 30], abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 100, 6300, 12_500, 12_600])
def test_it_stays_exact_at_12600_candidates(n):
    count = 12_600
    weights = rank_weights(count, [n])[0]
    assert weights.sum() == pytest.approx(1, abs=1e-11)
    whole = math.comb(count, n)
    for rank in {n, (n + count) // 2, count - 1, count}:
        exact = Fraction(math.comb(rank - 1, n - 1), whole)
        if exact > Fraction(1, 10**290):  # below that a double ends
            assert weights[rank - 1] == pytest.approx(float(exact), rel=2e-12)


def test_gold_that_is_right_or_wrong_gives_pass_at_n():
    gold = np.array([1] * 7 + [0] * 33)
    sizes = [1, 2, 8, 20, 40]
    wanted = [1 - math.comb(33, n) / math.comb(40, n) for n in sizes]
    assert expected_choice(gold, gold, sizes) == pytest.approx(wanted, abs=1e-12)


def test_the_best_of_n_normal_draws_has_the_mean_of_the_order_statistic():
    draws = np.random.default_rng(0).normal(size=(4000, 16))
    sizes = [1, 2, 4, 8, 16]
    found = np.array([expected_choice(row, row, sizes) for row in draws])
    grid = np.linspace(-9, 9, 20_001)
    for place, n in enumerate(sizes):
        mean = np.trapezoid(grid * n * norm.pdf(grid) * norm.cdf(grid) ** (n - 1), grid)
        error = found[:, place].std() / math.sqrt(len(draws))
        assert abs(found[:, place].mean() - mean) < 4 * error


def test_several_columns_of_values_are_chosen_together():
    values = np.random.default_rng(1).normal(size=(6, 3))
    scores = values[:, 0].round(1)
    both = expected_choice(scores, values, [2, 4])
    for column in range(3):
        assert both[:, column] == pytest.approx(expected_choice(scores, values[:, column], [2, 4]))


def test_the_bound_has_the_published_values():
    published = {2: 0.1931, 4: 0.6363, 16: 1.8351, 128: 3.8598, 405: 5.0064, 1024: 5.9324}
    assert {n: round(kl_bound(n), 4) for n in published} == published
    assert kl_bound(1) == 0


def test_agreement_draws_fairly_among_the_tied():
    assert agreement([1, 2, 3], [1, 5, 5]) == 1
    assert agreement([3, 3, 3, 0], [1, 2, 2, 9]) == 0
    assert agreement([0, 0, 0, 0], [7, 1, 7, 3]) == 0.5


@pytest.mark.parametrize(("scores", "sizes"), [([1, math.nan], [1]), ([1, 2], [3]), ([1, 2], [0]), ([[1]], [1])])
def test_impossible_requests_are_refused(scores, sizes):
    with pytest.raises(ValueError, match="wanted"):
        choice_weights(scores, sizes)
