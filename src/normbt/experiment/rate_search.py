"""Which learning rate a method gets, and whether the choice is more than chance."""

from collections.abc import Mapping, Sequence

import numpy as np

from normbt.results import EvaluationPair, EvaluationSummary, RateSearch
from normbt.stats import sign_flip_test

Validation = tuple[EvaluationSummary, Sequence[EvaluationPair]]
"""One model on the validation pairs."""

CHANCE = 0.05
"""A choice whose p-value is above this is called no better than chance."""


def choose_rate(training_set: str, method: str, runs: Mapping[float, Sequence[Validation]]) -> RateSearch:
    """The learning rate with the highest mean accuracy on validation pairs; of equal ones the smallest.

    Args:
        training_set: name of the pairs.
        method: name of the method.
        runs: by learning rate, a validation for each search seed; all on the same pairs.

    Returns:
        The choice, with the p-value of its lead over the runner-up: that of swapping the two, prompt by prompt, in the
        decisions averaged over the seeds (:func:`normbt.stats.sign_flip_test`). It is that of the two alone: with more
        than two rates the leader was picked for leading, and chance is likelier than it says.
    """
    means = {rate: float(np.mean([summary["score"]["value"] for summary, _ in found])) for rate, found in runs.items()}
    ranked = sorted(means, key=lambda rate: (-means[rate], rate))
    return RateSearch(
        training_set=training_set,
        method=method,
        accuracies={f"{rate:g}": mean for rate, mean in means.items()},
        chosen=ranked[0],
        p_value=_lead(runs[ranked[0]], runs[ranked[1]]) if len(ranked) > 1 else None,
    )


def told(search: RateSearch) -> str:
    """The choice in words."""
    listed = ", ".join(f"{rate}: {100 * mean:.1f} %" for rate, mean in search["accuracies"].items())
    name = f"{search['training_set']}/{search['method']}"
    text = f"{name}: learning rate {search['chosen']:g}; accuracies on validation pairs {listed}"
    if search["p_value"] is None:
        return text
    chance = ", no better than chance" if search["p_value"] > CHANCE else ""
    return f"{text}; p = {search['p_value']:.2g} for its lead{chance}"


def _lead(first: Sequence[Validation], second: Sequence[Validation]) -> float:
    """Of the hypothesis that two rates are exchangeable."""
    right = [np.mean([[pair["correct"] for pair in pairs] for _, pairs in runs], axis=0) for runs in (first, second)]
    clusters = [pair["cluster_id"] for pair in first[0][1]]
    return float(sign_flip_test(right[0] - right[1], clusters)[0])
