"""Statistics of the bias against their slow twins: pairs repeated in a list, loops, and SciPy on that."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normbt.bias import (
    PairNumbers,
    distance_groups,
    effective_pairs,
    error_bins,
    estimates,
    log_slopes,
    pearson,
    prediction_error,
    product_deviation,
    proportional_fit,
    quiet_mistakes,
    spearman,
    summarise,
    update_shares,
)

law = settings(max_examples=60, deadline=None)
sizes = st.floats(0.0, 100.0, allow_subnormal=False).map(lambda value: 0.0 if value < 1e-6 else value)
values = st.integers(-5, 5).map(float)  # few different values, so that there are ties


@st.composite
def counted_columns(draw):
    """Two columns, and how often each of their rows counts."""
    rows = draw(st.integers(3, 12))
    columns = [draw(st.lists(values, min_size=rows, max_size=rows)) for _ in range(2)]
    times = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows).filter(lambda drawn: sum(drawn) >= 2))
    return np.array(columns), np.array(times)


@law
@given(counted_columns())
def test_correlations_are_those_of_the_repeated_rows(drawn):
    columns, times = drawn
    x, y = (np.repeat(column, times) for column in columns)
    for ours, scipys in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        value = ours(columns, [(0, 1), (1, 0)])(times[None].astype(float))[0]
        if x.std() == 0 or y.std() == 0:
            assert np.isnan(value).all()
        else:
            np.testing.assert_allclose(value, scipys(x, y).statistic, atol=1e-12)


@law
@given(counted_columns())
def test_slopes_are_those_of_the_repeated_rows(drawn):
    columns, times = drawn
    distance, norm = np.exp(columns / 3)
    bins = [np.arange(0, 2), np.arange(2, len(times))]
    found = log_slopes(distance, norm, bins)(times[None].astype(float))[0]
    for members, slope in zip(bins, found, strict=True):
        x, y = (np.repeat(np.log(column[members]), times[members]) for column in (distance, norm))
        if x.size == 0 or x.std() == 0:
            assert np.isnan(slope)
        else:
            np.testing.assert_allclose(slope, stats.linregress(x, y).slope, atol=1e-9)


def test_several_resamples_at_once_are_the_same_as_one_by_one():
    generator = np.random.default_rng(0)
    columns = np.round(generator.normal(size=(3, 40)), 1)
    times = generator.integers(0, 4, size=(7, 40)).astype(float)
    bins = [np.arange(20), np.arange(20, 40)]
    for statistic in (
        pearson(columns, [(0, 1), (0, 2)]),
        spearman(columns, [(0, 1), (0, 2)]),
        log_slopes(np.exp(columns[0]), np.exp(columns[1]), bins),
    ):
        np.testing.assert_allclose(statistic(times), np.concatenate([statistic(row[None]) for row in times]))


def test_the_interval_is_that_of_a_bootstrap_written_as_a_loop():
    generator = np.random.default_rng(1)
    x = generator.normal(size=60)
    y = x + generator.normal(size=60)
    (ours,) = estimates({"r": pearson([x, y], [(0, 1)])}, np.arange(60), resamples=4000, seed=3)["r"]
    assert ours["value"] == pytest.approx(stats.pearsonr(x, y).statistic)
    twin = []
    for _ in range(4000):
        drawn = generator.integers(0, 60, size=60)
        twin.append(np.corrcoef(x[drawn], y[drawn])[0, 1])
    assert (ours["low"], ours["high"]) == pytest.approx(tuple(np.quantile(twin, [0.025, 0.975])), abs=0.02)


def test_pairs_of_one_prompt_are_drawn_together_and_widen_the_interval():
    generator = np.random.default_rng(2)
    x = np.repeat(generator.normal(size=15), 8)  # eight copies of each pair are no more evidence than one
    y = np.repeat(generator.normal(size=15), 8)
    statistic = {"r": pearson([x, y], [(0, 1)])}
    alone = estimates(statistic, np.arange(120), resamples=1000)["r"][0]
    together = estimates(statistic, np.repeat(np.arange(15), 8), resamples=1000)["r"][0]
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_the_same_seed_gives_the_same_interval_however_the_resamples_are_cut(monkeypatch):
    from normbt.bias import association

    x, y = np.random.default_rng(4).normal(size=(2, 30))
    statistic = {"r": pearson([x, y], [(0, 1)])}
    whole = estimates(statistic, np.arange(30), resamples=100, seed=5)
    monkeypatch.setattr(association, "CHUNK_ELEMENTS", 70)
    assert estimates(statistic, np.arange(30), resamples=100, seed=5) == whole
    assert estimates(statistic, np.arange(30), resamples=100, seed=6) != whole


def test_what_does_not_exist_is_none():
    flat = estimates({"r": pearson([[2.0] * 4, [1, 2, 3, 4]], [(0, 1)])}, np.arange(4), resamples=20)["r"]
    assert flat == [{"value": None, "low": None, "high": None}]
    # Rounding alone is not a spread.
    nearly = np.full(4, 0.1) + np.array([0, 1, 2, 3]) * 1e-17
    assert np.isnan(pearson([nearly, [1, 2, 3, 4]], [(0, 1)])(np.ones((1, 4)))).all()
    assert estimates({"r": pearson([[], []], [(0, 1)])}, [], resamples=20) == {"r": []}


@law
@given(margin=st.floats(-50, 50))
def test_swapping_a_pair_turns_its_error_into_the_rest(margin):
    assert prediction_error(margin) + prediction_error(-margin) == pytest.approx(1.0)
    assert prediction_error(margin) == pytest.approx(1 - 1 / (1 + np.exp(-margin)), abs=1e-15)


@law
@given(distance=st.lists(sizes, max_size=40), groups=st.integers(1, 12))
def test_groups_split_all_pairs_evenly_in_the_order_of_the_distance(distance, groups):
    found = distance_groups(distance, groups)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(distance)))
    lengths = [len(group) for group in found]
    assert len(lengths) == groups
    assert max(lengths) - min(lengths) <= 1
    ordered = [distance[index] for group in found for index in group]
    assert ordered == sorted(distance)


@law
@given(update=st.lists(sizes, min_size=1, max_size=30), groups=st.integers(1, 5), factor=st.floats(0.1, 10))
def test_shares_are_sums_over_the_sum(update, groups, factor):
    parts = distance_groups(update, groups)
    shares = update_shares(update, parts)
    if sum(update) == 0:
        assert shares == [None] * groups
        return
    assert shares == pytest.approx([sum(update[index] for index in part) / sum(update) for part in parts])
    assert update_shares(factor * np.array(update), parts) == pytest.approx(shares)


@law
@given(update=st.lists(sizes, min_size=1, max_size=30))
def test_effective_pairs_are_the_formula_and_within_bounds(update):
    found = effective_pairs(update)
    if max(update) == 0:
        assert found is None
        return
    assert found == pytest.approx(sum(update) ** 2 / sum(value**2 for value in update))
    assert 1 - 1e-9 <= found <= len(update) + 1e-9
    assert effective_pairs([1e-200 * value for value in update]) == pytest.approx(found)


@law
@given(pairs=st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=30))
def test_quiet_mistakes_are_counted_by_a_loop(pairs):
    update, wrong = zip(*pairs, strict=True)
    found = quiet_mistakes(update, wrong)
    right = sorted(value for value, is_wrong in pairs if not is_wrong)
    if not right:
        assert found == (0, None)
        return
    median = (right[(len(right) - 1) // 2] + right[len(right) // 2]) / 2
    assert found.median == pytest.approx(median)
    assert found.quiet == sum(is_wrong and value < found.median for value, is_wrong in pairs)


@law
@given(error=st.lists(st.integers(0, 6).map(lambda value: value / 6), max_size=40), bins=st.integers(1, 6))
def test_error_bins_hold_all_pairs_in_order_and_never_tear_equal_errors_apart(error, bins):
    found = error_bins(error, bins)
    assert sorted(index for group in found for index in group) == list(range(len(error)))
    assert len(found) <= bins
    for lower, upper in pairwise(found):
        assert max(error[index] for index in lower) < min(error[index] for index in upper)


def test_error_bins_are_equally_large_where_errors_differ():
    assert [len(group) for group in error_bins(np.random.default_rng(0).random(100))] == [20] * 5


def test_one_constant_fits_what_is_proportional_and_says_so_where_nothing_is():
    generator = np.random.default_rng(0)
    distance = generator.random(50) + 0.1
    exact = proportional_fit(distance, 2.5 * distance)
    assert exact["k"] == pytest.approx(2.5)
    assert exact["r_squared"] == pytest.approx(1.0)
    assert exact["ratio_p05"] == pytest.approx(exact["ratio_p95"])
    norm = 2.5 * distance + generator.normal(size=50)
    twin, residual, _, _ = np.linalg.lstsq(distance[:, None], norm, rcond=None)
    noisy = proportional_fit(distance, norm)
    assert noisy["k"] == pytest.approx(twin[0])
    assert noisy["r_squared"] == pytest.approx(1 - residual[0] / (50 * norm.var()))
    assert proportional_fit(distance, 1 / distance)["r_squared"] < 0
    assert proportional_fit([0.0, 0.0], [1.0, 2.0])["k"] is None
    assert set(proportional_fit([], []).values()) == {None}


def test_a_head_that_is_not_the_distance_is_seen():
    distance = np.array([0.0, 1.0, 3.0])
    assert product_deviation(distance, distance)["max_relative_deviation"] == 0.0
    assert product_deviation(distance, [0.0, 1.1, 3.0])["max_relative_deviation"] == pytest.approx(0.1)
    # Nearly equal pairs are measured against a hundredth of the mean distance.
    assert product_deviation(distance, [1e-6, 1.0, 3.0])["max_relative_deviation"] == pytest.approx(1e-6 / (4 / 300))
    assert product_deviation([], [])["max_relative_deviation"] is None


# All together


def made_up_pairs(pairs=400, seed=0, exponent=1.0):
    """Pairs whose gradient norm is a power of the distance, and whose weight cancels the distance."""
    generator = np.random.default_rng(seed)
    distance = generator.lognormal(size=pairs)
    norm = 3 * distance**exponent
    margin = generator.normal(size=pairs)
    return PairNumbers(
        error=prediction_error(margin),
        misranked=margin <= 0,
        distance=distance,
        distance_relative=distance / 10,
        distance_cosine=distance**2,
        weight=distance.sum() / max(pairs, 1) / distance,
        gradient_norm=norm,
        gradient_norm_head=distance,
        gradient_norm_backbone=np.sqrt(np.square(norm) - np.square(np.minimum(distance, norm))),
        cluster=np.arange(pairs),
        category=np.arange(pairs) % 3 - 1,
        categories=["math", "chat"],
    )


def test_norms_proportional_to_the_distance_give_the_textbook_answer():
    numbers = made_up_pairs()
    summary = summarise(numbers, resamples=50)
    for kind in ("distance", "distance_relative"):
        assert summary["correlations"][kind]["pearson"]["value"] == pytest.approx(1.0)
    assert summary["correlations"]["distance_cosine"]["pearson"]["value"] < 0.99
    assert summary["correlations"]["distance_cosine"]["spearman"]["value"] == pytest.approx(1.0)
    assert [error_bin["slope"]["value"] for error_bin in summary["error_bins"]] == pytest.approx([1.0] * 5)
    assert summary["proportional_fit"]["k"] == pytest.approx(3.0)
    # NormBT cancels the distance, so that each decile's share is its share of the errors.
    for decile, members in zip(summary["share_by_decile"], distance_groups(numbers.distance, 10), strict=True):
        assert decile["share_normbt"] == pytest.approx(numbers.error[members].sum() / numbers.error.sum())
    assert summary["share_by_decile"][-1]["share_bt"] > 0.3 > summary["share_by_decile"][-1]["share_normbt"]
    assert summary["effective_pairs_bt"] < summary["effective_pairs_normbt"]
    assert summary["quiet_mistakes"]["quiet_bt"] > summary["quiet_mistakes"]["quiet_normbt"]
    assert list(summary["per_category"]) == ["math", "chat"]
    outside = 1 - sum(found["share_bt"] for found in summary["per_category"].values())
    assert outside == pytest.approx(numbers.update_bt[::3].sum() / numbers.update_bt.sum())
    assert summary["per_category"]["math"]["pairs"] == 133
    assert sum(found["misranked"] for found in summary["per_category"].values()) == sum(
        numbers.misranked[numbers.category >= 0]
    )


def test_norms_that_do_not_depend_on_the_distance_have_no_slope():
    summary = summarise(made_up_pairs(exponent=0.0), resamples=20)
    assert [error_bin["slope"]["value"] for error_bin in summary["error_bins"]] == pytest.approx([0.0] * 5)
    assert summary["correlations"]["distance"]["pearson"] == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize("pairs", [0, 1, 2, 9])
def test_few_pairs_give_none_and_no_error(pairs):
    summary = summarise(made_up_pairs(pairs), resamples=20)
    assert len(summary["share_by_decile"]) == 10
    assert sum(decile["pairs"] for decile in summary["share_by_decile"]) == pairs
    assert len(summary["correlations"]) == len(summary["correlations_backbone"]) == 3


def test_pairs_with_equal_representations_are_left_out_of_slopes_alone():
    numbers = made_up_pairs(100)
    zero = {"distance": numbers.distance.copy(), "gradient_norm": numbers.gradient_norm.copy()}
    zero["distance"][:10] = zero["gradient_norm"][:10] = 0.0
    summary = summarise(dataclasses.replace(numbers, **zero), resamples=20)
    assert sum(error_bin["pairs"] for error_bin in summary["error_bins"]) == 90
    assert summary["share_by_decile"][0]["share_bt"] == 0.0
