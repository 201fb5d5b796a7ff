"""Two evaluations of the same pairs, compared by category: accuracies, their difference, and who gets the gradient."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from normbt.results import EvaluationPair
from normbt.stats import cluster_bootstrap, holm, mcnemar_exact, percentile_interval, wilson_interval

ALL = "all"
"""Name of the row over all pairs."""


class CategoryComparison(TypedDict):
    """One row of the comparison; accuracies and shares are in ``[0, 1]``, intervals cover 95 %.

    ``difference`` is NormBT minus BT, with a paired bootstrap interval; ``p_value`` is McNemar's exact test on the
    same pairs, and ``p_holm`` the same after Holm's correction for the number of categories (None in the row over all
    pairs). ``distance`` is the mean distance in the BT model. The shares say how that model's head gradient on these
    pairs splits over the categories: without weights (BT) and with NormBT's weights.
    """

    category: str
    pairs: int
    bt: float
    bt_low: float
    bt_high: float
    normbt: float
    normbt_low: float
    normbt_high: float
    difference: float
    difference_low: float
    difference_high: float
    only_bt: int
    only_normbt: int
    p_value: float
    p_holm: float | None
    distance: float
    gradient_share_bt: float
    gradient_share_normbt: float


def compare_by_category(
    bt: Sequence[EvaluationPair],
    normbt: Sequence[EvaluationPair],
    *,
    eps: float = 1e-6,
    max_weight: float | None = 10.0,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[CategoryComparison]:
    r"""Compare two models on the same pairs.

    The head's own gradient on a pair has the norm :math:`\sigma(-\Delta)\,\lVert h_c - h_r\rVert`: error times
    distance. NormBT multiplies it by the pair's weight, here with the mean distance over these pairs as mu.

    Args:
        bt: the pairs as the BT model scored them.
        normbt: the same pairs, in the same order, as the NormBT model scored them.
        eps: added to the distance in the weight.
        max_weight: largest weight; None for no bound.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        One row for each category, in the order of their first pairs, and one over all pairs.

    Raises:
        ValueError: the two lists do not hold the same pairs.
    """
    if [pair["id"] for pair in bt] != [pair["id"] for pair in normbt]:
        raise ValueError("the two evaluations hold different pairs, or the same in another order")
    category_of = np.array([str(pair["category"]) for pair in bt])
    categories = list(dict.fromkeys(category_of.tolist()))
    right = np.array([[pair["correct"] for pair in model] for model in (bt, normbt)], dtype=float)
    drawn = cluster_bootstrap(
        right.T, category_of.tolist(), [pair["cluster_id"] for pair in bt], resamples=resamples, seed=seed
    )
    by_category = dict(zip(drawn.groups, np.moveaxis(drawn.means(), 1, 0), strict=True))
    distance = np.array([pair["distance"] for pair in bt], dtype=float)  # NaN where a score is not finite
    gradient = _errors(bt) * distance
    weight = np.nanmean(distance) / (distance + eps)
    weighted = gradient * (weight if max_weight is None else np.minimum(weight, max_weight))

    rows = []
    for name in (*categories, ALL):
        members = np.ones(len(bt), dtype=bool) if name == ALL else category_of == name
        resampled = drawn.overall() if name == ALL else by_category[name]
        rows.append(_row(name, right[:, members], resampled, distance[members], gradient, weighted, members))
    adjusted = holm([row["p_value"] for row in rows[:-1]])
    for row, p_value in zip(rows[:-1], adjusted, strict=True):
        row["p_holm"] = float(p_value)
    return rows


def _row(
    name: str,
    right: NDArray[np.float64],
    resampled: NDArray[np.float64],
    distance: NDArray[np.float64],
    gradient: NDArray[np.float64],
    weighted: NDArray[np.float64],
    members: NDArray[np.bool_],
) -> CategoryComparison:
    pairs = right.shape[1]
    bt_interval, normbt_interval = (wilson_interval(int(model.sum()), pairs) for model in right)
    low, high = percentile_interval(resampled[:, 1] - resampled[:, 0])
    only_bt, only_normbt = int((right[0] > right[1]).sum()), int((right[1] > right[0]).sum())
    return CategoryComparison(
        category=name,
        pairs=pairs,
        bt=float(right[0].mean()),
        bt_low=bt_interval.low,
        bt_high=bt_interval.high,
        normbt=float(right[1].mean()),
        normbt_low=normbt_interval.low,
        normbt_high=normbt_interval.high,
        difference=float(right[1].mean() - right[0].mean()),
        difference_low=low,
        difference_high=high,
        only_bt=only_bt,
        only_normbt=only_normbt,
        p_value=mcnemar_exact(only_bt, only_normbt),
        p_holm=None,
        distance=float(np.nanmean(distance)),
        gradient_share_bt=float(np.nansum(gradient[members]) / np.nansum(gradient)),
        gradient_share_normbt=float(np.nansum(weighted[members]) / np.nansum(weighted)),
    )


def _errors(pairs: Sequence[EvaluationPair]) -> NDArray[np.float64]:
    """Prediction error of each pair, ``σ(r_rejected − r_chosen)``; NaN where a score is not finite."""
    gap = np.array([pair["score_rejected"] for pair in pairs], float) - np.array(
        [pair["score_chosen"] for pair in pairs], float
    )
    return 1 / (1 + np.exp(-np.clip(gap, -700, 700)))
