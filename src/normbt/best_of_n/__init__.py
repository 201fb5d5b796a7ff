"""Job: what the best of n answers is worth when a reward model chooses it."""

from normbt.best_of_n.curves import Curves
from normbt.best_of_n.estimator import agreement, choice_weights, expected_choice, kl_bound, rank_weights
from normbt.best_of_n.job import Sampling, best_of_n
from normbt.best_of_n.pool import Pool, read_pool
from normbt.best_of_n.table import render_best_of_n, render_markdown

__all__ = [
    "Curves",
    "Pool",
    "Sampling",
    "agreement",
    "best_of_n",
    "choice_weights",
    "expected_choice",
    "kl_bound",
    "rank_weights",
    "read_pool",
    "render_best_of_n",
    "render_markdown",
]
