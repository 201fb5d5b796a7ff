"""The NormBT weight of each pair: representation distance, its running mean, and the weight made of both."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from normbt.losses import bt_loss

Distance = Literal["l2", "relative", "cosine"]
Weighting = Literal["normbt", "none", "raw", "batch"]


@torch.no_grad()
def pair_distance(chosen_hidden: Tensor, rejected_hidden: Tensor, *, kind: Distance = "l2") -> Tensor:
    r"""Distance between the two representations of each pair; carries no gradient.

    .. math::
        d^{\text{l2}}_i = \lVert h^+_i - h^-_i \rVert_2, \qquad
        d^{\text{relative}}_i = \frac{d^{\text{l2}}_i}{\tfrac12(\lVert h^+_i\rVert + \lVert h^-_i\rVert)}, \qquad
        d^{\text{cosine}}_i = 1 - \frac{h^+_i \cdot h^-_i}{\lVert h^+_i\rVert\,\lVert h^-_i\rVert}

    Args:
        chosen_hidden: what the head reads of the preferred answers, shape ``(pairs, hidden)``.
        rejected_hidden: the same of the other answers, shape ``(pairs, hidden)``.
        kind: ``l2`` (the published method), ``relative`` (without the scale of h; in ``[0, 2]``), or ``cosine``
            (angle only; in ``[0, 2]``).

    Returns:
        Distance of each pair, shape ``(pairs,)``, float32 whatever the inputs are.

    Raises:
        ValueError: shapes differ, or ``kind`` is unknown.

    Example:
        >>> pair_distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([5.])

    References:
        arXiv 2512.06343, the factor :math:`\lVert h_w - h_l \rVert` of the gradient decomposition.
    """
    if chosen_hidden.shape != rejected_hidden.shape or chosen_hidden.dim() != 2:
        raise ValueError(
            "representations must be two matrices (pairs, hidden) of the same shape; "
            f"got chosen {tuple(chosen_hidden.shape)} and rejected {tuple(rejected_hidden.shape)}."
        )
    # Widened before the subtraction: that is where a pair that looks alike loses its digits.
    chosen, rejected = (h if h.dtype == torch.float64 else h.float() for h in (chosen_hidden, rejected_hidden))
    if kind == "l2":
        return _norm(chosen - rejected).float()
    if kind == "relative":
        mean_norm = (_norm(chosen) + _norm(rejected)) / 2
        return (_norm(chosen - rejected) / mean_norm.clamp_min(torch.finfo(torch.float32).tiny)).float()
    if kind == "cosine":
        # Half the squared chord between the unit vectors: 1 - cos without the cancellation of near-equal directions.
        return (_norm(_unit(chosen) - _unit(rejected)).square() / 2).float()
    raise ValueError(f"kind must be 'l2', 'relative' or 'cosine', got {kind!r}.")


def _norm(rows: Tensor) -> Tensor:
    # Scaled by the largest entry: squares of 1e30 overflow float32, squares of 1e-30 vanish in it.
    scale = rows.abs().amax(dim=-1)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (rows / safe.unsqueeze(-1)).square().sum(dim=-1).sqrt() * scale


def _unit(rows: Tensor) -> Tensor:
    return rows / _norm(rows).clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)


@torch.no_grad()
def pair_weights(distance: Tensor, mu: Tensor | float, *, eps: float = 1e-6, max_weight: float | None = 10.0) -> Tensor:
    r"""NormBT weight of each pair; carries no gradient.

    .. math:: w_i = \min\Bigl(\frac{\mu}{d_i + \varepsilon},\; w_{\max}\Bigr)

    Args:
        distance: representation distance of each pair, shape ``(pairs,)``, not negative.
        mu: running mean of the distance, same unit as ``distance``.
        eps: added to the distance, same unit, positive.
        max_weight: largest weight; None gives the formula as published, in which one identical pair weighs
            ``mu / eps``.

    Returns:
        Weight of each pair, without unit, shape ``(pairs,)``, float32. 1 where the distance equals ``mu``, up to
        ``eps``.

    Raises:
        ValueError: ``eps`` or ``max_weight`` is not positive.

    Example:
        >>> pair_weights(torch.tensor([1.0, 2.0, 4.0, 0.0]), mu=2.0)
        tensor([ 2.0000,  1.0000,  0.5000, 10.0000])

    References:
        arXiv 2512.06343, the weight :math:`\tilde w_t`; the bound is ours.
    """
    if eps <= 0:
        raise ValueError(f"eps must be positive, got {eps}.")
    if max_weight is not None and max_weight <= 0:
        raise ValueError(f"max_weight must be positive, or None for no bound; got {max_weight}.")
    weight = _scalar(mu, distance.device) / (distance.float() + eps)
    return weight if max_weight is None else weight.clamp_max(max_weight)


class EmaState(NamedTuple):
    """Running mean of the pair distance: a value; :func:`update_ema` makes the next one.

    Attributes:
        mean: the running mean, in the unit of the distance; without meaning while ``count`` is 0.
        count: how many updates it has seen.
    """

    mean: Tensor | float = 0.0
    count: Tensor | int = 0  # pyright: ignore[reportIncompatibleMethodOverride] - hides tuple.count, which none calls


@torch.no_grad()
def update_ema(state: EmaState, batch_sum: Tensor | float, batch_count: Tensor | float, decay: float) -> EmaState:
    r"""The running mean after one more batch of distances; pure, and without a host sync on tensors.

    .. math:: \mu_{t+1} = \beta\mu_t + (1-\beta)\,\frac{\sum_i d_i}{n}, \qquad \mu_1 = \frac{\sum_i d_i}{n}

    Args:
        state: the mean before the batch. With count 0 the batch's own mean becomes the running mean.
        batch_sum: sum of the batch's distances, over all micro-batches and ranks.
        batch_count: how many pairs the sum is over. With 0 pairs, or a sum that is not finite (an overflow in float16
            is a step that the gradient scaler skips), the state stays as it is.
        decay: beta, the share of the old mean that stays, in ``[0, 1)``.

    Returns:
        The new state; its fields are 0-dimensional tensors on ``batch_sum``'s device.

    Raises:
        ValueError: ``decay`` is outside ``[0, 1)``.

    Example:
        >>> state = update_ema(EmaState(), batch_sum=8.0, batch_count=4, decay=0.9)
        >>> state = update_ema(state, batch_sum=12.0, batch_count=1, decay=0.9)
        >>> round(float(state.mean), 4), int(state.count)
        (3.0, 2)

    References:
        arXiv 2512.06343, the EMA of the mean distance, beta = 0.9.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must be in [0, 1), got {decay}.")
    device = batch_sum.device if isinstance(batch_sum, Tensor) else torch.device("cpu")
    batch_sum, batch_count, mean = (_scalar(value, device) for value in (batch_sum, batch_count, state.mean))
    count = _scalar(state.count, device, torch.int64)

    batch_mean = batch_sum / batch_count.clamp_min(1.0)
    moved = torch.where(count == 0, batch_mean, decay * mean + (1.0 - decay) * batch_mean)
    seen = (batch_count > 0) & batch_sum.isfinite()
    return EmaState(torch.where(seen, moved, mean), count + seen.long())


