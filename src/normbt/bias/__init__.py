"""Representation-distance bias in numbers: who gets the update, and how closely it goes with the distance."""

from normbt.bias.association import (
    Statistic,
    error_bins,
    estimates,
    log_slopes,
    pearson,
    product_deviation,
    proportional_fit,
    spearman,
)
from normbt.bias.shares import (
    QuietCount,
    distance_groups,
    effective_pairs,
    prediction_error,
    quiet_mistakes,
    update_shares,
)
from normbt.bias.summary import DISTANCES, BiasSummary, PairNumbers, summarise

__all__ = [
    "DISTANCES",
    "BiasSummary",
    "PairNumbers",
    "QuietCount",
    "Statistic",
    "distance_groups",
    "effective_pairs",
    "error_bins",
    "estimates",
    "log_slopes",
    "pearson",
    "prediction_error",
    "product_deviation",
    "proportional_fit",
    "quiet_mistakes",
    "spearman",
    "summarise",
    "update_shares",
]
