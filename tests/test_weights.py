"""Laws of the NormBT weight, the running mean, and the loss module that holds both."""

import copy
import functools
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from host_waits import HostWaits
from normbt.losses import bt_loss, scaled_bt_loss
from normbt.weights import EmaState, NormBTLoss, all_reduce_sum, pair_distance, pair_weights, update_ema

LAW = settings(deadline=None, max_examples=50)
KINDS = ["l2", "relative", "cosine"]

seeds = st.integers(0, 2**16)
pair_counts = st.integers(1, 6)
positive = st.floats(1e-3, 1e3)


def draw(pairs: int, hidden: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Rewards and representations of a batch: chosen rewards, rejected rewards, chosen h, rejected h."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    representations = torch.randn(2, pairs, hidden, generator=generator, dtype=torch.float64)
    return tuple(part.to(dtype) for part in (*rewards, *representations))


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of, retain_graph=True)


# --- distance ---


@pytest.mark.parametrize("kind", KINDS)
@LAW
@given(pairs=pair_counts, seed=seeds)
def test_distance_is_the_formula(kind, pairs, seed):
    *_, chosen, rejected = draw(pairs, seed=seed)
    expected = reference.distances(chosen.tolist(), rejected.tolist(), kind)
    assert pair_distance(chosen, rejected, kind=kind).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_near_pairs_in_double_precision_keep_their_distance(gap):
    *_, chosen, direction = draw(3, seed=2, dtype=torch.float64)
    rejected = chosen + gap * direction
    expected = reference.distances(chosen.tolist(), rejected.tolist())
    assert pair_distance(chosen, rejected).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@LAW
@given(seed=seeds)
def test_distance_is_symmetric_and_zero_between_equals(kind, seed):
    *_, chosen, rejected = draw(4, seed=seed)
    torch.testing.assert_close(pair_distance(chosen, rejected, kind=kind), pair_distance(rejected, chosen, kind=kind))
    assert pair_distance(chosen, chosen, kind=kind).tolist() == [0.0] * 4


@LAW
@given(seed=seeds, scale=positive)
def test_what_each_kind_keeps_of_the_scale_of_h(seed, scale):
    *_, chosen, rejected = draw(3, seed=seed)
    for kind, factor in (("l2", scale), ("relative", 1.0), ("cosine", 1.0)):
        before, after = (pair_distance(a * chosen, a * rejected, kind=kind) for a in (1.0, scale))
        torch.testing.assert_close(after, factor * before, rtol=1e-4, atol=1e-6)
    # Cosine sees the angle alone: each side may have its own scale.
    torch.testing.assert_close(
        pair_distance(scale * chosen, rejected, kind="cosine"), pair_distance(chosen, rejected, kind="cosine"),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


def test_golden_distances():
    chosen, rejected = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 4.0], [-1.0, -1.0]])
    assert pair_distance(chosen, rejected).tolist() == pytest.approx([math.hypot(3, 4), 2 * math.sqrt(2)])
    assert pair_distance(chosen, rejected, kind="relative").tolist() == pytest.approx([5 / 3.5, 2.0])
    assert pair_distance(chosen, rejected, kind="cosine").tolist() == pytest.approx([1.0, 2.0])


