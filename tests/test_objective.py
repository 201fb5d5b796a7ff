"""The objective is loss times weight plus the auxiliary terms, for every choice of each."""

import pytest
import torch

from normbt.errors import DataError
from normbt.losses import bt_loss, centering_term, scaled_bt_loss, sum_to_zero_term
from normbt.objective import Objective, run_weights
from normbt.weights import pair_distance, pair_weights

PAIRS = 5
REWARDS = torch.randn(2 * PAIRS, generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(2 * PAIRS, 3, generator=torch.Generator().manual_seed(1))
MARGIN = torch.linspace(0.5, 2.0, PAIRS)
CHOSEN, REJECTED = REWARDS.chunk(2)
DISTANCE = pair_distance(*HIDDEN.chunk(2))


@pytest.mark.parametrize(
    ("weighting", "mu", "reference"),
    [("normbt", 2.0, 2.0), ("raw", 2.0, 1.0), ("batch", 2.0, DISTANCE.mean())],
)
def test_the_weight_is_that_of_its_reference(weighting, mu, reference):
    terms = Objective(weighting=weighting, eps=0.1, max_weight=0.9)(REWARDS, HIDDEN, mu=mu)
    torch.testing.assert_close(terms.weight, pair_weights(DISTANCE, reference, eps=0.1, max_weight=0.9))
    assert (terms.weight == torch.tensor(0.9)).any(), "the bound is never reached, so it is not tested"
    torch.testing.assert_close(terms.objective, terms.weight * bt_loss(CHOSEN, REJECTED))


def test_the_weights_of_a_run_by_its_weighting():
    def weights(weighting, reference):
        return run_weights(torch.tensor([1.0, 3.0]), weighting, reference, eps=1e-9, max_weight=3.0).tolist()

    for weighting in ("normbt", "batch"):
        assert weights(weighting, 4.0) == pytest.approx([3.0, 4 / 3])
        assert weights(weighting, None) == [1.0, 1.0]
    assert weights("raw", 4.0) == weights("raw", None) == pytest.approx([1.0, 1 / 3])
    assert weights("none", 4.0) == [1.0, 1.0]


@pytest.mark.parametrize(("weighting", "mu"), [("none", 2.0), ("normbt", None)])
def test_without_a_weighting_or_a_mu_every_pair_weighs_one(weighting, mu):
    terms = Objective(weighting=weighting)(REWARDS, HIDDEN, mu=mu)
    assert torch.equal(terms.weight, torch.ones(PAIRS))
    assert torch.equal(terms.distance, DISTANCE)
    assert torch.equal(terms.objective, bt_loss(CHOSEN, REJECTED))


@pytest.mark.parametrize(
    ("changes", "margin", "expected"),
    [
        ({"smoothing": 0.2}, MARGIN, bt_loss(CHOSEN, REJECTED, MARGIN, smoothing=0.2)),
        ({"loss": "scaled_bt"}, MARGIN, scaled_bt_loss(CHOSEN, REJECTED, MARGIN)),
        ({}, None, bt_loss(CHOSEN, REJECTED)),
    ],
    ids=["smoothed with margin", "scaled", "plain"],
)
def test_the_loss_is_the_one_asked_for(changes, margin, expected):
    terms = Objective(weighting="none", **changes)(REWARDS, HIDDEN, margin)
    torch.testing.assert_close(terms.loss, expected)
    assert torch.equal(terms.objective, terms.loss)


def test_auxiliary_terms_are_added_unweighted():
    plain = Objective()(REWARDS, HIDDEN, mu=2.0)
    both = Objective(center_rewards_coefficient=0.1, bsr_coefficient=0.3)(REWARDS, HIDDEN, mu=2.0)
    added = 0.1 * centering_term(CHOSEN, REJECTED) + 0.3 * sum_to_zero_term(CHOSEN, REJECTED)
    torch.testing.assert_close(both.objective, plain.objective + added)
    assert torch.equal(both.loss, plain.loss)


@pytest.mark.parametrize("weighting", ["normbt", "batch", "none"])
@pytest.mark.parametrize("broken", ["reward", "distance", "margin"])
def test_a_pair_that_is_not_finite_leaves_the_terms_of_the_others_as_if_it_were_not_there(weighting, broken):
    objective = Objective(weighting=weighting, center_rewards_coefficient=0.1, bsr_coefficient=0.3)
    rewards, hidden, margin = REWARDS.clone(), HIDDEN.clone(), MARGIN.clone()
    {"reward": rewards, "distance": hidden[:, 0], "margin": margin}[broken][2] = torch.nan
    rewards.requires_grad_()
    terms = objective(rewards, hidden, margin, mu=2.0)
    assert terms.finite.tolist() == [True, True, False, True, True]
    others = torch.tensor([0, 1, 3, 4])
    rows = torch.cat([others, others + PAIRS])
    alone = REWARDS[rows].requires_grad_()
    expected = objective(alone, HIDDEN[rows], MARGIN[others], mu=2.0)
    torch.testing.assert_close(terms.weight[others], expected.weight)
    torch.testing.assert_close(terms.objective[others], expected.objective)
    assert terms.objective[2] == 0
    terms.objective.sum().backward()
    expected.objective.sum().backward()
    torch.testing.assert_close(rewards.grad[rows], alone.grad)
    assert rewards.grad[[2, 2 + PAIRS]].tolist() == [0, 0]


def test_only_the_rewards_carry_the_gradient():
    rewards, hidden = REWARDS.clone().requires_grad_(), HIDDEN.clone().requires_grad_()
    terms = Objective()(rewards, hidden, mu=2.0)
    assert not terms.weight.requires_grad
    gradient, of_hidden = torch.autograd.grad(terms.objective.sum(), [rewards, hidden], allow_unused=True)
    assert of_hidden is None
    error = torch.sigmoid(REJECTED - CHOSEN)
    torch.testing.assert_close(gradient, torch.cat([-terms.weight * error, terms.weight * error]))


def test_scaled_bt_without_margins_is_refused():
    with pytest.raises(DataError, match="margin"):
        Objective(loss="scaled_bt")(REWARDS, HIDDEN)