def _scalar(value: Tensor | float, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    # A number is written by the device: copied from a fresh tensor, it would make the host wait for all work before it.
    return value.to(device, dtype) if isinstance(value, Tensor) else torch.full((), value, device=device, dtype=dtype)


class NormBTLoss(nn.Module):
    r"""NormBT for a plain PyTorch loop: the mean of a pair loss times the NormBT weight, with mu kept inside.

    .. math:: L = \frac1n \sum_i w_i\,\ell_i, \qquad w_i = \min\Bigl(\frac{\mu}{d_i+\varepsilon}, w_{\max}\Bigr)

    The weights of a call use mu as it was before the call; the very first call uses its own mean distance. In
    training mode mu then moves with the call's mean distance, summed over the ranks of ``torch.distributed`` when it
    is initialised, so every rank must make the call. In evaluation mode mu stays, no rank waits for another, and the
    call is about this rank's pairs alone. mu is part of ``state_dict()``.

    Args:
        beta: share of the old mean that stays at each call, in ``[0, 1)``.
        eps: added to the distance, same unit, positive.
        max_weight: largest weight, or None for the formula as published.
        loss: the pair loss, called as ``loss(chosen, rejected, margin)`` or, without a margin, as
            ``loss(chosen, rejected)``; returns shape ``(pairs,)``.

    Example:
        >>> loss = NormBTLoss()
        >>> chosen_hidden, rejected_hidden = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)
        >>> loss(torch.zeros(2), torch.zeros(2), chosen_hidden, rejected_hidden)  # weights 2 and 2/3, mean 4/3
        tensor(0.9242)
        >>> dict(loss.state_dict())
        {'mean': tensor(2.), 'count': tensor(1)}

    References:
        "When Distance Distracts: Representation Distance Bias in BT-Loss for Reward Models", arXiv 2512.06343.
    """

    mean: Tensor
    count: Tensor

    def __init__(
        self,
        beta: float = 0.9,
        eps: float = 1e-6,
        max_weight: float | None = 10.0,
        loss: Callable[..., Tensor] = bt_loss,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.eps = eps
        self.max_weight = max_weight
        self.loss = loss
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0))

    def forward(
        self,
        chosen_rewards: Tensor,
        rejected_rewards: Tensor,
        chosen_hidden: Tensor,
        rejected_hidden: Tensor,
        margin: Tensor | float | None = None,
    ) -> Tensor:
        """The weighted mean loss of the pairs.

        Args:
            chosen_rewards: rewards of the preferred answers, shape ``(pairs,)``.
            rejected_rewards: rewards of the other answers, shape ``(pairs,)``.
            chosen_hidden: what the head read for them, shape ``(pairs, hidden)``.
            rejected_hidden: the same for the other answers, shape ``(pairs, hidden)``.
            margin: passed to the pair loss; None leaves it out.

        Returns:
            Scalar, in nats: the mean over the pairs. With several ranks in training mode, the mean of this over the
            ranks is the mean over the pairs of all ranks, which is what ``DistributedDataParallel`` makes of the
            gradients.
        """
        distance = pair_distance(chosen_hidden, rejected_hidden)
        here = torch.stack([distance.sum(), distance.new_full((), float(len(distance))), distance.new_ones(())])
        # Not in evaluation, which one rank may run alone while the others go on.
        distance_sum, pairs, ranks = all_reduce_sum(here) if self.training else here
        moved = update_ema(EmaState(self.mean, self.count), distance_sum, pairs, self.beta)
        mu = torch.where(self.count == 0, moved.mean, self.mean)
        if self.training:
            self.mean.copy_(torch.as_tensor(moved.mean))
            self.count.copy_(torch.as_tensor(moved.count))
        arguments = () if margin is None else (margin,)
        losses = self.loss(chosen_rewards, rejected_rewards, *arguments)
        weights = pair_weights(distance, mu, eps=self.eps, max_weight=self.max_weight)
        # DistributedDataParallel averages over ranks: the average of these is the mean over all pairs of all ranks,
        # also where ranks hold different numbers of pairs.
        return (weights * losses).sum() * ranks / pairs.clamp_min(1.0)

    def extra_repr(self) -> str:
        """Settings shown by ``print``."""
        name: Any = getattr(self.loss, "__name__", self.loss)
        return f"beta={self.beta}, eps={self.eps}, max_weight={self.max_weight}, loss={name}"


def all_reduce_sum(totals: Tensor) -> Tensor:
    """The sum of ``totals`` over all ranks of ``torch.distributed``; ``totals`` itself where there is one process.

    Args:
        totals: any shape, the same on every rank.

    Returns:
        The sums, same shape; the input may have been overwritten.

    Example:
        >>> all_reduce_sum(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)  # pyright: ignore[reportUnknownMemberType] - torch leaves it untyped
    return totals
