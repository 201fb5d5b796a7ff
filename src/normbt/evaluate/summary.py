"""From pairs that have scores to accuracies with intervals: overall, by group, and by section of RewardBench."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from normbt.results import EvaluationPair, Score
from normbt.rewardbench import average_score, section_of, section_scores
from normbt.stats import cluster_bootstrap, percentile_interval, wilson_interval

Numbers = NDArray[np.float64]
Statistic = Callable[[Numbers, Numbers], Numbers]
"""Maps sums and counts of each cell, shape ``(..., cells)``, to a score of shape ``(...)``."""


class ScoreTable:
    """Scores of one evaluation; every score comes from the same pairs and the same resamples.

    A *cell* is a combination of source, category and subset. All scores are functions of the sum and the count of
    each cell, so one bootstrap serves them all.

    Args:
        pairs: the lines of ``pairs.jsonl``.
        resamples: number of bootstrap resamples.
        confidence: coverage of the intervals, in ``(0, 1)``.
        seed: of the resampling.
    """

    def __init__(
        self, pairs: Sequence[EvaluationPair], *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
    ) -> None:
        self.pairs = pairs
        self.confidence = confidence
        keys = [(pair["source"], pair["category"], pair["subset"]) for pair in pairs]
        self.cells = list(dict.fromkeys(keys))
        position = {cell: index for index, cell in enumerate(self.cells)}
        self.cell_of = np.array([position[key] for key in keys])
        correct = np.array([pair["correct"] for pair in pairs], dtype=np.float64)
        # Padded, so that the bootstrap's groups, which are sorted, come in the order of the cells.
        names = [f"{cell:06d}" for cell in self.cell_of]
        self.drawn = cluster_bootstrap(
            correct, names, [pair["cluster_id"] for pair in pairs], resamples=resamples, seed=seed
        )
        self.counts = np.bincount(self.cell_of).astype(np.float64)
        self.correct = np.bincount(self.cell_of, weights=correct).astype(np.float64)
        longer = np.array([_prefers_longer(pair) for pair in pairs])
        self.longer = np.bincount(self.cell_of, weights=longer).astype(np.float64)

    def accuracy(self, cells: Sequence[int] | None = None) -> Score:
        """Share of right pairs among those of some cells, or of all."""
        chosen = list(range(len(self.cells))) if cells is None else list(cells)
        score = self._score(chosen, lambda sums, counts: sums[..., chosen].sum(-1) / counts[..., chosen].sum(-1))
        score["wilson_low"], score["wilson_high"] = wilson_interval(
            score["correct"], score["pairs"], confidence=self.confidence
        )
        return score

    def sections(self) -> dict[str, Score]:
        """Score of each RewardBench section of which there are pairs."""
        return {section: self._section(section) for section in self._section_scores(self.correct, self.counts)}

    def section_mean(self) -> Score:
        """Mean of the section scores."""
        cells = list(range(len(self.cells)))
        return self._score(cells, lambda sums, counts: average_score(self._section_scores(sums, counts)))

    def _section(self, section: str) -> Score:
        cells = [index for index, (_, _, subset) in enumerate(self.cells) if section_of(str(subset)) == section]
        return self._score(cells, lambda sums, counts: self._section_scores(sums, counts)[section])

    def _section_scores(self, sums: Numbers, counts: Numbers) -> dict[str, Numbers]:
        cells_of: dict[str, list[int]] = {}
        for index, (_, _, subset) in enumerate(self.cells):
            cells_of.setdefault(str(subset), []).append(index)
        with np.errstate(invalid="ignore"):  # a resample without a pair of the subset: NaN, left out by the rule
            accuracies = {
                subset: sums[..., cells].sum(-1) / counts[..., cells].sum(-1) for subset, cells in cells_of.items()
            }
        return section_scores(accuracies)

    def _score(self, cells: Sequence[int], statistic: Statistic) -> Score:
        with np.errstate(invalid="ignore"):
            resampled = statistic(self.drawn.sums[:, :, 0], self.drawn.counts)
        low, high = percentile_interval(resampled, confidence=self.confidence)
        pairs = [pair for pair, inside in zip(self.pairs, np.isin(self.cell_of, cells), strict=True) if inside]
        return Score(
            value=float(statistic(self.correct, self.counts)),
            low=low,
            high=high,
            wilson_low=None,
            wilson_high=None,
            length_only=float(statistic(self.longer, self.counts)),
            pairs=len(pairs),
            clusters=len({pair["cluster_id"] for pair in pairs}),
            correct=sum(pair["correct"] for pair in pairs),
            ties=sum(pair["tie"] for pair in pairs),
            non_finite=sum(pair["score_chosen"] is None or pair["score_rejected"] is None for pair in pairs),
            truncated=sum(pair["truncated"] for pair in pairs),
        )


def scores_by(table: ScoreTable, field: str) -> dict[str, Score]:
    """Accuracy of each value of a field: ``"source"``, ``"category"`` or ``"subset"``; pairs without it are left out.

    Args:
        table: the scores.
        field: the field to group by.

    Returns:
        Scores in the order in which the values first appear.
    """
    position = ("source", "category", "subset").index(field)
    names = dict.fromkeys(cell[position] for cell in table.cells if cell[position] is not None)
    return {
        str(name): table.accuracy([index for index, cell in enumerate(table.cells) if cell[position] == name])
        for name in names
    }


def _prefers_longer(pair: EvaluationPair) -> float:
    """What "take the longer answer" scores; a coin decides where both have the same number of characters."""
    lead = pair["n_characters_chosen"] - pair["n_characters_rejected"]
    return 0.5 if lead == 0 else float(lead > 0)
