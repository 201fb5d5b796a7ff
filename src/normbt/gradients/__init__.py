"""The gradient norm of each pair, exactly: whose pairs move the model."""

from normbt.gradients.norms import pair_gradient_norms, pair_gradient_norms_by_group

__all__ = ["pair_gradient_norms", "pair_gradient_norms_by_group"]
