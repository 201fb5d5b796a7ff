"""From a pool to curves: exact per prompt, then the mean over prompts with a bootstrap that draws prompts."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from normbt.best_of_n.estimator import agreement, choice_weights, kl_bound
from normbt.best_of_n.pool import Pool
from normbt.errors import ConfigError, DataError
from normbt.results import LONGEST, ORACLE, RANDOM, CurvePoint, Estimate, PoolCounts, RuleDifference
from normbt.stats import cluster_bootstrap, percentile_interval

Numbers = NDArray[np.float64]
_At = Callable[[str, str, int], Numbers]  # the mean of a quantity under a rule at n: over prompts, or in every resample
ENOUGH = 2
"""A prompt should have this many times as many candidates as the largest n."""


class Curves:
    """Every curve of a pool, from the same prompts and the same resamples, so that all comparisons are paired.

    Args:
        pool: the candidates.
        sizes: numbers n to choose from; None for the powers of two up to half of what the median prompt has.
        resamples: number of bootstrap resamples of the prompts.
        confidence: coverage of the intervals, in ``(0, 1)``.
        seed: of the resampling.

    Attributes:
        sizes: the numbers n.
        used: places of the prompts that have at least the largest n candidates; all curves are over these.

    Raises:
        ConfigError: no prompt has that many candidates.
    """

    def __init__(
        self,
        pool: Pool,
        sizes: Sequence[int] | None = None,
        *,
        resamples: int = 10_000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        self.pool, self.confidence = pool, confidence
        self.sizes = _default_sizes(pool) if sizes is None else sorted(set(sizes))
        if self.sizes[0] < 1:
            raise ConfigError(f"n must be at least 1, found {self.sizes[0]}.")
        self.used = np.flatnonzero(pool.sizes >= self.sizes[-1])
        if not self.used.size:
            raise ConfigError(
                f"No prompt has the {self.sizes[-1]} candidates that the largest n asks for; the most is "
                f"{pool.sizes.max()}. Lower n, or give more candidates."
            )
        self.columns: dict[tuple[str, str, int], int] = {}
        per_prompt = self._per_prompt()
        self.per_prompt = per_prompt
        names = [str(index) for index in range(len(self.used))]
        drawn = cluster_bootstrap(per_prompt, ["all"] * len(names), names, resamples=resamples, seed=seed)
        self.mean, self.drawn = per_prompt.mean(axis=0), drawn.overall()

    def points(self) -> list[CurvePoint]:
        """The curve of every rule: proxies, the longest answer, and where gold is known the oracle and the lot."""
        rules = [*self.pool.scores, *([ORACLE] if self.pool.gold is not None else [])]
        points = [self._point(rule, n) for rule in rules for n in self.sizes]
        return points + ([self._point(RANDOM, 1)] if self.pool.gold is not None else [])

    def agreement(self) -> dict[str, Estimate]:
        """How often each rule's best of all candidates is the best by gold; empty without gold."""
        if self.pool.gold is None:
            return {}
        return {rule: self._estimate(lambda at, rule=rule: at("agreement", rule, 0)) for rule in self.pool.scores}

    def differences(self) -> list[RuleDifference]:
        """Gold score of each proxy minus that of each later one, at every n; empty without gold."""
        if self.pool.gold is None:
            return []
        proxies = [rule for rule in self.pool.scores if rule != LONGEST]
        return [self._difference(one, other, n) for one, other in combinations(proxies, 2) for n in self.sizes]

    def counts(self) -> PoolCounts:
        """Candidates and prompts: read, used, left out, and those with too few for a steady estimate."""
        pool, largest = self.pool, self.sizes[-1]
        return PoolCounts(
            candidates=pool.report.read,
            malformed=pool.report.malformed,
            without_score=pool.without_score,
            prompts=len(pool.prompts),
            prompts_used=len(self.used),
            prompts_with_few=int((pool.sizes < largest).sum()),
            prompts_near_n=int((pool.sizes[self.used] < ENOUGH * largest).sum()) if largest > 1 else 0,
            fewest=int(pool.sizes[self.used].min()),
            most=int(pool.sizes[self.used].max()),
        )

    def ties(self) -> dict[str, float]:
        """Share of the candidates of used prompts whose score another candidate of the prompt has too, by rule."""
        shares = {}
        for rule, scores in self.pool.scores.items():
            tied = total = 0
            for index in self.used.tolist():
                counts = np.unique(scores[self.pool.of_prompt(index)], return_counts=True)[1]
                tied, total = tied + int(counts[counts > 1].sum()), total + int(counts.sum())
            shares[rule] = tied / total
        return shares

    def _per_prompt(self) -> Numbers:
        """One row for each used prompt, one column for each quantity at each n."""
        pool, rows = self.pool, []
        for index in self.used.tolist():
            here = pool.of_prompt(index)
            gold = None if pool.gold is None else pool.gold[here]
            values: dict[str, Numbers] = {} if gold is None else {"gold": gold}
            if pool.characters is not None:
                values["characters"] = pool.characters[here]
            cells: dict[tuple[str, str, int], float] = {}
            for rule, scores in {**pool.scores, **({} if gold is None else {ORACLE: pool.gold})}.items():
                assert scores is not None
                weights = choice_weights(scores[here], self.sizes)
                for name, column in {**values, "score": scores[here]}.items():
                    for n, value in zip(self.sizes, weights @ column, strict=True):
                        cells[name, rule, n] = float(value)
                if gold is not None:
                    cells["agreement", rule, 0] = agreement(scores[here], gold)
            for name, column in values.items():
                cells[name, RANDOM, 1] = float(column.mean())
            self.columns = self.columns or {key: place for place, key in enumerate(cells)}
            rows.append(list(cells.values()))
        return np.array(rows)

    def _point(self, rule: str, n: int) -> CurvePoint:
        none = Estimate(value=None, low=None, high=None)
        known, compared = self.pool.gold is not None, self.pool.gold is not None and rule != RANDOM

        def regret(at: _At) -> Numbers:
            return at("gold", ORACLE, n) - at("gold", rule, n)

        def gain(at: _At) -> Numbers:
            start = at("gold", RANDOM, 1)
            with np.errstate(invalid="ignore", divide="ignore"):  # where the oracle gains nothing there is no share
                return (at("gold", rule, n) - start) / (at("gold", ORACLE, n) - start)

        return CurvePoint(
            rule=rule,
            n=n,
            kl_bound=kl_bound(n),
            gold=self._estimate(lambda at: at("gold", rule, n)) if known else none,
            score=none if rule == RANDOM else self._estimate(lambda at: at("score", rule, n)),
            regret=self._estimate(regret) if compared else none,
            gain=self._estimate(gain) if compared and n > 1 else none,
            characters=none if self.pool.characters is None else self._estimate(lambda at: at("characters", rule, n)),
        )

    def _difference(self, first: str, second: str, n: int) -> RuleDifference:
        gaps = self.per_prompt[:, self.columns["gold", first, n]] - self.per_prompt[:, self.columns["gold", second, n]]
        return RuleDifference(
            first=first,
            second=second,
            n=n,
            gold=self._estimate(lambda at: at("gold", first, n) - at("gold", second, n)),
            first_better=float((gaps > 0).mean()),
            second_better=float((gaps < 0).mean()),
        )

    def _estimate(self, statistic: Callable[[_At], Numbers]) -> Estimate:
        """A function of means over prompts, and its percentile interval."""
        value = float(statistic(lambda *key: self.mean[self.columns[key]]))
        resampled = np.asarray(statistic(lambda *key: self.drawn[:, self.columns[key]]))
        if not np.isfinite(value) or not np.isfinite(resampled).any():
            return Estimate(value=value if np.isfinite(value) else None, low=None, high=None)
        low, high = percentile_interval(resampled, confidence=self.confidence)
        return Estimate(value=value, low=low, high=high)


def _default_sizes(pool: Pool) -> list[int]:
    largest = int(np.median(pool.sizes)) // ENOUGH
    if largest < 1:
        raise DataError("The median prompt has a single candidate: there is nothing to choose from.")
    return [2**power for power in range(largest.bit_length())]
