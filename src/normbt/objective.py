"""What a run minimises, pair by pair: a pair loss times its weight, and auxiliary terms."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from normbt.errors import DataError
from normbt.losses import bt_loss, centering_term, scaled_bt_loss, sum_to_zero_term
from normbt.nonfinite import finite_pairs
from normbt.weights import Distance, Weighting, all_reduce_sum, pair_distance, pair_weights

Loss = Literal["bt", "scaled_bt"]


class PairTerms(NamedTuple):
    """The parts of the objective of each pair, every one of shape ``(pairs,)``.

    Attributes:
        distance: between what the head read of both answers; no gradient.
        weight: no gradient.
        loss: pair loss before weighting, in nats.
        objective: what is minimised: weight times loss, and auxiliary terms; 0, without gradient, where not finite.
        finite: whether the pair's rewards, distance and margin are finite, boolean.
    """

    distance: Tensor
    weight: Tensor
    loss: Tensor
    objective: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Objective:
    r"""Any pair loss with any weighting; nothing is reduced.

    .. math:: o_i = w_i\,\ell_i + \lambda_c (r^+_i + r^-_i)^2 + \lambda_b b

    Attributes:
        loss: ``bt`` or ``scaled_bt``, see :mod:`normbt.losses`.
        smoothing: label smoothing of ``bt``, in ``[0, 0.5)``.
        weighting: ``normbt`` weighs with mu, ``raw`` with 1 in its place, ``batch`` with the mean distance of the call
            over all processes; ``none`` is weight 1.
        distance: kind of distance, see :func:`normbt.weights.pair_distance`.
        eps: added to the distance.
        max_weight: largest weight; None for no bound.
        center_rewards_coefficient: :math:`\lambda_c`, see :func:`normbt.losses.centering_term`; None for no term.
        bsr_coefficient: :math:`\lambda_b`, see :func:`normbt.losses.sum_to_zero_term`; None for no term.

    Example:
        >>> terms = Objective()(torch.zeros(2), torch.tensor([[1.0], [0.0]]), mu=2.0)
        >>> terms.distance, terms.weight, terms.objective
        (tensor([1.]), tensor([2.0000]), tensor([1.3863]))
    """

    loss: Loss = "bt"
    smoothing: float = 0.0
    weighting: Weighting = "normbt"
    distance: Distance = "l2"
    eps: float = 1e-6
    max_weight: float | None = 10.0
    center_rewards_coefficient: float | None = None
    bsr_coefficient: float | None = None

    def __call__(
        self, rewards: Tensor, hidden: Tensor, margin: Tensor | None = None, *, mu: Tensor | float | None = None
    ) -> PairTerms:
        """The terms of each pair of a micro-batch.

        Args:
            rewards: chosen answers first, shape ``(2 * pairs,)``.
            hidden: what the head read for them, shape ``(2 * pairs, hidden)``.
            margin: margin of each pair in reward units, shape ``(pairs,)``, or None.
            mu: running mean of the distance; None where there is none yet, which makes the weights of ``normbt`` 1: the
                mean of a micro-batch in its place would make an evaluation depend on how it is split.

        Returns:
            The terms; they carry the gradient of ``rewards``. Under autocast they are computed in float32 all the same.
            A pair that is not finite takes part in nobody's terms, as if it weren't there.

        Raises:
            DataError: ``scaled_bt`` without margins.
        """
        chosen, rejected = rewards.chunk(2)
        distance = pair_distance(*hidden.chunk(2), kind=self.distance)
        finite = finite_pairs(chosen, rejected, distance, margin)
        # Replaced before anything is computed from them: the gradient of a masked NaN would still be NaN.
        chosen, rejected, known_distance = (torch.where(finite, x, 0.0) for x in (chosen, rejected, distance))
        margin = None if margin is None else torch.where(finite, margin, 0.0)
        with torch.autocast(rewards.device.type, enabled=False):
            loss = self._pair_loss(chosen, rejected, margin)
            weight = self._weight(known_distance, finite, mu)
            objective = weight * loss
            if self.center_rewards_coefficient is not None:
                objective = objective + self.center_rewards_coefficient * centering_term(chosen, rejected)
            if self.bsr_coefficient is not None:
                term = sum_to_zero_term(chosen, rejected, counted=finite)
                objective = objective + self.bsr_coefficient * term
        return PairTerms(distance, weight, loss, torch.where(finite, objective, 0.0), finite)

    def take_part(self, device: torch.device) -> None:
        """What a process without a pair owes the others, which wait for it: its part of ``batch``'s mean distance."""
        if self.weighting == "batch":
            all_reduce_sum(torch.zeros(2, device=device))

    def _pair_loss(self, chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> Tensor:
        if self.loss == "scaled_bt":
            if margin is None:
                raise DataError("loss 'scaled_bt' multiplies by the margin, and the data have no column `margin`.")
            return scaled_bt_loss(chosen, rejected, margin)
        return bt_loss(chosen, rejected, margin, smoothing=self.smoothing)

    def _weight(self, distance: Tensor, finite: Tensor, mu: Tensor | float | None) -> Tensor:
        reference = mu
        if self.weighting == "batch":
            total, count = all_reduce_sum(torch.stack([distance.sum(), finite.sum().float()]))
            reference = total / count.clamp_min(1.0)
        return run_weights(distance, self.weighting, reference, eps=self.eps, max_weight=self.max_weight)


def run_weights(
    distance: Tensor, weighting: Weighting, reference: Tensor | float | None, *, eps: float, max_weight: float | None
) -> Tensor:
    """Weight that a run gives its pairs.

    Args:
        distance: of each pair, of the run's kind, shape ``(pairs,)``.
        weighting: the run's.
        reference: what ``normbt`` and ``batch`` divide by the distance: mu, or a mean distance. None where there is
            none, which makes the weights 1.
        eps: added to the distance.
        max_weight: largest weight; None for no bound.

    Returns:
        Weights, shape ``(pairs,)``.

    Example:
        >>> run_weights(torch.tensor([1.0, 3.0]), "normbt", 2.0, eps=1e-6, max_weight=None)
        tensor([2.0000, 0.6667])
    """
    if weighting == "raw":
        reference = 1.0
    if weighting == "none" or reference is None:
        return torch.ones_like(distance)
    return pair_weights(distance, reference, eps=eps, max_weight=max_weight)
