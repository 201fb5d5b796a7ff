"""The running mean of a run against a plain chain of updates; several processes are in test_distributed.py."""

import pytest
import torch

from normbt.running_mean import RunningMean
from normbt.weights import EmaState, update_ema

DECAY = 0.9
STEPS = [[[1.0, 2.0], [6.0]], [[4.0]], [[], [3.0, 5.0]]]
"""Distances of each micro-batch of each step."""


def started(start: float | None = None) -> RunningMean:
    return RunningMean(start, DECAY, torch.device("cpu"))


def take(mean: RunningMean, micro_batches: list[list[float]], taken: bool | None = None) -> None:
    for distances in micro_batches:
        distance = torch.tensor(distances)
        mean.add(distance, torch.ones_like(distance, dtype=torch.bool))
    mean.gather()
    mean.move(None if taken is None else torch.tensor(taken))


def chain(steps: list[list[list[float]]], state: EmaState) -> EmaState:
    for micro_batches in steps:
        distances = [distance for micro_batch in micro_batches for distance in micro_batch]
        state = update_ema(state, sum(distances), len(distances), DECAY)
    return state


@pytest.mark.parametrize("reads", [True, False])
def test_it_moves_once_for_each_step_read_or_not(reads):
    mean = started(2.0)
    for step, micro_batches in enumerate(STEPS, start=1):
        take(mean, micro_batches)
        if reads:
            assert mean.state == chain(STEPS[:step], EmaState(2.0, 1))
    assert mean.state == chain(STEPS, EmaState(2.0, 1))


def test_it_stays_until_the_step_is_over():
    mean = started(2.0)
    mean.add(torch.tensor([4.0]), torch.tensor([True]))
    assert mean.value == 2.0
    mean.gather()
    assert mean.value == 2.0, "the step's own distances must not weigh its pairs"
    mean.move()
    assert mean.value == pytest.approx(2.2)


def test_a_step_that_was_not_taken_leaves_it_as_it_is():
    mean = started(2.0)
    take(mean, STEPS[0], taken=False)
    assert mean.state == EmaState(2.0, 1)
    take(mean, STEPS[1], taken=True)
    assert mean.state == chain(STEPS[1:2], EmaState(2.0, 1))


def test_only_pairs_that_count_move_it():
    mean = started(2.0)
    mean.add(torch.tensor([4.0, torch.nan, 9.0]), torch.tensor([True, False, False]))
    mean.gather()
    mean.move()
    assert mean.value == pytest.approx(2.2)


def test_without_a_start_the_first_mean_is_set_and_then_replaced_by_the_steps_own():
    mean = started()
    assert mean.value is None
    mean.set(EmaState(3.0, 0))
    assert mean.is_known
    assert mean.value == 3.0
    take(mean, STEPS[0])
    assert mean.state == chain(STEPS[:1], EmaState())


def test_a_restored_state_forgets_a_step_that_was_broken_off():
    mean = started(2.0)
    mean.add(torch.tensor([100.0]), torch.tensor([True]))
    mean.gather()
    mean.set(EmaState(3.0, 7))
    take(mean, STEPS[1])
    assert mean.state == chain(STEPS[1:2], EmaState(3.0, 7))
