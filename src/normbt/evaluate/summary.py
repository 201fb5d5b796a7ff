"""From records to scores with intervals."""

from collections.abc import Iterable, Sequence

import numpy as np

from normbt.results import Score
from normbt.stats import cluster_bootstrap, percentile_interval, resampled_clusters, wilson_interval
from normbt.suites import Outcome, Outcomes, Record, Suite


class ScoreTable:
    """Scores of one evaluation; every score comes from the same records and the same resamples.

    Args:
        suite: its rule.
        records: the lines of ``pairs.jsonl`` or ``prompts.jsonl``.
        resamples: number of bootstrap resamples.
        confidence: coverage of the intervals, in ``(0, 1)``.
        seed: of the resampling.

    Attributes:
        outcomes: the scores there are.
    """

    def __init__(
        self,
        suite: Suite,
        records: Sequence[Record],
        *,
        resamples: int = 10_000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        self._confidence = confidence
        self._decisions = suite.decisions(records)
        self.outcomes = Outcomes(suite, records, self._decisions)
        self._sums = self.outcomes.sums(self._decisions.credit)
        self._longer = self.outcomes.sums(suite.decisions(records, by_length=True).credit)
        self._clusters = np.array(self.outcomes.clusters)
        self._strata = np.array(self.outcomes.strata)
        self._drawn = cluster_bootstrap(
            self._decisions.credit,
            self.outcomes.cell_names,
            self.outcomes.clusters,
            strata=self.outcomes.strata,
            resamples=resamples,
            seed=seed,
        )

    def score(self, outcome: Outcome) -> Score:
        """One score with its interval, its counts, and what the longer answer would get."""
        rows, decisions, counts = outcome.rows, self._decisions, self.outcomes.counts
        with np.errstate(invalid="ignore"):
            resampled = outcome.statistic(self._drawn.sums[:, :, 0], self._drawn.counts)
        drawn = resampled_clusters(self._strata[rows].tolist(), self._clusters[rows].tolist())
        low, high = percentile_interval(resampled, confidence=self._confidence, drawn=drawn)
        credit = decisions.credit[rows]
        correct = int((credit == 1).sum())
        wilson = None
        # Wilson's interval is one of a plain proportion: no weights, no shares of a credit.
        if outcome.plain and np.isin(credit, (0, 1)).all():
            wilson = wilson_interval(correct, len(credit), confidence=self._confidence)
        return Score(
            value=float(outcome.statistic(self._sums, counts)),
            low=low,
            high=high,
            wilson_low=wilson and wilson.low,
            wilson_high=wilson and wilson.high,
            length_only=float(outcome.statistic(self._longer, counts)),
            pairs=len(credit),
            clusters=drawn.clusters,
            correct=correct,
            ties=int(decisions.tie[rows].sum()),
            non_finite=int((~decisions.finite[rows]).sum()),
            truncated=int(decisions.truncated[rows].sum()),
        )

    def scores(self, outcomes: Iterable[Outcome]) -> dict[str, Score]:
        """Several scores by name."""
        return {outcome.name: self.score(outcome) for outcome in outcomes}

    def by(self, kind: str) -> dict[str, Score]:
        """Plain accuracy of each of the ``categories``, ``subsets`` or ``sources``."""
        return self.scores(self.outcomes.breakdown(kind))
