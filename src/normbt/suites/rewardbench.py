"""RewardBench v1: its sections, subsets and weights, its scoring rule, and which of its pairs are not independent.

Reproduces ``rewardbench/constants.py`` and ``rewardbench/utils.py::calculate_scores_per_section`` of the reference
implementation (allenai/reward-bench, commit 05a9005).

References:
    Lambert et al., "RewardBench: Evaluating reward models for language modeling", arXiv 2403.13787.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normbt.errors import DataError
from normbt.pairs import DataReport
from normbt.results import Coverage, EvaluationPair
from normbt.suites.base import Groups, Item, PairSuite, Record, SuiteScores, coverage
from normbt.suites.clusters import prompt_cluster, prompt_text
from normbt.suites.plain import pair_items

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Sections of the benchmark, their subsets, and the number of pairs the official data hold of each."""

MATH_PRM_WEIGHT = 984
"""Weight of math-prm in Reasoning. It has 447 pairs; the authors weigh it like the 6 x 164 pairs of code, so that
mathematics and code count half each. Every other subset weighs as much as it has pairs."""

OFFICIAL_COUNTS: dict[str, int] = {subset: count for subsets in SECTIONS.values() for subset, count in subsets.items()}

WEIGHTS: dict[str, int] = OFFICIAL_COUNTS | {"math-prm": MATH_PRM_WEIGHT}


def check_subsets(subsets: Iterable[str | None]) -> None:
    """Refuse subset names that are not RewardBench's, because no section would count them.

    Raises:
        DataError: names the unknown subsets and the nearest known ones.

    Example:
        >>> check_subsets(["math-prm", "hep-rust"])
    """
    unknown = sorted({str(subset) for subset in subsets} - OFFICIAL_COUNTS.keys())
    if not unknown:
        return
    names = []
    for subset in unknown[:5]:
        near = difflib.get_close_matches(subset, OFFICIAL_COUNTS, n=1)
        names.append(f"'{subset}'" + (f" (did you mean '{near[0]}'?)" if near else ""))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    raise DataError(
        f"Not RewardBench subsets: {', '.join(names)}{more}. Every pair needs a field 'subset' with one of the "
        f"{len(OFFICIAL_COUNTS)} official names; for other data use --suite pairs."
    )


def section_of(subset: str) -> str:
    """The section a subset belongs to.

    Raises:
        DataError: there is no such subset.

    Example:
        >>> section_of("mt-bench-hard")
        'Chat Hard'
    """
    check_subsets([subset])
    return next(section for section, subsets in SECTIONS.items() if subset in subsets)


