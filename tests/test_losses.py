"""Laws, limits and golden formulas of the pair losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from normbt.losses import bt_loss, centering_term, scaled_bt_loss, sum_to_zero_term

LAW = settings(deadline=None, max_examples=50)

rewards = st.floats(-30, 30, width=32)
pair_batches = st.lists(st.tuples(rewards, rewards, st.floats(0, 5, width=32)), min_size=1, max_size=8)
smoothings = st.floats(0, 0.49)

LOSSES = {
    "bt": lambda chosen, rejected: bt_loss(chosen, rejected),
    "bt, margin": lambda chosen, rejected: bt_loss(chosen, rejected, 1.5),
    "bt, smoothed": lambda chosen, rejected: bt_loss(chosen, rejected, smoothing=0.1),
    "scaled bt": lambda chosen, rejected: scaled_bt_loss(chosen, rejected, 2.0),
}
TERMS = {"centering": centering_term, "sum to zero": sum_to_zero_term}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
every_loss_and_term = pytest.mark.parametrize("loss", (LOSSES | TERMS).values(), ids=(LOSSES | TERMS).keys())


def columns(batch: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    chosen, rejected, margin = zip(*batch, strict=True)
    double = torch.float64
    return torch.tensor(chosen, dtype=double), torch.tensor(rejected, dtype=double), torch.tensor(margin, dtype=double)


def errors(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Prediction error of each pair: minus the loss's derivative by the chosen reward."""
    chosen = chosen.clone().requires_grad_()
    return -torch.autograd.grad(bt_loss(chosen, rejected).sum(), chosen)[0]


# --- against the slow twin ---


@LAW
@given(pair_batches, smoothings)
def test_bt_loss_is_the_formula(batch, smoothing):
    chosen, rejected, margin = columns(batch)
    expected = reference.bt_losses(chosen.tolist(), rejected.tolist(), margin.tolist(), smoothing)
    assert bt_loss(chosen, rejected, margin, smoothing=smoothing).tolist() == pytest.approx(
        expected, rel=1e-12, abs=1e-12
    )
    single = bt_loss(chosen.float(), rejected.float(), margin.float(), smoothing=smoothing)
    assert single.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@LAW
@given(pair_batches)
def test_scaled_bt_loss_is_the_formula(batch):
    chosen, rejected, margin = columns(batch)
    expected = reference.scaled_bt_losses(chosen.tolist(), rejected.tolist(), margin.tolist())
    assert scaled_bt_loss(chosen, rejected, margin).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_golden_values():
    chosen, rejected = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.5, 0.0, 1.0])
    softplus = [math.log1p(math.exp(-lead)) for lead in (1.5, 0.0, -2.0)]
    assert bt_loss(chosen, rejected).tolist() == pytest.approx(softplus)
    assert scaled_bt_loss(chosen, rejected, torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx(
        [1.0 * softplus[0], 2.0 * softplus[1], 3.0 * softplus[2]]
    )
    assert centering_term(chosen, rejected).tolist() == pytest.approx([2.5**2, 0.0, 0.0])
    assert sum_to_zero_term(chosen, rejected).tolist() == pytest.approx([((2.0 - 1.0 + 0.5 + 1.0) / 6) ** 2] * 3)


# --- laws ---


@every_loss
@LAW
@given(batch=pair_batches, shift=st.floats(-100, 100))
def test_a_constant_added_to_both_rewards_changes_nothing(loss, batch, shift):
    chosen, rejected, _ = columns(batch)
    torch.testing.assert_close(loss(chosen + shift, rejected + shift), loss(chosen, rejected), rtol=1e-9, atol=1e-9)


@LAW
@given(pair_batches)
def test_swapping_a_pair_turns_its_error_into_one_minus_it(batch):
    chosen, rejected, _ = columns(batch)
    error = errors(chosen, rejected)
    torch.testing.assert_close(errors(rejected, chosen), 1 - error, rtol=0, atol=1e-12)
    torch.testing.assert_close(error, torch.sigmoid(rejected - chosen), rtol=0, atol=1e-12)


@every_loss
@LAW
@given(batch=pair_batches)
def test_rejected_gets_the_opposite_gradient(loss, batch):
    chosen, rejected, _ = columns(batch)
    chosen.requires_grad_()
    rejected.requires_grad_()
    up, down = torch.autograd.grad(loss(chosen, rejected).sum(), [chosen, rejected])
    torch.testing.assert_close(up, -down, rtol=0, atol=0)


@every_loss_and_term
@LAW
@given(batch=pair_batches, seed=st.integers(0, 99))
def test_pair_order_does_not_matter(loss, batch, seed):
    chosen, rejected, _ = columns(batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(chosen[order], rejected[order]), loss(chosen, rejected)[order])


@pytest.mark.parametrize("loss", [bt_loss, scaled_bt_loss], ids=["inside", "outside"])
@LAW
@given(batch=pair_batches)
def test_each_margin_belongs_to_its_pair(loss, batch):
    chosen, rejected, margin = columns(batch)
    together = loss(chosen, rejected, margin)
    for i in range(len(batch)):
        alone = loss(chosen[i : i + 1], rejected[i : i + 1], margin[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


@every_loss_and_term
def test_gradients_agree_with_finite_differences(loss):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


def test_the_margin_inside_moves_the_lead_and_the_margin_outside_scales():
    chosen, rejected, margin = torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([3.0])
    torch.testing.assert_close(bt_loss(chosen, rejected, margin), bt_loss(chosen - margin, rejected))
    torch.testing.assert_close(scaled_bt_loss(chosen, rejected, margin), 3.0 * bt_loss(chosen, rejected))
    assert bt_loss(chosen, rejected, margin) > bt_loss(chosen, rejected)  # a demanded lead makes the pair harder


def test_margins_of_no_effect():
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 4.0])
    plain = bt_loss(chosen, rejected)
    for margin in (None, 0.0, torch.zeros(2), torch.tensor(0.0)):
        torch.testing.assert_close(bt_loss(chosen, rejected, margin), plain, rtol=0, atol=0)
    torch.testing.assert_close(scaled_bt_loss(chosen, rejected, 1.0), plain, rtol=0, atol=0)


def test_smoothing_is_a_mixture_of_the_pair_and_its_swap():
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 3.0])
    mixture = 0.8 * bt_loss(chosen, rejected) + 0.2 * bt_loss(rejected, chosen)
    torch.testing.assert_close(bt_loss(chosen, rejected, smoothing=0.2), mixture)
    lead = math.log(0.8 / 0.2)  # where the smoothed loss is smallest
    best = torch.tensor([lead], requires_grad=True)
    (slope,) = torch.autograd.grad(bt_loss(best, torch.zeros(1), smoothing=0.2).sum(), best)
    assert slope.item() == pytest.approx(0.0, abs=1e-6)


