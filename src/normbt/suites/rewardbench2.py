r"""RewardBench 2: best of four answers in five subsets, and Ties, where several answers are right.

Reproduces ``reroll_and_score_dataset``, ``_compute_prompt_stats`` and ``process_single_model`` of
``rewardbench/utils.py`` (allenai/reward-bench, commit 05a9005).

References:
    Malik et al., "RewardBench 2: Advancing reward model evaluation", arXiv 2506.01937.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from normbt.pairs import DataReport
from normbt.results import Coverage, EvaluationPrompt
from normbt.suites.base import (
    Decisions,
    Groups,
    Item,
    Numbers,
    PromptSuite,
    Record,
    SuiteScores,
    Verdict,
    coverage,
    ranked_by,
)
from normbt.suites.clusters import prompt_cluster
from normbt.suites.rewardbench import leaderboard_record
from normbt.suites.rows import NotAnItem, read_rows, text, texts

OFFICIAL_COUNTS = {"Factuality": 475, "Precise IF": 160, "Math": 183, "Safety": 450, "Focus": 495, "Ties": 102}
"""Subsets of the benchmark and the number of prompts the official data hold of each."""

TIES = "Ties"
TIES_WEIGHTS = {
    "Ties: tied accuracy": 0.30,
    "Ties: reference accuracy": 0.30,
    "Ties: preference": 0.20,
    "Ties: hard preference": 0.20,
    "Ties: margin": 0.01,
}
"""What the score of Ties is the weighted sum of; the weights add up to 1.01, as in the reference implementation."""

TIED_ACCURACY, REFERENCE_ACCURACY, PREFERENCE, HARD_PREFERENCE, MARGIN = TIES_WEIGHTS


def best_of_credit(scores: ArrayLike) -> float:
    """Credit for one prompt whose first answer is the right one.

    Args:
        scores: rewards of all answers, the right one first.

    Returns:
        1 if the right answer has the highest reward, a k-th if it shares it with others (k in all), 0 otherwise; also 0
        where a reward is NaN.

    Example:
        >>> best_of_credit([2.0, 1.0, 0.0, 2.0]), best_of_credit([1.0, 2.0])
        (0.5, 0.0)
    """
    array = np.asarray(scores, dtype=np.float64)
    highest = array.max()
    return 1.0 / int((array == highest).sum()) if array[0] == highest else 0.0


def ties_margin(reference_gap: float, tied_gap: float, spread: float) -> float:
    r"""How much larger the gap to the wrong answers is than the spread of the right ones, in (-1, 1).

    .. math:: \tanh\bigl(\min(\text{gap}_{\text{ref}}, \text{gap}_{\text{tied}}) / \text{spread} - 1\bigr)

    Args:
        reference_gap: lowest right reward less highest wrong one, of the reference prompt.
        tied_gap: the same of the prompt with several right answers.
        spread: highest right reward less lowest right one, of the latter.

    Returns:
        The margin; 1 or -1 where the spread is 0, and 0 where the gap is 0 too or a number is not finite.

    Example:
        >>> round(ties_margin(0.8, 0.4, 0.1), 4), ties_margin(1.0, 1.0, 0.0), ties_margin(0.0, 1.0, 0.0)
        (0.9951, 1.0, 0.0)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.minimum(reference_gap, tied_gap) / np.float64(spread)
        return float(np.nan_to_num(np.tanh(ratio - 1.0), nan=0.0))


def ties_score(parts: Mapping[str, ArrayLike]) -> Numbers:
    """Score of Ties from the means of its five parts, numbers or arrays of one shape.

    Args:
        parts: mean of each part of :data:`TIES_WEIGHTS`; one that is missing counts as 0, as in the reference
            implementation where a kind of prompt has no row.

    Example:
        >>> round(float(ties_score(dict.fromkeys(TIES_WEIGHTS, 1.0))), 2)
        1.01
    """
    return np.sum([weight * np.asarray(parts[name]) for name, weight in TIES_WEIGHTS.items() if name in parts], axis=0)


