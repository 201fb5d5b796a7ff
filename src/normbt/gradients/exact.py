"""The reference: one forward and one backward for each pair."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from normbt.gradients.formulas import wide
from normbt.gradients.measuring import measuring
from normbt.gradients.pair_inputs import PairInputs
from normbt.head import HeadCapture

_SLICE = 1 << 20  # elements widened to float64 at a time: 8 MiB


def exact_squares(capture: HeadCapture, batch: PairInputs, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Squared norm of the gradient of ``r_chosen - r_rejected`` by each parameter, for each pair.

    Args:
        capture: the reward model with its head found.
        batch: the pairs.
        parameters: what to differentiate by, by name.

    Returns:
        Shape ``(parameters, pairs)``, float64, on the CPU; without parameters there are no rows.
    """
    watched = list(parameters.values())
    if not watched:
        return torch.zeros(0, batch.pairs, dtype=torch.float64)
    with measuring(capture.model, watched):
        columns = [_squares_of_pair(capture, pair, watched) for pair in batch.each()]
    return torch.stack(columns, dim=1)


def _squares_of_pair(capture: HeadCapture, pair: PairInputs, parameters: Sequence[nn.Parameter]) -> Tensor:
    with capture.installed() as captured:
        capture.model(**pair.inputs)
        chosen, rejected = captured.rewards
        # Gradients come back as values, so nobody's .grad is touched and no hook of DDP runs.
        gradients = torch.autograd.grad(chosen - rejected, parameters, allow_unused=True)
    squares = [_square(gradient, parameter) for gradient, parameter in zip(gradients, parameters, strict=True)]
    return torch.stack([square.to(squares[0].device) for square in squares]).cpu().double()


def _square(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    """Sum of squares in float64: torch's float32 norm on the CPU loses 1e-3 on 26 million elements."""
    if gradient is None:
        return torch.zeros((), dtype=wide(parameter.device), device=parameter.device)
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()
    return torch.stack(
        [part.to(wide(parameter.device)).square().sum() for part in gradient.flatten().split(_SLICE)]
    ).sum()