def section_scores(accuracies: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    r"""Score of each section: the weighted mean of the accuracies of its subsets.

    .. math:: \mathrm{section}(S) = \frac{\sum_{s \in S} \mathrm{weight}_s\, a_s}{\sum_{s \in S} \mathrm{weight}_s}

    Args:
        accuracies: accuracy of each subset, a number or an array of them (one per resample), all of one shape. A
            subset that is not there, or is NaN, is left out and the weights of the others are renormalised.

    Returns:
        Score of every section of which a subset is there, in the same shape.

    Raises:
        DataError: a name is not a RewardBench subset.

    Example:
        >>> scores = section_scores({"math-prm": 0.5, "hep-cpp": 1.0, "mt-bench-hard": 0.25})
        >>> {name: round(float(score), 4) for name, score in scores.items()}
        {'Chat Hard': 0.25, 'Reasoning': 0.5714}

    References:
        ``calculate_scores_per_section`` in rewardbench/utils.py; there a section without subsets scores 0, here it is
        left out, because 0 would enter the average as if the model had failed it.
    """
    check_subsets(accuracies)
    scores = {}
    for section, subsets in SECTIONS.items():
        present = [subset for subset in subsets if subset in accuracies]
        if not present:
            continue
        values = np.stack([np.asarray(accuracies[subset], dtype=np.float64) for subset in present])
        weights = np.array([WEIGHTS[subset] for subset in present], dtype=np.float64)
        weights = weights.reshape(-1, *[1] * (values.ndim - 1)) * np.isfinite(values)
        with np.errstate(invalid="ignore"):  # no subset left in this resample: NaN, as it should be
            scores[section] = (weights * np.nan_to_num(values)).sum(axis=0) / weights.sum(axis=0)
    return scores


def average_score(sections: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    """The headline number: the plain mean of the section scores, each section counting the same.

    It is the leaderboard's average without the optional prior sets. The micro accuracy over all pairs is another
    number and is reported separately.

    Example:
        >>> float(average_score({"Chat": 0.75, "Chat Hard": 0.25, "Safety": 0.5, "Reasoning": 0.5}))
        0.5

    References:
        ``get_average_over_rewardbench`` in analysis/get_benchmark_results.py.
    """
    return np.mean(np.stack([np.asarray(score, dtype=np.float64) for score in sections.values()]), axis=0)


def leaderboard_record(
    accuracies: Mapping[str, float], *, model: str, template: str = "tokenizer"
) -> dict[str, float | str]:
    """The flat record that the RewardBench results repositories hold for a model: score of each subset, and names.

    Example:
        >>> leaderboard_record({"math-prm": 0.5}, model="me/reward-model")
        {'math-prm': 0.5, 'model': 'me/reward-model', 'model_type': 'Seq. Classifier', 'chat_template': 'tokenizer'}
    """
    return {**accuracies, "model": model, "model_type": "Seq. Classifier", "chat_template": template}


def cluster_id(subset: str, prompt: str) -> str:
    """Name of the cluster a pair belongs to: pairs of one cluster are right and wrong together.

    The six code subsets ask the same 164 HumanEval problems in six languages, and the alpacaeval, mt-bench and llmbar
    subsets share prompts. A code problem is recognised by the name of the function it asks for, without case and
    underscores: 143 of the 164 problems are found in all six languages, a few are renamed in one of them, and six
    names stand for two problems each. That makes 171 clusters of 984 pairs; the prompts alone would make 984.

    Args:
        subset: the pair's subset.
        prompt: the text of its prompt.

    Returns:
        The name of the cluster.

    Example:
        >>> cluster_id("hep-go", "Write a Go function `func HasCloseElements(numbers []float64) bool` to solve ...")
        'humaneval-hascloseelements'
        >>> cluster_id("hep-js", "Write a JavaScript function `const hasCloseElements = (numbers)` to solve ...")
        'humaneval-hascloseelements'
    """
    if subset.startswith("hep-"):
        signature = re.search(r"`(.+?)`", prompt, re.DOTALL)
        name = signature and re.search(r"(\w+)\s*(?:=\s*)?\(", signature[1])
        if name:
            return f"humaneval-{name[1].replace('_', '').lower()}"
    return prompt_cluster(prompt)


class RewardBench(PairSuite):
    """RewardBench v1."""

    name = "rewardbench"
    hub_id = "allenai/reward-bench"
    hub_split = "filtered"
    files = ("rewardbench", "reward-bench", "reward_bench", "filtered")
    primary = ("Reasoning",)

    def read(self, source: str | Path, split: str | None) -> tuple[list[Item], DataReport]:
        """Pairs with a prompt and the name of their subset."""
        return pair_items(source, split, self._place, needs=("prompt", "subset"), check=self._check)

    def _check(self, columns: Mapping[str, Sequence[str | None]]) -> None:
        check_subsets(columns["subset"])

    def _place(self, row: Mapping[str, Any]) -> tuple[str, str | None]:
        section = section_of(str(row["subset"])).lower().replace(" ", "_")
        return cluster_id(str(row["subset"]), prompt_text(row) or ""), row.get("category") or section

    def group(self, record: EvaluationPair) -> str:
        """The subset."""
        return str(record["subset"])

    def scores(self, groups: Groups) -> SuiteScores:
        """The sections, and their mean."""
        sections = section_scores(groups.means())
        return SuiteScores(average_score(sections), sections, {})

    def coverage(self, items: Sequence[Record]) -> Coverage | None:
        """Against the official counts of the 23 subsets."""
        return coverage(Counter(str(record["subset"]) for record in items), OFFICIAL_COUNTS)

    def leaderboard(
        self, scores: Mapping[str, Mapping[str, float]], *, headline: float, model: str, template: str
    ) -> dict[str, float | str] | None:
        """The accuracy of each subset."""
        return leaderboard_record(scores["subsets"], model=model, template=template)