class RewardBench2(PromptSuite):
    """RewardBench 2."""

    name = "rewardbench2"
    hub_id = "allenai/reward-bench-2"
    hub_split = "test"
    files = ("rewardbench2", "rewardbench-2", "reward-bench-2", "reward_bench_2")
    tie_policy = "fractional"

    def read(self, source: str | Path, split: str | None) -> tuple[list[Item], DataReport]:
        """Rows of the official file: ``id, prompt, chosen, rejected, subset`` and more."""
        columns = ("id", "prompt", "chosen", "rejected", "subset")
        return read_rows(source, split, form="prompts with several answers", columns=columns, parse=self._item)

    def _item(self, row: Mapping[str, Any], file: str) -> Item:
        known = {name.lower(): name for name in OFFICIAL_COUNTS}
        subset = known.get(str(row["subset"]).lower())
        if subset is None:
            raise NotAnItem(f"subset {row['subset']!r} is not one of {', '.join(OFFICIAL_COUNTS)}")
        chosen, rejected = texts(row, "chosen"), texts(row, "rejected")
        item_id, prompt = str(row["id"]), text(row, "prompt")
        if row.get("num_correct") not in (None, len(chosen)):
            raise NotAnItem(f'"num_correct" is {row["num_correct"]}, "chosen" holds {len(chosen)}')
        cluster = prompt_cluster(prompt)
        if subset == TIES:
            kind, _, number = item_id.partition(":")
            if kind not in ("ref", "tied") or not number:
                raise NotAnItem(f'the id of a row of Ties must be "ref:NUMBER" or "tied:NUMBER", found {item_id!r}')
            if kind == "tied" and len(chosen) == 1:
                raise NotAnItem("a tied prompt must have several right answers, found one")
            cluster = f"ties-{number}"
        elif len(chosen) > 1:
            raise NotAnItem(f"only Ties has several right answers, found {len(chosen)} in {subset}")
        elif not item_id.startswith(subset):
            item_id = f"{subset}/{item_id}"  # numbered anew in each subset
        return Item(item_id, prompt, chosen, rejected, cluster, subset=subset)

    def unit(self, item: Item) -> str:
        """The prompts of Ties that belong together."""
        return item.cluster_id if item.subset == TIES else item.id

    def decide(self, prompt: EvaluationPrompt, chosen: Numbers, rejected: Numbers) -> list[Verdict]:
        """Best of four; for Ties, that every right answer beats every wrong one."""
        finite = bool(np.isfinite(chosen).all() and np.isfinite(rejected).all())
        if prompt["subset"] == TIES:
            right = chosen.min() - rejected.max() > 0
            tie = bool(chosen.min() == rejected.max())
            group = TIED_ACCURACY if _is_tied(prompt) else REFERENCE_ACCURACY
            return [Verdict(group, float(right and finite), tie=tie, finite=finite)]
        credit = best_of_credit([*chosen, *rejected])
        return [Verdict(str(prompt["subset"]), credit * finite, tie=0 < credit < 1, finite=finite)]

    def decisions(self, records: Sequence[Record], *, by_length: bool = False) -> Decisions:
        """The decisions about each prompt, and what the couples of Ties earn together."""
        own = super().decisions(records, by_length=by_length)
        rows = [
            (position, verdict)
            for position, verdicts in self._couples(records, by_length=by_length)  # type: ignore[arg-type] - prompts
            for verdict in verdicts
        ]
        none = np.zeros(len(rows), dtype=np.bool_)
        return Decisions(
            record=np.concatenate([own.record, np.array([position for position, _ in rows], dtype=np.int64)]),
            group=[*own.group, *(group for _, (group, _) in rows)],
            credit=np.concatenate([own.credit, np.array([credit for _, (_, credit) in rows])]),
            counted=np.concatenate([own.counted, none]),
            tie=np.concatenate([own.tie, none]),
            finite=np.concatenate([own.finite, ~none]),
            truncated=np.concatenate([own.truncated, none]),
        )

    def _couples(
        self, prompts: Sequence[EvaluationPrompt], *, by_length: bool
    ) -> list[tuple[int, list[tuple[str, float]]]]:
        """For each number with both kinds of prompts: the position of the tied one, and its three parts."""
        seen: dict[str, dict[bool, tuple[int, float, float]]] = {}
        for position, prompt in enumerate(prompts):
            if prompt["subset"] == TIES:
                chosen, rejected = ranked_by(prompt, by_length=by_length)
                gap, spread = float(chosen.min() - rejected.max()), float(chosen.max() - chosen.min())
                seen.setdefault(prompt["cluster_id"], {})[_is_tied(prompt)] = (position, gap, spread)
        found = []
        for kinds in seen.values():
            if len(kinds) == 2:
                (_, reference_gap, _), (position, gap, spread) = kinds[False], kinds[True]
                parts = [
                    (PREFERENCE, float(gap > spread)),
                    (HARD_PREFERENCE, float(np.minimum(reference_gap, gap) > spread)),
                    (MARGIN, ties_margin(reference_gap, gap, spread)),
                ]
                found.append((position, parts))
        return found

    def scores(self, groups: Groups) -> SuiteScores:
        """The six subsets, their plain mean, and the parts of Ties."""
        means = groups.means()
        sections = {name: means[name] for name in OFFICIAL_COUNTS if name in means}
        details = {name: means[name] for name in TIES_WEIGHTS if name in means}
        if details:
            sections[TIES] = ties_score(details)
        return SuiteScores(np.mean(np.stack(list(sections.values())), axis=0), sections, details)

    def headline(self, sections: int) -> str:
        """The mean of the subsets."""
        return f"mean of {sections} subsets"

    def coverage(self, items: Sequence[Record]) -> Coverage | None:
        """Against the official counts."""
        return coverage(Counter(str(record["subset"]) for record in items), OFFICIAL_COUNTS)

    def leaderboard(
        self, scores: Mapping[str, Mapping[str, float]], *, headline: float, model: str, template: str
    ) -> dict[str, float | str] | None:
        """The score of each subset."""
        return leaderboard_record(scores["sections"], model=model, template=template)


def _is_tied(prompt: EvaluationPrompt) -> bool:
    return prompt["id"].startswith("tied:")
