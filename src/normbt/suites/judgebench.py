r"""JudgeBench: pairs of answers of one model to hard questions, one of them right.

Reproduces the decision of a reward model in ``utils/judges.py`` and the score of ``utils/metrics.py`` with
``--single_game`` (ScalerLab/JudgeBench, commit e2c52c2).

References:
    Tan et al., "JudgeBench: A benchmark for evaluating LLM-based judges", arXiv 2410.12784.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normbt.pairs import DataReport
from normbt.results import Coverage, EvaluationPair
from normbt.stats import PairOutcomes, pair_outcomes
from normbt.suites.base import Item, Numbers, PairSuite, Record, coverage
from normbt.suites.clusters import prompt_cluster
from normbt.suites.rows import NotAnItem, read_rows, text

SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
OFFICIAL_COUNTS = {
    "gpt-4o-2024-05-13": dict(zip(SOURCES, (154, 98, 56, 42), strict=True)),
    "claude-3-5-sonnet-20240620": dict(zip(SOURCES, (154, 51, 34, 31), strict=True)),
}
"""Pairs of each source in the official data, by the model whose answers they are."""


def second_wins_ties(chosen: Numbers, rejected: Numbers, chosen_first: Sequence[bool]) -> PairOutcomes:
    """Which pairs are right when equal rewards are a decision for the second answer.

    Args:
        chosen: rewards of the right answers, shape ``(pairs,)``.
        rejected: rewards of the wrong answers.
        chosen_first: whether the right answer is the first one.

    Returns:
        Right, tied and finite pairs. A reward that is NaN makes a pair wrong; the reference implementation decides for
        the second answer there too.

    Example:
        >>> second_wins_ties(np.array([1.0, 1.0, 0.0]), np.ones(3), [True, False, False]).correct.tolist()
        [False, True, False]

    References:
        ``"A>B" if score_A > score_B else "B>A"``.
    """
    found = pair_outcomes(chosen, rejected)
    return found._replace(correct=found.correct | (found.tie & ~np.asarray(chosen_first, dtype=np.bool_)))


class JudgeBench(PairSuite):
    """JudgeBench."""

    name = "judgebench"
    hub_id = "ScalerLab/JudgeBench"
    hub_split = "gpt"
    files = ("judgebench", "dataset=judgebench", "gpt-0")
    tie_policy = "second"

    def read(self, source: str | Path, split: str | None) -> tuple[list[Item], DataReport]:
        """Rows of the official files: ``pair_id, source, question, response_model, response_A, response_B, label``."""
        columns = ("pair_id", "source", "question", "response_A", "response_B", "label")
        return read_rows(source, split, form="two answers and a label", columns=columns, parse=self._item)

    def _item(self, row: Mapping[str, Any], file: str) -> Item:
        subset = next((name for name in SOURCES if str(row["source"]).startswith(name)), None)
        if subset is None:
            raise NotAnItem(f"source {row['source']!r} begins with none of {', '.join(SOURCES)}")
        if row["label"] not in ("A>B", "B>A"):
            raise NotAnItem(f'label must be "A>B" or "B>A", found {row["label"]!r}')
        first, second, question = text(row, "response_A"), text(row, "response_B"), text(row, "question")
        right = row["label"] == "A>B"
        return Item(
            id=str(row["pair_id"]),
            prompt=question,
            chosen=(first if right else second,),
            rejected=(second if right else first,),
            cluster_id=prompt_cluster(question),
            source=None if row.get("response_model") is None else str(row["response_model"]),
            subset=subset,
            chosen_first=right,
        )

    def outcomes(self, items: Sequence[Item], chosen: Numbers, rejected: Numbers) -> PairOutcomes:
        """A tie is a decision for the second answer."""
        return second_wins_ties(chosen, rejected, [item.chosen_first for item in items])

    def group(self, record: EvaluationPair) -> str:
        """The source of the question."""
        return str(record["subset"])

    def coverage(self, items: Sequence[Record]) -> Coverage | None:
        """Against the official counts of the models whose answers they are."""
        models = {str(record["source"]) for record in items} & OFFICIAL_COUNTS.keys()
        official: Counter[str] = Counter()
        for model in models or {next(iter(OFFICIAL_COUNTS))}:
            official.update(OFFICIAL_COUNTS[model])
        return coverage(Counter(str(record["subset"]) for record in items), official)

    def leaderboard(
        self, scores: Mapping[str, Mapping[str, float]], *, headline: float, model: str, template: str
    ) -> dict[str, float | str] | None:
        """What ``run_judge.py`` prints: percent by source, and over all pairs."""
        return {**{name: 100 * value for name, value in scores["subsets"].items()}, "Overall": 100 * headline}