def test_the_terms_anchor_what_the_loss_leaves_free():
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])
    for term in TERMS.values():
        assert term(chosen, rejected).tolist() == [0.0, 0.0]
        assert (term(chosen + 1.0, rejected + 1.0) > 0).all()
    # Sum-to-zero looks at the batch, centering at each pair.
    lopsided = torch.tensor([3.0, -3.0])
    assert sum_to_zero_term(lopsided, lopsided).tolist() == [0.0, 0.0]
    assert centering_term(lopsided, lopsided).tolist() == [36.0, 36.0]


def test_sum_to_zero_is_over_the_pairs_that_count():
    chosen, rejected = torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 0.0])
    counted = torch.tensor([True, False])
    assert sum_to_zero_term(chosen, rejected, counted=counted).tolist() == [1.0, 1.0]
    assert sum_to_zero_term(chosen, rejected, counted=torch.zeros(2, dtype=torch.bool)).tolist() == [0.0, 0.0]


# --- extremes ---


@every_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [1e4, -1e4, 0.0])
def test_extreme_gaps_are_finite_with_finite_gradients(loss, dtype, gap):
    chosen = torch.tensor([gap, gap / 2], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([0.0, -gap / 2], dtype=dtype, requires_grad=True)
    values = loss(chosen, rejected)
    assert values.isfinite().all()
    values.sum().backward()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()


def test_a_lost_pair_costs_its_gap():
    assert bt_loss(torch.tensor([0.0]), torch.tensor([1e4])).item() == pytest.approx(1e4)
    assert bt_loss(torch.tensor([1e4]), torch.tensor([0.0])).item() == 0.0


@every_loss_and_term
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rewards_are_widened_before_anything_is_computed(loss, dtype):
    # Differences that the half dtype itself could not hold: 10.0625 - 10 in bf16 is one step.
    chosen, rejected = torch.tensor([10.0625, 300.0], dtype=dtype), torch.tensor([10.0, -299.0], dtype=dtype)
    values = loss(chosen, rejected)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, loss(chosen.float(), rejected.float()), rtol=0, atol=0)


def test_double_precision_stays_double():
    chosen = torch.zeros(2, dtype=torch.float64)
    for loss in (LOSSES | TERMS).values():
        assert loss(chosen, chosen).dtype == torch.float64


@every_loss_and_term
def test_losses_are_not_reduced(loss):
    assert loss(torch.zeros(3), torch.ones(3)).shape == (3,)


@every_loss
def test_an_empty_batch_gives_an_empty_loss(loss):
    assert loss(torch.zeros(0), torch.zeros(0)).shape == (0,)


# --- mistakes ---


@every_loss_and_term
@pytest.mark.parametrize("shapes", [((2,), (3,)), ((2, 1), (2, 1)), ((), ()), ((2,), (2, 1))])
def test_rewards_that_are_not_two_equal_vectors_are_refused(loss, shapes):
    chosen, rejected = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="rewards must be two vectors"):
        loss(chosen, rejected)


@pytest.mark.parametrize("loss", [bt_loss, scaled_bt_loss])
@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (3,), (1,)])
def test_a_margin_that_would_broadcast_is_refused(loss, shape):
    with pytest.raises(ValueError, match=r"margin must be a scalar or have shape \(2,\)"):
        loss(torch.zeros(2), torch.zeros(2), torch.ones(shape))


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_smoothing_outside_its_range_is_refused(smoothing):
    with pytest.raises(ValueError, match="smoothing must be in"):
        bt_loss(torch.zeros(1), torch.zeros(1), smoothing=smoothing)
