"""From the numbers of all pairs to the statistics of a diagnosis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from normbt.bias.association import (
    error_bins,
    estimates,
    log_slopes,
    pearson,
    product_deviation,
    proportional_fit,
    spearman,
)
from normbt.bias.shares import Floats, distance_groups, effective_pairs, quiet_mistakes, update_shares
from normbt.results import (
    CategoryDiagnosis,
    Correlation,
    DecileShare,
    ErrorBin,
    Estimate,
    ProductForm,
    ProportionalFit,
    QuietMistakes,
)

DISTANCES = ("distance", "distance_relative", "distance_cosine")
"""The kinds of distance, by the name of their field."""


@dataclass(frozen=True)
class PairNumbers:
    """The numbers of some pairs, all finite; every array has shape ``(pairs,)``.

    Attributes:
        error: prediction error.
        misranked: whether the pair is ranked wrong.
        distance: l2 distance.
        distance_relative: relative distance.
        distance_cosine: cosine distance.
        weight: NormBT's weight.
        gradient_norm: norm of the gradient of ``r_chosen - r_rejected``.
        gradient_norm_head: its part for the head.
        gradient_norm_backbone: its part for everything else.
        cluster: number of the pair's cluster, from 0 on; pairs of one cluster are resampled together.
        category: number of the pair's category in ``categories``; -1 for none.
        categories: names of the categories.
    """

    error: Floats
    misranked: NDArray[np.bool_]
    distance: Floats
    distance_relative: Floats
    distance_cosine: Floats
    weight: Floats
    gradient_norm: Floats
    gradient_norm_head: Floats
    gradient_norm_backbone: Floats
    cluster: NDArray[np.intp]
    category: NDArray[np.intp]
    categories: Sequence[str]

    @property
    def update_bt(self) -> Floats:
        """Norm of each pair's BT gradient."""
        return self.error * self.gradient_norm

    @property
    def update_normbt(self) -> Floats:
        """Norm of each pair's NormBT gradient."""
        return self.weight * self.update_bt


class BiasSummary(TypedDict):
    """The statistical part of :class:`normbt.results.DiagnosisSummary`; the fields mean what they mean there."""

    correlations: dict[str, Correlation]
    correlations_backbone: dict[str, Correlation]
    error_bins: list[ErrorBin]
    share_by_decile: list[DecileShare]
    per_category: dict[str, CategoryDiagnosis]
    quiet_mistakes: QuietMistakes
    effective_pairs_bt: float | None
    effective_pairs_normbt: float | None
    proportional_fit: ProportionalFit
    product_form: ProductForm


def summarise(numbers: PairNumbers, *, resamples: int = 2_000, confidence: float = 0.95, seed: int = 0) -> BiasSummary:
    """All statistics of a diagnosis.

    Args:
        numbers: of the pairs; there may be none.
        resamples: number of bootstrap resamples.
        confidence: coverage of the intervals, in ``(0, 1)``.
        seed: of the resampling.

    Returns:
        The statistics; what does not exist is None.
    """
    found, bins = _estimates(numbers, resamples, confidence, seed)
    return BiasSummary(
        correlations=_correlations(found, "full"),
        correlations_backbone=_correlations(found, "backbone"),
        error_bins=[
            ErrorBin(
                error_low=float(numbers.error[members].min()),
                error_high=float(numbers.error[members].max()),
                pairs=len(members),
                slope=slope,
            )
            for members, slope in zip(bins, found["slope"], strict=True)
        ],
        share_by_decile=_deciles(numbers),
        per_category=_categories(numbers),
        quiet_mistakes=_quiet(numbers),
        effective_pairs_bt=effective_pairs(numbers.update_bt),
        effective_pairs_normbt=effective_pairs(numbers.update_normbt),
        proportional_fit=proportional_fit(numbers.distance, numbers.gradient_norm),
        product_form=product_deviation(numbers.distance, numbers.gradient_norm_head),
    )


def _estimates(
    numbers: PairNumbers, resamples: int, confidence: float, seed: int
) -> tuple[dict[str, list[Estimate]], list[NDArray[np.intp]]]:
    """Every statistic that has an interval, from the same resamples; and the bins of the slopes."""
    # Equal representations have no logarithm of a distance; they say nothing about how the norm grows with it.
    positive = np.flatnonzero((numbers.distance > 0) & (numbers.gradient_norm > 0))
    bins = [positive[members] for members in error_bins(numbers.error[positive])]
    safe_distance, safe_norm = (
        np.where(values > 0, values, 1.0) for values in (numbers.distance, numbers.gradient_norm)
    )
    columns = [getattr(numbers, kind) for kind in DISTANCES]
    columns += [numbers.gradient_norm, numbers.gradient_norm_backbone]
    between = [(kind, norm) for norm in (3, 4) for kind in range(3)]
    statistics = {
        "pearson": pearson(columns, between),
        "spearman": spearman(columns, between),
        "slope": log_slopes(safe_distance, safe_norm, bins),
    }
    if numbers.error.size == 0:
        missing = Estimate(value=None, low=None, high=None)
        return {"pearson": [missing] * 6, "spearman": [missing] * 6, "slope": []}, []
    return estimates(statistics, numbers.cluster, resamples=resamples, confidence=confidence, seed=seed), bins


def _correlations(found: dict[str, list[Estimate]], norm: str) -> dict[str, Correlation]:
    start = 0 if norm == "full" else len(DISTANCES)
    return {
        kind: Correlation(pearson=found["pearson"][start + place], spearman=found["spearman"][start + place])
        for place, kind in enumerate(DISTANCES)
    }


def _deciles(numbers: PairNumbers) -> list[DecileShare]:
    groups = distance_groups(numbers.distance, 10)
    shares = zip(update_shares(numbers.update_bt, groups), update_shares(numbers.update_normbt, groups), strict=True)
    return [
        DecileShare(
            distance_low=float(numbers.distance[members[0]]) if len(members) else None,
            distance_high=float(numbers.distance[members[-1]]) if len(members) else None,
            pairs=len(members),
            share_bt=share_bt,
            share_normbt=share_normbt,
        )
        for members, (share_bt, share_normbt) in zip(groups, shares, strict=True)
    ]


def _categories(numbers: PairNumbers) -> dict[str, CategoryDiagnosis]:
    groups = [np.flatnonzero(numbers.category == place) for place in range(len(numbers.categories))]
    shares = zip(update_shares(numbers.update_bt, groups), update_shares(numbers.update_normbt, groups), strict=True)
    return {
        name: CategoryDiagnosis(
            pairs=len(members),
            median_distance=_or_none(np.median, numbers.distance[members]),
            median_gradient_norm=_or_none(np.median, numbers.gradient_norm[members]),
            mean_error=_or_none(np.mean, numbers.error[members]),
            share_bt=share_bt,
            share_normbt=share_normbt,
            misranked=int(numbers.misranked[members].sum()),
        )
        for name, members, (share_bt, share_normbt) in zip(numbers.categories, groups, shares, strict=True)
    }


def _or_none(statistic: Callable[[Floats], np.floating], values: Floats) -> float | None:
    return float(statistic(values)) if values.size else None


def _quiet(numbers: PairNumbers) -> QuietMistakes:
    bt = quiet_mistakes(numbers.update_bt, numbers.misranked)
    normbt = quiet_mistakes(numbers.update_normbt, numbers.misranked)
    return QuietMistakes(
        misranked=int(numbers.misranked.sum()),
        quiet_bt=bt.quiet,
        quiet_normbt=normbt.quiet,
        median_update_bt=bt.median,
        median_update_normbt=normbt.median,
    )