def test_cosine_distance_of_near_equal_directions_is_not_rounding():
    angle = 1e-4
    chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
    assert pair_distance(chosen, rejected, kind="cosine").item() == pytest.approx(1 - math.cos(angle), rel=1e-3)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_squares_neither_overflow_nor_vanish(scale):
    chosen, rejected = torch.tensor([[3.0 * scale, 0.0]]), torch.tensor([[0.0, 4.0 * scale]])
    assert pair_distance(chosen, rejected).item() == pytest.approx(5.0 * scale)
    assert pair_distance(chosen, rejected, kind="relative").item() == pytest.approx(5 / 3.5)
    assert pair_distance(chosen, rejected, kind="cosine").item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_representations_are_finite(kind):
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert pair_distance(zero, zero, kind=kind).item() == 0.0
    assert math.isfinite(pair_distance(zero, one, kind=kind).item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_distance_is_float32_whatever_the_inputs_are(kind, dtype):
    # In bf16, 256 + 1 rounds back to 256 and a sum of 400 ones stops growing.
    chosen, rejected = torch.full((1, 400), 256.0, dtype=dtype), torch.full((1, 400), 255.0, dtype=dtype)
    distance = pair_distance(chosen, rejected, kind=kind)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, pair_distance(chosen.float(), rejected.float(), kind=kind), rtol=0, atol=0)
    if kind == "l2":
        assert distance.item() == pytest.approx(20.0)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (3,)), ((1, 2, 3), (1, 2, 3)), ((2, 3), (1, 3))])
def test_representations_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="two matrices"):
        pair_distance(*(torch.zeros(shape) for shape in shapes))


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="'l2', 'relative' or 'cosine', got 'l1'"):
        pair_distance(torch.zeros(1, 1), torch.zeros(1, 1), kind="l1")


# --- weight ---


@LAW
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=6), positive, st.floats(1e-8, 1.0), st.floats(0.1, 100))
def test_weight_is_the_formula(distance, mu, eps, max_weight):
    for bound in (max_weight, None):
        expected = reference.weights(distance, mu, eps, bound)
        found = pair_weights(torch.tensor(distance), mu, eps=eps, max_weight=bound)
        assert found.tolist() == pytest.approx(expected, rel=1e-6)


@LAW
@given(mu=positive, pairs=pair_counts)
def test_equal_distances_weigh_one(mu, pairs):
    weight = pair_weights(torch.full((pairs,), mu), mu, eps=1e-12)
    torch.testing.assert_close(weight, torch.ones(pairs))


@LAW
@given(seed=seeds, scale=positive)
def test_the_weight_has_no_unit(seed, scale):
    distance = torch.rand(5, generator=torch.Generator().manual_seed(seed)) + 0.1
    scaled = pair_weights(scale * distance, scale * 0.7, eps=1e-9 * scale)
    torch.testing.assert_close(scaled, pair_weights(distance, 0.7, eps=1e-9))


@pytest.mark.parametrize("distance", [0.0, 1e-30, 1e30])
@pytest.mark.parametrize("mu", [1e-30, 1.0, 1e30])
def test_weights_are_finite_at_the_extremes(distance, mu):
    weight = pair_weights(torch.tensor([distance]), mu)
    assert weight.isfinite().all()
    assert 0.0 <= weight.item() <= 10.0
    assert pair_weights(torch.tensor([distance]), mu, max_weight=None).isfinite().all()


