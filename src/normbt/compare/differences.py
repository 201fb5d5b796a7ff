"""The statistics of a comparison: every score of every method against the baseline's, on the same resamples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normbt.compare.runs import Runs
from normbt.errors import ConfigError
from normbt.results import ScoreDifference, SeedDifference, SeedTest
from normbt.stats import (
    cluster_bootstrap,
    detectable_from_error,
    holm,
    mcnemar_exact,
    method_difference,
    paired_t,
    percentile_interval,
    resampled_clusters,
    sign_flip_test,
)
from normbt.suites import Outcome, Outcomes

Numbers = NDArray[np.float64]

BETTER, WORSE, OPEN = "better", "worse", "no difference shown"
PRIMARY = "primary"
"""The family of the outcomes that a comparison is about."""


@dataclass(frozen=True)
class Settings:
    """How a comparison is made.

    Attributes:
        baseline: name of the method that the others are compared with.
        primary: names of the outcomes it is about.
        by: kinds of further outcomes: ``subsets``, ``categories``, ``sources``.
        alpha: level of the tests.
        confidence: coverage of the intervals.
        power: probability at which a detectable difference is found.
        resamples: number of bootstrap resamples and of sign flips.
        seed: of both.
    """

    baseline: str
    primary: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    alpha: float = 0.05
    confidence: float = 0.95
    power: float = 0.8
    resamples: int = 10_000
    seed: int = 0


class Measured:
    """All runs on the same decisions and the same resamples.

    Args:
        runs: what is compared.
        settings: how.

    Attributes:
        outcomes: the scores that are compared.
        primary: names of the primary ones among them.
    """

    def __init__(self, runs: Runs, settings: Settings) -> None:
        self._runs, self._settings = runs, settings
        columns = [run for method in runs.methods.values() for run in method]
        self._column = {name: index * runs.seeds for index, name in enumerate(runs.methods)}
        decisions = [runs.suite.decisions(run.records) for run in columns]
        self._credit = np.stack([one.credit for one in decisions], axis=1)
        self._frame = Outcomes(runs.suite, columns[0].records, decisions[0])
        self.outcomes = self._choose()
        self.primary = self._primary()
        drawn = cluster_bootstrap(
            self._credit,
            self._frame.cell_names,
            self._frame.clusters,
            strata=self._frame.strata,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        self._sums, self._counts = np.moveaxis(drawn.sums, 2, 1), drawn.counts[:, None, :]
        self._weights = np.stack([self._frame.weights(outcome) for outcome in self.outcomes], axis=1)
        self._clusters, self._strata = np.array(self._frame.clusters), np.array(self._frame.strata)

    def scores(self, outcome: Outcome) -> Numbers:
        """A score of every run, in the order of the methods and their seeds."""
        return np.asarray(outcome.statistic(self._frame.sums(self._credit), self._frame.counts))

    def differences(self) -> list[ScoreDifference]:
        """Every score of every other method against the baseline's, adjusted for their number."""
        found: list[ScoreDifference] = []
        for method in self._others():
            p_values = self._flipped(method)
            found += [
                self._difference(method, outcome, float(p_value))
                for outcome, p_value in zip(self.outcomes, p_values, strict=True)
            ]
        for name in dict.fromkeys(row["family"] for row in found):
            family = [row for row in found if row["family"] == name]
            for row, adjusted in zip(family, holm([row["p_value"] for row in family]), strict=True):
                row["p_holm"] = float(adjusted)
                if adjusted <= self._settings.alpha:
                    row["verdict"] = BETTER if row["difference"] > 0 else WORSE
        return found

    def seed_differences(self) -> list[SeedDifference]:
        """Every seed alone, in the headline and the primary outcomes; empty for one run each."""
        rows: list[SeedDifference] = []
        if self._runs.seeds < 2:
            return rows
        for method in self._others():
            for outcome in self._leading():
                scores = self.scores(outcome)
                for place, run in enumerate(self._runs.methods[method]):
                    first, second = self._column[self._settings.baseline] + place, self._column[method] + place
                    only_first, only_second = self._discordant(outcome, first, second)
                    rows.append(
                        SeedDifference(
                            baseline=self._settings.baseline,
                            method=method,
                            outcome=outcome.name,
                            seed=run.seed,
                            baseline_score=float(scores[first]),
                            method_score=float(scores[second]),
                            difference=float(scores[second] - scores[first]),
                            only_baseline=only_first,
                            only_method=only_second,
                            mcnemar_p=mcnemar_exact(only_first, only_second),
                        )
                    )
        return rows

    def seed_tests(self) -> list[SeedTest]:
        """Paired t-tests over the seeds, in every outcome; empty for one run each."""
        if self._runs.seeds < 2:
            return []
        tests = []
        for method in self._others():
            for outcome in self.outcomes:
                found = paired_t(self._by_seed(self.scores(outcome), method), confidence=self._settings.confidence)
                tests.append(
                    SeedTest(
                        baseline=self._settings.baseline,
                        method=method,
                        outcome=outcome.name,
                        seeds=self._runs.seeds,
                        difference=found.difference,
                        standard_error=found.standard_error,
                        low=found.low,
                        high=found.high,
                        p_value=found.p_value,
                    )
                )
        return tests

    def _choose(self) -> list[Outcome]:
        """The usual outcomes, and what was asked for."""
        frame = self._frame
        chosen = frame.usual()
        for kind in self._settings.by:
            known = {(outcome.kind, outcome.name) for outcome in chosen}
            chosen += [one for one in frame.breakdown(kind) if (one.kind, one.name) not in known]
        return chosen

    def _primary(self) -> list[str]:
        names = [outcome.name for outcome in self.outcomes]
        headline = names[0]
        if not self._settings.primary:
            return [headline, *(name for name in self._runs.suite.primary if name in names)]
        unknown = [name for name in self._settings.primary if name not in (*names, "score")]
        if unknown:
            raise ConfigError(
                f"There is no outcome {', '.join(unknown)} to be primary. There are: score ({headline}), "
                f"{', '.join(names[1:])}."
            )
        return list(dict.fromkeys(headline if name == "score" else name for name in self._settings.primary))

    def _family(self, outcome: Outcome) -> str:
        """The outcomes it is adjusted with: the primary ones, the usual others, or a kind that was asked for."""
        if outcome.name in self.primary:
            return PRIMARY
        return outcome.kind if outcome.kind in self._settings.by else "secondary"

    def _others(self) -> list[str]:
        return [name for name in self._runs.methods if name != self._settings.baseline]

    def _leading(self) -> list[Outcome]:
        return [outcome for place, outcome in enumerate(self.outcomes) if place == 0 or outcome.name in self.primary]

    def _by_seed(self, scores: Numbers, method: str) -> Numbers:
        """Method minus baseline of each seed, from scores whose last axis holds the runs."""
        first, second, seeds = self._column[self._settings.baseline], self._column[method], self._runs.seeds
        return scores[..., second : second + seeds] - scores[..., first : first + seeds]

    def _flipped(self, method: str) -> Numbers:
        """P-values of one run each, by swapping the two models cluster by cluster."""
        gain = self._by_seed(self._credit, method).mean(axis=1)
        flips, seed = self._settings.resamples, self._settings.seed
        return sign_flip_test(self._weights * gain[:, None], self._frame.clusters, flips=flips, seed=seed)

    def _discordant(self, outcome: Outcome, first: int, second: int) -> tuple[int, int]:
        """Decisions behind an outcome in which only the first, and only the second run is right (or earns more)."""
        gain = (self._credit[:, second] - self._credit[:, first])[outcome.rows]
        return int((gain < 0).sum()), int((gain > 0).sum())

    def _difference(self, method: str, outcome: Outcome, p_value: float) -> ScoreDifference:
        settings, seeds = self._settings, self._runs.seeds
        first, second = self._column[settings.baseline], self._column[method]
        scores = self.scores(outcome)
        with np.errstate(invalid="ignore"):
            resampled = self._by_seed(np.asarray(outcome.statistic(self._sums, self._counts)), method)
        observed = self._by_seed(scores, method)
        drawn = resampled_clusters(self._strata[outcome.rows].tolist(), self._clusters[outcome.rows].tolist())
        degrees: float = drawn.degrees
        discordant = [self._discordant(outcome, first + place, second + place) for place in range(seeds)]
        decisions = int(outcome.rows.sum())
        only: tuple[int | None, int | None] = (None, None)
        if seeds == 1:
            only = discordant[0]
            low, high = percentile_interval(resampled[:, 0], confidence=settings.confidence, drawn=drawn)
            error = float(np.nanstd(resampled[:, 0]) * drawn.expansion)
        else:
            found = method_difference(
                observed, resampled, drawn=drawn, confidence=settings.confidence, seed=settings.seed
            )
            low, high, error, degrees = found.low, found.high, found.standard_error, found.degrees
            if error > 0:  # few decisions that all agree vary in no resample; swapping them says how little they show
                p_value = max(p_value, found.p_value)
        return ScoreDifference(
            baseline=settings.baseline,
            method=method,
            outcome=outcome.name,
            kind=outcome.kind,
            family=self._family(outcome),
            baseline_score=float(scores[first : first + seeds].mean()),
            method_score=float(scores[second : second + seeds].mean()),
            difference=float(observed.mean()),
            low=low,
            high=high,
            standard_error=error,
            degrees=float(degrees),
            p_value=p_value,
            p_holm=p_value,
            verdict=OPEN,
            decisions=decisions,
            clusters=drawn.clusters,
            discordance=sum(sum(one) for one in discordant) / (decisions * seeds),
            only_baseline=only[0],
            only_method=only[1],
            mcnemar_p=mcnemar_exact(*discordant[0]) if seeds == 1 else None,
            detectable=detectable_from_error(error, degrees=degrees, alpha=settings.alpha, power=settings.power),
        )
