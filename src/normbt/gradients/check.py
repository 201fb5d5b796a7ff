"""Prove the ghost method on the model at hand: against one backward per pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normbt.errors import ModelError
from normbt.gradients.exact import exact_squares
from normbt.gradients.ghost import ghost_squares
from normbt.gradients.pair_inputs import PairInputs, pair_inputs
from normbt.gradients.selection import Params, select_parameters
from normbt.head import HeadCapture
from normbt.packing import PairBatch

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Difference, as a share of the pair's norm, that rounding alone may cause, by the dtype the layers compute in."""
_SMALL = 1e-2  # a pair whose norm is below this share of the largest one is mostly rounding, and measured against that


@dataclass(frozen=True)
class GhostCheck:
    """How far the ghost method is from one backward per pair.

    Attributes:
        pairs: number of pairs that were compared.
        difference: largest difference of any parameter's norm, as a share of the norm of the pair's whole gradient.
        parameter: name of that parameter; ``"none"`` where there is none.
        tolerance: what ``difference`` may be at most.
    """

    pairs: int
    difference: float
    parameter: str
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the method is exact up to rounding; a NaN does not pass."""
        return self.difference <= self.tolerance

    def summary(self) -> str:
        """One sentence for a log."""
        verdict = "agrees with" if self.passed else "DIFFERS FROM"
        return (
            f"method='ghost' {verdict} one backward per pair on {self.pairs} pairs: difference {self.difference:.1e} "
            f"of the norm, at {self.parameter}, tolerance {self.tolerance:.1e}."
        )


def check_ghost(
    model: nn.Module, batch: Mapping[str, Any] | PairBatch, *, params: Params = "all", pairs: int = 2
) -> GhostCheck:
    """Compare the ghost method with one backward per pair on the first pairs of a batch, parameter by parameter.

    Args:
        model: as for :func:`normbt.pair_gradient_norms`.
        batch: as there.
        params: as there.
        pairs: how many pairs to compare; at least two show whether pairs are told apart.

    Returns:
        The difference. Nothing is raised when it is too large: see ``passed``.

    Raises:
        ModelError: the ghost method refuses the model by itself, or a gradient is not finite in either method.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> check_ghost(model, {"input": torch.rand(4, 2)}).passed
        True
    """
    return compared(HeadCapture(model), pair_inputs(batch).first(pairs), select_parameters(model, params))


def compared(capture: HeadCapture, batch: PairInputs, parameters: Mapping[str, nn.Parameter]) -> GhostCheck:
    """:func:`check_ghost` on a batch that is read already, for parameters that are chosen already."""
    found, wanted = ghost_squares(capture, batch, parameters), exact_squares(capture, batch, parameters)
    tolerance = _rounding(capture.model, batch.tensors()[0].device)
    if not parameters:
        return GhostCheck(pairs=batch.pairs, difference=0.0, parameter="none", tolerance=tolerance)
    lost = int((~wanted.isfinite()).any(dim=0).sum())
    if lost:
        raise ModelError(
            f"{lost} of the {batch.pairs} pairs compared have no finite gradient, by one backward per pair either: "
            "their rewards are NaN or infinite, or a layer overflows. Look for NaN in the weights, or load the model "
            "in float32."
        )
    norm = wanted.sum(dim=0).sqrt()
    scale = norm.clamp_min(float(norm.max()) * _SMALL)
    differences = ((found.sqrt() - wanted.sqrt()).abs() / scale).amax(dim=1) if float(norm.max()) else found.amax(dim=1)
    worst = int(differences.argmax())  # the first NaN, if there is one
    return GhostCheck(
        pairs=batch.pairs,
        difference=float(differences[worst]),
        parameter=list(parameters)[worst],
        tolerance=tolerance,
    )


def _rounding(model: nn.Module, device: torch.device) -> float:
    """What the coarsest arithmetic of a forward may cause: adapters in float32 on a bfloat16 model get its rounding."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if torch.is_autocast_enabled(device.type):
        dtypes.add(torch.get_autocast_dtype(device.type))
    return max(_ROUNDING.get(dtype, _ROUNDING[torch.bfloat16]) for dtype in dtypes)  # others are quantised weights