def test_each_argument_of_the_weight_matters():
    distance = torch.tensor([0.5, 0.0])
    torch.testing.assert_close(pair_weights(distance, 1.0, eps=0.5, max_weight=None), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(pair_weights(distance, 2.0, eps=0.5, max_weight=None), torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(pair_weights(distance, 2.0, eps=1.5, max_weight=None), torch.tensor([1.0, 4 / 3]))
    torch.testing.assert_close(pair_weights(distance, 2.0, eps=0.5, max_weight=3.0), torch.tensor([2.0, 3.0]))
    # An identical pair: mu / eps as published, and 10 by default.
    assert pair_weights(torch.zeros(1), 5.0, max_weight=None).item() == pytest.approx(5.0 / 1e-6)
    assert pair_weights(torch.zeros(1), 5.0).item() == 10.0


def test_mu_may_be_a_tensor_and_distances_half():
    distance = torch.tensor([2.0, 4.0], dtype=torch.bfloat16)
    weight = pair_weights(distance, torch.tensor(2.0))
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize("arguments", [{"eps": 0.0}, {"eps": -1.0}, {"max_weight": 0.0}, {"max_weight": -2.0}])
def test_settings_that_are_not_positive_are_refused(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        pair_weights(torch.ones(1), 1.0, **arguments)


def test_no_gradient_through_distance_and_weight():
    chosen, rejected = torch.randn(2, 3, 4, requires_grad=True)
    for kind in KINDS:
        assert not pair_distance(chosen, rejected, kind=kind).requires_grad
    distance = torch.ones(3, requires_grad=True)
    assert not pair_weights(distance, torch.tensor(1.0, requires_grad=True)).requires_grad


# --- running mean ---


def test_the_running_mean_by_hand():
    first = update_ema(EmaState(), batch_sum=8.0, batch_count=4, decay=0.9)
    assert float(first.mean) == 2.0
    second = update_ema(first, batch_sum=12.0, batch_count=2, decay=0.9)
    assert float(second.mean) == pytest.approx(0.9 * 2.0 + 0.1 * 6.0)
    assert float(update_ema(first, 12.0, 2, decay=0.5).mean) == pytest.approx(4.0)
    assert float(update_ema(first, 12.0, 2, decay=0.0).mean) == pytest.approx(6.0)
    assert (int(first.count), int(second.count)) == (1, 2)


@LAW
@given(st.lists(st.tuples(positive, st.integers(1, 9)), min_size=1, max_size=8), st.floats(0, 0.99))
def test_numbers_and_tensors_give_the_same_state(batches, decay):
    numbers, tensors = EmaState(), EmaState(torch.tensor(0.0), torch.tensor(0))
    for batch_sum, count in batches:
        numbers = update_ema(numbers, batch_sum, count, decay)
        tensors = update_ema(tensors, torch.tensor(batch_sum), torch.tensor(count), decay)
    assert float(numbers.mean) == float(tensors.mean)
    assert int(numbers.count) == int(tensors.count) == len(batches)
    assert numbers.mean.dtype == torch.float32
    assert numbers.mean.shape == numbers.count.shape == ()


@LAW
@given(st.lists(positive, min_size=2, max_size=12), st.integers(1, 11))
def test_sums_over_splits_give_the_state_of_the_whole(distances, cut):
    start = EmaState(3.0, 5)
    distance = torch.tensor(distances, dtype=torch.float64)
    parts = [distance[:cut], distance[cut:]]
    split = update_ema(start, sum(part.sum() for part in parts), sum(len(part) for part in parts), 0.9)
    whole = update_ema(start, distance.sum(), len(distance), 0.9)
    torch.testing.assert_close(split.mean, whole.mean)


def test_updating_is_pure():
    state = EmaState(torch.tensor(2.0), torch.tensor(3))
    batch_sum, batch_count = torch.tensor(8.0), torch.tensor(2.0)
    update_ema(state, batch_sum, batch_count, 0.9)
    assert (float(state.mean), int(state.count), float(batch_sum), float(batch_count)) == (2.0, 3, 8.0, 2.0)


@pytest.mark.parametrize(("batch_sum", "batch_count"), [(0.0, 0), (math.inf, 3), (math.nan, 3)])
@pytest.mark.parametrize("state", [EmaState(), EmaState(2.0, 3)])
def test_an_empty_or_overflown_batch_leaves_the_state(state, batch_sum, batch_count):
    moved = update_ema(state, batch_sum, batch_count, 0.9)
    assert (float(moved.mean), int(moved.count)) == (float(state.mean), int(state.count))
    following = update_ema(moved, 6.0, 1, 0.9)
    assert float(following.mean) == pytest.approx(6.0 if state.count == 0 else 0.9 * 2.0 + 0.1 * 6.0)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be in"):
        update_ema(EmaState(), 1.0, 1, decay)


# --- the loss module ---


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 1e-6)])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.5}, {"eps": 0.3}, {"max_weight": 1.1}, {"max_weight": None}])
def test_the_module_is_the_published_method(dtype, tolerance, settings):
    module, twin = NormBTLoss(**settings), reference.NormBT(**settings)
    for step in range(6):
        batch = draw(4, seed=step, dtype=dtype)
        expected = twin.step(*(part.tolist() for part in batch))
        assert module(*batch).item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
        assert module.mean.item() == pytest.approx(twin.mu, rel=tolerance)
    assert module.count.item() == 6


