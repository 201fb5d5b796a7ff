"""Every score of an evaluation as a function of sums and counts, so that one bootstrap serves all of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from normbt.suites.base import Decisions, Groups, Numbers, Record, Suite, SuiteScores

Statistic = Callable[[Numbers, Numbers], Numbers]
"""Maps sums and counts of each cell, shape ``(..., cells)``, to a score of shape ``(...)``."""

BREAKDOWNS = {"categories": "category", "subsets": "subset", "sources": "source"}
"""Kinds of plain accuracies by the field they go by."""


class Cell(NamedTuple):
    """A combination that no score divides further; the fields are those of a record and of a decision."""

    source: str | None
    category: str | None
    subset: str | None
    group: str
    counted: bool


class Outcome(NamedTuple):
    """One score.

    Attributes:
        kind: ``headline``, ``accuracy``, ``sections``, ``details``, ``categories``, ``subsets`` or ``sources``.
        name: name of the section, the category and so on; of the headline, what it is.
        statistic: the score as a function of the cells.
        rows: the decisions of the model behind it, shape ``(decisions,)``.
        plain: it is the plain mean of their credit.
    """

    kind: str
    name: str
    statistic: Statistic
    rows: NDArray[np.bool_]
    plain: bool = False


class Outcomes:
    """The scores that an evaluation has.

    A *cell* is a combination of source, category, subset and the suite's own group. All scores are functions of the sum
    and the count of each cell.

    Args:
        suite: its rule.
        records: lines of the evaluation's file.
        decisions: what the suite made of them.

    Attributes:
        cell_of: cell of each decision, shape ``(decisions,)``.
        counts: number of decisions of each cell, shape ``(cells,)``.
        clusters: name of the cluster of each decision.
        strata: name of the stratum of each decision in a bootstrap: the suite's own group, whose size is the
            benchmark's. Further labels of the data (a source with a row or two) are no strata.
        cell_names: name of the cell of each decision, such that their order is that of the cells.
    """

    def __init__(self, suite: Suite, records: Sequence[Record], decisions: Decisions) -> None:
        self._suite, self._decisions = suite, decisions
        of_row = [records[record] for record in decisions.record]
        keys = [
            Cell(record["source"], record["category"], record["subset"], group, bool(counted))
            for record, group, counted in zip(of_row, decisions.group, decisions.counted, strict=True)
        ]
        self._cells = list(dict.fromkeys(keys))
        position = {cell: index for index, cell in enumerate(self._cells)}
        self.cell_of = np.array([position[key] for key in keys])
        self.counts = np.bincount(self.cell_of).astype(np.float64)
        self.clusters = [record["cluster_id"] for record in of_row]
        self.strata = list(decisions.group)
        # Padded, so that the groups of a bootstrap, which are sorted, come in the order of the cells.
        self.cell_names = [f"{cell:06d}" for cell in self.cell_of]

    def sums(self, credit: Numbers) -> Numbers:
        """Sum of the credit in each cell.

        Args:
            credit: of each decision, shape ``(decisions,)`` or ``(decisions, columns)``.

        Returns:
            Shape ``(cells,)`` or ``(columns, cells)``.
        """
        if credit.ndim == 1:
            return np.bincount(self.cell_of, weights=credit, minlength=len(self._cells)).astype(np.float64)
        return np.stack([self.sums(column) for column in credit.T])

    def weights(self, outcome: Outcome) -> Numbers:
        """What each decision's credit counts in a score: the score is the sum of credit times weight.

        Returns:
            Shape ``(decisions,)``. It exists because every score is linear in the credit.
        """
        units = np.eye(len(self._cells))
        return np.asarray(outcome.statistic(units, np.broadcast_to(self.counts, units.shape)))[self.cell_of]

    def headline(self) -> Outcome:
        """The number to quote."""
        names = self._suite_scores(self.counts, self.counts).sections
        if not names:
            return self.accuracy()._replace(kind="headline")
        return self._of_suite("headline", self._suite.headline(len(names)), lambda scores: scores.headline)

    def accuracy(self) -> Outcome:
        """Share of right decisions among all of them."""
        return self._mean_of("accuracy", "accuracy", [index for index, cell in enumerate(self._cells) if cell.counted])

    def sections(self) -> list[Outcome]:
        """What the headline is the mean of."""
        names = self._suite_scores(self.counts, self.counts).sections
        return [self._of_suite("sections", name, lambda scores, name=name: scores.sections[name]) for name in names]

    def details(self) -> list[Outcome]:
        """Further scores that the suite defines."""
        names = self._suite_scores(self.counts, self.counts).details
        return [self._of_suite("details", name, lambda scores, name=name: scores.details[name]) for name in names]

    def usual(self) -> list[Outcome]:
        """What a comparison looks at unasked: the headline, its sections (or the groups the data name), details."""
        parts = self.sections() or self.breakdown("categories") or self.breakdown("subsets")
        return [self.headline(), *parts, *self.details()]

    def breakdown(self, kind: str) -> list[Outcome]:
        """Plain accuracy of each value of a field, in the order in which the values first appear.

        Args:
            kind: ``categories``, ``subsets`` or ``sources``; records without the field are left out.
        """
        field = BREAKDOWNS[kind]
        cells_of: dict[str, list[int]] = {}
        for index, cell in enumerate(self._cells):
            if cell.counted and (name := getattr(cell, field)) is not None:
                cells_of.setdefault(name, []).append(index)
        return [self._mean_of(kind, name, cells) for name, cells in cells_of.items()]

    def _suite_scores(self, sums: Numbers, counts: Numbers) -> SuiteScores:
        cells_of: dict[str, list[int]] = {}
        for index, cell in enumerate(self._cells):
            cells_of.setdefault(cell.group, []).append(index)
        return self._suite.scores(
            Groups(
                sums={group: sums[..., cells].sum(-1) for group, cells in cells_of.items()},
                counts={group: counts[..., cells].sum(-1) for group, cells in cells_of.items()},
            )
        )

    def _of_suite(self, kind: str, name: str, pick: Callable[[SuiteScores], Numbers]) -> Outcome:
        def statistic(sums: Numbers, counts: Numbers) -> Numbers:
            return np.asarray(pick(self._suite_scores(sums, counts)))

        outcome = Outcome(kind, name, statistic, self._decisions.counted)
        involved = self.weights(outcome) != 0
        own = involved & self._decisions.counted
        if not own.any():  # what is derived from several decisions stands for those of the same records
            own = np.isin(self._decisions.record, self._decisions.record[involved]) & self._decisions.counted
        return outcome._replace(rows=own)

    def _mean_of(self, kind: str, name: str, cells: list[int]) -> Outcome:
        def statistic(sums: Numbers, counts: Numbers) -> Numbers:
            with np.errstate(invalid="ignore"):  # a resample that drew none of them: NaN, left out of the interval
                return np.asarray(sums[..., cells].sum(-1) / counts[..., cells].sum(-1))

        return Outcome(kind, name, statistic, np.isin(self.cell_of, cells), plain=True)
