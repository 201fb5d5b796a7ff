"""The gradient norm of each pair, exactly: whose pairs move the model."""

from normbt.gradients.check import GhostCheck, check_ghost
from normbt.gradients.norms import pair_gradient_norms, pair_gradient_norms_by_group
from normbt.gradients.selection import Params

__all__ = ["GhostCheck", "Params", "check_ghost", "pair_gradient_norms", "pair_gradient_norms_by_group"]