@LAW
@given(seed=seeds, pairs=pair_counts)
def test_equal_distances_give_bradley_terry(seed, pairs):
    chosen, rejected, hidden, direction = draw(pairs, seed=seed, dtype=torch.float64)
    direction = 3.0 * direction / direction.norm(dim=-1, keepdim=True)
    found = NormBTLoss(eps=1e-12)(chosen, rejected, hidden + direction, hidden)
    torch.testing.assert_close(found, bt_loss(chosen, rejected).mean(), rtol=1e-6, atol=1e-7)


@settings(LAW, max_examples=10)
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_scaling_every_h_changes_nothing_once_mu_has_followed(seed, scale):
    chosen, rejected, chosen_hidden, rejected_hidden = draw(4, seed=seed)
    plain, scaled = NormBTLoss(eps=1e-12), NormBTLoss(eps=1e-12)
    for _ in range(3):
        expected = plain(chosen, rejected, chosen_hidden, rejected_hidden)
        found = scaled(chosen, rejected, scale * chosen_hidden, scale * rejected_hidden)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # A jump of the scale in mid-run: mu follows at the pace of beta, and after enough steps the weights are back.
    for _ in range(150):
        found = plain(chosen, rejected, scale * chosen_hidden, scale * rejected_hidden)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@LAW
@given(seed=seeds, shift=st.floats(-50, 50))
def test_a_constant_added_to_both_rewards_changes_nothing(seed, shift):
    chosen, rejected, *hidden = draw(4, seed=seed, dtype=torch.float64)
    torch.testing.assert_close(
        NormBTLoss()(chosen + shift, rejected + shift, *hidden), NormBTLoss()(chosen, rejected, *hidden)
    )


@LAW
@given(seed=seeds)
def test_pair_order_does_not_matter(seed):
    batch = draw(5, seed=seed, dtype=torch.float64)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    shuffled = NormBTLoss()(*(part[order] for part in batch))
    torch.testing.assert_close(shuffled, NormBTLoss()(*batch), rtol=1e-6, atol=1e-7)  # mu is a float32 sum


