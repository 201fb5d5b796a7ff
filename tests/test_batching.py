"""Arrangement of a step: every pair once, no budget broken, ranks alike."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normbt.batching import arrange, arrange_by_length, balance, plan_step

counts = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(counts, st.integers(1, 100))
def test_every_pair_is_arranged_once_and_no_shared_batch_exceeds_the_budget(tokens: list[int], budget: int) -> None:
    batches = arrange(tokens, budget)
    assert sorted(pair for batch in batches for pair in batch) == list(range(len(tokens)))
    for batch in batches:
        assert batch == sorted(batch)
        assert len(batch) == 1 or sum(tokens[pair] for pair in batch) <= budget


@given(counts, st.integers(60, 100))
def test_first_fit_leaves_no_two_batches_that_would_fit_into_one(tokens: list[int], budget: int) -> None:
    loads = sorted(sum(tokens[pair] for pair in batch) for batch in arrange(tokens, budget))
    assert len(loads) < 2 or loads[0] + loads[1] > budget


@given(counts, st.integers(1, 100))
def test_by_length_every_pair_is_arranged_once_and_padding_counts(tokens: list[int], budget: int) -> None:
    batches = arrange_by_length(tokens, budget)
    assert sorted(pair for batch in batches for pair in batch) == list(range(len(tokens)))
    for batch in batches:
        assert batch == sorted(batch)
        assert len(batch) == 1 or len(batch) * max(tokens[pair] for pair in batch) <= budget
    spans = [(min(tokens[pair] for pair in batch), max(tokens[pair] for pair in batch)) for batch in batches]
    assert all(longer[0] >= shorter[1] for longer, shorter in itertools.pairwise(spans))


def test_a_pair_over_the_budget_goes_alone() -> None:
    assert arrange([5, 100, 5], token_budget=10) == [[1], [0, 2]]


@given(st.lists(st.floats(0, 100), min_size=0, max_size=40), st.integers(1, 8))
def test_balance_shares_every_pair_once_and_stays_near_the_mean(costs: list[float], ranks: int) -> None:
    shares = balance(costs, ranks)
    assert len(shares) == ranks
    assert sorted(pair for share in shares for pair in share) == list(range(len(costs)))
    loads = [sum(costs[pair] for pair in share) for share in shares]
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0.0) + 1e-6


def test_balance_beats_dealing_in_turn() -> None:
    costs = [9.0, 1.0, 8.0, 1.0, 7.0, 1.0, 6.0, 1.0]
    loads = [sum(costs[pair] for pair in share) for share in balance(costs, 2)]
    assert loads == [17.0, 17.0]  # in turn: 30 and 4


@given(counts, st.integers(1, 100), st.integers(1, 5))
def test_a_plan_holds_the_step_whole_with_equal_numbers_of_micro_batches(
    tokens: list[int], budget: int, ranks: int
) -> None:
    plan = plan_step(tokens, tokens, token_budget=budget, ranks=ranks)
    assert len(plan) == ranks
    assert len({len(batches) for batches in plan}) == 1
    assert sorted(pair for batches in plan for batch in batches for pair in batch) == list(range(len(tokens)))
    for batches in plan:
        for batch in batches:
            assert len(batch) <= 1 or sum(tokens[pair] for pair in batch) <= budget
        if any(len(batch) > 1 for batch in batches):
            assert all(batches), "an empty micro-batch although a full one could be split"


def test_ranks_without_pairs_get_empty_micro_batches() -> None:
    assert plan_step([4], [4], token_budget=10, ranks=3) == [[[0]], [[]], [[]]]


def test_a_plan_is_the_same_on_every_rank_and_every_run() -> None:
    tokens = [7, 7, 7, 3, 3, 12, 7]
    assert plan_step(tokens, tokens, token_budget=14, ranks=2) == plan_step(tokens, tokens, token_budget=14, ranks=2)


@pytest.mark.parametrize("arguments", [([1], 0), ([0], 5)])
def test_arrange_refuses_nothing_to_arrange_with(arguments: tuple[list[int], int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        arrange(*arguments)


def test_balance_refuses_no_ranks() -> None:
    with pytest.raises(ValueError, match="ranks must be positive"):
        balance([1.0], 0)
