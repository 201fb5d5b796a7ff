"""Metrics of a set of pairs, computed from one record per pair: sums over pairs, never means of batch means."""

import torch
from torch import Tensor

COLUMNS = ("chosen", "rejected", "distance", "weight", "loss", "objective")
"""Columns of a record: rewards of both sides, representation distance, weight, loss before weighting, and what is
minimised: the weighted loss with auxiliary terms."""


def stack_records(
    chosen: Tensor, rejected: Tensor, distance: Tensor, weight: Tensor, loss: Tensor, objective: Tensor
) -> Tensor:
    """One detached float32 record per pair, in the order of :data:`COLUMNS`.

    Args:
        chosen: rewards of the preferred answers, shape ``(pairs,)``.
        rejected: rewards of the other answers, shape ``(pairs,)``.
        distance: representation distance, shape ``(pairs,)``.
        weight: NormBT weight, shape ``(pairs,)``.
        loss: pair loss before weighting, in nats, shape ``(pairs,)``.
        objective: pair loss after weighting, with auxiliary terms, shape ``(pairs,)``.

    Returns:
        Shape ``(pairs, 6)``.

    Example:
        >>> one = torch.ones(2)
        >>> stack_records(one, one, one, one, one, one).shape
        torch.Size([2, 6])
    """
    columns = (chosen, rejected, distance, weight, loss, objective)
    return torch.stack([column.detach().float() for column in columns], dim=1)


def pair_metrics(records: Tensor, *, max_weight: float | None = None) -> dict[str, float]:
    r"""What a set of pairs says about the model and the weighting.

    Equal rewards count as wrong, as in RewardBench, and are reported as ``tie_share``. The effective number of pairs is
    :math:`(\sum_i w_i)^2 / \sum_i w_i^2`. Terciles are of the distance over these pairs: ``near`` is the closest third.
    A pair with a number that is not finite counts as wrong, and in nothing else; ``nonfinite_pairs``, which is there
    only then, counts such pairs.

    Args:
        records: one row per pair, see :func:`stack_records`, shape ``(pairs, 6)``; at least one row.
        max_weight: the bound on the weight, to count the pairs that reach it; None when there is none.

    Returns:
        Metric names and values. Rewards in reward units, losses in nats, distances in the distance's unit, shares in
        ``[0, 1]``.

    Raises:
        ValueError: there is no pair.

    Example:
        >>> chosen, rejected, weight = torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([0.5, 1.5])
        >>> metrics = pair_metrics(stack_records(chosen, rejected, 1 / weight, weight, chosen, chosen * weight))
        >>> metrics["accuracy"], metrics["tie_share"], metrics["effective_pairs"]
        (0.5, 0.5, 1.6)
    """
    if len(records) == 0:
        raise ValueError("pair_metrics needs at least one pair.")
    records = records.double().cpu()
    finite = records.isfinite().all(dim=1)
    known = records[finite] if finite.any() else torch.full((1, len(COLUMNS)), torch.nan, dtype=torch.float64)
    chosen, rejected, distance, weight, loss, objective = known.unbind(dim=1)
    right = (chosen > rejected).double()
    rewards = torch.cat([chosen, rejected])
    metrics = {
        "accuracy": right.sum() / len(records),
        "tie_share": (chosen == rejected).double().sum() / len(records),
        "margin": (chosen - rejected).mean(),
        "min_reward": rewards.min(),
        "mean_reward": rewards.mean(),
        "max_reward": rewards.max(),
        "loss_unweighted": loss.mean(),
        "loss_weighted": (weight * loss).mean(),
        "objective": objective.mean(),
    }
    if not finite.all():
        metrics["nonfinite_pairs"] = (~finite).double().sum()
    # By rank, so that equal distances split evenly; fewer than three pairs have no terciles.
    if len(known) >= 3:
        near, mid, far = right[distance.argsort(stable=True)].tensor_split(3)
        metrics |= {"accuracy_near": near.mean(), "accuracy_mid": mid.mean(), "accuracy_far": far.mean()}
    values = {name: value.item() for name, value in metrics.items()}
    return values | weight_metrics(distance, weight, max_weight=max_weight)


def weight_metrics(distance: Tensor, weight: Tensor, *, max_weight: float | None = None) -> dict[str, float]:
    """The part of :func:`pair_metrics` that needs no rewards: distances and weights of a set of pairs.

    Args:
        distance: representation distance, shape ``(pairs,)``; at least one pair.
        weight: NormBT weight, shape ``(pairs,)``.
        max_weight: the bound on the weight, to count the pairs that reach it; None when there is none.

    Returns:
        Mean distance, quantiles of the weight, effective number of pairs, share of clipped pairs.

    Example:
        >>> weight_metrics(torch.ones(2), torch.ones(2))["effective_pairs"]
        2.0
    """
    distance, weight = distance.double().cpu(), weight.double().cpu()
    metrics = {
        "distance": distance.mean(),
        "weight_q10": weight.quantile(0.1),
        "weight_q50": weight.quantile(0.5),
        "weight_q90": weight.quantile(0.9),
        "effective_pairs": weight.sum().square() / weight.square().sum(),
    }
    if max_weight is not None:
        metrics["clipped_share"] = at_bound(weight, max_weight).double().mean()
    return {name: value.item() for name, value in metrics.items()}


def at_bound(weight: Tensor, max_weight: float) -> Tensor:
    """Which weights reach their bound, rounded to float32 as :func:`normbt.weights.pair_weights` rounds it.

    Args:
        weight: NormBT weight, shape ``(pairs,)``, of any precision.
        max_weight: the bound.

    Returns:
        Shape ``(pairs,)``, boolean; false where the weight is NaN.

    Example:
        >>> weight = torch.tensor([1.0, 9.0]).clamp_max(3.3).double()
        >>> weight >= 3.3, at_bound(weight, 3.3)
        (tensor([False, False]), tensor([False,  True]))
    """
    return weight.float() >= torch.tensor(max_weight, dtype=torch.float32, device=weight.device)