@LAW
@given(seed=seeds)
def test_the_gradient_of_each_reward_is_weight_times_error(seed):
    chosen, rejected, chosen_hidden, rejected_hidden = draw(4, seed=seed, dtype=torch.float64)
    for part in (chosen, rejected, chosen_hidden, rejected_hidden):
        part.requires_grad_()
    loss = NormBTLoss()(chosen, rejected, chosen_hidden, rejected_hidden)
    distance = pair_distance(chosen_hidden, rejected_hidden)
    weight = distance.mean() / (distance + 1e-6)
    expected = -weight * torch.sigmoid(rejected - chosen) / 4
    up, down = gradients(loss, chosen, rejected)
    torch.testing.assert_close(up, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(down, -expected, rtol=1e-6, atol=1e-9)
    unused = torch.autograd.grad(loss, [chosen_hidden, rejected_hidden], allow_unused=True)
    assert unused == (None, None)


def test_the_head_gradient_of_each_pair_is_error_times_mu_whatever_its_distance():
    """For a linear head the norm is error x distance; the weight turns it into error x mu."""
    *_, chosen_hidden, rejected_hidden = draw(3, seed=1, dtype=torch.float64)
    rejected_hidden = chosen_hidden + (rejected_hidden - chosen_hidden) * torch.tensor([[0.01], [1.0], [50.0]])
    head = torch.randn(5, dtype=torch.float64, requires_grad=True)
    chosen, rejected = chosen_hidden @ head, rejected_hidden @ head
    distance = pair_distance(chosen_hidden, rejected_hidden)
    weight = pair_weights(distance, 2.0, eps=1e-12, max_weight=None)
    error = torch.sigmoid(rejected - chosen)
    plain, weighted = bt_loss(chosen, rejected), weight * bt_loss(chosen, rejected)
    for i in range(3):
        torch.testing.assert_close(gradients(plain[i], head)[0].norm(), error[i] * distance[i].double())
        torch.testing.assert_close(gradients(weighted[i], head)[0].norm(), error[i] * 2.0)


def test_the_first_call_uses_its_own_mean_and_later_calls_the_mean_before_them():
    module = NormBTLoss(beta=0.9)
    rewards, zero = torch.zeros(1), torch.zeros(1, 1)
    bt = math.log(2)
    assert module(rewards, rewards, torch.tensor([[4.0]]), zero).item() == pytest.approx(bt)  # mu = 4, weight 1
    assert module(rewards, rewards, torch.tensor([[2.0]]), zero).item() == pytest.approx(2 * bt)  # mu still 4
    assert module.mean.item() == pytest.approx(0.9 * 4 + 0.1 * 2)
    assert module(rewards, rewards, torch.tensor([[3.8]]), zero).item() == pytest.approx(bt, rel=1e-5)


def test_mu_is_frozen_in_evaluation():
    module = NormBTLoss()
    module(*draw(4, seed=0))
    state = copy.deepcopy(module.state_dict())
    module.eval()
    first, second = module(*draw(4, seed=1)), module(*draw(4, seed=1))
    assert first == second
    assert module.state_dict() == state
    module.train()
    module(*draw(4, seed=1))
    assert module.state_dict() != state


def test_an_unused_module_in_evaluation_takes_the_mean_of_the_batch_and_stays_unused():
    module = NormBTLoss().eval()
    batch = draw(4)
    distance = pair_distance(*batch[2:])
    expected = (pair_weights(distance, distance.mean()) * bt_loss(*batch[:2])).mean()
    torch.testing.assert_close(module(*batch), expected)
    assert module.count.item() == 0


def test_one_rank_may_evaluate_alone(monkeypatch):
    """A collective would wait for ranks that never come: ``if rank == 0: evaluate()`` hangs."""
    module = NormBTLoss()
    module(*draw(4, seed=0))
    alone = [copy.deepcopy(module).eval()(*draw(4, seed=1)), NormBTLoss().eval()(*draw(4, seed=1))]

    def waits(tensor):
        pytest.fail("waits for the other ranks")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", waits)
    assert [module.eval()(*draw(4, seed=1)), NormBTLoss().eval()(*draw(4, seed=1))] == alone
    with pytest.raises(pytest.fail.Exception, match="waits"):
        module.train()(*draw(4, seed=1))


@pytest.mark.parametrize("restore", ["state_dict", "pickle", "deepcopy"])
def test_a_restored_module_goes_on_where_the_first_one_was(restore):
    module = NormBTLoss(beta=0.7, max_weight=3.0, loss=functools.partial(bt_loss, smoothing=0.1))
    for step in range(3):
        module(*draw(4, seed=step))
    if restore == "pickle":
        other = pickle.loads(pickle.dumps(module))
    elif restore == "deepcopy":
        other = copy.deepcopy(module)
    else:
        other = NormBTLoss(beta=0.7, max_weight=3.0, loss=functools.partial(bt_loss, smoothing=0.1))
        other.load_state_dict(module.state_dict())
    assert set(module.state_dict()) == {"mean", "count"}
    for step in range(3, 5):
        assert other(*draw(4, seed=step)) == module(*draw(4, seed=step))
    assert other.mean == module.mean


def test_margins_reach_the_pair_loss():
    batch, margin = draw(3), torch.tensor([0.0, 1.0, 2.0])
    weight = pair_weights(distance := pair_distance(*batch[2:]), distance.mean())
    for loss in (bt_loss, scaled_bt_loss):
        expected = (weight * loss(*batch[:2], margin)).mean()
        torch.testing.assert_close(NormBTLoss(loss=loss)(*batch, margin), expected)
    assert NormBTLoss()(*batch, margin) != NormBTLoss()(*batch)


def test_extreme_batches_have_finite_losses_and_gradients():
    chosen = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    hidden = torch.tensor([[0.0], [1e30], [1.0]])
    for dtype in (torch.float32, torch.bfloat16):
        loss = NormBTLoss()(
            chosen.to(dtype), torch.zeros(3, dtype=dtype), hidden.to(dtype), torch.zeros(3, 1, dtype=dtype)
        )
        assert loss.isfinite()
        assert gradients(loss, chosen)[0].isfinite().all()


def test_an_empty_batch_gives_a_zero_that_can_go_backward():
    module = NormBTLoss()
    rewards = torch.zeros(0, requires_grad=True)
    loss = module(rewards, rewards, torch.zeros(0, 3), torch.zeros(0, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert module.count.item() == 0


def test_print_shows_the_settings():
    assert repr(NormBTLoss(beta=0.8)) == "NormBTLoss(beta=0.8, eps=1e-06, max_weight=10.0, loss=bt_loss)"


def test_the_host_waits_for_the_device_neither_in_a_call_nor_for_a_number_given_as_mu():
    module, batch = NormBTLoss(), draw(3)
    with HostWaits() as waits:
        module(*batch)
        update_ema(EmaState(2.0, 1), batch[0].sum(), 3, 0.9)
        pair_weights(pair_distance(*batch[2:]), 2.0)
    assert waits.count == 0


# --- several processes ---

SPLITS = {"equal": [4, 4], "unequal": [3, 5]}


def train(head: nn.Linear, module: NormBTLoss, batches: list[tuple[Tensor, ...]], average) -> list[float]:
    """A few SGD steps of a linear head on fixed representations; ``average`` is what DDP does to a tensor."""
    losses = []
    for chosen_hidden, rejected_hidden in batches:
        head.zero_grad()
        loss = module(head(chosen_hidden)[:, 0], head(rejected_hidden)[:, 0], chosen_hidden, rejected_hidden)
        loss.backward()
        losses.append(float(average(loss.detach())))
        with torch.no_grad():
            for parameter in head.parameters():
                parameter -= 0.1 * average(parameter.grad)
    return losses


def make_head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 1)


def one_of_two(rank: int, folder: str) -> None:
    """What each spawned process does: both splits, its own share of the pairs."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    results = {}
    for name, sizes in SPLITS.items():
        head, module = make_head(), NormBTLoss()
        batches = [tuple(part.split(sizes)[rank] for part in draw(8, seed=step)[2:]) for step in range(3)]
        losses = train(head, module, batches, lambda tensor: all_reduce_sum(tensor.clone()) / 2)
        results[name] = (losses, module.state_dict(), head.state_dict())
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives_on_the_union(tmp_path: Path):
    context = torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2, join=False)
    head, module = make_head(), NormBTLoss()
    losses = train(head, module, [draw(8, seed=step)[2:] for step in range(3)], lambda tensor: tensor)
    while not context.join():
        pass
    for rank in range(2):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        assert set(results) == set(SPLITS)
        for split_losses, state, parameters in results.values():
            assert split_losses == pytest.approx(losses, rel=1e-6)
            torch.testing.assert_close(state["mean"], module.mean)
            assert state["count"] == module.count == 3
            for name, parameter in head.state_dict().items():
                torch.testing.assert_close(parameters[name], parameter, rtol=1e-6, atol=1e-7)


def test_one_process_needs_no_group():
    assert all_reduce_sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
