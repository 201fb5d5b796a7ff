"""From the records of all pairs, read one by one, to the few numbers of each that the statistics need."""

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from normbt.bias import PairNumbers
from normbt.bias.shares import Floats

_NUMBERS = (
    "error",
    "distance",
    "distance_relative",
    "distance_cosine",
    "gradient_norm",
    "gradient_norm_head",
    "gradient_norm_backbone",
)


class Columns:
    """The numbers of pairs in columns: about a hundred bytes a pair, whatever the length of its texts."""

    def __init__(self) -> None:
        self._numbers = {name: array("d") for name in _NUMBERS}
        self._cluster, self._category = array("q"), array("q")
        self._misranked = array("b")
        self._clusters: dict[str, int] = {}
        self._categories: dict[str, int] = {}
        self.counts = {"misranked": 0, "ties": 0, "truncated": 0, "without_category": 0}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one pair."""
        for name, column in self._numbers.items():
            column.append(np.nan if record[name] is None else record[name])
        self._cluster.append(self._clusters.setdefault(record["cluster_id"], len(self._clusters)))
        category = record["category"]
        self._category.append(-1 if category is None else self._categories.setdefault(category, len(self._categories)))
        self._misranked.append(record["misranked"])
        self.counts["misranked"] += record["misranked"]
        self.counts["ties"] += record["tie"]
        self.counts["truncated"] += record["truncated"]
        self.counts["without_category"] += category is None

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> "Columns":
        """The columns of some records."""
        columns = cls()
        for record in records:
            columns.add(record)
        return columns

    @property
    def distance(self) -> Floats:
        """Distance of every pair, shape ``(pairs,)``; NaN where it is not finite."""
        return np.asarray(self._numbers["distance"])

    @property
    def finite(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Whether all numbers of a pair are finite, shape ``(pairs,)``."""
        return np.logical_and.reduce([np.isfinite(np.asarray(column)) for column in self._numbers.values()])

    def pair_numbers(self, weight: Floats) -> PairNumbers:
        """The numbers of the pairs that have all of them.

        Args:
            weight: weight of every pair, shape ``(pairs,)``.
        """
        kept = self.finite
        numbers = {name: np.asarray(column)[kept] for name, column in self._numbers.items()}
        # Clusters are numbered without gaps, so that a bootstrap draws none that has no pair.
        cluster = np.unique(np.asarray(self._cluster, dtype=np.intp)[kept], return_inverse=True)[1]
        return PairNumbers(
            **numbers,
            misranked=np.asarray(self._misranked, dtype=bool)[kept],
            weight=weight[kept],
            cluster=cluster,
            category=np.asarray(self._category, dtype=np.intp)[kept],
            categories=list(self._categories),
        )
